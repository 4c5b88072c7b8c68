"""How far a training has come, and what follows from its history: no arrays, no Keras."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from nas_hpc.errors import WrongCall
from nas_hpc.loading import close_names
from nas_hpc.nas.objective import Objective
from nas_hpc.nas.problem import NaProblem
from nas_hpc.nas.settings import Training

_SMALLER_IS_BETTER = (
    "loss", "error", "mse", "mae", "mape", "msle", "rmse", "crossentropy", "divergence", "poisson", "hinge",
    "logcosh", "huber",
)  # fmt: skip


@dataclass(slots=True)
class Progress:
    """Where a training stands; with its network's and optimizer's numbers it can go on from there."""

    epoch: int = 0
    """Epochs that are done."""
    step: int = 0
    """Steps of the next one that are done."""
    loss_sum: float = 0.0
    """Of the examples of these steps."""
    trained: dict[str, float] = field(default_factory=dict)
    """What the next epoch's training gave, if only its validation is left."""
    history: dict[str, list[float]] = field(default_factory=dict)
    """By Keras's names, a number for each epoch that is done."""
    train_s: float = 0.0
    """Spent on training, earlier attempts included."""
    epoch_s: float = 0.0
    """What the last epoch took."""

    def add_epoch(self, values: Mapping[str, float]) -> None:
        """Note the history's values of an epoch, which is done."""
        for name, value in values.items():
            self.history.setdefault(name, []).append(value)
        self.epoch += 1
        self.step, self.loss_sum, self.trained = 0, 0.0, {}

    def to_json(self) -> dict[str, Any]:
        """What ``Progress(**body)`` takes back."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Monitor:
    """A series of the history, and which of its values are better."""

    name: str
    sign: int
    """1: higher is better, -1: lower is."""

    def best_epoch(self, history: Mapping[str, Sequence[float]]) -> int:
        """The first epoch with the best value, counted from 1; 0: there is none."""
        best, found = -math.inf, 0
        for number, value in enumerate(history.get(self.name, ()), 1):
            if self.sign * value > best:
                best, found = self.sign * value, number
        return found

    def waited(self, history: Mapping[str, Sequence[float]], min_delta: float) -> int:
        """Epochs since the last one that was better than all before it by more than ``min_delta``."""
        best, epochs = -math.inf, 0
        for value in history.get(self.name, ()):
            if self.sign * value > best + min_delta:
                best, epochs = self.sign * value, 0
            else:
                epochs += 1
        return epochs


def best_monitor(problem: NaProblem) -> Monitor | None:
    """What decides which epoch is the best one; None: the last epoch is what counts."""
    objective = problem.the_objective
    if not isinstance(objective, Objective) or objective.kind == "last":
        return None
    return Monitor(objective.name, 1 if objective.kind == "max" else -1)


def early_monitor(problem: NaProblem) -> Monitor:
    """What early stopping looks at. Raises WrongCall for a ``monitor`` that is none of the problem's."""
    training, objective = problem.training, problem.the_objective
    named = objective.name if isinstance(objective, Objective) else "val_loss"
    name = training.monitor or named
    if not isinstance(problem.loss_function, (list, tuple)):
        known = ["loss", *problem.metric_names]
        if name.removeprefix("val_") not in known:
            near = close_names(name, [*known, *(f"val_{one}" for one in known)])
            raise WrongCall(f"hyperparameters: monitor={name!r} names no metric of the problem{near}")
    return Monitor(name, _sign(training, name, objective))


def _sign(training: Training, name: str, objective: Any) -> int:
    if training.mode != "auto":
        return 1 if training.mode == "max" else -1
    if isinstance(objective, Objective) and name == objective.name:
        return -1 if objective.text.startswith("-") else 1
    return -1 if any(word in name.lower() for word in _SMALLER_IS_BETTER) else 1


def why_stop(progress: Progress, training: Training, early: Monitor) -> str:
    """Why no further epoch begins: "epochs" (all are done), "early", "time"; or ""."""
    if progress.epoch >= training.num_epochs:
        return "epochs"
    if progress.epoch == 0:
        return ""
    if training.patience and early.waited(progress.history, training.min_delta) >= training.patience:
        return "early"
    if training.time_limit_s and progress.train_s + progress.epoch_s > training.time_limit_s:
        return "time"
    return ""
