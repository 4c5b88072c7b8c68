"""Keras's losses and metrics by name, and the targets that a loss takes; known without loading Keras."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nas_hpc.errors import WrongCall
from nas_hpc.loading import close_names


def snake_case(name: str) -> str:
    """Keras's name of its class ``name``."""
    words = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub("([a-z])([A-Z])", r"\1_\2", words).lower()


_KINDS = {
    "classes": ("sparse_categorical_crossentropy", "SparseCategoricalCrossentropy"),
    "shares": (
        "categorical_crossentropy", "CategoricalCrossentropy", "categorical_focal_crossentropy",
        "CategoricalFocalCrossentropy", "categorical_hinge", "CategoricalHinge",
    ),
    "unit": (
        "binary_crossentropy", "BinaryCrossentropy", "bce", "BCE", "binary_focal_crossentropy",
        "BinaryFocalCrossentropy", "dice", "Dice", "tversky", "Tversky", "kl_divergence", "KLDivergence",
        "kld", "KLD",
    ),
    "counts": ("poisson", "Poisson"),
    "signs": ("hinge", "Hinge", "squared_hinge", "SquaredHinge"),
    "logarithm": ("mean_squared_logarithmic_error", "MeanSquaredLogarithmicError", "msle", "MSLE"),
    "any": (
        "mean_squared_error", "MeanSquaredError", "mse", "MSE", "mean_absolute_error",
        "MeanAbsoluteError", "mae", "MAE", "mean_absolute_percentage_error",
        "MeanAbsolutePercentageError", "mape", "MAPE", "log_cosh", "LogCosh", "huber", "Huber",
        "cosine_similarity", "CosineSimilarity", "circle", "Circle", "ctc", "CTC",
    ),
}  # fmt: skip
LOSSES = {name: kind for kind, names in _KINDS.items() for name in names}
"""Name -> kind of its targets."""
_CLASSES = (
    "AUC", "Accuracy", "BinaryAccuracy", "BinaryCrossentropy", "CategoricalAccuracy",
    "CategoricalCrossentropy", "CategoricalHinge", "ConcordanceCorrelation", "CosineSimilarity",
    "F1Score", "FBetaScore", "FalseNegatives", "FalsePositives", "Hinge", "KLDivergence", "LogCoshError",
    "MeanAbsoluteError", "MeanAbsolutePercentageError", "MeanSquaredError", "MeanSquaredLogarithmicError",
    "PearsonCorrelation", "Poisson", "Precision", "R2Score", "Recall", "RootMeanSquaredError",
    "SparseCategoricalAccuracy", "SparseCategoricalCrossentropy", "SparseTopKCategoricalAccuracy",
    "SquaredHinge", "TopKCategoricalAccuracy", "TrueNegatives", "TruePositives",
)  # fmt: skip
_SHORT = ("BCE", "MAE", "MAPE", "MSE", "MSLE", "acc", "bce", "mae", "mape", "mse", "msle", "r2")
METRICS = frozenset([*_CLASSES, *_SHORT, *(snake_case(name) for name in _CLASSES)])
"""Those that are made without arguments; "acc" and "r2" are this package's words."""


def loss_name(loss: Any) -> str:
    """The name of a loss that is given as one, as Keras's function or as its object; else ""."""
    name = loss if isinstance(loss, str) else getattr(loss, "name", getattr(loss, "__name__", ""))
    return name if isinstance(name, str) else ""


def loss_kind(loss: Any) -> str:
    """What the targets of ``loss`` are: "classes" for numbers of classes, "shares" for one share a class,
    and so on; "any" for functions that are not Keras's."""
    return LOSSES.get(loss_name(loss), "any")


def check_losses(loss: Any) -> None:
    """Raise WrongCall if ``loss``, or one of several, is a name that Keras does not know."""
    for one in loss if isinstance(loss, list | tuple) else [loss]:
        if isinstance(one, str) and one not in LOSSES:
            raise WrongCall(f"loss {one!r} is none of Keras's{close_names(one, sorted(LOSSES))}")


def check_metrics(metrics: Sequence[Any]) -> None:
    """Raise WrongCall if one of ``metrics`` is a name that Keras does not know."""
    for one in metrics:
        if isinstance(one, str) and one not in METRICS:
            raise WrongCall(f"metrics: {one!r} is none of Keras's{close_names(one, sorted(METRICS))}")


def check_output(loss: Any, shape: tuple[int, ...]) -> None:
    """Raise WrongCall if no network with the output ``shape`` can be trained with ``loss``."""
    if loss_kind(loss) in ("classes", "shares") and shape[-1] < 2:
        raise WrongCall(
            f"loss {loss_name(loss)!r} is for two classes or more, and the output has the shape {shape}: "
            "give output_shape=(number of classes,), or binary_crossentropy"
        )


def check_targets(loss: Any, targets: NDArray[Any], classes: int, what: str) -> None:
    """Raise WrongCall, beginning with ``what``, for targets that ``loss`` cannot take.

    ``classes``: the last dimension of the network's output.
    """
    kind, name = loss_kind(loss), loss_name(loss)
    if kind == "classes":
        _check_classes(targets, classes, f"{what}: {name}")
    elif kind == "shares":
        _check_shares(targets, f"{what}: {name}")
    elif kind == "unit":
        _check_range(targets, 0.0, 1.0, f"{what}: {name} takes targets from 0 to 1")
    elif kind == "counts":
        _check_range(targets, 0.0, np.inf, f"{what}: {name} takes targets from 0 on")
    elif kind == "signs":
        _check_range(targets, -1.0, 1.0, f"{what}: {name} takes targets of -1 and 1")
    elif kind == "logarithm":
        _check_range(targets, np.nextafter(-1.0, 0.0), np.inf, f"{what}: {name} takes targets above -1")


def _check_classes(targets: NDArray[Any], classes: int, what: str) -> None:
    wrong = targets[targets != np.round(targets)]
    if wrong.size:
        raise WrongCall(
            f"{what} takes numbers of classes, and a label is {wrong.flat[0]}: give whole numbers"
        )
    wrong = targets[(targets < 0) | (targets >= classes)]
    if wrong.size:
        raise WrongCall(
            f"{what} is for {classes} classes, and a label is {wrong.flat[0]:.0f}: give labels from 0 to "
            f"{classes - 1}, or another output_shape"
        )


def _check_shares(targets: NDArray[Any], what: str) -> None:
    if targets.shape[-1] < 2:
        raise WrongCall(
            f"{what} takes a number for each class, and the targets have the shape {targets.shape}: "
            "give one-hot targets, or the loss sparse_categorical_crossentropy"
        )
    _check_range(targets, 0.0, 1.0, f"{what} takes targets from 0 to 1")
    sums = targets.sum(axis=-1)
    wrong = sums[np.abs(sums - 1.0) > 1e-3]
    if wrong.size:
        raise WrongCall(f"{what} takes targets whose sum is 1, and one has the sum {wrong.flat[0]:g}")


def _check_range(targets: NDArray[Any], least: float, most: float, what: str) -> None:
    wrong = targets[(targets < least) | (targets > most)]
    if wrong.size:
        raise WrongCall(f"{what}, and one is {wrong.flat[0]:g}")
