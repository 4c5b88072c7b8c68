"""Vectorised sampling, moves and encodings over a ConfigSpace space.

A *vector* is ConfigSpace's: one number per hyperparameter in the space's own order, numerical ones scaled to
[0, 1], categorical and ordinal ones the index of their value, NaN where a condition switches it off.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ConfigSpace import CategoricalHyperparameter, Constant, OrdinalHyperparameter
from numpy.typing import NDArray

from nas_hpc.errors import WrongCall
from nas_hpc.search.base import Config, Problem

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Key = tuple[Any, ...]

_ABSENT = "\0absent"  # no value of a hyperparameter, and equal across processes
_ROUNDS = 30  # rejection rounds after which a space counts as (nearly) impossible
_LARGEST_DRAW = 50_000
_DECIMALS = 12  # vectors closer than this are one point: value and vector do not round-trip to the last bit
_FEW = 1_000  # values of a hyperparameter whose neighbours are written out
_STEPS = (-2.0, -0.5)  # log10 of a mutation's step, in units of the range
_INACTIVE = -1.0  # feature of an inactive hyperparameter: outside [0, 1], so that one split tells it apart


class SpaceCodec:
    """Samples, moves and translates the points of one problem."""

    def __init__(self, problem: Problem) -> None:
        self._space = problem.space
        self._names = problem.hyperparameter_names
        self._hps = list(self._space.values())
        self._index = {hp.name: i for i, hp in enumerate(self._hps)}
        self._rules = [
            (i, rules)
            for i, hp in enumerate(self._hps)
            if (rules := list(self._space.parent_conditions_of[hp.name]))
        ]
        self._clauses = list(self._space.forbidden_clauses)
        self._values = [_listed(hp) for hp in self._hps]
        self._lookup = [
            None if values is None else {_typed(value): float(j) for j, value in enumerate(values)}
            for values in self._values
        ]
        sizes = [float(hp.size) for hp in self._hps]
        self._sizes = np.array(sizes)
        self.grid_size = math.prod(sizes)
        self._steps = np.array([1.0 / max(s - 1.0, 1.0) if math.isfinite(s) else 0.0 for s in sizes])
        self._unordered = np.array([isinstance(hp, CategoricalHyperparameter) for hp in self._hps])
        self._fixed = self._sizes <= 1
        if not self._hps:
            right = "add_hyperparameter((1, 10), 'units')"
            raise WrongCall(f"the problem has no hyperparameters: add some, as in {right}")

    @property
    def width(self) -> int:
        """Number of hyperparameters."""
        return len(self._hps)

    def sample(self, n: int, rng: np.random.Generator) -> Floats:
        """``n`` random legal vectors, (n, width); may repeat in small spaces."""
        parts: list[Floats] = []
        missing, draw = n, n
        for _ in range(_ROUNDS):
            if missing <= 0:
                break
            legal = self.legalise(self._draw(draw, rng))
            parts.append(legal[:missing])
            missing -= len(parts[-1])
            draw = min(max(missing * 2, 64) if len(legal) else draw * 4, _LARGEST_DRAW)
        if missing > 0:
            raise WrongCall(
                f"the forbidden clauses leave (almost) nothing: {n - missing} of {n} points found: "
                "take values out of the hyperparameters instead of forbidding nearly all"
            )
        return np.concatenate(parts) if parts else np.empty((0, self.width))

    def legalise(self, full: Floats) -> Floats:
        """Switch off what conditions switch off in vectors without NaN; drop those that a clause forbids."""
        columns = np.ascontiguousarray(full.T)
        for i, rules in self._rules:  # parents stand before their children in ConfigSpace's order
            for rule in rules:
                columns[i, ~rule.satisfied_by_vector_array(columns)] = np.nan
        bad = np.zeros(columns.shape[1], dtype=np.bool_)
        for clause in self._clauses:
            bad |= clause.is_forbidden_vector_array(columns)
        return np.ascontiguousarray(columns[:, ~bad].T)

    def complete(self, vectors: Floats, rng: np.random.Generator) -> Floats:
        """The vectors with random values where they have NaN (for moves that may switch conditions)."""
        holes = np.isnan(vectors)
        if not holes.any():
            return vectors.copy()
        return np.where(holes, self._draw(len(vectors), rng), vectors)

    def move(self, parents: Floats, scales: Floats, rates: Floats, rng: np.random.Generator) -> Floats:
        """Legal neighbours of complete ``parents`` (n, width); ``scales`` and ``rates`` are (n,).

        In a row each hyperparameter changes with the row's rate, at least one does. Ordered ones move by a
        Gaussian step of the row's scale (in units of the range; at least about one step of their grid),
        reflected at the bounds; categorical ones take a random value.
        """
        n = len(parents)
        change = rng.random((n, self.width)) < rates[:, None]
        free = np.flatnonzero(~self._fixed)
        if len(free):
            change[np.arange(n), free[rng.integers(len(free), size=n)]] = True
        change[:, self._fixed] = False
        stepped = self._stepped(parents, scales, rng)
        fresh = self._draw(n, rng)
        moved = np.where(change, np.where(self._unordered[None, :], fresh, stepped), parents)
        return self.legalise(self._snap(moved))

    def mutate(self, parents: Floats, rng: np.random.Generator) -> Floats:
        """Legal neighbours of legal ``parents`` (n, width): in each one active hyperparameter changes, any of
        them equally likely.

        Categorical ones take another value, all equally likely; ordered ones move as in ``move``. Those that
        the change switches on take random values. Fewer than n where clauses forbid some.
        """
        free = ~np.isnan(parents) & ~self._fixed
        parents, free = parents[free.any(axis=1)], free[free.any(axis=1)]
        n = len(parents)
        where = np.argmax(np.where(free, rng.random(free.shape), -1.0), axis=1)
        whole = self.complete(parents, rng)
        sizes = np.where(self._unordered, self._sizes, 2.0)
        turned = (whole + 1.0 + np.floor(rng.random(whole.shape) * (sizes - 1.0))) % sizes
        stepped = self._stepped(whole, 10.0 ** rng.uniform(*_STEPS, size=n), rng)
        change = np.arange(self.width) == where[:, None]
        moved = np.where(change, np.where(self._unordered[None, :], turned, stepped), whole)
        return self.legalise(self._snap(moved))

    def neighbours(self, vector: Floats, rng: np.random.Generator) -> Floats:
        """All legal vectors that differ from ``vector`` (width,) in one active hyperparameter that has a list
        of values, or few whole numbers; what that switches on takes random values."""
        axes = [(i, self._axis(i)) for i in np.flatnonzero(~np.isnan(vector) & ~self._fixed)]
        rows = [(i, value) for i, axis in axes if axis is not None for value in axis if value != vector[i]]
        near = np.repeat(vector[None, :], len(rows), axis=0)
        for row, (i, value) in zip(near, rows, strict=True):
            row[i] = value
        return self.legalise(self.complete(near, rng)) if rows else near

    def enumerate(self, limit: int) -> Floats | None:
        """All legal vectors of a finite space, or None if its grid has more than ``limit`` points."""
        if self.grid_size > limit:
            return None
        axes = [axis for i in range(self.width) if (axis := self._axis(i, limit)) is not None]
        grid = np.array(list(itertools.product(*axes)), dtype=np.float64).reshape(-1, self.width)
        return self.unique(self.legalise(grid))

    def unique(self, vectors: Floats) -> Floats:
        """The vectors without repetitions, in their order of first appearance."""
        if not len(vectors):
            return vectors
        rounded = np.round(np.nan_to_num(vectors, nan=_INACTIVE), _DECIMALS) + 0.0
        as_bytes = np.dtype((np.void, rounded.dtype.itemsize * self.width))
        _, first = np.unique(np.ascontiguousarray(rounded).view(as_bytes).ravel(), return_index=True)
        kept: Floats = vectors[np.sort(first)]
        return kept

    def features(self, vectors: Floats) -> NDArray[np.float32]:
        """The matrix for a forest, (n, features): numbers in [0, 1], one-hot categories, -1 if inactive."""
        columns = []
        for i, listed in enumerate(self._values):
            column = vectors[:, i]
            off = np.isnan(column)
            if self._fixed[i]:
                continue
            if listed is None:
                columns.append(np.where(off, _INACTIVE, column))
            elif self._unordered[i] and len(listed) > 2:
                columns.extend((column == j).astype(np.float64) for j in range(len(listed)))
                if off.any() or any(i == child for child, _ in self._rules):
                    columns.append(off.astype(np.float64))
            else:
                columns.append(np.where(off, _INACTIVE, column / (len(listed) - 1)))
        if not columns:
            return np.zeros((len(vectors), 1), dtype=np.float32)
        return np.ascontiguousarray(np.stack(columns, axis=1), dtype=np.float32)

    def to_configs(self, vectors: Floats) -> list[Config]:
        """Plain dictionaries in the problem's order, without the inactive hyperparameters."""
        cells: dict[str, list[Any]] = {}
        for i, hp in enumerate(self._hps):
            on = ~np.isnan(vectors[:, i])
            column: list[Any] = [_ABSENT] * len(vectors)
            listed = self._values[i]
            if listed is not None:
                base = self._base(hp)
                for row in np.flatnonzero(on):
                    column[row] = listed[int(vectors[row, i]) - base]
            elif on.any():
                for row, value in zip(np.flatnonzero(on), hp.to_value(vectors[on, i]).tolist(), strict=True):
                    column[row] = value
            cells[hp.name] = column
        return [
            {name: cells[name][row] for name in self._names if cells[name][row] is not _ABSENT}
            for row in range(len(vectors))
        ]

    def to_vectors(self, configs: Sequence[Mapping[str, Any]]) -> Floats:
        """The vectors of configurations, (n, width).

        Raises:
            WrongCall: a name or value that the space does not have.
        """
        vectors = np.full((len(configs), self.width), np.nan)
        for row, config in enumerate(configs):
            for name, value in config.items():
                i = self._index.get(name)
                if i is None:
                    have = ", ".join(self._names)
                    raise WrongCall(f"configuration {dict(config)}: no hyperparameter {name!r}: have {have}")
                vectors[row, i] = self._to_number(i, value, config)
        return vectors

    def key(self, config: Mapping[str, Any]) -> Key:
        """What tells configurations apart; equal for equal ones, also after a journey through JSON."""
        return tuple(config.get(name, _ABSENT) for name in self._names)

    def _to_number(self, i: int, value: Any, config: Mapping[str, Any]) -> float:
        hp, lookup = self._hps[i], self._lookup[i]
        if lookup is not None:
            try:
                return lookup[_typed(value)] + self._base(hp)
            except (KeyError, TypeError):
                pass
        elif not isinstance(value, bool) and isinstance(value, (int, float)) and hp.legal_value(value):
            return float(np.clip(hp.to_vector(value), hp.lower_vectorized, hp.upper_vectorized))
        raise WrongCall(
            f"configuration {dict(config)}: {hp.name}={value!r} is outside the space ({hp}): "
            "give the history of the same problem"
        )

    def _axis(self, i: int, limit: int = _FEW) -> Floats | None:
        """All values of a hyperparameter as vectors have them; None if it has more than ``limit``."""
        hp, listed = self._hps[i], self._values[i]
        if not self._sizes[i] <= limit:
            return None
        if listed is not None:
            return self._column_grid(hp, len(listed))
        low, high = hp.to_value(np.array([0.0, 1.0]))
        return np.asarray(hp.to_vector(np.arange(low, high + 1)), dtype=np.float64)

    def _stepped(self, parents: Floats, scales: Floats, rng: np.random.Generator) -> Floats:
        """Complete ``parents`` (n, width), all ordered ones moved by a Gaussian step of ``scales`` (n,)."""
        spread = np.where(np.isfinite(self._sizes) & (self._sizes > 1), self._sizes - 1.0, 1.0)
        unit = np.array([1.0 if v is None else s for v, s in zip(self._values, spread, strict=True)])
        sigma = np.maximum(scales[:, None], 0.7 * self._steps[None, :])
        stepped = np.abs(parents / unit + sigma * rng.standard_normal(parents.shape))
        stepped = 1.0 - np.abs(1.0 - stepped)  # reflected at 0 and at 1
        return np.asarray(np.clip(stepped, 0.0, 1.0) * unit)

    def _draw(self, n: int, rng: np.random.Generator) -> Floats:
        legacy = np.random.RandomState(int(rng.integers(2**31)))  # ConfigSpace takes no other generator
        columns = np.empty((n, self.width))
        for i, hp in enumerate(self._hps):
            columns[:, i] = hp.sample_vector(n, seed=legacy)
        return columns

    def _snap(self, vectors: Floats) -> Floats:
        """Discrete hyperparameters onto their grid."""
        for i, hp in enumerate(self._hps):
            if self._values[i] is not None:
                if not self._fixed[i]:
                    vectors[:, i] = np.rint(vectors[:, i])
            elif math.isfinite(self._sizes[i]):
                vectors[:, i] = np.clip(hp.to_vector(hp.to_value(vectors[:, i])), 0.0, 1.0)
        return vectors

    @staticmethod
    def _base(hp: Any) -> int:
        """ConfigSpace's number of a constant is 1, of a list's first value 0."""
        return int(hp.lower_vectorized) if isinstance(hp, Constant) else 0

    def _column_grid(self, hp: Any, size: int) -> Floats:
        return np.arange(size, dtype=np.float64) + self._base(hp)


def _listed(hp: Any) -> list[Any] | None:
    """The plain values of a hyperparameter that has a list of them, else None."""
    if isinstance(hp, CategoricalHyperparameter):
        values = list(hp.choices)
    elif isinstance(hp, OrdinalHyperparameter):
        values = list(hp.sequence)
    elif isinstance(hp, Constant):
        values = [hp.value]
    else:
        return None
    return [v.item() if isinstance(v, np.generic) else v for v in values]


def _typed(value: Any) -> tuple[bool, Any]:
    """True is not 1 in a list of values, but 2.0 is 2."""
    return isinstance(value, bool), value
