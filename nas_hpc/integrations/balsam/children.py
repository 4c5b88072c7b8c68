"""What Balsam's records of an evaluation mean: whether it is over, how it ended, when.

An item is what the bridge tells of an evaluation's job: seq, state, history (``[[UTC seconds, state,
message], …]``), data, directory, and the ``result`` that was found of an ended one: the content of its
result.json, else ``{"objective": …, "source": …}`` by Balsam's data or its output, else ``{"objective": null,
"tail": …}``.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from nas_hpc import wire
from nas_hpc.errors import ProtocolError
from nas_hpc.records import Json
from nas_hpc.states import Outcome

DONE = frozenset({"RUN_DONE", "POSTPROCESSED", "JOB_FINISHED"})
"""The program ended well: what follows is Balsam's own bookkeeping."""
FAILED = frozenset({"RUN_ERROR", "FAILED"})
KILLED = "USER_KILLED"
_LIVE = frozenset({"CREATED", "READY", "PREPROCESSED", "RUNNING", "RESTART_READY"})
_FAILURES = frozenset({"error", "invalid_result", "timeout", "start_failed"})
CANCELLED = "cancelled by its search"
TIMEOUT = "timeout: "
"""Begins the message with which a search kills what ran longer than it may."""
_CODE = re.compile(r"nonzero return (-?\d+)")
STOPPED = -15
"""A launcher in serial mode that is stopped ends its jobs by SIGTERM, and Balsam records that as their
failure."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What a search keeps in the data of an evaluation's job."""

    config: Json
    data: Json
    submitted: float
    timeout_s: float = 0.0
    retries: int = 0
    cached: bool = False
    own_limit: bool = False
    """Its program ends itself when its time is over."""

    def text(self) -> str:
        """As JSON in a string: the database's own JSON would change numbers and the order of keys."""
        fields = {name: getattr(self, name) for name in self.__slots__}
        return json.dumps({**fields, "config": dict(self.config), "data": dict(self.data)})


def asked_of(item: Mapping[str, Any]) -> Asked:
    """What the search asked for. Raises ProtocolError for a job that no search of this version made."""
    try:
        return Asked(**json.loads(item["data"]["nas_hpc"]["ask"]))
    except (KeyError, TypeError, ValueError) as error:
        name = f"task{item.get('seq')}"
        raise ProtocolError(
            f"the data of Balsam's job {name} hold no evaluation that this version asked for "
            f"({type(error).__name__}: {error}): go on with the version that began this search"
        ) from None


@dataclass(frozen=True, slots=True)
class Verdict:
    """How an evaluation ended."""

    outcome: Outcome
    objective: float | None
    reason: str
    start: float
    end: float
    attempt: int
    """It was started so often."""
    stamp: float
    """When Balsam recorded the end."""
    metadata: Json = field(default_factory=dict)

    def done(self, item: Mapping[str, Any], asked: Asked, order: int) -> wire.Done:
        """As a message."""
        return wire.Done(
            order=order,
            seq=int(item["seq"]),
            config=asked.config,
            data=asked.data,
            outcome=self.outcome.value,
            objective=self.objective,
            metadata=self.metadata,
            reason=self.reason,
            start=self.start,
            end=self.end,
            attempt=self.attempt,
            submitted=asked.submitted,
            cached=asked.cached,
        )


def verdict(item: Mapping[str, Any]) -> Verdict | None:
    """How the evaluation ended; None: it did not yet.

    Who was killed stays killed: in serial mode Balsam goes on with him, and records what becomes of it. One
    that ended and has no ``result`` (None) may have one that a file system shows late: it is told again.
    """
    state, history = item["state"], _history(item)
    killed = _since_live(history, KILLED)
    result = item.get("result")
    if killed is not None or state == KILLED:
        stamp, _, message = killed or history[-1]
        return _killed(history, stamp, message)
    if result is None:
        return None
    if state in DONE:
        stamp = (_since_live(history, *DONE) or history[-1])[0]
        return _ended(item, result, history, stamp, failed=False)
    if state in FAILED:
        stamp = (_since_live(history, *FAILED) or history[-1])[0]
        return _ended(item, result, history, stamp, failed=True)
    return None


def failures(item: Mapping[str, Any]) -> int:
    """How often it failed by itself: not by the end of a launcher."""
    history = _history(item)
    count = sum(state == "RUN_ERROR" and not _interrupts(message) for _, state, message in history)
    return count or int(item["state"] in FAILED and not interrupted(item))


def interrupted(item: Mapping[str, Any]) -> bool:
    """Whether it failed by the end of a launcher, and not by itself."""
    if item["state"] not in FAILED or (item.get("result") or {}).get("outcome"):
        return False
    last = _since_live(_history(item), "RUN_ERROR")
    return last is not None and _interrupts(last[2])


def interruptions(item: Mapping[str, Any]) -> int:
    """How often it failed by the end of a launcher."""
    return sum(state == "RUN_ERROR" and _interrupts(message) for _, state, message in _history(item))


def running_since(item: Mapping[str, Any]) -> float:
    """When it was seen to run, UTC; 0: it does not."""
    if item["state"] != "RUNNING":
        return 0.0
    return max((stamp for stamp, state, _ in _history(item) if state == "RUNNING"), default=0.0)


def _interrupts(message: str) -> bool:
    found = _CODE.search(message)
    return found is not None and int(found.group(1)) == STOPPED


def _history(item: Mapping[str, Any]) -> list[tuple[float, str, str]]:
    lines = [(float(stamp), str(state), str(message)) for stamp, state, message in item.get("history") or ()]
    return lines or [(0.0, str(item["state"]), "")]


def _since_live(history: Sequence[tuple[float, str, str]], *states: str) -> tuple[float, str, str] | None:
    """The first line with one of ``states`` after the last one of a job that waits or runs."""
    last = max((place for place, line in enumerate(history) if line[1] in _LIVE), default=-1)
    return next((line for line in history[last + 1 :] if line[1] in states), None)


def _starts(history: Sequence[tuple[float, str, str]]) -> tuple[float, int]:
    """(the last time it was seen to run, or 0; how often it was)."""
    stamps = [stamp for stamp, state, _ in history if state == "RUNNING"]
    return (stamps[-1] if stamps else 0.0), len(stamps)


def _killed(history: Sequence[tuple[float, str, str]], stamp: float, message: str) -> Verdict:
    start, count = _starts(history)
    if message.startswith(TIMEOUT):
        return Verdict(Outcome.TIMEOUT, None, message.removeprefix(TIMEOUT), start, stamp, count, stamp)
    reason = message.strip() or "killed"
    return Verdict(Outcome.KILLED, None, reason, start, stamp, count, stamp)


def _ended(
    item: Mapping[str, Any],
    result: Mapping[str, Any],
    history: Sequence[tuple[float, str, str]],
    stamp: float,
    *,
    failed: bool,
) -> Verdict:
    begun, count = _starts(history)
    start, end = _time(result.get("start"), begun), _time(result.get("end"), stamp)
    metadata = result.get("metadata") if isinstance(result.get("metadata"), dict) else {}
    objective = _number(result.get("objective"))
    told = result.get("outcome")
    if told == "ok" and objective is not None:  # it stands, whatever the program did after it
        outcome, reason = Outcome.OK, ""
    elif told in _FAILURES:
        outcome, reason, objective = Outcome(told), str(result.get("reason") or ""), None
    elif failed:
        outcome, reason, objective = Outcome.ERROR, _why(history, result), None
    elif objective is not None:
        outcome, reason = Outcome.OK, ""
    else:
        outcome, reason = Outcome.INVALID_RESULT, _why_nothing(item, result)
    return Verdict(outcome, objective, reason, start, end, count, stamp, dict(metadata or {}))


def _why_nothing(item: Mapping[str, Any], result: Mapping[str, Any]) -> str:
    """Why the success of a program is none."""
    if result.get("tail") and "source" not in result:  # there is something, and it is no result
        return " ".join(str(result["tail"]).split())[:500]
    should = "print one like 'DH-OUTPUT: 0.93'"
    return f"no line with DH-OUTPUT: in task{item['seq']}.out, and no result.json; {should}"


def _why(history: Sequence[tuple[float, str, str]], result: Mapping[str, Any]) -> str:
    """A failure in a line, by what Balsam noted of it and by the end of its output."""
    line = _since_live(history, "RUN_ERROR") or _since_live(history, "FAILED") or history[-1]
    found = _CODE.search(line[2])
    noted = line[2][found.end() :].lstrip(":") if found else line[2]
    lines = (" ".join(one.split()) for one in reversed((str(result.get("tail") or "") or noted).splitlines()))
    last = next((one for one in lines if one), "")
    if found is None:
        return last[:500] or f"Balsam says {line[1]}"
    code = int(found.group(1))
    end = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
    return f"{end}: {last}"[:500] if last else end


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def _time(value: Any, other: float) -> float:
    number = _number(value)
    return number if number else other
