"""Torn, missing, stale and foreign result.json at a takeover: only the current attempt's own counts."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from nas_hpc.records import Job
from nas_hpc.states import State
from nas_hpc.store import open_store
from nas_hpc.store.base import JobFilter
from tests.failure import ledger
from tests.failure.scene import Scene
from tests.support import wait_until

KINDS = (
    "torn",
    "empty",
    "binary",
    "missing",
    "foreign",
    "of an earlier attempt",
    "not finite",
    "without an objective",
    "without times",
    "valid",
)


def running(scene: Scene) -> list[Job]:
    """The evaluations that the database has as running."""
    store = open_store(scene.site / "db.sqlite3", read_only=True)
    try:
        jobs = store.jobs(JobFilter(states=frozenset({State.RUNNING})))
    finally:
        store.close()
    return sorted((job for job in jobs if job.creator), key=lambda job: job.seq)


def leave(path: Path, kind: str, job: Job) -> None:
    """What a node that was lost while it wrote, or a confused user, may leave."""
    body: dict[str, Any] = {
        "job": job.id, "attempt": job.attempt, "outcome": "ok", "objective": 0.5, "metadata": {},
        "reason": "", "start": job.created, "end": job.created + 1, "return_code": 0,
    }  # fmt: skip
    changes: dict[str, dict[str, Any]] = {
        "foreign": {"job": "f" * 32},
        "of an earlier attempt": {"attempt": job.attempt - 1},
        "not finite": {"objective": float("nan")},
        "without an objective": {"objective": None},
        "without times": {"start": None},
    }
    text = json.dumps(body | changes.get(kind, {}))
    if kind != "missing":
        contents = {"torn": text[: len(text) // 2], "empty": "", "binary": "\x00\x7f" * 50}
        path.write_text(contents.get(kind, text))


@pytest.mark.slow
def test_at_a_takeover_only_a_valid_result_of_the_current_attempt_is_adopted(
    tmp_path: Path, test_id: str
) -> None:
    scene = Scene(tmp_path, test_id, len(KINDS) + 3)
    scene.prepare(run="tests.failure.functions.gated", workers=len(KINDS))
    launcher = scene.launcher()
    wait_until(lambda: scene.started() == len(KINDS) and len(running(scene)) == len(KINDS), 60, "evaluations")
    scene.kill_all_of(launcher)
    jobs = dict(zip(KINDS, running(scene), strict=True))
    for kind, job in jobs.items():
        leave(scene.workflow / job.directory_name / "result.json", kind, job)
    scene.gate.touch()
    scene.finish()
    ledger.judge_store(scene.site, scene.name, scene.max_evals)
    started = ledger.read(scene.ledger).started
    for kind, job in jobs.items():
        assert started[job.id] == ([1] if kind == "valid" else [1, 2]), kind
    others = [numbers for job, numbers in started.items() if job not in {one.id for one in jobs.values()}]
    assert others == [[1]] * 3


@pytest.mark.slow
def test_a_finished_evaluation_whose_files_were_lost_later_does_not_run_again(
    tmp_path: Path, test_id: str
) -> None:
    scene = Scene(tmp_path, test_id, 12)
    scene.prepare()
    launcher = scene.launcher()
    wait_until(lambda: scene.ended() >= 6, 60, "the first evaluations")
    launcher.send_signal(signal.SIGTERM)
    assert launcher.wait(60) == 0
    files = sorted(scene.workflow.glob("task*/result.json"))
    done = {json.loads(path.read_text())["job"] for path in files if '"ok"' in path.read_text()}
    files[0].unlink()
    files[1].write_text("{")
    (scene.workflow / "attempts.jsonl").unlink()
    (scene.workflow / "results.csv").resolve().unlink()
    scene.finish()
    ledger.judge_store(scene.site, scene.name, scene.max_evals)
    ledger.judge_rows(scene.workflow, scene.max_evals)
    lines = ledger.read(scene.ledger)
    assert all(lines.started[job] == [1] for job in done)
    assert len(lines.started) == scene.max_evals
