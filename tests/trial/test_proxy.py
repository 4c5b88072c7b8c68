"""How far a trial trains: what its trainer records, and what its controller orders."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nas_hpc.analytics.proxy.curves import read_curve
from nas_hpc.errors import WrongCall
from nas_hpc.trial import (
    get_stop_training,
    stop_training,
    update_trial_training_accuracy_metric,
    update_trial_training_latency_metric,
)
from nas_hpc.trial.proxy import (
    post_desired_training_pct,
    post_max_training_time,
    read_training,
)
from tests.support import examples


def record(directory: Path) -> Any:
    return json.loads((directory / "TRIAL_TRAINING_METRICS.json").read_text())


def three_cycles(directory: Path) -> None:
    for cycle, score in enumerate((0.1, 0.3, 0.35)):
        begin, end = 100 * cycle, 100 * cycle + 99
        update_trial_training_accuracy_metric(directory, score, begin, end, 10.0 + cycle, 1000)


def test_the_record_of_three_cycles_one_of_them_twice_is_that_of_the_reference(tmp_path: Path) -> None:
    three_cycles(tmp_path)
    update_trial_training_accuracy_metric(tmp_path, 0.9, 200, 299, 12.0, 1000)
    update_trial_training_latency_metric(tmp_path, 7.5)
    assert record(tmp_path) == {
        "training_time": {"total_training_steps": 300, "total_training_time_in_secs": 33.0},
        "latency": 7.5,
        "training_accuracy_over_steps": [
            {"training_step_pct": 10.0, "training_step": 99, "accuracy": 0.1},
            {"training_step_pct": 20.0, "training_step": 199, "accuracy": 0.3},
            {"training_step_pct": 30.0, "training_step": 299, "accuracy": 0.35},
        ],
    }
    curve = read_curve(tmp_path)
    assert curve is not None
    assert [curve.score_at(pct) for pct in (5, 15, 25, 30)] == pytest.approx([0.05, 0.2, 0.325, 0.35])
    assert math.isnan(curve.score_at(31))


def test_a_training_that_is_made_longer_has_the_percentages_of_the_longer_one(tmp_path: Path) -> None:
    three_cycles(tmp_path)
    update_trial_training_accuracy_metric(tmp_path, 0.4, 300, 399, 10.0, 400)
    pcts = [point["training_step_pct"] for point in record(tmp_path)["training_accuracy_over_steps"]]
    assert pcts == [25.0, 50.0, 75.0, 100.0]


def test_a_score_of_zero_is_a_score_and_one_that_is_not_finite_is_null(tmp_path: Path) -> None:
    update_trial_training_accuracy_metric(tmp_path, 0.0, 0, 49, 1.0, 100)
    update_trial_training_accuracy_metric(tmp_path, math.nan, 50, 99, 1.0, 100)
    update_trial_training_latency_metric(tmp_path, math.inf)
    points = record(tmp_path)["training_accuracy_over_steps"]
    assert [point["accuracy"] for point in points] == [0.0, None]
    assert record(tmp_path)["latency"] == -1.0
    curve = read_curve(tmp_path)
    assert curve is not None
    assert curve.complete


@pytest.mark.parametrize(
    ("begin", "end", "seconds", "total", "words"),
    [
        (5, 4, 1.0, 10, "from step 5 to 4"),
        (-1, 4, 1.0, 10, "from step -1"),
        (0, 4, -1.0, 10, "took -1.0 s"),
        (0, 4, math.nan, 10, "took nan s"),
        (0, 4, 1.0, 0, "has 0 steps"),
    ],
)
def test_a_cycle_that_makes_no_sense_is_refused(
    tmp_path: Path, begin: int, end: int, seconds: float, total: int, words: str
) -> None:
    with pytest.raises(WrongCall, match=words):
        update_trial_training_accuracy_metric(tmp_path, 0.5, begin, end, seconds, total)
    assert not list(tmp_path.iterdir())


HUGE = "1" + 400 * "0"


@pytest.mark.parametrize(
    "content",
    [
        "", "[1]", '{"training_time": 3}', '{"training_accuracy_over_steps": [1',
        f'{{"latency": {HUGE}, "training_time": {{"total_training_steps": {HUGE}}}}}',
        '{"training_accuracy_over_steps": [{"training_step": 1e300, "training_step_pct": 1, "accuracy": 1}]}',
    ],
)  # fmt: skip
def test_a_record_that_cannot_be_understood_is_an_empty_one(tmp_path: Path, content: str) -> None:
    (tmp_path / "TRIAL_TRAINING_METRICS.json").write_text(content)
    assert read_training(tmp_path)["training_accuracy_over_steps"] == []
    assert read_curve(tmp_path) is None
    three_cycles(tmp_path)
    assert len(read_training(tmp_path)["training_accuracy_over_steps"]) == 3


def why_stopped(place: Path) -> str:
    path = place / "TRIAL_STOPPED.json"
    return str(json.loads(path.read_text())["reason"]) if path.exists() else ""


def test_a_trial_stops_at_the_percentage_that_is_asked_for_last(tmp_path: Path) -> None:
    assert not stop_training(tmp_path, 499, 1000)
    post_desired_training_pct(tmp_path, 101.0)
    assert not stop_training(tmp_path, 999, 1000)
    post_desired_training_pct(tmp_path, 50.0)  # lower than before
    assert not stop_training(tmp_path, 498, 1000)
    assert stop_training(tmp_path, 499, 1000)
    assert why_stopped(tmp_path) == "desired_training_pct"
    post_desired_training_pct(tmp_path, 60.0)
    assert not get_stop_training(tmp_path, 499, 1000)
    assert why_stopped(tmp_path) == ""


def test_an_order_of_zero_stops_before_the_first_step(tmp_path: Path) -> None:
    post_desired_training_pct(tmp_path, 0.0)
    assert stop_training(tmp_path, -1, 1000)


def test_a_trial_stops_when_it_has_trained_longer_than_it_may(tmp_path: Path) -> None:
    post_max_training_time(tmp_path, 33.0 / 3600)
    assert not stop_training(tmp_path, -1, 1000)
    three_cycles(tmp_path)
    assert not stop_training(tmp_path, 299, 1000)  # 33 s are not longer than 33 s
    post_max_training_time(tmp_path, 32.9 / 3600)
    assert stop_training(tmp_path, 299, 1000)
    assert why_stopped(tmp_path) == "max_training_time"
    post_max_training_time(tmp_path, 0.0)
    assert stop_training(tmp_path, 299, 1000)


def test_a_trial_whose_controller_is_gone_stops_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = tmp_path / "controller_alive_timestamp.json"
    said.write_text(json.dumps({"timestamp": time.time()}))
    assert not stop_training(tmp_path, 99, 1000)
    said.write_text(json.dumps({"timestamp": time.time() - 16 * 60}))
    assert stop_training(tmp_path, 99, 1000)
    assert why_stopped(tmp_path) == "controller_gone"
    assert "has not been heard of for 16 minutes" in capsys.readouterr().err
    said.unlink()
    assert not stop_training(tmp_path, 99, 1000)


@pytest.mark.parametrize(
    "content", ["", '{"desired_training_pct": "x"}', "[]", '{"desired_training_pct": nu']
)
def test_an_order_that_cannot_be_understood_is_none(tmp_path: Path, content: str) -> None:
    (tmp_path / "DESIRED_TRAINING_PCT.json").write_text(content)
    assert not stop_training(tmp_path, 999, 1000)


def test_outside_of_a_trial_there_is_nobody_to_stop_it_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert not stop_training(None, 99, 1000)
    with pytest.raises(WrongCall, match="has 0 steps"):  # as within a trial
        stop_training()
    update_trial_training_accuracy_metric(None, 0.5, 0, 9, 1.0, 10)
    update_trial_training_latency_metric(None, 1.0)
    assert not list(tmp_path.iterdir())


@settings(max_examples=examples(30))
@given(cuts=st.lists(st.integers(1, 40), min_size=1, max_size=8), data=st.data())
def test_a_training_that_is_interrupted_anywhere_has_the_record_of_one_that_is_not(
    cuts: list[int], data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    ends = [sum(cuts[: at + 1]) for at in range(len(cuts))]
    kills = data.draw(st.lists(st.integers(0, len(cuts) - 1), max_size=4))
    whole, torn = tmp_path_factory.mktemp("whole"), tmp_path_factory.mktemp("torn")

    def cycle(directory: Path, at: int) -> None:
        begin = ends[at] - cuts[at]
        update_trial_training_accuracy_metric(
            directory, at / 10, begin, ends[at] - 1, 0.5 * cuts[at], ends[-1]
        )

    for at in range(len(cuts)):
        cycle(whole, at)
        cycle(torn, at)
        for _ in range(kills.count(at)):  # recorded, and ended before the checkpoint
            cycle(torn, at)
    assert record(torn) == record(whole)
