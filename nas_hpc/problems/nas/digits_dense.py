"""Handwritten digits (real data, 8×8 pixels, from scikit-learn) by fully connected networks.

The objective is the best validation accuracy of an epoch; the test part is seen by no search. A training
takes about a second of one core.
"""

from __future__ import annotations

from sklearn.datasets import load_digits
from sklearn.preprocessing import StandardScaler

from nas_hpc.nas import NaProblem
from nas_hpc.problems.hps.digits import Pair, parts
from nas_hpc.problems.nas.spaces import dense_skipco


def load_data() -> tuple[Pair, Pair, Pair]:
    """Images (n, 64) of 0 to 16 and labels (n,) from 0 to 9 of training (40 %), validation and test (30 %
    each), in the fixed stratified split of ``nas_hpc.problems.hps.digits``."""
    x, y = load_digits(return_X_y=True)
    return parts(x, y)


Problem = NaProblem()
Problem.load_data(load_data)
Problem.preprocessing(StandardScaler)
Problem.search_space(dense_skipco, num_layers=4, regression=False)
Problem.hyperparameters(batch_size=64, learning_rate=0.003, num_epochs=20)
Problem.loss("sparse_categorical_crossentropy")
Problem.metrics(["accuracy"])
Problem.objective("val_accuracy__max")
