"""When Balsam's launchers lived and how many nodes they had: what their logs (DB/log) say.

A launcher's log names its nodes and its end. One that was killed lived until its last line. Lines of other
processes in the same file prove nothing: those that make transitions outlive a launcher that was killed. In
serial mode the logs of its ensemble tell of life, too.
"""

from __future__ import annotations

import glob
import os
import re
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

LINE = re.compile(r"^(\d\d-[A-Z][a-z]{2}-\d{4} \d\d:\d\d:\d\d)\|(\d+)\|", re.MULTILINE)
BUILT = re.compile(r"Built (\d+) \w+ workers")
FILTER = re.compile(r"Filtering jobs with workflow matching (.*)|--wf-name=(\S+)")
SERIAL = re.compile(r"serial_mode_timed\.py .*--log-filename (\S+)")
ENDED = "Launcher exit graceful"
HEAD, TAIL = 65_536, 16_384
"""So many bytes of a log's beginning and end are read: one may have 100 MB."""


@dataclass(frozen=True, slots=True)
class Life:
    """A launcher's; times in seconds since the epoch, to a second."""

    pid: int
    start: float
    end: float
    """Its last sign of life, where it did not end in order or still lives."""
    ended: bool
    nodes: int
    serial: bool
    only: str
    """It takes workflows whose names contain this."""

    def takes(self, workflow: str) -> bool:
        """Whether it runs jobs of ``workflow``."""
        return self.only in workflow


def read_lives(database: Path) -> list[Life]:
    """The launchers of a Balsam database, by the time of their start; none where there are no logs."""
    found = [_life(path) for path in sorted((database / "log").glob("launcher_*.log"))]
    return sorted((life for life in found if life is not None), key=lambda life: life.start)


def _life(path: Path) -> Life | None:
    text = _ends(path)
    first, built = LINE.search(text), BUILT.search(text)
    if first is None or built is None:
        return None
    pid = int(first[2])
    own = [_seconds(line[1]) for line in LINE.finditer(text) if int(line[2]) == pid]
    serial, ended = SERIAL.search(text), ENDED in text
    if serial is not None and not ended:
        for other in path.parent.glob(f"{glob.escape(serial[1])}.*"):
            own += [_seconds(line[1]) for line in LINE.finditer(_ends(other))]
    chosen = FILTER.search(text)
    only = (chosen[1] or chosen[2] or "").strip() if chosen else ""
    return Life(pid, own[0], max(own), ended, int(built[1]), serial is not None, only)


def _ends(path: Path) -> str:
    """A file's beginning and end; empty if it cannot be read."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            raw = file.read(HEAD)
            if size > HEAD + TAIL:
                file.seek(size - TAIL)
                raw += b"\n"
            raw += file.read()
    except OSError:
        return ""
    return raw.decode(errors="replace")


def _seconds(stamp: str) -> float:
    """Balsam's logs have the local time."""
    try:
        return datetime.strptime(stamp, "%d-%b-%Y %H:%M:%S").astimezone().timestamp()
    except ValueError:
        return 0.0
