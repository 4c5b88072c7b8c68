"""Validation scores over the steps of a training, as trials leave them in their directories."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nas_hpc.trial.proxy import TRAINING_FILE, read_training

Array = npt.NDArray[np.float64]
Steps = npt.NDArray[np.int64]

METRICS_FILE = TRAINING_FILE
_COMPLETE = 100.0 - 1e-6
ENOUGH_POINTS = 10
"""With fewer validations of a training its curve says little."""


@dataclass(frozen=True, slots=True)
class Curve:
    """One training. ``steps``, ``pcts`` and ``scores`` have one element for each validation, shape (n,)."""

    steps: Steps
    """The last step before the validation, counted from 0; growing."""
    pcts: Array
    """So much of the training was done then, in percent."""
    scores: Array
    """Not-a-number where the validation gave no finite score."""
    trained_steps: int = 0
    trained_s: float = 0.0
    """Training time, without validation."""
    latency: float | None = None
    """Of the trained model; None: not measured."""

    @property
    def complete(self) -> bool:
        """Whether the training came to its end."""
        return len(self.pcts) > 0 and bool(self.pcts[-1] >= _COMPLETE)

    @property
    def final(self) -> float:
        """The last score; not-a-number if there is none."""
        return float(self.scores[-1]) if len(self.scores) else math.nan

    @property
    def alive(self) -> bool:
        """Whether all scores are finite and they are not all the same."""
        scores = self.scores
        return len(scores) > 1 and bool(np.isfinite(scores).all()) and bool(np.ptp(scores) > 0.0)

    def score_at(self, pct: float) -> float:
        """The score when ``pct`` percent were trained, on straight lines between validations and from 0 at
        the begin; not-a-number where the training has not come so far."""
        if not len(self.pcts) or self.pcts[-1] < pct:
            return math.nan
        return float(np.interp(pct, np.append(0.0, self.pcts), np.append(0.0, self.scores)))

    def hours_at(self, step: int) -> float:
        """Hours of training up to ``step``, at the mean time of a step."""
        return self.trained_s / self.trained_steps * step / 3600.0 if self.trained_steps else math.nan


def read_curve(directory: Path) -> Curve | None:
    """What the trial of ``directory`` recorded; None if it recorded nothing that can be understood."""
    record = read_training(directory)
    return _curve(record) if record["training_accuracy_over_steps"] or record["latency"] >= 0 else None


def few_points(curves: Iterable[Curve | None], why: str) -> str:
    """A warning in one line if a whole training has fewer than ten validations; "" if all have more, or
    nothing is known. ``why``: what more of them would show."""
    least = min((len(one.pcts) for one in curves if one is not None and one.complete), default=ENOUGH_POINTS)
    if least >= ENOUGH_POINTS:
        return ""
    times = "1 validation" if least == 1 else f"{least} validations"
    return f"{times} in a training: {ENOUGH_POINTS} or more show {why}"


def read_curves(directory: Path) -> dict[str, Curve | None]:
    """The curves of the trials in ``directory``, by the names of theirs, numbers in their order; None for a
    number that recorded nothing. Empty if nothing is recorded."""
    try:
        names = sorted((entry.name for entry in directory.iterdir() if entry.is_dir()), key=_in_order)
    except OSError:
        return {}
    found = {name: read_curve(directory / name) for name in names}
    if all(curve is None for curve in found.values()):
        return {}
    return {name: curve for name, curve in found.items() if curve is not None or _is_number(name)}


def _in_order(name: str) -> tuple[bool, int, str]:
    return (False, int(name), name) if _is_number(name) else (True, 0, name)


def _is_number(name: str) -> bool:
    return name.isascii() and name.isdigit()


def _curve(record: Mapping[str, Any]) -> Curve:
    """Points that go back are left out."""
    points: list[tuple[int, float, float]] = []
    for point in record["training_accuracy_over_steps"]:
        step, pct, score = point["training_step"], point["training_step_pct"], point["accuracy"]
        if not points or (step > points[-1][0] and pct > points[-1][1]):
            points.append((step, pct, math.nan if score is None else score))
    steps, pcts, scores = zip(*points, strict=True) if points else ((), (), ())
    time = record["training_time"]
    return Curve(
        np.array(steps, dtype=np.int64),
        np.array(pcts, dtype=np.float64),
        np.array(scores, dtype=np.float64),
        time["total_training_steps"],
        time["total_training_time_in_secs"],
        record["latency"] if record["latency"] >= 0 else None,
    )
