"""The learning rate of each step."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nas_hpc.nas.schedules import schedule_of
from nas_hpc.nas.settings import Training

_TRAININGS = st.builds(
    Training,
    num_epochs=st.integers(1, 20),
    learning_rate=st.floats(1e-6, 10.0),
    schedule=st.sampled_from(["constant", "cosine"]),
    warmup_epochs=st.floats(0.0, 25.0),
)


def test_a_constant_rate_is_the_same_at_every_step() -> None:
    rate = schedule_of(Training(learning_rate=0.3, num_epochs=4), 7)
    assert {rate(step) for step in range(28)} == {0.3}


def test_the_cosine_is_the_highest_at_the_first_step_half_in_the_middle_and_nothing_at_the_end() -> None:
    rate = schedule_of(Training(learning_rate=0.2, num_epochs=10, schedule="cosine"), 6)
    assert rate(0) == 0.2
    assert rate(30) == pytest.approx(0.1)
    assert rate(60) == pytest.approx(0.0, abs=1e-12)
    for step in range(60):
        assert rate(step) == pytest.approx(0.1 * (1 + math.cos(math.pi * step / 60)))


def test_the_warm_up_rises_in_equal_steps_and_reaches_the_rate_with_its_last_one() -> None:
    rate = schedule_of(Training(learning_rate=0.8, num_epochs=5, warmup_epochs=2), 2)
    assert [rate(step) for step in range(6)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 0.8, 0.8])


def test_after_a_warm_up_the_cosine_goes_over_the_epochs_that_are_left() -> None:
    rate = schedule_of(Training(learning_rate=1.0, num_epochs=3, warmup_epochs=1, schedule="cosine"), 10)
    assert rate(9) == rate(10) == 1.0
    assert rate(20) == pytest.approx(0.5)
    assert rate(30) == pytest.approx(0.0, abs=1e-12)


@given(_TRAININGS, st.integers(1, 50))
def test_every_step_of_a_training_has_a_rate_above_0_and_no_higher_than_asked_for(
    training: Training, steps: int
) -> None:
    rate = schedule_of(training, steps)
    rates = [rate(step) for step in range(training.num_epochs * steps)]
    assert all(0 < one <= training.learning_rate * (1 + 1e-9) for one in rates)
