"""Eight agents and the launcher over them, killed twenty times each: nothing is lost, nothing runs twice.

How soon a lost evaluation runs again is printed, not asserted: a busy machine takes its time.
"""

from __future__ import annotations

import random
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.failure import ledger
from tests.failure.scene import Scene
from tests.support import wait_until

EVALUATIONS = 500
KILLS = 20
FLAGS = ("--nodes", "9", "--cores-per-node", "2", "--agents", "8")


def delays(scene: Scene, kills: Sequence[float]) -> str:
    """How long after the last of ``kills`` each second or later attempt started."""
    found = []
    for (_, attempt), began in ledger.read(scene.ledger).began.items():
        before = [kill for kill in kills if kill < began]
        if attempt > 1 and before:
            found.append(began - before[-1])
    found.sort()
    if not found:
        return "nothing ran again"
    median, longest = found[len(found) // 2], found[-1]
    return f"{len(found)} ran again after a kill: {median:.2f} s (median), {longest:.2f} s (longest)"


def next_moment(scene: Scene, chance: random.Random) -> None:
    """Wait for the moment of the next kill: mostly after some progress, sometimes before there is any."""
    if chance.random() < 0.7:
        until = min(scene.ended() + chance.randint(1, 25), EVALUATIONS - 20)
        wait_until(lambda: scene.ended() >= until, 90, lambda: f"{until} ends: {scene.log()[-3000:]}")
    pause_s, begun = chance.uniform(0, 1), time.monotonic()
    wait_until(lambda: time.monotonic() - begun >= pause_s, 60, "a while")


def begun(tmp_path: Path, test_id: str, seed: int) -> tuple[Scene, subprocess.Popen[bytes]]:
    """500 evaluations of which 15 run at a time, so that they last longer than the kills."""
    print(f"seed {seed}")
    scene = Scene(tmp_path, test_id, EVALUATIONS)
    scene.prepare(workers=2, seed=seed, environ={ledger.WORK_S: "0.8"})
    launcher = scene.launcher(*FLAGS)
    wait_until(lambda: scene.ended() >= 10, 60, lambda: f"the first evaluations: {scene.log()}")
    return scene, launcher


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_the_launcher_of_eight_agents_is_killed_twenty_times(
    crew_seed: int, tmp_path: Path, test_id: str
) -> None:
    chance = random.Random(crew_seed)
    scene, launcher = begun(tmp_path, test_id, crew_seed)
    kills = []
    for _ in range(KILLS):
        next_moment(scene, chance)
        assert launcher.poll() is None, scene.log()[-3000:]
        print(f"after {scene.ended()} ends: kill -9 of the launcher")
        kills.append(time.time())
        launcher = scene.restarted(launcher, *FLAGS)
    assert launcher.wait(200) == 0, scene.log()[-3000:]
    print(delays(scene, kills))
    assert scene.judge() == 0, "agents go on with what they run"


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_of_eight_agents_one_is_killed_twenty_times(crew_seed: int, tmp_path: Path, test_id: str) -> None:
    chance = random.Random(crew_seed)
    scene, launcher = begun(tmp_path, test_id, crew_seed)
    kills = []
    for _ in range(KILLS):
        next_moment(scene, chance)
        kind = chance.choice(["agent", "agent", "supervisor", "node", "starter", "warm interpreter"])
        print(f"after {scene.ended()} ends: kill -9 of a {kind}")
        kills.append(time.time())
        scene.kill(kind, chance)
    assert launcher.wait(200) == 0, scene.log()[-3000:]
    print(delays(scene, kills))
    cut_short = scene.judge()
    assert cut_short <= 4 * KILLS, "a kill costs no more than what ran on its node"


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_launcher_and_agents_die_together_and_the_lost_ones_run_again(
    crew_seed: int, tmp_path: Path, test_id: str
) -> None:
    chance = random.Random(crew_seed)
    scene, launcher = begun(tmp_path, test_id, crew_seed)
    restarts = []
    for _ in range(KILLS // 2):
        next_moment(scene, chance)
        kinds = chance.choices(["agent", "supervisor", "node", "search"], k=chance.randint(1, 4))
        print(f"after {scene.ended()} ends: kill -9 of the launcher and of {', '.join(kinds)}")
        launcher.send_signal(signal.SIGKILL)
        for kind in kinds:
            scene.kill(kind, chance)
        launcher.wait()
        restarts.append(time.time())
        launcher = scene.launcher(*FLAGS)
    assert launcher.wait(200) == 0, scene.log()[-3000:]
    print(delays(scene, restarts))
    scene.judge()
