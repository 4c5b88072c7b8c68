"""The evaluator under a launcher: the contract, and what only it promises."""

from __future__ import annotations

import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from nas_hpc.errors import WorkFailed, WrongCall
from nas_hpc.evaluator import LauncherEvaluator
from nas_hpc.evaluator.base import derived_seed
from nas_hpc.wire import Shape
from tests.evaluator.conftest import Connect
from tests.evaluator.contract import EvaluatorContract
from tests.evaluator.peer import Peer
from tests.support import wait_until


class TestLauncherEvaluator(EvaluatorContract):
    @pytest.fixture
    def evaluator(self, connect: Connect) -> LauncherEvaluator:
        return connect()

    @pytest.fixture
    def hold(self, peer: Peer) -> threading.Event:
        return peer.hold


def test_numpy_values_arrive_as_plain_ones(peer: Peer, connect: Connect) -> None:
    connect().submit([{"x": np.float64(1.5), "n": np.int64(3), "b": np.bool_(True), "a": np.arange(2)}])
    wait_until(lambda: peer.configs, what="the submission")
    assert peer.configs == [{"x": 1.5, "n": 3, "b": True, "a": [0, 1]}]
    assert [type(v) for v in peer.configs[0].values()] == [float, int, bool, list]


def test_each_evaluation_has_its_own_seed_which_repeats(peer: Peer, connect: Connect) -> None:
    evaluator = connect(seed=42)
    evaluator.submit([{"x": 1}] * 50)
    evaluator.gather("all", 60)
    seeds = [row.ask.seed for row in peer.rows.values()]
    assert len(set(seeds)) == 50
    assert seeds == [derived_seed(42, seq) for seq in range(1, 51)]
    assert all(0 <= seed < 2**32 for seed in seeds)
    assert derived_seed(42, 1) == 3062239372, "the same on every machine, in every version"


def test_what_all_evaluations_share_and_what_one_call_asks_for_reaches_the_launcher(
    peer: Peer, connect: Connect
) -> None:
    evaluator = connect(timeout_s=5.0, retries=2, environ={"A": "b"}, shape=Shape(node_packing_count=4))
    evaluator.submit([{"x": 1}], data={"told": 3})
    evaluator.submit([{"x": 1}], Shape(num_nodes=2))
    evaluator.gather("all", 60)
    first, second = peer.rows[1].ask, peer.rows[2].ask
    assert (first.run, first.timeout_s, first.retries) == ("module.double", 5.0, 2)
    assert (dict(first.environ), dict(first.data)) == ({"A": "b"}, {"told": 3})
    assert (first.shape.node_packing_count, second.shape.num_nodes) == (4, 2)
    assert peer.hellos[0].shape == first.shape


def test_ids_given_by_hand_are_used_and_taken_ones_refused(connect: Connect) -> None:
    evaluator = connect()
    assert evaluator.submit([{"x": 1}], ids=[5]) == [5]
    assert evaluator.submit([{"x": 2}]) == [6]
    assert evaluator.submit([{"x": 3}], ids=[2]) == [2]
    for bad in ([5], [0], [7, 7]):
        with pytest.raises(WrongCall):
            evaluator.submit([{"x": 1}] * len(bad), ids=bad)
    evaluator.gather("all", 60)
    assert evaluator.next_id == 7


def test_a_refusal_is_raised_with_the_launchers_reason_and_nothing_hangs(
    peer: Peer, connect: Connect
) -> None:
    evaluator = connect()
    peer.refuse = "2 nodes are asked for, there is 1"
    evaluator.submit([{"x": 1}])
    with pytest.raises(WorkFailed, match="2 nodes are asked for"):
        evaluator.gather("all", 60)
    assert evaluator.in_flight == 0


def test_a_grown_capacity_ends_the_wait_of_who_asks_for_that(peer: Peer, connect: Connect) -> None:
    evaluator = connect()
    peer.hold.clear()
    evaluator.submit([{"x": 1}, {"x": 2}])
    threading.Timer(0.1, lambda: peer.set_workers(5)).start()
    assert evaluator.gather(1, 60, or_capacity=True) == []
    assert evaluator.capacity() == 5
    began = time.monotonic()
    assert evaluator.gather(1, 0.2, or_capacity=True) == [], "told once"
    assert time.monotonic() - began >= 0.2


def test_a_later_attempt_sees_history_and_what_is_pending_and_gathers_only_news(
    peer: Peer, connect: Connect
) -> None:
    first = connect()
    first.submit([{"x": 1}, {"x": 2}])
    first.gather("all", 60)
    peer.hold.clear()
    first.submit([{"x": 3}], data={"told": 2})
    wait_until(lambda: 3 in peer.rows, what="the third to be accepted")
    first.close()
    second = connect(attempt=2)
    assert [r.id for r in second.history] == [done.seq for done in peer.done]
    assert [(p.seq, dict(p.config), dict(p.data)) for p in second.pending] == [(3, {"x": 3}, {"told": 2})]
    assert (second.in_flight, second.next_id) == (1, 4)
    peer.hold.set()
    assert [r.id for r in second.gather("all", 60)] == [3]
    assert peer.ledger == {1: 1, 2: 1, 3: 1}


def test_a_result_that_a_person_had_made_anew_replaces_the_old_one(peer: Peer, connect: Connect) -> None:
    evaluator = connect()
    evaluator.submit([{"x": 1, "fail": True}, {"x": 2}])
    evaluator.gather("all", 60)
    peer.finish_again(1, 17.0)
    wait_until(lambda: evaluator.gather(0) == [] and evaluator.revised, what="the later result")
    assert [(r.id, r.objective) for r in evaluator.history] == [(2, 4.0), (1, 17.0)]


def test_the_room_loads_no_heavy_library() -> None:
    heavy = ("sqlalchemy", "sklearn", "tensorflow", "numpy", "ConfigSpace", "pandas")
    code = f"import sys, nas_hpc.evaluator\nprint([m for m in {heavy} if m in sys.modules])"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[]"
