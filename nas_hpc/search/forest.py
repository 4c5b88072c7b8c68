"""AMBS's optimizer: a forest, an acquisition function, and lies for the points that are still running."""

from __future__ import annotations

import math

import numpy as np
from scipy.special import ndtri
from scipy.stats import rankdata

from nas_hpc.errors import WrongCall
from nas_hpc.search import acquisition
from nas_hpc.search.base import Config, Problem
from nas_hpc.search.history import FAILED, PENDING, SUCCEEDED, Points
from nas_hpc.search.random import RandomSampler
from nas_hpc.search.space import Floats
from nas_hpc.search.surrogate import Forest, Predictions

SURROGATES = ("RF", "ET", "DUMMY")
LIAR_STRATEGIES = ("cl_max", "cl_mean", "cl_min")
_LATER = ("GP", "GBRT", "PI", "gp_hedge")

_DEFAULT_INITIAL = 10
_WHOLE_SPACE = 2_000  # spaces up to this size are their own candidates
_RANDOM, _LOCAL = 1_000, 1_000  # candidates: drawn anew; children of the best points
_ROUNDS, _TOP, _CLIMB = 2, 20, 500  # rounds of children of the best candidates, parents and children in each
_ELITE = 10
_WIDEST, _FINEST = -0.5, -2.5  # log10 of the steps of children, in units of the range
_BATCH_PER_POOL = 10  # larger batches get more candidates, up to:
_LARGEST_POOL = 3
_KEEP, _KEEP_PER_POINT = 500, 15  # so many of the best candidates are looked at closely


class ForestOptimizer(RandomSampler):
    """Asynchronous model-based search with random forests (RF) or extremely randomised trees (ET).

    Objectives are maximised. The names are scikit-optimize's, which minimises −objective: ``LCB`` picks the
    largest mean + ``acq_kappa``·std of the objective (an upper bound); ``cl_max`` lets running points count
    as the *worst* success so far (the largest −objective), ``cl_min`` as the best, ``cl_mean`` as the mean.
    Constant liar: Ginsbourger, Le Riche, Carraro, "Kriging is well-suited to parallelize optimization", 2010.

    The forest learns normal scores of the ranks of the objectives, so that only their order matters; a
    failure ranks below every success. Points that run (asked, not told) and the earlier points of a batch are
    lies in the leaves of the one fitted forest. Candidates are random points, children of the best points
    (crossed and moved), and children of the most promising candidates. ``DUMMY`` is random search.

    State and resume: see ``nas_hpc.search.base``.
    """

    def __init__(
        self,
        problem: Problem,
        surrogate: str = "RF",
        acq_func: str = "LCB",
        acq_kappa: float = 1.96,
        liar_strategy: str = "cl_max",
        n_initial: int | None = None,
        seed: int = 0,
        n_jobs: int = 1,
    ) -> None:
        """``n_initial``: results (failures too) before the first model, 10; ``n_jobs``: threads of a fit.

        Raises:
            WrongCall: a value out of range, or a name that does not exist (yet).
        """
        super().__init__(problem, seed)
        _check_name("surrogate model", surrogate, SURROGATES)
        _check_name("acquisition function", acq_func, acquisition.NAMES)
        _check_name("liar strategy", liar_strategy, LIAR_STRATEGIES)
        if not (math.isfinite(acq_kappa) and acq_kappa >= 0):
            raise WrongCall(f"acq_kappa {acq_kappa}: give a finite number of 0 or more (1.96)")
        if n_jobs == 0:
            raise WrongCall("n_jobs 0: give a number of threads, or -1 for all cores")
        if n_initial is not None and n_initial < 1:
            raise WrongCall(f"n_initial {n_initial}: give 1 or more")
        self._surrogate = surrogate
        self._acq_func = acq_func
        self._kappa = acq_kappa
        self._liar = liar_strategy
        self._n_initial = max(_DEFAULT_INITIAL, len(self._starting)) if n_initial is None else n_initial
        self._n_jobs = n_jobs

    def _fill(self, chosen: list[Config], n: int, rng: np.random.Generator) -> None:
        points = self._history.points()
        told = points.status != PENDING
        if self._surrogate != "DUMMY" and told.sum() >= self._n_initial and points.having(SUCCEEDED).any():
            self._fill_by_model(chosen, n, points, rng)
        self._fill_randomly(chosen, n, rng)  # before the first model, and when the candidates ran out

    def _fill_by_model(self, chosen: list[Config], n: int, points: Points, rng: np.random.Generator) -> None:
        told, good = points.status != PENDING, points.having(SUCCEEDED)
        values = normal_scores(points)
        features = self._codec.features(points.vectors)
        seed = int(rng.integers(2**31))
        forest = Forest(self._surrogate, features[told], values[told], seed, self._n_jobs)
        worst, mean, best = (float(f(values[good])) for f in (np.min, np.mean, np.max))
        lie = {"cl_max": worst, "cl_mean": mean, "cl_min": best}[self._liar]
        # starting points at the head of this very batch run as well
        running = np.concatenate([points.vectors[~told], self._codec.to_vectors(chosen)])
        if len(running):
            forest.lie(forest.leaves(self._codec.features(running)), lie)
        order = np.argsort(-values[good], kind="stable")
        elite = points.vectors[good][order[:_ELITE]]
        candidates = self._candidates(elite, forest, best, n - len(chosen), rng)
        self._pick(chosen, n, candidates, forest, best, lie)

    def _pick(
        self, chosen: list[Config], n: int, candidates: Floats, forest: Forest, best: float, lie: float
    ) -> None:
        """Move the best candidates into ``chosen`` one after another, each followed by its lie."""
        table = Predictions(forest, self._codec.features(candidates))
        scores = self._scores(*table.at(), best)
        taken = {self._codec.key(config) for config in chosen}
        while len(chosen) < n:
            index = int(np.argmax(scores))
            if scores[index] == -np.inf:
                return
            before = len(chosen)
            self._take(candidates[index : index + 1], chosen, n, taken)
            scores[index] = -np.inf
            if before < len(chosen) < n:
                changed = table.lie_at(index, lie)
                changed = changed[scores[changed] > -np.inf]
                scores[changed] = self._scores(*table.at(changed), best)

    def _scores(self, mean: Floats, std: Floats, best: float) -> Floats:
        if self._acq_func == "LCB":
            return acquisition.lower_confidence_bound(mean, std, self._kappa)
        return acquisition.expected_improvement(mean, std, best)

    def _candidates(
        self, elite: Floats, forest: Forest, best: float, n: int, rng: np.random.Generator
    ) -> Floats:
        """Different legal vectors, (candidates, width), among which ``n`` points are to be chosen."""
        if self._codec.grid_size <= _WHOLE_SPACE:
            grid = self._write_out()
            assert grid is not None
            return grid
        times = int(np.clip(n // _BATCH_PER_POOL, 1, _LARGEST_POOL))
        fresh = [self._codec.sample(_RANDOM * times, rng), self._children(elite, _LOCAL * times, rng)]
        pool, scores = np.empty((0, self._codec.width)), np.empty(0)
        for _ in range(1 + _ROUNDS):
            more = np.concatenate(fresh)
            rated = self._scores(*Predictions(forest, self._codec.features(more)).at(), best)
            pool, scores = np.concatenate([pool, more]), np.concatenate([scores, rated])
            top = np.argsort(-scores, kind="stable")[:_TOP]
            fresh = [self._children(pool[top], _CLIMB * times, rng)]
        keep = np.argsort(-scores, kind="stable")[: _KEEP + _KEEP_PER_POINT * n]
        return self._codec.unique(pool[keep])

    def _children(self, parents: Floats, n: int, rng: np.random.Generator) -> Floats:
        """About ``n`` legal points near ``parents``: half crossed, all moved in one, some or all places."""
        first = parents[rng.integers(len(parents), size=n)]
        second = parents[rng.integers(len(parents), size=n)]
        crossed = (rng.random(first.shape) < 0.5) & (rng.random(n) < 0.5)[:, None]
        whole = self._codec.complete(np.where(crossed, second, first), rng)
        scales = 10.0 ** rng.uniform(_FINEST, _WIDEST, size=n)
        rates = rng.choice([0.0, 1.0 / self._codec.width, 0.3, 1.0], size=n)
        return self._codec.move(whole, scales, rates, rng)


def normal_scores(points: Points) -> Floats:
    """Normal scores of the ranks of the objectives, (n,): failures share the lowest ranks, pending get NaN.

    Hazen's plotting positions, (rank − 1/2)/n, through the inverse normal distribution.
    """
    objectives = np.where(points.having(FAILED), -np.inf, points.objectives)
    told = points.status != PENDING
    scores = np.full(len(objectives), np.nan)
    scores[told] = ndtri((rankdata(objectives[told]) - 0.5) / told.sum())
    return scores


def _check_name(what: str, name: str, names: tuple[str, ...]) -> None:
    if name in _LATER:
        raise WrongCall(f"{what} {name!r} comes later; have: {', '.join(names)}")
    if name not in names:
        raise WrongCall(f"unknown {what} {name!r}; have: {', '.join(names)}")
