"""Variance and correlation from directories of finished trials."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nas_hpc.analytics.proxy.correlation import (
    LEAST_MODELS,
    Aligned,
    Correlation,
    align,
    correlations,
    rank_correlation,
)
from nas_hpc.analytics.proxy.curves import METRICS_FILE, Array, Curve, read_curves
from nas_hpc.analytics.proxy.matching import pairs, place_of
from nas_hpc.analytics.proxy.thinning import spread
from nas_hpc.analytics.proxy.variance import Variance, judge
from nas_hpc.errors import WrongCall

_BELOW = ("", "nas/search", "nas/train")


@dataclass(frozen=True, slots=True)
class Copies:
    """Trainings of one model, by the names of their directories."""

    directory: Path
    curves: Mapping[str, Curve]
    measured: Variance

    def to_dict(self) -> dict[str, Any]:
        """With the keys of ``variance_and_smoothness.json``."""
        variance, smooth = self.measured.variance, self.measured.smoothness
        return {
            "directory": str(self.directory),
            "copies": len(self.curves),
            "variance_value": variance.value,
            "variance_info": variance.info,
            "smoothness_value": smooth.value,
            "smoothness_info": smooth.info,
            "good": variance.good and smooth.good,
            "advice": list(self.measured.advice),
        }


@dataclass(frozen=True, slots=True)
class Compared:
    """Cheap trainings of models beside full ones."""

    models: tuple[str, ...]
    """By the names of their full trainings' directories."""
    full: Array
    """Last scores of the full trainings, shape (models,)."""
    aligned: Aligned
    """Of the cheap ones."""
    over_steps: Correlation
    tau: float
    """Of the last scores; not-a-number: it cannot be computed."""
    p_value: float
    proxy: Array
    """Last scores of the cheap trainings, shape (models,)."""
    latency_tau: float
    latency_p_value: float
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Without not-a-number: what cannot be computed is null."""
        steps = [
            {
                "step": int(self.over_steps.steps[at]),
                "tau": _known(self.over_steps.tau[at]),
                "p_value": _known(self.over_steps.p_value[at]),
                "median_score": _known(self.over_steps.median_score[at]),
                "median_hours": _known(self.over_steps.median_hours[at]),
            }
            for at in range(len(self.over_steps.steps))
        ]
        pairs = [
            {"model": model, "full": _known(full), "proxy": _known(proxy)}
            for model, full, proxy in zip(self.models, self.full, self.proxy, strict=True)
        ]
        return {
            "tau": _known(self.tau),
            "p_value": _known(self.p_value),
            "latency_tau": _known(self.latency_tau),
            "latency_p_value": _known(self.latency_p_value),
            "models": pairs,
            "over_steps": steps,
            "notes": list(self.notes),
        }


def measure_copies(path: Path) -> Copies:
    """Judge the trainings in ``path``, copies of one model. Raises WrongCall if there are none."""
    directory, curves = _trials(path)
    return Copies(directory, _recorded(curves), judge(list(curves.values()), list(curves)))


def compare(proxy: Path, full: Path, *, interpolate: bool = False) -> Compared:
    """Compare the cheap trainings in ``proxy`` with the full ones in ``full``, of the same models.

    Which belong together: see ``matching.pairs``. Raises WrongCall if nothing does.
    """
    (proxy_directory, of_proxy), (full_directory, of_full) = _trials(proxy), _trials(full)
    cheap, whole = _recorded(of_proxy), _recorded(of_full)
    found = pairs(proxy_directory, cheap, full_directory, whole)
    if not found:
        raise WrongCall(
            f"no trial of {proxy_directory} ({_some(cheap)}) is one of {full_directory} ({_some(whole)}); "
            "give two directories of trainings of the same models"
        )
    models = tuple(one.model for one in found)
    chosen = [cheap[one.proxy] for one in found]
    complete = [whole[one.full] for one in found]
    finals = np.array([one.final for one in complete])
    aligned = align(chosen, interpolate=interpolate)
    last = np.array([one.final for one in chosen])
    tau, p_value = rank_correlation(last, finals)
    alone = [
        *_alone(proxy_directory, cheap, {one.proxy for one in found}),
        *_alone(full_directory, whole, {one.full for one in found}),
    ]
    notes = [*_notes(models, complete, alone, tau), *_of_scores(finals)]
    return Compared(
        models, finals, aligned, correlations(aligned, finals), tau, p_value, last,
        *rank_correlation(_latencies(chosen), _latencies(complete)), tuple(notes),
    )  # fmt: skip


def _trials(path: Path) -> tuple[Path, dict[str, Curve | None]]:
    if not path.is_dir():
        raise WrongCall(f"{path} is no directory; give one that holds the directories of trials")
    path = place_of(path)
    for below in _BELOW:
        curves = read_curves(path / below)
        if curves:
            return path / below, curves
    raise WrongCall(
        f"{path} holds no trials: no directory with a {METRICS_FILE} below it, nor below nas/search or "
        "nas/train; give the directory of a search of trials"
    )


def _recorded(curves: Mapping[str, Curve | None]) -> dict[str, Curve]:
    return {name: curve for name, curve in curves.items() if curve is not None}


def _alone(directory: Path, curves: Mapping[str, Curve], used: set[str]) -> list[str]:
    """``1, 4 of DIR``, if there are such trainings."""
    left = [name for name in curves if name not in used]
    return [f"{', '.join(left)} of {directory}"] if left else []


def _latencies(curves: list[Curve]) -> Array:
    return np.array([math.nan if one.latency is None else one.latency for one in curves])


def _notes(models: tuple[str, ...], complete: list[Curve], alone: list[str], tau: float) -> list[str]:
    notes = []
    unfinished = [name for name, one in zip(models, complete, strict=True) if not one.complete]
    if unfinished:
        notes.append(f"full trainings that did not come to their end: {', '.join(unfinished)}")
    if alone:
        notes.append(f"of one side only, and left out: {'; '.join(alone)}")
    if math.isnan(tau):
        why = (
            f"{len(models)} models, {LEAST_MODELS} are the least"
            if len(models) < LEAST_MODELS
            else "too few have both scores, or one of the scores is the same for all"
        )
        notes.append(f"no correlation of the last scores can be computed: {why}")
    return notes


def _of_scores(scores: Array) -> list[str]:
    said = spread(scores)
    return [f"full trainings: {said}"] if said else []


def _some(curves: Mapping[str, Curve]) -> str:
    names = list(curves)
    return ", ".join(names[:5]) + (", …" if len(names) > 5 else "")


def _known(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
