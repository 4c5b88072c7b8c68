"""What PBS's words for the states and the ends of its jobs mean."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from nas_hpc.batch.system import Status
from nas_hpc.errors import BatchSilent, WrongCall
from nas_hpc.states import BatchState
from nas_hpc.units import parse_time_left

S = BatchState
STATES: Mapping[str, BatchState] = {
    "Q": S.QUEUED,
    "T": S.QUEUED,
    "W": S.QUEUED,
    "M": S.QUEUED,
    "H": S.HELD,
    "R": S.RUNNING,
    "B": S.RUNNING,
    "S": S.RUNNING,
    "U": S.RUNNING,
    "E": S.ENDING,
    "F": S.ENDED,
    "X": S.ENDED,
}
_MEANING: Mapping[str, str] = {
    "T": "it is being moved to another server",
    "W": "it waits for its time, or its files",
    "M": "it was moved to another server",
    "S": "suspended by PBS",
    "U": "suspended, as its node is in use",
}
_TERMINATED = 91
"""Substate of a job that was deleted."""
_WALLTIME = -29
_OWN_LIMITS: Mapping[int, str] = {
    -24: "it used more CPUs than it asked for",
    -25: "it used more CPUs than it asked for",
    -26: "it used more virtual memory than it asked for",
    -27: "it used more memory than it asked for",
    -28: "it used more CPU time than it asked for",
}
_FAILURES: Mapping[int, str] = {
    -1: "PBS could not start it",
    -2: "PBS could not start it",
    -3: "PBS could not start it, and tries again",
    -4: "its first node was started anew",
    -5: "its first node was started anew",
    -6: "its first node was started anew",
    -7: "it could not be restarted",
    -10: "its user is not known on its nodes",
    -11: "it was to be run again",
    -14: "one of its nodes did not join",
    -16: "a hook of the site refused it",
    -17: "a hook of the site refused it",
    -18: "a hook of the site sent it back",
    -19: "a hook of the site deleted it",
    -20: "its first node could not be reached",
    -21: "PBS's directory on its node is not safe",
    -22: "a hook of the site failed",
    -23: "it has no Kerberos credentials",
}
"""``Exit_status`` below zero is PBS's own word, no exit code."""


def status_of(fields: Mapping[str, Any]) -> Status:
    """Status of a job by its attributes. Raises BatchSilent for a state that nobody knows."""
    letter = str(fields["job_state"])
    state = STATES.get(letter)
    if state is None:
        raise BatchSilent(f"qstat tells what nobody knows: job_state {letter!r}")
    comment = " ".join(str(fields.get("comment", "")).split())
    if state is not S.ENDED:
        said = comment if state in (S.QUEUED, S.HELD) else ""
        if letter == "H" and "depend" in fields and not said:
            said = "it waits for the batch jobs that it depends on"
        return Status(state, ": ".join(filter(None, (_MEANING.get(letter, ""), said))))
    return _ended(fields, comment)


def _ended(fields: Mapping[str, Any], comment: str) -> Status:
    """How a finished job ended."""
    code = number(fields.get("Exit_status"))
    deleted = number(fields.get("substate")) == _TERMINATED or comment.endswith("and terminated")
    if code == _WALLTIME or "exceeded resource walltime" in comment:
        return Status(S.TIMEOUT, comment)
    if code is None:  # it never ran
        return Status(S.CANCELLED if deleted or not comment else S.LOST, comment)
    if code in _OWN_LIMITS:
        return Status(S.ENDED, f"{_OWN_LIMITS[code]} (Exit_status {code})")
    if code < 0:
        said = _FAILURES.get(code, "PBS failed")
        return Status(S.LOST, f"{said} (Exit_status {code})" + (f": {comment}" if comment else ""))
    signal = code - 256 if code > 256 else 0
    if code > 128 and _is_over(fields):
        return Status(S.TIMEOUT, comment)
    if deleted:
        return Status(S.CANCELLED, comment)
    return Status(S.ENDED, f"signal {signal}" if signal else "", 128 + signal if signal else code)


def _is_over(fields: Mapping[str, Any]) -> bool:
    """Whether it used its whole walltime: older versions tell of that by nothing else."""
    asked = seconds(part(fields, "Resource_List").get("walltime"))
    used = seconds(part(fields, "resources_used").get("walltime"))
    return asked is not None and used is not None and used >= asked


def part(fields: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A group of attributes; empty if it is not there."""
    value = fields.get(name)
    return value if isinstance(value, Mapping) else {}


def number(value: Any) -> int | None:
    """A whole number, None if it is none."""
    text = str(value).strip()
    return int(text) if re.fullmatch(r"-?[0-9]+", text) else None


def seconds(value: Any) -> float | None:
    """Seconds of a time, None if it is none."""
    try:
        return None if value is None else parse_time_left(str(value))
    except WrongCall:
        return None
