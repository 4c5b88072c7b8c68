"""What the agent of a node leaves behind: how its files are called, and the end of its processes.

An agent is known by ensemble, number and incarnation: a new incarnation for every process that its supervisor
starts. Its log of sessions (``nas_hpc.processes.sessions``) begins with a line ``=HOST BOOT_ID``, as its
processes can be ended on its own host only, and has a line for the agent itself.
"""

from __future__ import annotations

import contextlib
import os
import socket
from pathlib import Path

from nas_hpc.processes import sessions

_PREFIX, _SUFFIX = "agent-", ".sessions"


def log_of(run: Path, ensemble: str, number: int, incarnation: str) -> Path:
    """Where an agent's sessions are recorded; ``run`` is the site's directory for running processes."""
    return run / f"{_PREFIX}{ensemble}-{number}-{incarnation}{_SUFFIX}"


def marker_of(log: Path) -> str:
    """What every process of the agent with this log carries as NAS_HPC_LAUNCHER_ID."""
    return log.name.removesuffix(_SUFFIX)


def begin(log: Path, number: int) -> None:
    """Make the log of this process, an agent."""
    head = f"={socket.gethostname()} {sessions.boot_id()}\n".encode()
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.write(descriptor, head + sessions.line(os.getpid(), "agent", str(number)))
    finally:
        os.close(descriptor)


def alive(run: Path, ensemble: str) -> set[int]:
    """Numbers of the agents of ``ensemble`` whose process lives on this host."""
    found = set()
    for log in run.glob(f"{_PREFIX}{ensemble}-*{_SUFFIX}"):
        if _head(log) == (socket.gethostname(), sessions.boot_id()):
            agents = [one for one in sessions.read_log(log).values() if one.kind == "agent"]
            found |= {int(one.name) for one in agents if sessions.is_alive(one.pid, one.start_ticks)}
    return found


def end_left(run: Path, ensemble: str = "*", number: int | None = None, *, spare: str = "") -> int:
    """End agents and everything that they started, as far as it runs on this host, and remove their logs.

    Of ``ensemble`` (default: any), those of ``number`` (default: all) without the incarnation ``spare``. What
    belongs to other hosts is left alone. Returns how many processes there were.
    """
    ended = 0
    for log in sorted(run.glob(f"{_PREFIX}{ensemble}-{'*' if number is None else number}-*{_SUFFIX}")):
        host, boot = _head(log)
        if (spare and marker_of(log).endswith(f"-{spare}")) or host != socket.gethostname():
            continue
        if boot == sessions.boot_id():
            for session in sessions.read_log(log).values():
                if session.kind == "agent":  # first: what it started ends by itself then, and more thoroughly
                    sessions.end_process(session.pid, session.start_ticks)
            ended += sessions.end_recorded(log, marker_of(log))
        log.unlink(missing_ok=True)
    return ended


def _head(log: Path) -> tuple[str, str]:
    """Host and boot id of a log; empty for one that has none (yet)."""
    with contextlib.suppress(OSError), log.open("rb") as stream:
        words = stream.readline(512).decode("utf-8", "replace").split()
        if len(words) == 2 and words[0].startswith("="):
            return words[0][1:], words[1]
    return "", ""
