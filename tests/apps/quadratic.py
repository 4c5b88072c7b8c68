"""A problem and run functions for searches under test."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ConfigSpace import EqualsCondition

from nas_hpc import JobSpec, job_specification
from nas_hpc.problem import HpProblem

Problem = HpProblem()
Problem.add_hyperparameter((-10.0, 10.0), "x")
Problem.add_hyperparameter((1, 50), "n")
Problem.add_hyperparameter(["plain", "bent, with a comma"], "kind")
Problem.add_hyperparameter((0.1, 0.9), "bend")
Problem.add_condition(EqualsCondition(Problem.space["bend"], Problem.space["kind"], "bent, with a comma"))
Problem.add_starting_point(x=10.0, n=50, kind="plain")

Small = HpProblem()
Small.add_hyperparameter([1, 2, 3, 5], "x")

Clash = HpProblem()
Clash.add_hyperparameter((0.0, 1.0), "objective")

no_function = 3


def run(config: Mapping[str, Any]) -> float:
    """Best at x = 0, n = 1."""
    return float(-(config["x"] ** 2) - config["n"] - config.get("bend", 0.0))


@job_specification
def program(config: Mapping[str, Any]) -> JobSpec:
    """The same, by a program; nothing for an n that is even."""
    if config["n"] % 2 == 0:
        raise ValueError("n is even")
    return JobSpec(argv=["quadratic", str(config["x"])])


def fail(config: Mapping[str, Any]) -> float:
    """No result, ever."""
    raise ValueError("nothing works\non two lines")


def two_arguments(config: Mapping[str, Any], more: int) -> float:
    """Cannot be called with one argument."""
    return 0.0


def key(config: Mapping[str, Any]) -> str:
    """A cache key."""
    return str(config["x"])
