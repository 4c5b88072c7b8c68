"""Handwritten digits (real data, 8×8 pixels, from scikit-learn) by small convolutional networks.

The trainers beside this module train what the space describes: two convolutions, each with pooling, a dense
layer, and the output. Every trial begins with the import of this module, so it loads little: neither
ConfigSpace, before the space is asked for, nor scikit-learn.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nas_hpc.errors import WrongCall

if TYPE_CHECKING:
    from nas_hpc.problem import HpProblem
    from nas_hpc.trial import ProxyTaskConfig

Pair = tuple[NDArray[np.float32], NDArray[np.int64]]
"""Images (n, 8, 8, 1) and labels (n,) from 0 to 9."""
CLASSES = 10
ACTIVATIONS = ("relu", "tanh")
_TRAIN_SHARE, _VALIDATION_SHARE = 0.4, 0.3
"""Of each class; the rest is for tests that nothing was chosen by."""
_SPLIT_SEED = 20200101


def search_space() -> HpProblem:
    """Networks from a few hundred to some forty thousand parameters, and how fast they learn."""
    from nas_hpc.problem import HpProblem

    problem = HpProblem()
    problem.add_dim("filters_1", [2, 4, 8, 16])
    problem.add_dim("kernel_1", [1, 3, 5])
    problem.add_dim("filters_2", [4, 8, 16, 32])
    problem.add_dim("kernel_2", [1, 3, 5])
    problem.add_dim("units", [8, 16, 32, 64])
    problem.add_dim("activation", list(ACTIVATIONS))
    problem.add_dim("learning_rate", (5e-4, 3e-2, "log-uniform"))
    return problem


def proxy_tasks(baseline_args: Mapping[str, Any]) -> list[ProxyTaskConfig]:
    """Proxy tasks for ``nas-hpc search-proxy-task``: a quarter, half and three quarters of the training data,
    by the trainers' --share. How many steps of them are enough is found by the search itself."""
    from nas_hpc.trial import data_tasks

    return data_tasks(baseline_args, [25, 50, 75])


def __getattr__(name: str) -> Any:
    """``Problem`` is the search space."""
    if name == "Problem":
        return search_space()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def expand(parameters: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The layers of the network that ``parameters`` describe, from the input to the output.

    Raises WrongCall for an activation that the trainers do not have.
    """
    activation = parameters["activation"]
    if activation not in ACTIVATIONS:
        raise WrongCall(f"the activation is {activation!r}: give one of {', '.join(ACTIVATIONS)}")
    layers: list[dict[str, Any]] = []
    for number in (1, 2):
        filters, kernel = int(parameters[f"filters_{number}"]), int(parameters[f"kernel_{number}"])
        layers.append(
            {"layer": "convolution", "filters": filters, "kernel": kernel, "activation": activation}
        )
        layers.append({"layer": "pooling", "size": 2})
    layers.append({"layer": "dense", "units": int(parameters["units"]), "activation": activation})
    layers.append({"layer": "dense", "units": CLASSES, "activation": "softmax"})
    return layers


def load_data(share: float = 1.0, seed: int = 0) -> tuple[Pair, Pair]:
    """Training and validation; of the training data a ``share``, drawn with ``seed``, the same of each class.

    Raises WrongCall for a share that is none.
    """
    if not 0.0 < share <= 1.0:
        raise WrongCall(f"the share of the training data is {share}: give more than 0 and at most 1")
    x, y = _digits()
    of_class = np.random.default_rng(_SPLIT_SEED).permutation(len(y))
    train: list[NDArray[np.int64]] = []
    valid: list[NDArray[np.int64]] = []
    rng = np.random.default_rng(seed)
    for label in range(CLASSES):
        rows = of_class[y[of_class] == label]
        first, second = (round(part * len(rows)) for part in (_TRAIN_SHARE, _TRAIN_SHARE + _VALIDATION_SHARE))
        train.append(rng.permutation(rows[:first])[: math.ceil(share * first)])
        valid.append(rows[first:second])
    chosen, kept = np.sort(np.concatenate(train)), np.sort(np.concatenate(valid))
    return (x[chosen], y[chosen]), (x[kept], y[kept])


def _digits() -> Pair:
    """All of them; pixels are from 0 to 1. The file of scikit-learn is read without its import, which takes
    longer than a short training."""
    found = importlib.util.find_spec("sklearn")
    path = Path(found.origin or "").parent / "datasets" / "data" / "digits.csv.gz" if found else Path()
    if path.is_file():
        table = np.loadtxt(path, delimiter=",", dtype=np.float32)
        x, y = table[:, :-1], table[:, -1]
    else:
        from sklearn.datasets import load_digits

        x, y = load_digits(return_X_y=True)
    return (x / 16.0).reshape(-1, 8, 8, 1).astype(np.float32), y.astype(np.int64)


def count(text: str) -> int:
    """A number of epochs or validations on the command line: 1 or more."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not allowed; give 1 or more")
    return number


def learning_rate(highest: float, step: int, steps: int) -> float:
    """That of ``step`` of ``steps``: it falls with the cosine, to 0 at the end."""
    return highest * 0.5 * (1.0 + math.cos(math.pi * min(1.0, step / max(1, steps))))
