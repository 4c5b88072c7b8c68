"""What a user of Balsam does: registers searches, adds one as a job, starts launchers, reads its results."""

from __future__ import annotations

import csv
import io
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nas_hpc.cli.main import main
from nas_hpc.files import replace_file
from tests.balsam.light import LIGHT
from tests.peers.balsam import Balsam
from tests.support import wait_until

ROOT = Path(__file__).resolve().parents[2]
POLYNOME = "--problem nas_hpc.problems.hps.polynome2.Problem --run tests.balsam.light.run"
"""Its space; its own run function would load ConfigSpace for each evaluation."""
SEQUENCES = "--problem tests.apps.sequences.Problem --run tests.balsam.light.run"
LOOK_S = 0.3
"""Between two looks at the database, each of which takes time from what is looked at."""


@dataclass(frozen=True, slots=True)
class User:
    """A user with an activated job database and a directory of his own."""

    balsam: Balsam
    directory: Path
    test_id: str

    def prepare(self, limit: int = 1000, failing: str = "") -> None:
        """For ``tests.balsam.light``: evaluations up to ``limit`` end, those of ``failing`` fail."""
        (self.directory / "failing").write_text(failing)
        self.allow(limit)

    def allow(self, limit: int) -> None:
        """From now on evaluations up to this number end."""
        replace_file(self.directory / "limit", str(limit))

    def ledger(self) -> Counter[str]:
        """How often what was noted."""
        path = self.directory / "ledger"
        return Counter(path.read_text().splitlines()) if path.exists() else Counter()

    def python(self) -> Path:
        """An interpreter that finds this checkout, whichever environment it is started with."""
        path = self.directory / "python"
        path.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} "$@"\n')
        path.chmod(0o755)
        return path

    def register(self) -> str:
        """``nas-hpc balsam register``; what it said."""
        return self.nas("balsam", "register", str(self.balsam.database), "--python", str(self.python()))

    def nas(self, *words: str, code: int = 0) -> str:
        """Run a command of nas-hpc in this process."""
        out = io.StringIO()
        with redirect_stdout(out), redirect_stderr(out):
            got = main(list(words))
        assert got == code, f"nas-hpc {' '.join(words)} ended with {got}: {out.getvalue()}"
        return out.getvalue()

    def job(self, name: str, app: str, args: str, *flags: str, workflow: str = "TEST") -> None:
        """``balsam job``."""
        self.balsam.balsam(
            *("job", "--name", name, "--workflow", workflow, "--application", app, "--args", args),
            *(*flags, "--yes"),
        )

    def add(self, name: str, app: str, args: str, workflow: str = "TEST", **columns: Any) -> None:
        """The same without Balsam's command, which takes a second of a processor."""
        self.balsam.add_job(name, workflow, app, args=args, **columns)

    def nodes(self, count: int) -> dict[str, str]:
        """Environment of a launcher with so many virtual nodes: this host, several times in a node file."""
        self.balsam.settings(WORKER_DETECTION_TYPE="COOLEY")
        path = self.directory / "nodes"
        path.write_text(f"{socket.gethostname()}\n" * count)
        return {"COBALT_NODEFILE": str(path)}

    def launch(self, mode: str, nodes: int, workflow: str = "TEST") -> subprocess.Popen[bytes]:
        """``balsam launcher``."""
        return self.balsam.launcher(
            *("--wf-filter", workflow, "--job-mode", mode, "--time-limit-minutes", "10"),
            **self.nodes(nodes),
            PYTHONPATH=str(ROOT),
            **{LIGHT: str(self.directory)},
        )

    def stop(self, launcher: subprocess.Popen[bytes]) -> None:
        """Stop a launcher. If it has to be killed, do at once what the next one does after three minutes."""
        self.balsam.end_launcher(launcher)
        self.balsam.do(
            "UPDATE core_balsamjob SET lock = '' WHERE lock <> ''",
            "UPDATE core_balsamjob SET state = 'RESTART_READY' WHERE state = 'RUNNING'",
        )

    def row(self, name: str, workflow: str = "TEST") -> dict[str, Any]:
        """A job."""
        [row] = [row for row in self.balsam.jobs(workflow) if row["name"] == name]
        return row

    def states(self, workflow: str = "TEST") -> Counter[str]:
        """How many evaluations are in which state."""
        return Counter(row["state"] for row in self.balsam.jobs(workflow) if row["name"].startswith("task"))

    def until(self, predicate: Callable[[], object], name: str = "search", timeout_s: float = 300) -> None:
        """Wait for what the search ``name`` is to bring about; fail as soon as that has failed."""

        def reached() -> bool:
            over = self.row(name)["state"] in ("FAILED", "USER_KILLED")
            assert not over, self.told(name)
            return bool(predicate())

        wait_until(reached, timeout_s, lambda: self.told(name), look_s=LOOK_S)

    def finished(self, name: str = "search") -> None:
        """Wait for the end of a search."""
        self.until(lambda: self.row(name)["state"] == "JOB_FINISHED", name)

    def told(self, name: str, workflow: str = "TEST") -> str:
        """What is to be known of a job that is not where it should be."""
        rows = [f"{row['name']} {row['state']}" for row in self.balsam.jobs(workflow)]
        logs = [self.balsam.top / "launcher.out", *sorted((self.balsam.database / "log").glob("*.log"))]
        said = [f"{log.name}: {log.read_text(errors='replace')[-2000:]}" for log in logs if log.exists()]
        return "\n".join([f"{name}: {rows}", self.output(name, workflow), *said])

    def output(self, name: str, workflow: str = "TEST") -> str:
        """What a job printed."""
        path = self.balsam.job_directory(self.row(name, workflow)) / f"{name}.out"
        return path.read_text(errors="replace") if path.exists() else ""

    def results(self, name: str, workflow: str = "TEST") -> list[dict[str, str]]:
        """Rows of a search's results.csv."""
        return results(self.balsam.job_directory(self.row(name, workflow)))


def results(directory: Path) -> list[dict[str, str]]:
    """Rows of results.csv in the directory of a search; none if there is none yet."""
    path = directory / "results.csv"
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))
