"""Metrics of a running trial: a line of JSON for each report, in ``metrics.jsonl`` of its directory."""

from __future__ import annotations

import json
import math
import numbers
import os
import time
from typing import Any

from nas_hpc.errors import WrongCall

METRICS_FILE = "metrics.jsonl"
_RESERVED = ("step", "value", "time")


def report(step: int, value: float, **more: float | str) -> None:
    """Note that the trial reached ``step`` (an epoch, a number of batches) with the metric ``value``.

    ``more`` are further numbers or strings of this step. Numbers may be numpy's. A value that is not finite
    is written as null: a training that diverges must not fail for saying so. Outside a job this does nothing,
    so that the same code runs by hand. Each line is written whole by one append; ranks and threads may all
    report.

    Raises WrongCall if ``step`` is no whole number, or a value is neither number nor string.
    """
    number: object = step
    if isinstance(number, bool) or not isinstance(number, numbers.Integral):
        raise WrongCall(f"report: the step is {number!r:.80}; give a whole number, as report(3, 0.91)")
    for name in more:
        if name in _RESERVED:
            raise WrongCall(f"report: {name!r} is a field of its own; give another name")
    record: dict[str, Any] = {"step": int(number), "value": _number("value", value), "time": time.time()}
    for name, item in more.items():
        record[name] = item if isinstance(item, str) else _number(name, item)
    directory = os.environ.get("NAS_HPC_JOB_DIR")
    if directory:
        _append(os.path.join(directory, METRICS_FILE), json.dumps(record).encode("ascii") + b"\n")


def _number(name: str, value: object) -> float | int | None:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        kind = type(value).__name__
        raise WrongCall(f"report: {name} is {kind} {value!r:.80}; give a number, as float(...) of it")
    if isinstance(value, numbers.Integral):
        return int(value)
    number = float(value)
    return number if math.isfinite(number) else None


def _append(path: str, line: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
    try:
        os.write(fd, line)
    finally:
        os.close(fd)
