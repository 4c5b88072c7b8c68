"""results.csv: its columns, its growth, its repair."""

from __future__ import annotations

import csv
import errno
import logging
import os
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nas_hpc.apps.results import COLUMNS, ResultsFile
from nas_hpc.errors import WorkFailed, WrongCall
from nas_hpc.evaluator import EvaluationResult
from nas_hpc.states import Outcome
from tests.support import examples

NAMES = ["x", "kind"]


def result(number: int, **changes: Any) -> EvaluationResult:
    """A good one, but for ``changes``."""
    values: dict[str, Any] = {
        "id": number,
        "config": {"x": number / 2, "kind": "a"},
        "objective": float(number),
        "outcome": Outcome.OK,
        "reason": "",
        "metadata": {},
        "submitted": 100.0,
        "start": 101.0,
        "end": 102.5,
        "attempt": 1,
        "cached": False,
        "data": {},
        "order": number,
    }
    return EvaluationResult(**{**values, **changes})


def _rows(directory: Path) -> list[list[str]]:
    with (directory / "results.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def test_the_columns_are_the_hyperparameters_then_objective_elapsed_sec_and_the_rest(tmp_path: Path) -> None:
    file = ResultsFile(tmp_path, NAMES)
    file.begin([], 100.0)
    file.add([result(1)])
    file.end()
    assert _rows(tmp_path) == [
        ["x", "kind", "objective", "elapsed_sec", "seq", "outcome", "reason", "start", "end", "cached"],
        ["0.5", "a", "1.0", "2.500000", "1", "ok", "", "101.000000", "102.500000", "False"],
    ]


def test_what_has_no_value_is_an_empty_cell(tmp_path: Path) -> None:
    never = result(
        1, config={"x": 1}, objective=None, outcome=Outcome.KILLED, reason="ended\nbefore", start=0.0, end=0.0
    )
    file = ResultsFile(tmp_path, NAMES)
    file.begin([never], 100.0)
    assert _rows(tmp_path)[1] == ["1", "", "", "", "1", "killed", "ended before", "", "", "False"]


_texts = st.text(max_size=20)
_values = st.one_of(
    st.integers(-(2**63), 2**63), st.floats(allow_nan=False, allow_infinity=False), st.booleans()
)


@given(st.lists(st.tuples(_values, _texts, _texts), max_size=5))
@settings(max_examples=examples(30), deadline=None)
def test_any_text_and_number_comes_back_from_the_file(
    tmp_path_factory: pytest.TempPathFactory, cells: list[tuple[Any, str, str]]
) -> None:
    place = tmp_path_factory.mktemp("r")
    file = ResultsFile(place, NAMES)
    file.begin([], 0.0)
    file.add([result(i, config={"x": x, "kind": k}, reason=r) for i, (x, k, r) in enumerate(cells)])
    file.end()
    for row, (x, kind, reason) in zip(_rows(place)[1:], cells, strict=True):
        assert row[0] == (repr(x) if isinstance(x, float) else str(x))
        assert row[1].encode("utf-8", "backslashreplace") == kind.encode("utf-8", "backslashreplace")
        assert row[6] == " ".join(reason.split())


def test_a_reason_that_is_no_unicode_is_written(tmp_path: Path) -> None:
    file = ResultsFile(tmp_path, NAMES)
    file.begin([result(1, reason="bytes \udcff here")], 0.0)
    assert _rows(tmp_path)[1][6] == "bytes \\udcff here"


def test_pandas_reads_failures_as_missing_objectives(tmp_path: Path) -> None:
    file = ResultsFile(tmp_path, NAMES)
    file.begin([result(1), result(2, objective=None, outcome=Outcome.ERROR, reason="ValueError: a, b")], 0.0)
    frame = pd.read_csv(tmp_path / "results.csv")
    assert list(frame["objective"].isna()) == [False, True]
    assert frame["cached"].dtype == bool


@pytest.mark.parametrize("name", COLUMNS)
def test_a_hyperparameter_named_like_a_column_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(WrongCall, match=f"'{name}'"):
        ResultsFile(tmp_path, ["x", name])


def test_a_torn_last_row_is_repaired_from_the_history(tmp_path: Path) -> None:
    first = ResultsFile(tmp_path, NAMES)
    first.begin([], 0.0)
    first.add([result(1), result(2)])
    whole = (tmp_path / "results.csv").read_bytes()
    (tmp_path / "results.csv").write_bytes(whole[:-7])
    (tmp_path / ".results.csv.999999").write_text("left by one that was killed while it wrote")
    ResultsFile(tmp_path, NAMES).begin([result(1), result(2)], 0.0)
    assert (tmp_path / "results.csv").read_bytes() == whole
    assert [path.name for path in tmp_path.iterdir()] == ["results.csv"]


def test_a_superseded_search_does_not_write_into_its_successors_file(tmp_path: Path) -> None:
    old, new = ResultsFile(tmp_path, NAMES), ResultsFile(tmp_path, NAMES)
    old.begin([result(1)], 0.0)
    new.begin([result(1)], 0.0)
    old.add([result(2)])
    new.add([result(2)])
    assert len(_rows(tmp_path)) == 3


def test_a_file_that_was_removed_is_there_at_the_end(tmp_path: Path) -> None:
    file = ResultsFile(tmp_path, NAMES)
    file.begin([result(1)], 0.0)
    (tmp_path / "results.csv").unlink()
    file.add([result(2)])
    file.end()
    assert len(_rows(tmp_path)) == 3


def test_a_full_disk_is_said_once_and_the_file_is_written_when_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    file = ResultsFile(tmp_path, NAMES)
    file.begin([], 0.0)
    write = os.write

    def full(descriptor: int, data: bytes) -> int:
        write(descriptor, bytes(data)[:5])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    for number in range(1, 4):
        file.add([result(number)])
    with pytest.raises(WorkFailed, match="No space left"):
        file.end()
    monkeypatch.undo()
    file.add([result(4)])
    file.end()
    assert len(_rows(tmp_path)) == 5
    assert len(caplog.messages) <= 2


def test_a_read_only_directory_fails_at_the_end_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, "open", refuse)
    file = ResultsFile(tmp_path, NAMES)
    file.begin([], 0.0)
    file.add([result(1)])
    with pytest.raises(WorkFailed, match="Read-only file system"):
        file.end()


def test_the_workflows_link_is_relative_and_the_last_search_has_it(tmp_path: Path) -> None:
    for name in ("test_11111111", "test_22222222"):
        directory = tmp_path / "TEST" / name
        directory.mkdir(parents=True)
        ResultsFile(directory, NAMES, link=True).begin([], 0.0)
        assert os.readlink(tmp_path / "TEST" / "results.csv") == f"{name}/results.csv"


def test_a_users_own_file_in_the_links_place_stays(tmp_path: Path) -> None:
    directory = tmp_path / "TEST" / "test_1"
    directory.mkdir(parents=True)
    (tmp_path / "TEST" / "results.csv").write_text("mine")
    ResultsFile(directory, NAMES, link=True).begin([], 0.0)
    assert (tmp_path / "TEST" / "results.csv").read_text() == "mine"


def test_writing_a_row_costs_the_same_however_long_the_file_is(tmp_path: Path) -> None:
    file = ResultsFile(tmp_path, NAMES)
    file.begin([], 0.0)
    costs = []
    for block in range(4):
        began = time.thread_time()
        for number in range(1000):
            file.add([result(block * 1000 + number)])
        costs.append(time.thread_time() - began)
    file.end()
    assert len(_rows(tmp_path)) == 4001
    assert costs[3] < 3 * costs[0] + 0.05
