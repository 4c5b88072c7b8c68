"""A starter's programs: files before and after in a few threads, the start itself in its loop.

Standard library only. Programs are started by ``subprocess``, which uses ``vfork``: a fork of even this
small process costs as much as all the rest together. So no code of ours runs between fork and exec; what
a child of a warm interpreter sets for itself, the starter sets before or has ``subprocess`` set. A
program does not get PR_SET_PDEATHSIG, and is recorded just after its start. That its session ends is the
work of the starter, which adopts orphans; of the agent when the starter dies (it knows the attempt by its
environment from the first instruction on); and of the guardian when both do.
"""

from __future__ import annotations

import _queue
import _thread
import contextlib
import json
import os
import subprocess
import time
from collections import deque

from nas_hpc.processes import boot, child, linux
from nas_hpc.processes.attempts import Attempt, finish

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from nas_hpc.processes.channel import Channel

_THREADS = 4
_OPEN_OUTPUTS = 64
"""Outputs with a greater descriptor are closed until their program is started: descriptors may be few."""


class Workers:
    """Threads that do a starter's file work, so that a slow file system does not hold up its loop."""

    def __init__(self, channel: Channel, wake_fd: int) -> None:
        self._todo: _queue.SimpleQueue[tuple[bool, Attempt]] = _queue.SimpleQueue()
        self._channel = channel
        self._wake_fd = wake_fd
        self.prepared: deque[Attempt] = deque()
        """Attempts whose directory is made; the loop starts them, or reports why that cannot be."""
        self.late: deque[Attempt] = deque()
        """Attempts whose result is not to be seen yet; the loop has them finished again later."""
        for _ in range(_THREADS):
            _thread.start_new_thread(self._work, ())

    def prepare(self, attempt: Attempt) -> None:
        """Have the directory of ``attempt`` made; it appears in ``prepared``."""
        self._todo.put((True, attempt))

    def finish(self, attempt: Attempt) -> None:
        """Have the end of ``attempt`` written; the channel tells its result, or it appears in ``late``."""
        self._todo.put((False, attempt))

    def _work(self) -> None:
        while True:
            new, attempt = self._todo.get()
            if not new:
                if finish(attempt, self._channel):
                    continue
                self.late.append(attempt)
            else:
                self._prepare(attempt)
                self.prepared.append(attempt)
            with contextlib.suppress(BlockingIOError):  # full: the loop wakes anyway
                os.write(self._wake_fd, b"p")

    @staticmethod
    def _prepare(attempt: Attempt) -> None:
        try:
            output = child.prepare_directory(attempt.order)
            if output > _OPEN_OUTPUTS:
                os.close(output)
            else:
                attempt.output = output
            if attempt.order.get("mpi"):
                from nas_hpc.processes import rank

                rank.write_file(attempt.order)
        except child.StartFailed as error:
            attempt.refused = str(error)
        except Exception as error:
            attempt.refused = f"cannot prepare the start: {type(error).__name__}: {error}"


def start(attempt: Attempt, channel: Channel, log_fd: int) -> int:
    """Start the attempt's program in a session of its own; its pid. Raises StartFailed."""
    order = attempt.order
    environ = {**order["env"], **child.masks(order["gpus"])}
    argv: list[str] = order["argv"]
    inherited: tuple[int, ...] = ()
    kind = "mpi" if order.get("mpi") else "attempt"
    try:
        if order["call"] and kind == "attempt":
            argv, inherited = _fresh_interpreter(order, channel)
        with _Pinned(order["cores"]):
            order["start"] = time.time()
            pid = _spawn(argv, environ, attempt, inherited)
    finally:
        if inherited:
            os.close(inherited[0])
        close_output(attempt)
    with contextlib.suppress(OSError):  # over already: then it is a zombie, which still has its start time
        line = f"+{pid} {linux.start_ticks(pid)} {kind} {order['job']}:{order['attempt']}\n"
        os.write(log_fd, line.encode())
    return pid


def close_output(attempt: Attempt) -> None:
    """The output belongs to the program alone, or to nobody."""
    if attempt.output >= 0:
        os.close(attempt.output)
        attempt.output = -1


def _spawn(argv: list[str], environ: dict[str, str], attempt: Attempt, inherited: tuple[int, ...]) -> int:
    directory = attempt.order["dir"]
    try:
        if attempt.output < 0:
            attempt.output = child.open_output(attempt.order)
        process = subprocess.Popen(
            argv,
            stdout=attempt.output,
            stderr=attempt.output,
            env=environ,
            cwd=directory,
            start_new_session=True,
            pass_fds=inherited,
        )
    except (OSError, ValueError) as error:
        raise child.StartFailed(_why(argv[0], environ, directory, error)) from None
    process.returncode = 0  # the loop waits for its children itself; subprocess must not
    return process.pid


def _why(program: str, environ: dict[str, str], directory: str, error: OSError | ValueError) -> str:
    if not isinstance(error, OSError):
        return f"cannot start {program!r}: {error}"
    if isinstance(error.filename, str) and error.filename.startswith(directory):
        return f"cannot use the directory {directory}: {error.strerror}"
    if not isinstance(error, (FileNotFoundError, NotADirectoryError)):
        return f"cannot start {program}: {error.strerror}"
    if "/" not in program:
        return f"cannot start {program}: no such program in PATH ({environ.get('PATH', os.defpath)})"
    what = "its interpreter (the #! line) does not exist" if os.path.exists(program) else "no such file"
    return f"cannot start {program}: {what}"


def _fresh_interpreter(order: dict[str, Any], channel: Channel) -> tuple[list[str], tuple[int, ...]]:
    """The argv of an interpreter that reads the call from an anonymous file, and the descriptors for it."""
    fd = os.memfd_create("order", os.MFD_CLOEXEC)
    content = memoryview(json.dumps({**order, "env": {}}).encode("ascii"))
    while content:
        content = content[os.write(fd, content) :]
    os.lseek(fd, 0, os.SEEK_SET)
    telling = channel.sending.fileno()
    return boot.command(order["interpreter"], "call", fd, telling), (fd, telling)


class _Pinned:
    """Pins this thread, and so what it starts, to ``cores`` for the duration; no cores: as it is."""

    def __init__(self, cores: list[int]) -> None:
        self._cores = cores

    def __enter__(self) -> None:
        if self._cores:
            self._before = os.sched_getaffinity(0)
            child.pin(self._cores)

    def __exit__(self, *_: object) -> None:
        if self._cores:
            os.sched_setaffinity(0, self._before)
