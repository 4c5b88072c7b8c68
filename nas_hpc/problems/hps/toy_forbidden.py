"""A small space with a forbidden clause and a condition, to learn and to test them with.

The best point is x=7, shape="bowl", depth=2, with objective 0; x=3 with shape="ridge" is forbidden.
"""

from __future__ import annotations

from typing import Any

from ConfigSpace import EqualsCondition, ForbiddenAndConjunction, ForbiddenEqualsClause

from nas_hpc.problem import HpProblem

Problem = HpProblem()
_x = Problem.add_hyperparameter((0, 10), "x")
_shape = Problem.add_hyperparameter(["bowl", "ridge"], "shape")
_depth = Problem.add_hyperparameter([1, 2, 4], "depth")
Problem.add_condition(EqualsCondition(_depth, _shape, "bowl"))
Problem.add_forbidden_clause(
    ForbiddenAndConjunction(ForbiddenEqualsClause(_x, 3), ForbiddenEqualsClause(_shape, "ridge"))
)


def run(config: dict[str, Any]) -> float:
    """−(x−7)² in the bowl, less its depth's distance from 2; a poorer ridge elsewhere."""
    if config["shape"] == "ridge":
        return -float(abs(config["x"] - 7) + 5)
    return -float((config["x"] - 7) ** 2 + abs(config["depth"] - 2))
