"""Equal configurations: what runs, and what each request gets."""

from __future__ import annotations

from typing import Any

import pytest

from nas_hpc.errors import WrongCall
from tests.evaluator.conftest import Connect
from tests.evaluator.peer import Peer
from tests.support import wait_until


def test_by_default_equal_configurations_all_run(peer: Peer, connect: Connect) -> None:
    evaluator = connect()
    evaluator.submit([{"x": 1}, {"x": 1}])
    assert [r.cached for r in evaluator.gather("all", 60)] == [False, False]
    assert sum(peer.ledger.values()) == 2


def test_a_known_configuration_is_not_run_and_every_request_gets_its_own_row(
    peer: Peer, connect: Connect
) -> None:
    evaluator = connect(cache_key="to_dict")
    evaluator.submit([{"x": 1, "y": 2}])
    evaluator.gather("all", 60)
    ids = evaluator.submit([{"y": 2, "x": 1}, {"x": 5, "y": 2}, {"x": 1, "y": 2}])
    results = {r.id: r for r in evaluator.gather("all", 60)}
    assert [results[i].objective for i in ids] == [2.0, 10.0, 2.0]
    assert [results[i].cached for i in ids] == [True, False, True]
    assert dict(peer.ledger) == {1: 1, 3: 1}
    assert [peer.rows[i].ask.cached_of for i in ids] == [1, 0, 1]


def test_a_hit_of_a_running_evaluation_comes_when_that_is_finished(peer: Peer, connect: Connect) -> None:
    evaluator = connect(cache_key="to_dict")
    peer.hold.clear()
    evaluator.submit([{"x": 1}, {"x": 1}, {"x": 1}])
    assert evaluator.in_flight == 3
    assert evaluator.gather(1, 0.1) == []
    peer.hold.set()
    results = evaluator.gather("all", 60)
    assert [(r.id, r.objective, r.cached) for r in results] == [
        (1, 2.0, False),
        (2, 2.0, True),
        (3, 2.0, True),
    ]
    assert dict(peer.ledger) == {1: 1}


def test_after_a_failure_the_next_request_runs_again(peer: Peer, connect: Connect) -> None:
    evaluator = connect(cache_key="to_dict")
    evaluator.submit([{"x": 1, "fail": True}] * 3)
    results = evaluator.gather("all", 60)
    assert [(r.objective, r.cached) for r in results] == [(None, False)] * 3
    assert dict(peer.ledger) == {1: 1, 2: 1, 3: 1}


def test_a_function_decides_what_is_equal(peer: Peer, connect: Connect) -> None:
    evaluator = connect(cache_key=lambda config: config["x"])
    evaluator.submit([{"x": 1, "y": 1}])
    evaluator.gather("all", 60)
    evaluator.submit([{"x": 1, "y": 2}])
    assert [r.cached for r in evaluator.gather("all", 60)] == [True]


@pytest.mark.parametrize("rule", [lambda config: config["none"], lambda config: ["a list"]])
def test_a_key_function_that_fails_or_gives_no_key_is_refused_in_one_line(
    connect: Connect, rule: Any
) -> None:
    evaluator = connect(cache_key=rule)
    with pytest.raises(WrongCall, match="cache key"):
        evaluator.submit([{"x": 1}])


def test_true_and_one_are_not_the_same_configuration(peer: Peer, connect: Connect) -> None:
    evaluator = connect(cache_key="to_dict")
    evaluator.submit([{"x": 1}, {"x": True}, {"x": 1.0}])
    assert not any(r.cached for r in evaluator.gather("all", 60))


def test_a_later_attempt_knows_what_was_finished_and_what_runs(peer: Peer, connect: Connect) -> None:
    first = connect(cache_key="to_dict")
    first.submit([{"x": 1}])
    first.gather("all", 60)
    peer.hold.clear()
    first.submit([{"x": 2}])
    wait_until(lambda: 2 in peer.rows, what="the second to be accepted")
    first.close()
    second = connect(attempt=2, cache_key="to_dict")
    second.submit([{"x": 1}, {"x": 2}])
    peer.hold.set()
    results = {r.id: r for r in second.gather("all", 60)}
    assert {i: r.cached for i, r in results.items()} == {2: False, 3: True, 4: True}
    assert dict(peer.ledger) == {1: 1, 2: 1}


def test_a_waiting_hit_can_be_cancelled(peer: Peer, connect: Connect) -> None:
    evaluator = connect(cache_key="to_dict")
    peer.hold.clear()
    evaluator.submit([{"x": 1}, {"x": 1}])
    evaluator.cancel([2])
    (killed,) = evaluator.gather(1, 60)
    assert (killed.id, killed.outcome.value) == (2, "killed")
    peer.hold.set()
    assert [r.id for r in evaluator.gather("all", 60)] == [1]
