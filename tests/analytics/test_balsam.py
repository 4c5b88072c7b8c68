"""A Balsam database as what analytics looks at: finding it, and its directories alone where it is down."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nas_hpc import plugins
from nas_hpc.analytics import summarize, throughput
from nas_hpc.analytics.cli import main
from nas_hpc.analytics.locate import Location, locate
from nas_hpc.errors import WorkFailed, WrongCall
from nas_hpc.integrations.balsam.frames import Evaluations
from tests.analytics.workflows import ORIGIN, SEARCH, attempt_line, launcher_line, make_workflow


@pytest.fixture
def database(tmp_path: Path) -> Path:
    """As it looks when its server is down: a search of ours ran in the workflow TEST."""
    path = tmp_path / "db"
    (path / "balsamdb").mkdir(parents=True)
    (path / "server-info").write_text(json.dumps({"host": "", "port": ""}))
    workflow = make_workflow(path / "data" / "TEST")
    (workflow / "attempts.jsonl").unlink()
    (workflow / f"test_{SEARCH[:8]}" / "job.json").unlink()
    return path


def answers(monkeypatch: pytest.MonkeyPatch, told: Evaluations | Exception) -> list[tuple[Path, str]]:
    """Let the part that asks a Balsam database give ``told``; returns what it is asked."""
    asked = []

    def read(database: Path, workflow: str) -> Evaluations:
        asked.append((database, workflow))
        if isinstance(told, Exception):
            raise told
        return told

    monkeypatch.setattr(plugins, "load", lambda group, name: read)
    return asked


def test_a_database_its_workflow_and_a_search_in_it_are_found(database: Path) -> None:
    workflow = database / "data" / "TEST"
    whole = Location(workflow, database=database)
    assert locate(database) == locate(database / "data") == locate(workflow) == whole
    assert locate(database, "TEST") == whole
    search = locate(workflow / f"test_{SEARCH[:8]}")
    assert search == Location(workflow, SEARCH[:8], database)
    assert search.is_of(SEARCH)
    assert not search.is_of("0f" * 16)


@pytest.mark.parametrize(
    ("place", "workflow", "message"),
    [
        ("", "NONE", "has no workflow 'NONE'; it has OTHER, TEST"),
        ("", None, "has 2 workflows, choose one with --workflow: OTHER, TEST"),
        ("log", None, "is inside a Balsam database; give the database: "),
        ("data/TEST", "OTHER", "belongs to workflow 'TEST'"),
        ("data/TEST/task1_00000001", None, "is the directory of one evaluation; give its workflow: "),
    ],
)
def test_a_wrong_place_in_a_database_is_named_with_what_would_be_right(
    database: Path, place: str, workflow: str | None, message: str
) -> None:
    (database / "data" / "OTHER").mkdir()
    (database / "log").mkdir()
    with pytest.raises(WrongCall, match=message):
        locate(database / place, workflow)


def test_a_database_that_is_down_is_read_by_its_directories_and_that_is_said(
    database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers(monkeypatch, WorkFailed("it is down; start it with source balsamactivate"))
    for name in (f"test_{SEARCH[:8]}", "stranger_0a0a0a0a"):
        (database / "data" / "TEST" / name).mkdir(exist_ok=True)
        (database / "data" / "TEST" / name / f"{name[:-9]}.out").write_text("words\n")
    found = summarize(database)
    assert (found.n_evaluations, found.n_unfinished, found.damage.foreign) == (40, 0, 0)
    assert found.best is not None
    assert found.best.config
    assert found.notes[0].startswith(
        "the Balsam database cannot be asked (it is down; start it with source balsamactivate): only job "
    )
    assert summarize(database / "data" / "TEST" / f"test_{SEARCH[:8]}").n_evaluations == 40
    assert throughput(database).notes == found.notes[:1]


def test_what_the_database_tells_counts_and_its_notes_are_said(
    database: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines: list[dict[str, Any]] = [attempt_line(seq, seq, seq + 2) for seq in range(1, 6)]
    lines.append(attempt_line(9, 0, 1, creator="0f" * 16, outcome="killed"))
    told = Evaluations(lines, [], [SEARCH, "0f" * 16], ("1 attempt was lost",))
    asked = answers(monkeypatch, told)
    assert main(["utilization", str(database), "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert asked == [(database, "TEST")]
    assert (figures["n_evaluations"], figures["n_cancelled"], figures["n_unfinished"]) == (5, 1, 2)
    assert figures["notes"][0] == "1 attempt was lost"
    assert figures["slots"] == 4, "as the search wrote into launchers.jsonl"
    alone = summarize(database / "data" / "TEST" / f"test_{SEARCH[:8]}")
    assert (alone.n_cancelled, alone.n_unfinished) == (0, 1)


def test_slots_are_those_that_the_database_tells_else_those_that_searches_wrote_down(
    database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offers = [launcher_line(-1, "start", 2), launcher_line(9, "end", 0)]
    lines = [attempt_line(1, 0, 4), attempt_line(2, 0, 8)]
    answers(monkeypatch, Evaluations(lines, offers, [], ()))
    found = summarize(database)
    assert (found.slots, found.capacity_known, found.start) == (2, True, ORIGIN)
    assert found.utilization == pytest.approx(12 / 16)
    answers(monkeypatch, Evaluations(lines, [], [], ()))
    assert summarize(database).slots == 4
