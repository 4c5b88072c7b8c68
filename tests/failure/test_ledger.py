"""The judge itself: each thing that must not happen, planted into a run that was well, is found."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.failure.scene import Scene

EVALUATIONS = 12


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    """A search that nobody disturbed."""
    scene = Scene(tmp_path_factory.mktemp("run"), "judged", EVALUATIONS)
    scene.prepare()
    assert scene.launcher().wait(60) == 0
    return scene


def start_twice(scene: Scene) -> None:
    add_line(scene, 0, same=True)


def start_after_the_result(scene: Scene) -> None:
    add_line(scene, 0, same=False)


def add_line(scene: Scene, number: int, *, same: bool) -> None:
    starts = [line.split() for line in scene.ledger.read_text().splitlines() if line.startswith("start")]
    what, job, attempt, moment = starts[number]
    with scene.ledger.open("a") as file:
        file.write(f"{what} {job} {int(attempt) + (not same)} {moment}\n")


def lose_a_result(scene: Scene) -> None:
    next(scene.workflow.glob("task*/result.json")).unlink()


def lose_an_end(scene: Scene) -> None:
    lines = scene.ledger.read_text().splitlines()
    lines.remove(next(line for line in lines if line.startswith("end")))
    scene.ledger.write_text("\n".join(lines) + "\n")


def lose_a_row(scene: Scene) -> None:
    path = (scene.workflow / "results.csv").resolve()
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))


def write_a_line_again(scene: Scene) -> None:
    path = scene.workflow / "attempts.jsonl"
    line = next(line for line in path.read_text().splitlines() if json.loads(line)["creator"])
    with path.open("a") as file:
        file.write(line + "\n")


def believe_another_attempt(scene: Scene) -> None:
    path = next(scene.workflow.glob("task*/result.json"))
    path.write_text(json.dumps(json.loads(path.read_text()) | {"attempt": 2}))


def record_an_end_twice(scene: Scene) -> None:
    with sqlite3.connect(scene.site / "db.sqlite3") as connection:
        connection.execute(
            "INSERT INTO events SELECT (SELECT max(id) + 1 FROM events), "
            + ", ".join(
                f'"{row[1]}"' for row in connection.execute("PRAGMA table_info(events)") if row[1] != "id"
            )
            + " FROM events WHERE id = (SELECT max(id) FROM events WHERE job = "
            "(SELECT number FROM jobs WHERE creator != '' LIMIT 1))"
        )
    connection.close()


PLANTS: tuple[Callable[[Scene], None], ...] = (
    start_twice, start_after_the_result, lose_a_result, lose_an_end, lose_a_row, write_a_line_again,
    believe_another_attempt, record_an_end_twice,
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("plant", PLANTS, ids=lambda plant: plant.__name__)
def test_what_must_not_happen_is_found(run: Scene, tmp_path: Path, plant: Callable[[Scene], None]) -> None:
    copy = Scene(tmp_path / "copy", run.test_id, EVALUATIONS)
    shutil.copytree(run.directory, copy.directory, symlinks=True)
    assert copy.judge() == 0
    plant(copy)
    with pytest.raises(AssertionError):
        copy.judge()
