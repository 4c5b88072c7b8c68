"""Pictures of a search of trials: rewards in the order of the trials, or any two columns of theirs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nas_hpc.apps.trials.records import FAILED, Trial, in_order
from nas_hpc.files import replace_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FIGURE_FILE = "rewards.png"
FORMATS = ("png", "svg", "pdf")


def draw_rewards(directory: Path, name: str, metric: str, trials: Sequence[Trial]) -> Path | None:
    """Write rewards.png; None if there is nothing to draw. Raises OSError."""
    mine = [one for one in in_order(trials) if one.is_search] or in_order(trials)
    good = [(float(one.number), one.reward) for one in mine if one.reward is not None]
    if not good:
        return None
    figure, axes = _axes("trial", metric, name)
    _points(axes, good, best=True)
    lost = [one.number for one in mine if one.state == FAILED]
    if lost:
        low = min(reward for _, reward in good)
        axes.plot(lost, [low] * len(lost), "rx", label="failed")
    axes.legend()
    _write(figure, directory / FIGURE_FILE)
    return directory / FIGURE_FILE


def draw_columns(
    path: Path, title: str, x: str, y: str, points: Sequence[tuple[float, float]], *, best: bool = False
) -> None:
    """Write a picture with a dot for each trial, in the format that the path's ending says, PNG without one;
    ``best``: with the greatest y so far, along x. Raises OSError."""
    figure, axes = _axes(x, y, title)
    _points(axes, sorted(points) if best else points, best=best)
    if best:
        axes.legend()
    _write(figure, path)


def _axes(x: str, y: str, title: str) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.set_title(title)
    if x == "trial":
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure, axes


def _points(axes: Axes, points: Sequence[tuple[float, float]], *, best: bool) -> None:
    axes.plot([x for x, _ in points], [y for _, y in points], "o", label="trials")
    if best:
        line = [max(y for _, y in points[: place + 1]) for place in range(len(points))]
        axes.step([x for x, _ in points], line, where="post", label="best so far")


def _write(figure: Figure, path: Path) -> None:
    import io

    ending = path.suffix[1:].lower()
    buffer = io.BytesIO()
    figure.savefig(buffer, format=ending if ending in FORMATS else "png", dpi=120)
    replace_file(path, buffer.getvalue(), mode=0o644)
