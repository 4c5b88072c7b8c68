"""HpProblem: what it accepts in DeepHyper's forms, and what it refuses."""

from __future__ import annotations

import json
from typing import Any

import ConfigSpace as cs
import numpy as np
import pytest

from nas_hpc.errors import WrongCall
from nas_hpc.problem import HpProblem


@pytest.fixture
def problem() -> HpProblem:
    made = HpProblem()
    solver = made.add_dim("solver", ["sgd", "adam"])
    momentum = made.add_dim("momentum", (0.0, 0.99))
    units = made.add_dim("units", (1, 64, "log-uniform"))
    made.add_condition(cs.EqualsCondition(momentum, solver, "sgd"))
    made.add_forbidden_clause(
        cs.ForbiddenAndConjunction(
            cs.ForbiddenEqualsClause(solver, "adam"), cs.ForbiddenEqualsClause(units, 64)
        )
    )
    return made


@pytest.mark.parametrize(
    ("value", "kind", "log"),
    [
        ((1, 10), cs.UniformIntegerHyperparameter, False),
        ((1, 10, "log-uniform"), cs.UniformIntegerHyperparameter, True),
        ((1, 10, "uniform"), cs.UniformIntegerHyperparameter, False),
        ((0.1, 1.0), cs.UniformFloatHyperparameter, False),
        ((0, 1.0), cs.UniformFloatHyperparameter, False),
        ((1e-9, 1.0, "log-uniform"), cs.UniformFloatHyperparameter, True),
        ((np.int64(1), np.int64(3)), cs.UniformIntegerHyperparameter, False),
        (["a", "b"], cs.CategoricalHyperparameter, None),
        ([True, False], cs.CategoricalHyperparameter, None),
        ([None, "a", 3], cs.CategoricalHyperparameter, None),
        ([16, 32, 64], cs.OrdinalHyperparameter, None),
        ([3, 1, 2], cs.CategoricalHyperparameter, None),
        (7, cs.Constant, None),
    ],
)
def test_a_value_becomes_the_hyperparameter_that_its_form_says(value: Any, kind: type, log: Any) -> None:
    hp = HpProblem().add_dim("x", value)
    assert isinstance(hp, kind)
    if log is not None:
        assert hp.log is log


def test_both_orders_of_the_names_of_deephyper_make_the_same_space() -> None:
    first, second = HpProblem(), HpProblem()
    first.add_dim("units", (1, 10), 3)
    second.add_hyperparameter((1, 10), "units", default_value=3)
    assert first.space == second.space
    assert first.default_configuration == {"units": 3}


def test_names_keep_the_order_in_which_they_were_added(problem: HpProblem) -> None:
    problem.add(cs.Float("a", (0.0, 1.0)), [cs.Integer("b", (1, 3))])
    assert problem.hyperparameter_names == ["solver", "momentum", "units", "a", "b"]
    assert list(problem.default_configuration) == ["solver", "momentum", "units", "a", "b"]


def test_samples_are_plain_legal_and_repeat_by_seed(problem: HpProblem) -> None:
    problem.add_dim("mixed", [1, 2.5, None, "yes", False])
    drawn = problem.sample(200, np.random.default_rng(3))
    assert len(drawn) == 200
    assert drawn == problem.sample(200, np.random.default_rng(3))
    assert drawn != problem.sample(200, np.random.default_rng(4))
    for config in drawn:
        problem.check_configuration(config)
        assert json.loads(json.dumps(config)) == config
        assert ("momentum" in config) == (config["solver"] == "sgd")
        assert {type(v) for v in config.values()} <= {int, float, str, bool, type(None)}
    assert len(problem.sample(1)) == 1
    assert problem.sample(0) == []


def test_starting_points_come_back_in_order(problem: HpProblem) -> None:
    problem.add_starting_point(solver="adam", units=np.int64(3))
    problem.add_starting_point(solver="sgd", momentum=0.5, units=4)
    assert problem.starting_point_asdict == [
        {"solver": "adam", "units": 3},
        {"solver": "sgd", "momentum": 0.5, "units": 4},
    ]
    assert type(problem.starting_point_asdict[0]["units"]) is int


def test_a_starting_point_is_checked_against_what_is_added_later(problem: HpProblem) -> None:
    problem.add_starting_point(solver="adam", units=3)
    problem.add_dim("late", (0, 1))
    with pytest.raises(WrongCall, match="'late' is missing"):
        _ = problem.starting_point_asdict


@pytest.mark.parametrize(
    ("name", "value", "default", "says"),
    [
        ("x", (10, 1), None, r"\(10, 1\) is inverted: give \(1, 10\)"),
        ("x", (1, 1), None, "one value only"),
        ("x", (0.0, 1.0, "log-uniform"), None, "log-uniform from 0.0"),
        ("x", (-1, 5, "log-uniform"), None, "log-uniform from -1"),
        ("x", (0.0, 1.0, "normal"), None, "unknown prior 'normal'"),
        ("x", (0.0, float("inf")), None, "not finite"),
        ("x", (0.0, float("nan")), None, "not finite"),
        ("x", (1,), None, "no range"),
        ("x", (1, 2, "uniform", 4), None, "no range"),
        ("x", ("a", "b"), None, "no range"),
        ("x", (False, True), None, "no range"),
        ("x", [], None, "empty"),
        ("x", ["a", "a"], None, "'a' stands twice"),
        ("x", [1, True], None, "True stands twice"),
        ("x", [[1], [2]], None, r"\[1\] cannot be a value"),
        ("x", [float("nan")], None, "nan cannot be a value"),
        ("x", None, None, "None is no range"),
        ("x", {"a": 1}, None, "no range and no list"),
        ("x", (1, 10), 11, "default 11 is outside the space: give an integer from 1 to 10"),
        ("x", (1, 10), 2.5, "default 2.5"),
        ("x", (1, 10), "3", "default '3'"),
        ("x", (0.0, 1.0), True, "default True"),
        ("x", ["a", "b"], "c", r"default 'c' is outside the space: give one of \['a', 'b'\]"),
        (3, (1, 10), None, "name is a text, not 3"),
        ("", (1, 10), None, "name is a text, not ''"),
        ("solver", (1, 10), None, "'solver' is there already"),
    ],
)
def test_a_wrong_dimension_is_refused_with_its_value(
    problem: HpProblem, name: Any, value: Any, default: Any, says: str
) -> None:
    before = repr(problem)
    with pytest.raises(WrongCall, match=says) as caught:
        problem.add_dim(name, value, default)
    assert "\n" not in str(caught.value)
    assert repr(problem) == before


def test_swapped_arguments_are_told_the_order(problem: HpProblem) -> None:
    with pytest.raises(WrongCall, match=r"write add_hyperparameter\(\(1, 10\), 'x'\)"):
        problem.add_hyperparameter("x", (1, 10))  # type: ignore[arg-type]
    with pytest.raises(WrongCall, match=r"write add_dim\('x', \(1, 10\)\)"):
        problem.add_dim((1, 10), "x")  # type: ignore[arg-type]


@pytest.mark.parametrize("item", [3, "x", None, object()])
def test_add_refuses_what_is_no_part_of_a_space(problem: HpProblem, item: Any) -> None:
    with pytest.raises(WrongCall, match="give ConfigSpace hyperparameters"):
        problem.add(item)


def test_a_condition_that_would_hold_for_an_inactive_parent_is_refused_with_what_to_write(
    problem: HpProblem,
) -> None:
    parent, child = problem.add_dim("parent", (0, 1)), problem.add_dim("child", (0, 1))
    problem.add_condition(cs.EqualsCondition(parent, problem.add_dim("root", (0, 2)), 0))
    with pytest.raises(
        WrongCall, match=r"refuses child \| parent != 0: .* name the values, with InCondition"
    ):
        problem.add_condition(cs.NotEqualsCondition(child, parent, 0))
    problem.add_condition(cs.InCondition(child, parent, [1]))


def test_a_refused_clause_or_condition_leaves_the_problem_as_it_was(problem: HpProblem) -> None:
    before = repr(problem)
    with pytest.raises(WrongCall, match="forbids the default configuration"):
        problem.add_forbidden_clause(cs.ForbiddenEqualsClause(problem.space["solver"], "sgd"))
    with pytest.raises(WrongCall, match="solver"):
        problem.add_condition(cs.EqualsCondition(problem.space["solver"], problem.space["momentum"], 0.5))
    with pytest.raises(WrongCall, match="strange"):
        problem.add_condition(cs.EqualsCondition(problem.space["solver"], cs.Integer("strange", (1, 3)), 2))
    assert repr(problem) == before
    assert len(problem.sample(5)) == 5


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"solver": "adam", "unit": 3}, "no hyperparameter 'unit': did you mean units"),
        ({"solver": "adam"}, "'units' is missing: give an integer from 1 to 64"),
        ({"solver": "adam", "units": 65}, "units=65 is outside the space"),
        ({"solver": "adam", "units": 2.5}, "units=2.5 is outside"),
        ({"solver": "adam", "units": True}, "units=True is outside"),
        ({"solver": "lbfgs", "units": 3}, r"solver='lbfgs' is outside.*: give one of \['sgd', 'adam'\]"),
        ({"solver": "adam", "units": 3, "momentum": 0.5}, "momentum=0.5 is given but inactive"),
        ({"solver": "sgd", "units": 3}, "'momentum' is missing"),
        ({"solver": "adam", "units": 64}, "is forbidden"),
    ],
)
def test_a_starting_point_outside_the_space_is_refused_with_its_value(
    problem: HpProblem, values: dict[str, Any], says: str
) -> None:
    with pytest.raises(WrongCall, match=says):
        problem.add_starting_point(**values)
    assert problem.starting_point_asdict == []
