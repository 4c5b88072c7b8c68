"""A site with a search on it, and the real processes that run it, to be killed."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.support import TEST_ID, processes_of, wait_until

REPOSITORY = Path(__file__).resolve().parents[2]
KEEPER = "nas_hpc.processes.keeper"
VICTIMS: dict[str, Callable[[list[str]], bool]] = {
    "search": lambda argv: any(word.startswith("nas_hpc.apps.") for word in argv),
    "warm interpreter": lambda argv: KEEPER in " ".join(argv) and "-I" not in argv,
    "agent": lambda argv: KEEPER in " ".join(argv) and "-I" in argv,
}
"""How a process is recognised by its command line."""


@dataclass(frozen=True, slots=True)
class Scene:
    """One workflow of one site."""

    directory: Path
    test_id: str
    max_evals: int

    @property
    def site(self) -> Path:
        return self.directory / "site"

    @property
    def ledger(self) -> Path:
        return self.directory / "ledger"

    @property
    def workflow(self) -> Path:
        return self.site / "data" / "KILL"

    def command(self, *arguments: str) -> str:
        """Run ``nas-hpc`` to its end; its output."""
        done = subprocess.run(
            self._argv(*arguments), **self._how(), capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"nas-hpc {' '.join(arguments)}: {done.stdout}{done.stderr}"
        return done.stdout

    def prepare(self, application: str = "random_search", *, workers: int = 3, seed: int = 1) -> None:
        """Make the site and the search's job."""
        self.command("init", str(self.site))
        self.command("app", "--name", "SEARCH", "--exec", f"{sys.executable} -m nas_hpc.apps.{application}")
        self.command(
            "job", "--name", "search", "--workflow", "KILL", "--app", "SEARCH",
            "--env", f"LEDGER={self.ledger}", "--env", f"{TEST_ID}={self.test_id}",
            "--env", f"DEEPHYPER_WORKERS_PER_NODE={workers}",
            "--args", "--problem nas_hpc.problems.hps.polynome2.Problem --run tests.failure.ledger.run "
            f"--max-evals {self.max_evals} --seed {seed}",
        )  # fmt: skip
        self.ledger.touch()

    def launcher(self, *flags: str) -> subprocess.Popen[bytes]:
        """Start a launcher on the workflow."""
        with (self.directory / "launcher.log").open("ab") as log:
            return subprocess.Popen(
                self._argv("launcher", "--job-mode", "serial", "--wf-filter", "KILL", *flags),
                **self._how(), stdout=log, stderr=subprocess.STDOUT,
            )  # fmt: skip

    def victims(self, kind: str) -> list[psutil.Process]:
        """Live processes of a kind. A child forked from one looks like it, but is an evaluation."""
        found = {}
        for process in processes_of(self.test_id):
            with contextlib.suppress(psutil.Error):
                if VICTIMS[kind](process.cmdline()):
                    found[process.pid] = process.ppid()
        return [psutil.Process(pid) for pid, parent in found.items() if parent not in found]

    def ended(self) -> int:
        """Evaluations of which the ledger has an end."""
        return self.ledger.read_text().count("end ")

    def log(self) -> str:
        """What the launchers printed."""
        return (self.directory / "launcher.log").read_text()

    def finish(self, timeout_s: float = 60) -> None:
        """Run launchers, as a user would the same command, until the search is done."""
        for _ in range(3):
            launcher = self.launcher()
            code = launcher.wait(timeout_s)
            if code == 0 and "JOB_FINISHED" in self.command("ls", "jobs", "--name", "search"):
                return
        raise AssertionError(f"the search does not end:\n{self.log()[-3000:]}")

    def kill_all_of(self, launcher: subprocess.Popen[bytes]) -> None:
        """kill -9 of the launcher, and the wait until its guardian has ended the rest."""
        launcher.send_signal(signal.SIGKILL)
        launcher.wait()
        wait_until(lambda: not processes_of(self.test_id), 10, "the guardian to end everything")

    def _argv(self, *arguments: str) -> list[str]:
        site = [] if arguments[0] == "init" else ["--site", str(self.site)]
        return [sys.executable, "-m", "nas_hpc.cli", *site, *arguments]

    def _how(self) -> dict[str, object]:
        environ = {**os.environ, "PYTHONPATH": str(REPOSITORY), TEST_ID: self.test_id}
        return {"cwd": self.directory, "env": environ, "stdin": subprocess.DEVNULL}
