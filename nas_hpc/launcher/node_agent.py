"""The agent of one node as a process of its own: runs attempts for whatever launcher the site has.

A supervisor keeps it alive (``nas_hpc.processes.supervisor``). It finds the launcher by the site's endpoint
file, says Hello with what it runs and what has ended unsettled, and gets orders. Without a launcher it goes
on with what runs and looks for the next one; when none came before the deadline it ends everything.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from nas_hpc import __version__, wire
from nas_hpc.launcher.agent import Agent
from nas_hpc.launcher.agent_line import Line
from nas_hpc.launcher.agent_place import Place, write_words
from nas_hpc.processes import guardian, sessions, supervisor, traces
from nas_hpc.processes.orders import Ended, Key, Started, order_of
from nas_hpc.records import Json, Result
from nas_hpc.resources.batchjob import names_of_this_host
from nas_hpc.resources.topology import Machine, this_machine
from nas_hpc.states import Outcome

DONE, BROKEN, TOLD_TO_END = 0, 1, 3
"""Exit codes: dismissed, or no launcher came before the deadline; else its supervisor starts another."""
FORCED_S = 2.0
"""What was killed has ended after so long, or hangs in a file system."""
TERM_GRACE_S = 3.0
"""What runs has so long between SIGTERM and SIGKILL when this process is told to end."""


class NodeAgent:
    """The agent's life inside an asyncio loop. ``machine`` is this one."""

    def __init__(self, place: Place, machine: Machine) -> None:
        self._place, self._machine = place, machine
        self._loop = asyncio.get_running_loop()
        self._loop.set_exception_handler(self._on_error)
        self._agent = Agent(
            marker=traces.marker_of(place.sessions_log),
            sessions_log=place.sessions_log,
            on_started=self._on_started,
            on_ended=self._on_ended,
            on_note=self.note,
        )
        self._line = Line(
            place.run / place.endpoint,
            self._hello,
            on_message=self._on_message,
            on_loss=self._on_loss,
            on_trouble=self._on_trouble,
        )
        self._line.lost_since = self._loop.time() - place.away_s
        self._grace_s = 10.0
        self._started: dict[Key, Started] = {}
        """Of those that run and have a process."""
        self._ended: dict[Key, wire.RunEnded] = {}
        """Ends that the launcher has not settled."""
        self._told: set[Key] = set()
        """Those of them that the last Hello named."""
        self._troubles: set[str] = set()
        self._notes = machine.notes
        self._pulse: asyncio.TimerHandle | None = None
        self._deadline: asyncio.TimerHandle | None = None
        self._leaving = False
        self._farewell: asyncio.Task[None] | None = None
        self._emptied = asyncio.Event()
        self._code: asyncio.Future[int] = self._loop.create_future()

    # -- life ----------------------------------------------------------------------------------------------
    async def run(self) -> int:
        """Serve launchers until dismissed, or until none came for too long; the exit code."""
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._on_signal)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        self._wait_for_launcher()
        self._line.begin()
        code = await self._code
        self._leaving = True
        self._line.close()
        await self._agent.close()
        return code

    def _finish(self, code: int) -> None:
        if not self._code.done():
            self._code.set_result(code)

    def _leave(self, code: int, reason: str, grace_s: float) -> None:
        """End in order: what runs is asked to end, and forced after ``grace_s``; then this process ends."""
        if self._leaving:
            return
        self._leaving = True
        for key in self._agent.running():
            self._agent.stop(key, Outcome.LOST, reason)
        self._farewell = self._loop.create_task(self._empty(code, grace_s))

    async def _empty(self, code: int, grace_s: float) -> None:
        if not await self._is_empty(grace_s):
            self._agent.kill_all()
            await self._is_empty(FORCED_S)
        self._finish(code)

    async def _is_empty(self, timeout_s: float) -> bool:
        """Wait until nothing runs; whether that is so."""
        self._emptied.clear()
        if self._agent.running():
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._emptied.wait(), timeout_s)
        return not self._agent.running()

    def _on_signal(self) -> None:
        if self._leaving:
            self._finish(TOLD_TO_END)
        self._leave(TOLD_TO_END, "its agent was told to end (SIGTERM)", min(self._grace_s, TERM_GRACE_S))

    def _on_deadline(self) -> None:
        limit = f"{self._place.deadline_s:g} s"
        self.note(f"no launcher for {limit}: ending {len(self._agent.running())} attempts and this agent")
        self._leave(DONE, f"no launcher for {limit}", self._grace_s)

    def _on_error(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Something raised in the loop that nobody caught: better a new start than to hang for ever."""
        error = context.get("exception")
        what = "".join(traceback.format_exception(error)) if error else str(context.get("message"))
        self._write(f"this agent is broken: {what}")
        self._finish(BROKEN)

    # -- the launcher --------------------------------------------------------------------------------------
    def _hello(self) -> wire.AgentHello:
        place, machine = self._place, self._machine
        self._told = set(self._ended)
        return wire.AgentHello(
            protocol=wire.PROTOCOL,
            version=__version__,
            ensemble=place.ensemble,
            number=place.number,
            incarnation=place.incarnation,
            host=socket.gethostname(),
            names=names_of_this_host(os.environ),
            boot_id=sessions.boot_id(),
            pid=os.getpid(),
            start_ticks=sessions.start_ticks(os.getpid()),
            cores=machine.cores,
            numa=machine.numa,
            threads_per_core=machine.threads_per_core,
            gpus=machine.gpus,
            running=tuple(sorted(self._agent.running())),
            ended=tuple(self._ended.values()),
        )

    def _on_message(self, message: wire.Message) -> None:
        handler = _HANDLERS.get(type(message))
        if handler is None or self._code.done():
            return
        try:
            handler(self, message)
        except (TypeError, ValueError, KeyError) as error:
            what = f"{type(message).__name__}: {type(error).__name__}: {error}"
            self.note(f"a message of the launcher makes no sense: {what}")

    def _on_welcome(self, message: wire.AgentWelcome) -> None:
        self._line.greet()
        self._tell_supervisor(supervisor.THERE)
        self._quiet(self._deadline)
        self._grace_s = message.grace_s
        self._agent.configure(
            grace_s=message.grace_s,
            fresh_only=message.fresh_interpreter,
            result_grace_s=message.result_grace_s,
            task_directories=message.task_directories,
            stage_environment=message.stage_environment,
        )
        for key in message.stop:
            self._agent.disown(key)
            self._started.pop(key, None)
            self._ended.pop(key, None)
        for key, started in self._started.items():
            self._line.send(wire.RunStarted(*key, started.pid, started.time))
        for key, ended in self._ended.items():
            if key not in self._told:
                self._line.send(ended)
        notes, self._notes = self._notes, ()
        for line in notes:
            self.note(line)
        self._quiet(self._pulse)
        self._beat(message.pulse_s)

    def _beat(self, pulse_s: float) -> None:
        self._line.send(wire.Pulse(time.time()))
        self._pulse = self._loop.call_later(pulse_s, self._beat, pulse_s)

    def _on_loss(self) -> None:
        self._quiet(self._pulse)
        self._tell_supervisor(supervisor.AWAY)
        self._wait_for_launcher()

    def _wait_for_launcher(self) -> None:
        self._quiet(self._deadline)
        self._deadline = self._loop.call_at(self._line.lost_since + self._place.deadline_s, self._on_deadline)

    def _on_end(self, message: wire.End) -> None:
        if self._line.greeted:  # it did not understand a message
            self._line.drop(message.reason)
            self._on_trouble(f"the launcher ended the connection: {message.reason}")
            return
        self._write(f"the launcher sends this agent away: {message.reason}")
        self._finish(DONE)

    def _on_dismiss(self, message: wire.Dismiss) -> None:
        self._finish(DONE)

    # -- orders --------------------------------------------------------------------------------------------
    def _on_order(self, message: wire.RunOrder) -> None:
        if self._leaving:
            self._refuse(message.order, "its agent is ending")
            return
        try:
            order = order_of(message.order)
        except (TypeError, ValueError, KeyError) as error:
            self._refuse(message.order, f"an order that makes no sense: {type(error).__name__}: {error}")
            return
        key = order.key
        if key in self._ended:
            self._line.send(self._ended[key])
        elif not self._agent.runs(key):
            self._agent.start(order)
        elif key in self._started:
            self._line.send(wire.RunStarted(*key, self._started[key].pid, self._started[key].time))

    def _refuse(self, body: Json, reason: str) -> None:
        """Report an order that is not carried out as the end of its attempt: nobody is to wait for it."""
        job, number = body["key"]
        now = time.time()
        result = Result(Outcome.START_FAILED, reason=reason, start=now, end=now)
        self._on_ended(Ended((str(job), int(number)), result))

    def _on_stop(self, message: wire.RunStop) -> None:
        key, outcome = (message.job, message.attempt), Outcome(message.outcome)
        stop = self._agent.kill if message.now else self._agent.stop
        stop(key, outcome, message.reason)

    def _on_settled(self, message: wire.RunsSettled) -> None:
        for key in message.runs:
            self._ended.pop(key, None)

    def _on_started(self, started: Started) -> None:
        if not self._agent.runs(started.key):
            return
        self._started[started.key] = started
        if self._line.greeted:
            self._line.send(wire.RunStarted(*started.key, started.pid, started.time))

    def _on_ended(self, ended: Ended) -> None:
        self._started.pop(ended.key, None)
        result = ended.result
        message = wire.RunEnded(
            job=ended.key[0],
            attempt=ended.key[1],
            outcome=result.outcome.value,
            objective=result.objective,
            metadata=result.metadata,
            reason=result.reason,
            return_code=result.return_code,
            start=result.start,
            end=result.end,
            tail=ended.tail,
            usage=ended.usage,
        )
        self._ended[ended.key] = message = self._sendable(message)
        if self._leaving and not self._agent.running():
            self._emptied.set()
        if self._line.greeted:
            self._line.send(message)

    def _sendable(self, message: wire.RunEnded) -> wire.RunEnded:
        """The message, without metadata that no message can hold (a number of more than 64 bits)."""
        try:
            wire.pack(message)
        except (TypeError, ValueError, OverflowError) as error:
            self.note(f"the metadata of job {message.job} is in its result.json only: {error}")
            return replace(message, metadata={})
        return message

    # -- what it tells -------------------------------------------------------------------------------------
    def note(self, text: str) -> None:
        """A line for a person: in the launcher's log, or in a file when there is no launcher."""
        if self._line.greeted:
            self._line.send(wire.AgentNote(text))
        else:
            self._write(text)

    def _on_trouble(self, text: str) -> None:
        """Said once: it may go on until the deadline."""
        if text not in self._troubles:
            self._troubles.add(text)
            self.note(text)

    def _write(self, text: str) -> None:
        write_words(self._place, text)

    def _tell_supervisor(self, word: bytes) -> None:
        with contextlib.suppress(OSError):  # it is gone
            os.write(self._place.supervisor_fd, word)

    @staticmethod
    def _quiet(timer: asyncio.TimerHandle | None) -> None:
        if timer is not None:
            timer.cancel()


_HANDLERS: dict[type, Callable[[NodeAgent, Any], None]] = {
    wire.AgentWelcome: NodeAgent._on_welcome,
    wire.RunOrder: NodeAgent._on_order,
    wire.RunStop: NodeAgent._on_stop,
    wire.RunsSettled: NodeAgent._on_settled,
    wire.Dismiss: NodeAgent._on_dismiss,
    wire.End: NodeAgent._on_end,
}


async def _live(place: Place, machine: Machine) -> int:
    return await NodeAgent(place, machine).run()


def _is_wanted(place: Place) -> bool:
    """Whether the supervisor still lives. From here on the agent goes on without; but before, nobody could
    know of it.
    """
    try:
        os.write(place.supervisor_fd, supervisor.BEGUN)
    except BrokenPipeError:
        return False
    return True


def main(arguments: list[str]) -> None:
    """Entry of the process that a supervisor starts: see ``Place``."""
    place = Place.of(arguments)
    os.set_inheritable(place.supervisor_fd, False)
    traces.begin(place.sessions_log, place.number)
    if not _is_wanted(place):
        place.sessions_log.unlink()
        sys.exit(DONE)
    traces.end_left(place.run, place.ensemble, place.number, spare=place.incarnation)
    watcher, line = guardian.start_guardian(place.sessions_log, traces.marker_of(place.sessions_log))
    code = BROKEN
    try:
        code = asyncio.run(_live(place, this_machine()))
    finally:
        os.close(line)  # the guardian ends whatever is left, and itself
        watcher.wait()
        with contextlib.suppress(OSError):
            place.sessions_log.unlink()
    sys.exit(code)
