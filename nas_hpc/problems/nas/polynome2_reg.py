"""The negative sum of ten squares: DeepHyper's polynome2Reg.

Generated data, the same at every call; the objective is R² of the validation part after the last epoch.
"""

from __future__ import annotations

import numpy as np

from nas_hpc.nas import NaProblem
from nas_hpc.problems.nas._generated import Floats, Pair, generated, scaler
from nas_hpc.problems.nas.spaces import dense_skipco


def polynome2(x: Floats) -> Floats:
    """−Σ x², of each row of ``x``."""
    return np.asarray(-(x**2).sum(axis=1))


def load_data(dim: int = 10, size: int = 100_000) -> tuple[Pair, Pair]:
    """``size`` points of ``dim`` numbers from −50 to 50, 80 % of them for training."""
    return generated(polynome2, -50.0, 50.0, seed=2018, size=size, dim=dim)


Problem = NaProblem()
Problem.load_data(load_data)
Problem.preprocessing(scaler, scaler)
Problem.search_space(dense_skipco, num_layers=3)
Problem.hyperparameters(batch_size=100, learning_rate=0.01, num_epochs=10)
Problem.loss("mse")
Problem.metrics(["r2"])
Problem.objective("val_r2")
