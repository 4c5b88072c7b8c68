"""kill -9 of the launcher → what it lost runs again: ``python -m benchmarks.recovery --kills 5``.

A random search on polynome2 whose evaluations sleep. When all slots are busy the launcher is killed, in some
cases together with agents, and the same command is given again at once. Everything is measured from there.
Cases:

serial   one host, no agents: all that ran is lost
agents   --agents K, the launcher alone is killed: nothing is lost
agent    --agents K, and one agent with the launcher: what that ran is lost
node     --agents K, and one agent with its supervisor and all below them
mpi      mpi mode, evaluations of two ranks on virtual nodes, under --mpi or the MPI program that is found

Keys: CASE_next_p50_s, the median over the kills of the first start of any evaluation; CASE_again_p50_s and
CASE_again_max_s, the new start of the last one of those that were cut short, over the kills that cut any
short; CASE_lost, how many were cut short altogether.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from benchmarks import noted
from benchmarks.common import command, environment, percentile, show, workplace

CASES = ("serial", "agents", "agent", "node", "mpi")
PATIENCE_S = 60.0
POLL_S = 0.01
Key = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Options:
    """What is measured."""

    kills: int
    agents: int
    seconds: float
    mpi: str
    seed: int


@dataclass(slots=True)
class Bed:
    """A site with its search and its launcher."""

    place: Path
    case: str
    options: Options
    chance: random.Random
    launcher: psutil.Popen | None = None
    again_s: list[float] = field(default_factory=list)
    next_s: list[float] = field(default_factory=list)
    lost: int = 0

    @property
    def site(self) -> Path:
        return self.place / "site"

    @property
    def notes(self) -> Path:
        return self.place / "notes"

    @property
    def flags(self) -> tuple[str, ...]:
        """The launcher's."""
        options = self.options
        if self.case == "serial":
            return ("--job-mode", "serial")
        if self.case == "mpi":
            return ("--job-mode", "mpi", "--nodes", "4", *(("--mpi", options.mpi) if options.mpi else ()))
        count = str(options.agents)
        several = ("--nodes", str(options.agents + 1), "--cores-per-node", "2")
        return ("--job-mode", "serial", "--agents", count, *several)

    def slots(self) -> int:
        """Evaluations that may run at a time, as the launchers said; more than there are before they do."""
        try:
            lines = (self.site / "data" / "bench" / "launchers.jsonl").read_text().splitlines()
        except FileNotFoundError:
            return 1 << 30
        return max((json.loads(line)["slots"] for line in lines), default=0) or 1 << 30

    def prepare(self) -> None:
        """The site and the search."""
        command("init", str(self.site), cwd=self.place)
        flags = ["--site", str(self.site)]
        search = f"{sys.executable} -m nas_hpc.apps.random_search"
        command(*flags, "app", "--name", "RANDOM", "--exec", search, cwd=self.place)
        workers = 3 if self.case == "serial" else 2
        variables = {
            noted.NOTES: self.notes,
            noted.SECONDS: self.options.seconds,
            "DEEPHYPER_WORKERS_PER_NODE": workers,
        }
        ranks = "--ranks-per-node 2" if self.case == "mpi" else ""
        command(
            *flags, "job", "--name", "search", "--workflow", "bench", "--app", "RANDOM",
            *(word for name, value in variables.items() for word in ("--env", f"{name}={value}")),
            "--args", "--problem nas_hpc.problems.hps.polynome2.Problem --run benchmarks.noted.run "
            f"--max-evals 100000 --seed {self.options.seed} {ranks}", cwd=self.place,
        )  # fmt: skip
        self.notes.touch()

    def start(self) -> float:
        """Start the launcher; when, UTC."""
        with (self.place / "launcher.log").open("ab") as log:
            begun = time.time()
            self.launcher = psutil.Popen(
                [sys.executable, "-m", "nas_hpc.cli", "--site", str(self.site), "launcher", *self.flags],
                cwd=self.place, env=environment(), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        return begun

    def end(self) -> None:
        """Stop what runs, in order."""
        if self.launcher is not None and self.launcher.poll() is None:
            self.launcher.terminate()
            self.launcher.wait(60)

    # -- what the evaluations noted ------------------------------------------------------------------
    def read(self) -> tuple[dict[Key, float], set[Key]]:
        """The starts and the ends, by (job, attempt)."""
        started: dict[Key, float] = {}
        ended: set[Key] = set()
        for line in self.notes.read_text().splitlines():
            what, job, attempt, moment = line.split()
            if what == "start":
                started[job, int(attempt)] = float(moment)
            else:
                ended.add((job, int(attempt)))
        return started, ended

    def wait(self, predicate: Callable[[dict[Key, float], set[Key]], bool], what: str) -> None:
        """Until it is true of the notes."""
        until = time.monotonic() + PATIENCE_S
        while not predicate(*self.read()):
            if time.monotonic() > until:
                log = (self.place / "launcher.log").read_text()[-3000:]
                raise SystemExit(f"{self.case}: {what} did not come within {PATIENCE_S:g} s:\n{log}")
            time.sleep(POLL_S)

    # -- one kill ------------------------------------------------------------------------------------
    def kill(self) -> None:
        """All slots busy, kill -9, the same command again, and the wait for what was lost."""
        assert self.launcher is not None
        since = time.time()

        def busy(started: dict[Key, float], ended: set[Key]) -> bool:
            newest = {job: number for job, number in started}
            running = [key for key in started if key not in ended and newest[key[0]] == key[1]]
            return len(running) >= self.slots() and max(started.values()) > since

        self.wait(busy, "an evaluation in every slot")
        time.sleep(self.chance.uniform(0, self.options.seconds / 2))
        victims = self.victims()
        before, _ = self.read()
        self.launcher.send_signal(signal.SIGKILL)
        for victim in victims:
            with contextlib.suppress(psutil.Error):
                victim.send_signal(signal.SIGKILL)
        self.launcher.wait()
        begun = self.start()

        def over(started: dict[Key, float], ended: set[Key]) -> bool:
            newest = {job: number for job, number in started}
            settled = all(key in ended or newest[key[0]] > key[1] for key in before)
            return settled and any(moment > begun for moment in started.values())

        self.wait(over, "the new starts")
        started, ended = self.read()
        cut = [key for key in before if key not in ended and (key[0], key[1] + 1) not in before]
        again = [started[job, number + 1] - begun for job, number in cut]
        fresh = min(moment for moment in started.values() if moment > begun) - begun
        self.lost += len(again)
        self.next_s.append(fresh)
        self.again_s += [max(again)] if again else []  # else only the search was cut short, or nothing

    def victims(self) -> Sequence[psutil.Process]:
        """Who is killed with the launcher, leaders first."""
        if self.case not in ("agent", "node"):
            return ()
        of = "launcher.node_agent" if self.case == "agent" else "processes.supervisor"
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                line = process.cmdline()
                if any(f"nas_hpc.{of}" in part for part in line) and str(self.site) in line:
                    found.append(process)
        first = self.chance.choice(sorted(found, key=lambda one: one.pid))
        return [first] if self.case == "agent" else [first, *first.children(recursive=True)]


def measure(case: str, options: Options) -> dict[str, Any]:
    """The figures of one case."""
    with workplace() as place:
        bed = Bed(place, case, options, random.Random(options.seed))
        bed.prepare()
        bed.start()
        try:
            for _ in range(options.kills):
                bed.kill()
        finally:
            bed.end()
    figures: dict[str, Any] = {f"{case}_next_p50_s": percentile(bed.next_s, 0.5)}
    if bed.again_s:
        figures |= {
            f"{case}_again_p50_s": percentile(bed.again_s, 0.5),
            f"{case}_again_max_s": max(bed.again_s),
        }
    return {**figures, f"{case}_lost": bed.lost}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--kills", type=int, default=5, help="in each case")
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--agents", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=2.0, help="how long an evaluation takes")
    parser.add_argument(
        "--mpi", default="", help="the MPI program [default: the one that the launcher finds]"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    flags = parser.parse_args()
    os.environ.pop("NAS_HPC_SITE", None)
    options = Options(flags.kills, flags.agents, flags.seconds, flags.mpi, flags.seed)
    figures: dict[str, Any] = {}
    for case in filter(None, flags.cases.split(",")):
        if case not in CASES:
            parser.error(f"--cases {case!r}: there is no such case; there are {', '.join(CASES)}")
        figures |= measure(case, options)
    show(figures, flags.json)


if __name__ == "__main__":
    main()
