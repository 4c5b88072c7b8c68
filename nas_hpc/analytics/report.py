"""One page about a search: self-contained HTML, nothing loaded from elsewhere."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2

from nas_hpc import __version__
from nas_hpc.analytics import architectures
from nas_hpc.analytics.figures import best_figure, running_figure
from nas_hpc.analytics.frames import Frames, finals
from nas_hpc.analytics.locate import Location
from nas_hpc.analytics.summary import Evaluated, summarize_frames, top
from nas_hpc.analytics.text import duration, number, shown
from nas_hpc.analytics.utilization import measure
from nas_hpc.errors import WrongCall

TOP = 10
MOST_COLUMNS = 12
"""Hyperparameters shown as columns; a problem with more has them in one cell."""
MOST_FAILURES = 15


def render(frames: Frames) -> str:
    """The page as text."""
    last = finals(frames.attempts)
    used = measure(frames.attempts, frames.launchers, frames.others)
    summary = summarize_frames(frames)
    rows = top(frames.location, last, TOP, used)
    names = _names(rows)
    of_best = _of_best(frames.location, summary.best, rows)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("nas_hpc.analytics", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(duration=duration, number=number, shown=shown, clock=_clock)
    return environment.get_template("report.html.j2").render(
        s=summary,
        top=rows,
        names=names if len(names) <= MOST_COLUMNS else [],
        **of_best,
        failures=list(summary.failures.items())[:MOST_FAILURES],
        more_failures=max(0, len(summary.failures) - MOST_FAILURES),
        durations=_durations(last),
        best_svg=best_figure(last, used) if used and rows else "",
        running_svg=running_figure(used) if used else "",
        version=__version__,
        written=time.time(),
    )


def save(page: str, out: str | Path) -> Path:
    """Write ``page`` to ``out`` by way of a temporary file; returns its absolute path. Raises WrongCall."""
    path = Path(os.path.abspath(out))
    if path.is_dir():
        raise WrongCall(f"{out} is a directory; give the report's file, for instance {path / 'report.html'}")
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(page)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise WrongCall(f"the report cannot be written to {out}: {error.strerror or error}") from None
    return path


def _of_best(location: Location, best: Evaluated | None, rows: list[Evaluated]) -> dict[str, Any]:
    """What differs between searches of hyperparameters and of architectures."""
    if best is None or not architectures.is_architecture(best):
        return {"architecture": None, "results": best.metadata if best else {}, "columns": []}
    found = architectures.best_architecture(location, best)
    return {
        "architecture": found,
        "results": architectures.results(best),
        "columns": architectures.columns(rows, found.objective),
    }


def _names(rows: list[Evaluated]) -> list[str]:
    """The hyperparameters of all rows, in the order in which configurations name them."""
    return list(dict.fromkeys(name for row in rows for name in row.config))


def _durations(last: Any) -> Mapping[str, float]:
    """Quantiles of the durations of evaluations that ran to their end, in seconds."""
    done = last[(last["status"].isin(["ok", "failed"])) & ~last["cached"]]
    lengths = (done["end"] - done["start"]).dropna()
    if lengths.empty:
        return {}
    return {name: float(lengths.quantile(q)) for name, q in (("median", 0.5), ("p95", 0.95))}


def _clock(seconds: float | None) -> str:
    if seconds is None or not math.isfinite(seconds):
        return ""
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))
