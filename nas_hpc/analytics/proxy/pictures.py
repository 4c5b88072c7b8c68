"""Pictures of trainings: curves of copies, a round's models, cheap scores beside full ones. PNG files."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nas_hpc.analytics.figures import BEST, MUTED, STYLE
from nas_hpc.analytics.proxy.correlation import Correlation
from nas_hpc.analytics.proxy.curves import Array, Curve
from nas_hpc.analytics.proxy.thinning import Kept
from nas_hpc.files import replace_file


def draw_curves(curves: Mapping[str, Curve], path: Path, title: str) -> None:
    """The scores of copies of one training, over the share that is trained."""
    figure, axes = _axes("% of the training", "score", title)
    for name, curve in curves.items():
        axes.plot(curve.pcts, curve.scores, marker="o", markersize=3, linewidth=1.5, label=name)
    axes.legend(fontsize=9)
    _write(figure, path)


def draw_round(accuracy: Array, latency: Array | None, found: Kept, path: Path) -> None:
    """A round's models: blue circles are kept, red crosses removed; those without a score are not drawn."""
    figure, axes = _axes("accuracy", "latency" if latency is not None else "", "Filtered trial scores")
    heights = latency if latency is not None else np.zeros_like(accuracy)
    for which, style, label in ((found.kept, "bo", "kept"), (found.removed, "rx", "removed")):
        places = list(which)
        axes.plot(accuracy[places], heights[places], style, label=label)
    if latency is None:
        axes.set_yticks([])
    axes.legend(fontsize=9)
    _write(figure, path)


def draw_pairs(
    full: Array,
    proxy: Array,
    tau: float,
    path: Path,
    models: tuple[str, ...] = (),
    *,
    what: str = "score",
) -> None:
    """Each model's cheap score (or ``what`` it is) over its full one; the rank correlation in the title."""
    said = f"{tau:.2f}" if math.isfinite(tau) else "not computable"
    figure, axes = _axes(
        f"{what} of the full training", f"{what} of the proxy task", f"Correlation-score {said}"
    )
    axes.plot(full, proxy, "o", color=BEST)
    for name, x, y in zip(models, full, proxy, strict=False):
        if math.isfinite(x) and math.isfinite(y):
            axes.annotate(name, (x, y), textcoords="offset points", xytext=(4, 4), fontsize=8, color=MUTED)
    _write(figure, path)


def draw_correlation(found: Correlation, path: Path, *, hours: bool = False) -> None:
    """The rank correlation over the training steps, or over the hours of the median training."""
    x = found.median_hours if hours else found.steps.astype(np.float64)
    _draw_line(x, found.tau, "hours of training" if hours else "training steps", "rank correlation", path)


def draw_median(found: Correlation, path: Path, *, hours: bool = False) -> None:
    """The median score over the training steps, or over the hours of the median training."""
    x = found.median_hours if hours else found.steps.astype(np.float64)
    _draw_line(
        x, found.median_score, "hours of training" if hours else "training steps", "median score", path
    )


def _draw_line(x: Array, y: Array, xlabel: str, ylabel: str, path: Path) -> None:
    figure, axes = _axes(xlabel, ylabel, "")
    known = np.isfinite(x) & np.isfinite(y)
    axes.plot(x[known], y[known], marker="o", markersize=3, color=BEST)
    _write(figure, path)


def _axes(xlabel: str, ylabel: str, title: str) -> tuple[Figure, Axes]:
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.0, 4.2), layout="constrained")
        axes = figure.add_subplot()
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.set_title(title)
    axes.set_axisbelow(True)
    return figure, axes


def _write(figure: Figure, path: Path) -> None:
    buffer = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(buffer, format="png", dpi=110)
    replace_file(path, buffer.getvalue(), mode=0o644)
