"""A trainer's process below the one that watches it: its output goes through, signals go on to it, and it
ends with its watcher.

Standard library only.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from types import FrameType

INTERRUPTIONS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
"""Asked to end so, a trainer has not failed: its time is over, and it may go on later."""
_PASSED_ON = (*INTERRUPTIONS, signal.SIGUSR1, signal.SIGUSR2)
_TAIL_BYTES = 65536
_LAST_READS = 16
"""More than a pipe holds: one that left the group may go on writing for ever."""
GRACE_S = 10.0
"""Between SIGTERM and SIGKILL for one that takes too long."""
_PR_SET_PDEATHSIG = 1


class Child:
    """One run of a program. To be used once, in the main thread of a process that does nothing else.

    It has a process group of its own, so that every signal reaches it once; a ``kill -9`` of this process
    ends it, too.
    """

    def __init__(self, command: Sequence[str], environ: Mapping[str, str], log: int | None = None) -> None:
        """``log``: the descriptor to which both its outputs go; None: to those of this process."""
        self._command = list(command)
        self._environ = dict(environ)
        self._outputs = (1, 2) if log is None else (log, log)
        self._pid = 0
        self._tails = (bytearray(), bytearray())
        self.interrupted: int | None = None
        """The signal that asked this process to end, and was passed on."""
        self.timed_out = False

    def run(self, limit_s: float | None = None) -> int:
        """Run it to its end, or for ``limit_s`` seconds; its return code, negative for a signal.

        What it leaves behind in its process group is killed. Raises OSError if it cannot be started.
        """
        wake, waker = os.pipe()
        for end in (wake, waker):
            os.set_blocking(end, False)
        heard = [number for number in _PASSED_ON if signal.getsignal(number) is not signal.SIG_IGN]  # nohup
        before = {number: signal.signal(number, self._pass_on) for number in heard}
        before[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, _nothing)
        old_waker = signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
        try:
            process = self._start()
            try:
                return self._watch(process, wake, limit_s)
            finally:
                self._pid = 0
        finally:
            signal.set_wakeup_fd(old_waker)
            for number, handler in before.items():
                signal.signal(number, handler)
            os.close(wake)
            os.close(waker)

    @property
    def said(self) -> str:
        """The end of its output, of its errors where these are apart and there are any."""
        tail = self._tails[1] or self._tails[0]
        return tail.decode("utf-8", "replace")

    @property
    def printed(self) -> str:
        """The end of its output, with its errors where these are not apart."""
        return self._tails[0].decode("utf-8", "replace")

    def _start(self) -> subprocess.Popen[bytes]:
        parent = os.getpid()
        # Loaded before the fork: the child must only call it.
        prctl = ctypes.CDLL(None, use_errno=True).prctl

        def begin() -> None:
            os.setpgid(0, 0)
            prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != parent:
                os._exit(1)  # it has ended in the meantime
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _PASSED_ON)

        # Until its pid is known nothing can be passed on: a signal of this instant waits.
        signal.pthread_sigmask(signal.SIG_BLOCK, _PASSED_ON)
        try:
            process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT if _same_file(*self._outputs) else subprocess.PIPE,
                env=self._environ,
                close_fds=False,  # an MPI start hands its ranks open descriptors
                preexec_fn=begin,  # noqa: PLW1509  # there is one thread
            )
            self._pid = process.pid
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _PASSED_ON)
        return process

    def _watch(self, process: subprocess.Popen[bytes], wake: int, limit_s: float | None) -> int:
        streams = {
            stream.fileno(): place
            for place, stream in enumerate((process.stdout, process.stderr))
            if stream is not None
        }
        for descriptor in streams:
            os.set_blocking(descriptor, False)
        due = _Due(limit_s)
        with selectors.DefaultSelector() as selector:
            for descriptor in (wake, *streams):
                selector.register(descriptor, selectors.EVENT_READ)
            while os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
                for key, _ in selector.select(due.wait_s()):
                    if key.fd == wake:
                        _drain(wake)
                    elif not self._copy(key.fd, streams[key.fd]):
                        selector.unregister(key.fd)
                number = due.signal()
                if number is not None:
                    self.timed_out = True
                    self._signal(number)
        self._signal(signal.SIGKILL)  # of its group: the process itself has ended, but not been waited for
        for descriptor, place in streams.items():
            for _ in range(_LAST_READS):
                if not self._copy(descriptor, place):
                    break
        code = process.wait()
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()
        return code

    def _copy(self, descriptor: int, place: int) -> bool:
        """Pass a piece of its output on; False if there is none now, or none will come."""
        try:
            data = os.read(descriptor, 65536)
        except BlockingIOError:
            return False
        if not data:
            return False
        tail = self._tails[place]
        tail += data
        del tail[:-_TAIL_BYTES]
        left = memoryview(data)
        with contextlib.suppress(OSError):  # nobody reads it any more, or the disk is full: it goes on
            while left:
                left = left[os.write(self._outputs[place], left) :]
        return True

    def _pass_on(self, number: int, _: FrameType | None) -> None:
        if number in INTERRUPTIONS and self.interrupted is None and not self.timed_out:
            self.interrupted = number
        self._signal(number)

    def _signal(self, number: int) -> None:
        if self._pid:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._pid, number)


class _Due:
    """When a program that takes too long is asked to end, and when it is killed."""

    def __init__(self, limit_s: float | None) -> None:
        self._at = None if limit_s is None else time.monotonic() + limit_s
        self._asked = False

    def wait_s(self) -> float | None:
        return None if self._at is None else max(0.0, self._at - time.monotonic())

    def signal(self) -> int | None:
        if self._at is None or time.monotonic() < self._at:
            return None
        self._at = None if self._asked else time.monotonic() + GRACE_S
        number = signal.SIGKILL if self._asked else signal.SIGTERM
        self._asked = True
        return number


def _nothing(_: int, __: FrameType | None) -> None:
    """Only that the signal wakes the loop."""


def _drain(descriptor: int) -> None:
    with contextlib.suppress(BlockingIOError):
        while os.read(descriptor, 4096):
            pass


def _same_file(one: int, other: int) -> bool:
    try:
        return os.path.sameopenfile(one, other)
    except OSError:
        return False
