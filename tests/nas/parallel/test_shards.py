"""Which examples a rank trains with, at what rate, and what is refused: without ranks."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nas_hpc.errors import WrongCall
from nas_hpc.nas import NaProblem
from nas_hpc.nas.parallel.choose import meet
from nas_hpc.nas.parallel.shards import Shard, seed_of
from nas_hpc.nas.parallel.wrapped import refuse_wrapped
from nas_hpc.nas.schedules import schedule_of
from nas_hpc.nas.settings import Training


# -- examples ----------------------------------------------------------------------------------------------
@given(st.integers(1, 200), st.integers(1, 40), st.integers(1, 7), st.integers(0, 3))
def test_in_each_step_the_ranks_have_its_examples_once_and_their_shares_weigh_each_alike(
    count: int, batch: int, size: int, first: int
) -> None:
    if count < size:
        return
    order = np.random.default_rng(count).permutation(count)
    shards = [Shard(count, batch, rank, size) for rank in range(size)]
    each = [list(shard.batches(order, first)) for shard in shards]
    assert {len(batches) for batches in each} == {max(0, shards[0].steps - first)}
    for step, parts in enumerate(zip(*each, strict=True), first):
        counted = [part for part in parts if part.share]
        rows = np.concatenate([part.rows for part in counted])
        together = order[step * batch * size : (step + 1) * batch * size]
        assert sorted(rows) == sorted(together)
        assert {part.examples for part in parts} == {len(together)}
        assert sum(part.share for part in parts) / size == pytest.approx(1.0)
        for part in counted:  # what an example counts: its share of its rank's mean
            assert part.share / len(part.rows) / size == pytest.approx(1 / len(together))
        assert all(0 < len(part.rows) <= batch for part in parts)


def test_one_rank_has_the_batches_of_a_training_in_one_process() -> None:
    order = np.random.default_rng(1).permutation(10)
    batches = list(Shard(10, 4).batches(order, 1))
    assert [batch.rows.tolist() for batch in batches] == [order[4:8].tolist(), order[8:].tolist()]
    assert [(batch.share, batch.examples) for batch in batches] == [(1.0, 4), (1.0, 2)]


def test_fewer_examples_than_ranks_are_refused() -> None:
    with pytest.raises(WrongCall, match="3 examples for 4 ranks"):
        Shard(3, 32, 0, 4)


def test_every_rank_has_a_seed_of_its_own_and_rank_0_that_of_one_process() -> None:
    seeds = [seed_of(17, rank) for rank in range(50)]
    assert seeds[0] == 17
    assert len(set(seeds)) == 50
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert seeds == [seed_of(17, rank) for rank in range(50)]


# -- the learning rate ---------------------------------------------------------------------------------------
@pytest.mark.parametrize(("scaling", "highest"), [("linear", 0.4), ("sqrt", 0.2), ("none", 0.1)])
def test_on_four_ranks_the_rate_rises_from_that_of_one_to_what_scaling_says(
    scaling: str, highest: float
) -> None:
    rate = schedule_of(Training(learning_rate=0.1, num_epochs=8, scaling=scaling), 10, ranks=4)
    rates = [rate(step) for step in range(80)]
    assert rates[0] == pytest.approx(0.1 + (highest - 0.1) / 20)
    assert rates[:20] == sorted(rates[:20])  # a quarter of all epochs
    assert rates[19:] == pytest.approx([highest] * 61)


def test_the_warm_up_of_many_epochs_takes_five() -> None:
    rate = schedule_of(Training(learning_rate=0.1, num_epochs=90), 10, ranks=8)
    assert rate(48) < rate(49) == pytest.approx(0.8) == pytest.approx(rate(50))


def test_a_warm_up_of_the_problems_own_stays_and_reaches_the_scaled_rate() -> None:
    rate = schedule_of(Training(learning_rate=0.1, num_epochs=8, warmup_epochs=1), 10, ranks=2)
    assert [rate(0), rate(4), rate(9), rate(10)] == pytest.approx([0.02, 0.1, 0.2, 0.2])


# -- what is refused -----------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("environ", "said"),
    [
        ({"NAS_HPC_RANKS": "two"}, "NAS_HPC_RANKS='two': give the number"),
        (
            {"NAS_HPC_RANKS": "2", "NAS_HPC_DATA_PARALLEL": "nccl"},
            "'nccl': give one of auto, horovod, mpi4py",
        ),
    ],
)
def test_ranks_and_ways_that_there_are_not_are_refused(environ: dict[str, str], said: str) -> None:
    with pytest.raises(WrongCall, match=said):
        meet(environ)


@pytest.mark.parametrize("environ", [{}, {"NAS_HPC_RANKS": "1", "NAS_HPC_DATA_PARALLEL": "horovod"}])
def test_a_single_rank_is_alone_and_needs_neither_horovod_nor_mpi(environ: dict[str, str]) -> None:
    ranks = meet(environ)
    assert (ranks.way, ranks.rank, ranks.size) == ("alone", 0, 1)
    array = np.arange(3)
    assert ranks.sum(array) is array
    assert ranks.broadcast(array) is array


def test_where_nothing_is_installed_the_ranks_are_refused_with_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(WrongCall, match=r"neither Horovod nor mpi4py .* nas-hpc\[mpi\].*build_horovod.sh"):
        meet({"NAS_HPC_RANKS": "2"})


@pytest.mark.parametrize(("way", "meets"), [("auto", "mpi4py"), ("horovod", "")])
def test_a_horovod_without_mpi_is_passed_over_by_auto_and_refused_where_it_was_asked_for(
    way: str, meets: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib.util

    def found() -> Any:
        return SimpleNamespace(way="mpi4py", size=2)

    horovod, tensorflow = ModuleType("horovod"), ModuleType("horovod.tensorflow")
    horovod.tensorflow, tensorflow.mpi_built = tensorflow, lambda: False  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "horovod", horovod)
    monkeypatch.setitem(sys.modules, "horovod.tensorflow", tensorflow)
    monkeypatch.setitem(sys.modules, "mpi4py", None)  # no MPI starts in this process
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr("nas_hpc.nas.parallel.mpi.Mpi", found)
    monkeypatch.delenv("HOROVOD_RANK", raising=False)
    environ = {"NAS_HPC_RANKS": "2", "NAS_HPC_DATA_PARALLEL": way}
    if meets:
        assert meet(environ).way == meets
    else:
        with pytest.raises(WrongCall, match="built for Gloo alone"):
            meet(environ)


class Adam:
    """Stands for Keras's."""


def wrapped() -> Any:
    """An object as Horovod's ``create_distributed_optimizer`` makes it."""

    def compute(self: Any) -> None: ...

    compute.__module__ = "horovod._keras"
    return type("Adam", (Adam,), {"_compute_gradients": compute})()


def test_an_optimizer_that_horovod_has_wrapped_is_refused_with_the_reason() -> None:
    said = "Adam is wrapped by Horovod .*on Keras 3 it does not average the gradients"
    with pytest.raises(WrongCall, match=said):
        NaProblem().hyperparameters(optimizer=wrapped())
    with pytest.raises(WrongCall, match=said):
        refuse_wrapped(wrapped())
    refuse_wrapped(Adam())
