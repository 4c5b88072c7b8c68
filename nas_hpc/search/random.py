"""Random search, and what every optimizer shares: starting points, no repetitions, small spaces."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nas_hpc.errors import WrongCall
from nas_hpc.search.base import Config, Problem
from nas_hpc.search.history import History
from nas_hpc.search.space import Floats, Key, SpaceCodec

GRID_LIMIT = 100_000  # spaces up to this size are written out when random draws find nothing new
_DRAWS = 8  # rounds of draws without enough new points after which a space counts as nearly seen


class RandomSampler:
    """Seeded random search: the starting points, then random legal points, none twice while there are others.

    Every random number is drawn from (seed, number of points asked before): see ``nas_hpc.search.base``.
    """

    def __init__(self, problem: Problem, seed: int = 0) -> None:
        if seed < 0:
            raise WrongCall(f"seed {seed}: give 0 or more")
        self._codec = SpaceCodec(problem)
        self._starting = problem.starting_point_asdict
        self._seed = seed
        self._history = History(self._codec)
        self._grid: Floats | None = None
        self._grid_keys: list[Key] = []
        self._grid_made = False

    def ask(self, n: int) -> list[Config]:
        """``n`` new configurations (see ``Optimizer.ask``)."""
        if n < 0:
            raise WrongCall(f"ask: {n} points asked for: give 0 or more")
        chosen = self._unseen_starting_points()[:n]
        if len(chosen) < n:
            rng = np.random.default_rng([self._seed, self._history.asked])
            self._fill(chosen, n, rng)
        self._history.add_asked(chosen)
        return chosen

    def tell(self, configs: Sequence[Mapping[str, Any]], objectives: Sequence[float | None]) -> None:
        """Note the objectives (see ``Optimizer.tell``)."""
        self._history.tell(configs, objectives)

    def remember(self, configs: Sequence[Mapping[str, Any]]) -> None:
        """Take ``configs`` as asked (see ``Optimizer.remember``)."""
        self._history.add_asked(configs)

    @property
    def exhausted(self) -> bool:
        """Whether all of a finite space was asked or told; one over ``GRID_LIMIT`` points never counts so."""
        return self._write_out() is not None and all(key in self._history.seen for key in self._grid_keys)

    @property
    def state(self) -> dict[str, Any]:
        """Counts and the best point so far (see ``Optimizer.state``)."""
        return self._history.summary()

    def _fill(self, chosen: list[Config], n: int, rng: np.random.Generator) -> None:
        """Add points to ``chosen`` until there are ``n``."""
        self._fill_randomly(chosen, n, rng)

    def _fill_randomly(self, chosen: list[Config], n: int, rng: np.random.Generator) -> None:
        taken = {self._codec.key(config) for config in chosen}
        for _ in range(_DRAWS):
            if len(chosen) >= n:
                return
            self._take(self._codec.sample(n - len(chosen) + 8, rng), chosen, n, taken)
        grid = self._write_out() if len(chosen) < n else None
        if grid is not None:
            self._take(grid[rng.permutation(len(grid))], chosen, n, taken)
        if len(chosen) < n:  # nothing (that can be found) is left: points come again
            chosen.extend(self._codec.to_configs(self._codec.sample(n - len(chosen), rng)))

    def _take(self, vectors: Floats, chosen: list[Config], n: int, taken: set[Key]) -> None:
        """Append the configurations of ``vectors`` that are new, up to ``n`` in all."""
        for config in self._codec.to_configs(vectors):
            key = self._codec.key(config)
            if len(chosen) < n and key not in taken and key not in self._history.seen:
                taken.add(key)
                chosen.append(config)

    def _unseen_starting_points(self) -> list[Config]:
        points: dict[Key, Config] = {}
        for config in self._starting:
            key = self._codec.key(config)
            if key not in self._history.seen:
                points.setdefault(key, dict(config))
        return list(points.values())

    def _write_out(self) -> Floats | None:
        """All legal points of a space that is small enough for it; made once."""
        if not self._grid_made:
            self._grid = self._codec.enumerate(GRID_LIMIT)
            self._grid_made = True
            if self._grid is not None:
                self._grid_keys = [self._codec.key(config) for config in self._codec.to_configs(self._grid)]
        return self._grid
