"""What Balsam's histories of states say of attempts, without what its own utilization report gets wrong.

Balsam's report adds one at each RUNNING and takes one off at RUN_DONE, RUN_ERROR and RUN_TIMEOUT. So a job
that is killed runs for ever; one whose launcher died is counted again when it is run again, because Balsam
takes it back without a line; and the stamps are those of writes for many jobs at once. Here each RUNNING has
one end, and where the program left its own times they are taken. Pure functions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nas_hpc.states import Outcome

History = Sequence[Sequence[Any]]
"""(seconds since the epoch, state, message) in the order in which they were written."""
ENDS = {
    "RUN_DONE": Outcome.OK,
    "RUN_ERROR": Outcome.ERROR,
    "RUN_TIMEOUT": Outcome.WALLTIME,
    "USER_KILLED": Outcome.KILLED,
}
STOPPED = "nonzero return -15"
"""What Balsam's serial mode says of a job that was ended together with its launcher."""
TIMED_OUT = "timeout"
"""So begins the message of a kill because the evaluation took too long."""
LATE_S = 15.0
"""A stamp is written at most so long after what it tells of: a batch of writes, a busy database."""
_MAY_RUN_ON = (Outcome.KILLED, Outcome.TIMEOUT)
"""Serial mode does not end what is killed."""
AHEAD_S = 2.0
"""Clocks of two nodes may differ by so much."""


@dataclass(slots=True)
class Span:
    """An attempt. Times in seconds since the epoch; ``start`` is not-a-number where it never ran, ``end``
    where Balsam recorded none."""

    start: float
    end: float
    outcome: Outcome
    message: str = ""
    cached: bool = False
    measured: bool = False
    """Its times are the program's own."""
    outlived: bool = False
    """It was killed, and its program ran on."""


def spans(history: History, state: str) -> tuple[list[Span], bool]:
    """The ended attempts of a job, and whether another one runs. ``state`` is what the job's row says."""
    found: list[Span] = []
    begun = math.nan
    for time_s, name, message in history:
        if name == "RUNNING":
            if not math.isnan(begun):
                found.append(Span(begun, math.nan, Outcome.LOST))
            begun = time_s
        elif name in ENDS:
            _end(found, Span(begun, time_s, ENDS[name], str(message)))
            begun = math.nan
        elif name == "RESTART_READY" and not math.isnan(begun):
            found.append(Span(begun, math.nan, Outcome.LOST))
            begun = math.nan
        elif name == "FAILED":
            _fail(found, Span(begun, time_s, Outcome.ERROR, str(message)))
            begun = math.nan
        elif name == "JOB_FINISHED" and not found and math.isnan(begun):
            found.append(Span(math.nan, time_s, Outcome.OK, cached=True))
    if not math.isnan(begun) and state == "RESTART_READY":  # taken back, which leaves no line
        found.append(Span(begun, math.nan, Outcome.LOST))
        begun = math.nan
    return found, not math.isnan(begun)


def _end(found: list[Span], span: Span) -> None:
    last = found[-1] if found else None
    if math.isnan(span.start) and last is not None and last.outcome in _MAY_RUN_ON:
        # Serial mode lets a killed job run on, and writes down that it failed in the end.
        last.end, last.outlived = span.end, last.outlived or not math.isnan(last.start)
        return
    if span.outcome is Outcome.ERROR and span.message.startswith(STOPPED):
        span.outcome = Outcome.WALLTIME
    elif span.outcome is Outcome.KILLED and span.message.startswith(TIMED_OUT):
        span.outcome = Outcome.TIMEOUT
    found.append(span)


def _fail(found: list[Span], span: Span) -> None:
    """FAILED follows RUN_ERROR by itself; what else it follows failed without having run, or may not be run
    again."""
    if not found or not math.isnan(span.start):
        found.append(span)
    elif found[-1].outcome is Outcome.WALLTIME and not found[-1].message.startswith(STOPPED):
        found[-1].outcome = Outcome.TIMEOUT


def correct(found: Sequence[Span], result: Mapping[str, Any] | None) -> Span | None:
    """Give the attempt that left ``result`` (a result.json) its own times; returns that attempt.

    It may be one whose launcher died before it could note the end; the next one then had nothing to do.
    """
    start, end = _time(result, "start"), _time(result, "end")
    if math.isnan(start) or math.isnan(end):
        return None
    began = [span for span in found if not span.cached and not span.start > end + LATE_S]
    near = [span for span in began if span.end >= end - AHEAD_S or span.outcome in _MAY_RUN_ON]
    lost = [span for span in began if math.isnan(span.end)]
    if near:
        span = min(near, key=lambda one: abs(one.end - end))
    elif lost:
        span = lost[-1]
    else:
        return None
    # Where the program began after its stamp, serial mode has started it again by itself.
    span.start = start if math.isnan(span.start) else min(start, span.start)
    span.outlived = span.outcome in _MAY_RUN_ON and end > span.end + AHEAD_S
    span.end, span.measured = max(end, span.start), True
    return span


def bound(found: Sequence[Span], last_sign: Callable[[float, float], float]) -> None:
    """Give lost attempts an end: ``last_sign`` of whatever ran them between their start and what followed."""
    for number, span in enumerate(found):
        if math.isnan(span.end):
            starts = [one.start for one in found[number + 1 :] if not math.isnan(one.start)]
            span.end = max(span.start, last_sign(span.start, min(starts, default=math.inf)))


def stamps(histories: Iterable[History]) -> list[float]:
    """When launchers wrote something of an attempt, ascending: their signs of life."""
    wrote = {"RUNNING", *ENDS} - {"USER_KILLED"}
    return sorted(line[0] for history in histories for line in history if line[1] in wrote)


def _time(result: Mapping[str, Any] | None, key: str) -> float:
    value = None if result is None else result.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return math.nan
    return float(value) if value > 0 else math.nan
