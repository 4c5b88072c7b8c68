"""Several launchers on one site with PostgreSQL, killed at random and started again until the search is done.

python -m tests.failure.several --launchers 4 --evaluations 5000 --kills 40 --seed 1
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.failure import ledger
from tests.failure.scene import Scene
from tests.peers.postgres import drop_database, new_database
from tests.support import TEST_ID, describe, end_processes, processes_of, wait_until

STALL_S = 150.0
"""No evaluation ended for so long: they hang."""
END_S = 120.0
SETTINGS = {"LEASE_S": "20", "HEARTBEAT_S": "2", "GRACE_S": "2"}
"""Of the launchers."""


@dataclass(slots=True)
class Band:
    """The launchers of one scene, by number."""

    scene: Scene
    flags: Sequence[str] = ("--persistent",)
    launchers: dict[int, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start(self, number: int) -> None:
        """Start one, or another in the place of one that has ended."""
        self.launchers[number] = self.scene.launcher(*self.flags)

    def kill(self, number: int) -> None:
        """kill -9, and the same command again at once."""
        launcher = self.launchers[number]
        launcher.send_signal(signal.SIGKILL)
        launcher.wait()
        self.start(number)

    def check(self) -> None:
        """None has ended by itself."""
        for number, launcher in self.launchers.items():
            code = launcher.poll()
            assert code is None, f"launcher {number} ended with {code}:\n{self.scene.log()[-3000:]}"

    def all_here(self) -> bool:
        """Whether every launcher answers."""
        self.check()
        return {view["pid"] for view in self.views()} == {one.pid for one in self.launchers.values()}

    def views(self) -> list[dict[str, Any]]:
        """Of all launchers that answer."""
        try:
            found: list[dict[str, Any]] = json.loads(self.scene.ask("watch", "--once", "--json"))
        except AssertionError:  # none answers yet
            return []
        return found

    def until(self, ends: int) -> None:
        """Wait until so many evaluations have ended; each has ``STALL_S`` for the next."""
        while (now := self.scene.ended()) < ends:
            wait_until(lambda now=now: self._got_on(now), STALL_S, lambda: self.told("an evaluation's end"))

    def _got_on(self, before: int) -> bool:
        self.check()
        return self.scene.ended() > before

    def told(self, what: str) -> str:
        """``what``, and the end of the log."""
        return f"{what}:\n{self.scene.log()[-3000:]}"

    def end(self) -> None:
        """Wait for the search's end, and end the launchers in order."""
        wait_until(lambda: self.check() or self.scene.over(), STALL_S, lambda: self.told("the search"))
        self.stop()

    def stop(self) -> None:
        """End the launchers in order."""
        wait_until(self.all_here, STALL_S, lambda: self.told("all launchers to have begun"))
        for launcher in self.launchers.values():
            launcher.send_signal(signal.SIGTERM)
        for number, launcher in self.launchers.items():
            code = launcher.wait(END_S)
            assert code == 0, self.told(f"launcher {number} ended with {code}")


def play(
    scene: Scene, launchers: int, kills: int, seed: int, *, flags: Sequence[str] = (), work_s: str = "0"
) -> int:
    """Kill launchers at random moments until all evaluations are done, and judge; attempts cut short."""
    chance = random.Random(seed)
    scene.prepare(
        "random_search", workers=3, seed=seed, environ={ledger.WORK_S: work_s}, flags="--eval-retries 1000"
    )
    band = Band(scene, ("--persistent", *flags))
    for number in range(launchers):
        band.start(number)
    moments = sorted(chance.randint(1, max(1, scene.max_evals - launchers)) for _ in range(kills))
    for moment in moments:
        band.until(moment)
        band.kill(chance.randrange(launchers))
    band.until(scene.max_evals)
    band.end()
    return scene.judge()


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.failure.several", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    for flag, usual in (("launchers", 4), ("evaluations", 5000), ("kills", 40), ("seed", 1)):
        parser.add_argument(f"--{flag}", type=int, default=usual, help=f"[default: {usual}]")
    options = parser.parse_args()
    test_id = os.environ.setdefault(TEST_ID, uuid.uuid4().hex)
    os.environ.update({f"NAS_HPC_{name}": value for name, value in SETTINGS.items()})
    directory = Path(tempfile.mkdtemp(prefix="several"))
    url = new_database()
    print(f"seed {options.seed}, in {directory}", flush=True)
    begun = time.monotonic()
    try:
        scene = Scene(directory, test_id, options.evaluations, database=url)
        cut = play(scene, options.launchers, options.kills, options.seed)
        took_s = time.monotonic() - begun
        wait_until(lambda: not processes_of(test_id), 30, lambda: describe(processes_of(test_id)))
    except BaseException:
        print(f"kept: {directory}", flush=True)
        raise
    finally:
        end_processes(processes_of(test_id))
        drop_database(url)
    shutil.rmtree(directory)
    print(
        f"{options.evaluations} evaluations under {options.launchers} launchers, {options.kills} kills: none "
        f"lost, none finished twice, {cut} attempts cut short, {took_s:.0f} s"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
