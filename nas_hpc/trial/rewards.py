"""Rewards with the latency of the exported model: waiting for who measures it, and the formula.

Standard library only.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from nas_hpc.errors import WorkFailed, WrongCall
from nas_hpc.trial.latency import (
    error_of,
    has_model,
    is_measured,
    measured_latency,
    read_latency,
    request_latency,
)
from nas_hpc.trial.place import trial_dir
from nas_hpc.trial.proxy import ModelDir
from nas_hpc.trial.stopping import should_stop

VARIABLE: Final = "NAS_HPC_TRIAL_LATENCY"
"""In a trial's environment, who measures its model meanwhile: nobody, workers, or a calculator."""
WAIT_S: Final = 600.0
_WORKERS = "workers"
_LOOK_S = 2.0


def environment(
    *,
    workers: bool = False,
    wait_s: float = WAIT_S,
    command: tuple[str, ...] = (),
    flags: Mapping[str, str] | None = None,
    underscores: bool = False,
    limit_s: float = 0.0,
) -> dict[str, str]:
    """What a trial finds in its environment: its model is measured by ``workers`` that follow its search, for
    which it waits ``wait_s`` at most, or by the calculator ``command``, in the trial itself."""
    if command:
        body: dict[str, Any] = {"command": command, "flags": dict(flags or {}), "underscores": underscores,
                                "limit_s": limit_s}  # fmt: skip
    elif workers:
        body = {_WORKERS: True, "wait_s": wait_s}
    else:
        return {}
    return {VARIABLE: json.dumps(body)}


def wait_for_latency(model_dir: ModelDir = None, timeout_s: float | None = None) -> dict[str, Any] | None:
    """The latency of the model that this trial has exported to ``saved_model``, whole, of its directory: a
    dictionary with ``latency_in_milli_seconds`` and what else its calculator said. It is waited for where
    workers measure it, ``timeout_s`` seconds at most (None: as the search says, else 600), and measured here
    and now where the search has a calculator.

    None where nobody measures now: outside of a trial, in a search that was not asked for latencies, and
    where they are measured when all trainings are over; and after SIGTERM.

    Raises WorkFailed if nobody has measured it in time, or it cannot be measured.
    """
    directory = trial_dir(model_dir)
    if directory is None:
        return None
    if measured_latency(directory) is not None:
        return read_latency(directory)
    who = _who()
    if not who:
        return None
    if not has_model(directory):
        raise WorkFailed(f"there is no model in {directory / 'saved_model'}: export it before its latency")
    request_latency(directory)
    if "command" in who:
        _measure(directory, who)
    elif not _wait(directory, float(who.get("wait_s", WAIT_S)) if timeout_s is None else timeout_s):
        return None
    if measured_latency(directory) is None:
        raise WorkFailed(f"no latency could be measured: {error_of(directory) or 'nobody says why'}")
    return read_latency(directory)


def measure_left(directory: Path) -> None:
    """Measure the model that the trainer has left without asking for its latency, where the search has a
    calculator. That it cannot be measured is said, and no failure."""
    who = _who()
    if "command" not in who or not has_model(directory) or measured_latency(directory) is not None:
        return
    if not error_of(directory):
        _measure(directory, who)


def compute_reward(
    accuracy: float,
    target_latency: float,
    measured_latency: float,
    target_memory: float = 0.0,
    measured_memory: float = 0.0,
    weight: float = 1.0,
    use_hard_limit: bool = True,
) -> float:
    """accuracy · (target / measured latency)^weight · (target / measured memory)^weight, the last with a
    ``target_memory`` only. With ``use_hard_limit`` what is below its target counts as at it. Of each pair
    both are in the same unit; FLOPs do as well as latencies.

    Raises WrongCall for targets and measurements that are not above 0.
    """
    factors = []
    pairs = [("latency", target_latency, measured_latency)]
    if target_memory:
        pairs.append(("memory", target_memory, measured_memory))
    for name, target, measured in pairs:
        if not (0.0 < target < math.inf and 0.0 < measured < math.inf):
            raise WrongCall(
                f"the {name} has the target {target:g} and was measured as {measured:g}: both have to be "
                "above 0"
            )
        factor = (target / measured) ** weight
        factors.append(min(factor, 1.0) if use_hard_limit else factor)
    return float(accuracy * math.prod(factors))


def _who() -> dict[str, Any]:
    try:
        found = json.loads(os.environ.get(VARIABLE) or "{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _wait(directory: Path, timeout_s: float) -> bool:
    """Wait for a worker; False after SIGTERM."""
    ends = time.monotonic() + timeout_s
    while not is_measured(directory):
        left = ends - time.monotonic()
        if left <= 0.0:
            raise WorkFailed(
                f"nobody has measured the latency of {directory / 'saved_model'} within {timeout_s:g} s: is "
                "there an nas-hpc run-latency-calculator-local that follows this search?"
            )
        time.sleep(min(_LOOK_S, left))  # the worker is on another host: nothing tells but its file
        if should_stop():
            return False
    return True


def _measure(directory: Path, who: Mapping[str, Any]) -> None:
    """Measure it in a process of its own, for this one may have threads."""
    import subprocess  # few trainers need it

    from nas_hpc.trial.measure import Calculator, program

    calculator = Calculator(
        command=tuple(who["command"]), flags=who.get("flags") or {}, worker="trial",
        underscores=bool(who.get("underscores")), limit_s=float(who["limit_s"]),
    )  # fmt: skip
    sys.stdout.flush()
    subprocess.run(program(directory, calculator), stdin=subprocess.DEVNULL, stdout=2, check=False)
