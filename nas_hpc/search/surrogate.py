"""Forests as surrogates: mean and standard deviation at candidates, updated by lies without a new fit.

Mean and variance follow Hutter, Xu, Hoos, Leyton-Brown, "Algorithm runtime prediction" (2014), section 4.3:
the law of total variance over the trees, each giving mean and variance of a candidate's leaf.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn import config_context
from sklearn.tree import DecisionTreeRegressor, ExtraTreeRegressor

from nas_hpc.search.space import Floats

Features = NDArray[np.float32]

TREES = 50
_MIN_STD = 1e-6  # in units of the normal scores
_SAMPLES_PER_TREE = 1_500
_KINDS: dict[str, tuple[Any, float]] = {"RF": (DecisionTreeRegressor, 0.5), "ET": (ExtraTreeRegressor, 1.0)}
"""With the share of the features that is looked at for each split."""
_WORK_PER_SPLIT = 50_000  # samples times features; architectures have hundreds of features


class Forest:
    """A fitted forest with open leaves: number of samples, mean and variance of each leaf of all trees.

    A lie changes the leaves that it falls into as one more sample would, the splits stay: so a batch of many
    points costs one fit. Trees of a large history each learn from a random share of it, at a bounded cost.
    """

    def __init__(self, kind: str, x: Features, y: Floats, seed: int, n_jobs: int = 1) -> None:
        """Fit trees of ``kind`` "RF" or "ET" to ``x`` (n, features) and ``y`` (n,)."""
        seeds = np.random.SeedSequence(seed).generate_state(2 * TREES).reshape(TREES, 2)
        grow = partial(_grow, kind, x, y)
        if n_jobs == 1:
            self._trees = [grow(pair) for pair in seeds]
        else:
            with ThreadPoolExecutor(n_jobs if n_jobs > 0 else os.cpu_count()) as pool:
                self._trees = list(pool.map(grow, seeds))
        sizes = np.array([tree.node_count for tree in self._trees])
        self._offsets = np.concatenate(([0], np.cumsum(sizes)[:-1]))
        self._weight = np.concatenate([tree.weighted_n_node_samples for tree in self._trees])
        self.mean: Floats = np.concatenate([tree.value[:, 0, 0] for tree in self._trees])
        self.variance: Floats = np.concatenate([tree.impurity for tree in self._trees])
        self._sum = self.mean * self._weight
        self._squares = (self.variance + self.mean**2) * self._weight

    def leaves(self, x: Features) -> NDArray[np.int32]:
        """Numbers of the leaves of ``x`` (n, features); (trees, n)."""
        found = np.empty((len(self._trees), len(x)), dtype=np.int32)
        for row, (tree, offset) in enumerate(zip(self._trees, self._offsets, strict=True)):
            found[row] = tree.apply(x) + offset
        return found

    def lie(self, leaves: NDArray[np.int32], value: float) -> None:
        """Add a sample of ``value`` to every leaf in ``leaves`` (as often as it is there)."""
        touched, times = np.unique(leaves, return_counts=True)
        self._weight[touched] += times
        self._sum[touched] += times * value
        self._squares[touched] += times * value**2
        self.mean[touched] = self._sum[touched] / self._weight[touched]
        square = self._squares[touched] / self._weight[touched]
        self.variance[touched] = np.maximum(square - self.mean[touched] ** 2, 0.0)


def _grow(kind: str, x: Features, y: Floats, seeds: NDArray[Any]) -> Any:
    """One tree by itself: scikit-learn's forests spend more on their trees' parameters than on splits."""
    draw_seed, split_seed = (int(seed) for seed in seeds)
    weights = None
    if kind == "RF" or len(x) > _SAMPLES_PER_TREE:  # a bootstrap sample
        rng = np.random.default_rng(draw_seed)
        drawn = rng.integers(len(x), size=min(len(x), _SAMPLES_PER_TREE))
        share, times = np.unique(drawn, return_counts=True)
        x, y, weights = x[share], y[share], times.astype(np.float64)
    maker, part = _KINDS[kind]
    looked_at = split_features(part, len(x), x.shape[1])
    with config_context(skip_parameter_validation=True):
        tree = maker(random_state=split_seed, max_features=looked_at)
        return tree.fit(x, y, sample_weight=weights, check_input=False).tree_


def split_features(share: float, samples: int, features: int) -> int:
    """How many features are looked at for each split: ``share`` of them, fewer where that takes long."""
    return max(1, min(int(share * features), _WORK_PER_SPLIT // max(1, samples)))


class Predictions:
    """Mean and standard deviation of a forest at fixed candidates, kept up to date with its lies."""

    def __init__(self, forest: Forest, candidates: Features) -> None:
        self._forest = forest
        self._leaves = forest.leaves(candidates)
        self._mean = forest.mean[self._leaves]
        self._variance = forest.variance[self._leaves]

    def lie_at(self, candidate: int, value: float) -> NDArray[np.intp]:
        """Tell the forest the lie ``value`` at one candidate; the candidates whose prediction changes."""
        leaves = self._leaves[:, candidate]
        self._forest.lie(leaves, value)
        cells = np.flatnonzero(self._leaves == leaves[:, None])
        tree, row = np.divmod(cells, self._leaves.shape[1])
        self._mean.ravel()[cells] = self._forest.mean[leaves[tree]]
        self._variance.ravel()[cells] = self._forest.variance[leaves[tree]]
        changed = np.zeros(self._leaves.shape[1], dtype=np.bool_)
        changed[row] = True
        return np.flatnonzero(changed)

    def at(self, rows: NDArray[np.intp] | slice = slice(None)) -> tuple[Floats, Floats]:
        """Mean and standard deviation at all or some candidates (law of total variance over the trees)."""
        mean, variance = self._mean[:, rows], self._variance[:, rows]
        total = variance.mean(axis=0) + mean.var(axis=0)
        return mean.mean(axis=0), np.sqrt(np.maximum(total, _MIN_STD**2))
