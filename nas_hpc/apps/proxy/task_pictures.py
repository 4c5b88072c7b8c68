"""Pictures of a proxy task, with the names that those of Vertex AI NAS have. One that cannot be written is
told of, and no reason to end."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from nas_hpc.analytics.proxy.correlation import rank_correlation
from nas_hpc.analytics.proxy.curves import Array
from nas_hpc.analytics.proxy.pictures import draw_correlation, draw_median, draw_pairs
from nas_hpc.apps.proxy.reference import Reference
from nas_hpc.apps.proxy.tasks import Seen

_log = logging.getLogger("nas_hpc.apps")


def draw(directory: str, record: dict[str, Any], seen: Seen, reference: Reference) -> None:
    """Draw what is known of the task; of each step its picture, once."""
    start = _start(directory, record)
    found = seen.over_steps
    for at in range(len(record["proxy_task_stats"]["training_steps"])):
        path = Path(f"{start}_accuracy_correlation_at_step_{found.steps[at]}.png")
        if math.isfinite(found.tau[at]) and not path.exists():
            scores, tau = seen.aligned.scores[:, at], float(found.tau[at])
            _drawn(lambda p=path, s=scores, t=tau: draw_pairs(reference.accuracy, s, t, p, reference.trials))  # type: ignore[misc]
    for name, call, hours in (
        ("accuracy_correlation_vs_training_steps", draw_correlation, False),
        ("accuracy_correlation_vs_training_time", draw_correlation, True),
        ("accuracy_vs_training_steps", draw_median, False),
        ("accuracy_vs_training_time", draw_median, True),
    ):
        _drawn(lambda c=call, n=name, h=hours: c(found, Path(f"{start}_{n}.png"), hours=h))  # type: ignore[misc]


def draw_latency(directory: str, record: dict[str, Any], latency: Array, reference: Reference) -> None:
    """Draw the latencies of the task's models over those of the full ones."""
    if not (np.isfinite(latency) & np.isfinite(reference.latency)).any():
        return
    tau, _ = rank_correlation(latency, reference.latency)
    path = Path(f"{_start(directory, record)}_latency_correlation.png")
    _drawn(lambda: draw_pairs(reference.latency, latency, tau, path, reference.trials, what="latency"))


def _start(directory: str, record: dict[str, Any]) -> str:
    return str(Path(directory, f"proxy_task_{record['proxy_task_name']}"))


def _drawn(call: Callable[[], None]) -> None:
    try:
        call()
    except OSError as error:
        _log.warning("a picture cannot be written: %s", error.strerror)
