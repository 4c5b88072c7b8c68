"""The loop: how much is asked for and when, where it stops, what it leaves."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from nas_hpc.apps import progress as module
from nas_hpc.errors import LauncherGone, WorkFailed
from nas_hpc.problem import HpProblem
from nas_hpc.search.random import RandomSampler
from tests.apps import quadratic
from tests.apps.support import rows, search
from tests.evaluator.peer import Peer
from tests.support import wait_until


def _random(seed: int = 1) -> RandomSampler:
    return RandomSampler(quadratic.Problem, seed)


class Recorder(RandomSampler):
    """Random search that notes how it was used."""

    def __init__(self) -> None:
        super().__init__(quadratic.Problem, 1)
        self.calls: list[tuple[str, int]] = []
        self.told: list[float | None] = []

    def ask(self, n: int) -> list[dict[str, Any]]:
        self.calls.append(("ask", n))
        return super().ask(n)

    def tell(self, configs: Sequence[Mapping[str, Any]], objectives: Sequence[float | None]) -> None:
        self.calls.append(("tell", len(configs)))
        self.told += objectives
        super().tell(configs, objectives)


def _peer(tmp_path: Path, run: Any = quadratic.run, workers: int = 2) -> Peer:
    return Peer(tmp_path / "endpoint.json", run, workers)


@pytest.mark.parametrize(("workers", "max_evals"), [(1, 1), (1, 7), (3, 10), (8, 3), (5, 5)])
def test_it_stops_at_exactly_max_evals(tmp_path: Path, workers: int, max_evals: int) -> None:
    with _peer(tmp_path, workers=workers) as peer:
        search(peer, tmp_path, _random, max_evals=max_evals)
        assert len(peer.rows) == max_evals
        assert sum(peer.ledger.values()) == max_evals
    assert sorted(int(row["seq"]) for row in rows(tmp_path)) == list(range(1, max_evals + 1))


def test_it_asks_at_first_for_as_many_as_can_run_and_then_for_as_many_as_became_free(tmp_path: Path) -> None:
    recorder = Recorder()
    with _peer(tmp_path, workers=3) as peer:
        search(peer, tmp_path, lambda: recorder, max_evals=20)
    assert recorder.calls[0] == ("ask", 3)
    in_flight = 0
    for what, count in recorder.calls:
        in_flight += count if what == "ask" else -count
        assert in_flight <= 3
    assert recorder.calls[-1][0] == "ask", "what nobody asks after is not fitted"


def test_large_demands_are_asked_for_in_parts_so_that_the_first_run_early(tmp_path: Path) -> None:
    recorder = Recorder()
    with _peer(tmp_path, workers=50) as peer:
        search(peer, tmp_path, lambda: recorder, max_evals=50)
    assert recorder.calls[:3] == [("ask", 20), ("ask", 20), ("ask", 10)]


def test_it_begins_with_all_starting_points_however_few_workers_there_are(tmp_path: Path) -> None:
    problem = HpProblem()
    problem.add_hyperparameter((0.0, 1.0), "x")
    problem.add_hyperparameter((1, 2), "n")
    for i in range(4):
        problem.add_starting_point(x=i / 10, n=1)
    with _peer(tmp_path, workers=1) as peer:
        search(peer, tmp_path, lambda: RandomSampler(problem, 0), max_evals=6, problem=problem)
        assert [config["x"] for config in peer.configs[:4]] == [0.0, 0.1, 0.2, 0.3]
        assert [dict(row.ask.data) for row in peer.rows.values()][:4] == [{"told": 0, "batch": 1}] * 4


def test_failures_count_are_told_as_such_and_have_an_empty_objective(tmp_path: Path) -> None:
    recorder = Recorder()

    def sometimes(config: Mapping[str, Any]) -> float:
        if config["n"] % 2:
            raise ValueError("odd")
        return quadratic.run(config)

    with _peer(tmp_path, sometimes) as peer:
        search(peer, tmp_path, lambda: recorder, max_evals=12)
    failed = [row for row in rows(tmp_path) if row["outcome"] == "error"]
    assert 0 < len(failed) < 12
    assert {(row["objective"], row["reason"]) for row in failed} == {("", "ValueError: odd")}
    assert None in recorder.told


def test_if_everything_fails_the_commonest_reason_is_given(tmp_path: Path) -> None:
    with _peer(tmp_path, quadratic.fail) as peer, pytest.raises(WorkFailed) as failed:
        search(peer, tmp_path, _random, max_evals=5)
    assert failed.value.message.startswith(
        "all 5 evaluations failed, 5 of them with: ValueError: nothing works"
    )
    assert len(rows(tmp_path)) == 5


def test_a_straggler_holds_up_nobody(tmp_path: Path) -> None:
    released = threading.Event()

    def straggle(config: Mapping[str, Any]) -> float:
        if config["x"] == 10.0:  # the starting point
            assert released.wait(60)
        return 0.0

    with _peer(tmp_path, straggle) as peer:
        thread = threading.Thread(target=search, args=(peer, tmp_path, _random), kwargs={"max_evals": 30})
        thread.start()
        wait_until(lambda: len(peer.done) == 29, what="all others")
        released.set()
        thread.join(60)
    assert len(rows(tmp_path)) == 30


def test_a_growing_capacity_is_used_while_evaluations_run(tmp_path: Path) -> None:
    with _peer(tmp_path, workers=2) as peer:
        peer.hold.clear()
        thread = threading.Thread(target=search, args=(peer, tmp_path, _random), kwargs={"max_evals": 20})
        thread.start()
        wait_until(lambda: len(peer.rows) == 2, what="two evaluations")
        peer.set_workers(6)
        wait_until(lambda: len(peer.rows) == 6, what="six evaluations")
        peer.hold.set()
        thread.join(60)
        assert len(peer.rows) == 20


def test_the_time_limit_ends_what_runs_and_keeps_what_was_found(tmp_path: Path) -> None:
    with _peer(tmp_path) as peer:

        def stuck_after_five(config: Mapping[str, Any]) -> float:
            if len(peer.done) >= 5:
                peer.hold.clear()
            return 1.0

        peer.run = stuck_after_five
        search(peer, tmp_path, _random, max_evals=1000, time_limit_s=1.0)
        assert all(row.done for row in peer.rows.values())
    outcomes = [row["outcome"] for row in rows(tmp_path)]
    assert outcomes.count("ok") >= 5
    assert outcomes.count("killed") == 2


def test_a_space_without_new_configurations_still_gives_max_evals_rows(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "nas_hpc.apps")
    with _peer(tmp_path, lambda config: float(config["x"])) as peer:
        search(
            peer, tmp_path, lambda: RandomSampler(quadratic.Small, 0), max_evals=10, problem=quadratic.Small
        )
        assert sum(peer.ledger.values()) == 10
    assert sum("no more new configurations" in line for line in caplog.messages) == 1


def test_with_a_cache_known_configurations_are_rows_that_did_not_run(tmp_path: Path) -> None:
    with _peer(tmp_path, lambda config: float(config["x"])) as peer:
        make = lambda: RandomSampler(quadratic.Small, 0)  # noqa: E731
        search(peer, tmp_path, make, max_evals=10, problem=quadratic.Small, cache_key="to_dict")
        assert sum(peer.ledger.values()) == 4
    assert [row["cached"] for row in rows(tmp_path)].count("True") == 6


def test_progress_is_reported_to_the_launcher_and_the_last_report_is_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "REPORT_S", 0.01)
    with _peer(tmp_path) as peer:
        search(peer, tmp_path, _random, max_evals=9)
        wait_until(lambda: peer.reports and peer.reports[-1].done == 9, what="the last report")
        best = max(peer.done, key=lambda done: done.objective or -1e9)
        last = peer.reports[-1]
    assert (last.best, last.best_config, last.failed, last.max_evals) == (best.objective, best.config, 0, 9)


def test_the_log_is_a_line_per_tenth_with_the_best_so_far(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "nas_hpc.apps")
    with _peer(tmp_path) as peer:
        search(peer, tmp_path, _random, max_evals=200)
    lines = [line for line in caplog.messages if " done, " in line]
    assert 10 <= len(lines) <= 11
    assert lines[-1].startswith("200 of 200 done, 0 failed, best ")


def test_when_the_launcher_stops_what_was_found_is_written(tmp_path: Path) -> None:
    with _peer(tmp_path) as peer:
        caught: list[BaseException] = []

        def run() -> None:
            try:
                search(peer, tmp_path, _random, max_evals=1000)
            except LauncherGone as error:
                caught.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        wait_until(lambda: len(peer.done) > 20, what="some results")
        peer.hold.clear()
        finished = len(peer.done)
        peer.end("the launcher stops")
        thread.join(60)
    assert len(caught) == 1
    assert len(rows(tmp_path)) >= finished


def test_a_result_that_a_person_had_made_anew_is_the_one_in_the_file(tmp_path: Path) -> None:
    with _peer(tmp_path, workers=1) as peer:

        def run(config: Mapping[str, Any]) -> float:
            if len(peer.rows) == 1:
                raise ValueError("the first fails")
            if len(peer.rows) == 3:
                peer.finish_again(1, 55.0)
            return 1.0

        peer.run = run
        search(peer, tmp_path, _random, max_evals=6)
    assert sorted((row["seq"], row["objective"]) for row in rows(tmp_path))[0] == ("1", "55.0")
    assert len(rows(tmp_path)) == 6
