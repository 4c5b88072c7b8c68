"""A search on virtual nodes that agents of their own serve, and the real processes of it, to be killed.

Its evaluations write to the outside ledger of ``tests.failure.ledger`` and end when the test lets them.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from nas_hpc.processes import sessions
from tests.failure.ledger import LEDGER, note
from tests.launcher.bench import REPOSITORY, Bench
from tests.support import TEST_ID, processes_of, wait_until

GATE = "GATE"
"""A file: while it is there, evaluations end at once; else they wait for it."""
PROBLEM = "nas_hpc.problems.hps.polynome2.Problem"


def run(config: dict[str, Any]) -> float:
    """The run function under test."""
    note("start")
    gate = Path(os.environ[GATE])
    while not gate.exists():
        time.sleep(0.01)
    time.sleep(0.05)
    note("end")
    return -float(sum(value * value for value in config.values()))


@dataclass
class Field:
    """One workflow of one site, and the launchers that the test starts on it."""

    bench: Bench
    max_evals: int = 30
    workers: int = 2
    launchers: list[subprocess.Popen[str]] = field(default_factory=list)
    program: tuple[str, ...] = ("-m", "nas_hpc.cli")
    flags: tuple[str, ...] = ("--nodes", "4", "--cores-per-node", "4", "--agents", "2", "--use-master-node")

    def prepare(self) -> None:
        """Add the search, unless it is there."""
        if self.ledger.exists():
            return
        self.bench.searches()
        self.ledger.touch()
        self.bench.job(
            "search", "RAN", "--env", f"{LEDGER}={self.ledger}", "--env", f"{GATE}={self.gate}",
            "--env", f"DEEPHYPER_WORKERS_PER_NODE={self.workers}",
            args=f"--problem {PROBLEM} --run tests.launcher.ensembles.run --evaluator balsam "
            f"--max-evals {self.max_evals} --seed 1",
        )  # fmt: skip

    @property
    def site(self) -> Path:
        return self.bench.site

    @property
    def ledger(self) -> Path:
        return self.bench.directory / "ledger"

    @property
    def gate(self) -> Path:
        return self.bench.directory / "gate"

    @property
    def workflow(self) -> Path:
        return self.site / "data" / "W"

    @property
    def record(self) -> Path:
        return self.site / "run" / "ensemble.json"

    # -- launchers -----------------------------------------------------------------------------------
    def launch(self, *more: str) -> subprocess.Popen[str]:
        """Start a launcher; what it prints goes to a file."""
        self.prepare()
        argv = [sys.executable, *self.program, "--site", str(self.site), "launcher"]
        environ = {**os.environ, "PYTHONPATH": str(REPOSITORY), TEST_ID: self.bench.test_id}
        with self.log.open("a") as log:
            launcher = subprocess.Popen(
                [*argv, "--job-mode", "serial", *self.flags, *more], cwd=REPOSITORY, env=environ,
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, text=True,
            )  # fmt: skip
        self.launchers.append(launcher)
        return launcher

    @property
    def log(self) -> Path:
        return self.bench.directory / "launcher.log"

    def said(self) -> str:
        """What all launchers printed."""
        return self.log.read_text() if self.log.exists() else ""

    def begun(self, running: int = 4) -> subprocess.Popen[str]:
        """A launcher under which so many evaluations wait for the gate."""
        launcher = self.launch()
        self.until_started(running)
        return launcher

    def until_started(self, count: int) -> None:
        """Wait until the ledger has so many starts."""
        wait_until(
            lambda: self.count("start") >= count, 60, f"{count} starts; launcher: {self.said()[-2000:]}"
        )

    def count(self, what: str) -> int:
        """Lines "start" or "end" of the ledger."""
        return self.ledger.read_text().count(f"{what} ")

    def open(self) -> None:
        """Let evaluations end."""
        self.gate.touch()

    def finish(self, launcher: subprocess.Popen[str], code: int = 0) -> None:
        """Let everything come to its end."""
        self.open()
        assert launcher.wait(90) == code, self.said()[-3000:]

    # -- processes -----------------------------------------------------------------------------------
    def agents(self) -> dict[int, int]:
        """Pids of the living agents, by number."""
        found = {}
        for log in (self.site / "run").glob("agent-*.sessions"):
            for one in sessions.read_log(log).values():
                if one.kind == "agent" and sessions.is_alive(one.pid, one.start_ticks):
                    found[int(one.name)] = one.pid
        return found

    def supervisors(self) -> dict[int, int]:
        """Pids of the recorded supervisors, by the number of their first agent."""
        processes = self.recorded().get("processes", ())
        return {one["numbers"][0]: one["pid"] for one in processes}

    def recorded(self) -> dict[str, Any]:
        """ensemble.json; empty if there is none."""
        try:
            body: dict[str, Any] = json.loads(self.record.read_text())
        except (OSError, ValueError):
            return {}
        return body

    def abandon(self) -> None:
        """At a test's end, however it came: nothing of this is to be left."""
        for launcher in self.launchers:
            if launcher.poll() is None:
                launcher.kill()
                launcher.wait()
        for pid in (*self.supervisors().values(), *self.agents().values()):
            kill(pid)

    def nodes(self) -> list[dict[str, Any]]:
        """What ``ls nodes`` says; nothing while no launcher answers."""
        with contextlib.suppress(AssertionError):
            found: list[dict[str, Any]] = json.loads(self.bench.nas("ls", "nodes", "--json"))
            return found
        return []

    def evaluations(self) -> list[int]:
        """Pids of the processes in which evaluations wait."""
        marks = (f"{GATE}={self.gate}".encode(), b"NAS_HPC_JOB_ID=")
        found = []
        for process in processes_of(self.bench.test_id):
            with contextlib.suppress(OSError, psutil.Error):
                environ = Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0")
                if marks[0] in environ:
                    found.append(process.pid)
        return found


def kill(pid: int) -> None:
    """kill -9, and the wait until it is gone."""
    with contextlib.suppress(ProcessLookupError, psutil.NoSuchProcess):  # gone, or not reaped yet
        process = psutil.Process(pid)
        os.kill(pid, signal.SIGKILL)
        wait_until(
            lambda: not process.is_running() or process.status() == psutil.STATUS_ZOMBIE, 60, "the kill"
        )
