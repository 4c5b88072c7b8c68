"""How the networks of a problem are trained: what ``NaProblem.hyperparameters`` says, checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from nas_hpc.errors import WrongCall
from nas_hpc.loading import close_names
from nas_hpc.nas.parallel.wrapped import refuse_wrapped

OPTIMIZERS = ("sgd", "momentum", "rmsprop", "adam", "adamw", "adagrad", "adadelta", "adamax", "nadam")
SCHEDULES = ("constant", "cosine")
SCALINGS = ("linear", "sqrt", "none")
_EARLY = {"monitor": "monitor", "patience": "patience", "min_delta": "min_delta", "mode": "mode"}


@dataclass(frozen=True)
class Training:
    """The settings of one training. Raises WrongCall for a value that is none."""

    batch_size: int = 32
    num_epochs: int = 10
    """At most."""
    optimizer: str = "adam"
    learning_rate: float = 1e-3
    """The highest one of a schedule."""
    schedule: str = "constant"
    """What the learning rate does after its warm-up: constant, or cosine: down to 0 at the last epoch."""
    warmup_epochs: float = 0.0
    """It rises from 0 so long, in a straight line."""
    scaling: str = "linear"
    """What ``learning_rate`` is multiplied by where a network is trained on several ranks, whose batches are
    together so many times as large: linear: their number, sqrt: its root, none: 1."""
    clip_norm: float = 0.0
    """Gradients whose global norm is larger are shortened to it; 0: never."""
    patience: int = 0
    """Epochs without a better ``monitor`` after which the training stops early; 0: never."""
    monitor: str = ""
    """What early stopping looks at; default: what the objective is of."""
    mode: str = "auto"
    """Whether ``monitor`` is better when it is higher: max, min, or auto: by its name."""
    min_delta: float = 0.0
    """Smaller changes of ``monitor`` are none."""
    time_limit_s: float = 0.0
    """No epoch begins that would end later than so many seconds after the training's start; 0: no limit."""
    tensorboard: bool = False
    """Whether to write TensorBoard's events."""
    checkpoint_s: float = 60.0
    """A checkpoint is written at the end of an epoch, and within a long one, if the last is older than so
    many seconds; 0: after every epoch. When a training is asked to end it writes one in any case."""

    def __post_init__(self) -> None:
        refuse_wrapped(self.optimizer)
        for name, least, kind in (
            ("batch_size", 1, int), ("num_epochs", 1, int), ("patience", 0, int), ("learning_rate", 0, float),
            ("warmup_epochs", 0, float), ("clip_norm", 0, float), ("min_delta", 0, float),
            ("time_limit_s", 0, float), ("checkpoint_s", 0, float),
        ):  # fmt: skip
            _check_number(name, getattr(self, name), least, kind)
        if not self.learning_rate > 0:
            raise WrongCall(f"hyperparameters: learning_rate={self.learning_rate!r}: give a number above 0")
        for name, known in (
            ("optimizer", OPTIMIZERS), ("schedule", SCHEDULES), ("scaling", SCALINGS),
            ("mode", ("auto", "max", "min")),
        ):  # fmt: skip
            if getattr(self, name) not in known:
                raise WrongCall(
                    f"hyperparameters: {name}={getattr(self, name)!r}: give one of {', '.join(known)}"
                )


def training_of(given: Mapping[str, Any], begun: Training | None = None) -> Training:
    """The settings ``given``, the others as in ``begun``; and DeepHyper's ``callbacks``.

    Raises WrongCall.
    """
    values = dict(given)
    callbacks = values.pop("callbacks", None) or {}
    for name, arguments in callbacks.items():
        if name != "EarlyStopping":
            raise WrongCall(f"hyperparameters: the callback {name!r} is unknown: give EarlyStopping, or none")
        for argument, value in arguments.items():
            if argument in _EARLY:
                values.setdefault(_EARLY[argument], value)
            elif argument != "verbose":
                raise WrongCall(
                    f"hyperparameters: EarlyStopping has no {argument!r}: give {', '.join(_EARLY)}"
                )
    known = [one.name for one in fields(Training)]
    for name in values:
        if name not in known:
            near = close_names(name, known) or f": have {', '.join(known)}"
            raise WrongCall(f"hyperparameters: unknown {name!r}{near}")
    return replace(begun or Training(), **values)


def _check_number(name: str, value: Any, least: float, kind: type) -> None:
    whole = kind is int
    if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)) or not value >= least:
        what = "whole number" if whole else "number"
        raise WrongCall(f"hyperparameters: {name}={value!r}: give a {what} from {least} on")
