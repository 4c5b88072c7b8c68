"""The launcher's dealings with agents in other processes: their arrival, what they bring, and their loss.

A node is used while its agent is here. What an agent presents that a dead launcher had started is adopted and
goes on; what no agent presents of it is settled by its result.json, or lost and run again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from nas_hpc.errors import WorkFailed
from nas_hpc.launcher.crew import Crew, CrewHooks
from nas_hpc.launcher.dispatch import Dispatcher
from nas_hpc.launcher.ensemble import Ensemble, EnsembleHooks
from nas_hpc.launcher.options import LauncherOptions
from nas_hpc.launcher.orders import Allocation
from nas_hpc.launcher.ownership import Left, take_over
from nas_hpc.launcher.policy import LAUNCHER_GONE
from nas_hpc.launcher.remotes import Remote
from nas_hpc.launcher.roster import Roster
from nas_hpc.processes import sessions, traces
from nas_hpc.processes.orders import Key, Runner
from nas_hpc.records import Job, Node
from nas_hpc.resources import Pool
from nas_hpc.resources.discover import as_reported
from nas_hpc.wire import AgentHello, Message, OfAgent

PRESENT_S = 10.0
"""So long after its start a launcher waits for agents to present what its predecessor had started."""
LOOK_S = 5.0


@dataclass(frozen=True, slots=True)
class FleetHooks:
    """What the fleet needs from the launcher."""

    send: Callable[[bytes, Message], bool]
    adopted: Callable[[Collection[Key]], None]
    """It is decided whether these go on: searches among them may be waiting for that."""
    fatal: Callable[[BaseException], None]
    note: Callable[[str], None]


class Fleet:
    """The agents of ``roster``, and what a predecessor left with them. ``crew`` runs the orders."""

    def __init__(
        self,
        allocation: Allocation,
        options: LauncherOptions,
        roster: Roster,
        left: Sequence[Left],
        *,
        local: Runner,
        dispatcher: Dispatcher,
        pool: Pool,
        hooks: FleetHooks,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._allocation, self._options, self._pool, self._hooks = allocation, options, pool, hooks
        self._dispatcher = dispatcher
        nodes = self._nodes = {node.name: node for node in allocation.nodes}
        self._hosts = [nodes[names[0]].address for names in roster.nodes]
        self._real = bool(allocation.found.elsewhere)
        crew_hooks = CrewHooks(
            send=hooks.send,
            started=dispatcher.on_started,
            ended=dispatcher.on_ended,
            lost=dispatcher.lost,
            arrived=self._arrived,
            away=self._away,
            note=hooks.note,
        )
        self.crew = Crew(
            epoch=allocation.lease,
            local=local,
            hooks=crew_hooks,
            ensemble=roster.id,
            nodes=roster.nodes,
            aliases=self._aliases(roster, nodes) if self._real else {},
            grace_s=options.grace_s,
            fresh_interpreter=options.fresh_interpreter,
            result_grace_s=options.result_grace_s,
            task_directories=options.task_directories,
            stage_environment=options.stage_environment,
        )
        ensemble_hooks = EnsembleHooks(self._ended, self._is_here, self._given_up, hooks.note)
        self.ensemble = Ensemble(
            allocation.site,
            roster,
            ensemble_hooks,
            options=options,
            endpoint=allocation.endpoint,
            hosts=self._hosts if self._real else (),
        )
        self._left = {one.key: one for one in left}
        self._adopting: set[Key] = set()
        self._arriving: dict[int, AgentHello] = {}
        """The last Hello of agents for which the database is being asked what goes on."""
        self._hopeless: dict[int, str] = {}
        self._absent_since = dict.fromkeys(range(len(roster.nodes)), self._loop.time())
        self._named: set[int] = set()
        self._closing = False
        served = self.nodes()
        self._own_nodes = bool({node.name for node in pool.job_nodes}.difference(served))
        """Whether the launcher serves nodes for jobs itself."""
        for name in served:
            pool.set_aside(name)

    @staticmethod
    def _aliases(roster: Roster, nodes: Mapping[str, Node]) -> dict[str, int]:
        known: dict[str, int] = {}
        for number, names in enumerate(roster.nodes):
            for name in names:
                for alias in (name, nodes[name].address):
                    known[alias] = known[alias.partition(".")[0]] = number
        return known

    def nodes(self) -> list[str]:
        """The nodes that have agents."""
        return [name for remote in self.crew.remotes for name in remote.nodes]

    # -- life ----------------------------------------------------------------------------------------------
    def begin(self) -> None:
        """Start what is missing, and wait for the rest."""
        self.ensemble.begin()
        self._loop.call_later(min(LOOK_S, self._options.agent_deadline_s / 2), self._look)
        if self._left:
            self._loop.call_later(PRESENT_S, self._settle, None)

    def receive(self, peer: bytes, message: OfAgent) -> None:
        """Handle a message of an agent."""
        self.crew.receive(peer, message)

    def dismiss(self, reason: str) -> None:
        """Send the agents away; nobody is waited for any more."""
        self._closing = True
        self.crew.dismiss(reason)

    async def end(self) -> None:
        """After ``dismiss``: wait until nothing is left of the agents."""
        await self.ensemble.end()

    async def abandon(self) -> None:
        """Another launcher has them."""
        self._closing = True
        await self.ensemble.abandon()

    # -- what a predecessor left ---------------------------------------------------------------------------
    def expects(self, key: Key) -> bool:
        """Whether it is not yet known if the attempt goes on."""
        return key in self._left or key in self._adopting

    @property
    def unsettled(self) -> bool:
        """Whether attempts of a predecessor wait for their agents, or jobs for agents that may come."""
        if self._adopting or self._arriving:
            return True
        if self._dispatcher.stopping:
            return False  # what is left is the next launcher's
        # What seems impossible may be possible once agents have said what their nodes have.
        waits = len(self._dispatcher.queue) > 0 or (self._real and bool(self._dispatcher.never))
        return bool(self._left) or (waits and any(map(self._may_come, self.crew.remotes)))

    def _arrived(self, remote: Remote, hello: AgentHello) -> None:
        self.ensemble.arrived(remote.number, hello)
        self._absent_since.pop(remote.number, None)
        self._hopeless.pop(remote.number, None)
        self._learn(remote, hello)
        busy = remote.number in self._arriving
        self._arriving[remote.number] = hello
        if not busy:
            presented = {*hello.running, *((end.job, end.attempt) for end in hello.ended)}
            self._take_over(remote, hello.incarnation, presented)

    def _learn(self, remote: Remote, hello: AgentHello) -> None:
        """Cores and GPUs of a machine are what its agent found there."""
        if not self._real or not hello.cores:
            return
        for node in map(self._nodes.__getitem__, remote.nodes):
            reported = as_reported(
                node,
                cores=hello.cores,
                threads_per_core=hello.threads_per_core,
                numa=hello.numa,
                gpus=hello.gpus,
                cores_per_node=self._options.cores_per_node,
                gpus_per_node=self._options.gpus_per_node,
                most=0 if node.name in self._allocation.found.guessed else len(node.cores),
            )
            self._dispatcher.learned(reported, real=set(reported.cores) <= set(hello.cores))

    def _take_over(self, remote: Remote, incarnation: str, presented: Collection[Key]) -> None:
        mine = [one for one in self._left.values() if one.attempt.nodes[0] in remote.nodes]
        if not mine:
            self._welcome(remote)
            return
        self._adopt(mine, partial(self._resume, remote, incarnation, presented))

    def _adopt(self, left: Sequence[Left], then: Callable[[Sequence[Left], dict[str, Job]], None]) -> None:
        for one in left:
            del self._left[one.key]
            self._adopting.add(one.key)

        def committed(found: tuple[dict[str, Job], list[Job]]) -> None:
            jobs, creators = found
            self._dispatcher.creators |= {job.id: job for job in creators}
            then([one for one in left if one.job.id in jobs], jobs)
            keys = [one.key for one in left]
            self._adopting.difference_update(keys)
            self._hooks.adopted(keys)

        self._dispatcher.write(partial(take_over, lease=self._allocation.lease, left=left), committed)

    def _resume(
        self,
        remote: Remote,
        incarnation: str,
        presented: Collection[Key],
        won: Sequence[Left],
        jobs: dict[str, Job],
    ) -> None:
        runs = [one.key for one in won if one.key in presented]
        kept = {
            one.key: self._dispatcher.resume(jobs[one.job.id], one.attempt, runs=one.key in presented)
            for one in won
        }
        if runs:
            count = "1 attempt" if len(runs) == 1 else f"{len(runs)} attempts"
            self._hooks.note(f"{remote.name} goes on with {count} of the last launcher")
        goes_on = [key for key in runs if kept[key]]
        self.crew.adopt(remote, incarnation, goes_on)
        if self._dispatcher.stopping:
            self._dispatcher.stop_as_all(goes_on)
        self._lose([one for one in won if not kept[one.key]])
        self._welcome(remote)

    def _lose(self, won: Sequence[Left]) -> None:
        for one in won:
            self._dispatcher.lost([one.key], LAUNCHER_GONE, one.alive_until)

    def _welcome(self, remote: Remote) -> None:
        hello = self._arriving.pop(remote.number)
        if not remote.peer:
            return  # it is away again
        for name in remote.nodes:
            self._pool.bring_back(name)
        self.crew.welcome(remote, hello)
        self._dispatcher.brought_back(remote.nodes)

    def _settle(self, nodes: Collection[str] | None) -> None:
        """Nobody will present what was left on these nodes (None: on all whose agent is not here)."""
        if self._closing:
            return
        here = {name for remote in self.crew.remotes if remote.peer for name in remote.nodes}
        won = [
            one
            for one in self._left.values()
            if (one.attempt.nodes[0] not in here if nodes is None else one.attempt.nodes[0] in nodes)
        ]
        if won:
            self._adopt(won, self._bury)

    def _bury(self, won: Sequence[Left], jobs: dict[str, Job]) -> None:
        for one in won:
            self._dispatcher.resume(jobs[one.job.id], one.attempt, runs=False)
        self._lose(won)

    # -- agents that are not here --------------------------------------------------------------------------
    def _away(self, remote: Remote) -> None:
        self._absent_since.setdefault(remote.number, self._loop.time())
        for name in remote.nodes:
            self._pool.set_aside(name)
        self._dispatcher.capacity_changed()

    def _ended(self, number: int, incarnation: str) -> None:
        """The agent's process on this host is gone: what it ran is ended, and looked for on disk."""
        keys, label = self.crew.gone(number, incarnation), self.crew.remotes[number].label
        log = traces.log_of(self._allocation.site.run, self.ensemble.id, label, incarnation)
        end = partial(sessions.end_recorded, log, traces.marker_of(log))
        self._dispatcher.lost(keys, f"its {self.crew.remotes[number].name} has ended", before=end)

    def _is_here(self, number: int) -> bool:
        return bool(self.crew.remotes[number].peer)

    def _may_come(self, remote: Remote) -> bool:
        """Whether an agent that is not here may still come."""
        if remote.number in self._hopeless or remote.state == "here":
            return False
        return self._absent_s(remote) < self._options.agent_deadline_s

    def _absent_s(self, remote: Remote) -> float:
        return self._loop.time() - self._absent_since.get(remote.number, self._loop.time())

    def _given_up(self, numbers: Collection[int], how: str) -> None:
        for number in numbers:
            self._hopeless[number] = how
            self._hooks.note(f"{self.crew.remotes[number].name} cannot be started: {how}")
        self._dispatcher.plan_flush()
        self.check_hope()

    def _look(self) -> None:
        if self._closing:
            return
        self._loop.call_later(min(LOOK_S, self._options.agent_deadline_s / 2), self._look)
        self.crew.look()
        for remote in self.crew.remotes:
            if remote.state != "here" and self._absent_s(remote) > PRESENT_S:
                self.ensemble.missing(remote.number)
        self.check_hope()

    def check_hope(self) -> None:
        """Name, once, the agents that did not come; without any there is nothing left to wait for."""
        if self._closing:
            return  # they were dismissed
        overdue = [one for one in self.crew.remotes if not one.peer and not self._may_come(one)]
        fresh = [one for one in overdue if one.number not in self._named | self._hopeless.keys()]
        self._named.update(one.number for one in fresh)
        waited = f"{self._options.agent_deadline_s:g} s"
        all_gone = len(overdue) == len(self.crew.remotes) and not self._own_nodes
        if all_gone and (self._dispatcher.running or len(self._dispatcher.queue)):
            why = next(iter(self._hopeless.values()), "")
            last = self.ensemble.last_words() or f"see {self.ensemble.log}"
            said = f"no agent has reached the launcher for {waited}: {last}"
            self._hooks.fatal(WorkFailed(f"no agent can be started: {why}" if why else said))
        elif fresh:
            names = ", ".join(name for one in fresh[:8] for name in one.nodes[:8])
            more = ", …" if len(fresh) > 8 else ""
            agents = "1 agent" if len(fresh) == 1 else f"{len(fresh)} agents"
            back = " back" if all(one.host for one in fresh) else ""
            self._hooks.note(f"{agents} did not come{back} within {waited} (nodes {names}{more})")
            self._dispatcher.plan_flush()  # what waited for them alone is not waited for any more

    # -- what is shown -------------------------------------------------------------------------------------
    def places(self) -> dict[str, tuple[int, str, str]]:
        """(agent's number, its state, its host) of every node that has one."""
        return {
            name: (
                remote.number,
                "given up" if remote.number in self._hopeless else remote.state,
                remote.host or self._hosts[remote.number],
            )
            for remote in self.crew.remotes
            for name in remote.nodes
        }
