"""Handwritten digits (real data, 8×8 pixels, from scikit-learn): tune a multi-layer perceptron.

The objective is the validation accuracy; the test accuracy stands in the metadata and is for the report only.
The split is fixed and stratified (40 % training, 30 % validation, 30 % test), so that configurations compare;
the network's own randomness comes from numpy's global state, which the engine seeds for each evaluation.
One evaluation takes about half a second of one core, the largest networks two.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from ConfigSpace import EqualsCondition
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier
from sklearn.preprocessing import StandardScaler

from nas_hpc.problem import HpProblem

_SPLIT_SEED = 20200101
_TRAIN_SHARE, _VALIDATION_SHARE = 0.4, 0.3
_EPOCHS = 15

Pair = tuple[NDArray[np.float64], NDArray[np.int64]]
"""Images and labels."""

Problem = HpProblem()
Problem.add_hyperparameter((1, 5), "layers", default_value=2)
Problem.add_hyperparameter((4, 256, "log-uniform"), "units")
Problem.add_hyperparameter(["relu", "tanh", "logistic", "identity"], "activation")
_solver = Problem.add_hyperparameter(["adam", "sgd"], "solver")
Problem.add_hyperparameter((1e-5, 1.0, "log-uniform"), "learning_rate", default_value=1e-3)
_momentum = Problem.add_hyperparameter((0.0, 0.99), "momentum", default_value=0.9)
Problem.add_hyperparameter((1e-7, 10.0, "log-uniform"), "alpha", default_value=1e-4)
Problem.add_hyperparameter((8, 256, "log-uniform"), "batch_size")
Problem.add_condition(EqualsCondition(_momentum, _solver, "sgd"))


@dataclass(frozen=True, slots=True)
class Data:
    """Images (n, 64) as floats and labels (n,) from 0 to 9, in three parts."""

    x_train: NDArray[np.float64]
    y_train: NDArray[np.int64]
    x_validation: NDArray[np.float64]
    y_validation: NDArray[np.int64]
    x_test: NDArray[np.float64]
    y_test: NDArray[np.int64]


def load_data() -> Data:
    """The digits in their fixed stratified split, scaled by the training part's means and deviations."""
    x, y = load_digits(return_X_y=True)
    return split(x, y)


def parts(x: NDArray[np.float64], y: NDArray[np.int64]) -> tuple[Pair, Pair, Pair]:
    """The pairs of training, validation and test of ``x`` (n, 64) and ``y`` (n,), as they are."""
    x_train, x_rest, y_train, y_rest = train_test_split(
        x, y, train_size=_TRAIN_SHARE, stratify=y, random_state=_SPLIT_SEED
    )
    share = _VALIDATION_SHARE / (1.0 - _TRAIN_SHARE)
    x_validation, x_test, y_validation, y_test = train_test_split(
        x_rest, y_rest, train_size=share, stratify=y_rest, random_state=_SPLIT_SEED
    )
    return (x_train, y_train), (x_validation, y_validation), (x_test, y_test)


def split(x: NDArray[np.float64], y: NDArray[np.int64]) -> Data:
    """The three parts of ``x`` (n, 64) and ``y`` (n,); scaling is fitted on the training part alone."""
    (x_train, y_train), (x_validation, y_validation), (x_test, y_test) = parts(x, y)
    scaler = StandardScaler().fit(x_train)
    return Data(
        scaler.transform(x_train),
        y_train,
        scaler.transform(x_validation),
        y_validation,
        scaler.transform(x_test),
        y_test,
    )


def run_on(load: Callable[[], Data], config: dict[str, Any]) -> dict[str, Any]:
    """Train on what ``load`` gives; objective and metadata as in ``run``."""
    data = load()
    model = MLPClassifier(
        hidden_layer_sizes=(config["units"],) * config["layers"],
        activation=config["activation"],
        solver=config["solver"],
        learning_rate_init=config["learning_rate"],
        momentum=config.get("momentum", 0.9),
        alpha=config["alpha"],
        batch_size=config["batch_size"],
        max_iter=_EPOCHS,
    )
    with warnings.catch_warnings():  # few epochs are meant, and divergence is an outcome
        warnings.simplefilter("ignore", ConvergenceWarning)
        warnings.simplefilter("ignore", RuntimeWarning)
        try:
            model.fit(data.x_train, data.y_train)
        except ValueError as error:
            if "non-finite" not in str(error):
                raise
            return _diverged(data)
    return {
        "objective": float(model.score(data.x_validation, data.y_validation)),
        "metadata": {
            "test_accuracy": float(model.score(data.x_test, data.y_test)),
            "epochs": int(model.n_iter_),
            "diverged": False,
        },
    }


def run(config: dict[str, Any]) -> dict[str, Any]:
    """{"objective": validation accuracy, "metadata": {"test_accuracy", "epochs", "diverged"}}."""
    return run_on(load_data, config)


def _diverged(data: Data) -> dict[str, Any]:
    """A network of NaN is worth what the most frequent label is worth."""
    guess = np.bincount(data.y_train).argmax()
    return {
        "objective": float(np.mean(data.y_validation == guess)),
        "metadata": {"test_accuracy": float(np.mean(data.y_test == guess)), "epochs": 0, "diverged": True},
    }
