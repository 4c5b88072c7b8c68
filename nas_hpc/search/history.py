"""The points of a search: asked in an order, then told; the one state from which optimizers compute."""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nas_hpc.errors import WrongCall
from nas_hpc.search.base import Config
from nas_hpc.search.space import Bools, Floats, Key, SpaceCodec

PENDING, SUCCEEDED, FAILED = 0, 1, 2


@dataclass(frozen=True, slots=True)
class Points:
    """Vectors (n, width), status (n,) and objectives (n,; NaN unless succeeded) of all points."""

    vectors: Floats
    status: np.ndarray[Any, np.dtype[np.int8]]
    objectives: Floats

    def having(self, status: int) -> Bools:
        """Mask of the points with this status."""
        return np.asarray(self.status == status)


class History:
    """Points asked and told. The order of ``tell`` does not matter, that of asking does."""

    def __init__(self, codec: SpaceCodec) -> None:
        self._codec = codec
        self._vectors: list[Floats] = []
        self._status: list[int] = []
        self._objectives: list[float] = []
        self._foreign: list[bool] = []
        self._configs: list[Config] = []
        self._open: dict[Key, deque[int]] = {}
        self._seen: Counter[Key] = Counter()
        self.asked = 0

    @property
    def seen(self) -> Mapping[Key, int]:
        """How often each point was asked or told."""
        return self._seen

    @property
    def told(self) -> int:
        """Number of points told, failures included."""
        return sum(status != PENDING for status in self._status)

    def add_asked(self, configs: Sequence[Mapping[str, Any]]) -> None:
        """Append pending points."""
        for config, vector in zip(configs, self._codec.to_vectors(configs), strict=True):
            self._append(config, vector)
            self.asked += 1

    def tell(self, configs: Sequence[Mapping[str, Any]], objectives: Sequence[float | None]) -> list[int]:
        """Note objectives; a point that is not pending is appended as a new one.

        Returns the places of those that succeeded, for ``vector`` and ``objective``.
        """
        if len(configs) != len(objectives):
            counts = f"{len(configs)} configurations but {len(objectives)} objectives"
            raise WrongCall(f"tell: {counts}: give one objective each")
        values = [_number(o) for o in objectives]
        vectors = self._codec.to_vectors(configs)  # all are checked before anything is noted
        succeeded = []
        for config, vector, value in zip(configs, vectors, values, strict=True):
            waiting = self._open.get(self._codec.key(config))
            index = waiting.popleft() if waiting else self._append(config, vector, pending=False)
            self._status[index] = FAILED if value is None else SUCCEEDED
            self._objectives[index] = math.nan if value is None else value
            if value is not None:
                succeeded.append(index)
        return succeeded

    def vector(self, place: int) -> Floats:
        """The point at ``place``, (width,)."""
        return self._vectors[place]

    def objective(self, place: int) -> float:
        """Its objective; NaN unless it succeeded."""
        return self._objectives[place]

    def points(self) -> Points:
        """Everything as arrays: what was asked in the order of asking, then what was only told."""
        order = np.argsort(np.array(self._foreign, dtype=np.bool_), kind="stable")
        vectors = np.array(self._vectors).reshape(-1, self._codec.width)
        status = np.array(self._status, dtype=np.int8)
        objectives = np.array(self._objectives, dtype=np.float64)
        return Points(vectors[order], status[order], objectives[order])

    def summary(self) -> dict[str, Any]:
        """Counts and the best point so far."""
        done = [i for i, status in enumerate(self._status) if status == SUCCEEDED]
        best = max(done, key=lambda i: self._objectives[i], default=None)
        return {
            "asked": self.asked,
            "told": self.told,
            "failed": self._status.count(FAILED),
            "pending": self._status.count(PENDING),
            "best_objective": None if best is None else self._objectives[best],
            "best_config": None if best is None else dict(self._configs[best]),
        }

    def _append(self, config: Mapping[str, Any], vector: Floats, pending: bool = True) -> int:
        index = len(self._status)
        key = self._codec.key(config)
        self._vectors.append(vector)
        self._status.append(PENDING)
        self._objectives.append(math.nan)
        self._foreign.append(not pending)
        self._configs.append(dict(config))
        self._seen[key] += 1
        if pending:
            self._open.setdefault(key, deque()).append(index)
        return index


def _number(objective: float | None) -> float | None:
    if objective is None:
        return None
    if isinstance(objective, bool) or not isinstance(objective, (int, float, np.integer, np.floating)):
        raise WrongCall(f"tell: objective {objective!r} is no number: give a float, or None for a failure")
    return float(objective) if math.isfinite(objective) else None
