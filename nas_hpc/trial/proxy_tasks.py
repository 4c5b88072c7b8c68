"""Proxy tasks that are to be tried, and helpers for the functions that make them: less training data, a
smaller model, and all combinations of both.

A generator is a function of the trainer's flags for a full training; it gives the tasks in the order in which
they are to be tried, the cheapest first:

    def generate(baseline_args):
        return data_tasks(baseline_args, [25, 50, 75], flag="share")

How many steps a task trains needs no task of its own: the search looks at all of them as it trains.
Standard library only.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from nas_hpc.errors import WrongCall
from nas_hpc.trial.subsets import write_subset

Change = Mapping[str, Any]
"""Flags that take the place of the baseline's."""


@dataclass(frozen=True, slots=True)
class ProxyTaskConfig:
    """A proxy task: its name, and the trainer's flags for it."""

    name: str
    docker_args_map: Mapping[str, Any] = field(default_factory=dict)
    """Flags without their dashes; the name is that of Vertex AI NAS."""


@dataclass(frozen=True, slots=True)
class Choice:
    """One value of a dimension of a grid: what it adds to the task's name, and which flags it sets."""

    name: str
    flags: Change


def grid(
    baseline_args: Mapping[str, Any], *dimensions: Iterable[Choice], prefix: str = ""
) -> list[ProxyTaskConfig]:
    """All combinations of the dimensions' choices, the first dimension changing slowest; a task's name is
    ``prefix`` and the names of its choices, joined by "_". Raises WrongCall if two choices of one combination
    set the same flag."""
    tasks = []
    for combination in itertools.product(*dimensions):
        flags: dict[str, Any] = {}
        for choice in combination:
            twice = sorted(flags.keys() & choice.flags.keys())
            if twice:
                raise WrongCall(
                    f"two dimensions of the grid set the flag {twice[0]!r}: let one of them do it"
                )
            flags |= choice.flags
        name = "_".join(part for part in (prefix, *(choice.name for choice in combination)) if part)
        tasks.append(ProxyTaskConfig(name, {**baseline_args, **flags}))
    return tasks


def data_tasks(
    baseline_args: Mapping[str, Any],
    percents: Sequence[float],
    *,
    flag: str = "share",
    prefix: str = "",
) -> list[ProxyTaskConfig]:
    """A task for each of ``percents`` of the training data, by a trainer whose ``flag`` takes the share.
    Raises WrongCall."""
    return grid(baseline_args, data_shares(percents, flag=flag), prefix=prefix)


def data_shares(percents: Sequence[float], *, flag: str = "share") -> list[Choice]:
    """The dimension of less training data, by a flag that takes a share from 0 to 1. Raises WrongCall."""
    return [
        Choice(f"training_data_pct_{_word(pct)}", {flag: f"{_checked_pct(pct) / 100:.12g}"})
        for pct in percents
    ]


def data_subsets(
    manifest: str,
    output_dir: str,
    percents: Sequence[float],
    *,
    flag: str = "training_data_path",
    seed: int = 0,
    label: Callable[[str], str] | None = None,
    balance: bool = False,
) -> list[Choice]:
    """The dimension of less training data, by manifests (one example or shard a line) of so much of
    ``manifest``, which are written into ``output_dir``: shuffled with ``seed``, and by ``label`` stratified
    or, with ``balance``, balanced (``nas_hpc.trial.subsets``). Raises WrongCall."""
    return [
        Choice(
            f"training_data_pct_{_word(pct)}",
            {flag: write_subset(manifest, output_dir, _checked_pct(pct) / 100, seed, label, balance=balance)},
        )
        for pct in percents
    ]


def model_scales(
    baseline_args: Mapping[str, Any],
    percents: Sequence[float],
    *,
    flags: Sequence[str],
    multiple_of: int = 1,
    latency_flag: str = "",
    latencies: Mapping[float, float] | None = None,
) -> list[Choice]:
    """The dimension of smaller models: ``flags`` of the baseline that are whole numbers (filters, blocks, the
    size of an image) times so many percent, rounded to ``multiple_of`` and never below it.

    A smaller model needs a tighter limit on its latency: ``latency_flag`` of the baseline is scaled as
    ``latencies`` (measured ones of the baseline model, by percent, with that of 100) say, or as the model if
    there are none. Raises WrongCall.
    """
    return [
        Choice(
            f"model_scale_{_word(pct)}",
            {
                **{flag: _scaled(baseline_args, flag, _checked_pct(pct), multiple_of) for flag in flags},
                **_latency(baseline_args, latency_flag, pct, latencies),
            },
        )
        for pct in percents
    ]


def _scaled(baseline: Mapping[str, Any], flag: str, pct: float, multiple_of: int) -> int:
    try:
        whole = int(str(baseline[flag]))
    except KeyError:
        raise WrongCall(
            f"the flag {flag!r} is none of the baseline ({_some(baseline)}): give it there"
        ) from None
    except ValueError:
        raise WrongCall(
            f"the baseline's {flag} is {baseline[flag]!r}: only whole numbers are scaled"
        ) from None
    return max(multiple_of, round(whole * pct / 100 / multiple_of) * multiple_of)


def _latency(
    baseline: Mapping[str, Any], flag: str, pct: float, latencies: Mapping[float, float] | None
) -> dict[str, Any]:
    if not flag:
        return {}
    try:
        limit = float(str(baseline[flag]))
    except (KeyError, ValueError):
        raise WrongCall(
            f"the baseline has no number in {flag!r} ({_some(baseline)}): give the limit of the whole model"
        ) from None
    if latencies is None:
        return {flag: limit * pct / 100}
    try:
        return {flag: limit * latencies[pct] / latencies[100]}
    except (KeyError, ZeroDivisionError):
        raise WrongCall(
            f"latencies has {sorted(latencies)}: give the measured one of {pct:g} and of 100 percent"
        ) from None


def _checked_pct(pct: float) -> float:
    if not 0 < pct <= 100 or not math.isfinite(pct):
        raise WrongCall(f"{pct!r} percent: give more than 0 and at most 100")
    return float(pct)


def _word(pct: float) -> str:
    return f"{pct:g}"


def _some(flags: Mapping[str, Any]) -> str:
    names = list(flags)
    return "it has " + (", ".join(names[:6]) + (", …" if len(names) > 6 else "") if names else "none")
