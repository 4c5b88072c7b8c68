"""Problems of architecture search that no network is trained for, and run functions with a hidden optimum."""

from __future__ import annotations

import os
import time
from typing import Any

import numpy as np

from nas_hpc.nas import ConstantNode, NaProblem, SearchSpace, VariableNode
from nas_hpc.nas.operations import Concatenate, Connect, Dense, Identity, Zero

BEST = [3, 2, 1, 1, 0, 1, 2, 1]
"""Of ``run``."""


def create_space(input_shape: Any, output_shape: Any, num_layers: int = 3) -> SearchSpace:
    """Layers with four operations each, and optional connections from what came before."""
    space = SearchSpace(input_shape, output_shape)
    before: list[Any] = list(space.inputs)
    for layer in range(num_layers):
        node = VariableNode(f"layer{layer}", [Identity(), Dense(4), Dense(8, "relu"), Dense(8, "tanh")])
        space.connect(before[-1], node)
        joined = ConstantNode(Concatenate(), f"joined{layer}")
        space.connect(node, joined)
        for far in before[:-1]:
            skip = VariableNode(f"skip_{far.name}_{layer}", [Zero(), Connect(far.name)])
            space.connect(skip, joined)
        before.append(joined)
    output = VariableNode("width", [Identity(), Dense(4), Dense(8)])
    space.connect(before[-1], output)
    last = VariableNode("form", [Dense(output_shape[-1]), Dense(output_shape[-1], "tanh")])
    space.connect(output, last)
    return space


def load_data(rows: int = 20) -> Any:
    """A line."""
    x = np.linspace(0.0, 1.0, 2 * rows).reshape(rows, 2)
    return (x, x.sum(axis=1, keepdims=True)), (x, x.sum(axis=1, keepdims=True))


def no_data() -> Any:
    """Data that nobody is to load."""
    raise AssertionError("the data was loaded")


def problem(**arguments: Any) -> NaProblem:
    """A problem whose shapes are given, so that its data is not loaded."""
    made = NaProblem()
    made.load_data(no_data)
    made.search_space(create_space, input_shape=(2,), output_shape=(1,), **arguments)
    made.loss("mse")
    made.metrics(["r2"])
    made.objective("val_r2__max")
    return made


Problem = problem()
Small = problem(num_layers=1)

Begun = problem()
Begun.baseline(*(0 for _ in BEST))

Parallel = problem()
Parallel.resources(ranks_per_node=2, threads_per_rank=3)

Loaded = problem()
Loaded.load_data(load_data)
Loaded.search_space(create_space)

NoLoss = NaProblem()
NoLoss.load_data(load_data)
NoLoss.search_space(create_space)
NoLoss.objective("-val_loss__min")

Alone = problem()
Alone.search_space(SearchSpace, input_shape=(2,), output_shape=(1,))

Unequal = problem()
Unequal.load_data(lambda: ((np.ones((5, 2)), np.ones((4, 1))), (np.ones((5, 2)), np.ones((5, 1)))))
Unequal.search_space(create_space)


def run(config: dict[str, Any]) -> float:
    """The share of numbers that are those of ``BEST``."""
    sequence = config["arch_seq"]
    assert all(type(number) is int for number in sequence)
    time.sleep(float(os.environ.get("WORK_S", "0")))
    return sum(one == best for one, best in zip(sequence, BEST, strict=False)) / len(sequence)


def where(config: dict[str, Any]) -> dict[str, Any]:
    """What the evaluation finds in its environment."""
    return {"objective": 1.0, "metadata": {"problem": os.environ.get("NAS_HPC_PROBLEM", "")}}


def fickle(config: dict[str, Any]) -> float:
    """As ``run``, and no network where the first layer is an Identity."""
    if config["arch_seq"][0] == 0:
        raise ValueError("no network")
    return run(config)
