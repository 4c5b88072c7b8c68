"""Runs one script in the background, as a batch system would: a program, started by ``local``.

It prints its id once it is on its way, and writes beside the script how that fares. Standard library only.
It waits for the processes of other ids to end, starts the script in a session of its own, asks it to end
(TERM) when its time is over or when it is told to by TERM, and ends it (KILL) after a grace. If the runner
itself is killed, the script is asked to end by the kernel.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress

if __name__ == "__main__":
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from nas_hpc.files import keep_file
from nas_hpc.processes import sessions

GRACE_S = 30.0
"""Between TERM and KILL, as Slurm has it."""
_PR_SET_PDEATHSIG = 1
_DROPPED = (
    "SLURM",
    "COBALT_",
    "PBS_",
    "PMI_",
    "PMIX_",
    "OMPI_",
    "PRTE_",
    "PALS_",
    "HYDI_",
    "ALPS_",
    "NAS_HPC_",
)
_KEPT = "NAS_HPC_TEST_"


class Runner:
    """One script's life."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.given = given
        self.ticks = sessions.start_ticks(os.getpid())
        self.id = f"{os.getpid()}.{self.ticks}.{socket.gethostname()}"
        self.said: dict[str, object] = {
            "id": self.id, "host": socket.gethostname(), "boot_id": sessions.boot_id(), "state": "running",
            "reason": "", "exit_code": None, "script_pid": 0, "script_ticks": 0,
        }  # fmt: skip
        self.told_to_end = False
        self.poll = select.poll()
        self.wake, written = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self.poll.register(self.wake, select.POLLIN)
        signal.set_wakeup_fd(written, warn_on_full_buffer=False)
        for number in (signal.SIGHUP, signal.SIGINT, signal.SIGCHLD):  # ignored, the script would ignore them
            signal.signal(number, lambda number, frame: None)
        signal.signal(signal.SIGTERM, self._end)

    def _end(self, number: int, frame: object) -> None:
        self.told_to_end = True

    def say(self, **values: object) -> None:
        """Write the state. Raises OSError."""
        self.said.update(values)
        keep_file(os.path.splitext(self.given.script)[0] + ".local.json", json.dumps(self.said, indent=1))

    def run(self) -> None:
        """Wait, run, and write how it ended."""
        self._await_others()
        if self.told_to_end:
            self._tell(state="cancelled", reason="it was cancelled before it began", ended=time.time())
            return
        try:
            process = self._start()
        except OSError as error:
            why = f"{self.given.script} cannot be started: {error.strerror or error}"
            self._tell(state="ended", reason=why, exit_code=127, ended=time.time())
            return
        started = sessions.start_ticks(process.pid)  # not reaped yet, so it has one
        self._tell(state="running", reason="", script_pid=process.pid, script_ticks=started)
        state, reason = self._watch(process)
        sessions.end_session(process.pid)  # what it left in the background
        code = process.wait()
        code = 128 - code if code < 0 else code  # as shells have it
        self._tell(state=state, reason=reason, exit_code=code, ended=time.time())

    def _tell(self, **values: object) -> None:
        with suppress(OSError):  # a site that is gone: the script's own end does not depend on it
            self.say(**values)

    def _await_others(self) -> None:
        """Until the runners that it depends on have ended, or it is cancelled."""
        waited = [one for one in map(_process, self.given.after) if sessions.is_alive(*one)]
        while waited and not self.told_to_end:
            descriptor = _pidfd(waited[0][0])
            if sessions.is_alive(*waited[0]):
                self._wait(descriptor, None if descriptor >= 0 else 1.0)
            if descriptor >= 0:
                os.close(descriptor)
            waited = [one for one in waited if sessions.is_alive(*one)]

    def _start(self) -> subprocess.Popen[bytes]:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        output = os.open(self.given.output, flags, 0o600)
        mine = os.getpid()
        libc = ctypes.CDLL(None)

        def prepare() -> None:
            libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
            if os.getppid() != mine:
                os._exit(1)

        try:
            return subprocess.Popen(
                [self.given.script], cwd=self.given.directory, env=environment(os.environ), stdout=output,
                stdin=subprocess.DEVNULL, stderr=output, start_new_session=True, preexec_fn=prepare,
            )  # fmt: skip
        finally:
            os.close(output)

    def _watch(self, process: subprocess.Popen[bytes]) -> tuple[str, str]:
        """Until the script has ended, which is left to be reaped; the state and why."""
        deadline = time.monotonic() + 60 * self.given.minutes
        state, reason, killed_at = "ended", "", 0.0
        while not _has_ended(process.pid):
            now = time.monotonic()
            if killed_at and now >= killed_at:
                _signal(process.pid, signal.SIGKILL)
                killed_at = now + self.given.grace
            elif not killed_at and (self.told_to_end or now >= deadline):
                state = "cancelled" if self.told_to_end else "timeout"
                reason = "it was cancelled" if self.told_to_end else f"{self.given.minutes} min were over"
                _signal(process.pid, signal.SIGTERM)
                self._tell(state="ending", reason=reason)
                killed_at = now + self.given.grace
            else:
                self._wait(-1, (killed_at or deadline) - now)
        return state, reason

    def _wait(self, descriptor: int, timeout_s: float | None) -> None:
        """For a signal, the end of a process, or the time."""
        if descriptor >= 0:
            self.poll.register(descriptor, select.POLLIN)
        self.poll.poll(None if timeout_s is None else max(0, int(1000 * timeout_s) + 1))
        if descriptor >= 0:
            self.poll.unregister(descriptor)
        with suppress(BlockingIOError):
            os.read(self.wake, 512)


def environment(given: Mapping[str, str]) -> dict[str, str]:
    """The submitter's, without what belongs to a batch job or an MPI program around him, and without
    settings, which the script has."""
    return {
        name: value
        for name, value in given.items()
        if name.startswith(_KEPT) or not name.startswith(_DROPPED)
    }


def _process(id_: str) -> tuple[int, int]:
    """Pid and ticks of an id; one of another host is none of ours."""
    pid, ticks, host = id_.split(".", 2)
    if host != socket.gethostname():
        raise SystemExit(f"the batch job {id_} is on {host}: it cannot be waited for from here")
    return int(pid), int(ticks)


def _has_ended(pid: int) -> bool:
    """Whether this child has ended; it is not reaped."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None


def _signal(session: int, number: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(session, number)


def _pidfd(pid: int) -> int:
    try:
        return os.pidfd_open(pid)
    except OSError:
        return -1


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--directory", required=True)
    parser.add_argument("--output", required=True)
    parser.add_argument("--minutes", type=float, required=True)
    parser.add_argument("--grace", type=float, default=GRACE_S, metavar="S", help="between TERM and KILL")
    parser.add_argument("--after", action="append", default=[], metavar="ID")
    parser.add_argument("script")
    return parser.parse_args(argv)


def _live(given: argparse.Namespace, ready: int) -> None:
    """The background process, which says its id, or what is wrong, to ``ready``."""
    try:
        os.setsid()
        null = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(null, descriptor)
        runner = Runner(given)
        if given.after:
            runner.say(state="held", reason=f"it waits for {', '.join(given.after)}")
        else:
            runner.say()
    except Exception as error:
        os.write(ready, f"!{error}".encode(errors="replace"))
        return
    os.write(ready, runner.id.encode())
    os.close(ready)
    runner.run()


def main(argv: Sequence[str]) -> int:
    """Start the background process; 0 once it is on its way."""
    given = _parse(argv)
    for one in given.after:
        _process(one)
    told, ready = os.pipe()
    if os.fork() == 0:
        try:
            os.close(told)
            _live(given, ready)
        finally:
            os._exit(0)
    os.close(ready)
    with os.fdopen(told) as pipe:
        said = pipe.read()
    if not said or said.startswith("!"):
        print(said[1:] or "the process in the background ended at once", file=sys.stderr)
        return 1
    print(said)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
