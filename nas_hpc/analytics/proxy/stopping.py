"""When a proxy task has shown what it is worth, and which one is best."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

import numpy as np

from nas_hpc.analytics.proxy.correlation import Correlation
from nas_hpc.analytics.proxy.curves import Array


class Stop(str, Enum):
    """Why a proxy task ended; the texts are those of the state files of Vertex AI NAS, but for node-hours."""

    CORRELATION = "Met desired correlation"
    ACCURACY = "Met desired accuracy"
    TIME = "Exceeded training time limit"
    NODE_HOURS = "Exceeded node-hours limit"
    NOT_BEST = "Exceeded best training time"
    LATENCY = "Failed desired latency correlation"
    FAILED = "Proxy task job failed"
    COMPLETED = "Ran till completion"
    FAILURES = "Excess trial failures"


@dataclass(frozen=True, slots=True)
class Limits:
    """What ends a proxy task; None: does not."""

    correlation: float | None = 0.65
    accuracy: float | None = None
    hours: float | None = None
    """Of one training, the one with the median score."""
    best_hours: float | None = None
    """Of the best proxy task so far: one that needs as long cannot be better."""
    total_hours: float | None = None
    """Of all its trainings together."""
    best_total_hours: float | None = None
    """The same of the best proxy task so far."""
    p_value: float | None = None
    """The correlation counts only with a p-value that is so small or smaller."""


@dataclass(frozen=True, slots=True)
class Stopped:
    """Where a proxy task ended."""

    why: Stop
    hours: float
    """Of one training up to there."""
    step: int
    """Counted from 0."""
    at: int = field(default=-1, compare=False)
    """The place, among the steps, of the one that decided; what came later does not count."""
    total_hours: float = field(default=-1.0, compare=False)
    """Of all trainings together, up to there."""


def first_stop(found: Correlation, limits: Limits) -> Stopped | None:
    """The first step at which a limit is met; None: none is. At one step the correlation counts before the
    accuracy, before the hours.

    Where a desired value is passed between two steps, hours and step are those at which the straight line
    between them meets it; where the step before has no value, those of the step itself.
    """
    for at in range(len(found.steps)):
        for why, values, wanted in (
            (Stop.CORRELATION, found.tau, limits.correlation),
            (Stop.ACCURACY, found.median_score, limits.accuracy),
        ):
            if wanted is None or not values[at] >= wanted:  # never for not-a-number
                continue
            if why is Stop.CORRELATION and limits.p_value is not None and found.p_value[at] > limits.p_value:
                continue
            return _crossing(found, values, wanted, at, why)
        for why, hours, limit in (
            (Stop.TIME, found.median_hours, limits.hours),
            (Stop.NODE_HOURS, found.total_hours, limits.total_hours),
            (Stop.NOT_BEST, found.median_hours, limits.best_hours),
            (Stop.NOT_BEST, found.total_hours, limits.best_total_hours),
        ):
            if limit is not None and hours[at] >= limit:
                return _at(found, at, why)
    return None


def _at(found: Correlation, at: int, why: Stop) -> Stopped:
    return Stopped(
        why, float(found.median_hours[at]), int(found.steps[at]), at, total_hours=float(found.total_hours[at])
    )


def _crossing(found: Correlation, values: Array, wanted: float, at: int, why: Stop) -> Stopped:
    before = at - 1
    if at == 0 or not np.isfinite(values[before]) or not np.isfinite(found.median_hours[before]):
        return _at(found, at, why)
    if values[before] >= wanted:  # it was there before, and only now its p-value is small enough
        return _at(found, at, why)
    share = (wanted - values[before]) / (values[at] - values[before])
    hours, total, step = (
        float(line[before] + share * (line[at] - line[before]))
        for line in (found.median_hours, found.total_hours, found.steps)
    )
    return Stopped(why, hours, int(step + 1e-9), at, total_hours=total)


def best_task(tasks: Mapping[str, Stopped]) -> str:
    """The name of the cheapest task that met the desired correlation or accuracy, the first of several; ""
    if none did."""
    best, least = "", math.inf
    for name, stopped in tasks.items():
        if stopped.why in (Stop.CORRELATION, Stop.ACCURACY) and stopped.hours < least:
            best, least = name, stopped.hours
    return best
