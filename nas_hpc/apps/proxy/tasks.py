"""One proxy task: its record in the state file, and what its curves say so far."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from nas_hpc.analytics.proxy.correlation import (
    Aligned,
    Correlation,
    align,
    correlations,
    possible,
    rank_correlation,
)
from nas_hpc.analytics.proxy.curves import Array, Curve
from nas_hpc.analytics.proxy.stopping import Limits, Stop, Stopped, best_task, first_stop
from nas_hpc.apps.proxy.generator import hash_of
from nas_hpc.apps.trials.records import RUNNING, SUCCEEDED, Trial
from nas_hpc.trial.proxy_tasks import ProxyTaskConfig

NO_CORRELATION: Final = -5.0
NO_VALUE: Final = -1.0
"""What the state file has where there is no number."""
HOURS, NODE_HOURS = "hours", "node-hours"
"""What a task costs: the hours of its median training, or the node-hours of all."""
MET: Final = (Stop.CORRELATION.value, Stop.ACCURACY.value)
"""How a task ended that can be the best."""


@dataclass(frozen=True, slots=True)
class Seen:
    """The curves of a task's trials so far, as far as all of them are at the same step."""

    aligned: Aligned
    over_steps: Correlation
    possible: bool
    """Whether a correlation can still come about."""


def fresh_record(
    task: ProxyTaskConfig, number: int, name: str, directory: str, nodes: float = 1.0
) -> dict[str, Any]:
    """The record of a task that is to begin; ``name`` and ``directory`` are those of its round, ``nodes``
    those that each of its trainings has, or the share of one."""
    return {
        "proxy_task_stats": {
            "training_steps": [],
            "accuracy_correlation_over_step": [],
            "accuracy_correlation_p_value_over_step": [],
            "median_accuracy_over_step": [],
            "median_training_time_hrs_over_step": [],
            "latency_correlation": NO_CORRELATION,
            "latency_correlation_p_value": NO_CORRELATION,
            "stopping_state": "",
            "posted_stop_trials_message": False,
            "final_training_time_in_hours": NO_VALUE,
            "final_training_steps": -1,
            "final_node_hours": NO_VALUE,
        },
        "proxy_task_name": task.name,
        "search_job_name": name,
        "search_job_link": directory,
        "latency_calculator_job_name": "",
        "latency_calculator_job_link": "",
        "number": number,
        "docker_args_map": dict(task.docker_args_map),
        "docker_args_hash": hash_of(task.docker_args_map),
        "nodes_per_training": nodes,
        "finished": False,
        "notes": [],
    }


def look_at(
    trials: Sequence[Trial], curves: Sequence[Curve | None], full: Array, *, interpolate: bool
) -> Seen:
    """What can be said now. ``trials``: those that were begun, the k-th of them of model k; ``curves`` and
    ``full``: of all models.

    Only steps count that every running training has passed: whatever the order in which trials come along,
    a step has the same correlation whenever one looks.
    """
    aligned = align(curves, interpolate=interpolate)
    passed = _passed_by_all(trials, curves)
    count = int(np.searchsorted(aligned.steps, passed, side="right"))
    cut = Aligned(aligned.steps[:count], aligned.scores[:, :count], aligned.hours[:, :count])
    succeeded = sum(one.state == SUCCEEDED for one in trials)
    running = sum(one.state == RUNNING for one in trials) + len(full) - len(trials)
    return Seen(cut, correlations(cut, full), possible(running, succeeded, len(full)))


def _passed_by_all(trials: Sequence[Trial], curves: Sequence[Curve | None]) -> float:
    if len(trials) < len(curves):
        return -1.0
    last = math.inf
    for trial, curve in zip(trials, curves, strict=True):
        if trial.state == RUNNING:
            last = min(last, -1.0 if curve is None or not len(curve.steps) else float(curve.steps[-1]))
    return last


def stop_of(seen: Seen, limits: Limits) -> Stopped | None:
    """Why the task is to stop, if it is."""
    found = first_stop(seen.over_steps, limits)
    if found is None and not seen.possible:
        return Stopped(Stop.FAILURES, NO_VALUE, -1)
    return found


def note_statistics(record: dict[str, Any], found: Correlation, stopped: Stopped | None) -> None:
    """Put what was seen into the record; with ``stopped``, no step after the one that decided."""
    count = len(found.steps) if stopped is None or stopped.at < 0 else stopped.at + 1
    stats = record["proxy_task_stats"]
    stats["training_steps"] = [int(step) for step in found.steps[:count]]
    for key, values, none in (
        ("accuracy_correlation_over_step", found.tau, NO_CORRELATION),
        ("accuracy_correlation_p_value_over_step", found.p_value, NO_CORRELATION),
        ("median_accuracy_over_step", found.median_score, NO_VALUE),
        ("median_training_time_hrs_over_step", found.median_hours, NO_VALUE),
    ):
        stats[key] = [float(one) if math.isfinite(one) else none for one in values[:count]]
    if stopped is not None:
        stats["stopping_state"] = stopped.why.value
        stats["final_training_time_in_hours"] = stopped.hours
        stats["final_training_steps"] = stopped.step
        if stopped.total_hours >= 0.0:
            stats["final_node_hours"] = stopped.total_hours * nodes_of(record)


def note_latency(record: dict[str, Any], latency: Array, full: Array, desired: float | None) -> None:
    """The latencies' correlation; a task that met its aim otherwise has failed if that is too low."""
    tau, p_value = rank_correlation(latency, full)
    stats = record["proxy_task_stats"]
    if math.isfinite(tau):
        stats["latency_correlation"], stats["latency_correlation_p_value"] = tau, p_value
    else:
        known = int((np.isfinite(latency) & np.isfinite(full)).sum())
        record["notes"].append(
            f"no correlation of latencies can be computed: {known} of {len(full)} models have both"
            + ("" if known < len(full) else ", and one of them is the same for all")
        )
    too_low = desired is not None and not stats["latency_correlation"] >= desired
    if too_low and stats["stopping_state"] in MET:
        stats["stopping_state"] = Stop.LATENCY.value


def note_no_correlation(record: dict[str, Any], seen: Seen) -> None:
    """Say why, where not one correlation could be computed."""
    if np.isfinite(seen.over_steps.tau).any():
        return
    if not len(seen.over_steps.steps):
        why = "there is no step that all trainings came to"
    elif np.isfinite(seen.over_steps.median_score).any():
        why = "at each step all models have the same score"
    else:
        why = "at each step too few models have a score (5 and 70 % are needed, at the same steps)"
    record["notes"].append(f"no correlation can be computed: {why}")


def nodes_of(record: Mapping[str, Any]) -> float:
    """The nodes that each training of a task has, or its share of one."""
    return float(record.get("nodes_per_training", 1.0))


def best_of_tasks(tasks: Mapping[str, Mapping[str, Any]], cost: str = HOURS) -> tuple[str, float | None]:
    """(name, cost) of the best finished task: hours of one training, or node-hours of all; ("", None) if none
    met its aim."""
    key = "final_training_time_in_hours" if cost == HOURS else "final_node_hours"
    ended = {
        name: Stopped(
            Stop(one["proxy_task_stats"]["stopping_state"]),
            float(one["proxy_task_stats"].get(key, math.inf)),
            int(one["proxy_task_stats"]["final_training_steps"]),
        )
        for name, one in tasks.items()
        if one.get("finished")
    }
    name = best_task(ended)
    return name, ended[name].hours if name else None
