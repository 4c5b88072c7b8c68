"""Reading a trial's metric file, whoever wrote it: ``report`` of this package, or a reporter of Vertex AI
NAS's kind, which replaces the file and writes all values as strings.

Standard library only.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from nas_hpc.trial.place import METRICS_FILE

_ABOUT = frozenset({"timestamp", "trial", "global_step", "checkpoint_path", "model_flops", "scaling"})
_PLAIN = frozenset(
    {"step", "value", "time", "metric", "other_metrics", "reward", "scaling", "trial", "checkpoint_path"}
)


@dataclass(frozen=True, slots=True)
class Report:
    """One report of a trial."""

    step: int | None
    metric: str
    """What was reported; "" where the trainer gave no name."""
    value: float
    """As the trainer gave it; not-a-number if it was not finite."""
    reward: float
    """The same, scaled if the trainer did so."""
    others: Mapping[str, float]
    """Further numbers of the report, by name; not-a-number if one was not finite."""
    time: float
    """Seconds since the epoch; 0: unknown."""
    scaled: bool = False
    """Whether the trainer made the reward by a scaling."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all that was reported."""
        return (*([self.metric] if self.metric else []), *self.others)

    def of(self, metric: str, scaling: tuple[float, float] = (1.0, 0.0)) -> float | None:
        """What it says of ``metric``, as the search counts it; None: nothing. A report without a name is of
        any metric that is waited for. ``scaling`` (factor, offset) is for what the trainer did not scale."""
        if metric in ("", self.metric) or not (self.metric or metric in self.others):
            if self.scaled:
                return self.reward
            value: float | None = self.value
        else:
            value = self.others.get(metric)
        return None if value is None else scaling[0] * value + scaling[1]


def read_reports(path: str | os.PathLike[str]) -> Iterator[Report]:
    """The reports in a metric file, or in a trial's directory, oldest first, each read when it is asked for:
    there may be millions. Lines that are torn or no reports are passed over; no file has none."""
    path = os.fspath(path)
    if os.path.isdir(path):
        path = os.path.join(path, METRICS_FILE)
    try:
        with open(path, "rb") as stream:
            for line in stream:
                found = _report(line)
                if found is not None:
                    yield found
    except OSError:
        return


def last_metrics(path: str | os.PathLike[str]) -> dict[str, float]:
    """The newest number of every metric that the trial reported, by name (``value`` where it gave none);
    not-a-number where the newest is not finite. Empty if there is nothing."""
    known: dict[str, float] = {}
    for one in read_reports(path):
        known[one.metric or "value"] = one.value
        known.update(one.others)
    return known


def _report(line: bytes) -> Report | None:
    try:
        content = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(content, dict):
        return None
    return _plain(content) if "value" in content and "step" in content else _compatible(content)


def _plain(content: dict[str, Any]) -> Report | None:
    value = _number(content["value"])
    reward = _number(content["reward"]) if "reward" in content else value
    if value is None or reward is None:
        return None
    more = content.get("other_metrics")
    others = _numbers({name: item for name, item in content.items() if name not in _PLAIN})
    others.update(_numbers(more if isinstance(more, dict) else {}))
    metric = content.get("metric")
    return Report(
        _step(content["step"]),
        metric if isinstance(metric, str) else "",
        value,
        reward,
        others,
        _number(content.get("time", 0.0)) or 0.0,
        scaled="reward" in content,
    )


def _compatible(content: dict[str, Any]) -> Report | None:
    if "global_step" not in content:
        return None
    names = [name for name in content if name not in _ABOUT and not _is_pair(name, content)]
    value = _number(content[names[0]]) if len(names) == 1 else None
    if value is None:
        return None
    pairs = {
        str(item): content.get(f"value_{name[4:]}") for name, item in content.items() if name[:4] == "key_"
    }
    if content.get("model_flops") not in (None, ""):
        pairs["model_flops"] = content["model_flops"]
    time = _number(content.get("timestamp", 0.0)) or 0.0
    return Report(
        _step(content.get("global_step")), names[0], value, value, _numbers(pairs), time,
        scaled="scaling" in content,
    )  # fmt: skip


def _is_pair(name: str, content: Mapping[str, Any]) -> bool:
    kind, _, number = name.partition("_")
    return kind in ("key", "value") and number.isdigit() and f"key_{number}" in content


def _numbers(items: Mapping[str, Any]) -> dict[str, float]:
    found = ((str(name), _number(item)) for name, item in items.items())
    return {name: item for name, item in found if item is not None}


def _number(item: Any) -> float | None:
    """A number, also one written as text; not-a-number for null and what is not finite; None: no number."""
    if item is None:
        return math.nan
    if isinstance(item, bool) or not isinstance(item, int | float | str):
        return None
    try:
        number = float(item)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else math.nan


def _step(item: Any) -> int | None:
    number = _number(item)
    return int(number) if number is not None and math.isfinite(number) else None
