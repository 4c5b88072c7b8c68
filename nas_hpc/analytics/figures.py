"""Figures of a search as SVG text, to stand inside a page."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from nas_hpc.analytics.utilization import Array, Utilization

INK, MUTED, GRID = "#1c2733", "#6b7a89", "#e3e8ee"
BEST, POINT, BUSY, CAPACITY = "#1f5fbf", "#8fb2e3", "#2a9d78", "#c2571a"
STYLE: Any = {
    "svg.fonttype": "none",  # text stays text, in the page's font
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": GRID,
    "axes.labelcolor": MUTED,
    "axes.grid": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "legend.frameon": False,
}
BINS = 600
RASTER_ABOVE = 2000
"""More points than this are drawn as one picture inside the SVG, which keeps it small."""


@dataclass(frozen=True, slots=True)
class Scale:
    """A unit of time for an axis."""

    unit: str
    seconds: float

    @classmethod
    def of(cls, duration_s: float) -> Scale:
        """The unit in which ``duration_s`` is a number of at least about two."""
        if duration_s >= 2 * 86400:
            return cls("days", 86400.0)
        if duration_s >= 2 * 3600:
            return cls("hours", 3600.0)
        return cls("minutes", 60.0) if duration_s >= 180 else cls("seconds", 1.0)


def best_so_far(last: pd.DataFrame, origin: float) -> pd.DataFrame:
    """Columns ``elapsed_s``, ``objective``, ``best`` of the successful evaluations, by time of their ends."""
    done = last[(last["status"] == "ok") & last["objective"].notna()].sort_values("end", kind="stable")
    elapsed = (done["end"] - origin).clip(lower=0.0)
    return pd.DataFrame(
        {"elapsed_s": elapsed, "objective": done["objective"], "best": done["objective"].cummax()}
    ).reset_index(drop=True)


def best_figure(last: pd.DataFrame, used: Utilization) -> str:
    """Objectives over time, and the best so far as a step line."""
    course = best_so_far(last, used.start)
    scale = Scale.of(used.end - used.start)
    times = course["elapsed_s"].to_numpy() / scale.seconds
    figure, axes = _axes(scale, used.end - used.start, "objective")
    axes.scatter(
        times, course["objective"], s=16, color=POINT, alpha=0.85, linewidths=0, label="an evaluation",
        rasterized=len(course) > RASTER_ABOVE, zorder=2,
    )  # fmt: skip
    ends = np.append(times, (used.end - used.start) / scale.seconds)
    best = np.append(course["best"], course["best"].iloc[-1])
    axes.step(ends, best, where="post", color=BEST, linewidth=2, label="best so far", zorder=3)
    _limit(axes, course["objective"].to_numpy(dtype=np.float64))
    return _svg(figure, axes, "Objective of each evaluation and best so far, over time")


def running_figure(used: Utilization) -> str:
    """Evaluations running at once, as a filled area, under the slots on offer."""
    length = used.end - used.start
    scale = Scale.of(length)
    figure, axes = _axes(scale, length, "evaluations at once")
    running = (
        used.running if len(used.running.times) <= BINS else used.running.binned(used.start, used.end, BINS)
    )
    axes.fill_between(
        (running.times - used.start) / scale.seconds, running.values, step="post", color=BUSY, alpha=0.35,
        linewidth=0, label="running",
    )  # fmt: skip
    inside = used.capacity.times[(used.capacity.times > used.start) & (used.capacity.times < used.end)]
    grid = np.concatenate([[used.start], inside, [used.end]])
    slots = used.capacity.at(grid)
    slots[-1] = slots[-2]
    label = "evaluator slots" if used.capacity_known else "most at once (slots unknown)"
    axes.step(
        (grid - used.start) / scale.seconds, slots, where="post", color=CAPACITY, linewidth=2, label=label
    )
    axes.set_ylim(bottom=0, top=max(1.0, float(slots.max()), float(running.values.max())) * 1.12)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    return _svg(figure, axes, "Running evaluations and evaluator slots over time")


def training_figure(history: Mapping[str, Sequence[float]]) -> str:
    """A training by epochs: beside each other the loss and the first metric, on training and validation
    data. ``history`` has lists as Keras names them: loss, val_loss, accuracy, …; not all need be there."""
    names = dict.fromkeys(name.removeprefix("val_") for name in history)
    shown = [name for name in ("loss", *[name for name in names if name != "loss"]) if name in names][:2]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.2, 2.8), layout="constrained")
        places = figure.subplots(1, len(shown), squeeze=False)[0]
    for axes, name in zip(places, shown, strict=True):
        for key, label, color in (
            (name, "training", POINT), (f"val_{name}", "validation", BEST),
        ):  # fmt: skip
            if key in history:
                epochs = np.arange(1, len(history[key]) + 1)
                axes.plot(epochs, history[key], color=color, linewidth=2, label=label)
        axes.set_xlabel("epoch")
        axes.set_ylabel(name)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
    return _svg(figure, places[0], "The best architecture's training by epochs")


def _axes(scale: Scale, length_s: float, ylabel: str) -> tuple[Figure, Axes]:
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.2, 3.1), layout="constrained")
        axes = figure.add_subplot()
    axes.set_xlabel(f"{scale.unit} since the first dispatch")
    axes.set_ylabel(ylabel)
    axes.set_axisbelow(True)
    axes.set_xlim(0, max(length_s, 1e-3) / scale.seconds * 1.01)
    return figure, axes


def _limit(axes: Axes, objectives: Array) -> None:
    """Let a few very bad evaluations not press the good ones into one line; they fall below the figure."""
    low, high = float(np.quantile(objectives, 0.05)), float(objectives.max())
    bottom = max(float(objectives.min()), low - 1.0 * (high - low))
    if high > bottom:
        pad = 0.06 * (high - bottom)
        axes.set_ylim(bottom - pad, high + pad)
    below = int((objectives < bottom).sum())
    if below:
        axes.text(
            0.99, 0.03, f"{below} lower not shown", transform=axes.transAxes, ha="right", va="bottom",
            color=MUTED, fontsize=9,
        )  # fmt: skip


def _svg(figure: Figure, axes: Axes, title: str) -> str:
    """The figure as an <svg> element, with a name for those who do not see it."""
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": title}):
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, borderaxespad=0.1, fontsize=10)
        buffer = io.StringIO()
        figure.savefig(
            buffer, format="svg", dpi=110, transparent=True, metadata={"Date": None, "Creator": None}
        )
    text = buffer.getvalue()
    svg = text[text.index("<svg") :]
    return svg.replace("<svg ", f'<svg role="img" aria-label="{title}" ', 1)
