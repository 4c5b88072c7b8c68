"""Metrics of a running trial: a line of JSON for each report, in the metric file of the trial or in
``metrics.jsonl`` of its job's directory.

Standard library only.
"""

from __future__ import annotations

import json
import math
import numbers
import os
import sys
import time
from collections.abc import Mapping
from typing import Any, overload

from nas_hpc.errors import WrongCall
from nas_hpc.trial import place

LEAST_REWARD, GREATEST_REWARD = 1e-3, 10.0
"""Rewards outside make some searches learn badly."""
MOST_OTHERS, LONGEST_NAME = 5, 64
"""What Vertex AI NAS takes of other metrics."""
_RESERVED = ("step", "value", "time")
_OF_NAMED = ("metric", "other_metrics", "reward", "scaling", "trial")
_checked: set[str] = set()
"""Metric files whose first report of this process has what the search waits for."""
_whole: set[str] = set()
"""Metric files that this process has written to: a last line without an end is one that is being written."""
_told: set[str] = set()


class UnknownMetric(WrongCall):
    """The search waits for a metric that the trainer does not report."""


@overload
def report(step: int, value: float, **more: float | str) -> None: ...


@overload
def report(
    metric: str,
    value: float,
    step: int,
    other_metrics: Mapping[str, float] | None = None,
    *,
    checkpoint_path: str = "",
    model_flops: float | None = None,
    scaling: tuple[float, float] | None = None,
) -> None: ...


def report(*given: Any, **named: Any) -> None:
    """Note that the trial reached ``step`` (an epoch, a number of batches) with ``value``; greater is better.

    ``report("accuracy", 0.91, 3, other_metrics={"latency_ms": 4.2})`` names the metric, as trials of a search
    do: the last report is the trial's result. Where the search waits for one that the first report does not
    have, ``UnknownMetric`` ends the trial. ``scaling`` (factor, offset), else that of the search, makes the
    reward of the value; both are recorded. ``checkpoint_path`` and ``model_flops`` are recorded, too.

    ``report(3, 0.91, loss=0.2)`` names none; it is the search's then. ``more`` are numbers or strings.

    Numbers may be numpy's, or arrays and tensors without dimensions. A value that is not finite is written as
    null: a training that diverges must not fail for saying so. Outside of a trial and a job this does
    nothing, so that the same code runs by hand.
    Each line is written whole by one append; ranks and threads may all report.

    Raises WrongCall if ``step`` is no whole number, or a value is neither number nor string.
    """
    by_name = bool(given) and isinstance(given[0], str) and (len(given) > 2 or "step" in named)
    record = _named(*given, **named) if by_name or "metric" in named else _plain(*given, **named)
    path = place.metric_file()
    if not path:
        return
    line = _compatible(record) if place.is_compatible() else record
    _append(path, json.dumps(line).encode("ascii") + b"\n")
    _check_names(path, record)


def _plain(step: int, value: float, **more: float | str) -> dict[str, Any]:
    for name in more:
        if name in _RESERVED + _OF_NAMED:
            raise WrongCall(f"report: {name!r} is a field of its own; give another name")
    record: dict[str, Any] = {"step": _step(step), "value": _number("value", value), "time": time.time()}
    record.update({name: _item(name, item) for name, item in more.items()})
    return record


def _named(
    metric: str,
    value: float,
    step: int,
    other_metrics: Mapping[str, float] | None = None,
    *,
    checkpoint_path: str = "",
    model_flops: float | None = None,
    scaling: tuple[float, float] | None = None,
) -> dict[str, Any]:
    if not isinstance(metric, str) or not metric:
        raise WrongCall(
            f"report: the metric is {metric!r:.80}; give its name, as report('accuracy', 0.91, 3)"
        )
    number = _number("value", value)
    record: dict[str, Any] = {"step": _step(step), "value": number, "time": time.time(), "metric": metric}
    if place.trial_number():
        record["trial"] = place.trial_number()
    if other_metrics is not None and not isinstance(other_metrics, Mapping):
        raise WrongCall(f"report: other_metrics is {other_metrics!r:.80}; give a dictionary of numbers")
    others = {str(name): _item(name, item) for name, item in (other_metrics or {}).items()}
    if model_flops is not None:
        others["model_flops"] = _number("model_flops", model_flops)
    if others:
        record["other_metrics"] = others
    if checkpoint_path:
        record["checkpoint_path"] = os.fspath(checkpoint_path)
    if metric == (place.target_metric() or metric) and number is not None:
        asked = place.reward_scaling()
        if scaling is not None:
            asked = place.checked_scaling(scaling, f"report: scaling is {scaling!r:.80}")
        record.update(_scaled(number, asked))
    return record


def _scaled(value: float, scaling: tuple[float, float] | None) -> dict[str, Any]:
    """What is recorded of the reward; a warning, once, where it is far from what searches are made for."""
    factor, offset = scaling or (1.0, 0.0)
    reward = factor * value + offset
    if not LEAST_REWARD <= reward <= GREATEST_REWARD:
        _warn(
            "range",
            f"the reward {reward:g} is outside of {LEAST_REWARD:g} to {GREATEST_REWARD:g}, where searches "
            f"learn best: scale it ({place.SCALING}, or scaling=(factor, offset) of report)",
        )
    if scaling is None:
        return {}
    return {"reward": reward if math.isfinite(reward) else None, "scaling": [factor, offset]}


def _check_names(path: str, record: Mapping[str, Any]) -> None:
    """The first report has to have all that the search waits for."""
    if path in _checked:
        return
    metric, others = record.get("metric"), dict(record.get("other_metrics", {}))
    if metric is None:
        others = {name: item for name, item in record.items() if name not in _RESERVED}
    for wanted in place.required_metrics():
        if wanted in others or wanted == metric or (metric is None and wanted == place.target_metric()):
            continue
        names = ", ".join(repr(name) for name in ([metric] if metric else []) + list(others))
        raise UnknownMetric(
            f"the search waits for the metric {wanted!r}, and this trainer reports {names or 'no name'}: "
            "have it in each report, as the metric or in other_metrics, or search for another one"
        )
    _checked.add(path)


def _compatible(record: Mapping[str, Any]) -> dict[str, str]:
    """A record as Vertex AI NAS has it: all values are text, and there are five other metrics at most."""
    tag = record.get("metric") or place.target_metric() or "value"
    value = record.get("reward", record["value"])
    others = dict(record.get("other_metrics", {}))
    flops = others.pop("model_flops", 0.0)
    line = {
        "timestamp": str(record["time"]),
        "trial": place.trial_number(),
        tag: "nan" if value is None else str(float(value)),
        "global_step": str(record["step"]),
        "checkpoint_path": str(record.get("checkpoint_path", "")),
        "model_flops": str(flops),
    }
    if "scaling" in record:
        line["scaling"] = json.dumps(record["scaling"])
    usable = {name: item for name, item in others.items() if len(name) <= LONGEST_NAME and name not in line}
    kept = dict(list(usable.items())[:MOST_OTHERS])
    if len(kept) < len(others):
        left = ", ".join(repr(name) for name in others if name not in kept)
        _warn(f"others {left}", f"not reported: {left}; there are {MOST_OTHERS} other metrics at most, with "
              f"names of up to {LONGEST_NAME} characters and of their own")  # fmt: skip
    for index, (name, item) in enumerate(kept.items()):
        line[f"key_{index}"] = name
        line[f"value_{index}"] = "nan" if item is None else str(item)
    return line


def _step(step: Any) -> int:
    step = _scalar(step)
    if isinstance(step, bool) or not isinstance(step, numbers.Integral):
        raise WrongCall(
            f"report: the step is {step!r:.80}; give a whole number, as report(3, 0.91) or "
            "report('accuracy', 0.91, 3)"
        )
    return int(step)


def _item(name: object, item: object) -> float | int | str | None:
    return item if isinstance(item, str) else _number(str(name), item)


def _number(name: str, value: Any) -> float | int | None:
    value = _scalar(value)
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        kind = type(value).__name__
        raise WrongCall(f"report: {name} is {kind} {value!r:.80}; give a number, as float(...) of it")
    try:
        number = float(value)
    except OverflowError:
        return None
    if isinstance(value, numbers.Integral):
        return int(value)
    return number if math.isfinite(number) else None


def _scalar(value: Any) -> Any:
    """The number in an array or a tensor without dimensions; anything else as it is."""
    if isinstance(value, numbers.Number) or tuple(getattr(value, "shape", (0,))) != ():
        return value
    if not hasattr(value, "item") and hasattr(value, "numpy"):  # TensorFlow's and Keras's
        value = value.numpy()
    return value.item() if hasattr(value, "item") else value


def _warn(about: str, text: str) -> None:
    if about not in _told:
        _told.add(about)
        print(f"nas-hpc: {text}", file=sys.stderr, flush=True)


def _append(path: str, line: bytes) -> None:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
    try:
        if path not in _whole and _is_torn(fd):
            line = b"\n" + line
        left = memoryview(line)
        while left:  # a disk that gets full takes a part, and says so of the rest
            left = left[os.write(fd, left) :]
        _whole.add(path)
    except OSError:
        _whole.discard(path)
        raise
    finally:
        os.close(fd)


def _is_torn(fd: int) -> bool:
    """Whether the last line has no end: a disk was full, or its writer was killed."""
    size = os.fstat(fd).st_size
    return size > 0 and os.pread(fd, 1, size - 1) != b"\n"
