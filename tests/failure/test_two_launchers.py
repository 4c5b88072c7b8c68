"""Several launchers on one site: one has it, the others say who and leave everything as it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.failure.scene import Scene
from tests.support import wait_until

EVALUATIONS = 40


@pytest.mark.slow
@pytest.mark.parametrize("flags", [(), ("--nodes", "3", "--agents", "2")], ids=["alone", "with agents"])
def test_of_launchers_that_start_at_once_one_wins_and_the_others_are_refused(
    tmp_path: Path, test_id: str, flags: tuple[str, ...]
) -> None:
    scene = Scene(tmp_path, test_id, EVALUATIONS)
    scene.prepare(run="tests.failure.functions.gated")
    launchers = [scene.launcher(*flags) for _ in range(4)]

    def over() -> list[int]:
        return [code for code in (launcher.poll() for launcher in launchers) if code is not None]

    wait_until(lambda: len(over()) == 3, 60, "three to be refused")
    assert over() == [2, 2, 2], scene.log()
    wait_until(lambda: scene.started() >= 2, 60, "the winner's first evaluations")
    late = scene.launcher(*flags)
    assert late.wait(60) == 2
    assert scene.log().count("already run by a launcher") + scene.log().count("at the same moment") == 4
    scene.gate.touch()
    [winner] = [launcher for launcher in launchers if launcher.poll() is None]
    assert winner.wait(60) == 0, scene.log()
    assert scene.judge() == 0, "nobody disturbed the winner's evaluations"
