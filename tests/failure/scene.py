"""A site with a search on it, and the real processes that run it, to be killed."""

from __future__ import annotations

import contextlib
import io
import os
import random
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import psutil

from nas_hpc.cli.main import main
from tests.failure import ledger
from tests.support import TEST_ID, end_processes, processes_of, wait_until

REPOSITORY = Path(__file__).resolve().parents[2]
_OF_JOB = re.compile(r"import nas_hpc\.processes\.rank(_call)? as")
"""Not the trial of the MPI program with two ranks."""


def is_program(words: str, *names: str) -> bool:
    """Whether a command line begins with one of these programs."""
    return Path(words.partition(" ")[0]).name in names


def is_of_rank(words: str) -> bool:
    """Whether a command line is that of a rank of a job, or of the MPI program that starts it."""
    return _OF_JOB.search(words) is not None


VICTIMS: dict[str, Callable[[str], bool]] = {
    "launcher": lambda words: " -m nas_hpc.cli " in words and " launcher " in words,
    "search": lambda words: " -m nas_hpc.apps." in words,
    "warm interpreter": lambda words: "nas_hpc.processes.keeper" in words and " -I " not in words,
    "starter": lambda words: "nas_hpc.processes.keeper" in words and " -I " in words,
    "agent": lambda words: "nas_hpc.launcher.node_agent" in words,
    "supervisor": lambda words: "nas_hpc.processes.supervisor" in words,
    "guardian": lambda words: "nas_hpc.processes.guardian" in words,
    "mpiexec": lambda words: is_of_rank(words) and is_program(words, "mpiexec", "mpirun", "prterun"),
    "proxy": lambda words: is_program(words, "hydra_pmi_proxy", "prted"),
    "rank": lambda words: is_of_rank(words) and not is_program(words, "mpiexec", "mpirun", "prterun"),
}
"""How a process is recognised by its command line."""
ALONE = ("search", "warm interpreter", "starter")
"""What a launcher that does all itself has."""


@dataclass(frozen=True, slots=True)
class Scene:
    """One workflow of one site."""

    directory: Path
    test_id: str
    max_evals: int
    disk: Path | None = None
    """Where the site is to be, if not beside the ledger."""
    database: str = ""
    """URL of a PostgreSQL database; empty: SQLite."""
    name: str = "KILL"
    """Of the workflow; several scenes of one directory are several searches of one site."""

    @property
    def site(self) -> Path:
        return (self.disk or self.directory) / "site"

    @property
    def ledger(self) -> Path:
        return self.directory / f"ledger-{self.name}"

    @property
    def gate(self) -> Path:
        """As long as it is missing, the evaluations of ``functions.gated`` wait."""
        return self.directory / "gate"

    @property
    def workflow(self) -> Path:
        return self.site / "data" / self.name

    def command(self, *arguments: str, code: int = 0) -> str:
        """Run a command of ``nas-hpc`` in this process; its output. A process takes half a second of a
        processor to begin."""
        out, err, before = io.StringIO(), io.StringIO(), Path.cwd()
        os.chdir(self.directory)
        try:
            with (
                mock.patch.dict(os.environ, PYTHONPATH=str(REPOSITORY)),
                contextlib.redirect_stdout(out),
                contextlib.redirect_stderr(err),
            ):
                got = main(self._words(*arguments))
        finally:
            os.chdir(before)
        said = f"nas-hpc {' '.join(arguments)} ended with {got}: {out.getvalue()}{err.getvalue()}"
        assert got == code, said
        return out.getvalue() + (err.getvalue() if code else "")

    def ask(self, *arguments: str) -> str:
        """The same in a process of its own, as what looks again and again does: it leaves launchers time."""
        done = subprocess.run(
            self.argv(*arguments), **self._how(), capture_output=True, text=True, timeout=120, check=False
        )
        said = f"nas-hpc {' '.join(arguments)} ended with {done.returncode}: {done.stdout}{done.stderr}"
        assert done.returncode == 0, said
        return done.stdout

    def prepare(
        self, application: str = "random_search", *, workers: int = 3, seed: int = 1,
        run: str = "tests.failure.ledger.run", flags: str = "", environ: Mapping[str, str] | None = None,
        job_flags: Sequence[str] = (),
    ) -> None:  # fmt: skip
        """Make the search's job, and the site. ``flags`` are the search's, ``environ`` its evaluations'."""
        if not self.site.exists():
            where = ("--database", self.database) if self.database else ()
            self.command("init", str(self.site), *where)
        program = f"{sys.executable} -m nas_hpc.apps.{application}"
        self.command("app", "--name", f"{application}-{self.name}", "--exec", program)
        variables = {
            ledger.LEDGER: str(self.ledger),
            ledger.GATE: str(self.gate),
            TEST_ID: self.test_id,
            "DEEPHYPER_WORKERS_PER_NODE": str(workers),
            **(environ or {}),
        }
        self.command(
            "job", "--name", "search", "--workflow", self.name, "--app", f"{application}-{self.name}",
            *job_flags, *(word for name, value in variables.items() for word in ("--env", f"{name}={value}")),
            "--args", f"--problem nas_hpc.problems.hps.polynome2.Problem --run {run} "
            f"--max-evals {self.max_evals} --seed {seed} {flags}",
        )  # fmt: skip
        self.ledger.touch()

    def launcher(
        self, *flags: str, before: Sequence[str] = (), environ: Mapping[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        """Start a launcher on the workflow (with ``--consume-all`` on all), by a command ``before`` it."""
        which = () if "--consume-all" in flags else ("--wf-filter", self.name)
        how = self._how() if environ is None else {**self._how(), "env": dict(environ)}
        with (self.directory / "launcher.log").open("ab") as log:
            return subprocess.Popen(
                [*before, *self.argv("launcher", "--job-mode", "serial", *which, *flags)],
                **how, stdout=log, stderr=subprocess.STDOUT,
            )  # fmt: skip

    def victims(self, kind: str) -> list[psutil.Process]:
        """Live processes of a kind. A fork of one looks like it, but is an evaluation: a "trial"."""
        look = "warm interpreter" if kind == "trial" else kind
        found = {}
        for process in self._starters() if kind == "starter" else processes_of(self.test_id):
            with contextlib.suppress(psutil.Error):
                if VICTIMS[look](" ".join(process.cmdline())):
                    found[process.pid] = process.ppid()
        return [
            psutil.Process(pid) for pid, parent in found.items() if (parent in found) is (kind == "trial")
        ]

    def _starters(self) -> list[psutil.Process]:
        """What launchers and agents have started themselves: a starter's environment tells of no test."""
        found = []
        for process in (*self.victims("launcher"), *self.victims("agent")):
            with contextlib.suppress(psutil.Error):
                found += process.children()
        return found

    def kill(self, kind: str, chance: random.Random) -> bool:
        """kill -9 of one process of a kind, or of a "node": a supervisor and all below it. Whether there was
        one."""
        victims = sorted(self.victims("supervisor" if kind == "node" else kind), key=lambda one: one.pid)
        if not victims:
            return False
        victim = chance.choice(victims)
        with contextlib.suppress(psutil.Error):
            if kind == "node":
                end_tree(victim)
            else:
                victim.send_signal(signal.SIGKILL)
        return True

    def ended(self) -> int:
        """Evaluations of which the ledger has an end."""
        return self.ledger.read_text().count("end ")

    def started(self) -> int:
        """Attempts of which the ledger has a start."""
        return self.ledger.read_text().count("start ")

    def log(self) -> str:
        """What the launchers printed."""
        path = self.directory / "launcher.log"
        return path.read_text() if path.exists() else ""

    def finish(self, *flags: str, timeout_s: float = 60) -> None:
        """Run launchers, as a user would the same command, until the search is done."""
        for _ in range(3):
            launcher = self.launcher(*flags)
            code = launcher.wait(timeout_s)
            if code == 0 and self.over():
                return
        raise AssertionError(f"the search does not end:\n{self.log()[-3000:]}")

    def over(self) -> bool:
        """Whether the search has finished."""
        listed = self.ask("ls", "jobs", "--name", "search", "--workflow", self.name)
        return "JOB_FINISHED" in listed

    def judge(self, *, files: bool = True) -> int:
        """Assert by ledger, directories, results.csv, attempts.jsonl and database that nothing was lost and
        nothing finished ran again; how many attempts were cut short. Without ``files``: results on disk may
        be missing, because there was a time when none could be written."""
        last = ledger.judge_store(self.site, self.name, self.max_evals)
        if files:
            return ledger.judge(self.ledger, self.workflow, self.max_evals)
        ledger.judge_rows(self.workflow, self.max_evals)
        return ledger.judge_starts(self.ledger, last)

    def kill_all_of(self, launcher: subprocess.Popen[bytes]) -> None:
        """kill -9 of the launcher, and the wait until its guardian has ended the rest."""
        launcher.send_signal(signal.SIGKILL)
        launcher.wait()
        wait_until(lambda: not processes_of(self.test_id), 60, "the guardian to end everything")

    def restarted(self, launcher: subprocess.Popen[bytes], *flags: str) -> subprocess.Popen[bytes]:
        """kill -9 of the launcher, and the same command again at once."""
        launcher.send_signal(signal.SIGKILL)
        launcher.wait()
        return self.launcher(*flags)

    def argv(self, *arguments: str) -> list[str]:
        """The argv of a command of ``nas-hpc`` on the site."""
        return [sys.executable, "-m", "nas_hpc.cli", *self._words(*arguments)]

    def _words(self, *arguments: str) -> list[str]:
        site = [] if arguments[0] == "init" else ["--site", str(self.site)]
        return [*site, *arguments]

    def _how(self) -> dict[str, object]:
        environ = {**os.environ, "PYTHONPATH": str(REPOSITORY), TEST_ID: self.test_id}
        return {"cwd": self.directory, "env": environ, "stdin": subprocess.DEVNULL}


def end_tree(root: psutil.Process) -> None:
    """kill -9 of a process and all below it, of which none gets to react to the end of another."""
    stopped: dict[int, psutil.Process] = {}
    fresh = [root]
    while fresh:
        for process in fresh:
            with contextlib.suppress(psutil.Error):
                process.send_signal(signal.SIGSTOP)
            stopped[process.pid] = process
        fresh = []
        for process in list(stopped.values()):
            with contextlib.suppress(psutil.Error):
                fresh += [child for child in process.children() if child.pid not in stopped]
    end_processes(list(stopped.values()))
