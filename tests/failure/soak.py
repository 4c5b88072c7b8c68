"""Searches of several kinds on one site, and whatever can happen to them, for as long as is wanted.

    python -m tests.failure.soak --minutes 10 --seed 1 --agents 4

In rounds: a fresh site, up to three searches, and a random mix of kill -9, SIGSTOP and SIGCONT, restarts and
rivals for launchers, agents, supervisors, searches, trials, keepers, guardians, until all searches have
finished; then the ledger judges. The seed decides the searches and the faults in their order; which moment of
the programs a fault meets, it does not. Exit 1 with a description at the first discrepancy; its directory is
kept. Nothing but the standard library's random decides, so a seed says the same everywhere.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.failure import ledger
from tests.failure.scene import ALONE, Scene
from tests.support import TEST_ID, describe, end_processes, processes_of, wait_until

STALL_S = 150.0
"""No evaluation started or ended for so long: they hang."""
PATIENCE_S = 15.0
LEASE_S = 5.0
KINDS = ("random_search", "ambs")
SINGLE = ("trial", "guardian", *ALONE)
CREW = ("agent", "agent", "supervisor", "node")
OF_LAUNCHER = (
    "killed",
    "killed",
    "killed",
    "killed and left",
    "stopped",
    "told to end",
    "usurped",
    "rivalled",
)


class Discrepancy(AssertionError):
    """What the judge found, or a launcher that does not do as it should."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing to happen."""

    number: int
    after_ends: int
    """So many evaluations end before, if they do so within ``PATIENCE_S``; 0: it may meet a start."""
    after_s: float
    what: str
    """A kind of process, or what befalls the launcher."""
    frozen_s: float
    """0: kill -9; else SIGSTOP for so long, then SIGCONT."""
    victim: random.Random

    def __str__(self) -> str:
        if self.what in OF_LAUNCHER:
            return f"launcher {self.what}"
        return f"{self.what} {f'stopped for {self.frozen_s:.1f} s' if self.frozen_s else 'killed'}"


def faults(seed: str, agents: int) -> Iterator[Fault]:
    """The faults of a round, without end."""
    chance = random.Random(seed)
    number = 0
    while True:
        number += 1
        kinds = SINGLE + (CREW if agents else ())
        what = chance.choice(OF_LAUNCHER) if chance.random() < 0.35 else chance.choice(kinds)
        frozen_s = chance.uniform(0.2, 3.0) if chance.random() < 0.25 and what != "node" else 0.0
        ends, after_s = chance.choice((0, 0, 1, 3, 10)), chance.expovariate(1)
        yield Fault(number, ends, after_s, what, frozen_s, random.Random(f"{seed} {number}"))


@dataclass(slots=True)
class Round:
    """One site from its beginning to the verdict."""

    directory: Path
    number: int
    seed: int
    agents: int
    ends: float
    """Monotonic time after which nothing is broken any more."""
    scenes: list[Scene] = field(default_factory=list)
    flags: tuple[str, ...] = ()
    launcher: subprocess.Popen[bytes] | None = None
    count: int = 0
    last: str = "nothing yet"
    progress: int = -1
    progress_at: float = 0.0
    shown_at: float = 0.0

    def prepare(self) -> None:
        """Choose searches and the launcher's flags."""
        chance = random.Random(f"{self.seed} {self.number} searches")
        for index in range(chance.randint(1, 3)):
            scene = Scene(self.directory, os.environ[TEST_ID], chance.randint(30, 100), name=f"W{index}")
            work_s = chance.choice(["0", "0.3", "1", "3"])
            scene.prepare(
                chance.choice(KINDS), workers=chance.randint(2, 6), seed=chance.randint(0, 999),
                flags="--eval-retries 1000", environ={ledger.WORK_S: work_s},
            )  # fmt: skip
            self.scenes.append(scene)
        nodes = 2 * max(self.agents, 1) + 1 if self.agents else 1
        several = ("--nodes", str(nodes), "--cores-per-node", "4", "--agents", str(self.agents))
        self.flags = ("--consume-all", *(several if self.agents else ()))
        if chance.random() < 0.2:
            self.flags += ("--fresh-interpreter",)
        if self.agents and chance.random() < 0.3:
            self.flags += ("--use-master-node",)

    # -- the life of a round -------------------------------------------------------------------------
    def run(self) -> None:
        """Raises Discrepancy."""
        self.prepare()
        for fault in faults(f"{self.seed} {self.number}", self.agents):
            self.live(min(time.monotonic() + PATIENCE_S, self.ends), self.ended() + fault.after_ends)
            self.live(min(time.monotonic() + fault.after_s, self.ends))
            if self.over() or time.monotonic() >= self.ends:
                break
            self.last, self.count = str(fault), fault.number
            self.happen(fault)
        while not self.over():
            self.live(time.monotonic() + 5)
        self.end()

    def ended(self) -> int:
        """Evaluations that ended."""
        return sum(scene.ended() for scene in self.scenes)

    def live(self, until: float, ends: float = math.inf) -> None:
        """Let it run, until a moment or so many ends of evaluations; and the same command again after every
        end of a launcher, as a user would."""
        while True:
            self.look()
            if self.launcher is not None and self.launcher.poll() is not None:
                self.check_end(self.launcher)
                self.launcher = None
            if self.launcher is None:
                if self.over():
                    return
                self.launcher = self.start()
            left_s = until - time.monotonic()
            if left_s <= 0 or self.ended() >= ends:
                return
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.launcher.wait(min(left_s, 0.2))

    def start(self) -> subprocess.Popen[bytes]:
        """A launcher."""
        return self.scenes[0].launcher(*self.flags)

    def over(self) -> bool:
        """Whether all searches have finished."""
        ended = all(scene.ended() >= scene.max_evals for scene in self.scenes)
        return ended and all(scene.over() for scene in self.scenes)

    def check_end(self, launcher: subprocess.Popen[bytes]) -> None:
        """A launcher ends with 0, by a kill, or because another has its site."""
        code = launcher.returncode
        if code not in (0, 1, 2, -signal.SIGKILL):
            raise Discrepancy(f"a launcher ended with {code}")
        if "Traceback" in self.scenes[0].log() or "--debug" in self.scenes[0].log():
            raise Discrepancy("a launcher failed in a way that it does not know")

    def look(self) -> None:
        """Show how it gets on; Discrepancy if it does not."""
        now = time.monotonic()
        progress = sum(scene.started() + scene.ended() for scene in self.scenes)
        if progress != self.progress:
            self.progress, self.progress_at = progress, now
        elif now - self.progress_at > STALL_S:
            raise Discrepancy(f"nothing has started or ended for {STALL_S:g} s")
        every_s = 1.0 if sys.stdout.isatty() else 15.0
        if now - self.shown_at >= every_s:
            self.shown_at = now
            done, wanted = self.ended(), sum(s.max_evals for s in self.scenes)
            left_s = max(0.0, self.ends - now)
            say(
                f"round {self.number}: {done}/{wanted} ends, {self.count} faults, the last: {self.last}; "
                f"{left_s:.0f} s left", again=True,
            )  # fmt: skip

    # -- what can happen -----------------------------------------------------------------------------
    def happen(self, fault: Fault) -> None:
        """Make it happen."""
        if fault.what in OF_LAUNCHER:
            self.befall(fault)
            return
        scene = self.scenes[0]
        if not fault.frozen_s:
            scene.kill(fault.what, fault.victim)
            return
        victims = sorted(scene.victims(fault.what), key=lambda one: one.pid)
        if victims:
            with frozen(fault.victim.choice(victims)):
                self.live(time.monotonic() + fault.frozen_s)

    def befall(self, fault: Fault) -> None:
        """Something of the launcher's own."""
        launcher, scene = self.launcher, self.scenes[0]
        if launcher is None or launcher.poll() is not None:
            return
        if fault.what == "killed":
            self.launcher = scene.restarted(launcher, *self.flags)
        elif fault.what == "killed and left":
            launcher.kill()
            launcher.wait()
            self.launcher = None
            pause(fault.victim.uniform(0, 4))
        elif fault.what == "stopped":
            with frozen(psutil.Process(launcher.pid)):
                pause(fault.victim.uniform(0.1, LEASE_S / 2))
        elif fault.what == "told to end":
            launcher.send_signal(signal.SIGTERM)
            if launcher.wait(60) not in (0, 1):
                raise Discrepancy(f"told to end, the launcher ended with {launcher.returncode}")
        elif fault.what == "usurped":
            self.usurp(launcher)
        elif fault.what == "rivalled":
            rival = self.start()
            rival.wait(90)
            if rival.returncode != 2 and launcher.poll() is None:
                raise Discrepancy(f"a second launcher was not refused, it ended with {rival.returncode}")

    def usurp(self, launcher: subprocess.Popen[bytes]) -> None:
        """SIGSTOP beyond the lease, another takes over, SIGCONT: the first has to find out and to fail."""
        with frozen(psutil.Process(launcher.pid)):
            pause(LEASE_S + 1)
            second = self.start()
            self.launcher = second
            pause(5)
        with contextlib.suppress(subprocess.TimeoutExpired):
            launcher.wait(90)
        if launcher.poll() is None and second.poll() is None:
            raise Discrepancy("two launchers live on one site")
        if launcher.poll() is None:
            self.launcher = launcher  # it kept the site: the second was too late

    # -- the verdict ---------------------------------------------------------------------------------
    def end(self) -> None:
        """Wait for the last launcher, and judge."""
        if self.launcher is not None:
            try:
                self.launcher.wait(STALL_S)
            except subprocess.TimeoutExpired:
                raise Discrepancy("all is finished, and the launcher does not end") from None
        try:
            again = sum(scene.judge() for scene in self.scenes)
        except AssertionError as error:
            raise Discrepancy(str(error)) from error
        mine = os.environ[TEST_ID]
        try:
            wait_until(lambda: not processes_of(mine), 60, "the processes' end")
        except AssertionError:
            raise Discrepancy(f"processes are left: {describe(processes_of(mine))}") from None
        done = sum(scene.max_evals for scene in self.scenes)
        cut = f"{again} attempts cut short"
        say(f"round {self.number}: {done} evaluations, {self.count} faults, {cut}: all well")


@contextlib.contextmanager
def frozen(process: psutil.Process) -> Iterator[None]:
    """Stopped for a while."""
    with contextlib.suppress(psutil.Error):
        process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        with contextlib.suppress(psutil.Error):
            process.send_signal(signal.SIGCONT)


def pause(seconds: float) -> None:
    """Let the processes alone."""
    begun = time.monotonic()
    wait_until(lambda: time.monotonic() - begun >= seconds, seconds + 10, "a while")


def say(line: str, *, again: bool = False) -> None:
    """A line; on a terminal, one that may be written over."""
    if sys.stdout.isatty():
        print(f"\r\x1b[K{time.strftime('%H:%M:%S')} {line}", end="" if again else "\n", flush=True)
    else:
        print(f"{time.strftime('%H:%M:%S')} {line}", flush=True)


def soak(minutes: float, seed: int, agents: int, directory: Path) -> int:
    """Rounds until the time is up; the number of them. Raises Discrepancy."""
    ends = time.monotonic() + 60 * minutes
    number = 0
    while number == 0 or time.monotonic() < ends:
        number += 1
        place = directory / f"round{number}"
        place.mkdir()
        one = Round(place, number, seed, agents, ends)
        try:
            one.run()
        except BaseException:
            say(f"round {number} of seed {seed} fails after {one.count} faults, the last: {one.last}")
            raise
        finally:
            end_processes(processes_of(os.environ[TEST_ID]))
        shutil.rmtree(place)
    return number


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.failure.soak", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--agents", type=int, default=0, metavar="K", help="agents of their own [default: 0]")
    parser.add_argument("--directory", type=Path, help="where the sites are made [default: a temporary one]")
    options = parser.parse_args()
    directory = Path(tempfile.mkdtemp(prefix="soak", dir=options.directory))
    os.environ[TEST_ID] = os.environ.get(TEST_ID) or uuid.uuid4().hex
    settings = {"LEASE_S": LEASE_S, "HEARTBEAT_S": 1, "GRACE_S": 2, "LOST_LIMIT": 100_000}
    os.environ.update({f"NAS_HPC_{name}": str(value) for name, value in settings.items()})
    say(f"seed {options.seed}, {options.minutes:g} minutes, {options.agents} agents, in {directory}")
    try:
        rounds = soak(options.minutes, options.seed, options.agents, directory)
    except (AssertionError, subprocess.SubprocessError) as error:
        say(f"{type(error).__name__}: {error}")
        log = max(directory.glob("round*/launcher.log"), default=None, key=lambda path: path.stat().st_mtime)
        if log is not None:
            print(f"the end of {log}:\n{log.read_text()[-3000:]}")
        say(f"kept: {directory}")
        return 1
    shutil.rmtree(directory)
    say(f"{rounds} rounds without a discrepancy")
    return 0


if __name__ == "__main__":
    sys.exit(main())
