"""How far a trial is to train, and how far it has come: files between it and its controller.

File names and keys are those of the proxy-task tools of Vertex AI NAS. Where those lose an order of 0, or
cannot take one back, or trust a file that is being written, these do not. Of several ranks one is to call
these functions. Standard library only.
"""

from __future__ import annotations

import math
import os
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from nas_hpc.errors import WrongCall
from nas_hpc.plain import finite
from nas_hpc.trial.jsonfiles import read_object, write_json
from nas_hpc.trial.place import trial_dir

TRAINING_FILE = "TRIAL_TRAINING_METRICS.json"
DESIRED_PCT_FILE = "DESIRED_TRAINING_PCT.json"
MAX_TIME_FILE = "MAX_TRAINING_TIME.json"
ALIVE_FILE = "controller_alive_timestamp.json"
STOPPED_FILE = "TRIAL_STOPPED.json"
"""Why the training was told to stop, for the controller: {"reason", "training_step", "timestamp"}."""
ALIVE_LIMIT_S = 15 * 60.0
"""A controller that has said nothing for longer is gone. Only one that says that it is there can be: ours do
not. Their orders are there before a trial begins, and a trial goes on without its controller, which finds it
again under the next launcher.
"""
_MOST_STEPS = 2.0**62
CONTROLLER_GONE, DESIRED_PCT, MAX_TIME = "controller_gone", "desired_training_pct", "max_training_time"

ModelDir = str | os.PathLike[str] | None
"""A trial's directory; None: the one that the environment says."""


# -- the trainer's side ----------------------------------------------------------------------------------
def stop_training(
    model_dir: ModelDir = None, end_training_cycle_step: int = -1, total_training_steps: int = 0
) -> bool:
    """Whether the training is to stop after its step ``end_training_cycle_step`` (counted from 0; -1: before
    the first) of ``total_training_steps``: because its controller is gone, it has trained as many percent as
    were asked for, or longer than it may. To be asked before each cycle. Outside of a trial: no.

    The reason is printed and left in the trial's directory. A trial that stops so has not failed: it reports
    what it has and ends as always. Raises WrongCall for a training without steps.
    """
    pct = _pct(end_training_cycle_step, total_training_steps)
    directory = trial_dir(model_dir)
    if directory is None:
        return False
    reason, text = _reason_to_stop(directory, pct)
    path = directory / STOPPED_FILE
    if not reason:
        with suppress(OSError):
            path.unlink(missing_ok=True)
        return False
    print(
        f"nas-hpc: the training stops after step {end_training_cycle_step}: {text}",
        file=sys.stderr,
        flush=True,
    )
    with suppress(OSError):  # it is told, and stops all the same
        _write(path, {"reason": reason, "training_step": end_training_cycle_step, "timestamp": time.time()})
    return True


get_stop_training = stop_training
"""The name that Vertex AI NAS has for it."""


def update_trial_training_accuracy_metric(
    model_dir: ModelDir,
    accuracy: float,
    begin_training_cycle_step: int,
    end_training_cycle_step: int,
    training_cycle_time_in_secs: float,
    total_training_steps: int,
) -> None:
    """Record the score after a cycle of training, from step ``begin…`` to ``end…`` (counted from 0, both
    included), and its time without validation.

    A cycle that is recorded already, because the training was interrupted before its checkpoint, changes
    nothing. What was recorded of a training that is longer, or shorter, now has its percentages. A score that
    is not finite is recorded as null; 0 is a score. Outside of a trial this does nothing.

    Raises WrongCall for steps or times that make no sense.
    """
    if not 0 <= begin_training_cycle_step <= end_training_cycle_step:
        raise WrongCall(
            f"the training cycle goes from step {begin_training_cycle_step} to {end_training_cycle_step}: "
            "steps are counted from 0, and the last is in the cycle"
        )
    if not 0.0 <= training_cycle_time_in_secs < math.inf:
        raise WrongCall(f"a training cycle took {training_cycle_time_in_secs} s: give seconds")
    pct = _pct(end_training_cycle_step, total_training_steps)
    directory = trial_dir(model_dir)
    if directory is None:
        return
    record = read_training(directory)
    points = record["training_accuracy_over_steps"]
    if points and points[-1]["training_step"] >= end_training_cycle_step:
        return
    for point in points:  # it may be longer now than it was to be
        point["training_step_pct"] = _pct(point["training_step"], total_training_steps)
    number = float(accuracy)
    points.append(
        {
            "training_step_pct": pct,
            "training_step": int(end_training_cycle_step),
            "accuracy": number if math.isfinite(number) else None,
        }
    )
    spent = record["training_time"]
    spent["total_training_steps"] += int(end_training_cycle_step) - int(begin_training_cycle_step) + 1
    spent["total_training_time_in_secs"] += float(training_cycle_time_in_secs)
    _write(directory / TRAINING_FILE, record)


def update_trial_training_latency_metric(model_dir: ModelDir, latency: float) -> None:
    """Record the latency of the trained model; -1 is none. Outside of a trial this does nothing."""
    directory = trial_dir(model_dir)
    if directory is None:
        return
    number = float(latency)
    record = read_training(directory)
    record["latency"] = number if math.isfinite(number) else -1.0
    _write(directory / TRAINING_FILE, record)


def read_training(model_dir: ModelDir = None) -> dict[str, Any]:
    """What is recorded of the training, with the keys of its file. Points that cannot be understood are left
    out; a record that is missing, or torn, is an empty one."""
    directory = trial_dir(model_dir)
    content = (read_object(directory / TRAINING_FILE) if directory is not None else None) or {}
    spent = content.get("training_time")
    spent = spent if isinstance(spent, dict) else {}
    given = content.get("training_accuracy_over_steps")
    points = [_point(one) for one in given] if isinstance(given, list) else []
    latency = finite(content.get("latency"))
    return {
        "training_time": {
            "total_training_steps": int(finite(spent.get("total_training_steps")) or 0),
            "total_training_time_in_secs": finite(spent.get("total_training_time_in_secs")) or 0.0,
        },
        "latency": -1.0 if latency is None else latency,
        "training_accuracy_over_steps": [point for point in points if point is not None],
    }


def adopt_training(previous: str | os.PathLike[str], model_dir: ModelDir = None) -> None:
    """Take over the record of the trial in ``previous``, from whose checkpoint this one goes on, unless this
    one has a record. Raises OSError."""
    directory = trial_dir(model_dir)
    content = read_object(Path(previous) / TRAINING_FILE)
    if directory is not None and content is not None and not (directory / TRAINING_FILE).exists():
        _write(directory / TRAINING_FILE, content)


# -- the controller's side -------------------------------------------------------------------------------
def post_desired_training_pct(model_dir: str | os.PathLike[str], pct: float) -> None:
    """Have the trial stop once it has trained ``pct`` percent; 0: at its next look, more than 100: never. A
    later order replaces an earlier one. Raises WrongCall and OSError."""
    _post(model_dir, DESIRED_PCT_FILE, "desired_training_pct", pct)


def post_max_training_time(model_dir: str | os.PathLike[str], hours: float) -> None:
    """Have the trial stop once it has trained longer than ``hours``, as it records them. A later order
    replaces an earlier one. Raises WrongCall and OSError."""
    _post(model_dir, MAX_TIME_FILE, "max_training_time_in_hrs", hours)


def _post(model_dir: str | os.PathLike[str], name: str, key: str, value: float) -> None:
    if isinstance(value, bool) or not 0.0 <= float(value) < math.inf:
        raise WrongCall(f"{key} is {value!r}: give a number from 0 on")
    _write(Path(model_dir) / name, {key: float(value)})


def _reason_to_stop(directory: Path, pct: float) -> tuple[str, str]:
    told = _order(directory / ALIVE_FILE, "timestamp")
    if told is not None and time.time() - told > ALIVE_LIMIT_S:
        minutes = (time.time() - told) / 60.0
        return (
            CONTROLLER_GONE,
            f"its controller has not been heard of for {minutes:.0f} minutes ({ALIVE_FILE})",
        )
    desired = _order(directory / DESIRED_PCT_FILE, "desired_training_pct")
    if desired is not None and pct >= desired:
        return DESIRED_PCT, f"{desired:g} % of the training were asked for ({DESIRED_PCT_FILE})"
    hours = _order(directory / MAX_TIME_FILE, "max_training_time_in_hrs")
    if hours is not None:
        spent = read_training(directory)["training_time"]["total_training_time_in_secs"] / 3600.0
        if spent > hours:
            return MAX_TIME, f"it has trained for {spent:.3g} of {hours:g} hours ({MAX_TIME_FILE})"
    return "", ""


def _pct(end_step: int, total: int) -> float:
    if total <= 0:
        raise WrongCall(f"the training has {total} steps altogether: give a number from 1 on")
    return 100.0 * (int(end_step) + 1) / int(total)


def _point(item: object) -> dict[str, Any] | None:
    if not isinstance(item, dict):
        return None
    pct, step = finite(item.get("training_step_pct")), finite(item.get("training_step"))
    if pct is None or step is None or not 0 <= step < _MOST_STEPS:
        return None
    return {"training_step_pct": pct, "training_step": int(step), "accuracy": finite(item.get("accuracy"))}


def _order(path: Path, key: str) -> float | None:
    return finite((read_object(path) or {}).get(key))


def _write(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, content)
