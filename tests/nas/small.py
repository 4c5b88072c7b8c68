"""Small problems of architecture search, with data that is drawn by seed: their trainings take no time."""

from __future__ import annotations

from typing import Any

import numpy as np

from nas_hpc.nas import ConstantNode, NaProblem, SearchSpace, VariableNode
from nas_hpc.nas.data import Data, load_data, space_of
from nas_hpc.nas.operations import BatchNormalization, Dense, Dropout, Identity

FULL = [1, 1, 1]
"""The architecture with a dense layer, normalisation and dropout: with all state that a network can have."""

PLAIN = [1, 0, 0]
"""With the dense layer alone."""


def parts(examples: int = 100, test: bool = True) -> tuple[Any, ...]:
    """y = x0 + 2 x1 + noise, in equal parts of training, validation and test."""
    rng = np.random.default_rng(3)
    x = rng.normal(size=(3 * examples, 4)).astype("float32")
    y = (x[:, 0] + 2 * x[:, 1] + 0.1 * rng.normal(size=len(x))).astype("float32")
    pairs = tuple((x[i : i + examples], y[i : i + examples]) for i in range(0, len(x), examples))
    return pairs if test else pairs[:2]


def classes(examples: int = 100) -> tuple[Any, ...]:
    """Three classes: which third of the targets of ``parts`` an example belongs to."""
    bounds = np.quantile(parts(examples)[0][1], [1 / 3, 2 / 3])
    return tuple((x, np.digitize(y, bounds)) for x, y in parts(examples))


def space(input_shape: Any, output_shape: Any, activation: str = "") -> SearchSpace:
    """A dense layer, a normalisation and a dropout, or not."""
    made = SearchSpace(input_shape, output_shape)
    before: Any = made.inputs[0]
    for operation in (Dense(8, "tanh"), BatchNormalization(), Dropout(0.2)):
        node = VariableNode(ops=[Identity(), operation])
        made.connect(before, node)
        before = node
    made.connect(before, ConstantNode(Dense(output_shape[-1], activation), "out"))
    return made


def regression(**settings: Any) -> NaProblem:
    """Three epochs of four steps."""
    problem = NaProblem(seed=5)
    problem.load_data(parts)
    problem.search_space(space)
    problem.hyperparameters(**{"batch_size": 30, "num_epochs": 3, "learning_rate": 0.01, **settings})
    problem.loss("mse")
    problem.metrics(["mae", "r2"])
    problem.objective("val_r2__max")
    return problem


def classification(**settings: Any) -> NaProblem:
    """As ``regression``, into three classes."""
    problem = regression(**settings)
    problem.load_data(classes)
    problem.search_space(space, activation="softmax")
    problem.loss("sparse_categorical_crossentropy")
    problem.metrics(["accuracy"])
    problem.objective("val_accuracy__max")
    return problem


def loaded(problem: NaProblem) -> tuple[SearchSpace, Data]:
    """Space and data of ``problem``."""
    data = load_data(problem)
    return space_of(problem, data), data


def huge(input_shape: Any, output_shape: Any) -> SearchSpace:
    """A choice of two layers, the second of which has a gigabyte and a half of weights."""
    made = SearchSpace(input_shape, output_shape)
    node = VariableNode("layer", ops=[Identity(), Dense(100_000_000)])
    made.connect(made.inputs[0], node)
    made.connect(node, ConstantNode(Dense(1), "out"))
    return made


Regression = regression()
Unseeded = regression()
Unseeded.seed = None
Huge = regression()
Huge.search_space(huge)
Classification = classification()
