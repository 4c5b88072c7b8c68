"""Which agent a process of ``node_agent`` is, and where it leaves its files."""

from __future__ import annotations

import contextlib
import socket
import time
from dataclasses import dataclass
from pathlib import Path

from nas_hpc.processes import traces


@dataclass(frozen=True, slots=True)
class Place:
    """Which agent this process is."""

    site: Path
    ensemble: str
    number: int
    incarnation: str
    deadline_s: float
    """So long it goes on without a launcher."""
    away_s: float
    """So long there has been none already."""
    supervisor_fd: int
    """The pipe in which it tells its supervisor whether a launcher is there."""
    endpoint: str = "endpoint.json"
    """Name of the file that tells where its launcher is."""

    @classmethod
    def of(cls, arguments: list[str]) -> Place:
        """From the command line that the supervisor has made."""
        site, ensemble, number, incarnation, deadline_s, away_s, fd, endpoint = arguments
        seconds = float(deadline_s), float(away_s)
        return cls(Path(site), ensemble, int(number), incarnation, *seconds, int(fd), endpoint)

    @property
    def run(self) -> Path:
        """Where the site keeps the files of running processes."""
        return self.site / "run"

    @property
    def sessions_log(self) -> Path:
        """Of this incarnation."""
        return traces.log_of(self.run, self.ensemble, self.number, self.incarnation)

    @property
    def words(self) -> Path:
        """What is said when no launcher listens."""
        return self.site / "log" / f"agents-{self.ensemble[:8]}-{self.number}.log"


def write_words(place: Place, text: str) -> None:
    """Append a line to the agent's file; a full disk must not end it."""
    stamp = time.strftime("%Y-%m-%d %H:%M:%S")
    line = f"{stamp} agent {place.number} on {socket.gethostname()}: {text.rstrip()}\n"
    with contextlib.suppress(OSError), place.words.open("a", errors="replace") as stream:
        stream.write(line)
