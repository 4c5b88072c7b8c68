"""What every evaluator promises. A test class inherits these; its fixtures are ``evaluator`` and ``hold``.

The run function returns 2·x and fails where ``fail`` is given; two evaluations run at once.
"""

from __future__ import annotations

import threading

import pytest

from nas_hpc.errors import WrongCall
from nas_hpc.evaluator import Evaluator
from nas_hpc.states import Outcome


class EvaluatorContract:
    """The promises. ``hold`` is an event: evaluations finish only while it is set."""

    def test_results_carry_the_id_and_the_configuration_that_was_submitted(
        self, evaluator: Evaluator
    ) -> None:
        ids = evaluator.submit([{"x": i} for i in range(5)])
        results = evaluator.gather("all", 60)
        assert sorted(r.id for r in results) == ids == [1, 2, 3, 4, 5]
        assert {r.id: (dict(r.config), r.objective) for r in results} == {
            i + 1: ({"x": i}, 2.0 * i) for i in range(5)
        }

    def test_every_result_comes_exactly_once(self, evaluator: Evaluator) -> None:
        evaluator.submit([{"x": i} for i in range(20)])
        seen = [r.id for _ in range(20) for r in evaluator.gather(1, 60)]
        assert sorted(seen) == list(range(1, 21))
        assert evaluator.gather("all", 0) == []

    def test_a_failure_is_a_value_with_outcome_and_reason(self, evaluator: Evaluator) -> None:
        evaluator.submit([{"x": 3, "fail": True}])
        (result,) = evaluator.gather("all", 60)
        assert (result.objective, result.outcome, result.ok) == (None, Outcome.ERROR, False)
        assert "no value for 3" in result.reason

    def test_nothing_finished_and_no_patience_gives_nothing(
        self, evaluator: Evaluator, hold: threading.Event
    ) -> None:
        assert evaluator.gather(1, 0) == []
        hold.clear()
        evaluator.submit([{"x": 1}])
        assert evaluator.gather(1, 0) == []
        assert evaluator.gather("all", 0.05) == []
        hold.set()
        assert len(evaluator.gather("all", 60)) == 1

    def test_gather_without_anything_in_flight_does_not_block(self, evaluator: Evaluator) -> None:
        assert evaluator.gather("all") == []
        assert evaluator.gather(3) == []

    def test_gather_waits_for_as_many_as_asked(self, evaluator: Evaluator) -> None:
        evaluator.submit([{"x": i} for i in range(10)])
        results = evaluator.gather(10, 60)
        assert len(results) == 10

    def test_history_holds_all_results_in_the_order_of_their_end(self, evaluator: Evaluator) -> None:
        evaluator.submit([{"x": i} for i in range(6)])
        evaluator.gather("all", 60)
        orders = [r.order for r in evaluator.history]
        assert len(orders) == 6
        assert orders == sorted(orders)

    def test_a_cancelled_evaluation_comes_back_as_killed(
        self, evaluator: Evaluator, hold: threading.Event
    ) -> None:
        hold.clear()
        ids = evaluator.submit([{"x": 1}, {"x": 2}, {"x": 3}])
        evaluator.cancel(ids[1:])
        killed = evaluator.gather(2, 60)
        assert sorted(r.id for r in killed) == ids[1:]
        assert {r.outcome for r in killed} == {Outcome.KILLED}
        hold.set()
        assert [r.objective for r in evaluator.gather("all", 60)] == [2.0]

    def test_cancelling_what_is_finished_or_unknown_does_nothing(self, evaluator: Evaluator) -> None:
        evaluator.submit([{"x": 1}])
        evaluator.gather("all", 60)
        evaluator.cancel([1, 99])
        assert evaluator.gather("all", 0.1) == []

    def test_the_capacity_is_a_number_of_evaluations(self, evaluator: Evaluator) -> None:
        assert evaluator.capacity() == 2

    def test_in_flight_counts_what_is_submitted_and_unfinished(
        self, evaluator: Evaluator, hold: threading.Event
    ) -> None:
        hold.clear()
        evaluator.submit([{"x": i} for i in range(4)])
        assert evaluator.in_flight == 4
        hold.set()
        evaluator.gather("all", 60)
        assert evaluator.in_flight == 0

    @pytest.mark.parametrize(
        "config", [None, [1], "x", {1: 2}, {"x": object()}, {"x": {1, 2}}, {"x": 2**70}, {"x": [1j]}]
    )
    def test_what_is_no_json_dictionary_is_refused_in_one_line(
        self, evaluator: Evaluator, config: object
    ) -> None:
        with pytest.raises(WrongCall) as refused:
            evaluator.submit([{"x": 1}, config])  # type: ignore[list-item]
        assert "\n" not in refused.value.message
        assert evaluator.in_flight == 0, "nothing of a refused call is submitted"

    @pytest.mark.parametrize("n", [-1, 1.5, "some", None])
    def test_gather_refuses_what_is_no_number_of_results(self, evaluator: Evaluator, n: object) -> None:
        with pytest.raises(WrongCall, match="gather"):
            evaluator.gather(n)  # type: ignore[arg-type]
