"""Two ranks that train one network together, by each way: one suite over all of them, on real ranks."""

from __future__ import annotations

import fcntl
import json
import math
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.peers.mpi import MpiPeer
from tests.support import TEST_ID

ROOT = Path(__file__).resolve().parents[3]
RANKS = 2
CASES = "exchange,gradients,train,as_one,stopped,failures,evaluation,digits"
WAYS = [
    pytest.param("mpi4py", id="mpi4py"),
    pytest.param("horovod", id="horovod", marks=pytest.mark.extra("horovod")),
]
STARTED_S = 800
"""So long a start may take on a machine that has much else to do."""
pytestmark = [
    pytest.mark.extra("tensorflow"),
    pytest.mark.needs_mpich,
    pytest.mark.slow,
    pytest.mark.timeout(2 * STARTED_S),
]
Given = Callable[[str], list[Any]]


def start(mpich: MpiPeer, way: str, cases: str, place: Path) -> tuple[int, str]:
    """Two ranks that do ``cases``: exit code and output. What is left of them after STARTED_S is ended."""
    environ = {name: value for name, value in os.environ.items() if name == TEST_ID or "NAS_HPC" not in name}
    environ |= {"NAS_HPC_RANKS": str(RANKS), "NAS_HPC_DATA_PARALLEL": way, "PYTHONPATH": str(ROOT)}
    environ |= {"OMP_NUM_THREADS": "1", "TF_NUM_INTRAOP_THREADS": "1", "KERAS_BACKEND": "tensorflow"}
    argv = [str(mpich.mpiexec), "-n", str(RANKS), str(mpich.python), "-m", "tests.nas.parallel.together"]
    ranks = subprocess.Popen(
        [*argv, cases, str(place)], cwd=ROOT, env=environ, stdin=subprocess.DEVNULL, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    try:
        said, _ = ranks.communicate(timeout=STARTED_S)
    finally:
        if ranks.poll() is None:
            os.killpg(ranks.pid, signal.SIGKILL)
            ranks.wait()
    return ranks.returncode, said


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def given(way: str, mpich: MpiPeer, tmp_path_factory: pytest.TempPathFactory) -> Given:
    """What a case gave on each rank. All cases of a way run in one start, once for all tests; one way after
    the other: ranks that wait for each other use the cores that they wait for."""
    common = tmp_path_factory.getbasetemp()
    if os.environ.get("PYTEST_XDIST_WORKER"):
        common = common.parent
    place = common / f"ranks-{way}"
    place.mkdir(exist_ok=True)
    with open(common / "ranks.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (place / "output").exists():
            cases = CASES + (",wrapped" if way == "horovod" else "")
            code, said = start(mpich, way, cases, place)
            (place / "output").write_text(f"{code}\n{said}")
    ended = (place / "output").read_text()
    assert ended.startswith("0\n"), ended
    ranks = [json.loads((place / f"rank{rank}.json").read_text()) for rank in range(RANKS)]
    return lambda case: [rank[case] for rank in ranks]


# -- the interface -----------------------------------------------------------------------------------------
def test_sums_and_what_rank_0_has_reach_all_ranks_with_shape_and_type(way: str, given: Given) -> None:
    for rank, gave in enumerate(given("exchange")):
        assert gave["place"] == [way, rank, RANKS]
        assert gave["sum"] == [[4.0, 4.0]]
        assert gave["scalar"] == 3
        assert gave["types"] == ["float32", "float64", "int32", "int64", "uint8"]
        assert gave["broadcast"] == [["float64", [[1.5, 2.0]]], ["bool", True], ["uint32", [7]]]
        assert (gave["bytes"], gave["no bytes"]) == ("abc", "")
        assert gave["gathered"] == ["of 0", "of 1"]
        assert gave["agreed"] == [True, False]


def test_ranks_with_other_numbers_are_named(given: Given) -> None:
    for gave in given("exchange"):
        assert (gave["same"], gave["differing"]) == ([], [1])


def test_gradients_are_the_mean_over_the_ranks_sparse_and_absent_ones_too(given: Given) -> None:
    for gave in given("gradients"):
        table, absent, line = gave["found"]
        assert table == [[0.5, 0.5], [1.0, 1.0], [0.0, 0.0]]
        assert absent is None
        assert line == [3.0, 6.0]  # (1 + 2) / 2 * 2 x
        assert gave["beside"] == [0.5, 3.0]


# -- trainings ---------------------------------------------------------------------------------------------
def test_from_different_seeds_the_ranks_come_to_identical_weights_and_know_the_same_history(
    given: Given,
) -> None:
    first, second = given("train")
    assert first.pop("before") != second.pop("before")
    assert first == second
    assert len(first["history"]["val_r2"]) == 3
    assert set(first["test"]) == {"test_loss", "test_mae", "test_r2"}


def test_two_ranks_train_as_one_does_with_batches_of_twice_the_size(given: Given) -> None:
    for gave in given("as_one"):
        both, one = gave["weights"]
        for mine, other in zip(both, one, strict=True):
            assert mine == pytest.approx(other, rel=1e-3, abs=1e-5)
        both, one = gave["history"]
        assert set(both) == set(one)
        for name, values in one.items():
            assert both[name] == pytest.approx(values, rel=1e-3, abs=1e-5)
        assert gave["test"][0] == pytest.approx(gave["test"][1], rel=1e-3, abs=1e-5)


def test_what_one_rank_is_asked_all_end_on_and_they_go_on_to_the_very_end_they_would_have_had(
    given: Given,
) -> None:
    for gave, whole in zip(given("stopped"), given("train"), strict=True):
        epochs, steps = gave["resumed"]
        assert (epochs, steps) == (1, 3)
        assert gave["left"] == [f"step-{steps:012d}.npz"]
        for name in ("after", "history", "test"):
            assert gave[name] == whole[name]


def test_one_clock_decides_for_all_when_the_time_is_over(given: Given) -> None:
    assert [gave["ended"] for gave in given("train")] == [[3, "epochs"]] * RANKS


def test_a_loss_that_is_not_finite_on_one_rank_and_gradients_without_a_mean_fail_on_all(
    way: str, given: Given
) -> None:
    for gave in given("failures"):
        not_finite, differ = gave["said"]
        assert not_finite.startswith(
            "NotFinite: loss is inf after 1 step of epoch 1 (learning_rate 0.01 on 2 r"
        )
        other = "after epoch 1 rank 1 has other weights than rank 0"
        assert differ == f"RanksDiffer: {other}: {way} did not average the gradients"


def test_the_run_function_agrees_on_a_seed_and_rank_0_writes_the_files(way: str, given: Given) -> None:
    first, second = given("evaluation")
    times = [one["answer"]["metadata"].pop("train_s") for one in (first, second)]
    assert all(map(math.isfinite, times))
    assert first["answer"] == second["answer"]
    metadata = first["answer"]["metadata"]
    assert (metadata["ranks"], metadata["data_parallel"], metadata["epochs"]) == (RANKS, way, 3)
    assert first["left"] == ["architecture.json", "history.json", "metrics.jsonl"]


def test_digits_conv_on_two_ranks_is_as_accurate_as_on_one(given: Given) -> None:
    first, second = given("digits")
    assert first["before"] != second["before"]
    assert (first["after"], first["both"]) == (second["after"], second["both"])
    alone = (first["alone"] + second["alone"]) / 2
    assert first["both"] == pytest.approx(alone, abs=0.04)
    assert first["both"] > 0.9


@pytest.mark.parametrize("way", WAYS[1:], indirect=True)
def test_horovods_wrapped_optimizer_is_refused_with_the_reason(given: Given) -> None:
    for gave in given("wrapped"):
        assert len(gave["said"]) == 2
        for said in gave["said"]:
            assert "the optimizer SGD is wrapped by Horovod" in said
            assert "on Keras 3 it does not average the gradients" in said


# -- ends ----------------------------------------------------------------------------------------------------
def test_where_one_rank_is_killed_the_others_do_not_wait_for_it(
    way: str, mpich: MpiPeer, tmp_path: Path
) -> None:
    code, output = start(mpich, way, "killed", tmp_path)
    assert code != 0, output
    assert list(tmp_path.iterdir()) == []


def test_where_one_rank_raises_the_others_do_not_wait_for_it(mpich: MpiPeer, tmp_path: Path) -> None:
    code, output = start(mpich, "mpi4py", "raised", tmp_path)
    assert code != 0, output
    assert "WrongCall: only here" in output
    assert list(tmp_path.iterdir()) == []
