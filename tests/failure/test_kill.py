"""kill -9 of everything at random moments, the same command again: nothing lost, nothing finished runs twice.

Judged by an outside ledger. Each seed is printed; more of them: pytest tests/failure --kill-seeds 100:150
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.failure.scene import ALONE, Scene
from tests.support import wait_until

EVALUATIONS = 60
KILLS = 5
DIRECTORIES = ("each", "failed", "packed")


@pytest.mark.slow
def test_killed_at_random_moments_nothing_is_lost_and_nothing_runs_twice(
    kill_seed: int, tmp_path: Path, test_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    print(f"seed {kill_seed}")
    monkeypatch.setenv("NAS_HPC_TASK_DIRECTORIES", DIRECTORIES[kill_seed % len(DIRECTORIES)])
    chance = random.Random(kill_seed)
    scene = Scene(tmp_path, test_id, EVALUATIONS)
    scene.prepare(chance.choice(["random_search", "ambs"]), seed=kill_seed)
    launcher = scene.launcher()
    for _ in range(KILLS):
        until = min(scene.ended() + chance.randint(1, 9), EVALUATIONS)
        wait_until(lambda: scene.ended() >= until or launcher.poll() is not None, 60, f"{until} ends")  # noqa: B023
        kind = chance.choice(["launcher", *ALONE])
        print(f"after {scene.ended()} ends: kill -9 of the {kind}")
        if kind != "launcher":
            scene.kill(kind, chance)
        if kind == "launcher" or launcher.poll() is not None:
            scene.kill_all_of(launcher)
            launcher = scene.launcher()
    launcher.wait(90)
    scene.finish()
    cut_short = scene.judge()
    assert cut_short <= 3 * KILLS, "a kill costs no more than the evaluations that were running"
