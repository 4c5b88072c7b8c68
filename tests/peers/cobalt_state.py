"""What commands and daemon of the stand-in for Cobalt share: its states, and how it prints."""

from __future__ import annotations

import os
import pwd
import time
from typing import Any

SHORT_STATES = {
    "queued": "Q", "starting": "R", "running": "R", "killing": "K", "exiting": "E", "user_hold": "H",
    "dep_hold": "H", "maxrun_hold": "H", "dep_fail": "H", "admin_hold": "H", "preempting": "P",
    "preempted": "P", "done": "E",
}  # fmt: skip


def user() -> str:
    """Who calls."""
    return pwd.getpwuid(os.getuid()).pw_name


def stamp(moment: float) -> str:
    """A moment as Cobalt prints it."""
    return time.strftime("%a %b %d %H:%M:%S %Y +0000 (UTC)", time.gmtime(moment))


def log(job: dict[str, Any], line: str) -> None:
    """Add a line to the batch job's .cobaltlog."""
    with open(job["log"], "a") as file:
        file.write(f"{stamp(time.time())} {line}\n")


def clock(whole: float) -> str:
    """A time as qstat prints it: HH:MM:SS, past a day DD:HH:MM:SS."""
    hours, rest = divmod(int(whole), 3600)
    days, hours = divmod(hours, 24)
    return (f"{days:02d}:" if days else "") + f"{hours:02d}:{rest // 60:02d}:{rest % 60:02d}"


def print_table(header: list[str], rows: list[list[str]], vertical: bool = False) -> None:
    """A table as Cobalt prints them: columns two blanks apart, a rule of ``=``; vertical: a line a field."""
    if vertical:
        width = max(len(name) for name in header) + 1
        for row in rows:
            print(f"{header[0]}: {row[0]}")
            for name, value in zip(header[1:], row[1:], strict=True):
                print(f"    {name:<{width}}: {value}")
            print()
        return
    widths = [max(len(row[number]) for row in [header, *rows]) for number in range(len(header))]
    for line in (header, None, *rows):
        cells = line and "".join(f"{cell:<{width}}  " for cell, width in zip(line, widths, strict=True))
        print(cells or "=" * (sum(widths) + 2 * len(widths)))
