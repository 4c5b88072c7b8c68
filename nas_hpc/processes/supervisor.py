"""Keeps the agent of one node alive. Standard library only; blocks until something happens.

It is what an MPI program starts on every node: a process that never fails, so that the loss of an agent is
not the loss of a rank, upon which MPI programs end all others. It never initialises MPI. The agent has a
session of its own and outlives its supervisor; it tells over a pipe whether a launcher is there, so that one
that dies again and again is not started for ever.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import NoReturn

from nas_hpc.processes import boot, ranks, traces

BACK_OFF_S = (0.1, 10.0)
"""First and longest pause before the agent is started again; it doubles in between."""
PROVEN_S = 60.0
"""An agent that lived so long is no failed start."""
END_S = 8.0
"""So long an agent may take after SIGTERM to end itself and what it runs."""
BEGUN, THERE, AWAY = b".", b"+", b"-"
"""What the agent writes into the pipe: it has recorded itself; a launcher is there; it is gone."""
_SHORT = 8
_WORDS = 2000


class Supervisor:
    """The agent ``number`` of ``ensemble``, on the site at ``site``; ``endpoint``: its launcher's file."""

    def __init__(self, site: Path, ensemble: str, number: int, deadline_s: float, endpoint: str) -> None:
        self._site, self._ensemble, self._number, self._deadline_s = site, ensemble, number, deadline_s
        self._endpoint = endpoint
        self._lost_since: float | None = time.monotonic()
        """When the last launcher was lost, monotonic; None while one is there."""
        self._stops = 0
        self._pause_s = BACK_OFF_S[0]
        self._child: subprocess.Popen[bytes] | None = None
        self._wake, wake_writer = socket.socketpair()
        for end in (self._wake, wake_writer):
            end.setblocking(False)
        self._wake_writer = wake_writer  # kept open
        signal.pthread_sigmask(signal.SIG_SETMASK, set())
        signal.set_wakeup_fd(wake_writer.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        for number_ in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number_, self._on_stop)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # who started it may go

    def run(self) -> None:
        """Until the agent is dismissed, the deadline has passed, or SIGTERM comes."""
        while not self._stops and self._left_s() > 0:
            began = time.monotonic()
            how = self._agent_s_life()
            if how == "" or self._stops:
                break
            if time.monotonic() - began > PROVEN_S:
                self._pause_s = BACK_OFF_S[0]
            self._say(f"ended ({how}), starting again")
            self._wait(max(0.0, min(self._pause_s, self._left_s())))
            self._pause_s = min(2 * self._pause_s, BACK_OFF_S[1])
        if self._stops:
            self._end_left()

    def _end_left(self) -> None:
        """End what is left of this agent, and of earlier ones of its number."""
        traces.end_left(self._site / "run", self._ensemble, self._number)

    # -- one agent -----------------------------------------------------------------------------------------
    def _agent_s_life(self) -> str:
        """Start an agent and wait for its end; how it died, or "" if it has done its work."""
        output = os.memfd_create("agent", os.MFD_CLOEXEC)
        hears, tells = os.pipe()
        try:
            child = self._child = subprocess.Popen(
                self._command(tells),
                stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                pass_fds=(tells,), cwd="/", start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            os.close(hears)
            return f"{sys.executable} cannot be started: {error.strerror}"
        finally:
            os.close(tells)
        try:
            code = self._watch(child, hears)
            words = self._keep_words(output)
        finally:
            os.close(output)
            os.close(hears)
            self._child = None
        if self._lost_since is None:
            self._lost_since = time.monotonic()
        if code == 0:
            return ""
        how = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
        return "; ".join([how, *words.strip().splitlines()[-1:]])

    def _command(self, tells: int) -> list[str]:
        away_s = 0.0 if self._lost_since is None else time.monotonic() - self._lost_since
        return boot.command(
            sys.executable, "node_agent", self._site, self._ensemble, self._number, uuid.uuid4().hex,
            self._deadline_s, f"{away_s:.3f}", tells, self._endpoint, room="launcher",
        )  # fmt: skip

    def _watch(self, child: subprocess.Popen[bytes], hears: int) -> int:
        """Wait for the agent's end, hearing what it tells; its return code."""
        poll = select.poll()
        poll.register(self._wake.fileno(), select.POLLIN)
        poll.register(hears, select.POLLIN)
        while True:
            code = child.poll()
            if code is not None:
                return code
            if self._stops:
                return self._end(child)
            for fd, _ in poll.poll():
                if fd == hears and not self._hear(hears):
                    poll.unregister(hears)
                elif fd != hears:
                    self._drain()

    def _hear(self, hears: int) -> bool:
        said = os.read(hears, 512)
        if said.endswith(THERE):
            self._lost_since = None
        elif said.endswith(AWAY):
            self._lost_since = time.monotonic()
        return bool(said)

    def _end(self, child: subprocess.Popen[bytes]) -> int:
        """Have the agent end everything, itself last; by force when it does not."""
        child.terminate()
        deadline = time.monotonic() + END_S
        code = child.poll()
        while code is None and time.monotonic() < deadline and self._stops < 2:
            self._wait(deadline - time.monotonic())
            code = child.poll()
        if code is None:
            child.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):  # it hangs in a file system
            child.wait(END_S)
        return 0

    # -- waiting, telling ----------------------------------------------------------------------------------
    def _on_stop(self, number: int, frame: object) -> None:
        self._stops += 1

    def _wait(self, duration_s: float) -> None:
        """Until a signal comes, ``duration_s`` at most."""
        poll = select.poll()
        poll.register(self._wake.fileno(), select.POLLIN)
        before = self._stops
        deadline = time.monotonic() + duration_s
        while self._stops == before and time.monotonic() < deadline:
            if poll.poll(max(1, 1000 * (deadline - time.monotonic()))):
                self._drain()
                if self._child is not None:
                    return

    def _drain(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._wake.recv(4096)

    def _left_s(self) -> float:
        if self._lost_since is None:
            return self._deadline_s
        return self._lost_since + self._deadline_s - time.monotonic()

    def _keep_words(self, output: int) -> str:
        """Append what the agent printed, if anything, to a file; its last words."""
        size = os.fstat(output).st_size
        if size == 0:
            return ""
        words = os.pread(output, _WORDS, max(0, size - _WORDS))
        name = f"agents-{self._ensemble[:_SHORT]}-{self._number}.log"
        with contextlib.suppress(OSError), (self._site / "log" / name).open("ab") as log:
            log.write(words if words.endswith(b"\n") else words + b"\n")
        return words.decode(errors="replace")

    def _say(self, line: str) -> None:
        say(f"agent {self._number} on {socket.gethostname()} {line}")


def say(line: str) -> None:
    """A line on the standard error output, unless its reader is gone or does not read."""
    poll = select.poll()
    with contextlib.suppress(OSError, ValueError):
        poll.register(2, select.POLLOUT)
        if any(event & select.POLLOUT for _, event in poll.poll(0)):
            os.write(2, f"{time.strftime('%H:%M:%S')} {line}\n".encode(errors="replace")[: select.PIPE_BUF])


def _supervisor(arguments: list[str]) -> Supervisor:
    site, ensemble, numbers, deadline_s, *endpoint = arguments
    known = [int(word) for word in numbers.split(",")]
    rank = ranks.rank() or 0
    if len(known) > 1 and rank >= len(known):
        raise ValueError(f"rank {rank} of {len(known)} agents: there is no number for it")
    number = known[rank] if len(known) > 1 else known[0]
    return Supervisor(Path(site), ensemble, number, float(deadline_s), *(endpoint or ["endpoint.json"]))


def main(arguments: list[str]) -> NoReturn:
    """Entry: the site's path, the ensemble, the numbers of its agents ("0,1,2"; rank i keeps the i-th of
    them), the deadline in seconds, the name of the launcher's endpoint file if it is not ``endpoint.json``.
    The exit code is 0 whatever happens.
    """
    try:
        _supervisor(arguments).run()
    except BaseException as error:
        say(f"the supervisor {' '.join(arguments)} gives up: {type(error).__name__}: {error}")
    os._exit(0)
