"""The learning rate of each step of a training: pure functions of its number."""

from __future__ import annotations

import math
from collections.abc import Callable

from nas_hpc.nas.settings import Training

Schedule = Callable[[int], float]
"""From the number of steps done to the learning rate of the next one."""


def schedule_of(training: Training, steps_per_epoch: int) -> Schedule:
    """The schedule of ``training``, whose epochs have so many steps.

    During the warm-up the rate rises in a straight line and reaches ``learning_rate`` with the warm-up's last
    step; it is never 0, for a step at 0 would be one for nothing (Goyal et al. 2017). The cosine falls from
    there to 0 at the end of the last epoch (Loshchilov and Hutter 2017, without restarts).
    """
    highest = training.learning_rate
    warm = round(training.warmup_epochs * steps_per_epoch)
    rest = max(1, training.num_epochs * steps_per_epoch - warm)
    falls = training.schedule == "cosine"

    def rate(step: int) -> float:
        if step < warm:
            return highest * (step + 1) / warm
        if not falls:
            return highest
        return highest * 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warm) / rest)))

    return rate
