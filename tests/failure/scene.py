"""A site with a search on it, and the real processes that run it, to be killed."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.failure import ledger
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
    disk: Path | None = None
    """Where the site is to be, if not beside the ledger."""

    @property
    def site(self) -> Path:
        return (self.disk or self.directory) / "site"

    @property
    def ledger(self) -> Path:
        return self.directory / "ledger"

    @property
    def gate(self) -> Path:
        """As long as it is missing, the evaluations of ``functions.gated`` wait."""
        return self.directory / "gate"

    @property
    def workflow(self) -> Path:
        return self.site / "data" / "KILL"

    def command(self, *arguments: str, code: int = 0) -> str:
        """Run ``nas-hpc`` to its end; its output."""
        done = subprocess.run(
            self._argv(*arguments), **self._how(), capture_output=True, text=True, timeout=60, check=False
        )
        said = f"nas-hpc {' '.join(arguments)} ended with {done.returncode}: {done.stdout}{done.stderr}"
        assert done.returncode == code, said
        return done.stdout + (done.stderr if code else "")

    def prepare(
        self, application: str = "random_search", *, workers: int = 3, seed: int = 1,
        run: str = "tests.failure.ledger.run", flags: str = "", environ: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        """Make the site and the search's job. ``flags`` are the search's; ``environ`` is its evaluations'."""
        self.command("init", str(self.site))
        self.command("app", "--name", "SEARCH", "--exec", f"{sys.executable} -m nas_hpc.apps.{application}")
        variables = {
            ledger.LEDGER: str(self.ledger),
            ledger.GATE: str(self.gate),
            TEST_ID: self.test_id,
            "DEEPHYPER_WORKERS_PER_NODE": str(workers),
            **(environ or {}),
        }
        self.command(
            "job", "--name", "search", "--workflow", "KILL", "--app", "SEARCH",
            *(word for name, value in variables.items() for word in ("--env", f"{name}={value}")),
            "--args", f"--problem nas_hpc.problems.hps.polynome2.Problem --run {run} "
            f"--max-evals {self.max_evals} --seed {seed} {flags}",
        )  # fmt: skip
        self.ledger.touch()

    def launcher(
        self, *flags: str, before: Sequence[str] = (), environ: Mapping[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        """Start a launcher on the workflow, by a command that stands ``before`` it."""
        how = self._how() if environ is None else {**self._how(), "env": dict(environ)}
        with (self.directory / "launcher.log").open("ab") as log:
            return subprocess.Popen(
                [*before, *self._argv("launcher", "--job-mode", "serial", "--wf-filter", "KILL", *flags)],
                **how, stdout=log, stderr=subprocess.STDOUT,
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

    def started(self) -> int:
        """Attempts of which the ledger has a start."""
        return self.ledger.read_text().count("start ")

    def log(self) -> str:
        """What the launchers printed."""
        return (self.directory / "launcher.log").read_text()

    def finish(self, *flags: str, timeout_s: float = 60) -> None:
        """Run launchers, as a user would the same command, until the search is done."""
        for _ in range(3):
            launcher = self.launcher(*flags)
            code = launcher.wait(timeout_s)
            if code == 0 and "JOB_FINISHED" in self.command("ls", "jobs", "--name", "search"):
                return
        raise AssertionError(f"the search does not end:\n{self.log()[-3000:]}")

    def judge(self) -> int:
        """Assert by ledger, directories, results.csv, attempts.jsonl and database that nothing was lost and
        nothing finished ran again; how many attempts were cut short."""
        ledger.judge_store(self.site, self.max_evals)
        return ledger.judge(self.ledger, self.workflow, self.max_evals)

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
