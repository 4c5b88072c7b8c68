"""A convolutional network in numpy, with Adam: for examples and tests that need a real training, soon."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
_BETA_1, _BETA_2, _TINY = 0.9, 0.999, 1e-7


class Network:
    """The layers that ``nas_hpc.problems.trials.digits.expand`` describes, for images (n, h, w, channels).

    Convolutions keep the size of the image, pooling takes means. ``step`` counts the batches trained.
    """

    def __init__(self, layers: Sequence[Mapping[str, Any]], shape: tuple[int, int, int], seed: int) -> None:
        rng = np.random.default_rng(seed)
        self._layers = list(layers)
        self._weights: list[Array] = []
        self.flops = 0
        """Multiplications and additions for one image."""
        height, width, channels = shape
        for layer in layers:
            if layer["layer"] == "pooling":
                height, width = height // layer["size"], width // layer["size"]
                continue
            if layer["layer"] == "convolution":
                inputs, outputs = layer["kernel"] ** 2 * channels, layer["filters"]
                self.flops += 2 * height * width * inputs * outputs
            else:
                inputs, outputs = height * width * channels, layer["units"]
                height = width = 1
                self.flops += 2 * inputs * outputs
            channels = outputs
            self._weights.append(rng.normal(0, (2 / inputs) ** 0.5, (inputs, outputs)).astype(np.float32))
            self._weights.append(np.zeros(outputs, np.float32))
        self._means = [np.zeros_like(one) for one in self._weights]
        self._squares = [np.zeros_like(one) for one in self._weights]
        self.step = 0

    @property
    def parameters(self) -> int:
        """How many numbers are trained."""
        return sum(one.size for one in self._weights)

    def train(self, x: Array, y: NDArray[np.int64], rate: float) -> float:
        """One step of Adam on a batch; the mean loss (cross-entropy) before it."""
        kept: list[Any] = []
        odds = self._forward(x, kept)
        right = odds[np.arange(len(y)), y]
        delta = odds.copy()
        delta[np.arange(len(y)), y] -= 1.0
        self.step += 1
        for at, gradient in self._backward(delta / len(y), kept):
            self._adam(at, gradient, rate)
        return float(-np.log(np.maximum(right, _TINY)).mean())

    def predict(self, x: Array) -> NDArray[np.int64]:
        """The likeliest label of each image."""
        labels: NDArray[np.int64] = self._forward(x, []).argmax(axis=1)
        return labels

    def accuracy(self, x: Array, y: NDArray[np.int64]) -> float:
        """The share of images whose likeliest label is the right one; not-a-number if weights are none."""
        if not all(np.isfinite(one).all() for one in self._weights):
            return float("nan")
        return float((self.predict(x) == y).mean())

    def weights(self) -> dict[str, NDArray[Any]]:
        """What a trained network is used with."""
        return {f"w{at}": one for at, one in enumerate(self._weights)}

    def load_weights(self, weights: Mapping[str, NDArray[Any]]) -> None:
        """Take what ``weights`` gave. Raises KeyError and ValueError for that of another network."""
        for at, one in enumerate(self._weights):
            np.copyto(one, weights[f"w{at}"])

    def state(self) -> dict[str, NDArray[Any]]:
        """Weights, the state of Adam, and the step."""
        named: dict[str, NDArray[Any]] = {"step": np.array(self.step)}
        for name, arrays in (("w", self._weights), ("m", self._means), ("s", self._squares)):
            named |= {f"{name}{at}": one for at, one in enumerate(arrays)}
        return named

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Go on from what ``state`` gave. Raises KeyError and ValueError for that of another network."""
        for name, arrays in (("w", self._weights), ("m", self._means), ("s", self._squares)):
            for at, one in enumerate(arrays):
                np.copyto(one, state[f"{name}{at}"])
        self.step = int(state["step"])

    def _forward(self, x: Array, kept: list[Any]) -> Array:
        """The odds (n, classes); ``kept`` gets what the way back needs."""
        weights = iter(self._weights)
        for layer in self._layers:
            if layer["layer"] == "pooling":
                x = _pool(x, layer["size"])
                continue
            shape, columns = x.shape, _columns(x, layer)
            x = columns @ next(weights) + next(weights)
            x = _activate(x, layer["activation"])
            kept.append((shape, columns, x))
        return x

    def _backward(self, delta: Array, kept: list[Any]) -> list[tuple[int, Array]]:
        """The gradients by the place of their weights, from that of the loss by the last layer's sums."""
        found: list[tuple[int, Array]] = []
        at = len(self._weights)
        for layer in reversed(self._layers):
            if layer["layer"] == "pooling":
                size = layer["size"]
                delta = delta.repeat(size, axis=1).repeat(size, axis=2) / size**2
                continue
            shape, columns, out = kept.pop()
            delta = delta.reshape(out.shape) * _slope(out, layer["activation"])
            at -= 2
            flat = delta.reshape(-1, delta.shape[-1])
            found.append((at, columns.reshape(-1, columns.shape[-1]).T @ flat))
            found.append((at + 1, flat.sum(axis=0)))
            if kept:  # the images themselves need none
                delta = _images(delta @ self._weights[at].T, shape, layer)
        return found

    def _adam(self, at: int, gradient: Array, rate: float) -> None:
        mean, square = self._means[at], self._squares[at]
        mean += (1 - _BETA_1) * (gradient - mean)
        square += (1 - _BETA_2) * (gradient**2 - square)
        scale = rate * (1 - _BETA_2**self.step) ** 0.5 / (1 - _BETA_1**self.step)
        self._weights[at] -= np.float32(scale) * mean / (np.sqrt(square) + np.float32(_TINY))


def _columns(x: Array, layer: Mapping[str, Any]) -> Array:
    """What each output of the layer sees, in its last dimension."""
    if layer["layer"] != "convolution":
        return x.reshape(len(x), prod(x.shape[1:]))
    kernel = layer["kernel"]
    edge = kernel // 2
    padded = np.pad(x, ((0, 0), (edge, edge), (edge, edge), (0, 0)))
    height, width = x.shape[1:3]
    seen = [padded[:, i : i + height, j : j + width] for i in range(kernel) for j in range(kernel)]
    return np.concatenate(seen, axis=-1)


def _images(columns: Array, shape: tuple[int, ...], layer: Mapping[str, Any]) -> Array:
    """The other way round, for gradients: what stands in several columns is added."""
    if layer["layer"] != "convolution":
        return columns.reshape(shape)
    (n, height, width, channels), kernel = shape, layer["kernel"]
    edge = kernel // 2
    parts = columns.reshape(n, height, width, kernel, kernel, channels)
    padded = np.zeros((n, height + 2 * edge, width + 2 * edge, channels), np.float32)
    for i in range(kernel):
        for j in range(kernel):
            padded[:, i : i + height, j : j + width] += parts[:, :, :, i, j]
    return padded[:, edge : edge + height, edge : edge + width]


def _pool(x: Array, size: int) -> Array:
    n, height, width, channels = x.shape
    means: Array = x.reshape(n, height // size, size, width // size, size, channels).mean(axis=(2, 4))
    return means


def _activate(x: Array, activation: str) -> Array:
    if activation == "softmax":
        odds: Array = np.exp(x - x.max(axis=-1, keepdims=True))
        odds /= odds.sum(axis=-1, keepdims=True)
        return odds
    return np.tanh(x) if activation == "tanh" else np.maximum(x, 0)


def _slope(out: Array, activation: str) -> Array:
    if activation == "softmax":
        return np.ones_like(out)  # the loss's gradient is by the sums already
    return 1 - out**2 if activation == "tanh" else (out > 0).astype(np.float32)
