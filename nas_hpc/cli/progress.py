"""The progress of a search in the foreground: one live line on a terminal, else a plain line every tenth."""

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
    best: float | None
    utilization: float | None
    left_s: float | None


class Estimate:
    """Time left, from the pace since the search was first seen: a resumed one counts only what it did
    since.
    """

    def __init__(self) -> None:
        self._first: tuple[float, int] | None = None

    def left_s(self, now_s: float, done: int, max_evals: int) -> float | None:
        """Seconds; None before anything is finished."""
        if self._first is None:
            self._first = (now_s, done)
        since_s, before = self._first
        if done <= before or done >= max_evals:
            return None
        return (now_s - since_s) / (done - before) * (max_evals - done)


def shown(view: Mapping[str, Any], name: str, estimate: Estimate, now_s: float) -> Shown | None:
    """What the launcher's ``view`` says of the search ``name``; None before that has begun."""
    for search in view.get("searches") or []:
        if search.get("name") == name and search.get("max_evals"):
            done, most = int(search["done"]), int(search["max_evals"])
            return Shown(
                done=done,
                failed=int(search["failed"]),
                running=int(search["running"]),
                max_evals=most,
                best=search["best"],
                utilization=view.get("utilization"),
                left_s=estimate.left_s(now_s, done, most),
            )
    return None


def line(now: Shown, bar: bool) -> str:
    """One line about a search."""
    parts = [f"{now.done}/{now.max_evals} done"]
    if now.failed:
        parts.append(f"{now.failed} failed")
    parts.append(f"{now.running} running")
    parts.append(f"best {show_number(now.best) if now.best is not None else '-'}")
    if now.utilization is not None:
        parts.append(f"utilization {now.utilization:.0%}")
    if now.left_s is not None:
        parts.append(f"{show_duration(now.left_s)} left")
    full = round(BAR_CELLS * now.done / max(1, now.max_evals))
    return (f"{'━' * full}{'╌' * (BAR_CELLS - full)} " if bar else "") + "  ".join(parts)


class Display(Protocol):
    """Takes the launcher's views."""

    def __call__(self, view: Mapping[str, object]) -> None:
        """Show one."""


class PlainDisplay:
    """A line when another tenth is done, and at least every minute."""

    def __init__(self, name: str, out: TextIO) -> None:
        self._name, self._out = name, out
        self._estimate = Estimate()
        self._printed = (-1, 0.0)

    def __call__(self, view: Mapping[str, object]) -> None:
        """Print a line if one is due."""
        now_s = time.monotonic()
        now = shown(view, self._name, self._estimate, now_s)
        if now is None:
            return
        step = now.done * STEPS // now.max_evals
        last, when_s = self._printed
        if step != last or now_s - when_s >= SILENCE_S:
            self._printed = (step, now_s)
            print(line(now, bar=False), file=self._out, flush=True)


class LiveDisplay:
    """A line that changes in place; what else is printed stands above it."""

    def __init__(self, name: str) -> None:
        from rich.console import Console
        from rich.live import Live
        from rich.text import Text

        self._name, self._text = name, Text
        self._estimate = Estimate()
        self.live = Live(Text("the search begins"), console=Console(), auto_refresh=False, transient=True)

    def __call__(self, view: Mapping[str, object]) -> None:
        """Show the newest."""
        now = shown(view, self._name, self._estimate, time.monotonic())
        if now is not None:
            self.live.update(self._text(line(now, bar=True), no_wrap=True, overflow="ellipsis"), refresh=True)


@contextmanager
def display(name: str, *, as_json: bool) -> Iterator[Display]:
    """The display that fits: live on a terminal, else plain; on stderr when stdout is for JSON."""
    if as_json or not sys.stdout.isatty():
        yield PlainDisplay(name, sys.stderr if as_json else sys.stdout)
        return
    shower = LiveDisplay(name)
    with shower.live:
        yield shower
