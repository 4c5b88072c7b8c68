"""Run functions that raise, hang, eat memory, print binary, fork, return NaN: each has its own outcome, and
the search goes on to its end."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from tests.failure import ledger
from tests.failure.functions import KINDS
from tests.failure.scene import Scene


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags",
    [
        (),
        pytest.param(
            ("--fresh-interpreter",),
            marks=pytest.mark.gentle("its process is on its keeper's node, where files are seen at once"),
        ),
    ],
    ids=["warm", "fresh"],
)
def test_every_misbehaviour_is_its_own_evaluations_affair(
    tmp_path: Path, test_id: str, monkeypatch: pytest.MonkeyPatch, flags: tuple[str, ...]
) -> None:
    monkeypatch.setenv("NAS_HPC_GRACE_S", "1")
    scene = Scene(tmp_path, test_id, len(KINDS) + 3)
    scene.prepare(run="tests.failure.functions.unlucky", workers=3, flags="--eval-timeout 12s")
    launcher = scene.launcher(*flags)
    assert launcher.wait(90) == 0, scene.log()
    with (scene.workflow / "results.csv").open(newline="") as file:
        rows = {int(row["seq"]): row for row in csv.DictReader(file)}
    wanted = [KINDS[number % len(KINDS)][1] for number in range(scene.max_evals)]
    assert [rows[seq]["outcome"] for seq in sorted(rows)] == wanted
    for row in rows.values():
        assert (row["objective"] != "") == (row["outcome"] == "ok")
        assert (row["reason"] != "") == (row["outcome"] != "ok"), "every failure says why"
    assert all(len(numbers) == 1 for numbers in ledger.read(scene.ledger).started.values()), "none ran twice"
    lines = [json.loads(line) for line in (scene.workflow / "attempts.jsonl").read_text().splitlines()]
    assert sorted(line["outcome"] for line in lines if line["creator"]) == sorted(wanted)
    assert "Traceback" not in scene.log()
