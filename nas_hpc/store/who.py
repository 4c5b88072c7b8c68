"""Naming a process for ever: host, boot, pid and start time tell it from every other one."""

from __future__ import annotations

import os
import socket
from pathlib import Path


def this_host() -> str:
    """The name under which this host stands in records."""
    return socket.gethostname()


def boot_id() -> str:
    """Identifies this boot of this host's kernel."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def start_ticks(pid: int) -> int:
    """When a process started, in clock ticks since boot. Raises OSError if there is none."""
    return int(_stat(pid)[19])


def is_alive(pid: int, ticks: int) -> bool:
    """Whether the process ``pid`` of this host that started at ``ticks`` runs (a zombie does not)."""
    try:
        fields = _stat(pid)
    except OSError:
        return False
    return int(fields[19]) == ticks and fields[0] not in ("Z", "X")


def working_in(directory: Path) -> list[int]:
    """Processes of this host whose working directory is ``directory``, as far as one may look."""
    found = []
    real = os.path.realpath(directory)
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                if os.readlink(f"/proc/{name}/cwd") == real:
                    found.append(int(name))
            except OSError:  # ended, or another user's
                continue
    return found


def _stat(pid: int) -> list[str]:
    """Fields of /proc/PID/stat from the state on."""
    content = Path("/proc", str(pid), "stat").read_bytes()
    if not content:
        raise ProcessLookupError(f"no process {pid}")
    return content[content.rindex(b")") + 2 :].decode("ascii", "replace").split()
