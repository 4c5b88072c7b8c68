"""Trainings of small fully connected architectures by numpy alone, in a tenth of a second: so cheap that
searches with many seeds can be compared. What ``nas_hpc.nas.alpha`` does, in short: Adam on shuffled batches,
softmax and cross entropy, best validation accuracy of an epoch."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nas_hpc.nas import Architecture, SearchSpace
from nas_hpc.nas.operations import AddByProjecting, Dense
from nas_hpc.problems.nas import digits_dense

Floats = NDArray[np.float32]
BATCH, RATE, EPOCHS = 64, 0.003, 8


def _sigmoid(x: Floats) -> Floats:
    result: Floats = 0.5 * (1.0 + np.tanh(0.5 * x))
    return result


ACTIVATIONS: dict[str, tuple[Callable[[Floats], Floats], Callable[[Floats, Floats], Any]]] = {
    "": (lambda x: x, lambda x, y: 1.0),
    "softmax": (lambda x: x, lambda x, y: 1.0),  # the loss has it
    "relu": (lambda x: np.maximum(x, 0), lambda x, y: x > 0),
    "tanh": (np.tanh, lambda x, y: 1 - y * y),
    "sigmoid": (_sigmoid, lambda x, y: y * (1 - y)),
    "swish": (lambda x: x * _sigmoid(x), lambda x, y: y + _sigmoid(x) * (1 - y)),
}
"""The function, and its derivative by argument and value."""


class Network:
    """An architecture of Dense and AddByProjecting with its weights; all else hands its input on."""

    def __init__(self, architecture: Architecture, rng: np.random.Generator) -> None:
        self.parts, self.output = architecture.parts, architecture.outputs[0]
        shapes: dict[str, tuple[int, ...]] = {}
        for part in self.parts:
            widths = [architecture.shapes[name][-1] for name in part.inputs]
            for number, width in enumerate(widths):
                after = part.operation.units if isinstance(part.operation, Dense) else widths[0]
                projects = isinstance(part.operation, AddByProjecting) and width != after
                if isinstance(part.operation, Dense) or projects:
                    shapes[f"{part.name}/{number}/w"] = (width, after)
                    shapes[f"{part.name}/{number}/b"] = (after,)
        count = sum(math.prod(shape) for shape in shapes.values())
        self.all_weights, self.all_slopes = np.zeros(count, np.float32), np.zeros(count, np.float32)
        self.weights, self.slopes = (_views(one, shapes) for one in (self.all_weights, self.all_slopes))
        for name, weight in self.weights.items():
            if name.endswith("/w"):
                limit = np.sqrt(6 / sum(weight.shape))
                weight[:] = rng.uniform(-limit, limit, weight.shape)
        self._values: dict[str, Floats] = {}
        self._sums: dict[str, Floats] = {}

    def forward(self, x: Floats) -> Floats:
        """The output before softmax."""
        values: dict[str, Floats] = {}
        for part in self.parts:
            if part.operation is None:
                values[part.name] = x
                continue
            inputs = [self._through(f"{part.name}/{n}", values[name]) for n, name in enumerate(part.inputs)]
            total = inputs[0] if len(inputs) == 1 else np.sum(inputs, axis=0)
            self._sums[part.name] = total
            values[part.name] = ACTIVATIONS[getattr(part.operation, "activation", "")][0](total)
        self._values = values
        return values[self.output]

    def _through(self, name: str, x: Floats) -> Floats:
        if f"{name}/w" not in self.weights:
            return x
        result: Floats = x @ self.weights[f"{name}/w"] + self.weights[f"{name}/b"]
        return result

    def backward(self, slope: Floats) -> None:
        """Set ``slopes``, for the loss's slope by the output of the last ``forward``."""
        slopes = {self.output: slope}
        for part in reversed(self.parts):
            if part.operation is None or part.name not in slopes:
                continue
            derivative = ACTIVATIONS[getattr(part.operation, "activation", "")][1]
            by_sum = slopes[part.name] * derivative(self._sums[part.name], self._values[part.name])
            for number, name in enumerate(part.inputs):
                key, by_input = f"{part.name}/{number}", by_sum
                if f"{key}/w" in self.weights:
                    np.matmul(self._values[name].T, by_sum, out=self.slopes[f"{key}/w"])
                    np.sum(by_sum, axis=0, out=self.slopes[f"{key}/b"])
                    by_input = by_sum @ self.weights[f"{key}/w"].T
                slopes[name] = slopes[name] + by_input if name in slopes else by_input


def _views(flat: Floats, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Floats]:
    """Arrays of these shapes that lie one after the other in ``flat``."""
    ends = np.cumsum([math.prod(shape) for shape in shapes.values()])
    parts = np.split(flat, ends[:-1])
    return {name: part.reshape(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}


@dataclass(frozen=True)
class Digits:
    """The data and the space of ``nas_hpc.problems.nas.digits_dense``."""

    @cached_property
    def data(self) -> tuple[tuple[Floats, Any], tuple[Floats, Any]]:
        """Training and validation, scaled by the training data's means and deviations."""
        (x, y), (x_valid, y_valid), _ = digits_dense.load_data()
        mean, spread = x.mean(axis=0), x.std(axis=0)
        spread[spread == 0] = 1.0
        return (
            (((x - mean) / spread).astype(np.float32), y),
            (((x_valid - mean) / spread).astype(np.float32), y_valid),
        )

    @cached_property
    def space(self) -> SearchSpace:
        """All of it."""
        return digits_dense.Problem.build_space((64,), (10,))

    def train(self, sequence: Sequence[int]) -> float:
        """Best validation accuracy of an epoch; the same in every call for the same sequence."""
        rng = np.random.default_rng(zlib.crc32(bytes(sequence)))
        network = Network(self.space.architecture(sequence), rng)
        (x, y), (x_valid, y_valid) = self.data
        weights, slopes = network.all_weights, network.all_slopes
        mean, square = np.zeros_like(weights), np.zeros_like(weights)
        best, step = 0.0, 0
        for _ in range(EPOCHS):
            order = rng.permutation(len(x))
            for begin in range(0, len(x), BATCH):
                rows = order[begin : begin + BATCH]
                step += 1
                network.backward(_slope(network.forward(x[rows]), y[rows]))
                mean += 0.1 * (slopes - mean)
                square += 0.001 * (slopes * slopes - square)
                pace = RATE * np.sqrt(1 - 0.999**step) / (1 - 0.9**step)
                weights -= pace * mean / (np.sqrt(square) + 1e-7)
            best = max(best, float((network.forward(x_valid).argmax(axis=1) == y_valid).mean()))
        return best


def _slope(output: Floats, labels: Any) -> Floats:
    """Of the mean cross entropy of softmax, by its argument."""
    likely = np.exp(output - output.max(axis=1, keepdims=True))
    likely /= likely.sum(axis=1, keepdims=True)
    likely[np.arange(len(labels)), labels] -= 1
    result: Floats = likely / len(labels)
    return result
