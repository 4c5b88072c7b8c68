"""Regularized evolution: what is young and good has children, what is old goes."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nas_hpc.errors import WrongCall
from nas_hpc.search.base import Config, Problem
from nas_hpc.search.random import RandomSampler
from nas_hpc.search.space import Floats, Key

POPULATION = 100
SAMPLE = 10
INITIAL = 20

_DRAWS = 8  # mutations of a parent that are drawn before its neighbours are written out
_STEPS = 20  # so far from a parent an unseen child is looked for


class AgingEvolution(RandomSampler):
    """Asynchronous aging evolution (Real, Aggarwal, Huang, Le, "Regularized evolution for image classifier
    architecture search", AAAI 2019, algorithm 1), over any problem.

    The population are the ``population`` youngest successes, by the order in which they were told; failures
    never enter it. Every point that is asked for is a child of the best of ``sample`` members, drawn without
    replacement: one hyperparameter, any of them equally likely, gets another value. Until ``initial``
    successes are told points are random (see ``nas_hpc.search.random``): in the paper until the population is
    full, which searches of a few hundred evaluations spend better on children.

    A child that was seen is drawn again while its parent has neighbours that were not, then looked for among
    the neighbours of these; with ``duplicates`` it is evaluated again, as in the paper.

    State and resume: see ``nas_hpc.search.base``; here the order of the ``tell`` calls matters.
    """

    def __init__(
        self,
        problem: Problem,
        population: int = POPULATION,
        sample: int = SAMPLE,
        initial: int | None = None,
        *,
        duplicates: bool = False,
        seed: int = 0,
    ) -> None:
        """``initial``: None: 20, or ``population`` if that is less.

        Raises:
            WrongCall: a value out of range.
        """
        super().__init__(problem, seed)
        if population < 2:
            raise WrongCall(f"population {population}: give 2 or more ({POPULATION})")
        if not 1 <= sample <= population:
            raise WrongCall(f"sample {sample}: give 1 or more, and the population ({population}) at most")
        if initial is not None and initial < 1:
            raise WrongCall(f"initial {initial}: give 1 or more")
        self._sample = sample
        self._initial = min(INITIAL, population) if initial is None else initial
        self._duplicates = duplicates
        self._population: deque[int] = deque(maxlen=population)
        self._succeeded = 0

    def tell(self, configs: Sequence[Mapping[str, Any]], objectives: Sequence[float | None]) -> None:
        """Note the objectives (see ``Optimizer.tell``); successes enter the population in this order."""
        succeeded = self._history.tell(configs, objectives)
        self._population.extend(succeeded)
        self._succeeded += len(succeeded)

    def _fill(self, chosen: list[Config], n: int, rng: np.random.Generator) -> None:
        taken = {self._codec.key(config) for config in chosen}
        while len(chosen) < n and self._succeeded >= self._initial:
            before = len(chosen)
            parent = self._history.vector(self._winner(rng))
            if self._duplicates:
                chosen += self._codec.to_configs(self._mutants(parent, rng)[:1])
            else:
                self._take_child(parent, chosen, taken, rng)
            if len(chosen) == before:
                break
        self._fill_randomly(chosen, n, rng)

    def _winner(self, rng: np.random.Generator) -> int:
        """The best of some members of the population."""
        size = len(self._population)
        drawn = rng.choice(size, size=min(self._sample, size), replace=False)
        return max((self._population[i] for i in drawn), key=self._history.objective)

    def _mutants(self, parent: Floats, rng: np.random.Generator) -> Floats:
        """Some random children of ``parent``; fewer than usual, or none, where clauses forbid them."""
        return self._codec.mutate(np.repeat(parent[None, :], _DRAWS, axis=0), rng)

    def _take_child(
        self, parent: Floats, chosen: list[Config], taken: set[Key], rng: np.random.Generator
    ) -> None:
        """Append an unseen child of ``parent``, or of a neighbour if all of its own were seen."""
        n = len(chosen) + 1
        for _ in range(_STEPS):
            drawn = self._mutants(parent, rng)
            self._take(drawn, chosen, n, taken)
            if len(chosen) == n:
                return
            near = self._codec.neighbours(parent, rng)
            self._take(near[rng.permutation(len(near))], chosen, n, taken)
            if len(chosen) == n or not len(drawn):
                return
            parent = drawn[0]
