"""What a real Balsam 0.5.0 wrote of jobs that were done, failed, killed, timed out and lost, as attempts.

``histories.json`` was recorded with balsam-flow 0.5.0, PostgreSQL 15 and MPICH: the rows of four
workflows' jobs, with what each program measured of itself (``true``) and printed, and the logs of all
launchers of the database (UTC), their middles left out.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nas_hpc.integrations.balsam.frames import Evaluations, convert
from nas_hpc.integrations.balsam.histories import spans
from nas_hpc.integrations.balsam.lives import Life, read_lives
from nas_hpc.integrations.balsam.offers import read_noted

RECORDED = json.loads((Path(__file__).parent / "histories.json").read_text())
KILLED_AT = 1795317647.43
"""When the launcher of LOST was killed."""
ENDS = {"RUN_DONE", "RUN_ERROR", "RUN_TIMEOUT"}


@pytest.fixture(autouse=True)
def utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The launchers' machine had this local time."""
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.fixture
def lives(tmp_path: Path) -> list[Life]:
    for name, lines in RECORDED["logs"].items():
        path = tmp_path / "log" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("\n".join(lines) + "\n")
    return read_lives(tmp_path)


def rows(name: str, place: Path, *, results: bool = False) -> list[dict[str, Any]]:
    """The jobs of a recorded workflow, with directories below ``place``; with ``results`` there is what our
    own trial runner would have left."""
    found = []
    for row in RECORDED["workflows"][name]:
        directory = place / row["directory"]
        directory.mkdir(parents=True, exist_ok=True)
        if row["printed"] is not None:
            (directory / f"{row['name']}.out").write_text("\n".join(row["printed"]))
        if results and "true" in row:
            result = {"job": row["id"].replace("-", ""), "attempt": 1, "outcome": "ok", **row["true"]}
            (directory / "result.json").write_text(json.dumps(result))
        found.append({**row, "directory": str(directory)})
    return found


def told(evaluations: Evaluations) -> dict[tuple[str, int], str]:
    return {(line["name"], line["number"]): line["outcome"] for line in evaluations.attempts}


def balsams_report(jobs: list[dict[str, Any]]) -> int:
    """How many run at the end by balsam.core.models.utilization_report."""
    names = [line[1] for job in jobs for line in job["history"]]
    return names.count("RUNNING") - sum(map(names.count, ENDS))


@pytest.mark.parametrize(("workflow", "wrong"), [("mpi", 1), ("serial", 1), ("lost", 1), ("limit", 0)])
def test_every_attempt_ends_where_balsams_own_sum_of_stamps_goes_on_for_ever(
    tmp_path: Path, lives: list[Life], workflow: str, wrong: int
) -> None:
    jobs = rows(workflow, tmp_path)
    evaluations = convert(jobs, lives, workflow.upper())
    assert balsams_report(jobs) == wrong
    running = sum(line[1] == "RUNNING" for job in jobs for line in job["history"])
    started = [line for line in evaluations.attempts if line["start"] is not None]
    assert len(started) == running
    assert all(line["start"] <= line["end"] for line in started)
    assert evaluations.unfinished == []


def test_done_failed_killed_and_timed_out_attempts_are_told_apart_in_mpi_mode(
    tmp_path: Path, lives: list[Life]
) -> None:
    evaluations = convert(rows("mpi", tmp_path), lives, "MPI")
    assert told(evaluations) == {
        ("task1", 1): "ok",
        ("task2", 1): "error",
        ("task3", 1): "ok",
        ("task4", 1): "invalid_result",
        ("task5", 1): "killed",
        ("task6", 1): "walltime",
        ("task6", 2): "ok",
        ("task7", 1): "killed",
    }
    lines = {(line["name"], line["number"]): line for line in evaluations.attempts}
    assert lines["task7", 1]["start"] is None, "it was killed while it waited"
    assert lines["task1", 1]["objective"] == -0.5, "by DH-OUTPUT in its output"
    assert lines["task2", 1]["reason"] == "ValueError: no good"
    assert evaluations.notes[0].startswith("killed while they ran: 1, counted until the kill; by Balsam's")


def test_what_a_serial_launcher_interrupted_is_no_failure_and_its_own_limit_is_the_walltime(
    tmp_path: Path, lives: list[Life]
) -> None:
    stopped = told(convert(rows("serial", tmp_path), lives, "SERIAL"))
    assert stopped["task10", 1] == "walltime", "Balsam calls it RUN_ERROR, nonzero return -15"
    assert (stopped["task4", 1], stopped["task5", 1]) == ("error", "error")
    limited = told(convert(rows("limit", tmp_path), lives, "LIMIT"))
    assert limited == {("task1", 1): "ok", ("task2", 1): "walltime", ("task2", 2): "ok"}


def test_programs_own_times_replace_the_stamps_of_batches(tmp_path: Path, lives: list[Life]) -> None:
    stamped = {line["name"]: line for line in convert(rows("serial", tmp_path), lives, "SERIAL").attempts}
    jobs = rows("serial", tmp_path, results=True)
    evaluations = convert(jobs, lives, "SERIAL")
    measured = {line["name"]: line for line in evaluations.attempts}
    assert stamped["task6"]["end"] - stamped["task6"]["start"] < 0.02, "Balsam: 100 ms look like 10"
    for job in jobs:
        line, true = measured[job["name"]], job.get("true")
        if true is None:  # it was interrupted
            assert line == stamped[job["name"]]
        else:
            assert line["end"] == true["end"]
            assert line["start"] == min(true["start"], stamped[job["name"]]["start"])
    again = next(job["true"]["start"] for job in jobs if job["name"] == "task5")
    assert again - measured["task5"]["start"] > 1.5, "run again by itself: its first start counts"
    assert measured["task9"]["end"] - stamped["task9"]["end"] > 5, "killed, but serial mode let it run on"
    assert measured["task9"]["outcome"] == "killed"
    assert any("1 of them until their programs ended, later" in note for note in evaluations.notes)
    (timed,) = [note for note in evaluations.notes if note.startswith("attempts timed by Balsam's stamps")]
    assert "stamps: 1, which" in timed
    assert "own: 9" in timed


@pytest.mark.parametrize("logs", [True, False])
def test_a_lost_attempt_ends_with_its_launcher_and_not_when_it_is_run_again(
    tmp_path: Path, lives: list[Life], logs: bool
) -> None:
    evaluations = convert(rows("lost", tmp_path), lives if logs else [], "LOST")
    assert told(evaluations) == {
        ("task1", 1): "ok",
        ("task2", 1): "lost",
        ("task2", 2): "ok",
        ("task3", 1): "ok",
    }
    lost = next(line for line in evaluations.attempts if line["outcome"] == "lost")
    assert lost["start"] <= lost["end"] <= KILLED_AT
    assert not logs or lost["end"] > KILLED_AT - 3, "its launcher wrote into its log each second"
    assert any(note.startswith("attempts lost with their launcher: 1;") for note in evaluations.notes)


def test_a_result_of_another_attempt_or_job_gives_no_times(tmp_path: Path, lives: list[Life]) -> None:
    jobs = rows("mpi", tmp_path)
    plain = convert(jobs, lives, "MPI").attempts
    directory = Path(jobs[0]["directory"])
    end = jobs[0]["history"][-1][0]
    foreign = {"job": "another", "outcome": "ok", "start": end - 3, "end": end - 2.8}
    stale = {"job": jobs[0]["id"], "outcome": "ok", "start": end - 3000, "end": end - 2900}
    later = {"job": jobs[0]["id"], "outcome": "ok", "start": end + 3000, "end": end + 3100}
    for result in (foreign, stale, later, {"start": "x"}, []):
        (directory / "result.json").write_text(json.dumps(result))
        assert convert(jobs, lives, "MPI").attempts[0]["end"] == plain[0]["end"]


def test_a_result_that_was_there_before_the_launcher_died_is_the_next_attempts(
    tmp_path: Path, lives: list[Life]
) -> None:
    """The trial runner runs nothing again that has one."""
    jobs = rows("lost", tmp_path)
    start = KILLED_AT - 5
    result = {"job": jobs[1]["id"], "outcome": "ok", "objective": 7.0, "start": start, "end": start + 3}
    (Path(jobs[1]["directory"]) / "result.json").write_text(json.dumps(result))
    lines = {(line["name"], line["number"]): line for line in convert(jobs, lives, "LOST").attempts}
    lost, again = lines["task2", 1], lines["task2", 2]
    assert (lost["outcome"], lost["start"], lost["end"]) == ("lost", start, start + 3)
    assert (again["outcome"], again["objective"]) == ("ok", 7.0)
    assert again["start"] > KILLED_AT


def test_slots_are_the_launchers_nodes_by_their_logs_times_the_packing(
    tmp_path: Path, lives: list[Life]
) -> None:
    mpi = convert(rows("mpi", tmp_path), lives, "MPI").launchers
    serial = convert(rows("serial", tmp_path), lives, "SERIAL").launchers
    assert [line["slots"] for line in mpi] == [1, 0, 1, 0]
    assert [line["slots"] for line in serial] == [4, 0, 4, 0]
    assert {line["mode"] for line in serial} == {"serial"}
    killed = next(life for life in lives if life.only == "LOST" and not life.ended)
    assert KILLED_AT - 2 < killed.end < KILLED_AT


def test_a_searchs_own_place_is_none_of_its_evaluators(tmp_path: Path, lives: list[Life]) -> None:
    jobs = rows("serial", tmp_path)
    first = min(line[0] for line in jobs[0]["history"])
    search = {**jobs[0], "id": "aa" * 16, "name": "test", "history": [[first + 6, "RUNNING", ""]]}
    search["state"] = "RUNNING"
    evaluations = convert([search, *jobs], lives, "SERIAL")
    assert [line["slots"] for line in evaluations.launchers] == [3, 0, 4, 0]
    assert {line["creator"] for line in evaluations.attempts} == {"aa" * 16}
    assert len(evaluations.attempts) == len(jobs)


def test_what_a_search_wrote_down_counts_for_its_launchers_whole_life(
    tmp_path: Path, lives: list[Life]
) -> None:
    """Interrupted evaluations run again before their search does."""
    first, second = [life for life in lives if life.only == "MPI"]
    noted = tmp_path / "launchers.jsonl"
    lines = [
        {"launcher": f"deephyper-{n}", "time": time_s, "event": event, "slots": slots}
        for n, time_s, event, slots in (
            (1, first.start, "start", 3),
            (1, first.end - 5, "end", 0),
            (2, second.start + 12, "start", 2),
        )
    ]
    noted.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"launcher": "x", "ti')
    read = read_noted(noted)
    evaluations = convert(rows("mpi", tmp_path), lives, "MPI", read)
    assert [line["slots"] for line in evaluations.launchers] == [3, 0, 2, 0]
    assert [line["time"] for line in evaluations.launchers[:2]] == [first.start, first.end + 1]
    again = next(line for line in evaluations.attempts if (line["name"], line["number"]) == ("task6", 2))
    assert again["launcher"] == evaluations.launchers[2]["launcher"]
    assert again["start"] < second.start + 12
    without = convert(rows("mpi", tmp_path), [], "MPI", read)
    assert without.launchers == [], "those of the search have to do"
    assert {line["launcher"] for line in without.attempts} == {"deephyper-1", "deephyper-2"}
    assert convert(rows("mpi", tmp_path), [first], "MPI", read).launchers == [], "a log is missing"


def test_a_launcher_that_lives_offers_slots_until_its_last_sign_of_life(
    tmp_path: Path, lives: list[Life]
) -> None:
    living = [replace(life, end=life.start + 2, ended=False) for life in lives if life.only == "SERIAL"]
    evaluations = convert(rows("serial", tmp_path), living[:1], "SERIAL")
    assert [line["event"] for line in evaluations.launchers] == ["start", "capacity"]
    keys = {line["launcher"] for line in evaluations.attempts}
    assert keys == {line["launcher"] for line in evaluations.launchers}


def test_logs_with_another_local_time_are_left_out(
    tmp_path: Path, lives: list[Life], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", "America/Chicago")
    time.tzset()
    shifted = read_lives(tmp_path)
    assert abs(shifted[0].start - lives[0].start) == pytest.approx(6 * 3600)
    evaluations = convert(rows("mpi", tmp_path), shifted, "MPI")
    assert evaluations.launchers == []
    assert "logs have other times" in evaluations.notes[0]


def job(history: list[tuple[str, str]], **more: Any) -> dict[str, Any]:
    """A row with a line each second."""
    lines = [[float(n), state, message] for n, (state, message) in enumerate(history, start=1)]
    ours = {"nas_hpc": {"creator": "5e" * 16, "seq": 3}}
    return {
        "id": "0a" * 16, "name": "task3", "workflow": "W", "application": "nas_hpc_trial", "num_nodes": 1,
        "ranks_per_node": 1, "node_packing_count": 1, "state": history[-1][0], "history": lines, "data": ours,
        "directory": "/nowhere", **more,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("history", "outcomes"),
    [
        ([("CREATED", ""), ("JOB_FINISHED", "from the cache")], ["invalid_result"]),
        ([("CREATED", ""), ("FAILED", "no such application")], ["error"]),
        ([("RUNNING", ""), ("USER_KILLED", "timeout: 3 s")], ["timeout"]),
        ([("RUNNING", ""), ("USER_KILLED", ""), ("RUN_ERROR", "x"), ("FAILED", "")], ["killed"]),
        ([("RUNNING", ""), ("RUN_TIMEOUT", ""), ("FAILED", "")], ["timeout"]),
        ([("RUNNING", ""), ("RUN_ERROR", "nonzero return -15: "), ("FAILED", "")], ["walltime"]),
        ([("RUNNING", ""), ("RUN_ERROR", "x"), ("RESTART_READY", ""), ("RUNNING", "")], ["error"]),
    ],
)
def test_what_else_a_history_may_say(history: list[tuple[str, str]], outcomes: list[str]) -> None:
    assert list(told(convert([job(history)], [], "W")).values()) == outcomes


def test_an_answer_from_the_cache_is_one_without_a_duration() -> None:
    data = {"nas_hpc": {"creator": "5e" * 16, "seq": 3}, "dh_objective": 0.5}
    line = convert([job([("CREATED", ""), ("JOB_FINISHED", "")], data=data)], [], "W").attempts[0]
    assert (line["cached"], line["number"], line["objective"], line["start"]) == (True, 0, 0.5, None)


def test_a_job_that_balsam_took_back_without_a_line_has_lost_an_attempt() -> None:
    running = job([("CREATED", ""), ("RUNNING", "")])
    assert convert([running], [], "W").unfinished == ["5e" * 16]
    taken = convert([{**running, "state": "RESTART_READY"}], [], "W")
    assert list(told(taken).values()) == ["lost"]


STATES = st.sampled_from(
    [
        "RUNNING",
        "RUN_DONE",
        "RUN_ERROR",
        "RUN_TIMEOUT",
        "USER_KILLED",
        "RESTART_READY",
        "FAILED",
        "JOB_FINISHED",
    ]
)


@given(st.lists(STATES, max_size=12))
def test_each_running_has_one_end_whatever_the_history(names: list[str]) -> None:
    found, runs = spans(
        [[float(n), name, ""] for n, name in enumerate(names)], names[-1] if names else "CREATED"
    )
    starts = [span.start for span in found if not math.isnan(span.start)]
    assert len(starts) + runs == names.count("RUNNING")
    assert all(span.end >= span.start for span in found if span.end == span.end and span.start == span.start)
    line = convert([job([(name, "") for name in names])], [], "W") if names else None
    assert line is None or all(one["end"] == one["end"] for one in line.attempts)


def test_logs_that_are_torn_or_foreign_are_no_launchers(tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    for number, raw in enumerate(
        (b"", b"\xff\xfe", b"Built 3 DEFAULT workers", b"31-Feb-2026 01:00:00|7| x\nBuilt 1 A workers")
    ):
        (tmp_path / "log" / f"launcher_{number}.log").write_bytes(raw)
    os.mkfifo(tmp_path / "log" / "launcher_other.log.pipe")
    assert [life.nodes for life in read_lives(tmp_path)] == [1]
    assert read_lives(tmp_path / "nowhere") == []
