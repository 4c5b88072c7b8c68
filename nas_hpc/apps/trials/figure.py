"""A picture of a search of trials: rewards in the order of the trials, and the best so far."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nas_hpc.apps.trials.records import FAILED, Trial, in_order

FIGURE_FILE = "rewards.png"


def draw_rewards(directory: Path, name: str, metric: str, trials: Sequence[Trial]) -> Path | None:
    """Write rewards.png; None if there is nothing to draw. Raises OSError."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    mine = [one for one in in_order(trials) if one.is_search] or in_order(trials)
    good = [(one.number, one.reward) for one in mine if one.reward is not None]
    if not good:
        return None
    figure = Figure(figsize=(7, 4), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.plot([n for n, _ in good], [reward for _, reward in good], "o", label="trials")
    best = [max(reward for _, reward in good[: place + 1]) for place in range(len(good))]
    axes.step([n for n, _ in good], best, where="post", label="best so far")
    lost = [one.number for one in mine if one.state == FAILED]
    if lost:
        low = min(reward for _, reward in good)
        axes.plot(lost, [low] * len(lost), "rx", label="failed")
    axes.set_xlabel("trial")
    axes.set_ylabel(metric)
    axes.set_title(name)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend()
    temporary = directory / f".{FIGURE_FILE}.png"
    canvas.print_figure(str(temporary), format="png", dpi=120)
    temporary.replace(directory / FIGURE_FILE)
    return directory / FIGURE_FILE
