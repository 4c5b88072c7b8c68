"""What every optimizer promises: legal, distinct, repeatable points; resume; failures; small spaces."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import ConfigSpace as cs
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nas_hpc.errors import WrongCall
from nas_hpc.problem import HpProblem
from nas_hpc.search import AgingEvolution, ForestOptimizer, Optimizer, RandomSampler
from tests.search.spaces import mixed, objective, problems, small
from tests.support import examples

Maker = Callable[[HpProblem, int], Optimizer]

MAKERS: dict[str, Maker] = {
    "random": lambda problem, seed: RandomSampler(problem, seed=seed),
    "RF": lambda problem, seed: ForestOptimizer(problem, "RF", seed=seed, n_initial=4),
    "ET-EI": lambda problem, seed: ForestOptimizer(
        problem, "ET", "EI", liar_strategy="cl_mean", seed=seed, n_initial=4
    ),
    "DUMMY": lambda problem, seed: ForestOptimizer(problem, "DUMMY", seed=seed),
    "EVO": lambda problem, seed: AgingEvolution(problem, 5, 3, initial=3, seed=seed),
}
FEW = settings(
    max_examples=examples(8), deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)


def key(config: dict[str, Any]) -> str:
    return json.dumps(config, sort_keys=True)


@pytest.fixture(params=MAKERS)
def make(request: pytest.FixtureRequest) -> Maker:
    return MAKERS[request.param]


def drive(optimizer: Optimizer, batches: list[int], fail_every: int = 0) -> list[dict[str, Any]]:
    """Ask and tell in turn; every ``fail_every``-th point fails."""
    asked: list[dict[str, Any]] = []
    for size in batches:
        configs = optimizer.ask(size)
        asked += configs
        failed = [bool(fail_every) and hash_free(c) % fail_every == 0 for c in configs]
        results = [None if bad else objective(c) for c, bad in zip(configs, failed, strict=True)]
        optimizer.tell(configs, results)
    return asked


def hash_free(config: dict[str, Any]) -> int:
    return sum(key(config).encode())


@pytest.mark.parametrize("kind", ["random", "RF", "ET-EI", "EVO"])
@FEW
@given(problem=problems(), seed=st.integers(0, 99))
def test_points_are_legal_plain_and_distinct_while_there_are_any(
    kind: str, problem: HpProblem, seed: int
) -> None:
    optimizer = MAKERS[kind](problem, seed)
    asked: list[dict[str, Any]] = []
    for size in (5, 1, 7, 2):
        was_exhausted = optimizer.exhausted
        configs = optimizer.ask(size)
        assert len(configs) == size
        for config in configs:
            problem.check_configuration(config)
            assert json.loads(json.dumps(config)) == config
            assert list(config) == [n for n in problem.hyperparameter_names if n in config]
            if not was_exhausted and not optimizer.exhausted:
                assert key(config) not in {key(c) for c in asked}
            asked.append(config)
        optimizer.tell(configs, [objective(c) for c in configs])


@pytest.mark.parametrize("kind", ["RF", "EVO"])
@FEW
@given(seed=st.integers(0, 999), batches=st.lists(st.integers(1, 6), min_size=3, max_size=6))
def test_the_same_calls_give_the_same_points(kind: str, seed: int, batches: list[int]) -> None:
    runs = [drive(MAKERS[kind](mixed(), seed), batches, fail_every=5) for _ in range(2)]
    assert runs[0] == runs[1]


@pytest.mark.parametrize("kind", ["random", "RF", "EVO", pytest.param("ET-EI", marks=pytest.mark.slow)])
@FEW
@given(seed=st.integers(0, 999), shuffle=st.integers(0, 999))
def test_a_resumed_search_goes_on_as_if_uninterrupted(kind: str, seed: int, shuffle: int) -> None:
    whole, resumed = MAKERS[kind](mixed(), seed), MAKERS[kind](mixed(), seed)
    asked = drive(whole, [3, 1, 4, 2], fail_every=4)
    running = whole.ask(3)
    told = [(c, None if hash_free(c) % 4 == 0 else objective(c)) for c in asked]

    through_json = json.loads(json.dumps(asked + running))
    if kind != "EVO":  # to the others the order in which results are told again does not matter
        random.Random(shuffle).shuffle(told)
    resumed.remember(through_json)
    resumed.tell([c for c, _ in told], [y for _, y in told])

    for _ in range(2):
        expected = whole.ask(2)
        assert resumed.ask(2) == expected
        whole.tell(expected, [1.0, None])
        resumed.tell(expected, [1.0, None])


@pytest.mark.slow
def test_points_do_not_depend_on_hash_seed_or_threads() -> None:
    program = (
        "import json; from tests.search.spaces import mixed, objective\n"
        "from nas_hpc.search import ForestOptimizer\n"
        "o = ForestOptimizer(mixed(), seed=5, n_initial=4, n_jobs={jobs})\n"
        "for _ in range(3):\n c = o.ask(4); o.tell(c, [objective(x) for x in c])\n"
        "print(json.dumps(o.ask(4)))"
    )
    answers = set()
    for hash_seed, threads, jobs in (("0", "1", 1), ("77", "2", 2)):
        environ = os.environ | {"PYTHONHASHSEED": hash_seed, "OMP_NUM_THREADS": threads}
        command = [sys.executable, "-c", program.format(jobs=jobs)]
        answers.add(subprocess.run(command, env=environ, capture_output=True, text=True, check=True).stdout)
    assert len(answers) == 1


def test_starting_points_come_first_and_once(make: Maker) -> None:
    problem = mixed()
    problem.add_starting_point(solver="sgd", momentum=0.25, units=9, rate=0.5, batch=64, version=3)
    optimizer = make(problem, 1)
    assert optimizer.ask(1) == problem.starting_point_asdict[:1]
    assert optimizer.ask(2)[0] == problem.starting_point_asdict[1]
    assert not any(config in problem.starting_point_asdict for config in optimizer.ask(5))


def test_a_small_space_is_seen_whole_before_points_come_again(make: Maker) -> None:
    optimizer = make(small(), 2)
    asked: list[dict[str, Any]] = []
    while len(asked) < 11:
        assert not optimizer.exhausted
        configs = optimizer.ask(min(3, 11 - len(asked)))
        optimizer.tell(configs, [objective(c) for c in configs])
        asked += configs
    assert len({key(c) for c in asked}) == 11
    assert optimizer.exhausted
    again = optimizer.ask(4)  # more than the space has: still as many as were asked for
    assert len(again) == 4
    optimizer.tell(again, [0.0] * 4)
    assert optimizer.state["told"] == 15


def test_a_space_of_one_point_gives_it(make: Maker) -> None:
    problem = HpProblem()
    problem.add_dim("only", ["x"])
    optimizer = make(problem, 0)
    for _ in range(8):
        assert optimizer.ask(1) == [{"only": "x"}]
        optimizer.tell([{"only": "x"}], [1.0])


def test_a_history_that_was_never_asked_is_taken_in_and_not_asked_again(make: Maker) -> None:
    history = RandomSampler(mixed(), seed=9).ask(30)
    optimizer = make(mixed(), 3)
    optimizer.tell(history, [objective(c) for c in history])
    asked = optimizer.ask(20)
    assert not {key(c) for c in asked} & {key(c) for c in history}
    assert optimizer.state["told"] == 30
    assert optimizer.state["asked"] == 20
    assert optimizer.state["pending"] == 20
    assert optimizer.state["best_config"] == max(history, key=objective)


def test_a_search_of_nothing_but_failures_goes_on(make: Maker) -> None:
    optimizer = make(mixed(), 4)
    seen = set()
    for _ in range(6):
        configs = optimizer.ask(3)
        seen |= {key(c) for c in configs}
        optimizer.tell(configs, [None, float("nan"), float("-inf")])
    assert len(seen) == 18
    assert optimizer.state["failed"] == 18
    assert optimizer.state["best_config"] is None


@pytest.mark.parametrize(
    ("configs", "objectives", "says"),
    [
        ([{"number": 1, "kind": "a"}], [], "1 configurations but 0 objectives"),
        ([{"number": 99, "kind": "a"}], [1.0], "number=99 is outside the space"),
        ([{"number": 1, "kind": "z"}], [1.0], "kind='z' is outside the space"),
        ([{"number": 1, "sort": "a"}], [1.0], "no hyperparameter 'sort'"),
        ([{"number": 1, "kind": "a"}], ["1.0"], "objective '1.0' is no number"),
        ([{"number": 1, "kind": "a"}], [True], "objective True is no number"),
    ],
)
def test_wrong_results_are_refused_and_nothing_is_noted(
    configs: list[dict[str, Any]], objectives: list[Any], says: str
) -> None:
    optimizer = RandomSampler(small(), seed=0)
    with pytest.raises(WrongCall, match=says):
        optimizer.tell(configs, objectives)
    assert optimizer.state["told"] == 0


def test_a_space_without_legal_points_says_so() -> None:
    class Impossible:
        """Every point but the default is forbidden, and the default is one in a million."""

        def __init__(self) -> None:
            problem = HpProblem()
            for i in range(10):
                hp = problem.add_dim(f"x{i}", list("abcdefgh"))
                problem.add_forbidden(cs.ForbiddenInClause(hp, list("bcdefgh")))
            self.space = problem.space
            self.hyperparameter_names = problem.hyperparameter_names
            self.starting_point_asdict: list[dict[str, Any]] = []

    with pytest.raises(WrongCall, match="leave \\(almost\\) nothing"):
        RandomSampler(Impossible(), seed=0).ask(3)
