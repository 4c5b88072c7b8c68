"""Data that is made of a function of several numbers, as in DeepHyper's regression benchmarks."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Pair = tuple[Floats, Floats]
_TRAIN_SHARE = 0.8


def generated(
    function: Callable[[Floats], Floats], low: float, high: float, *, seed: int, size: int, dim: int
) -> tuple[Pair, Pair]:
    """((x, y) of training, the same of validation), 80 to 20 %.

    x: (n, ``dim``), drawn evenly from ``low`` towards ``high``; y: (n, 1), ``function`` of each row.
    """
    x = low + np.random.RandomState(seed).random_sample((size, dim)) * (high - low)
    y = function(x).reshape(-1, 1)
    first = int(_TRAIN_SHARE * size)
    return (x[:first], y[:first]), (x[first:], y[first:])


def scaler() -> object:
    """Brings every column to [0, 1] and then to mean 0 and deviation 1, as DeepHyper's minmaxstdscaler."""
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import MinMaxScaler, StandardScaler

    return make_pipeline(MinMaxScaler(), StandardScaler())
