"""Rank correlation of the scores of cheap trainings with those of full ones, over the steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from nas_hpc.analytics.proxy.curves import Array, Curve, Steps

LEAST_MODELS = 5
LEAST_SHARE = 0.7
"""Of the models must have both scores."""


@dataclass(frozen=True, slots=True)
class Aligned:
    """Scores of several trainings at the same steps."""

    steps: Steps
    """Shape (s,), growing."""
    scores: Array
    """Shape (trainings, s); not-a-number where a training has none."""
    hours: Array
    """Of training up to there, or to its end where it ended before; the same shape."""


@dataclass(frozen=True, slots=True)
class Correlation:
    """Over the steps; all arrays have shape (s,), not-a-number where too few models have scores."""

    steps: Steps
    tau: Array
    p_value: Array
    median_score: Array
    median_hours: Array
    total_hours: Array
    """Of all trainings together, each up to there or to its end: at all steps."""


def rank_correlation(proxy: Array, full: Array) -> tuple[float, float]:
    """Kendall's tau-b of two scores of the same models, shape (n,) each, and its p-value.

    Both are not-a-number where the correlation cannot be computed: fewer than 5 models or fewer than 70 % of
    all have both scores, or one of the scores is the same for all.
    """
    both = np.isfinite(proxy) & np.isfinite(full)
    if _too_few(proxy, full):
        return math.nan, math.nan
    if not np.ptp(proxy[both]) > 0.0 or not np.ptp(full[both]) > 0.0:
        return math.nan, math.nan
    found = stats.kendalltau(proxy[both], full[both])
    return float(found.statistic), float(found.pvalue)


def align(curves: Sequence[Curve | None], *, interpolate: bool = False) -> Aligned:
    """The scores of ``curves`` at all steps at which one of them was validated.

    Trainings are meant to be validated at the same steps: one that was not at a step has no score there, or,
    with ``interpolate``, the one on the straight line between its validations before and after.
    """
    known = [curve for curve in curves if curve is not None and len(curve.steps)]
    steps = np.unique(np.concatenate([curve.steps for curve in known])) if known else np.empty(0, np.int64)
    scores = np.full((len(curves), len(steps)), math.nan)
    hours = np.full_like(scores, math.nan)
    for row, curve in enumerate(curves):
        if curve is None or not len(curve.steps):
            continue
        if interpolate:
            scores[row] = np.interp(steps, curve.steps, curve.scores, left=math.nan, right=math.nan)
        else:
            scores[row, np.searchsorted(steps, curve.steps)] = curve.scores
        hours[row] = [curve.hours_at(int(min(step, curve.steps[-1]))) for step in steps]
    return Aligned(steps, scores, hours)


def correlations(aligned: Aligned, full: Array) -> Correlation:
    """The correlation with the full trainings' scores ``full``, shape (trainings,), at each step, with the
    median of the scores there (the upper one of an even number) and the hours of the training that has it."""
    count = len(aligned.steps)
    tau, p_value, median, hours = (np.full(count, math.nan) for _ in range(4))
    for at in range(count):
        scores = aligned.scores[:, at]
        if _too_few(scores, full):
            continue
        tau[at], p_value[at] = rank_correlation(scores, full)
        finite = np.sort(scores[np.isfinite(scores)])
        median[at] = finite[len(finite) // 2]
        hours[at] = aligned.hours[int(np.flatnonzero(scores == median[at])[0]), at]
    return Correlation(aligned.steps, tau, p_value, median, hours, np.nansum(aligned.hours, axis=0))


def least_p_value(count: int) -> float:
    """The p-value of ``count`` models (2 or more) that are ranked alike: none is smaller."""
    return float(stats.kendalltau(np.arange(count), np.arange(count)).pvalue)


def possible(running: int, valid: int, total: int) -> bool:
    """Whether a correlation can still come about, with ``valid`` trainings that have scores or may yet get
    them among ``running`` of ``total``."""
    return running + valid >= max(LEAST_MODELS, math.ceil(LEAST_SHARE * total))


def _too_few(scores: Array, full: Array) -> bool:
    both = int((np.isfinite(scores) & np.isfinite(full)).sum())
    return both < LEAST_MODELS or both < LEAST_SHARE * len(full)
