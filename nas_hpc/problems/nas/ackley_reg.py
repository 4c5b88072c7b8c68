"""Ackley's function of ten numbers, with a minus: DeepHyper's ackleyReg.

Generated data, the same at every call; the objective is R² of the validation part after the last epoch.
"""

from __future__ import annotations

import numpy as np

from nas_hpc.nas import NaProblem
from nas_hpc.problems.nas._generated import Floats, Pair, generated, scaler
from nas_hpc.problems.nas.spaces import dense_skipco


def ackley(x: Floats) -> Floats:
    """20·exp(−0.2·√mean x²) + exp(mean cos 2πx) − 20 − e, of each row of ``x``."""
    bowl = 20.0 * np.exp(-0.2 * np.sqrt((x**2).mean(axis=1)))
    waves = np.exp(np.cos(2.0 * np.pi * x).mean(axis=1))
    return np.asarray(bowl + waves - 20.0 - np.e)


def load_data(dim: int = 10, size: int = 100_000) -> tuple[Pair, Pair]:
    """``size`` points of ``dim`` numbers from −32.768 to 32.768, 80 % of them for training."""
    return generated(ackley, -32.768, 32.768, seed=2018, size=size, dim=dim)


Problem = NaProblem()
Problem.load_data(load_data)
Problem.preprocessing(scaler, scaler)
Problem.search_space(dense_skipco, num_layers=3)
Problem.hyperparameters(batch_size=100, learning_rate=0.01, num_epochs=10)
Problem.loss("mse")
Problem.metrics(["r2"])
Problem.objective("val_r2")
