"""A keeper's descendants: it adopts the orphans among them, and ends what an attempt leaves behind.

Standard library only, Python 3.8 or later: it is loaded in the user's interpreters.
"""

from __future__ import annotations

import os
import select
import signal
import time

from nas_hpc.processes import linux

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Collection

    from nas_hpc.processes.attempts import Attempt

FAREWELL_S = 5.0
MPI_GRACE_S = 2.0
"""What MPI programs get to end their ranks, on other hosts, too, before they are killed."""
STARTING_S = 2.0
"""How long a process may take over the few instructions after which its environment can be read."""


def end_strays(live: dict[int, Attempt], helpers: set[int], *, certain: bool) -> bool:
    """Kill children of this process that belong to attempts that ended; whether there were any.

    ``live`` are the running attempts by pid, ``helpers`` children that are no attempts. ``certain``: every
    other child belongs to an ended attempt, as each attempt adopts its own orphans while it lives (children
    of a warm interpreter do). External programs do not; their orphans are told by session or environment,
    and left alone while in doubt. One that was killed and is not gone yet has neither, and is waited for.
    """
    found = False
    for pid in linux.children():
        if pid in live or pid in helpers:
            continue
        if not certain and live and not linux.is_ending(pid) and _may_live(pid, live):
            continue
        try:
            os.kill(pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            continue
        found = True
    return found


def _may_live(pid: int, live: dict[int, Attempt]) -> bool:
    try:
        if os.getsid(pid) in live:
            return True
    except ProcessLookupError:
        return False
    marks = dict(part.partition(b"=")[::2] for part in _environ_of(pid))
    job, attempt = marks.get(b"NAS_HPC_JOB_ID"), marks.get(b"NAS_HPC_ATTEMPT", b"")
    if job is None:
        return True
    keys = (one.key for one in live.values())
    return any(key[0].encode() == job and b"%d" % key[1] == attempt for key in keys)


def _environ_of(pid: int) -> list[bytes]:
    """The environment of a child; one that is starting its program shows an empty one for a moment."""
    deadline = time.monotonic() + STARTING_S
    while True:
        starting = linux.is_starting(pid)
        environ = linux.environ_of(pid)
        if environ != [b""] or not starting or time.monotonic() > deadline:
            return environ
        os.sched_yield()


def end_all(wake: socket.socket, asked: Collection[int] = ()) -> None:
    """Kill every descendant: children, and again those whom their end makes children. At most 5 s.

    ``wake`` gets a byte at each SIGCHLD. The children ``asked`` are MPI programs: they are asked to end, and
    killed only after a grace, for ranks on other hosts could outlive them.
    """
    begun = time.monotonic()
    deadline = begun + FAREWELL_S + (MPI_GRACE_S if asked else 0.0)
    for pid in asked:
        try:
            os.killpg(pid, signal.SIGTERM)
        except (ProcessLookupError, PermissionError):
            continue
    poll = select.poll()
    poll.register(wake.fileno(), select.POLLIN)
    while time.monotonic() < deadline:
        left = linux.children()
        if not left:
            return
        patient = time.monotonic() < begun + MPI_GRACE_S
        for pid in left:
            if patient and pid in asked:
                continue
            for kill in (os.killpg, os.kill):
                try:
                    kill(pid, signal.SIGKILL)
                except (ProcessLookupError, PermissionError):
                    continue
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                continue
        except ChildProcessError:
            continue
        poll.poll(1000 * max(0.0, min(0.1, deadline - time.monotonic())))
        try:
            wake.recv(4096)
        except BlockingIOError:
            continue
