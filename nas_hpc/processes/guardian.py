"""A process that outlives its launcher just long enough to end everything that the launcher started."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

from nas_hpc.processes import boot, sessions

_DISMISSED = b"."


def start_guardian(sessions_log: Path, marker: str) -> tuple[subprocess.Popen[bytes], int]:
    """Start a guardian for this process: (its process, the descriptor whose closing it waits for).

    When this process ends, however that happens, the guardian ends what the log and the marker name.
    """
    read_fd, write_fd = os.pipe()
    command = boot.command(sys.executable, "guardian", read_fd, sessions_log, marker, isolated=True)
    environ = {name: value for name, value in os.environ.items() if name != sessions.MARKER_VARIABLE}
    try:
        process = subprocess.Popen(
            command,
            pass_fds=(read_fd,),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=environ,
            cwd="/",
            start_new_session=True,
        )
    finally:
        os.close(read_fd)
    return process, write_fd


def dismiss(process: subprocess.Popen[bytes], write_fd: int) -> None:
    """Let the guardian go without doing anything: the launcher ended what it had started."""
    with contextlib.suppress(BrokenPipeError):
        os.write(write_fd, _DISMISSED)
    os.close(write_fd)
    process.wait()


def main(arguments: list[str]) -> None:
    """Entry: the pipe's descriptor, the log's path, the marker."""
    read_fd, log, marker = int(arguments[0]), Path(arguments[1]), arguments[2]
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    if os.read(read_fd, 1) != _DISMISSED:
        sessions.end_recorded(log, marker)
