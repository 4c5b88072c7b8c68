"""Evaluations by job specification: what reaches the launcher, and failures that are values."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from typing import Any

import pytest

from nas_hpc import JobSpec, job_specification
from nas_hpc.evaluator import DeepHyperEvaluator, LauncherEvaluator
from nas_hpc.states import Outcome
from nas_hpc.wire import Shape
from tests.evaluator.conftest import Connect
from tests.evaluator.contract import EvaluatorContract
from tests.evaluator.peer import Peer
from tests.support import wait_until


class Refused(ValueError):
    """Of the specification under test."""


@job_specification
def program(parameters: dict[str, Any]) -> JobSpec:
    """A program; where ``bad`` is given, something else."""
    match parameters.get("bad"):
        case "raises":
            raise Refused("no machine\nfor this")
        case "returns":
            return parameters  # type: ignore[return-value]
        case "spec":
            return JobSpec(application="A", num_nodes=-1)
        case "exits":
            raise SystemExit(3)
        case "text":
            raise Refused("\udcff")
    parameters["x"] = -1  # its own copy
    return JobSpec(argv=["train", str(parameters)])


class TestSpecified(EvaluatorContract):
    """The same promises as for run functions."""

    @pytest.fixture
    def evaluator(self, connect: Connect) -> LauncherEvaluator:
        return connect(specify=program)

    @pytest.fixture
    def hold(self, peer: Peer) -> threading.Event:
        return peer.hold


BAD = {
    "raises": "Refused: no machine for this",
    "returns": "TypeError: the job specification returned a dict, not a JobSpec",
    "spec": "WrongCall: JobSpec: num_nodes is -1",
    "exits": "SystemExit: 3",
    "text": "Refused: (its message cannot be shown)",
}


@pytest.mark.parametrize("bad", BAD)
def test_what_it_raises_or_returns_wrongly_is_a_failed_evaluation_with_the_reason(
    peer: Peer, connect: Connect, bad: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "nas_hpc.evaluator")
    evaluator = connect(specify=program)
    evaluator.submit([{"x": 1}, {"x": 2, "bad": bad}, {"x": 3}], data={"told": 0})
    results = {result.id: result for result in evaluator.gather("all", 60)}
    assert (results[1].objective, results[3].objective) == (2.0, 6.0)
    assert (results[2].objective, results[2].outcome) == (None, Outcome.ERROR)
    assert BAD[bad] in results[2].reason
    assert "\n" not in results[2].reason
    assert (dict(results[2].config), dict(results[2].data)) == ({"x": 2, "bad": bad}, {"told": 0})
    assert dict(peer.ledger) == {1: 1, 3: 1}, "the failed one ran nowhere"
    assert sum("evaluation 2 cannot be specified" in line for line in caplog.messages) == 1


def test_a_failure_stands_in_the_history_of_a_later_attempt(peer: Peer, connect: Connect) -> None:
    first = connect(specify=program)
    first.submit([{"x": 1, "bad": "raises"}, {"x": 2}])
    first.gather("all", 60)
    first.close()
    second = connect(attempt=2, specify=program)
    assert [(r.id, r.outcome.value) for r in sorted(second.history, key=lambda r: r.id)] == [
        (1, "error"),
        (2, "ok"),
    ]
    assert (second.in_flight, second.next_id) == (0, 3)


def test_the_specification_reaches_the_launcher_and_what_it_leaves_open_is_the_searchs(
    peer: Peer, connect: Connect
) -> None:
    def two(parameters: Mapping[str, Any]) -> JobSpec:
        if parameters["x"] == 1:
            return JobSpec(argv=["a", "b"], data={"told": "mine"})
        return JobSpec(
            application="A", args=["--x", "2 3"], num_nodes=2, ranks_per_node=3, threads_per_rank=4,
            threads_per_core=2, gpus_per_rank=1, environ={"B": "spec", "C": "d"}, wall_time_minutes=7,
            timeout_s=0, retries=0,
        )  # fmt: skip

    evaluator = connect(
        specify=two, timeout_s=5.0, retries=2, environ={"B": "search", "A": "a"},
        shape=Shape(threads_per_rank=9, node_packing_count=4),
    )  # fmt: skip
    evaluator.submit([{"x": 1}, {"x": 2}], data={"told": 3})
    evaluator.gather("all", 60)
    first, second = peer.rows[1].ask, peer.rows[2].ask
    assert (first.run, first.argv, first.application, first.args) == ("module.double", ("a", "b"), "", "")
    assert (dict(first.data), dict(first.job_data)) == ({"told": 3}, {"told": "mine"})
    assert (first.shape, first.timeout_s, first.retries) == (evaluator_shape(4), 5.0, 2)
    assert dict(first.environ) == {"A": "a", "B": "search"}
    assert (second.application, second.args, second.argv) == ("A", "--x '2 3'", ())
    assert second.shape == Shape(2, 3, 4, 1, 1, 2), "several nodes are for one evaluation alone"
    assert (second.timeout_s, second.retries, second.wall_time_minutes) == (0.0, 0, 7.0)
    assert dict(second.environ) == {"A": "a", "B": "spec", "C": "d"}


def evaluator_shape(packing: int) -> Shape:
    return Shape(threads_per_rank=9, node_packing_count=packing)


def test_nodes_of_the_search_and_packing_of_the_specification_contradict_each_other(connect: Connect) -> None:
    evaluator = connect(
        specify=lambda parameters: JobSpec(argv=["a"], node_packing_count=4), shape=Shape(num_nodes=2)
    )
    evaluator.submit([{"x": 1}])
    (result,) = evaluator.gather("all", 60)
    assert "node_packing_count is 4 and num_nodes 2" in result.reason


def test_it_is_called_for_what_runs_alone(peer: Peer, connect: Connect) -> None:
    called = []

    def note(parameters: Mapping[str, Any]) -> JobSpec:
        called.append(parameters["x"])
        return JobSpec(argv=["a"])

    evaluator = connect(specify=note, cache_key="to_dict")
    peer.hold.clear()
    evaluator.submit([{"x": 1}, {"x": 1}, {"x": 2}])
    peer.hold.set()
    evaluator.gather("all", 60)
    evaluator.submit([{"x": 2}, {"x": 3}])
    results = evaluator.gather("all", 60)
    assert {r.id: r.cached for r in results} == {4: True, 5: False}
    assert sorted(called) == [1, 2, 3]


def test_after_a_failed_specification_the_next_request_with_its_key_is_specified_again(
    peer: Peer, connect: Connect
) -> None:
    fails = [True, False]

    def fickle(parameters: Mapping[str, Any]) -> JobSpec:
        if fails.pop(0):
            raise Refused("not yet")
        return JobSpec(argv=["a"])

    evaluator = connect(specify=fickle, cache_key="to_dict")
    evaluator.submit([{"x": 1}, {"x": 1}, {"x": 1}])
    results = {r.id: (r.objective, r.cached) for r in evaluator.gather("all", 60)}
    assert results == {1: (None, False), 2: (2.0, False), 3: (2.0, True)}
    assert dict(peer.ledger) == {2: 1}


def test_a_signal_that_ends_the_search_is_no_failure_of_the_specification(connect: Connect) -> None:
    class Stop(BaseException):
        """As a handler of SIGTERM raises."""

    def stopped(parameters: Mapping[str, Any]) -> JobSpec:
        raise Stop

    evaluator = connect(specify=stopped)
    with pytest.raises(Stop):
        evaluator.submit([{"x": 1}])


def test_deephypers_names_give_its_failure_value(peer: Peer, connect: Connect) -> None:
    evaluator = DeepHyperEvaluator(connect(specify=program))
    uids = evaluator.add_eval_batch([{"x": 1}, {"x": 2, "bad": "raises"}])
    wait_until(lambda: len(peer.done) == 2, what="both")
    assert [y for _, y in evaluator.await_evals(uids, 10)] == [2.0, evaluator.FAIL_RETURN_VALUE]
