"""Spaces for the tests of the searches: fixed ones, and hypothesis' own."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import ConfigSpace as cs
import numpy as np
from hypothesis import strategies as st

from nas_hpc.errors import WrongCall
from nas_hpc.problem import HpProblem


def mixed() -> HpProblem:
    """All kinds of hyperparameters, nested conditions, two forbidden clauses, a starting point."""
    problem = HpProblem()
    solver = problem.add_dim("solver", ["adam", "sgd", None])
    momentum = problem.add_dim("momentum", (0.0, 0.99))
    nesterov = problem.add_dim("nesterov", [True, False])
    units = problem.add_dim("units", (1, 512, "log-uniform"))
    problem.add_dim("rate", (1e-6, 1.0, "log-uniform"))
    problem.add_dim("batch", [16, 32, 64])
    problem.add_dim("version", 3)
    problem.add_condition(cs.EqualsCondition(momentum, solver, "sgd"))
    problem.add_condition(cs.GreaterThanCondition(nesterov, momentum, 0.5))
    problem.add_forbidden(
        cs.ForbiddenAndConjunction(
            cs.ForbiddenEqualsClause(solver, None), cs.ForbiddenInClause(units, [1, 2, 3, 4])
        )
    )
    problem.add_starting_point(solver="adam", units=7, rate=0.5, batch=16, version=3)
    return problem


def small(size: int = 6) -> HpProblem:
    """2·size points, less one that is forbidden."""
    problem = HpProblem()
    number = problem.add_dim("number", (1, size))
    kind = problem.add_dim("kind", ["a", "b"])
    problem.add_forbidden(
        cs.ForbiddenAndConjunction(cs.ForbiddenEqualsClause(number, 1), cs.ForbiddenEqualsClause(kind, "b"))
    )
    return problem


_choices = st.one_of(st.text("abc", max_size=2), st.none(), st.integers(2, 9))
_values = st.one_of(
    st.tuples(st.integers(-5, 0), st.integers(1, 8)),
    st.tuples(st.integers(1, 3), st.integers(4, 900), st.just("log-uniform")),
    st.tuples(st.floats(-4.0, 0.0), st.floats(0.5, 9.0)),
    st.tuples(st.floats(1e-9, 0.1), st.floats(0.2, 9.0), st.just("log-uniform")),
    st.lists(_choices, min_size=1, max_size=4, unique=True),
    st.lists(st.integers(0, 50), min_size=2, max_size=5, unique=True).map(sorted),
    st.booleans().map(lambda _: [True, False]),
)


@st.composite
def problems(draw: st.DrawFn) -> HpProblem:
    """A problem of one to six hyperparameters, some conditional, perhaps with forbidden values."""
    problem = HpProblem()
    values = draw(st.lists(_values, min_size=1, max_size=6))
    hps: list[Any] = [problem.add_dim(f"h{i}", value) for i, value in enumerate(values)]
    for child in hps[1:]:
        parent = hps[draw(st.integers(0, len(hps) - 1))]
        if draw(st.booleans()) and parent.name < child.name and parent.size > 1:
            kind = cs.EqualsCondition if draw(st.booleans()) else cs.NotEqualsCondition
            with suppress(WrongCall):  # of a parent that is inactive by default: refused
                problem.add_condition(kind(child, parent, _value_of(parent, draw)))
    for hp in hps:
        if draw(st.integers(0, 3)) == 0 and hp.size > 2:
            with suppress(WrongCall):  # it forbids the default: this problem goes without
                problem.add_forbidden(cs.ForbiddenEqualsClause(hp, _value_of(hp, draw)))
    return problem


def _value_of(hp: Any, draw: st.DrawFn) -> Any:
    vector = hp.sample_vector(1, seed=np.random.RandomState(draw(st.integers(0, 1000))))
    value = hp.to_value(vector)[0]
    return value.item() if isinstance(value, np.generic) else value


def objective(config: dict[str, Any]) -> float:
    """Some number that depends on every value, the same in every process."""
    total = 0.0
    for position, value in enumerate(config.values()):
        total += position * (len(value) if isinstance(value, str) else float(value or 0) % 3)
    return -abs(total - 5.0)
