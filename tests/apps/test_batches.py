"""How evaluators are divided among agents, what of a step is awaited, what failures are worth."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nas_hpc.apps import checkpoint
from nas_hpc.apps.batches import Batches, Open, Place, Recorded, Worst, by_place, shares, within
from nas_hpc.apps.checkpoint import Checkpoint
from nas_hpc.evaluator import EvaluationResult
from nas_hpc.search.ppo import Episodes
from nas_hpc.states import Outcome


def episode(*actions: int) -> Episodes:
    row = np.array([actions], np.int32)
    return Episodes(row, -row.astype(np.float32), row.astype(np.float32) / 3)


def opened(seq: int, agent: int = 0, step: int = 0, number: int = 0) -> Open:
    return Open(Place(step, agent, number), seq, episode(seq, agent))


def result(seq: int, objective: float | None, outcome: Outcome = Outcome.OK) -> EvaluationResult:
    return EvaluationResult(seq, {}, objective, outcome, "", {}, 0.0, 0.0, 0.0, 1, False, {}, seq)


@pytest.mark.parametrize(
    ("nodes", "agents", "each", "unused"), [(128, 11, 10, 7), (4, 2, 1, 0), (6, 1, 5, 0)]
)
def test_agents_have_as_many_evaluators_as_in_the_reference(
    nodes: int, agents: int, each: int, unused: int
) -> None:
    """((N - ranks) * W) // ranks of it."""
    counts = shares(nodes - agents, agents, every=False)
    assert counts == [each] * agents
    assert nodes - agents - sum(counts) == unused
    assert sum(shares(nodes - agents, agents, every=True)) == nodes - agents


@given(st.integers(0, 300), st.integers(1, 40), st.booleans())
def test_shares_are_even_and_leave_nobody_without(workers: int, agents: int, every: bool) -> None:
    counts = shares(workers, agents, every=every)
    assert len(counts) == agents
    assert 1 <= min(counts) <= max(counts) <= min(counts) + every
    assert sum(counts) <= max(workers, agents)


@given(st.lists(st.integers(0, 20), min_size=1, max_size=12), st.integers(-3, 100))
def test_a_last_step_is_cut_evenly_to_what_is_left(counts: list[int], limit: int) -> None:
    cut = within(counts, limit)
    assert sum(cut) == min(sum(counts), max(0, limit))
    assert all(0 <= less <= count for less, count in zip(cut, counts, strict=True))
    shortened = [less for less, count in zip(cut, counts, strict=True) if less < count]
    assert all(max(cut) - 1 <= less for less in shortened)


def test_a_step_waits_for_all_of_every_agent_unless_a_part_is_enough() -> None:
    for enough, needed in ((1.0, 10), (0.9, 9), (0.5, 5), (0.01, 1)):
        batches = Batches(enough)
        batches.add(opened(seq, agent=seq // 11) for seq in range(1, 21))
        for done in range(10):
            assert batches.ready(0, last=False) == (done >= needed)
            batches.take([result(done + 1, 0.5), result(done + 11, 0.5)])
        assert batches.ready(0, last=False)


def test_late_episodes_count_when_they_are_back_and_the_last_step_waits_for_them() -> None:
    batches = Batches(0.5)
    batches.add([opened(1, number=0), opened(2, number=1)])
    batches.take([result(2, 0.25)])
    assert batches.ready(0, last=False)
    assert [one.id for one in batches.harvest()] == [2]
    assert batches.waiting(0) == 1
    batches.add([opened(3, step=1, number=0)])
    batches.take([result(3, 0.5)])
    assert batches.ready(1, last=False)
    assert not batches.ready(1, last=True)
    batches.take([result(1, 0.75), result(99, 1.0)])
    assert batches.ready(1, last=True)
    assert [(one.id, one.objective) for one in batches.harvest()] == [(1, 0.75), (3, 0.5)]
    assert not batches.open


def test_one_large_or_small_batch_is_not_hurried_by_another() -> None:
    batches = Batches(1.0)
    batches.add([opened(1, agent=0), opened(2, agent=1)])
    batches.take([result(1, 1.0)])
    assert not batches.ready(0, last=False)


def test_what_was_killed_teaches_nothing_and_a_failure_is_as_bad_as_the_worst_success() -> None:
    batches, worst = Batches(), Worst()
    batches.add(opened(seq, number=seq) for seq in range(1, 6))
    batches.take([result(1, None, Outcome.ERROR), result(2, None, Outcome.KILLED)])
    assert worst.impute(batches.harvest()) == ([], []), "nothing is known of how bad a failure is"
    batches.take([result(3, -2.0), result(4, None, Outcome.TIMEOUT), result(5, 4.0)])
    learned, rewards = worst.impute(batches.harvest())
    assert ([one.id for one in learned], rewards) == ([3, 4, 5], [-2.0, -2.0, 4.0])
    batches.add([opened(6), opened(7)])
    batches.take([result(6, 9.0), result(7, None, Outcome.ERROR)])
    assert worst.impute(batches.harvest())[1] == [9.0, -2.0], "earlier ones count"


def test_recorded_evaluations_are_found_by_their_place_and_others_are_left_out() -> None:
    data = {"step": 3, "agent": 1, "first": 5, "of": 3}
    records = {
        5: ({"arch_seq": [0]}, data),
        7: ({"arch_seq": [2]}, data),
        8: ({"arch_seq": [1]}, {"baseline": True}),
        9: ({"x": 1}, {"told": 3}),
    }
    assert by_place(records) == {Place(3, 1, 0): Recorded(5, [0]), Place(3, 1, 2): Recorded(7, [2])}


# -- checkpoints ---------------------------------------------------------------------------------------
def state(step: int) -> Checkpoint:
    policy = {"parameters": np.arange(step, dtype=np.float32), "steps": np.array(step, np.int64)}
    late = [opened(7, agent=1, step=step - 1, number=4), opened(9, step=step)]
    return Checkpoint(step, 10 * step, None if step < 2 else -0.5, 9, policy, tuple(late[: step % 3]))


def same(one: Checkpoint | None, other: Checkpoint) -> bool:
    assert one is not None
    plain = [
        (c.step, c.learned, c.worst, c.known, [(o.place, o.id, o.config) for o in c.open])
        for c in (one, other)
    ]
    arrays = [
        [*c.policy.values(), *(getattr(o.episode, name) for o in c.open for name in Episodes.__slots__)]
        for c in (one, other)
    ]
    equal = all(a.dtype == b.dtype and np.array_equal(a, b) for a, b in zip(*arrays, strict=True))
    return plain[0] == plain[1] and one.policy.keys() == other.policy.keys() and equal


@pytest.mark.parametrize("step", [1, 2, 3])
def test_a_checkpoint_comes_back_as_it_was(tmp_path: Path, step: int) -> None:
    assert checkpoint.read(tmp_path) is None
    checkpoint.write(tmp_path, state(step))
    assert same(checkpoint.read(tmp_path), state(step))


@pytest.mark.parametrize("damage", [b"", b"garbage", None])
def test_a_torn_checkpoint_is_told_and_the_one_before_it_counts(
    tmp_path: Path, damage: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint.write(tmp_path, state(1))
    checkpoint.write(tmp_path, state(2))
    path = tmp_path / checkpoint.NAME
    path.write_bytes(path.read_bytes()[:-40] if damage is None else damage)
    assert same(checkpoint.read(tmp_path), state(1))
    assert "it is torn; going back" in caplog.text
    assert sorted(one.name for one in tmp_path.iterdir()) == [checkpoint.NAME, checkpoint.BEFORE]
