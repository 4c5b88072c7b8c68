"""Sessions of processes: naming a process for ever, and ending everything of a launcher that is gone.

The log of sessions has one line ``+PID TICKS KIND NAME`` for each session, appended before its program runs,
and ``-PID`` after its end. Nothing in it needs to be synced: after a crash of the machine there are no
sessions.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from nas_hpc.processes import linux
from nas_hpc.processes.family import MPI_GRACE_S

MARKER_VARIABLE = "NAS_HPC_LAUNCHER_ID"
END_DEADLINE_S = 10.0
KEEPER_GRACE_S = 1.0
"""Keepers without their agent end their attempts by themselves, and more thoroughly than others can: they
have adopted processes that left session and environment."""


@dataclass(frozen=True, slots=True)
class Session:
    """One session as the log has it."""

    pid: int
    start_ticks: int
    kind: str
    name: str


def boot_id() -> str:
    """Identifies this boot of this host."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def start_ticks(pid: int) -> int:
    """When a process started, in clock ticks since boot; ProcessLookupError if there is none."""
    try:
        return linux.start_ticks(pid)
    except FileNotFoundError:
        raise ProcessLookupError(f"no process {pid}") from None


def is_alive(pid: int, ticks: int) -> bool:
    """Whether the process ``pid`` that started at ``ticks`` runs (a zombie does not)."""
    try:
        fields = linux.stat_fields(pid)
    except OSError:
        return False
    return int(fields[19]) == ticks and fields[0] not in ("Z", "X")


def is_stopped(pid: int, ticks: int) -> bool:
    """Whether that process was stopped by a signal and waits to be told to go on."""
    try:
        fields = linux.stat_fields(pid)
    except OSError:
        return False
    return int(fields[19]) == ticks and fields[0] == "T"


def line(pid: int, kind: str, name: str) -> bytes:
    """The log's line for a live process."""
    return f"+{pid} {start_ticks(pid)} {kind} {name}\n".encode()


def read_log(path: Path) -> dict[int, Session]:
    """Sessions begun and not ended, by pid. A torn line is passed over; no log is an empty one."""
    begun: dict[int, Session] = {}
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return begun
    for entry in lines:
        words = entry.decode("ascii", "replace").split()
        try:
            if entry.startswith(b"+") and len(words) == 4:
                pid = int(words[0])
                begun[pid] = Session(pid, int(words[1]), words[2], words[3])
            elif entry.startswith(b"-"):
                begun.pop(-int(words[0]), None)
        except ValueError:
            continue
    return begun


def end_recorded(path: Path, marker: str) -> int:
    """End every live session of the log at ``path`` and every own process whose environment has ``marker``.

    ``marker`` is the launcher's lease (NAS_HPC_LAUNCHER_ID). Processes are killed and waited for, at most 10
    s; returns how many there were. MPI programs are asked first.
    """
    recorded = read_log(path)
    keepers = [s for s in recorded.values() if s.kind == "keeper" and is_alive(s.pid, s.start_ticks)]
    asking = any(s.kind == "mpi" and is_alive(s.pid, s.start_ticks) for s in recorded.values())
    before = len(_matching(recorded, marker, lambda environ: True)) if keepers or asking else 0
    patience = KEEPER_GRACE_S + (MPI_GRACE_S if asking else 0.0)
    _await([fd for fd in map(_pidfd, (s.pid for s in keepers)) if fd >= 0], time.monotonic() + patience)
    _ask(recorded)
    return max(before, _end(recorded, marker, lambda environ: True))


def end_attempts(path: Path, marker: str, keys: Iterable[tuple[str, int]]) -> int:
    """End what is left of these attempts (job, number) of a live launcher whose keeper died; returns how
    many.
    """
    wanted = set(keys)
    names = {f"{job}:{number}" for job, number in wanted}
    sessions = {
        pid: s for pid, s in read_log(path).items() if s.kind in ("attempt", "mpi") and s.name in names
    }

    def belongs(environ: list[bytes]) -> bool:
        marks = dict(part.partition(b"=")[::2] for part in environ)
        job, number = marks.get(b"NAS_HPC_JOB_ID", b""), marks.get(b"NAS_HPC_ATTEMPT", b"")
        return number.isdigit() and (job.decode("ascii", "replace"), int(number)) in wanted

    _ask(sessions)
    return _end(sessions, marker, belongs)


def _ask(sessions: dict[int, Session]) -> None:
    """Have the MPI programs among the live ``sessions`` end their ranks, and wait for that a moment."""
    waiting = []
    for one in sessions.values():
        if one.kind == "mpi" and is_alive(one.pid, one.start_ticks):
            fd = _pidfd(one.pid)
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(one.pid, signal.SIGTERM)
            waiting += [fd] if fd >= 0 else []
    _await(waiting, time.monotonic() + MPI_GRACE_S)


def end_session(session: int) -> None:
    """Kill the members of a session whose leader is this process's child, and so cannot be another's."""
    for name in os.listdir("/proc"):
        with contextlib.suppress(OSError, ValueError):
            if name.isdigit() and int(linux.stat_fields(name)[3]) == session:
                os.kill(int(name), signal.SIGKILL)


def end_process(pid: int, ticks: int) -> None:
    """Kill the process ``pid`` that started at ``ticks``, if it lives, and wait until it is gone."""
    fd = _kill(pid, ticks)
    if fd >= 0:
        _await([fd], time.monotonic() + END_DEADLINE_S)


def await_end(pid: int, ticks: int, timeout_s: float) -> bool:
    """Wait until the process ``pid`` that started at ``ticks``, anybody's, is gone; whether it is."""
    deadline = time.monotonic() + timeout_s
    fd = _pidfd(pid)
    if fd >= 0 and is_alive(pid, ticks):
        _await([fd], deadline)
    elif fd >= 0:
        os.close(fd)
    while is_alive(pid, ticks) and time.monotonic() < deadline:  # a kernel without pidfd
        time.sleep(0.05)
    return not is_alive(pid, ticks)


def _end(sessions: dict[int, Session], marker: str, belongs: Callable[[list[bytes]], bool]) -> int:
    """Kill until nothing is found: what was killed may have left children behind."""
    ended: set[tuple[int, int]] = set()
    deadline = time.monotonic() + END_DEADLINE_S
    spared = _own_line()
    while time.monotonic() < deadline:
        found = [pair for pair in _matching(sessions, marker, belongs) if pair[0] not in spared]
        if not found:
            break
        waiting = []
        for pid, ticks in found:
            fd = _kill(pid, ticks)
            if fd >= 0:
                waiting.append(fd)
            ended.add((pid, ticks))
        _await(waiting, deadline)
    return len(ended)


def _own_line() -> set[int]:
    """This process and its ancestors: a launcher may run inside a job of the one that it cleans up after."""
    line, pid = set(), os.getpid()
    while pid > 0 and pid not in line:
        line.add(pid)
        try:
            pid = int(linux.stat_fields(pid)[1])
        except OSError:
            break
    return line


def _matching(
    sessions: dict[int, Session], marker: str, belongs: Callable[[list[bytes]], bool]
) -> list[tuple[int, int]]:
    """(pid, ticks) of the live processes that belong to ``sessions`` or carry the marker and ``belongs``."""
    mark = f"{MARKER_VARIABLE}={marker}".encode()
    leaders = {pid for pid, session in sessions.items() if is_alive(pid, session.start_ticks)}
    found = []
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            fields = linux.stat_fields(name)
        except OSError:
            continue
        pid, session, ticks = int(name), int(fields[3]), int(fields[19])
        if fields[0] in ("Z", "X"):
            continue
        if pid in leaders or session in leaders:
            found.append((pid, ticks))
            continue
        environ = linux.environ_of(name)
        if mark in environ and (session in sessions or belongs(environ)):
            found.append((pid, ticks))
    return found


def _pidfd(pid: int) -> int:
    """A descriptor that becomes readable when the process ends; -1 if it is gone, or the kernel too old."""
    try:
        return os.pidfd_open(pid)
    except OSError:
        return -1


def _kill(pid: int, ticks: int) -> int:
    """Kill exactly this process; a descriptor that tells its end, or -1 if it is gone or there is none."""
    fd = _pidfd(pid)
    if not is_alive(pid, ticks):
        if fd >= 0:
            os.close(fd)
        return -1
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, signal.SIGKILL)
    return fd


def _await(pidfds: list[int], deadline: float) -> None:
    poll = select.poll()
    for fd in pidfds:
        poll.register(fd, select.POLLIN)
    left = len(pidfds)
    while left:
        ready = poll.poll(max(0.0, 1000 * (deadline - time.monotonic())))
        if not ready:
            break
        for fd, _ in ready:
            poll.unregister(fd)
            left -= 1
    for fd in pidfds:
        os.close(fd)
