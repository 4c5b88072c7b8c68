"""Aging evolution: who is in the population, who has children, and what these are."""

from __future__ import annotations

import json
from collections import Counter
from statistics import median
from typing import Any

import ConfigSpace as cs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nas_hpc.errors import WrongCall
from nas_hpc.problem import HpProblem
from nas_hpc.search import AgingEvolution, Optimizer, RandomSampler
from nas_hpc.search.space import SpaceCodec
from tests.search.spaces import mixed, problems
from tests.support import examples

Config = dict[str, Any]
PARENT = {"two": 1, "many": 7, "five": 0}


def sequences(nodes: int = 10, operations: int = 5) -> HpProblem:
    """A space of architectures as its decisions."""
    problem = HpProblem()
    for node in range(nodes):
        problem.add_dim(str(node), list(range(operations)), ordinal=False)
    return problem


def distance(one: Config, other: Config) -> int:
    return sum(one.get(name) != other.get(name) for name in one.keys() | other.keys())


def told(problem: HpProblem, configs: list[Config], results: list[float | None], **more: Any) -> Optimizer:
    optimizer = AgingEvolution(problem, **{"population": 5, "sample": 5, "initial": 1} | more)
    for config, result in zip(configs, results, strict=True):
        optimizer.tell([config], [result])
    return optimizer


@pytest.mark.parametrize(
    ("settings_", "says"),
    [
        ({"population": 1}, "population 1: give 2 or more"),
        ({"sample": 0}, "sample 0: give 1 or more"),
        ({"population": 5, "sample": 6}, r"sample 6: .* the population \(5\) at most"),
        ({"initial": 0}, "initial 0: give 1 or more"),
        ({"seed": -1}, "seed -1"),
    ],
)
def test_a_setting_that_cannot_be_is_refused_with_its_value(settings_: dict[str, Any], says: str) -> None:
    with pytest.raises(WrongCall, match=says):
        AgingEvolution(sequences(), **settings_)


def test_points_are_those_of_random_search_until_enough_have_succeeded() -> None:
    evolution = AgingEvolution(sequences(), population=4, sample=2, initial=6, seed=3)
    sampler = RandomSampler(sequences(), seed=3)
    for number in range(11):
        [config] = evolution.ask(1)
        assert [config] == sampler.ask(1)
        result = [None if number % 2 else float(number)]
        evolution.tell([config], result)
        sampler.tell([config], result)
    assert evolution.ask(1) != sampler.ask(1)


def test_a_child_differs_from_the_best_of_the_youngest_in_one_place() -> None:
    """With a sample as large as the population the parent is certain."""
    configs = RandomSampler(sequences(), seed=1).ask(40)
    results = [float(number) for number in np.random.default_rng(1).permutation(40)]
    for count in range(6, 41):
        optimizer = told(sequences(), configs[:count], results[:count], seed=count)
        youngest = range(count - 5, count)
        parent = configs[max(youngest, key=results.__getitem__)]
        for child in optimizer.ask(3):
            assert distance(child, parent) == 1


def test_the_best_of_all_has_no_children_when_it_is_old() -> None:
    configs = RandomSampler(sequences(), seed=2).ask(6)
    optimizer = told(sequences(), configs, [100.0, 1.0, 2.0, 3.0, 4.0, 5.0])
    assert {distance(child, configs[5]) for child in optimizer.ask(20)} == {1}


def test_failures_never_enter_the_population_and_make_nothing_older() -> None:
    configs = RandomSampler(sequences(), seed=2).ask(30)
    results = [7.0, *[None] * 10, *[float("nan")] * 10, *[float("inf")] * 9]
    optimizer = told(sequences(), configs, results)
    assert {distance(child, configs[0]) for child in optimizer.ask(20)} == {1}


def test_a_small_sample_gives_worse_members_children_too_the_worst_ones_never() -> None:
    problem = sequences(nodes=20, operations=9)
    configs = RandomSampler(problem, seed=4).ask(10)
    optimizer = told(problem, configs, [float(n) for n in range(10)], population=10, sample=3)
    parents = Counter(
        next(n for n, config in enumerate(configs) if distance(child, config) == 1)
        for child in optimizer.ask(150)
    )
    assert not parents.keys() & {0, 1}, "two of three are drawn beside them, and are better"
    assert parents[9] > 2 * parents[5]
    assert len(parents) > 4


def test_every_place_changes_equally_often_whatever_it_may_choose_from() -> None:
    problem = HpProblem()
    for name, count in (("two", 2), ("many", 25), ("five", 5)):
        problem.add_dim(name, list(range(count)), ordinal=False)
    codec = SpaceCodec(problem)
    parents = codec.to_vectors([PARENT] * 3000)
    children = codec.to_configs(codec.mutate(parents, np.random.default_rng(5)))
    changed = Counter(name for child in children for name, old in PARENT.items() if child[name] != old)
    assert sum(changed.values()) == 3000
    assert all(900 < count < 1100 for count in changed.values())
    assert {child["many"] for child in children} == set(range(25))


@settings(max_examples=examples(20), deadline=None, derandomize=True)
@given(problem=problems(), seed=st.integers(0, 9999))
def test_mutations_are_legal_and_change_one_active_value_and_what_it_switches(
    problem: HpProblem, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    codec = SpaceCodec(problem)
    parents = codec.sample(6, rng)
    for parent in parents:
        [before] = codec.to_configs(parent[None, :])
        near = [*codec.mutate(parent[None, :], rng), *codec.neighbours(parent, rng)]
        for child in codec.to_configs(np.array(near).reshape(-1, codec.width)):
            problem.check_configuration(child)
            both = [name for name in before if name in child and child[name] != before[name]]
            assert len(both) <= 1, f"{before} became {child}"


def test_what_a_mutation_switches_on_gets_values() -> None:
    codec = SpaceCodec(mixed())
    [adam] = codec.to_vectors([{"solver": "adam", "units": 7, "rate": 0.5, "batch": 16, "version": 3}])
    children = codec.to_configs(codec.mutate(np.repeat(adam[None, :], 200, axis=0), np.random.default_rng(0)))
    to_sgd = [child for child in children if child["solver"] == "sgd"]
    assert to_sgd
    assert all(0.0 <= child["momentum"] <= 0.99 for child in to_sgd)


def test_no_child_was_seen_while_a_neighbour_was_not() -> None:
    problem = sequences(nodes=3, operations=3)
    parent = {"0": 1, "1": 1, "2": 1}
    neighbours = [
        parent | {str(place): value}
        for place in range(3)
        for value in range(3)
        if value != parent[str(place)]
    ]
    for left in neighbours:
        known = [parent, *(one for one in neighbours if one != left)]
        results = [9.0, *[None] * 5]
        assert told(problem, known, results).ask(1) == [left]


def test_where_all_neighbours_were_seen_the_child_is_a_step_further() -> None:
    problem = sequences(nodes=4, operations=2)
    parent = {str(place): 0 for place in range(4)}
    neighbours = [parent | {str(place): 1} for place in range(4)]
    for seed in range(5):
        [child] = told(problem, [parent, *neighbours], [9.0, *[None] * 4], seed=seed).ask(1)
        assert distance(child, parent) == 2


def test_duplicates_come_where_they_are_allowed_and_only_there() -> None:
    for duplicates in (False, True):
        optimizer = AgingEvolution(sequences(3, 3), 5, 3, initial=3, duplicates=duplicates, seed=1)
        asked = []
        for _ in range(24):
            configs = optimizer.ask(1)
            optimizer.tell(configs, [float(sum(configs[0].values()))])
            asked.append(json.dumps(configs[0]))
        assert (len(set(asked)) < 24) == duplicates


def test_clauses_that_forbid_all_neighbours_leave_random_points() -> None:
    problem = HpProblem()
    one, two = problem.add_dim("one", ["a", "b"]), problem.add_dim("two", ["a", "b"])
    for first, second in (("a", "b"), ("b", "a")):
        clauses = cs.ForbiddenEqualsClause(one, first), cs.ForbiddenEqualsClause(two, second)
        problem.add_forbidden(cs.ForbiddenAndConjunction(*clauses))
    for duplicates in (False, True):
        optimizer = told(problem, [{"one": "a", "two": "a"}], [1.0], duplicates=duplicates)
        assert optimizer.ask(1)[0]["one"] in ("a", "b")
    assert told(problem, [{"one": "a", "two": "a"}], [1.0]).ask(1) == [{"one": "b", "two": "b"}]


def test_it_finds_a_hidden_sequence_that_random_search_does_not() -> None:
    """12 places with 6 operations each, scored by how many are right; 300 evaluations."""
    found: dict[str, list[float]] = {"EVO": [], "random": []}
    for seed in range(3):
        best = {
            str(place): int(op) for place, op in enumerate(np.random.default_rng(seed).integers(6, size=12))
        }
        makers: dict[str, Optimizer] = {
            "EVO": AgingEvolution(sequences(12, 6), seed=seed),
            "random": RandomSampler(sequences(12, 6), seed=seed),
        }
        for name, optimizer in makers.items():
            for _ in range(60):
                configs = optimizer.ask(5)
                optimizer.tell(configs, [12.0 - distance(config, best) for config in configs])
            found[name].append(optimizer.state["best_objective"])
    print(found)
    assert median(found["EVO"]) >= median(found["random"]) + 2
