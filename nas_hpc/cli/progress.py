"""The progress of searches: one live line on a terminal, else a plain line every tenth."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TextIO

from nas_hpc.cli.output import show_duration, show_number

BAR_CELLS = 24
STEPS = 10
"""Plain lines for a whole search."""
SILENCE_S = 60.0
"""A plain line comes at least so often."""


@dataclass(frozen=True, slots=True)
class Shown:
    """What is shown of a search."""

    done: int
    failed: int
    running: int
    max_evals: int
    """0 if the search has not told it yet."""
    best: float | None
    utilization: float | None
    elapsed_s: float
    """Since it was first seen."""
    left_s: float | None


class Estimate:
    """Time left, from the pace since the search was first seen: a resumed one counts only what it did
    since.
    """

    def __init__(self) -> None:
        self._first: tuple[float, int] | None = None

    def elapsed_s(self, now_s: float, done: int) -> float:
        """Seconds since the search was first seen, which is now if it was not seen before."""
        if self._first is None:
            self._first = (now_s, done)
        return now_s - self._first[0]

    def left_s(self, now_s: float, done: int, max_evals: int) -> float | None:
        """Seconds; None before anything is finished."""
        if self._first is None:
            self._first = (now_s, done)
        since_s, before = self._first
        if done <= before or done >= max_evals:
            return None
        return (now_s - since_s) / (done - before) * (max_evals - done)


def shown(
    view: Mapping[str, Any], name: str, estimate: Estimate, now_s: float, max_evals: int = 0
) -> Shown | None:
    """What the launcher's ``view`` says of the search ``name``; None before that has begun.

    A search tells its ``max_evals`` with its first result, which may take long; who started it knows it.
    """
    for search in view.get("searches") or []:
        if search.get("name") == name and (search.get("max_evals") or max_evals):
            return of_search(search, view.get("utilization"), estimate, now_s, max_evals)
    return None


def of_search(
    search: Mapping[str, Any],
    utilization: float | None,
    estimate: Estimate,
    now_s: float,
    max_evals: int = 0,
) -> Shown:
    """What a search's part of the view says."""
    done, most = int(search["done"]), int(search["max_evals"]) or max_evals
    return Shown(
        done=done,
        failed=int(search["failed"]),
        running=int(search["running"]),
        max_evals=most,
        best=search["best"],
        utilization=utilization,
        elapsed_s=estimate.elapsed_s(now_s, done),
        left_s=estimate.left_s(now_s, done, most),
    )


def line(now: Shown, bar: bool) -> str:
    """One line about a search."""
    parts = [f"{now.done}/{now.max_evals} done" if now.max_evals else f"{now.done} done"]
    if now.failed:
        parts.append(f"{now.failed} failed")
    parts.append(f"{now.running} running")
    parts.append(f"best {show_number(now.best) if now.best is not None else '-'}")
    if now.utilization is not None and now.done:
        parts.append(f"utilization {min(1.0, now.utilization):.0%}")
    if now.left_s is not None:
        parts.append(f"{show_duration(now.left_s)} left")
    elif not now.done:
        parts.append(f"for {show_duration(now.elapsed_s)}")
    full = round(BAR_CELLS * now.done / max(1, now.max_evals))
    return (f"{'━' * full}{'╌' * (BAR_CELLS - full)} " if bar else "") + "  ".join(parts)


class Display(Protocol):
    """Takes the launcher's views."""

    def __call__(self, view: Mapping[str, object]) -> None:
        """Show one."""


class Pace:
    """When a plain line is due: an evaluation runs, another tenth is done, or a minute has passed."""

    def __init__(self) -> None:
        self.estimate = Estimate()
        self._printed = (-1, 0.0)

    def is_due(self, now: Shown, now_s: float) -> bool:
        """Whether to print ``now``; it is taken as printed then."""
        step = now.done * STEPS // max(1, now.max_evals)
        last, when_s = self._printed
        begun = now.done or now.running
        if not begun or (step == last and now_s - when_s < SILENCE_S):
            return False
        self._printed = (step, now_s)
        return True


class PlainDisplay:
    """A line at the first evaluation, when another tenth is done, and at least every minute."""

    def __init__(self, name: str, out: TextIO, max_evals: int = 0) -> None:
        self._name, self._out, self._max_evals = name, out, max_evals
        self._pace = Pace()

    def __call__(self, view: Mapping[str, object]) -> None:
        """Print a line if one is due."""
        now_s = time.monotonic()
        now = shown(view, self._name, self._pace.estimate, now_s, self._max_evals)
        if now is not None and self._pace.is_due(now, now_s):
            print(line(now, bar=False), file=self._out, flush=True)


class LauncherDisplay:
    """Lines about all that a launcher runs: each search as in ``PlainDisplay``, the other jobs by number."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._paces: dict[str, Pace] = {}
        self._told_s = time.monotonic()
        self.view: Mapping[str, object] = {}
        """The newest view."""

    @property
    def searches(self) -> int:
        """How many searches it has seen."""
        return len(self._paces)

    def __call__(self, view: Mapping[str, Any]) -> None:
        """Print the lines that are due."""
        self.view = view
        now_s = time.monotonic()
        for search in view.get("searches") or []:
            pace = self._paces.setdefault(str(search.get("job")), Pace())
            now = of_search(search, view.get("utilization"), pace.estimate, now_s)
            if pace.is_due(now, now_s):
                self._say(f"search {search.get('workflow')}/{search.get('name')}: {line(now, bar=False)}")
        if now_s - self._told_s >= SILENCE_S:
            self._say(f"{view.get('running')} running, {view.get('waiting')} waiting")

    def _say(self, text: str) -> None:
        self._told_s = time.monotonic()
        print(f"{time.strftime('%H:%M:%S')} {text}", file=self._out, flush=True)


class LiveDisplay:
    """A line that changes in place; what else is printed stands above it."""

    def __init__(self, name: str, max_evals: int = 0) -> None:
        from rich.console import Console
        from rich.live import Live
        from rich.text import Text

        self._name, self._max_evals, self._text = name, max_evals, Text
        self._estimate = Estimate()
        waiting = Text("the search starts; its first evaluations follow")
        self.live = Live(waiting, console=Console(), auto_refresh=False, transient=True)

    def __call__(self, view: Mapping[str, object]) -> None:
        """Show the newest."""
        now = shown(view, self._name, self._estimate, time.monotonic(), self._max_evals)
        if now is not None:
            self.live.update(self._text(line(now, bar=True), no_wrap=True, overflow="ellipsis"), refresh=True)


@contextmanager
def display(name: str, max_evals: int, *, as_json: bool) -> Iterator[Display]:
    """The display that fits: live on a terminal, else plain; on stderr when stdout is for JSON."""
    if as_json or not sys.stdout.isatty():
        yield PlainDisplay(name, sys.stderr if as_json else sys.stdout, max_evals)
        return
    shower = LiveDisplay(name, max_evals)
    with shower.live:
        yield shower
