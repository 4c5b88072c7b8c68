"""The few Linux calls that Python lacks, and what /proc tells about processes.

Standard library only, Python 3.8 or later: it is loaded in the user's interpreters.
"""

from __future__ import annotations

import _thread
import ctypes
import os

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_MADV_COLLAPSE = 25
_SIGKILL = 9
_SIGTERM = 15
_PF_EXITING = 0x4

_libc = ctypes.CDLL(None, use_errno=True)


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when ``parent`` dies; end at once if it is already dead.

    The signal comes when the *thread* that started this process ends, so processes are started from main
    threads.
    """
    _libc.prctl(_PR_SET_PDEATHSIG, _SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def end_with_parent() -> None:
    """Have the kernel send this process SIGTERM when its parent dies."""
    _libc.prctl(_PR_SET_PDEATHSIG, _SIGTERM, 0, 0, 0)


def outlive_parent() -> None:
    """Undo ``die_with_parent``."""
    _libc.prctl(_PR_SET_PDEATHSIG, 0, 0, 0, 0)


def adopt_orphans() -> None:
    """Become the parent of descendants whose own parent ends, so that a daemon does not get away."""
    _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def flush_c_output() -> None:
    """Write out what C libraries hold in their stdio buffers; ``os._exit`` would lose it."""
    _libc.fflush(None)


def collapse(address: int, length: int) -> bool:
    """Have the kernel make huge pages of a range of this process's memory; whether it did."""
    return not _libc.madvise(ctypes.c_void_p(address), ctypes.c_size_t(length), _MADV_COLLAPSE)


def stat_fields(pid: int | str) -> list[str]:
    """Fields of /proc/PID/stat from the state on: 0 state, 1 ppid, 2 pgrp, 3 session, 11 utime, 12 stime, 19
    start.

    Raises OSError if there is no such process.
    """
    fd = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
    try:
        content = os.read(fd, 2048)
    finally:
        os.close(fd)
    if not content:
        raise ProcessLookupError(f"no process {pid}")
    # The command's name stands in parentheses and may itself hold blanks and parentheses.
    return content[content.rindex(b")") + 2 :].decode("ascii", "replace").split()


def is_ending(pid: int) -> bool:
    """Whether the process is on its way out or a zombie: its memory may be gone, its number is not."""
    try:
        return bool(int(stat_fields(pid)[6]) & _PF_EXITING)
    except OSError:
        return True


def is_starting(pid: int) -> bool:
    """Whether the process is between its old program and its new one: its environment has no place yet."""
    try:
        fields = stat_fields(pid)
    except OSError:
        return False
    return len(fields) > 48 and fields[47] == "0" and not int(fields[6]) & _PF_EXITING


def start_ticks(pid: int | str) -> int:
    """When the process started, in clock ticks since boot: with the pid it names a process for ever."""
    return int(stat_fields(pid)[19])


def own_start_ticks() -> bytes:
    """``start_ticks`` of this process, in digits: what a child does first has to be little."""
    fd = os.open("/proc/self/stat", os.O_RDONLY | os.O_CLOEXEC)
    try:
        content = os.read(fd, 2048)
    finally:
        os.close(fd)
    return content[content.rindex(b")") + 2 :].split(b" ", 20)[19]


def is_alone() -> bool:
    """Whether this process has no children, not even ended ones, and no thread that could start one.

    Only if it has adopted its orphans does that mean that no descendant of it lives.
    """
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return _thread._count() == 0
    return False


def children() -> list[int]:
    """Pids of this process's children, dead ones that were not waited for included."""
    pid = os.getpid()
    try:
        with open(f"/proc/{pid}/task/{pid}/children", "rb") as stream:
            return [int(word) for word in stream.read().split()]
    except OSError:  # a kernel without CONFIG_PROC_CHILDREN
        return [int(name) for name in os.listdir("/proc") if name.isdigit() and _parent_of(name) == pid]


def _parent_of(pid: str) -> int:
    try:
        return int(stat_fields(pid)[1])
    except OSError:
        return 0


def environ_of(pid: int | str) -> list[bytes]:
    """The environment with which a process was started, as ``NAME=value``; empty if it cannot be read."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as stream:
            return stream.read().split(b"\0")
    except OSError:
        return []
