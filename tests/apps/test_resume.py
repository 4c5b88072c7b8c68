"""A search that is interrupted at any point and started again goes on as if nothing had happened."""

from __future__ import annotations

import logging
import tempfile
import threading
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nas_hpc.problem import HpProblem
from nas_hpc.search.base import Optimizer
from nas_hpc.search.evolution import AgingEvolution
from nas_hpc.search.forest import ForestOptimizer
from nas_hpc.search.random import RandomSampler
from tests.apps import quadratic
from tests.apps.support import rows, search
from tests.evaluator.peer import Peer
from tests.support import examples, wait_until

EVALUATIONS = 14
MAKERS: dict[str, Callable[[], Optimizer]] = {
    "random": lambda: RandomSampler(quadratic.Problem, 5),
    "ambs": lambda: ForestOptimizer(quadratic.Problem, seed=5, n_initial=6),
    "evo": lambda: AgingEvolution(quadratic.Problem, 4, 2, initial=3, seed=5),
}


class Kill(BaseException):
    """The search dies here."""


class Fuse:
    """Lets every call of what it wraps count; the call number ``after`` dies, before or after its effect."""

    def __init__(self, after: int, effect: bool) -> None:
        self.left, self.effect = after, effect

    def wrap(self, whole: Any) -> Any:
        return _Wrapped(whole, self)

    def call(self, method: Callable[..., Any], *args: Any, **keywords: Any) -> Any:
        self.left -= 1
        if self.left == 0 and not self.effect:
            raise Kill
        result = method(*args, **keywords)
        if self.left == 0:
            raise Kill
        return result


class _Wrapped:
    def __init__(self, whole: Any, fuse: Fuse) -> None:
        self._whole, self._fuse = whole, fuse

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._whole, name)
        if name in ("ask", "tell", "remember", "submit", "gather", "report"):
            return lambda *args, **keywords: self._fuse.call(value, *args, **keywords)
        return value


@cache
def _uninterrupted(name: str) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as place, Peer(Path(place, "endpoint.json"), quadratic.run) as peer:
        search(peer, Path(place), MAKERS[name], max_evals=EVALUATIONS)
        return peer.configs


def _interrupted(name: str, points: list[tuple[int, bool]]) -> None:
    with tempfile.TemporaryDirectory() as place, Peer(Path(place, "endpoint.json"), quadratic.run) as peer:
        for attempt, (after, effect) in enumerate(points, 1):
            fuse = Fuse(after, effect)
            try:
                search(
                    peer, Path(place), MAKERS[name], max_evals=EVALUATIONS, attempt=attempt, wrap=fuse.wrap
                )
            except Kill:
                continue
        search(peer, Path(place), MAKERS[name], max_evals=EVALUATIONS, attempt=len(points) + 1)
        assert peer.configs == _uninterrupted(name)
        assert dict(peer.ledger) == dict.fromkeys(range(1, EVALUATIONS + 1), 1), "each ran once"
        assert [int(row["seq"]) for row in rows(Path(place))] == [done.seq for done in peer.done]
        assert len(peer.done) == EVALUATIONS


_points = st.lists(st.tuples(st.integers(1, 45), st.booleans()), min_size=1, max_size=4)
_few = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True)


@pytest.mark.parametrize("name", ["random", "evo"])
@given(points=_points)
@settings(_few, max_examples=examples(25))
def test_a_quick_search_goes_on_as_if_uninterrupted(name: str, points: list[tuple[int, bool]]) -> None:
    _interrupted(name, points)


@pytest.mark.slow
@given(_points)
@settings(_few, max_examples=examples(12))
def test_ambs_goes_on_as_if_uninterrupted(points: list[tuple[int, bool]]) -> None:
    _interrupted("ambs", points)


@pytest.mark.parametrize("after", [4, 9, 23])
def test_ambs_goes_on_as_if_uninterrupted_at_some_points(after: int) -> None:
    _interrupted("ambs", [(after, True), (after + 1, False)])


@pytest.mark.parametrize("name", MAKERS)
def test_two_searches_with_one_seed_on_one_worker_ask_the_same(tmp_path: Path, name: str) -> None:
    with Peer(tmp_path / "endpoint.json", quadratic.run) as peer:
        search(peer, tmp_path, MAKERS[name], max_evals=EVALUATIONS)
        assert peer.configs == _uninterrupted(name)


def test_many_workers_lose_and_repeat_nothing_over_interruptions(tmp_path: Path) -> None:
    with Peer(tmp_path / "endpoint.json", quadratic.run, workers=7) as peer:
        for attempt, after in enumerate((3, 5, 7, 9, 12), 1):  # in all fewer than it needs, seven at a time
            fuse = Fuse(after, attempt % 2 == 0)
            with pytest.raises(Kill):
                search(peer, tmp_path, MAKERS["random"], max_evals=120, attempt=attempt, wrap=fuse.wrap)
        search(peer, tmp_path, MAKERS["random"], max_evals=120, attempt=9)
        assert dict(peer.ledger) == dict.fromkeys(range(1, 121), 1)
    assert len(rows(tmp_path)) == 120
    assert len({(row["x"], row["n"], row["kind"], row["bend"]) for row in rows(tmp_path)}) == 120


def test_a_raised_limit_goes_on_from_the_finished_search(tmp_path: Path) -> None:
    with Peer(tmp_path / "endpoint.json", quadratic.run) as peer:
        search(peer, tmp_path, MAKERS["ambs"], max_evals=EVALUATIONS - 5)
        search(peer, tmp_path, MAKERS["ambs"], max_evals=EVALUATIONS, attempt=2)
        assert peer.configs == _uninterrupted("ambs")
    assert len(rows(tmp_path)) == EVALUATIONS


def test_a_finished_search_started_again_runs_nothing_and_writes_the_same(tmp_path: Path) -> None:
    with Peer(tmp_path / "endpoint.json", quadratic.run) as peer:
        search(peer, tmp_path, MAKERS["random"], max_evals=8)
        before = (tmp_path / "results.csv").read_bytes()
        (tmp_path / "results.csv").write_bytes(before[:-20])  # torn
        search(peer, tmp_path, MAKERS["random"], max_evals=8, attempt=2)
        assert len(peer.rows) == 8
    assert (tmp_path / "results.csv").read_bytes() == before


def test_what_was_running_beyond_a_lowered_limit_is_ended(tmp_path: Path) -> None:
    with Peer(tmp_path / "endpoint.json", quadratic.run, workers=4) as peer:
        peer.hold.clear()
        with pytest.raises(Kill):
            search(peer, tmp_path, MAKERS["random"], max_evals=50, wrap=Fuse(3, False).wrap)
        search_again = {"max_evals": 2, "attempt": 2}
        thread = threading.Thread(target=search, args=(peer, tmp_path, MAKERS["random"]), kwargs=search_again)
        thread.start()
        wait_until(lambda: len(peer.done) == 2, what="the surplus to be ended")
        assert {done.outcome for done in peer.done} == {"killed"}
        peer.hold.set()
        thread.join(60)
        assert len(peer.rows) == 4


def test_other_settings_than_the_recorded_ones_are_said_once_and_the_records_stand(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with Peer(tmp_path / "endpoint.json", quadratic.run) as peer:
        search(peer, tmp_path, lambda: RandomSampler(_without_start(), 5), max_evals=5)
        recorded = list(peer.configs)
        caplog.set_level(logging.WARNING, "nas_hpc.apps")
        search(peer, tmp_path, lambda: RandomSampler(_without_start(), 6), max_evals=9, attempt=2)
        assert peer.configs[:5] == recorded
        assert len(peer.configs) == 9
    assert sum("would have begun with other configurations" in line for line in caplog.messages) == 1


def _without_start() -> HpProblem:
    problem = HpProblem()
    problem.add_hyperparameter((-10.0, 10.0), "x")
    problem.add_hyperparameter((1, 50), "n")
    return problem
