"""What tests of every room use: waiting for a condition, and finding the processes that a test started."""

from __future__ import annotations

import os
import signal
import tempfile
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TypeVar

import psutil

T = TypeVar("T")

HOSTILE = bool(os.environ.get("NAS_HPC_TEST_HOSTILE"))
"""Whether this is the hostile run. Read before the tests' own settings are taken out of the environment."""
LATE_S = 5.0 if HOSTILE else 0.0
"""So late a keeper sees the result.json of an external program."""
DISK = "/tmp"
MEMORY = "/dev/shm"
"""A file system in memory, where the system has one: what is made safe there is so at once."""
PLENTY = 8 << 30
"""Bytes of memory that are free; all tests' files of a run are about 1 GB."""
TEST_ID = "NAS_HPC_TEST_ID"
"""Environment variable that everything a test starts inherits."""


def wait_until(
    predicate: Callable[[], T],
    timeout_s: float = 60.0,
    what: str | Callable[[], str] = "the condition",
    look_s: float = 0.05,
) -> T:
    """Return the first true value of ``predicate()``; fail with ``what`` when ``timeout_s`` have passed.

    A ``what`` that is called tells what is the case then. ``look_s`` is the longest time between two looks.
    """
    deadline = time.monotonic() + timeout_s
    pause_s = 0.002
    while True:
        value = predicate()
        if value:
            return value
        if time.monotonic() >= deadline:
            told = what if isinstance(what, str) else what()
            raise AssertionError(f"waited {timeout_s:g} s for {told}; the last value was {value!r}")
        time.sleep(pause_s)
        pause_s = min(pause_s * 1.5, look_s)


@cache
def directory_of_tests() -> str:
    """Where the tests make their files: in memory if there is plenty, since half of their time would go into
    waiting for a disk, each commit for several milliseconds. The hostile run waits for it.

    Short, because sockets are made below; and programs can be started from it.
    """
    try:
        found = os.statvfs(MEMORY)
        free = min(found.f_frsize * found.f_bavail, psutil.virtual_memory().available)
        if free < PLENTY or HOSTILE or not os.access(MEMORY, os.W_OK):
            return DISK
        return DISK if found.f_flag & (os.ST_NOEXEC | os.ST_RDONLY) else MEMORY
    except OSError:
        return DISK


def new_directory(prefix: str) -> Path:
    """One that is empty, with a short path."""
    return Path(tempfile.mkdtemp(prefix=prefix, dir=directory_of_tests()))


def examples(usual: int) -> int:
    """How many examples a property is to be tried on: ``usual``, or fewer where hurry is asked for."""
    from hypothesis import settings

    return max(3, usual * settings().max_examples // 100)


def stays(predicate: Callable[[], object], duration_s: float, what: str = "the condition") -> None:
    """Fail as soon as ``predicate()`` is false within ``duration_s``: for what must *not* happen."""
    deadline = time.monotonic() + duration_s
    while time.monotonic() < deadline:
        value = predicate()
        assert value, f"{what} held no longer: {value!r}"
        time.sleep(0.01)


def running() -> frozenset[int]:
    """The inodes in /proc of all processes that run now: a number given anew is another inode."""
    return frozenset(entry.inode() for entry in os.scandir("/proc") if entry.name.isdigit())


def processes_of(test_id: str, others: frozenset[int] = frozenset()) -> list[psutil.Process]:
    """Live processes that carry ``test_id`` in the environment they were started with, without this one.

    Zombies are not counted: they run nothing, and their environment is gone. A process that was started
    with an environment of its own making (``env -i``) is not found. Not looked at, which takes long, are the
    ``others`` of ``running()``.
    """
    marker = f"{TEST_ID}={test_id}".encode()
    found = []
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit() or entry.inode() in others or int(entry.name) == os.getpid():
            continue
        try:
            if marker in Path(entry.path, "environ").read_bytes().split(b"\0"):
                found.append(psutil.Process(int(entry.name)))
        except (OSError, psutil.Error):
            continue  # ended while we looked, or another user's
    return found


def words_of(process: psutil.Process) -> list[str]:
    """The command line of a process; empty for one that has ended meanwhile."""
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def describe(processes: list[psutil.Process]) -> str:
    """One line naming the processes, for a failure's message."""
    commands = [" ".join(words_of(process))[:120] or "(ended)" for process in processes]
    return "; ".join(
        f"{process.pid}: {command}" for process, command in zip(processes, commands, strict=True)
    )


def end_processes(processes: list[psutil.Process]) -> None:
    """Kill ``processes``, stopped ones included."""
    for process in processes:
        try:
            process.send_signal(signal.SIGKILL)
        except psutil.Error:
            continue


def assert_no_processes(test_id: str, timeout_s: float = 60.0, others: frozenset[int] = frozenset()) -> None:
    """Fail, after killing them, if processes of ``test_id`` are still there after ``timeout_s``.

    ``others`` ran already when the test began.
    """
    try:
        wait_until(lambda: not processes_of(test_id, others), timeout_s, "the test's processes to end")
    except AssertionError:
        left = processes_of(test_id)
        if not left:
            return
        names = describe(left)
        end_processes(left)
        raise AssertionError(f"processes are left: {names}") from None
