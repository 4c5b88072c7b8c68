"""The agent of one node: runs attempts through keepers and reports their ends.

On one host it lives in the launcher's process and event loop. Everything that touches files or forks is done
by keepers (``nas_hpc.processes.keeper``); the loop only exchanges messages with them.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from nas_hpc.errors import WrongCall
from nas_hpc.launcher.attempt import Attempt, clean_up, message_of, named, result_of
from nas_hpc.launcher.recording import Recorder
from nas_hpc.launcher.staged import Staging
from nas_hpc.launcher.warming import FAREWELL_S, Warming, WarmingHooks
from nas_hpc.processes import sessions
from nas_hpc.processes.environment import recordable
from nas_hpc.processes.family import MPI_GRACE_S
from nas_hpc.processes.interpreters import Warm
from nas_hpc.processes.link import Link
from nas_hpc.processes.orders import Ended, Key, Order, Started
from nas_hpc.processes.packed import PACKED
from nas_hpc.processes.staging import STAGED_VARIABLE
from nas_hpc.records import Result
from nas_hpc.states import Outcome


class Agent:
    """Runs orders; lives in a running asyncio loop, in the process's main thread.

    ``marker`` is the launcher's lease: every process carries it as NAS_HPC_LAUNCHER_ID. ``sessions_log`` gets
    a line for every session before its program runs. ``on_started`` and ``on_ended`` are called in the loop;
    an attempt that hung for having been forked is started once more in a fresh interpreter, and
    ``on_started`` is then called again. ``on_note`` gets lines for a person. The result of a program
    that succeeded is looked for until ``result_grace_s`` after its end; its slot is not free before.
    ``nofile`` is the soft limit of open files of the attempts, if this process raised its own.
    """

    def __init__(
        self,
        *,
        marker: str,
        sessions_log: Path,
        on_started: Callable[[Started], None],
        on_ended: Callable[[Ended], None],
        on_note: Callable[[str], None],
        fresh_only: bool = False,
        grace_s: float = 10.0,
        result_grace_s: float = 10.0,
        task_directories: str = "each",
        stage_environment: str = "",
        nofile: int = 0,
    ) -> None:
        self._marker = marker
        self._log = sessions_log
        self._on_started, self._on_ended, self._on_note = on_started, on_ended, on_note
        self._fresh_only = fresh_only
        self._grace_s = grace_s
        self._result_grace_s = result_grace_s
        self._nofile = nofile
        self._recorder = Recorder(task_directories, marker, on_note)
        self._loop = asyncio.get_running_loop()
        self._log_fd = os.open(sessions_log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._attempts: dict[Key, Attempt] = {}
        self._links: set[Link] = set()
        self._starter: Link | None = None
        hooks = WarmingHooks(
            self._open_warm, self._close_link, self._order, self._start_fresh, self._refuse, on_note
        )
        self._warming = Warming(self._attempts, hooks)
        self._burials: set[asyncio.Task[None]] = set()
        self._closed = False
        self._held: list[Attempt] = []
        """Attempts that wait for the environment's copy."""
        self._staging = Staging(on_note, self._on_staged)
        self._staging.use(stage_environment)

    # -- what a launcher asks ------------------------------------------------------------------------------

    def start(self, order: Order) -> None:
        """Run an attempt; its end is reported whatever happens. Raises WrongCall for one that is running."""
        if order.key in self._attempts or self._closed:
            raise WrongCall(f"attempt {order.key[1]} of job {order.key[0]} runs already, or the agent closed")
        job, number = order.key
        place = self._recorder.place(order)
        environ = {
            **order.environ,
            sessions.MARKER_VARIABLE: self._marker,
            "NAS_HPC_JOB_ID": job,
            "NAS_HPC_ATTEMPT": str(number),
            "NAS_HPC_JOB_DIR": place.directory,
        }
        attempt = self._attempts[order.key] = Attempt(order, place, environ)
        if self._staging.pending and self._staging.concerns(order):
            self._held.append(attempt)
        else:
            self._begin(attempt)

    def _on_staged(self) -> None:
        held, self._held = self._held, []
        for attempt in held:
            if self._attempts.get(attempt.order.key) is attempt and attempt.stop is None:
                self._begin(attempt)

    def _begin(self, attempt: Attempt) -> None:
        order = attempt.order = self._staging.relocate(attempt.order)
        if STAGED_VARIABLE in order.environ:
            attempt.environ[STAGED_VARIABLE] = order.environ[STAGED_VARIABLE]
        warm = order.call is not None and order.call.warm and not self._fresh_only
        if order.timeout_s:
            what = "its module was still being imported" if warm else "it had not been started"
            self._limit(attempt, f"{what} after {order.timeout_s:g} s")
        if warm:
            self._warming.start(attempt)
        else:
            self._start_fresh(attempt)

    def stop(self, key: Key, outcome: Outcome, reason: str) -> None:
        """End an attempt: SIGTERM to its process group, after the grace SIGKILL to its session.

        Its outcome is as given unless it wrote a valid result before. A second call changes nothing.
        """
        attempt = self._attempts.get(key)
        if attempt is None or attempt.stop is not None or attempt.told:
            return
        attempt.stop = (outcome, reason)
        if attempt.link is None:
            self._warming.withdraw(attempt)
            self._record_stopped(attempt)
            return
        attempt.link.send({"op": "stop", **named(key), "outcome": outcome.value, "reason": reason})
        attempt.grace = self._loop.call_later(self._grace_s, self._kill, attempt)

    def kill(self, key: Key, outcome: Outcome, reason: str) -> None:
        """As ``stop``, but by force and at once; also what was stopped before. An MPI program gets a moment
        to end its ranks.
        """
        attempt = self._attempts.get(key)
        if attempt is None:
            return
        self.stop(key, outcome, reason)
        if attempt.order.mpi:
            self._loop.call_later(min(MPI_GRACE_S, self._grace_s), self._kill, attempt)
        else:
            self._kill(attempt)

    def kill_all(self) -> None:
        """SIGKILL to every session now; attempts that were not stopped before end as LOST."""
        for key in self.running():
            self.kill(key, Outcome.LOST, "its launcher ended at once")

    def disown(self, key: Key) -> None:
        """End an attempt by force as if it had never been: no result is written, no end reported."""
        attempt = self._attempts.get(key)
        if attempt is None or attempt.disowned:
            return
        attempt.disowned = True
        attempt.quiet()
        attempt.stop = (Outcome.LOST, "another attempt takes its place")
        if attempt.link is None:
            self._warming.withdraw(attempt)
            self._record_stopped(attempt)
            return
        self._drop(attempt, ask=attempt.order.mpi)

    def running(self) -> set[Key]:
        """Attempts whose end was not reported, and will be."""
        return {key for key, attempt in self._attempts.items() if not attempt.disowned}

    def runs(self, key: Key) -> bool:
        """Whether the attempt is one of them."""
        attempt = self._attempts.get(key)
        return attempt is not None and not attempt.disowned

    def configure(
        self,
        *,
        grace_s: float,
        fresh_only: bool,
        result_grace_s: float = 10.0,
        task_directories: str = "each",
        stage_environment: str = "",
    ) -> None:
        """What another launcher has decided; for attempts from now on."""
        self._grace_s, self._fresh_only, self._result_grace_s = grace_s, fresh_only, result_grace_s
        self._recorder.use(task_directories)
        self._staging.use(stage_environment)

    def settled(self, keys: Iterable[Key]) -> None:
        """Nothing to forget here: who is told is the launcher itself."""

    async def close(self) -> None:
        """End all keepers, and with them what still runs; of that nothing is reported any more."""
        self._closed = True
        for attempt in self._attempts.values():
            attempt.quiet()
        self._warming.quiet()
        self._attempts.clear()
        links = list(self._links)
        self._links.clear()
        await asyncio.gather(*(link.end(FAREWELL_S) for link in links), *self._burials)
        await self._recorder.close()
        await self._staging.close()
        os.close(self._log_fd)

    # -- starting ------------------------------------------------------------------------------------------

    def _limit(self, attempt: Attempt, reason: str) -> None:
        if attempt.timer is not None:
            attempt.timer.cancel()
        order = attempt.order
        attempt.timer = self._loop.call_later(order.timeout_s, self.stop, order.key, Outcome.TIMEOUT, reason)

    def _start_fresh(self, attempt: Attempt) -> None:
        attempt.warm = None
        self._to_starter(attempt, message_of("start", attempt, attempt.environ, self._result_grace_s))

    def _to_starter(self, attempt: Attempt, message: dict[str, Any]) -> None:
        if self._starter is None:
            environ = {**recordable(os.environ), sessions.MARKER_VARIABLE: self._marker}
            try:
                self._starter = self._link("starter", sys.executable, True, environ)
            except OSError as error:
                reason = f"cannot start a keeper with {sys.executable}: {error.strerror}"
                self._loop.call_soon(self._end, attempt, Result(Outcome.START_FAILED, reason=reason))
                return
        attempt.link = self._starter
        self._starter.send(message)

    def _open_warm(self, interpreter: str, environ: Mapping[str, str]) -> Link:
        return self._link("warm", interpreter, False, {**environ, sessions.MARKER_VARIABLE: self._marker})

    def _order(self, attempt: Attempt, link: Link, environ: Mapping[str, str]) -> None:
        attempt.link = link
        link.send(message_of("start", attempt, environ, self._result_grace_s))

    def _link(self, name: str, interpreter: str, isolated: bool, environ: Mapping[str, str]) -> Link:
        link = Link(
            name=name,
            interpreter=interpreter,
            isolated=isolated,
            environ=environ,
            directory=str(self._log.parent),
            log_fd=self._log_fd,
            nofile=self._nofile,
            on_message=self._on_message,
            on_gone=self._on_gone,
        )
        self._links.add(link)
        return link

    # -- stopping ------------------------------------------------------------------------------------------

    def _kill(self, attempt: Attempt) -> None:
        if attempt.link is not None:
            attempt.link.send({"op": "kill", **named(attempt.order.key)})

    def _drop(self, attempt: Attempt, *, ask: bool) -> None:
        """Have it ended without a result; ``ask``: an MPI program gets a moment to end its ranks."""
        if attempt.link is not None:
            attempt.link.send({"op": "kill", **named(attempt.order.key), "drop": True, "ask": ask})
        if ask:
            grace_s = min(MPI_GRACE_S, self._grace_s)
            attempt.grace = self._loop.call_later(grace_s, partial(self._drop, attempt, ask=False))

    def _record_stopped(self, attempt: Attempt) -> None:
        assert attempt.stop is not None
        if attempt.disowned:
            self._attempts.pop(attempt.order.key, None)
        else:
            self._record(attempt, *attempt.stop)

    def _record(self, attempt: Attempt, outcome: Outcome, reason: str) -> None:
        """Have the end of an attempt written that never had a process."""
        message = message_of("record", attempt, {}, self._result_grace_s)
        self._to_starter(attempt, {**message, "stop": [outcome.value, reason]})

    def _refuse(self, attempt: Attempt, reason: str) -> None:
        self._record(attempt, Outcome.START_FAILED, reason)

    def _close_link(self, link: Link, timeout_s: float) -> None:
        self._links.discard(link)
        self._keep(self._loop.create_task(link.end(timeout_s)))

    def _keep(self, task: asyncio.Task[None]) -> None:
        self._burials.add(task)
        task.add_done_callback(self._burials.discard)

    # -- what keepers tell ---------------------------------------------------------------------------------

    def _on_message(self, link: Link, message: dict[str, Any]) -> None:
        if message["op"] == "ready":
            self._warming.ready(link, message)
            return
        attempt = self._attempts.get((message["job"], message["attempt"]))
        if attempt is None or attempt.link is not link:
            return
        if message["op"] == "started":
            self._on_process(attempt, message)
        elif message["op"] == "ended":
            self._on_end(attempt, message)
        elif message["op"] == "stale":
            assert attempt.warm is not None
            self._warming.stale(attempt.warm, message["file"])
            self._again(attempt)
        elif message["op"] == "dropped":
            self._again(attempt)

    def _again(self, attempt: Attempt) -> None:
        """Start, elsewhere, an attempt that its warm interpreter gave back without a trace of it left."""
        if attempt.warm is not None:
            attempt.warm.running.discard(attempt.order.key)
        attempt.link = attempt.warm = None
        if attempt.stop is not None:
            self._record_stopped(attempt)
        else:
            self._warming.start(attempt)

    def _on_process(self, attempt: Attempt, message: dict[str, Any]) -> None:
        order, warm = attempt.order, attempt.warm
        attempt.pid = message["pid"]
        if order.timeout_s and attempt.stop is None:
            self._limit(attempt, f"ran longer than {order.timeout_s:g} s")
        if warm is not None:
            self._warming.started(warm)
        self._on_started(Started(order.key, message["pid"], message["time"]))

    def _on_end(self, attempt: Attempt, message: dict[str, Any]) -> None:
        if attempt.warm is not None and attempt.stop is None:
            self._warming.proven(attempt.warm)
        if message["trouble"]:
            self._on_note(message["trouble"])
        usage = {"cpu_s": message["cpu_s"], "max_rss_bytes": message["max_rss_bytes"]}
        content, tail = message["result"], message["tail"]
        self._record_end(attempt, content, tail, usage, kept=message["kept"])

    def _record_end(
        self,
        attempt: Attempt,
        content: Mapping[str, Any],
        tail: str,
        usage: Mapping[str, float],
        *,
        kept: bool,
    ) -> None:
        """Report an end, at once if its directory is ``kept``, else when the line about it is on disk."""
        if kept or attempt.disowned:
            self._end(attempt, result_of(content), tail, usage)
            return

        def done(trouble: str) -> None:
            if trouble:
                self._on_note(trouble)
            self._end(attempt, result_of(content), tail, usage)

        attempt.told = True
        self._recorder.pack(attempt.order, content, tail, done)

    def _end(
        self, attempt: Attempt, result: Result, tail: str = "", usage: Mapping[str, float] | None = None
    ) -> None:
        key = attempt.order.key
        if self._attempts.pop(key, None) is None:
            return
        attempt.quiet()
        if attempt.warm is not None:
            attempt.warm.running.discard(key)
        if not attempt.disowned:
            self._on_ended(Ended(key, result, tail, usage or {}))

    # -- a keeper's death ----------------------------------------------------------------------------------

    def _on_gone(self, link: Link) -> None:
        if link not in self._links:
            return  # it was ended on purpose
        self._links.discard(link)
        if link is self._starter:
            self._starter = None
        self._keep(self._loop.create_task(self._bury(link, self._warming.gone(link))))

    async def _bury(self, link: Link, warm: Warm | None) -> None:
        """End what a dead keeper left, then report its attempts: by their result.json, or as lost."""
        orphans = [one for one in self._attempts.values() if one.link is link and not one.told]
        how, found = await asyncio.to_thread(clean_up, link, orphans, self._log, self._marker)
        if orphans:
            self._on_note(f"the {link.name} keeper died ({how}); {len(orphans)} attempts ended with it")
        for attempt, content in zip(orphans, found, strict=True):
            if content is not None:
                self._record_end(attempt, content, "", {}, kept=attempt.place.mode != PACKED)
                continue
            outcome, reason = attempt.stop or (Outcome.LOST, f"its keeper died ({how})")
            self._end(attempt, Result(outcome, reason=reason))
        if warm is not None:
            self._warming.buried(warm, how)
