"""Evaluations without directories: analytics knows them by their lines in packed files."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from nas_hpc.analytics import summarize
from nas_hpc.analytics.frames import read_evaluations
from nas_hpc.analytics.locate import Location, locate
from nas_hpc.processes.packed import line_of
from tests.analytics.workflows import SEARCH, attempt_line, launcher_line, make_workflow, write_lines


def pack(workflow: Path, agents: int = 2) -> None:
    """Replace the directories of the evaluations by lines of some agents' files."""
    files = [workflow / "packed" / f"{number}.jsonl" for number in range(agents)]
    files[0].parent.mkdir()
    for number, directory in enumerate(sorted(workflow.glob("task*_????????"))):
        job, result = (json.loads((directory / name).read_text()) for name in ("job.json", "result.json"))
        with files[number % agents].open("ab") as file:
            file.write(line_of(job, result, ""))
        shutil.rmtree(directory)


@pytest.fixture
def workflow(tmp_path: Path) -> Path:
    return make_workflow(tmp_path / "data" / "TEST")


def test_the_summary_is_the_same_with_and_without_directories(workflow: Path) -> None:
    before = summarize(workflow)
    pack(workflow)
    after = summarize(workflow)
    assert before.best is not None
    assert after.best is not None
    assert (after.best.config, after.best.metadata) == (before.best.config, before.best.metadata)
    assert after.best.directory == ""
    assert (after.n_ok, after.failures, after.busy_s) == (before.n_ok, before.failures, before.busy_s)
    assert (after.notes, after.damage) == (before.notes, before.damage)


def test_ends_of_which_no_other_line_tells_are_found_in_packed_files(workflow: Path) -> None:
    before = summarize(workflow)
    pack(workflow)
    lines = (workflow / "attempts.jsonl").read_text().splitlines()
    (workflow / "attempts.jsonl").write_text("\n".join(lines[:25]) + "\n")
    after = summarize(workflow)
    assert (after.n_evaluations, after.best, after.failures) == (40, after.best, before.failures)
    (workflow / "attempts.jsonl").unlink()
    assert summarize(workflow).n_evaluations == 40


def test_a_torn_line_costs_only_itself(workflow: Path) -> None:
    pack(workflow)
    (workflow / "attempts.jsonl").unlink()
    path = workflow / "packed" / "1.jsonl"
    path.write_bytes(path.read_bytes()[:-30])
    assert summarize(workflow).n_evaluations == 39


def test_a_workflow_that_has_only_packed_files_is_one(tmp_path: Path) -> None:
    workflow = make_workflow(tmp_path / "data" / "TEST")
    pack(workflow)
    for name in ("attempts.jsonl", "launchers.jsonl"):
        (workflow / name).unlink()
    shutil.rmtree(next(workflow.glob("test_*")))
    assert locate(tmp_path) == Location(workflow)
    assert summarize(tmp_path).n_evaluations == 40


def test_an_evaluation_that_runs_where_only_failures_keep_their_directories_is_unfinished(
    workflow: Path,
) -> None:
    before = summarize(workflow)
    (workflow / "task99_0000ffff").mkdir()
    (workflow / "task99_0000ffff" / "task99.out").touch()
    after = summarize(workflow)
    assert (after.n_unfinished, after.damage) == (before.n_unfinished + 1, before.damage)


def test_other_searches_lines_are_not_a_searchs_own(workflow: Path) -> None:
    pack(workflow)
    (workflow / "attempts.jsonl").unlink()
    job = {"id": "ab" * 16, "name": "task1", "creator": "0f" * 16, "seq": 1}
    result = {"job": job["id"], "attempt": 1, "outcome": "ok", "objective": 1.0, "start": 1.0, "end": 2.0}
    with (workflow / "packed" / "0.jsonl").open("ab") as file:
        file.write(line_of(job, result, ""))
    assert len(read_evaluations(Location(workflow, SEARCH)).attempts) == 40
    assert len(read_evaluations(Location(workflow)).attempts) == 41


def test_no_line_is_parsed_more_than_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So ten thousand of them are read in a moment."""
    workflow = tmp_path / "W"
    lines = [attempt_line(seq, seq / 10, seq / 10 + 1) for seq in range(1, 501)]
    write_lines(workflow / "attempts.jsonl", lines)
    write_lines(workflow / "launchers.jsonl", [launcher_line(0, "start", 16)])
    (workflow / "packed").mkdir()
    with (workflow / "packed" / "a.jsonl").open("wb") as file:
        for line in lines:
            job = {"id": line["job"], "name": line["name"], "creator": SEARCH, "config": {"x": 1.0}}
            file.write(line_of(job, {**line, "attempt": 1}, ""))
    parsed: Counter[bytes] = Counter()
    real = json.loads

    def loads(text: str | bytes, **how: Any) -> Any:
        parsed[text.encode() if isinstance(text, str) else bytes(text)] += 1
        return real(text, **how)

    monkeypatch.setattr(json, "loads", loads)
    assert len(read_evaluations(Location(workflow)).attempts) == 500
    assert sum(parsed.values()) >= 500
    assert max(parsed.values()) <= 2
