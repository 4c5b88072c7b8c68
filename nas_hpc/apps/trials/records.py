"""What came of trials: one record each, ``trials.csv``, the whole in ``search_state.json``."""

from __future__ import annotations

import csv
import io
import json
import math
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from nas_hpc.apps.trials.spec import SEARCH, TRAIN
from nas_hpc.evaluator import EvaluationResult
from nas_hpc.files import replace_file
from nas_hpc.states import Outcome
from nas_hpc.trial.jsonfiles import read_json, write_json
from nas_hpc.trial.status import STATUS_FILE

TRIALS_FILE = "trials.csv"
STATE_FILE = "search_state.json"
RUNNING, SUCCEEDED, FAILED, CANCELLED = "RUNNING", "SUCCEEDED", "FAILED", "CANCELLED"
OUT_OF_MEMORY, NOT_A_NUMBER, TIMED_OUT = "oom", "nan", "timeout"
WRONG_METRIC, ERROR, NODE = "metric", "error", "node"
CLASSES = {
    OUT_OF_MEMORY: "out of memory",
    NOT_A_NUMBER: "not a number",
    TIMED_OUT: "timed out",
    WRONG_METRIC: "reward never reported",
    ERROR: "error",
    NODE: "node or start failed",
}
"""Why a trial failed, and how people say it."""
_OF_NODES = (Outcome.LOST, Outcome.START_FAILED, Outcome.WALLTIME)
_OWN = ("stage", "trial", "nas_trial_id", "state", "reward", "reason_class", "reason", "parameters",
        "started", "ended", "seconds", "attempt", "directory")  # fmt: skip
_NUMBERS = frozenset({"trial", "nas_trial_id", "reward", "started", "ended", "seconds", "attempt"})
_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One trial as far as it is known."""

    id: int
    """Of its evaluation in its job."""
    stage: str
    number: int
    """From 1, in its stage; the name of its directory."""
    directory: str
    parameters: Mapping[str, Any]
    nas_trial_id: int | None = None
    """The search's trial that a stage-2 trial trains."""
    state: str = RUNNING
    reward: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Others than the reward, as last reported."""
    reason_class: str = ""
    reason: str = ""
    started: float = 0.0
    ended: float = 0.0
    attempt: int = 0

    @property
    def is_search(self) -> bool:
        """Whether it is of stage 1."""
        return self.stage == SEARCH

    def row(self) -> dict[str, Any]:
        """Its columns; metrics under their names, or ``metric.<name>`` where a column has that name."""
        seconds = round(self.ended - self.started, 3) if self.started and self.ended else None
        own = {
            "stage": self.stage, "trial": self.number, "nas_trial_id": self.nas_trial_id, "state": self.state,
            "reward": self.reward, "reason_class": self.reason_class, "reason": self.reason,
            "parameters": json.dumps(dict(self.parameters)), "started": self.started or None,
            "ended": self.ended or None, "seconds": seconds, "attempt": self.attempt or None,
            "directory": self.directory,
        }  # fmt: skip
        return own | {f"metric.{k}" if k in _OWN else k: v for k, v in self.metrics.items()}


def finished(trial: Trial, result: EvaluationResult, metric: str) -> Trial:
    """``trial`` with what came of its evaluation."""
    state, reason_class, reason = SUCCEEDED, "", ""
    if result.outcome is Outcome.KILLED:
        state, reason = CANCELLED, result.reason
    elif result.objective is None:
        state = FAILED
        reason_class, reason = _why(trial.directory, result)
    return Trial(
        **{one.name: getattr(trial, one.name) for one in fields(trial) if one.name in _LASTING},
        state=state,
        reward=result.objective,
        metrics=_metrics(result.metadata, metric),
        reason_class=reason_class,
        reason=" ".join(reason.split()),
        started=result.start,
        ended=result.end,
        attempt=result.attempt,
    )


_LASTING = ("id", "stage", "number", "directory", "parameters", "nas_trial_id")


def _why(directory: str, result: EvaluationResult) -> tuple[str, str]:
    """Class and words of a failure: the launcher's where it ended the trial, else the trial's own."""
    if result.outcome is Outcome.TIMEOUT:
        return TIMED_OUT, result.reason
    if result.outcome in _OF_NODES:
        return NODE, result.reason
    said = result.metadata.get("reason_class")
    if said in CLASSES:
        return str(said), result.reason
    status = read_json(Path(directory, STATUS_FILE))  # another engine has no metadata
    status = status if isinstance(status, dict) else {}
    if status.get("reason_class") in CLASSES:
        return str(status["reason_class"]), str(status.get("reason") or result.reason)
    killed = "signal 9" in result.reason  # the wrapper itself: by whom but the kernel
    return OUT_OF_MEMORY if killed else ERROR, result.reason


def _metrics(metadata: Mapping[str, Any], metric: str) -> dict[str, float]:
    """The numbers among what a trial told with its reward, without the reward ``metric`` itself."""
    numbers = {name: _number(value) for name, value in metadata.items() if not isinstance(value, str)}
    known = (metric, "nas_trial_id")  # columns of their own
    return {name: number for name, number in numbers.items() if number is not None and name not in known}


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or value is None or value == "":
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    if not math.isfinite(number):
        return None
    return int(number) if isinstance(value, int) or (isinstance(value, str) and value.isdigit()) else number


def in_order(trials: Iterable[Trial]) -> list[Trial]:
    """Stage 1 first, by number."""
    return sorted(trials, key=lambda one: (one.stage != SEARCH, one.stage, one.number))


def best_of(trials: Iterable[Trial]) -> Trial | None:
    """The best success of stage 1, of stage 2 where there is no other; the first of equal ones."""
    good = [one for one in in_order(trials) if one.reward is not None]
    first = [one for one in good if one.is_search] or good
    return max(first, key=lambda one: one.reward or 0.0, default=None)


# -- files -----------------------------------------------------------------------------------------
def write_trials(directory: Path | str, trials: Iterable[Trial]) -> None:
    """Write trials.csv, all of it at once. Raises OSError."""
    rows = [one.row() for one in in_order(trials)]
    more = dict.fromkeys(name for row in rows for name in row if name not in _OWN)
    text = io.StringIO()
    writer = csv.DictWriter(text, [*_OWN[:5], *more, *_OWN[5:]], lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: "" if v is None else v for k, v in row.items()} for row in rows)
    replace_file(Path(directory, TRIALS_FILE), text.getvalue().encode("utf-8", "replace"), mode=0o644)


def read_trials(directory: Path | str) -> list[dict[str, Any]]:
    """The rows of trials.csv, numbers as numbers, parameters as a dictionary, empty cells as None; [] if
    there is no such file yet."""
    try:
        with open(Path(directory, TRIALS_FILE), newline="", encoding="utf-8") as file:
            return [{name: _cell(name, text) for name, text in row.items()} for row in csv.DictReader(file)]
    except OSError:
        return []


def _cell(name: str, text: str | None) -> Any:
    if name == "parameters":
        return json.loads(text or "{}")
    if name in ("stage", "state", "reason_class", "reason", "directory"):
        return text or ""
    number = None if not text else _number(text)
    return int(number) if number is not None and name in ("trial", "nas_trial_id", "attempt") else number


def write_state(
    directory: Path | str,
    name: str,
    state: str,
    message: str,
    trials: Sequence[Trial],
    limits: Mapping[str, Any],
) -> None:
    """Write search_state.json. Raises OSError."""
    best = best_of(trials)
    stages = {
        stage: dict(Counter(one.state for one in trials if one.stage == stage)) for stage in (SEARCH, TRAIN)
    }
    body = {
        "version": _VERSION, "job_name": name, "state": state, "message": message, "updated": time.time(),
        "limits": dict(limits), "trials": stages,
        "failures": dict(Counter(one.reason_class for one in trials if one.state == FAILED)),
        "best": None if best is None else asdict(best),
    }  # fmt: skip
    write_json(Path(directory, STATE_FILE), body)


def read_state(directory: Path | str) -> dict[str, Any]:
    """What stands in search_state.json; {} if there is none."""
    body = read_json(Path(directory, STATE_FILE))
    return body if isinstance(body, dict) else {}
