"""The networks of PPO: an actor that draws one decision after the other, and a critic that expects rewards.

Both are LSTMs of their own with the same inputs: which decision comes next, and what was decided last. The
reference gives them these as two numbers (step + 1, last action); here they are one-hot, that is a row of a
table each, whose rows are added: operation 3 is not thrice operation 1. Each decision has a categorical
distribution over its own operations (its own output layer; operations that it does not have are masked:
their probability is 0).

In numpy, with gradients of our own (tests hold them against differences of the loss): measured, a gradient
takes as long as TensorFlow's, a start a fraction of a second instead of nineteen, the process 53 MB instead
of 750; autograd takes four to seven times as long for a gradient (docs/benchmarks.md).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nas_hpc.search.ppo.cell import Back, Normed, Step, Weights, normalize, normalize_back, step, step_back
from nas_hpc.search.ppo.episodes import Episodes, Floats, Whole

ACTOR, CRITIC = 0, 1
"""Places along the axis of the networks."""
_SMALL = 0.01
"""Of the output layers at the start: all operations are nearly equally likely, the critic expects 0."""


@dataclass(frozen=True, slots=True)
class Pass:
    """A way forward, kept for the way back; T decisions of n episodes."""

    log_all: Floats
    """(T, n, operations): logarithms of ``probs``; 0 where these are masked."""
    probs: Floats
    """(T, n, operations): probabilities; of operations that a decision does not have 0."""
    values: Floats
    """(T, n): of the critic."""
    outputs: Floats
    """(network, T, n, units): of the LSTMs."""
    previous: Whole
    """(T, n): rows of the table of last actions."""
    inputs: Normed | None
    steps: tuple[Step, ...]


class Policy:
    """Shapes and computations; the parameters are a vector that others keep (float32; tests use float64)."""

    def __init__(self, choices: Sequence[int], units: int, layer_norm: bool) -> None:
        """``choices``: the number of operations of each decision, each at least 1."""
        self.choices = tuple(int(count) for count in choices)
        self.units = units
        self.layer_norm = layer_norm
        length, most = len(self.choices), max(self.choices)
        self._most = most
        self.legal: NDArray[np.bool_] = np.arange(most) < np.array(self.choices)[:, None]
        """(T, operations): which operations a decision has."""
        self._shapes: dict[str, tuple[int, ...]] = {
            "decisions": (2, length, 4 * units),
            "actions": (2, most + 1, 4 * units),
            "recurrent": (2, units, 4 * units),
            "bias": (2, 1, 4 * units),
            "head": (length, units, most),
            "head_bias": (length, 1, most),
            "value": (units,),
            "value_bias": (1,),
        }
        if layer_norm:
            self._shapes |= {
                "input_gain": (2, 1, 4 * units),
                "recurrent_gain": (2, 1, 4 * units),
                "cell_gain": (2, 1, units),
                "cell_bias": (2, 1, units),
            }
        self.size = sum(math.prod(shape) for shape in self._shapes.values())
        """How many parameters there are."""

    # -- parameters --------------------------------------------------------------------------------
    def views(self, flat: Floats) -> dict[str, Floats]:
        """The parts of a vector of parameters, or of a gradient, by name; changing one changes ``flat``."""
        parts, place = {}, 0
        for name, shape in self._shapes.items():
            count = math.prod(shape)
            parts[name] = flat[place : place + count].reshape(shape)
            place += count
        return parts

    def initial(self, rng: np.random.Generator) -> NDArray[np.float32]:
        """Parameters to begin with: nothing but products of random numbers, the same on every machine."""
        flat = np.zeros(self.size, np.float32)
        spread = {
            "decisions": math.sqrt(0.5), "actions": math.sqrt(0.5), "recurrent": 1.0 / math.sqrt(self.units),
            "head": _SMALL / math.sqrt(self.units), "value": _SMALL / math.sqrt(self.units),
        }  # fmt: skip
        for name, part in self.views(flat).items():
            if name in spread:
                part[...] = rng.standard_normal(part.shape) * spread[name]
            elif name.endswith("gain"):
                part[...] = 1.0
        return flat

    def _weights(self, parts: dict[str, Floats]) -> Weights:
        names = ("recurrent", "bias", "input_gain", "recurrent_gain", "cell_gain", "cell_bias")
        return Weights(*(parts.get(name) for name in names))  # type: ignore[arg-type]

    # -- forward -----------------------------------------------------------------------------------
    def sample(self, flat: Floats, n: int, rng: np.random.Generator) -> Episodes:
        """``n`` episodes, drawn from the actor."""
        parts = self.views(flat)
        w = self._weights(parts)
        length = len(self.choices)
        draws = rng.random((length, n))
        actions = np.empty((length, n), np.int32)
        log_probs, values = np.empty((length, n), np.float32), np.empty((length, n), np.float32)
        h = c = np.zeros((2, n, self.units), flat.dtype)
        last: Whole = np.full(n, self._most)
        for t in range(length):
            rows = parts["decisions"][:, t, None] + parts["actions"][:, last]
            h, c, _ = step(w, self._inputs(w, rows)[0], h, c)
            logits = h[ACTOR] @ parts["head"][t] + parts["head_bias"][t]
            log_all, probs = _log_softmax(logits, self.legal[t])
            last = _drawn(probs, draws[t], self.choices[t])
            actions[t] = last
            log_probs[t] = np.take_along_axis(log_all, last[:, None], axis=-1)[:, 0]
            values[t] = h[CRITIC] @ parts["value"] + parts["value_bias"]
        return Episodes(actions.T.copy(), log_probs.T.copy(), values.T.copy())

    def forward(self, flat: Floats, actions: Whole) -> Pass:
        """What actor and critic think of ``actions`` (n, T), decision by decision."""
        parts = self.views(flat)
        w = self._weights(parts)
        n, length = actions.shape
        previous: Whole = np.full((length, n), self._most)
        previous[1:] = actions.T[:-1]
        rows = parts["decisions"][:, :, None] + parts["actions"][:, previous]
        x, inputs = self._inputs(w, rows)
        outputs = np.empty((2, length, n, self.units), flat.dtype)
        h = c = np.zeros((2, n, self.units), flat.dtype)
        steps = []
        for t in range(length):
            h, c, made = step(w, x[:, t], h, c)
            outputs[:, t] = h
            steps.append(made)
        logits = outputs[ACTOR] @ parts["head"] + parts["head_bias"]
        log_all, probs = _log_softmax(logits, self.legal[:, None])
        values = outputs[CRITIC] @ parts["value"] + parts["value_bias"]
        return Pass(log_all, probs, values, outputs, previous, inputs, tuple(steps))

    @staticmethod
    def _inputs(w: Weights, rows: Floats) -> tuple[Floats, Normed | None]:
        """The inputs' part of the gates' sums; rows (network, [T,] n, 4 units)."""
        bias = w.bias if rows.ndim == 3 else w.bias[:, None]
        if w.input_gain is None:
            return rows + bias, None
        normed = normalize(rows)
        gain = w.input_gain if rows.ndim == 3 else w.input_gain[:, None]
        return normed.values * gain + bias, normed

    # -- backward ----------------------------------------------------------------------------------
    def backward(self, flat: Floats, made: Pass, d_logits: Floats, d_values: Floats) -> Floats:
        """The gradient at the parameters ``flat``, of those at the logits (T, n, operations; 0 where they are
        masked) and at the critic's values (T, n)."""
        parts = self.views(flat)
        w = self._weights(parts)
        gradient = np.zeros_like(flat)
        into = self.views(gradient)
        actor, critic = made.outputs
        into["head"][...] = actor.swapaxes(1, 2) @ d_logits
        into["head_bias"][...] = d_logits.sum(axis=1, keepdims=True)
        into["value"][...] = np.tensordot(d_values, critic, 2)
        into["value_bias"][...] = d_values.sum()
        d_outputs = np.empty_like(made.outputs)
        d_outputs[ACTOR] = d_logits @ parts["head"].swapaxes(1, 2)
        d_outputs[CRITIC] = d_values[..., None] * parts["value"]
        _, length, n, units = made.outputs.shape
        dh = dc = np.zeros((2, n, units), flat.dtype)
        back: list[Back] = []
        for t in reversed(range(length)):
            back.append(step_back(w, made.steps[t], d_outputs[:, t] + dh, dc))
            dh, dc = back[-1].output, back[-1].cell
        self._weights_back(w, made, back[::-1], into)
        return gradient

    def _weights_back(self, w: Weights, made: Pass, back: Sequence[Back], into: dict[str, Floats]) -> None:
        """The gradients of the LSTMs' weights, of those within the steps."""
        _, length, n, units = made.outputs.shape
        rows = sums = _stack([one.sums for one in back])
        into["bias"][...] = sums.sum(axis=(1, 2))[:, None]
        if w.input_gain is not None and made.inputs is not None:
            products = [one.recurrent.values for one in made.steps if one.recurrent is not None]
            news = [one.new.values for one in made.steps if one.new is not None]
            inner = _stack([one.inner for one in back])
            into["input_gain"][:, 0] = np.einsum("atnk,atnk->ak", sums, made.inputs.values)
            into["recurrent_gain"][:, 0] = np.einsum("atnk,atnk->ak", sums, _stack(products))
            into["cell_gain"][:, 0] = np.einsum("atnk,atnk->ak", inner, _stack(news))
            into["cell_bias"][:, 0] = inner.sum(axis=(1, 2))
            rows = normalize_back(made.inputs, sums * w.input_gain[:, None])
        later = (length - 1) * n  # the first step has no output before it
        if later:
            before = made.outputs[:, :-1].reshape(2, later, units)
            product = _stack([one.product for one in back[1:]]).reshape(2, later, 4 * units)
            into["recurrent"][...] = before.swapaxes(1, 2) @ product
        into["decisions"][...] = rows.sum(axis=2)
        one_hot = np.zeros((self._most + 1, length * n), rows.dtype)
        one_hot[made.previous.ravel(), np.arange(length * n)] = 1.0
        into["actions"][...] = one_hot @ rows.reshape(2, length * n, 4 * units)


def _stack(several: Sequence[Floats]) -> Floats:
    """(network, n, …) of each step as (network, T, n, …)."""
    return np.stack(several, axis=1)


def _log_softmax(logits: Floats, legal: NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """Log-probabilities (0 where not ``legal``) and probabilities (0 there) along the last axis."""
    masked = np.where(legal, logits, -np.inf)
    shifted = masked - masked.max(axis=-1, keepdims=True)
    powers = np.exp(shifted)
    total = powers.sum(axis=-1, keepdims=True)
    return np.where(legal, shifted - np.log(total), 0.0).astype(logits.dtype), powers / total


def _drawn(probs: Floats, draws: NDArray[np.float64], choices: int) -> Whole:
    """An operation for each row of ``probs`` (n, operations), by numbers from [0, 1)."""
    edges = np.cumsum(probs, axis=-1, dtype=np.float64)
    places = (edges <= draws[:, None] * edges[:, -1:]).sum(axis=-1)
    drawn: Whole = np.minimum(places, choices - 1)  # a product that was rounded up
    return drawn
