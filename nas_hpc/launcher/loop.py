"""The launcher: from taking a site to giving it back."""

from __future__ import annotations

import asyncio
import contextlib
import math
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from nas_hpc.errors import INTERRUPTED, LeaseLost, StoreError, WorkFailed
from nas_hpc.launcher import command_calls, ownership, view, visitors
from nas_hpc.launcher.agent import Agent
from nas_hpc.launcher.dispatch import Dispatcher
from nas_hpc.launcher.endings import SEARCH_ENDED
from nas_hpc.launcher.endpoint import LOOPBACK, EndpointServer
from nas_hpc.launcher.fleet import Fleet, FleetHooks
from nas_hpc.launcher.idling import Idling
from nas_hpc.launcher.journal import Journal
from nas_hpc.launcher.looks import Looks
from nas_hpc.launcher.options import LauncherOptions
from nas_hpc.launcher.orders import Allocation
from nas_hpc.launcher.ownership import Left
from nas_hpc.launcher.roster import Roster
from nas_hpc.launcher.searches import Outside, Searches, launcher_line
from nas_hpc.launcher.together import Together
from nas_hpc.launcher.visitors import Visitors
from nas_hpc.launcher.waiting import Hooks
from nas_hpc.records import Job, Lease
from nas_hpc.resources import Pool
from nas_hpc.site import Site
from nas_hpc.states import Outcome, State
from nas_hpc.store import open_site, owner
from nas_hpc.store.base import Finished, Store
from nas_hpc.store.sql import SqlStore
from nas_hpc.store.writer import Writer
from nas_hpc.wire import (
    PROTOCOL,
    Accepted,
    AgentHello,
    Dismiss,
    Message,
    OfAgent,
    OfJob,
    Query,
    Refused,
    Status,
    StoreCall,
    Wake,
)

SWITCH_S = 0.0005
"""How long one of the loop's and the database's threads may keep the other waiting; Python's default of 5 ms
would be most of the time between an evaluation's end and its search's knowing."""


class Launcher:
    """One launcher's life inside an asyncio loop."""

    def __init__(
        self,
        site: Site,
        options: LauncherOptions,
        lease: Lease,
        dead: list[Lease],
        allocation: Allocation,
        agents: Roster | None = None,
        left: Sequence[Left] = (),
        listen: Sequence[str] = (LOOPBACK,),
        *,
        ready: Callable[[], None] = lambda: None,
    ) -> None:
        """``dead`` are leases that were ended for this one; ``ready`` is called when its writer has the
        database open."""
        self.site, self.options, self.lease, self.allocation = site, options, lease, allocation
        self._dead, self._agents, self._left, self._listen = dead, agents, left, listen
        self._writer_is_open = ready
        self.fleet: Fleet | None = None
        self.started = time.time()
        self.journal = Journal(site.data, self.note, several=allocation.shared)
        self.together: Together | None = None
        self._end = asyncio.Event()
        self._error: BaseException | None = None
        self._failed: set[str] = set()
        self._stop_signals = 0
        self._interrupted = False
        """By Ctrl-C: who gives it wants what comes next not to begin."""
        self.looks = Looks(self)
        self._idling = Idling(self, self._end.set)
        self.meter = view.Meter()
        self._display = view.Display(self)
        self._owned = owner.is_shared(site)
        """Whether commands on other hosts may have left calls in the site's inbox."""

    # -- life ----------------------------------------------------------------------------------------
    async def run(self) -> int:
        """From the first job to the last."""
        loop = self.loop = asyncio.get_running_loop()
        loop.set_exception_handler(self._on_error)
        sys.setswitchinterval(SWITCH_S)
        if self.allocation.shared:
            self.together = Together(self, self._dead, [one.key for one in self._left])
        # A server that is away is away for all: what runs goes on, and what it tells waits.
        patience_s = math.inf if self.allocation.shared else self.options.lease_s
        self.writer = Writer(self._open, patience_s=patience_s, on_trouble=self.note)
        self._writer_is_open()
        pool = Pool(self.allocation.nodes, self.masters_nodes(), self.allocation.found.guessed)
        for name in self.allocation.found.elsewhere:
            pool.set_aside(name)  # until somebody there runs what is placed on it
        hooks = Hooks(
            self.on_finished,
            self._changed,
            self._overtaken,
            self.fatal,
            self.note,
            lambda unfit: self.searches.unfit(unfit),
        )
        self.dispatcher = Dispatcher(self.allocation, self.options, pool, self.writer, self.journal, hooks)
        self.dispatcher.placing.agents = self._agents is not None
        self.pool = pool
        self.agent = Agent(
            marker=self.lease.id,
            sessions_log=ownership.sessions_log(self.site, self.lease.id),
            on_started=self.dispatcher.on_started,
            on_ended=self.dispatcher.on_ended,
            on_note=self.note,
            fresh_only=self.options.fresh_interpreter,
            grace_s=self.options.grace_s,
            result_grace_s=self.options.result_grace_s,
            task_directories=self.options.task_directories,
            stage_environment=self.options.stage_environment,
        )
        self.dispatcher.agent = self.agent
        if self._agents is not None:
            self._begin_fleet(self._agents)
        expects = self.fleet.expects if self.fleet is not None else lambda key: False
        outside = Outside(
            self._send, self.deadline_utc, self.note, self._changed, self._log_capacity, expects
        )
        if self.together is not None:
            outside = self.together.join(outside)
        self.searches = Searches(self.dispatcher, self.allocation, self.journal, outside)
        self.visitors = Visitors(self.dispatcher, self.lease.id, self._for_visitors())
        self.calls = command_calls.CommandCalls(self.site, self._for_commands())
        self.endpoint = EndpointServer(
            self.allocation.endpoint, self.lease.id, self._receive, self.note, self._listen
        )
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:  # as by nohup
                loop.add_signal_handler(number, self._on_signal, number)
        try:
            await self._begin()
            await self._end.wait()
        finally:
            await self._close()
        if self._error is not None:
            raise self._error
        if self._interrupted:
            return INTERRUPTED
        never = self.dispatcher.never and not self.dispatcher.elsewhere()
        return 1 if self._failed or never else 0

    def _open(self) -> SqlStore:
        """In the writer's thread."""
        store = open_site(self.site)
        if self.together is not None:
            store.keep(self.lease.id)
            self.together.sender = store.sender
        return store

    @property
    def ended(self) -> bool:
        """Whether it is ending: nothing is started or taken in any more."""
        return self._end.is_set()

    def masters_nodes(self) -> list[str]:
        """In serial mode the first of several nodes is the launcher's alone."""
        nodes = self.allocation.nodes
        alone = self.options.job_mode == "serial" and len(nodes) > 1 and not self.options.use_master_node
        return [nodes[0].name] if alone else []

    def _begin_fleet(self, agents: Roster) -> None:
        hooks = FleetHooks(
            send=self._send,
            adopted=lambda keys: self.searches.adopted(keys),
            fatal=self.fatal,
            note=self.note,
        )
        self.fleet = Fleet(
            self.allocation,
            self.options,
            agents,
            self._left,
            local=self.agent,
            dispatcher=self.dispatcher,
            pool=self.pool,
            hooks=hooks,
        )
        self.dispatcher.agent = self.fleet.crew

    async def _begin(self) -> None:
        self.note(f"it has {self.allocation.found}")
        for line in self.allocation.found.notes:
            self.note(f"note: {line}")
        end = self.deadline_utc()
        if end:
            stop_in = max(0.0, end - time.time() - self.options.stop_margin_s)
            self.dispatcher.foresight.deadline = self.loop.time() + stop_in
            self.loop.call_later(stop_in, self.stop, "the allocation ends", Outcome.WALLTIME)
        self.loop.call_later(self.options.heartbeat_s, self._heartbeat)
        if self.together is not None:
            self.together.begin()
        else:
            self.dispatcher.write(
                partial(
                    ownership.write_missing_lines, journal=self.journal, dead=self._dead, options=self.options
                ),
                lambda _: None,
            )
        self.looks.look()
        self.dispatcher.mpi.begin()
        if self.fleet is not None:
            self.fleet.begin()

    async def _close(self) -> None:
        self.dispatcher.stopping = True  # what a command adds now is the next launcher's
        await self._close_runners()
        if self.together is not None:
            await self.together.close()
        if not isinstance(self._error, LeaseLost):
            for workflow in self.searches.workflows:
                self.journal.launcher(workflow, launcher_line(self.allocation, "end", 0))
        complete = await asyncio.to_thread(self.journal.close)
        if complete and not isinstance(self._error, LeaseLost):
            with contextlib.suppress(StoreError):
                await self.writer.submit(partial(ownership.close_lease, self.lease.id))
        await asyncio.to_thread(self.writer.close)
        self._display.show()

    async def _close_runners(self) -> None:
        """End what runs. Agents in other processes go with a launcher that ends in order; one that lost its
        lease leaves them to its successor."""
        fleet, superseded = self.fleet, isinstance(self._error, LeaseLost)
        if fleet is not None and not superseded:
            fleet.dismiss("the launcher has ended" if self._error is None else str(self._error))
        self.endpoint.close()
        await self.calls.close()
        await self.dispatcher.stages.close()
        self.dispatcher.resting.close()
        await self.dispatcher.mpi.close()
        await self.agent.close()
        if fleet is not None:
            await (fleet.abandon() if superseded else fleet.end())

    # -- messages, and what became of jobs -----------------------------------------------------------
    def _receive(self, peer: bytes, message: Message) -> None:
        if isinstance(message, Wake) and self._end.is_set():
            self._send(peer, Refused(message.request, "it is ending: start one again with nas-hpc launcher"))
        elif isinstance(message, Wake | Query) and message.protocol != PROTOCOL:
            self._send(peer, Refused(message.request, f"the launcher speaks protocol {PROTOCOL}"))
        elif isinstance(message, Wake):
            # With several launchers what leaves no event is told by a notice.
            everything = not self.allocation.shared
            self.looks.look(partial(self._send, peer, Accepted(message.request)), everything=everything)
        elif isinstance(message, Query):
            self._send(peer, Status(message.request, self.view(message.job)))
        elif isinstance(message, StoreCall):
            self.calls.receive(peer, message)
        elif isinstance(message, OfJob):
            self.visitors.receive(peer, message)
        elif isinstance(message, OfAgent):
            if self.fleet is not None:
                self.fleet.receive(peer, message)
            elif isinstance(message, AgentHello):
                self._send(peer, Dismiss("this launcher runs without agents"))
        else:
            self.searches.receive(peer, message)

    def _send(self, peer: bytes, message: Message) -> bool:
        return self.endpoint.send(peer, message)

    def on_finished(self, done: Sequence[Finished], cancelled: Sequence[Job]) -> None:
        for one in done:
            job, result = one.job, one.attempt.result if one.attempt is not None else None
            if job.creator:
                continue
            self._failed.discard(job.id)
            if job.state is State.FAILED:
                self._failed.add(job.id)
                reason = self.dispatcher.stages.reason_of(job.id) or (result.reason if result else "")
                lines = (one.attempt.tail if one.attempt is not None else "").splitlines()
                last = [line.strip() for line in lines if any(map(str.isalnum, line))][-1:]  # no rulers
                said = f": {last[0]}" if last else ""
                self.note(f"job {job.name} ({job.id[:8]}) failed: {reason}{said}")
        self.searches.finished(done)
        self.searches.killed(cancelled, SEARCH_ENDED)
        awaited = self.visitors.awaited
        if self.looks.children_wait and any(not one.job.creator or one.job.id in awaited for one in done):
            self.looks.soon()

    def _for_visitors(self) -> visitors.Outside:
        def waits() -> None:
            self.looks.children_wait = True

        return visitors.Outside(self._send, self.searches.killed, waits, self.options.workflow)

    def _for_commands(self) -> command_calls.Outside:
        return command_calls.Outside(
            self.dispatcher.write,
            self._send,
            lambda everything: self.looks.soon(everything=everything),
            self.note,
            self._end.is_set,
        )

    def _overtaken(self, jobs: Sequence[Job]) -> None:
        self.searches.killed(jobs, "killed by a command")
        # One that was retried before it ended waits for its next attempt; none: all that cannot run here.
        self.looks.soon(everything=not jobs, also=[job.id for job in jobs])

    # -- ends ----------------------------------------------------------------------------------------
    def stop(self, reason: str, outcome: Outcome = Outcome.WALLTIME) -> None:
        """End in order: start nothing more and tell what runs to stop; the next launcher restarts it."""
        if not self.dispatcher.stopping:
            self.note(f"stopping: {reason}")
            self.dispatcher.stop_all(outcome, reason)
            self.writer.patience_s = self.options.lease_s
        self._changed()

    def _on_signal(self, number: int) -> None:
        self._stop_signals += 1
        self._interrupted |= number == signal.SIGINT
        if self._stop_signals == 1:
            self.stop(f"{signal.Signals(number).name} received")
        elif self._stop_signals == 2:
            self._kill_all()

    def fatal(self, error: BaseException) -> None:
        """The lease is lost or the database is gone: end everything here, write nothing more."""
        if not self._end.is_set():
            self._error = error
            self.writer.patience_s = 0.0
            self._end.set()
            self.dispatcher.stopping = True
            self._kill_all()

    def _kill_all(self) -> None:
        """Agents that another launcher may have taken over are told nothing."""
        self.dispatcher.stages.kill_all()
        fleet = self.fleet
        (self.agent if fleet is None or isinstance(self._error, LeaseLost) else fleet.crew).kill_all()

    def _on_error(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Something raised in the loop that nobody caught: better an end than to hang for ever."""
        error = context.get("exception")
        self.fatal(error if error is not None else WorkFailed(str(context.get("message"))))

    def _heartbeat(self) -> None:
        self.loop.call_later(self.options.heartbeat_s, self._heartbeat)
        self.dispatcher.write(self._renewal(), lambda _: self.endpoint.restore())
        if self._owned:
            self.calls.look_into_inbox()

    def _renewal(self) -> Callable[[Store], None]:
        return partial(ownership.renew_lease, self.lease.id, self.options.lease_s)

    def _log_capacity(self, workflow: str, line: dict[str, object]) -> None:
        """Into launchers.jsonl, but only while the lease holds: a superseded launcher writes nothing."""
        self.dispatcher.write(self._renewal(), lambda _: self.journal.launcher(workflow, line))

    def _changed(self) -> None:
        together = self.together
        if together is not None:
            together.changed()
        self.searches.update_capacity(together.version if together is not None else 0)
        slots = together.slots if together is not None else self.searches.slots()
        self.meter.update(self.loop.time(), len(self.dispatcher.evaluating), slots)
        self._display.plan()
        self._idling.check()

    # -- what it tells -------------------------------------------------------------------------------
    def deadline_utc(self) -> float:
        """When the allocation ends, UTC; 0: never. The earlier of the batch job's end and the time limit."""
        limit = self.started + self.options.time_limit_s if self.options.time_limit_s else 0.0
        ends = self.allocation.found.ends
        return min(limit, ends) if limit and ends else limit or ends

    def note(self, line: str) -> None:
        """A line for the launcher's log; nothing if nobody reads it any more."""
        view.say(line)

    def view(self, job: str = "") -> Mapping[str, object]:
        """What is going on, as JSON."""
        return view.of_launcher(self, job)
