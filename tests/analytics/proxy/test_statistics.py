"""Statistics of proxy tasks: published numbers, numbers of the original tools, and what holds for all."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hn

from nas_hpc.analytics.proxy.correlation import (
    Correlation,
    align,
    correlations,
    least_p_value,
    possible,
    rank_correlation,
)
from nas_hpc.analytics.proxy.curves import Curve, few_points, read_curve
from nas_hpc.analytics.proxy.stopping import Limits, Stop, Stopped, best_task, first_stop
from nas_hpc.analytics.proxy.thinning import described, desired_pcts, keep, spread, thin
from nas_hpc.analytics.proxy.variance import _judged, judge, smoothness, variation


def array(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float64)


def curve(*scores: float, total: int = 1000, pct: float = 100.0, seconds: float = 0.0) -> Curve:
    """Validated at equal distances up to ``pct`` percent of ``total`` steps."""
    pcts = np.linspace(0, pct, len(scores) + 1)[1:]
    steps = np.round(pcts * total / 100).astype(np.int64) - 1
    return Curve(steps, pcts, array(*scores), total, seconds)


# -- variance and smoothness -------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("scores", "value"),
    [
        ([0.70, 0.72, 0.71, 0.69, 0.73], 0.019918500878494314),
        ([0.1, 0.5, 0.9, 0.2, 0.3], 0.7071067811865475),
        ([0.6, 0.7], 0.0769230769230769),
    ],
)
def test_variance_is_the_coefficient_of_variation(scores: list[float], value: float) -> None:
    assert variation(array(*scores)) == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize(
    ("scores", "value"),
    [
        ([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0], 0.0),
        ([0.1, 0.2, 0.3, 0.4, 0.5, 0.45, 0.6, 0.7, 0.75, 0.8], 0.642857),
        ([0.1, 0.3, 0.5, 0.6, 0.65, 0.7, 0.6, 0.75, 0.6, 0.72], 15.2307692),
        ([0.1, 0.5] * 5, 108.000005),
        ([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.5], 44.9999973),
    ],
)
def test_smoothness_adds_up_what_goes_down(scores: list[float], value: float) -> None:
    assert smoothness(np.arange(10.0, 101.0, 10.0), array(*scores)) == pytest.approx(value, abs=2e-5)


@given(
    hn.arrays(np.float64, st.integers(3, 20), elements=st.integers(0, 1000).map(lambda n: n / 1000)),
    st.floats(0.01, 100), st.integers(-5, 5).map(lambda power: 2.0**power),
)  # fmt: skip
def test_neither_measure_depends_on_the_unit_of_the_scores(
    scores: np.ndarray, scale: float, other: float
) -> None:
    pcts = np.linspace(5, 100, len(scores))
    once, again = smoothness(pcts, scores), smoothness(other * pcts, scale * scores)
    assert again == pytest.approx(once, rel=1e-3, abs=1e-3, nan_ok=True)
    assert variation(scale * scores) == pytest.approx(variation(scores), rel=1e-9, nan_ok=True)


def test_calm_copies_are_good_and_wild_ones_get_advice() -> None:
    calm = judge([curve(0.2, 0.4, 0.6, 0.7, 0.7 + n / 100) for n in range(1, 6)])
    assert calm.variance.good
    assert calm.smoothness.good
    assert calm.variance.info == "Model variance is good."
    assert calm.advice == ()
    wild = judge([curve(*[0.1, 0.5] * 4, 0.1, last) for last in (0.5, 0.3, 0.9, 0.2, 0.9)])
    assert not wild.variance.good
    assert not wild.smoothness.good
    assert "measured:" in wild.variance.info
    assert "threshold:0.4" in wild.variance.info
    assert "cosine" in wild.advice[0]


def test_the_thresholds_themselves_are_good() -> None:
    finals = array(0.6, 1.4)  # mean 1, deviation 0.4
    assert variation(finals) == pytest.approx(0.4)
    assert judge([curve(0.1, float(final)) for final in array(0.6000001, 1.4)]).variance.good
    assert _judged("smoothness", 10.0, 10.0, "").good
    assert not _judged("smoothness", 10.000001, 10.0, "").good


@pytest.mark.parametrize(
    ("dead", "said"),
    [
        (curve(0.0, 0.0, 0.0), "has the score 0 from beginning to end"),
        (curve(0.5, 0.5, 0.5), "has the score 0.5 from beginning to end"),
        (curve(0.1, math.nan, 0.3), "has scores that are not finite"),
        (curve(0.1, 0.2, pct=60), "ended at 60 %"),
        (None, "left no scores"),
    ],
)
def test_dead_trainings_are_never_good(dead: Curve | None, said: str) -> None:
    found = judge([dead] * 5)
    assert not found.variance.good
    assert not found.smoothness.good
    assert found.variance.value is None
    assert found.smoothness.value is None
    assert found.variance.info.startswith("invalid: 0 of 5 copies can be used")
    assert f"copy 3 {said}" in found.variance.info
    assert found.advice
    most = judge([*[curve(0.2, 0.4, 0.6)] * 4, dead])
    assert most.variance.good, "one dead copy does not spoil the measure of the others"
    assert f"copy 5 {said}" in most.variance.info


# -- thinning ----------------------------------------------------------------------------------------------
def test_thinning_takes_out_what_adds_least_in_the_original_order() -> None:
    accuracy = array(0.50, 0.51, 0.52, 0.80, 0.79, 0.60, 0.10)
    latency = array(10, 10.2, 10, 30, 29, 20, 5)
    assert [index + 1 for index in thin(accuracy, latency, 3)] == [2, 3, 5]
    one_axis = array(0.10, 0.11, 0.30, 0.31, 0.32, 0.55, 0.56, 0.80, 0.90, 0.905)
    assert [index + 1 for index in thin(one_axis, None, 5)] == [9, 4, 2, 6, 3]


some_scores = hn.arrays(np.float64, st.integers(0, 12), elements=st.floats(0, 1).map(lambda x: round(x, 3)))


@given(some_scores, st.integers(0, 20))
def test_of_accuracies_alone_the_extremes_survive_and_two_are_left_at_least(
    accuracy: np.ndarray, remove: int
) -> None:
    gone = thin(accuracy, None, remove)
    left = np.delete(accuracy, gone)
    assert len(gone) == len(set(gone)) == max(0, min(remove, len(accuracy) - 2))
    if len(accuracy):
        assert (left.min(), left.max()) == (accuracy.min(), accuracy.max())


@given(some_scores, st.integers(0, 12), st.integers(0, 2**32 - 1))
def test_pinned_extremes_of_both_axes_survive(accuracy: np.ndarray, remove: int, seed: int) -> None:
    latency = np.random.default_rng(seed).random(len(accuracy))
    gone = thin(accuracy, latency, remove, pin_extremes=True)
    for axis in (accuracy, latency) if len(accuracy) else ():
        assert np.delete(axis, gone).min() == axis.min()
        assert np.delete(axis, gone).max() == axis.max()


@settings(derandomize=True)  # a constant in the scale: of models almost equally near another one may go
@given(st.integers(0, 12), st.sampled_from([1.0, 60.0, 1000.0]), st.integers(0, 2**32 - 1))
def test_thinning_does_not_depend_on_the_units(remove: int, unit: float, seed: int) -> None:
    accuracy, latency = np.random.default_rng(seed).random((2, 12))
    assert thin(accuracy, latency, remove) == thin(accuracy, unit * latency + 5.0, remove)
    assert thin(accuracy, latency, remove) == thin(unit * accuracy - 1.0, latency, remove)
    assert thin(accuracy, None, remove) == thin(unit * accuracy + 1.0, None, remove)


def test_invalid_models_go_first_and_count() -> None:
    accuracy = array(0.1, math.nan, 0.3, 0.31, 0.0, math.nan)
    found = keep(accuracy, None, 3)
    assert found.invalid == (1, 5)
    assert len(found.removed) == 1
    assert found.kept == tuple(i for i in range(6) if i not in (*found.invalid, *found.removed))
    assert 4 in found.kept, "zero is a score"
    assert keep(accuracy, None, 1).removed == ()
    assert len(keep(accuracy, None, 60).kept) == 2
    with_latency = keep(accuracy, array(1, 1, math.nan, 1, 1, 1), 3)
    assert with_latency.invalid == (1, 2, 5)


def test_the_rounds_from_thirty_to_ten_and_those_of_the_published_run_from_fifty() -> None:
    rounds = desired_pcts(30, 10, 5)
    assert [count for count, _ in rounds] == [30, 25, 20, 15, 10]
    assert [pct for _, pct in rounds] == pytest.approx([3.333333, 7.333333, 12.333333, 19.0, 101.0])
    published = desired_pcts(50, 10, 5)
    assert published[0][1] == 2.0
    assert published[-2][1] == pytest.approx(28.57936507936508, rel=1e-15)
    assert desired_pcts(12, 5, 5) == [(12, 100 / 12), (7, 100 / 12 + 100 / 7), (5, 101.0)]


def test_range_gaps_and_groups_of_scores_are_told() -> None:
    found = described(array(0.9, 0.1, math.nan, 0.15, 0.5, 0.52))
    assert found == {"least": 0.1, "greatest": 0.9, "widest_gap": pytest.approx(0.38), "groups": 3}
    assert described(array(0.5)) == {"least": 0.5, "greatest": 0.5, "widest_gap": 0.0, "groups": 1}
    assert described(np.linspace(0.0, 1.0, 11))["groups"] == 1


def test_fewer_than_ten_validations_of_a_whole_training_are_told() -> None:
    whole, part = curve(*np.linspace(0, 1, 9)), curve(0.1, 0.2, pct=30)
    assert few_points([whole, part, None], "more") == "9 validations in a training: 10 or more show more"
    assert few_points([curve(*np.linspace(0, 1, 10)), part], "more") == few_points([None], "more") == ""


def test_scores_around_two_values_are_told() -> None:
    assert spread(np.linspace(0.1, 0.9, 10)) == ""
    assert "two values, 0.1 and 0.9" in spread(array(0.1, 0.1, 0.1, 0.9, 0.9, 0.9))
    assert "all the same" in spread(array(0.4, 0.4, 0.4))


# -- correlation -------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("count", "tau", "p_value"),
    [
        (10, -0.06666666666666667, 0.8618005952380953),
        (10, -0.6, 0.016666115520282188),
        (10, -0.3333333333333333, 0.21637345679012346),
        (10, 0.9555555555555554, 5.5114638447971785e-06),
        (8, 0.7857142857142856, 0.005505952380952381),
    ],
)
def test_the_published_pairs_of_tau_and_p(count: int, tau: float, p_value: float) -> None:
    """From a permutation with as many inversions as that tau has."""
    full = np.arange(count, dtype=np.float64)
    inversions = round((1 - tau) / 2 * count * (count - 1) / 2)
    order, left = list(range(count)), inversions
    for place in range(count):
        move = min(left, count - 1 - place)
        order.insert(place, order.pop(place + move))
        left -= move
    proxy = np.empty(count)
    proxy[order] = full
    missing = np.full(10 - count, math.nan)  # of ten models eight are enough
    found = rank_correlation(np.append(proxy, missing), np.append(full, np.arange(10.0 - count)))
    assert found == pytest.approx((tau, p_value), rel=1e-12)


def test_a_correlation_needs_five_models_and_seventy_percent() -> None:
    ten, nan = np.arange(10.0), math.nan
    seven = np.where(ten < 7, ten, nan)
    assert rank_correlation(seven, ten) == pytest.approx((1.0, 0.0003968253968253968))
    assert all(math.isnan(value) for value in rank_correlation(np.where(ten < 6, ten, nan), ten))
    assert all(math.isnan(value) for value in rank_correlation(ten[:4], ten[:4]))
    five = rank_correlation(array(1, 2, 3, 4, 5), array(1, 2, 3, 5, 4))
    assert five == pytest.approx((0.8, 0.08333333333333333))
    assert all(math.isnan(value) for value in rank_correlation(np.ones(8), np.arange(8.0)))


def test_trainings_are_compared_where_both_were_validated() -> None:
    full = array(0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
    first, second = [0.3, 0.1, 0.2, 0.4, 0.6, 0.5], [0.3, 0.4, 0.2, 0.5, 0.7]
    curves: list[Curve | None] = [
        Curve(np.array([99, 199][: 2 if at < 5 else 1]), array(*[50, 100][: 2 if at < 5 else 1]),
              array(*[first[at], *second[at : at + 1]]), 200, 200.0)
        for at in range(6)
    ]  # fmt: skip
    aligned = align([*curves, None])
    assert aligned.steps.tolist() == [99, 199]
    assert np.isnan(aligned.scores[6]).all()
    assert np.isnan(aligned.scores[5, 1])
    found = correlations(aligned, full)
    assert np.isfinite(found.tau).tolist() == [True, True]
    assert found.median_score.tolist() == [0.4, 0.4]
    assert found.median_hours == pytest.approx([99 / 3600, 199 / 3600])
    between = align([curve(0.1, 0.2, 0.3, total=300), curve(0.2, 0.4, total=300)], interpolate=True)
    assert between.steps.tolist() == [99, 149, 199, 299]
    assert between.scores[0] == pytest.approx([0.1, 0.15, 0.2, 0.3])
    assert between.scores[1] == pytest.approx([math.nan, 0.2, 0.2 + 0.2 / 3, 0.4], nan_ok=True)


def test_seven_trainings_one_of_them_lost_and_one_without_its_last_step_give_the_reference_values() -> None:
    full = array(0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
    first, second = [0.2, 0.1, 0.0, 0.5, 0.3, 0.4], [0.3, 0.1, 0.2, 0.5, 0.4]
    seconds = [100.0, 200.0, 200.0, 200.0, 200.0, 100.0]
    curves: list[Curve | None] = [
        Curve(np.array([99, 199]), array(50, 100), array(first[at], second[at]), 200, seconds[at])
        for at in range(5)
    ]
    curves += [Curve(np.array([99]), array(50), array(first[5]), 100, seconds[5]), None]
    found = correlations(align(curves), full)
    assert found.tau == pytest.approx([1 / 3, 0.4])
    assert found.p_value == pytest.approx([0.46944444, 0.48333333], abs=1e-8)
    assert found.median_score.tolist() == [0.3, 0.3]
    assert found.median_hours == pytest.approx([0.0275, 0.02763889], abs=1e-8)


@given(hn.arrays(np.float64, 8, elements=st.integers(0, 50)), st.sampled_from([1e-3, 0.5, 7.0, 1e4]))
def test_a_rank_correlation_does_not_depend_on_the_scale_of_either_score(
    proxy: np.ndarray, scale: float
) -> None:
    full = array(3, 1, 4, 1, 5, 9, 2, 6)
    once = rank_correlation(proxy, full)
    assert rank_correlation(scale * proxy + 3.0, full) == pytest.approx(once, nan_ok=True)
    assert rank_correlation(proxy, scale * full - 1.0) == pytest.approx(once, nan_ok=True)
    assert rank_correlation(-proxy, full)[0] == pytest.approx(-once[0], nan_ok=True)


def test_whether_a_correlation_is_still_possible() -> None:
    assert possible(running=3, valid=4, total=10)
    assert not possible(running=2, valid=4, total=10)
    assert not possible(running=0, valid=4, total=5)


# -- stopping ----------------------------------------------------------------------------------------------
def over(
    steps: list[int],
    tau: list[float],
    hours: list[float],
    median: list[float] | None = None,
    p: list[float] | None = None,
) -> Correlation:
    nan = np.full(len(steps), math.nan)
    return Correlation(
        np.array(steps), array(*tau), nan if p is None else array(*p),
        nan if median is None else array(*median), array(*hours), 8 * array(*hours),
    )  # fmt: skip


def test_the_steps_at_which_the_desired_correlation_is_met() -> None:
    steps = [1249, 2499, 3749, 4999]
    found = first_stop(over(steps, [-0.2, 0.3, 0.5, 0.8], [0.1, 0.2, 0.3, 0.4]), Limits(correlation=0.65))
    assert found == Stopped(Stop.CORRELATION, pytest.approx(0.35), 4374)
    at_once = first_stop(over(steps, [0.7, 0.3, 0.5, 0.8], [0.1, 0.2, 0.3, 0.4]), Limits())
    assert at_once == Stopped(Stop.CORRELATION, 0.1, 1249)
    assert first_stop(over(steps, [0.1] * 4, [0.1] * 4), Limits()) is None


def test_a_step_without_a_correlation_is_no_end_of_a_line() -> None:
    found = first_stop(over([1249, 2499], [math.nan, 0.8], [math.nan, 0.2]), Limits())
    assert found == Stopped(Stop.CORRELATION, 0.2, 2499)


def test_the_other_ends_in_their_order() -> None:
    steps, tau, hours = [0, 2], [0.1, 0.7], [0.5, 1.0]
    best = first_stop(over(steps, tau, hours), Limits(best_hours=0.5))
    assert best == Stopped(Stop.NOT_BEST, 0.5, 0)
    met = first_stop(over(steps, tau, hours), Limits())
    assert met == Stopped(Stop.CORRELATION, pytest.approx(0.958333, rel=1e-6), 1)
    assert first_stop(over(steps, tau, hours), Limits(hours=0.5)) == Stopped(Stop.TIME, 0.5, 0)
    accurate = over(steps, tau, hours, [0.4, 0.8])
    assert first_stop(accurate, Limits(None, 0.6)) == Stopped(Stop.ACCURACY, pytest.approx(0.75), 1)
    both = first_stop(over([5], [0.9], [9.0], [0.9]), Limits(accuracy=0.1, hours=1.0, best_hours=1.0))
    assert both is not None
    assert both.why is Stop.CORRELATION


def test_a_correlation_counts_with_a_small_p_value_only() -> None:
    steps, hours = [9, 19, 29], [0.1, 0.2, 0.3]
    found = over(steps, [0.5, 0.7, 0.8], hours, p=[0.3, 0.04, 0.02])
    assert first_stop(found, Limits(p_value=0.05)) == Stopped(Stop.CORRELATION, pytest.approx(0.175), 16)
    later = first_stop(found, Limits(p_value=0.02))
    assert later == Stopped(Stop.CORRELATION, 0.3, 29), "it was there before: no line leads to it"
    assert first_stop(found, Limits(p_value=0.01)) is None
    assert least_p_value(5) == pytest.approx(1 / 60)
    assert least_p_value(10) == rank_correlation(np.arange(10.0), np.arange(10.0))[1]


def test_all_trainings_together_have_a_limit_too_and_those_that_ended_count_until_their_end() -> None:
    hours = [curve(0.1, 0.2, 0.3, 0.4, seconds=3600.0) for _ in range(7)]
    dead = curve(0.1, pct=25, seconds=3600.0)
    found = correlations(align([*hours, dead]), np.arange(8.0))
    whole = [7 * step / 1000 + 249 / 1000 for step in (249, 499, 749, 999)]
    assert found.total_hours == pytest.approx(whole)
    never = Limits(correlation=2.0, total_hours=float(found.total_hours[1]))
    assert first_stop(found, never) == Stopped(Stop.NODE_HOURS, pytest.approx(499 / 1000), 499)
    best = Limits(correlation=2.0, best_total_hours=float(found.total_hours[2]))
    assert first_stop(found, best) == Stopped(Stop.NOT_BEST, pytest.approx(749 / 1000), 749)
    met = first_stop(over([9, 19], [0.5, 0.8], [0.1, 0.2]), Limits())
    assert met is not None
    assert met.total_hours == pytest.approx(8 * 0.15)


def test_the_best_is_the_cheapest_that_met_its_target_and_the_first_of_equals() -> None:
    tasks = {
        "a": Stopped(Stop.CORRELATION, 1.6, 1), "b": Stopped(Stop.ACCURACY, 1.2, 1),
        "c": Stopped(Stop.TIME, 0.1, 1), "d": Stopped(Stop.LATENCY, 0.3, 1),
        "e": Stopped(Stop.CORRELATION, 1.2, 1),
    }  # fmt: skip
    assert best_task(tasks) == "b"
    assert best_task({"c": tasks["c"]}) == ""


# -- what trials leave -------------------------------------------------------------------------------------
def test_scores_between_validations_lie_on_straight_lines_from_zero(tmp_path: Path) -> None:
    points = [{"training_step_pct": p, "training_step": 10 * p - 1, "accuracy": a} for p, a in
              ((10, 0.1), (20, 0.3), (30, 0.35), (30, 0.9))]  # fmt: skip
    content = {
        "training_time": {"total_training_steps": 300, "total_training_time_in_secs": 33.0},
        "latency": 7.5, "training_accuracy_over_steps": points,
    }  # fmt: skip
    (tmp_path / "TRIAL_TRAINING_METRICS.json").write_text(json.dumps(content))
    found = read_curve(tmp_path)
    assert found is not None
    assert [found.score_at(pct) for pct in (5, 15, 25, 30)] == pytest.approx([0.05, 0.2, 0.325, 0.35])
    assert math.isnan(found.score_at(31))
    assert (found.latency, found.trained_steps, found.trained_s) == (7.5, 300, 33.0)
    assert not found.complete


@pytest.mark.parametrize("text", ["", "{", "[]", '{"training_accuracy_over_steps": [{"accuracy": 1}, 3]}'])
def test_a_torn_file_is_no_curve(tmp_path: Path, text: str) -> None:
    (tmp_path / "TRIAL_TRAINING_METRICS.json").write_text(text)
    assert read_curve(tmp_path) is None
    assert read_curve(tmp_path / "not there") is None
