"""DeepHyper's names: the promises of its own test suite of 2020."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import Any

import pytest

from nas_hpc.errors import WrongCall
from nas_hpc.evaluator import DeepHyperEvaluator
from tests.evaluator.conftest import Connect
from tests.evaluator.peer import Peer


@pytest.fixture
def evaluator(connect: Connect) -> DeepHyperEvaluator:
    return DeepHyperEvaluator(connect(cache_key="to_dict"), "to_dict")


def _until(evaluator: DeepHyperEvaluator, count: int) -> list[tuple[dict[str, float], float]]:
    found: list[tuple[dict[str, float], float]] = []
    deadline = time.monotonic() + 60
    while len(found) < count and time.monotonic() < deadline:
        found += list(evaluator.get_finished_evals(timeout=1))
    return found


def test_equal_keys_run_once_and_every_request_gets_its_result(
    peer: Peer, evaluator: DeepHyperEvaluator
) -> None:
    uids = evaluator.add_eval_batch([{"x": 1}, {"x": 2}, {"x": 1}])
    assert uids[0] == uids[2] != uids[1]
    assert sorted(y for _, y in _until(evaluator, 3)) == [2.0, 2.0, 4.0]
    assert sum(peer.ledger.values()) == 2
    assert evaluator.stats["num_cache_used"] == 1
    assert list(evaluator.get_finished_evals(timeout=0)) == []


def test_a_straggler_does_not_block_the_others(peer: Peer, evaluator: DeepHyperEvaluator) -> None:
    released, run = threading.Event(), peer.run

    def straggle(config: Mapping[str, Any]) -> float:
        assert config["x"] or released.wait(60)
        return run(config)

    peer.run = straggle
    evaluator.add_eval_batch([{"x": i} for i in range(4)])
    assert sorted(x["x"] for x, _ in _until(evaluator, 3)) == [1, 2, 3]
    released.set()
    assert _until(evaluator, 1) == [({"x": 0}, 0.0)]


def test_an_empty_poll_yields_nothing(peer: Peer, evaluator: DeepHyperEvaluator) -> None:
    assert list(evaluator.get_finished_evals(timeout=0.01)) == []
    peer.hold.clear()
    evaluator.add_eval({"x": 1})
    assert list(evaluator.get_finished_evals(timeout=0.05)) == []


def test_a_failure_gives_the_failure_value(evaluator: DeepHyperEvaluator) -> None:
    uid = evaluator.add_eval({"x": 1, "fail": True})
    assert evaluator.await_evals([uid]) == [({"x": 1, "fail": True}, DeepHyperEvaluator.FAIL_RETURN_VALUE)]
    assert DeepHyperEvaluator.FAIL_RETURN_VALUE < -3e38


def test_await_keeps_the_order_of_the_keys(evaluator: DeepHyperEvaluator) -> None:
    uids = evaluator.add_eval_batch([{"x": i} for i in range(6)])
    assert [y for _, y in evaluator.await_evals(uids[::-1], timeout=60)] == [10.0, 8.0, 6.0, 4.0, 2.0, 0.0]
    assert list(evaluator.get_finished_evals(timeout=0)) == [], "what was awaited counts as read"


def test_await_of_nothing_gives_nothing(evaluator: DeepHyperEvaluator) -> None:
    assert evaluator.await_evals([]) == []


def test_await_times_out_and_can_be_called_again(peer: Peer, evaluator: DeepHyperEvaluator) -> None:
    peer.hold.clear()
    uid = evaluator.add_eval({"x": 4})
    with pytest.raises(TimeoutError):
        evaluator.await_evals([uid], timeout=0.1)
    peer.hold.set()
    assert evaluator.await_evals([uid], timeout=60) == [({"x": 4}, 8.0)]


def test_await_can_name_a_key_twice(evaluator: DeepHyperEvaluator) -> None:
    uid = evaluator.add_eval({"x": 1})
    assert evaluator.await_evals([uid, uid], timeout=60) == [({"x": 1}, 2.0)] * 2


def test_without_a_cache_every_key_is_its_own(connect: Connect) -> None:
    evaluator = DeepHyperEvaluator(connect())
    uids = evaluator.add_eval_batch([{"x": 1}, {"x": 1}])
    assert len(set(uids)) == 2
    assert len(evaluator.await_evals(uids, timeout=60)) == 2


def test_an_unknown_key_is_refused_with_its_value(evaluator: DeepHyperEvaluator) -> None:
    with pytest.raises(WrongCall, match="'nothing'"):
        evaluator.await_evals(["nothing"])


def test_the_number_of_workers_is_the_capacity(evaluator: DeepHyperEvaluator) -> None:
    assert evaluator.num_workers == 2
