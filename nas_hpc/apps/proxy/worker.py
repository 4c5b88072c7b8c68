"""A worker that measures the models of a search of trials, or of a tool, as these come along.

It runs where the device is, and knows nothing but the directory that it follows: files say what is exported,
what is measured, by whom, and when all is over. It needs neither the launcher nor the controller, which may
die and come again meanwhile.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nas_hpc.apps.proxy import tool
from nas_hpc.apps.trials.records import read_state
from nas_hpc.apps.trials.spec import SEARCH, TRAIN, TrialsSpec
from nas_hpc.trial.latency import (
    LATENCY_KEY,
    error_of,
    is_exported,
    is_measured,
    measured_latency,
    read_latency,
)
from nas_hpc.trial.measure import Calculator, measure

LOG_FILE = "latency_calculator.out"
"""In a trial's directory: what the calculator printed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSettings:
    """What one worker does."""

    directory: str
    calculator: Calculator
    number: int = 0
    workers: int = 1
    """It is ``number`` of so many, and begins with the trials that are its share."""
    look_every_s: float = 10.0
    logs: str = ""
    """The directory for what the calculator prints; "": that of each trial."""


def trials_below(directory: Path | str) -> Iterator[Path]:
    """The directories of trials of a search, of its full trainings, or of a tool's rounds; in order."""
    for pattern in (f"nas/{SEARCH}/*", f"nas/{TRAIN}/*", f"*/nas/{SEARCH}/*"):
        found = (one for one in Path(directory).glob(pattern) if one.name.isdigit())
        yield from sorted(found, key=lambda one: (str(one.parent), int(one.name)))


def ended(spec: TrialsSpec) -> str:
    """How the search or tool of ``spec`` has ended, as its files say; "" if it has not."""
    if spec.kind in tool.PREFIXES:
        _, state = tool.followed(spec.directory)
    else:
        state = str(read_state(spec.directory).get("state") or "")
    return state if state in (tool.SUCCEEDED, tool.FAILED) else ""


@dataclass(slots=True)
class Worker:
    """One worker. ``is_over`` tells how what it follows has ended, "" if it has not; ``say`` takes lines for
    people."""

    settings: WorkerSettings
    is_over: Callable[[], str]
    say: Callable[[str], None]
    measured: list[dict[str, Any]] = field(default_factory=list)
    """What it measured, or could not: trial, round, latency_in_milli_seconds, error."""
    over: str = ""
    """How what it followed has ended."""
    _done: set[Path] = field(default_factory=set)
    _round: str = ""
    _since: float = field(default_factory=time.time)

    def run(self) -> int | None:
        """Measure until all is over; returns the signal that ended it before, if one did.

        Raises OSError where the directory cannot be written, WorkFailed if the calculator cannot be started.
        """
        while True:
            self.over = self.is_over()  # before the look: what was exported until then is seen by it
            self._tell_round()
            before = len(self.measured)
            for trial in self._waiting():
                signal_number = self._measure(trial)
                if signal_number is not None:
                    return signal_number
            if len(self.measured) > before:
                continue
            if self.over:
                return None
            time.sleep(self.settings.look_every_s)  # hosts that share a directory alone tell nothing else

    def _tell_round(self) -> None:
        name, _ = tool.followed(self.settings.directory)
        if name != self._round and not self.over:
            self.say(f"follows {name}")
        self._round = name

    def _waiting(self) -> list[Path]:
        """Models to measure: those of the current round first, in each its own share first."""
        found = []
        for trial in trials_below(self.settings.directory):
            if trial in self._done:
                continue
            if measured_latency(trial) is not None:
                self._done.add(trial)
            elif is_exported(trial) and not is_measured(trial, self._since):
                found.append(trial)
        workers, number = self.settings.workers, self.settings.number
        return sorted(
            found, key=lambda one: (_round_of(one) != self._round, int(one.name) % workers != number)
        )

    def _measure(self, trial: Path) -> int | None:
        begun = time.time()
        name = f"{_round_of(trial)}/{trial.name}"
        logs = self.settings.logs
        log = Path(logs, f"{name.replace('/', '_')}.out") if logs else trial / LOG_FILE
        signal_number = measure(trial, self.settings.calculator, self._since, log)
        found = read_latency(trial) or {}
        mine = found.get("worker") == self.settings.calculator.worker and found.get("measured", 0.0) >= begun
        if signal_number is None and mine:
            error = error_of(trial)
            self.say(f"{name}: {f'{error}; see {log}' if error else f'{found[LATENCY_KEY]:.4g} ms'}")
            row = {"round": _round_of(trial), "trial": int(trial.name), "directory": str(trial),
                   LATENCY_KEY: None if error else found[LATENCY_KEY], "error": error}  # fmt: skip
            self.measured.append(row)
        return signal_number


def _round_of(trial: Path) -> str:
    """The name of the directory that has ``nas/search/<trial>``."""
    return trial.parents[2].name
