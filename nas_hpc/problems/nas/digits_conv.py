"""Handwritten digits (real data, 8×8 pixels, from scikit-learn) by convolutional networks.

Data, split and objective as in ``nas_hpc.problems.nas.digits_dense``.
"""

from __future__ import annotations

from nas_hpc.nas import NaProblem
from nas_hpc.problems.hps.digits import Pair
from nas_hpc.problems.nas import digits_dense
from nas_hpc.problems.nas.spaces import conv_skip


def load_data() -> tuple[Pair, Pair, Pair]:
    """Images (n, 8, 8, 1) of 0 to 1 and labels (n,) from 0 to 9 of training, validation and test."""
    train, valid, test = (((x / 16.0).reshape(-1, 8, 8, 1), y) for x, y in digits_dense.load_data())
    return train, valid, test


Problem = NaProblem()
Problem.load_data(load_data)
Problem.search_space(conv_skip)
Problem.hyperparameters(batch_size=64, learning_rate=0.003, num_epochs=15)
Problem.loss("sparse_categorical_crossentropy")
Problem.metrics(["accuracy"])
Problem.objective("val_accuracy__max")
