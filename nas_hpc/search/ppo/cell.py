"""An LSTM's step, forward and backward, for several networks and episodes at once.

Hochreiter, Schmidhuber, "Long short-term memory", Neural Computation 9(8), 1997, with a forget gate; layer
normalization as in Ba, Kiros, Hinton, "Layer normalization", 2016 (equations 20-22). Arrays have the axes
(network, episode, unit); the gates i, f, o and the candidate u lie side by side in a last axis of 4 * units.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nas_hpc.search.ppo.episodes import Floats

_EPS = 1e-5


@dataclass(frozen=True, slots=True)
class Normed:
    """Values with mean 0 and variance 1 along the last axis, and what they were divided by, inverted."""

    values: Floats
    inverse: Floats


def normalize(x: Floats) -> Normed:
    """``x`` less its mean, by its standard deviation, both along the last axis."""
    share = 1.0 / x.shape[-1]
    values: Floats = x - np.add.reduce(x, axis=-1, keepdims=True) * share
    squares = np.einsum("...k,...k->...", values, values)[..., None]
    inverse = 1.0 / np.sqrt(squares * share + _EPS)
    values *= inverse
    return Normed(values, inverse)


def normalize_back(normed: Normed, gradient: Floats) -> Floats:
    """The gradient at what was normalized, of that at the normalized values."""
    share = 1.0 / gradient.shape[-1]
    along = np.einsum("...k,...k->...", gradient, normed.values)[..., None]
    inner: Floats = normed.values * (along * -share)
    inner += gradient
    inner -= np.add.reduce(gradient, axis=-1, keepdims=True) * share
    inner *= normed.inverse
    return inner


@dataclass(frozen=True, slots=True)
class Weights:
    """Of a step; the first axis is the network. Without layer normalization the last four are None."""

    recurrent: Floats
    """(network, units, 4 units)"""
    bias: Floats
    """(network, 1, 4 units)"""
    input_gain: Floats | None = None
    recurrent_gain: Floats | None = None
    cell_gain: Floats | None = None
    cell_bias: Floats | None = None


@dataclass(frozen=True, slots=True)
class Step:
    """What a step leaves for the way back."""

    before: Floats
    """The cell before the step."""
    gates: Floats
    cell: Floats
    """tanh of the new cell (normalized, where there is layer normalization)."""
    recurrent: Normed | None
    new: Normed | None


def step(w: Weights, x: Floats, h: Floats, c: Floats) -> tuple[Floats, Floats, Step]:
    """The next output and cell of ``x`` (network, episode, 4 units): the input's part, with the bias."""
    units = h.shape[-1]
    z = h @ w.recurrent
    recurrent = new = None
    if w.recurrent_gain is not None:
        recurrent = normalize(z)
        z = recurrent.values * w.recurrent_gain
    z += x
    z[..., : 3 * units] *= 0.5
    np.tanh(z, out=z)
    z[..., : 3 * units] *= 0.5  # the logistic function by tanh, which never overflows
    z[..., : 3 * units] += 0.5
    i, f, o, u = (z[..., n * units : (n + 1) * units] for n in range(4))
    after = f * c + i * u
    inner = after
    if w.cell_gain is not None and w.cell_bias is not None:
        new = normalize(after)
        inner = new.values * w.cell_gain + w.cell_bias
    squashed = np.tanh(inner)
    return o * squashed, after, Step(c, z, squashed, recurrent, new)


@dataclass(frozen=True, slots=True)
class Back:
    """Gradients on the way back through a step."""

    output: Floats
    """At the output before the step."""
    cell: Floats
    """At the cell before the step."""
    sums: Floats
    """At the gates' sums."""
    product: Floats
    """At the product of the output before the step and the recurrent weights."""
    inner: Floats
    """At the input of tanh of the cell."""


def step_back(w: Weights, made: Step, dh: Floats, dc: Floats) -> Back:
    """The way back, of the gradients at the output and the cell after the step."""
    units = dh.shape[-1]
    i, f, o, u = (made.gates[..., n * units : (n + 1) * units] for n in range(4))
    inner: Floats = dh * o * (1.0 - np.square(made.cell))
    if made.new is None or w.cell_gain is None:
        dc = dc + inner
    else:
        dc = dc + normalize_back(made.new, inner * w.cell_gain)
    sums = np.empty_like(made.gates)
    np.multiply(dc, u, out=sums[..., :units])
    np.multiply(dc, made.before, out=sums[..., units : 2 * units])
    np.multiply(dh, made.cell, out=sums[..., 2 * units : 3 * units])
    np.multiply(dc, i, out=sums[..., 3 * units :])
    gates = made.gates[..., : 3 * units]
    sums[..., : 3 * units] *= gates * (1.0 - gates)
    sums[..., 3 * units :] *= 1.0 - np.square(u)
    product = sums
    if made.recurrent is not None and w.recurrent_gain is not None:
        product = normalize_back(made.recurrent, sums * w.recurrent_gain)
    return Back(product @ w.recurrent.swapaxes(-1, -2), dc * f, sums, product, inner)
