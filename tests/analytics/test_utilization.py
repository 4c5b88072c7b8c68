"""Step functions and the definition of utilization."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nas_hpc.analytics.frames import ATTEMPT_COLUMNS, LAUNCHER_COLUMNS
from nas_hpc.analytics.utilization import Steps, Utilization, capacity_steps, measure
from tests.support import examples

SECONDS = st.integers(0, 40).map(float)
INTERVALS = st.lists(st.tuples(SECONDS, SECONDS).map(sorted), min_size=1, max_size=12)


def attempts_frame(intervals: list[list[float]], **fields: object) -> pd.DataFrame:
    rows = [
        {
            "job": str(i), "name": f"task{i}", "number": 1, "launcher": "a", "creator": "s", "seq": i,
            "submitted": 0, "start": start, "end": end, "outcome": "ok", "objective": 0.0, "reason": "",
            "cached": False, **fields,
        }
        for i, (start, end) in enumerate(intervals)
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=list(ATTEMPT_COLUMNS)).astype({"start": float, "end": float})


def launchers_frame(*rows: tuple[str, float, str, float]) -> pd.DataFrame:
    frame = pd.DataFrame(list(rows), columns=list(LAUNCHER_COLUMNS))
    return frame.astype({"time": float, "slots": float}).sort_values("time", kind="stable")


def measured(
    intervals: list[list[float]], *launchers: tuple[str, float, str, float], **fields: object
) -> Utilization:
    used = measure(attempts_frame(intervals, **fields), launchers_frame(*launchers))
    assert used is not None
    return used


@given(INTERVALS, SECONDS, SECONDS)
def test_the_integral_of_running_is_the_sum_of_the_clipped_durations(
    intervals: list[list[float]], start: float, end: float
) -> None:
    steps = Steps.of_intervals(np.array([i[0] for i in intervals]), np.array([i[1] for i in intervals]))
    clipped = sum(max(0.0, min(i[1], end) - max(i[0], start)) for i in intervals)
    assert steps.integral(start, end) == pytest.approx(clipped)


@given(INTERVALS, st.integers(1, 50))
def test_binning_keeps_the_integral(intervals: list[list[float]], bins: int) -> None:
    steps = Steps.of_intervals(np.array([i[0] for i in intervals]), np.array([i[1] for i in intervals]))
    assert steps.binned(0.0, 40.5, bins).integral(0.0, 40.5) == pytest.approx(steps.integral(0.0, 40.5))


@given(INTERVALS, INTERVALS)
def test_the_minimum_is_the_lesser_at_every_moment(a: list[list[float]], b: list[list[float]]) -> None:
    first, second = (
        Steps.of_intervals(np.array([i[0] for i in x]), np.array([i[1] for i in x])) for x in (a, b)
    )
    moments = np.arange(-1, 42, 0.5)
    lesser = first.minimum(second).at(moments)
    assert (lesser == np.minimum(first.at(moments), second.at(moments))).all()


@given(INTERVALS, st.lists(st.tuples(SECONDS, st.integers(0, 5)), max_size=6))
def test_the_share_is_never_above_one_and_busy_never_above_the_durations(
    intervals: list[list[float]], capacity: list[tuple[float, int]]
) -> None:
    used = measured(intervals, *(("a", time, "capacity", float(slots)) for time, slots in capacity))
    assert 0.0 <= used.share <= 1.0
    assert used.busy_s <= used.available_s + 1e-9
    assert used.busy_s <= sum(end - start for start, end in intervals) + 1e-9


@settings(max_examples=examples(50))
@given(st.integers(1, 6), st.lists(st.floats(0.1, 9.0), min_size=1, max_size=30), st.floats(0.0, 1.0))
def test_attempts_that_keep_to_the_slots_are_busy_for_all_of_their_durations(
    slots: int, durations: list[float], gap_s: float
) -> None:
    free = [0.0] * slots
    intervals = []
    for duration in durations:
        slot = free.index(min(free))
        intervals.append([free[slot], free[slot] + duration])
        free[slot] += duration + gap_s
    end = max(i[1] for i in intervals)
    used = measured(intervals, ("a", -5.0, "start", slots), ("a", end + 5, "end", 0))
    assert used.busy_s == pytest.approx(sum(durations))
    assert used.available_s == pytest.approx(slots * end)
    assert used.excess_s == pytest.approx(0.0, abs=1e-9)
    assert used.capacity_known


def test_time_without_a_launcher_is_not_available() -> None:
    used = measured(
        [[0, 10], [100, 110]],
        ("a", 0, "start", 2), ("a", 10, "end", 0), ("b", 100, "start", 1), ("b", 111, "end", 0),
    )  # fmt: skip
    assert (used.busy_s, used.available_s) == (20.0, 30.0)


def test_a_killed_launcher_offers_slots_until_its_last_sign_of_life() -> None:
    attempts = attempts_frame([[0, 10], [8, 100], [100, 110]])
    attempts["outcome"] = ["ok", "lost", "ok"]
    attempts["launcher"] = ["a", "a", "b"]
    launchers = launchers_frame(("a", 0, "start", 2), ("b", 100, "start", 2), ("b", 111, "end", 0))
    used = measure(attempts, launchers)
    assert used is not None
    # Twice ten seconds with two slots; of the lost attempt only the two seconds in which its launcher lived.
    assert used.available_s == 40.0
    assert used.busy_s == 10.0 + 2.0 + 10.0
    assert used.excess_s == 0.0


def test_the_end_that_a_successor_wrote_for_a_dead_launcher_holds_whatever_follows_it() -> None:
    launchers = launchers_frame(("a", 0, "start", 3), ("a", 5, "end", 0), ("a", 6, "capacity", 3))
    steps = capacity_steps(launchers, attempts_frame([[0, 50]]))
    assert steps.values[-1] == 0.0
    assert steps.integral(0.0, 50.0) == 15.0


def test_more_attempts_than_slots_are_told_and_not_counted() -> None:
    used = measured([[0, 10], [0, 10], [0, 10]], ("a", 0, "start", 2), ("a", 10, "end", 0))
    assert (used.share, used.busy_s, used.excess_s, used.notable_excess) == (1.0, 20.0, 10.0, True)


def test_without_launcher_lines_the_most_at_once_stand_for_the_slots() -> None:
    used = measured([[0, 10], [5, 15]])
    assert not used.capacity_known
    assert (used.busy_s, used.available_s) == (20.0, 30.0)


def test_cached_evaluations_and_attempts_that_never_ran_are_neither_busy_nor_in_the_window() -> None:
    assert measure(attempts_frame([[0, 10]], cached=True), launchers_frame()) is None
    assert measure(attempts_frame([[float("nan"), 10]]), launchers_frame()) is None
    assert measure(attempts_frame([]), launchers_frame()) is None
