"""Validation scores over the steps of a training, as trials leave them in their directories."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Steps = npt.NDArray[np.int64]

METRICS_FILE = "TRIAL_TRAINING_METRICS.json"
"""Name and keys are those of the proxy-task tools of Vertex AI NAS."""
_COMPLETE = 100.0 - 1e-6


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
    """What the trial of ``directory`` recorded; None if there is no file of it that can be understood."""
    try:
        content = json.loads((directory / METRICS_FILE).read_bytes())
        return _curve(content)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def read_curves(directory: Path) -> dict[str, Curve]:
    """The curves of the trials in ``directory``, by the names of theirs; numbers in their order."""
    try:
        names = sorted((entry.name for entry in directory.iterdir() if entry.is_dir()), key=_in_order)
    except OSError:
        return {}
    found = ((name, read_curve(directory / name)) for name in names)
    return {name: curve for name, curve in found if curve is not None}


def _in_order(name: str) -> tuple[bool, int, str]:
    return (False, int(name), name) if name.isascii() and name.isdigit() else (True, 0, name)


def _curve(content: Mapping[str, Any]) -> Curve:
    """Points that are no numbers or go back are left out."""
    time = content.get("training_time", {})
    points: list[tuple[int, float, float]] = []
    for point in content.get("training_accuracy_over_steps", []):
        step, pct = int(point["training_step"]), float(point["training_step_pct"])
        score = point["accuracy"]
        if math.isfinite(pct) and (not points or (step > points[-1][0] and pct > points[-1][1])):
            points.append((step, pct, math.nan if score is None else float(score)))
    steps, pcts, scores = zip(*points, strict=True) if points else ((), (), ())
    latency = content.get("latency")
    known = isinstance(latency, int | float) and math.isfinite(latency) and latency >= 0
    accuracies = np.array(scores, dtype=np.float64)
    return Curve(
        np.array(steps, dtype=np.int64),
        np.array(pcts, dtype=np.float64),
        np.where(np.isfinite(accuracies), accuracies, math.nan),
        int(time.get("total_training_steps", 0)),
        float(time.get("total_training_time_in_secs", 0.0)),
        float(latency) if known and latency is not None else None,
    )
