"""The learning rate of each step of a training: pure functions of its number."""

from __future__ import annotations

import math
from collections.abc import Callable

from nas_hpc.nas.settings import Training

Schedule = Callable[[int], float]
"""From the number of steps done to the learning rate of the next one."""
_WARMUP_EPOCHS, _WARMUP_SHARE = 5.0, 0.25
"""On several ranks, where the problem has no warm-up: of so many epochs, at most that share of all."""


def schedule_of(training: Training, steps_per_epoch: int, ranks: int = 1) -> Schedule:
    """The schedule of ``training`` on so many ranks, whose epochs have so many steps.

    During the warm-up the rate rises in a straight line and reaches ``learning_rate`` with the warm-up's last
    step; it is never 0, for a step at 0 would be one for nothing (Goyal et al. 2017). The cosine falls from
    there to 0 at the end of the last epoch (Loshchilov and Hutter 2017, without restarts).

    On several ranks a step is of so many times as many examples, and the highest rate is ``learning_rate``
    multiplied as ``scaling`` says: by their number (Goyal et al. 2017), or its root (Krizhevsky 2014). Where
    the problem has no warm-up the rate then rises from ``learning_rate`` itself, over the first five epochs
    or a quarter of all ("gradual warmup" there).
    """
    highest = training.learning_rate * rate_factor(training, ranks)
    epochs, lowest = training.warmup_epochs, 0.0
    if not epochs and highest > training.learning_rate:
        epochs = min(_WARMUP_EPOCHS, _WARMUP_SHARE * training.num_epochs)
        lowest = training.learning_rate
    warm = round(epochs * steps_per_epoch)
    rest = max(1, training.num_epochs * steps_per_epoch - warm)
    falls = training.schedule == "cosine"

    def rate(step: int) -> float:
        if step < warm:
            return lowest + (highest - lowest) * (step + 1) / warm
        if not falls:
            return highest
        return highest * 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warm) / rest)))

    return rate


def rate_factor(training: Training, ranks: int) -> float:
    """What ``learning_rate`` is multiplied by on so many ranks."""
    return {"linear": float(ranks), "sqrt": math.sqrt(ranks), "none": 1.0}[training.scaling]
