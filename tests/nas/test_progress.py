"""What follows from a training's history: its best epoch, and when it stops."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nas_hpc.errors import WrongCall
from nas_hpc.nas import NaProblem
from nas_hpc.nas.progress import Monitor, Progress, best_monitor, early_monitor, why_stop
from nas_hpc.nas.settings import Training


def _problem(objective: str = "val_accuracy__max", **settings: object) -> NaProblem:
    problem = NaProblem()
    problem.loss("mse")
    problem.metrics(["accuracy", "mae"])
    problem.objective(objective)
    problem.hyperparameters(**settings)
    return problem


def _after(values: Sequence[float], train_s: float = 0.0, epoch_s: float = 0.0) -> Progress:
    return Progress(len(values), history={"val_loss": list(values)}, train_s=train_s, epoch_s=epoch_s)


LOWER = Monitor("val_loss", -1)


def test_the_best_epoch_is_the_first_one_with_the_best_value_whichever_way_that_is() -> None:
    history = {"a": [1.0, 3.0, 3.0, 2.0]}
    assert Monitor("a", 1).best_epoch(history) == 2
    assert Monitor("a", -1).best_epoch(history) == 1
    assert Monitor("b", 1).best_epoch(history) == 0


def test_an_epoch_whose_value_is_no_number_is_never_the_best_one() -> None:
    assert Monitor("a", 1).best_epoch({"a": [math.nan, 0.1, math.nan, 0.3]}) == 4
    assert Monitor("a", -1).waited({"a": [0.3, math.nan, math.nan]}, 0.0) == 2


def test_it_stops_early_after_so_many_epochs_without_a_better_one() -> None:
    training = Training(num_epochs=100, patience=2)
    assert why_stop(_after([3.0, 2.0, 2.5]), training, LOWER) == ""
    assert why_stop(_after([3.0, 2.0, 2.5, 2.0]), training, LOWER) == "early"
    assert why_stop(_after([3.0, 2.0, 2.5, 1.9]), training, LOWER) == ""
    assert why_stop(_after([3.0, 2.0, 2.5, 2.0]), Training(num_epochs=100), LOWER) == ""


def test_changes_below_min_delta_are_no_gain_even_if_they_add_up() -> None:
    training = Training(num_epochs=100, patience=3, min_delta=0.5)
    assert why_stop(_after([3.0, 2.9, 2.8, 2.7]), training, LOWER) == "early"
    assert why_stop(_after([3.0, 2.8, 2.6, 2.4]), training, LOWER) == ""


def test_no_epoch_begins_that_would_end_after_the_time_limit_and_the_first_always_begins() -> None:
    training = Training(num_epochs=100, time_limit_s=10.0)
    assert why_stop(Progress(), training, LOWER) == ""
    assert why_stop(_after([1.0], train_s=8.0, epoch_s=1.9), training, LOWER) == ""
    assert why_stop(_after([1.0], train_s=8.0, epoch_s=2.1), training, LOWER) == "time"


def test_when_all_epochs_are_done_that_is_why_it_stops() -> None:
    training = Training(num_epochs=2, patience=1, time_limit_s=1.0)
    assert why_stop(_after([1.0, 2.0], train_s=5.0), training, LOWER) == "epochs"


@pytest.mark.parametrize(
    ("objective", "expected"),
    [
        ("val_accuracy__max", Monitor("val_accuracy", 1)),
        ("-val_loss__min", Monitor("val_loss", -1)),
        ("val_accuracy__last", None),
        ("-val_loss", None),
    ],
)
def test_the_best_epoch_is_the_objectives_and_for_a_last_value_there_is_none(
    objective: str, expected: Monitor | None
) -> None:
    assert best_monitor(_problem(objective)) == expected


def test_for_an_objective_that_is_a_function_no_epoch_is_the_best() -> None:
    problem = _problem()
    problem.objective(lambda history: history["val_loss"][0])
    assert best_monitor(problem) is None
    assert early_monitor(problem) == Monitor("val_loss", -1)


@pytest.mark.parametrize(
    ("objective", "settings", "expected"),
    [
        ("val_accuracy__max", {}, Monitor("val_accuracy", 1)),
        ("-val_loss__min", {}, Monitor("val_loss", -1)),
        ("-val_accuracy__last", {}, Monitor("val_accuracy", -1)),
        ("val_accuracy__max", {"monitor": "val_loss"}, Monitor("val_loss", -1)),
        ("val_accuracy__max", {"monitor": "mae"}, Monitor("mae", -1)),
        ("-val_loss__min", {"monitor": "accuracy"}, Monitor("accuracy", 1)),
        ("-val_loss__min", {"monitor": "accuracy", "mode": "min"}, Monitor("accuracy", -1)),
    ],
)
def test_early_stopping_looks_where_it_is_told_else_at_what_the_objective_is_of(
    objective: str, settings: dict[str, object], expected: Monitor
) -> None:
    assert early_monitor(_problem(objective, **settings)) == expected


def test_a_monitor_that_names_no_metric_is_refused_with_the_one_that_is_near() -> None:
    with pytest.raises(WrongCall, match=r"monitor='val_acuracy' names no metric.*val_accuracy"):
        early_monitor(_problem(monitor="val_acuracy"))


_VALUES = st.floats(allow_nan=False, allow_infinity=False)


@given(st.lists(st.tuples(_VALUES, _VALUES), max_size=5), st.integers(0, 10), _VALUES)
def test_progress_is_the_same_after_it_was_json(
    epochs: list[tuple[float, float]], step: int, loss: float
) -> None:
    progress = Progress()
    for first, second in epochs:
        progress.add_epoch({"loss": first, "val_loss": second})
    progress.step, progress.loss_sum, progress.trained = step, loss, {"loss": loss}
    assert Progress(**json.loads(json.dumps(progress.to_json()))) == progress
