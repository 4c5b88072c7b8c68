"""Architecture spaces whose best architecture is known, with an objective that costs nothing.

Each is made from a seed; objectives are scaled so that the best architecture has 1 and random ones 0 in the
mean.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nas_hpc.nas import ConstantNode, SearchSpace, VariableNode
from nas_hpc.nas.operations import AddByProjecting, Connect, Dense, Identity, Operation, Zero

Floats = NDArray[np.float64]
_UNITS, _ACTIVATIONS = (16, 32, 48, 64, 80, 96), ("relu", "tanh")
OPS: tuple[Operation, ...] = (
    Identity(),
    *(Dense(units, activation) for units in _UNITS for activation in _ACTIVATIONS),
)


@dataclass(frozen=True, slots=True)
class Known:
    """A space with its best architecture, and what each is worth."""

    space: SearchSpace
    best: tuple[int, ...]
    value: Callable[[Sequence[int]], float]


def chain(layers: int, skips: bool) -> SearchSpace:
    """Fully connected layers, each one of 13; ``skips``: past every second one an optional connection."""
    space = SearchSpace((64,), (10,))
    last = space.inputs[0]
    for number in range(layers):
        layer = VariableNode(f"layer_{number}", OPS)
        space.connect(last, layer)
        if skips and number % 2:
            total = ConstantNode(AddByProjecting(), f"sum_{number}")
            skip = VariableNode(f"skip_{number}", [Zero(), Connect(last)])
            space.connect(layer, total)
            space.connect(skip, total)
            last = total
        else:
            last = layer
    space.connect(last, ConstantNode(Dense(10, "softmax"), "classes"))
    return space


def hidden(seed: int) -> Known:
    """One architecture of 8 layers and 4 connections is the best; the nearer in width, the better. Layers
    beside a connection that is chosen wrongly count half, so that choices depend on each other."""
    space = chain(8, skips=True)
    rng = np.random.default_rng([seed, 1])
    best = space.sample(rng)
    weights = rng.uniform(0.5, 1.5, len(best))
    is_skip = [len(node.ops) == 2 for node in space.variable_nodes]

    def raw(sequence: Sequence[int]) -> float:
        total, factor = 0.0, 1.0
        for place in reversed(range(len(best))):
            mine, right = sequence[place], best[place]
            if is_skip[place]:
                factor = 1.0 if mine == right else 0.5
                total += weights[place] * (mine == right)
            else:
                total += factor * weights[place] * (1.0 - abs(_width(mine) - _width(right)) / 96.0)
                total += factor * weights[place] * 0.5 * (_activation(mine) == _activation(right))
        return float(total)

    return _scaled(space, best, raw, seed)


def _width(choice: int) -> int:
    op = OPS[choice]
    return op.units if isinstance(op, Dense) else 0


def _activation(choice: int) -> str:
    op = OPS[choice]
    return op.activation if isinstance(op, Dense) else ""


def pairs(seed: int) -> Known:
    """12 layers; what one is worth depends on the one before it, by tables of random numbers: no layer can be
    chosen alone. The best architecture is found by dynamic programming (Viterbi)."""
    space = chain(12, skips=False)
    rng = np.random.default_rng([seed, 2])
    tables: list[Floats] = [rng.standard_normal((len(OPS), len(OPS))) for _ in range(11)]
    best = _best_path(tables)
    return _scaled(space, best, lambda sequence: _along(tables, sequence), seed)


def _along(tables: Sequence[Floats], sequence: Sequence[int]) -> float:
    return float(sum(table[sequence[i], sequence[i + 1]] for i, table in enumerate(tables)))


def _best_path(tables: Sequence[Floats]) -> list[int]:
    """The sequence with the highest sum along the tables."""
    worth: Floats = np.zeros(len(tables[0]))
    origins = []
    for table in tables:
        totals = worth[:, None] + table
        origins.append(totals.argmax(axis=0))
        worth = totals.max(axis=0)
    path = [int(worth.argmax())]
    for origin in reversed(origins):
        path.append(int(origin[path[-1]]))
    return path[::-1]


def _scaled(
    space: SearchSpace, best: Sequence[int], raw: Callable[[Sequence[int]], float], seed: int
) -> Known:
    rng = np.random.default_rng([seed, 3])
    middle = float(np.mean([raw(space.sample(rng)) for _ in range(1000)]))
    top = raw(best)
    return Known(space, tuple(best), lambda sequence: (raw(sequence) - middle) / (top - middle))


SPACES: dict[str, Callable[[int], Known]] = {"hidden": hidden, "pairs": pairs}
