"""Test functions of the searches, as problems to maximise.

Source: Surjanovic, Bingham, Virtual Library of Simulation Experiments (2013).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nas_hpc.problem import HpProblem

Floats = NDArray[np.float64]

_HARTMANN_A = np.array(
    [
        [10, 3, 17, 3.5, 1.7, 8],
        [0.05, 10, 17, 0.1, 8, 14],
        [3, 3.5, 1.7, 10, 17, 8],
        [17, 8, 0.05, 10, 0.1, 14],
    ]
)
_HARTMANN_P = 1e-4 * np.array(
    [
        [1312, 1696, 5569, 124, 8283, 5886],
        [2329, 4135, 8307, 3736, 1004, 9991],
        [2348, 1451, 3522, 2883, 3047, 6650],
        [4047, 8828, 8732, 5743, 1091, 381],
    ]
)
_HARTMANN_ALPHA = np.array([1.0, 1.2, 3.0, 3.2])


def ackley(x: Floats) -> float:
    """Ackley's function, minimum 0 at the origin."""
    ring = np.exp(-0.2 * np.sqrt(np.mean(x**2)))
    return float(-20.0 * ring - np.exp(np.mean(np.cos(2.0 * np.pi * x))) + 20.0 + np.e)


def levy(x: Floats) -> float:
    """Levy's function, minimum 0 at (1, …, 1)."""
    w = 1.0 + (x - 1.0) / 4.0
    middle = np.sum((w[:-1] - 1.0) ** 2 * (1.0 + 10.0 * np.sin(np.pi * w[:-1] + 1.0) ** 2))
    last = (w[-1] - 1.0) ** 2 * (1.0 + np.sin(2.0 * np.pi * w[-1]) ** 2)
    return float(np.sin(np.pi * w[0]) ** 2 + middle + last)


def hartmann6(x: Floats) -> float:
    """Hartmann's function in six dimensions, minimum −3.322."""
    return float(-np.sum(_HARTMANN_ALPHA * np.exp(-np.sum(_HARTMANN_A * (x - _HARTMANN_P) ** 2, axis=1))))


@dataclass(frozen=True, slots=True)
class Function:
    """A function of ``dimensions`` numbers between ``low`` and ``high``, to be minimised."""

    minimised: Callable[[Floats], float]
    dimensions: int
    low: float
    high: float

    def problem(self) -> HpProblem:
        """Its space, x0, x1, …"""
        problem = HpProblem()
        for i in range(self.dimensions):
            problem.add_dim(f"x{i}", (self.low, self.high))
        return problem

    def run(self, config: dict[str, Any]) -> float:
        """The objective to maximise."""
        return -self.minimised(np.array([config[f"x{i}"] for i in range(self.dimensions)]))


FUNCTIONS = {
    "ackley5": Function(ackley, 5, -32.768, 32.768),
    "ackley10": Function(ackley, 10, -32.768, 32.768),
    "levy5": Function(levy, 5, -10.0, 10.0),
    "hartmann6": Function(hartmann6, 6, 0.0, 1.0),
}


def mixed_problem() -> HpProblem:
    """Ten hyperparameters of all kinds with a condition, as a training has them; for timing."""
    from ConfigSpace import EqualsCondition

    problem = HpProblem()
    problem.add_dim("units", (1, 512, "log-uniform"))
    problem.add_dim("layers", (1, 8))
    problem.add_dim("activation", ["relu", "tanh", "gelu", "silu"])
    solver = problem.add_dim("solver", ["sgd", "adam", "rmsprop"])
    problem.add_dim("learning_rate", (1e-5, 1e-1, "log-uniform"))
    problem.add_dim("weight_decay", (1e-6, 1e-1, "log-uniform"))
    problem.add_dim("dropout", (0.0, 0.9))
    problem.add_dim("batch_size", [16, 32, 64, 128, 256])
    momentum = problem.add_dim("momentum", (0.0, 0.99))
    problem.add_dim("normalise", [True, False])
    problem.add_condition(EqualsCondition(momentum, solver, "sgd"))
    return problem


def mixed_run(config: dict[str, Any]) -> float:
    """A smooth stand-in for a validation accuracy on ``mixed_problem``."""
    rate = -abs(np.log10(config["learning_rate"]) + 3.0)
    size = -abs(np.log2(config["units"]) - 6.0) / 4.0 - abs(config["layers"] - 3) / 4.0
    return float(rate + size + (config["activation"] == "relu") + config.get("momentum", 0.5))
