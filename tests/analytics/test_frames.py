"""Reading a workflow's files, whole and damaged, and finding out what the user's path means."""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nas_hpc.analytics import summarize
from nas_hpc.analytics.frames import read_evaluations
from nas_hpc.analytics.locate import Location, locate
from nas_hpc.errors import WrongCall
from tests.analytics.workflows import (
    ORIGIN,
    SEARCH,
    attempt_line,
    launcher_line,
    make_workflow,
    write_directory,
    write_lines,
    write_search,
)
from tests.support import examples


@pytest.fixture
def workflow(tmp_path: Path) -> Path:
    path = make_workflow(tmp_path / "site" / "data" / "TEST")
    (tmp_path / "site" / "site.toml").touch()
    return path


def test_the_figures_are_those_of_the_lines(workflow: Path) -> None:
    lines = [json.loads(line) for line in (workflow / "attempts.jsonl").read_text().splitlines()]
    best = max((line for line in lines if line["objective"] is not None), key=lambda line: line["objective"])
    summary = summarize(workflow)
    n_failed = sum(line["outcome"] == "error" for line in lines)
    assert (summary.n_evaluations, summary.n_failed, summary.n_ok) == (40, n_failed, 40 - n_failed)
    assert summary.failures == {"ValueError: the loss is not a number": n_failed}
    assert summary.best is not None
    assert (summary.best.name, summary.best.objective) == (best["name"], best["objective"])
    assert summary.best.metadata == {"test_accuracy": pytest.approx(best["objective"] - 0.01)}
    assert list(summary.best.config) == ["units", "rate", "activation"]
    assert summary.busy_s == pytest.approx(sum(line["end"] - line["start"] for line in lines), abs=1e-4)
    assert summary.slots == 4
    assert not summary.notes


def test_a_workflow_a_search_and_a_site_with_one_workflow_are_the_same_evaluations(workflow: Path) -> None:
    assert locate(workflow) == locate(workflow.parent.parent) == Location(workflow)
    search = workflow / f"test_{SEARCH[:8]}"
    assert locate(search) == Location(workflow, SEARCH)
    assert summarize(search).busy_s == summarize(workflow).busy_s


def test_a_search_is_measured_alone_and_the_others_are_mentioned(workflow: Path) -> None:
    other = "0f" * 16
    line = attempt_line(900, 0, 5, creator=other, objective=99.0)
    with (workflow / "attempts.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
    write_search(workflow, other, "second")
    first = summarize(workflow / f"test_{SEARCH[:8]}")
    assert first.n_evaluations == 40
    assert "other searches of this workflow used the same slots" in first.notes[0]
    assert summarize(workflow / f"second_{other[:8]}").n_evaluations == 1
    assert summarize(workflow).n_evaluations == 41


def test_results_are_read_from_the_directories_where_no_line_tells_of_them(workflow: Path) -> None:
    with_lines = summarize(workflow)
    (workflow / "attempts.jsonl").unlink()
    without = summarize(workflow)
    assert (without.best, without.failures) == (with_lines.best, with_lines.failures)
    assert without.n_evaluations == 40
    assert without.busy_s == pytest.approx(with_lines.busy_s)
    assert without.available_s == pytest.approx(with_lines.available_s)


def test_torn_missing_and_foreign_files_are_counted_and_nothing_fails(workflow: Path) -> None:
    with (workflow / "attempts.jsonl").open("ab") as file:
        file.write(b'\xff\xfe\n[1]\n{"job": "x"}\n{"job": "aa", "na')
    with (workflow / "launchers.jsonl").open("a") as file:
        file.write('{"launcher": "zz", "event": "dance"}\n')
    line = attempt_line(500, 1, 2)
    (write_directory(workflow, line, {}) / "result.json").write_text('{"job": "')  # torn
    (write_directory(workflow, attempt_line(501, 1, 2), {}) / "job.json").write_text("")  # torn
    foreign = attempt_line(502, 1, 2)
    result = json.dumps({"job": "another", "attempt": 1, "outcome": "ok", "start": ORIGIN, "end": ORIGIN + 1})
    (write_directory(workflow, foreign, {}) / "result.json").write_text(result)
    (write_directory(workflow, attempt_line(503, 1, 2), {}) / "result.json").unlink()  # waits or runs
    shutil.copytree(workflow / "task1_00000001", workflow / "task1_copied")
    (workflow / "notes").mkdir()
    (workflow / "results.csv").symlink_to("nowhere")
    summary = summarize(workflow)
    assert summary.n_evaluations == 40
    assert summary.n_unfinished == 3
    assert (summary.damage.lines, summary.damage.directories, summary.damage.foreign) == (5, 4, 1)


@settings(
    max_examples=examples(60), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.binary(max_size=60), st.integers(0, 3000), st.sampled_from(["attempts.jsonl", "launchers.jsonl"]))
def test_whatever_bytes_a_file_has_the_summary_is_made(
    tmp_path: Path, junk: bytes, position: int, name: str
) -> None:
    workflow = tmp_path / "W"
    write_lines(workflow / "attempts.jsonl", [attempt_line(seq, seq, seq + 2) for seq in range(1, 6)])
    write_lines(workflow / "launchers.jsonl", [launcher_line(0, "start", 3), launcher_line(9, "end", 0)])
    raw = (workflow / name).read_bytes()
    (workflow / name).write_bytes(raw[:position] + junk + raw[position + len(junk) :])
    summary = summarize(workflow)
    assert summary.n_evaluations <= 6
    assert summary.utilization is None or 0 <= summary.utilization <= 1


@pytest.mark.parametrize(
    "field",
    [{"objective": "high"}, {"objective": float("nan")}, {"objective": 10**400}, {"start": None},
     {"start": 0.0}, {"end": "late"}, {"number": "1"}, {"outcome": "perfect"}, {"job": None}, {"creator": 7},
     {"seq": "x"}],
)  # fmt: skip
def test_a_line_with_a_wrong_field_spoils_nothing_else(tmp_path: Path, field: dict[str, object]) -> None:
    lines = [attempt_line(1, 0, 2), {**attempt_line(2, 0, 2), **field}, attempt_line(3, 1, 4, objective=0.5)]
    write_lines(tmp_path / "attempts.jsonl", lines)
    summary = summarize(tmp_path)
    assert summary.n_evaluations in (2, 3)
    assert summary.best is not None


def test_duplicate_lines_count_once_and_retries_count_as_one_evaluation(tmp_path: Path) -> None:
    lines = [
        attempt_line(1, 0, 2),
        attempt_line(1, 0, 2),
        attempt_line(2, 0, 2, outcome="error", objective=None, reason="OSError: x"),
        attempt_line(2, 3, 5, number=2),
        attempt_line(3, 0, 0, cached=True, number=0, objective=9.0),
        attempt_line(4, 0, 3, outcome="walltime", objective=None),
        attempt_line(5, 0, 3, outcome="killed", objective=None),
        *(attempt_line(6, n, n + 1, number=n, outcome="lost", objective=None) for n in (1, 2, 3)),
        attempt_line(0, 0, 9, creator="", name="test"),
    ]
    write_lines(tmp_path / "attempts.jsonl", lines)
    summary = summarize(tmp_path)
    assert (summary.n_evaluations, summary.n_ok, summary.n_cached, summary.n_failed) == (4, 3, 1, 1)
    assert (summary.n_interrupted, summary.n_cancelled, summary.n_attempts) == (1, 1, 8)
    assert summary.failures == {"lost": 1}
    assert summary.best is not None
    assert summary.best.name == "task3"


def test_of_equal_objectives_the_best_is_the_first_that_ran(tmp_path: Path) -> None:
    times = [(1, 0, 5, False), (2, 0, 3, False), (3, 1, 1, True)]
    lines = [attempt_line(n, a, b, objective=1.0, cached=cached) for n, a, b, cached in times]
    write_lines(tmp_path / "attempts.jsonl", lines)
    summary = summarize(tmp_path)
    assert summary.best is not None
    assert summary.best.name == "task2"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: p / "gone", "gone does not exist"),
        (lambda p: p / "attempts.jsonl", "is a file"),
        (lambda p: p.parent.parent.parent, "is neither a workflow's directory"),
        (lambda p: p / "task1_00000001", "is the directory of one evaluation; give its workflow: "),
    ],
)
def test_a_wrong_path_is_named_with_what_would_be_right(workflow: Path, make: object, message: str) -> None:
    path = make(workflow)  # type: ignore[operator]
    with pytest.raises(WrongCall, match=message) as caught:
        summarize(path)
    assert str(path) in caught.value.message
    assert "\n" not in caught.value.message


def test_a_site_with_several_workflows_needs_one_to_be_named(workflow: Path) -> None:
    site = workflow.parent.parent
    make_workflow(site / "data" / "OTHER", n=3)
    with pytest.raises(WrongCall, match="has 2 workflows, choose one with --workflow: OTHER, TEST"):
        summarize(site)
    assert summarize(site, "OTHER").n_evaluations == 3
    with pytest.raises(WrongCall, match="has no workflow 'NONE'; it has OTHER, TEST"):
        summarize(site, "NONE")


class Opened:
    """Counts the files below a directory that this process opens."""

    def __init__(self) -> None:
        self.below = ""
        self.counts: Counter[str] = Counter()
        sys.addaudithook(self._look)  # there is no way to remove one

    def _look(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and self.below and str(arguments[0]).startswith(self.below):
            self.counts[str(arguments[0])] += 1

    @contextlib.contextmanager
    def of(self, directory: Path) -> Iterator[Counter[str]]:
        self.below, self.counts = str(directory), Counter()
        yield self.counts
        self.below = ""


def test_directories_are_opened_only_for_evaluations_that_the_lines_do_not_name(tmp_path: Path) -> None:
    """So ten thousand of them are read in a second."""
    workflow = make_workflow(tmp_path / "BIG", n=200, slots=10)
    opened = Opened()
    with opened.of(workflow) as counts:
        assert read_evaluations(locate(workflow)).attempts.shape[0] == 200
    assert workflow / "attempts.jsonl" in map(Path, counts)
    assert [path for path in counts if "/task" in path] == []
    (workflow / "attempts.jsonl").unlink()
    with opened.of(workflow) as counts:
        assert read_evaluations(locate(workflow)).attempts.shape[0] == 200
    assert sum("/task" in path for path in counts) == 400
    assert set(counts.values()) == {1}, "each file once"
