"""How much the score of one model varies when it is trained again, and how smooth its curves are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nas_hpc.analytics.proxy.curves import Array, Curve

VARIANCE_THRESHOLD = 0.4
SMOOTHNESS_THRESHOLD = 10.0
_SECTIONS = (0.0, 0.7, 0.9, 1.0)
"""Of the training; each is looked at in as many places: towards the end it matters more."""
_PLACES = 10
ADVICE = (
    "let the learning rate decay along a cosine to nearly zero at the last step",
    "average the weights: exponential moving average (EMA) or stochastic weight averaging (SWA)",
    "clip gradients, or begin with a lower learning rate, where scores are not finite",
    "take a smaller batch where trainings run out of memory",
)
"""What makes curves calmer, most effective first."""


@dataclass(frozen=True, slots=True)
class Judged:
    """A measure and what it means."""

    value: float | None
    """None: it cannot be computed."""
    good: bool
    info: str
    """One line."""


@dataclass(frozen=True, slots=True)
class Variance:
    """Of copies of one training."""

    variance: Judged
    """Coefficient of variation of the last scores."""
    smoothness: Judged
    """Mean over the copies."""
    advice: tuple[str, ...]
    """What to do; empty if both are good."""


def variation(scores: Array) -> float:
    """The coefficient of variation of ``scores``, shape (n,): standard deviation (of the population) over
    mean. Not-a-number for fewer than two, a mean that is not above 0, and scores that are not finite.
    """
    if len(scores) < 2 or not np.isfinite(scores).all() or not np.mean(scores) > 0.0:
        return math.nan
    return float(np.std(scores) / np.mean(scores))


def smoothness(pcts: Array, scores: Array) -> float:
    """How much a curve goes down, shape (n,) each: both axes scaled to [0, 1], the slopes of the straight
    lines between points taken at 30 places, ten in each of [0, 0.7), [0.7, 0.9) and [0.9, 1), the negative
    ones added up. 0 is a curve that only rises. Not-a-number for a curve that is constant, has fewer than two
    points, or scores that are not finite.
    """
    x, y = np.asarray(pcts, dtype=np.float32), np.asarray(scores, dtype=np.float32)
    if len(x) < 2 or not np.isfinite(y).all() or not np.ptp(y) > 0.0 or not (np.diff(x) > 0.0).all():
        return math.nan
    x, y = ((axis - axis.min()) / np.ptp(axis) for axis in (x, y))
    slopes = np.diff(y.astype(np.float64)) / np.diff(x.astype(np.float64))
    places = np.concatenate(
        [
            np.linspace(begin, end, _PLACES, endpoint=False)
            for begin, end in zip(_SECTIONS, _SECTIONS[1:], strict=False)
        ]
    )
    at = np.clip(np.searchsorted(x, places, side="right") - 1, 0, len(slopes) - 1)
    return float(abs(np.minimum(slopes[at], 0.0).sum()))


def judge(curves: Sequence[Curve | None], names: Sequence[str] = ()) -> Variance:
    """Judge copies of one training; None is a copy that left nothing. ``names``: theirs, else 1, 2, …

    A copy counts if it came to its end and is alive: its scores finite and not all the same. Fewer than two
    of them are no measure, and never good; copies that do not count are named.
    """
    counted = [curve for curve in curves if curve is not None and curve.complete and curve.alive]
    left_out = _left_out(curves, names or [str(number) for number in range(1, len(curves) + 1)])
    if len(counted) < 2:
        why = f"invalid: {len(counted)} of {len(curves)} copies can be used, 2 are the least{left_out}"
        return Variance(Judged(None, False, why), Judged(None, False, why), ADVICE)
    coefficient = variation(np.array([curve.final for curve in counted]))
    calm = float(np.mean([smoothness(curve.pcts, curve.scores) for curve in counted]))
    found = (
        _judged("variance", coefficient, VARIANCE_THRESHOLD, left_out),
        _judged("smoothness", calm, SMOOTHNESS_THRESHOLD, left_out),
    )
    return Variance(*found, () if all(one.good for one in found) else ADVICE)


def _judged(name: str, value: float, threshold: float, left_out: str) -> Judged:
    if not math.isfinite(value):
        return Judged(None, False, f"Model {name} is invalid: the scores' mean is not above 0{left_out}")
    if value > threshold:
        info = f"Model {name} is not good, measured:{value} > threshold:{threshold:g}{left_out}"
        return Judged(value, False, info)
    return Judged(value, True, f"Model {name} is good.{left_out}")


def _left_out(curves: Sequence[Curve | None], names: Sequence[str]) -> str:
    found = zip(names, curves, strict=True)
    reasons = [f"copy {name} {why}" for name, curve in found if (why := _why_not(curve))]
    return f" ({'; '.join(reasons)})" if reasons else ""


def _why_not(curve: Curve | None) -> str:
    if curve is None:
        return "left no scores"
    if not curve.complete:
        return f"ended at {curve.pcts[-1]:.4g} %" if len(curve.pcts) else "left no scores"
    if not np.isfinite(curve.scores).all():
        return "has scores that are not finite"
    if not curve.alive:
        return f"has the score {curve.final:g} from beginning to end"
    return ""
