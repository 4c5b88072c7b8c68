"""Maximise −Σ x² over ten dimensions in [−10, 10], DeepHyper's first example; the optimum is 0, at 0."""

from __future__ import annotations

from typing import Any

from nas_hpc.problem import HpProblem

_DIMENSIONS = 10

Problem = HpProblem()
for _i in range(_DIMENSIONS):
    Problem.add_dim(f"e{_i}", (-10.0, 10.0))
Problem.add_starting_point(**{f"e{_i}": 10.0 for _i in range(_DIMENSIONS)})


def run(config: dict[str, Any]) -> float:
    """−Σ x² over the ten dimensions."""
    return -float(sum(config[f"e{i}"] ** 2 for i in range(_DIMENSIONS)))
