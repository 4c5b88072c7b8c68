"""How long jobs take is known from their like, and decides what waits for what."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nas_hpc.launcher import policy
from nas_hpc.launcher.foresight import SAMPLES, Foresight
from nas_hpc.records import Evaluation, Job, Resources
from nas_hpc.resources import Placement


def trial(run: str = "m.f", **need: float) -> Job:
    return Job("t", "t", "w", creator="s", evaluation=Evaluation(run, {}, 1), resources=Resources(**need))  # type: ignore[arg-type]


SEARCH = Job("s", "s", "w", application="SEARCH")


def looking(see: Callable[[Foresight], None]) -> None:
    async def run() -> None:
        see(Foresight(is_search=lambda job: job is SEARCH, has_evaluations=lambda job: job is SEARCH))

    asyncio.run(run())


@given(st.lists(st.integers(1, 1000), min_size=1, max_size=2 * SAMPLES + 10))
def test_the_estimate_is_that_of_the_last_ones(durations: list[int]) -> None:
    def see(foresight: Foresight) -> None:
        for seconds in durations:
            foresight.took(trial(), float(seconds))
        assert foresight.estimate_s(trial()) == policy.estimate_s(trial(), durations[-SAMPLES:])
        assert foresight.estimate_s(trial("m.other")) == 0

    looking(see)


def test_what_fits_into_the_time_left_is_started() -> None:
    def see(foresight: Foresight) -> None:
        assert foresight.fits(trial(wall_time_minutes=10_000))
        foresight.deadline = asyncio.get_running_loop().time() + 600
        assert foresight.fits(trial(wall_time_minutes=9))
        assert not foresight.fits(trial(wall_time_minutes=11))
        assert foresight.latest_start(trial(wall_time_minutes=9)) == pytest.approx(time.time() + 60, abs=5)

    looking(see)


def test_ends_are_known_guessed_or_not_to_be_waited_for() -> None:
    def see(foresight: Foresight) -> None:
        places = [Placement((name,), Fraction(1), ((),), ((),)) for name in "abcde"]
        now = time.time()
        jobs = [trial(wall_time_minutes=10), trial(), SEARCH, trial(wall_time_minutes=1)]
        end_of = foresight.ends_of(zip(jobs, places[:4], [now - 60, now - 60, now, now - 90], strict=True))
        known, unknown, search, overdue, placed = map(end_of, places)
        assert known == (pytest.approx(now + 540, abs=5), False)
        assert unknown == (pytest.approx(now + 60, abs=5), True), "as long again"
        assert search == (math.inf, False)
        assert overdue == (pytest.approx(now + 90, abs=5), True), "it takes longer than was thought"
        assert placed == (pytest.approx(now, abs=5), True)

    looking(see)
