"""Where a trial is, which one it is, and what its search waits for: what the environment says.

Standard library only.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from nas_hpc.errors import WrongCall

DIRECTORY = "NAS_HPC_TRIAL_DIR"
NUMBER = "NAS_HPC_TRIAL"
TARGET = "NAS_HPC_TARGET_METRIC"
REQUIRED = "NAS_HPC_REQUIRED_METRICS"
"""Further metrics without which the search cannot use a trial, with commas between them."""
SCALING = "NAS_HPC_REWARD_SCALING"
"""``FACTOR,OFFSET``: the reward is FACTOR · value + OFFSET."""
FORMAT = "NAS_HPC_METRIC_FORMAT"
COMPATIBLE = "vertex"
"""The value of FORMAT with which lines of the metric file are as Vertex AI NAS has them."""

METRIC_FILE = "CLOUD_ML_HP_METRIC_FILE"
METRIC_TAG = "CLOUD_ML_HP_METRIC_TAG"
TRIAL_ID = "CLOUD_ML_TRIAL_ID"
MODEL_DIR = "AIP_MODEL_DIR"
METRICS_FILE = "metrics.jsonl"
_TRIAL = re.compile(r".*nas/(?:search|train)/\d+")


def trial_dir(model_dir: str | os.PathLike[str] | None = None) -> Path | None:
    """The trial's directory: ``model_dir`` if that is given, else as the environment says; None: unknown."""
    if model_dir is not None and os.fspath(model_dir):
        return Path(model_dir)
    if os.environ.get(DIRECTORY):
        return Path(os.environ[DIRECTORY])
    found = _TRIAL.match(os.environ.get(MODEL_DIR, ""))
    return Path(found[0]) if found else None


def trial_number() -> str:
    """The trial's number in its search, "" outside of one."""
    return os.environ.get(NUMBER, "") or os.environ.get(TRIAL_ID, "")


def target_metric() -> str:
    """The metric that the search makes great; "" if nobody waits for one."""
    return os.environ.get(TARGET, "") or os.environ.get(METRIC_TAG, "")


def required_metrics() -> tuple[str, ...]:
    """All metrics that the search waits for, the target first."""
    names = [target_metric(), *(name.strip() for name in os.environ.get(REQUIRED, "").split(","))]
    return tuple(dict.fromkeys(name for name in names if name))


def reward_scaling() -> tuple[float, float] | None:
    """Factor and offset that the search asks for; None: it asks for none. Raises WrongCall."""
    text = os.environ.get(SCALING, "")
    return checked_scaling(text.split(","), f"{SCALING} is {text!r}") if text else None


def checked_scaling(given: Sequence[float | str], what: str) -> tuple[float, float]:
    """Factor and offset. Raises WrongCall, which begins with ``what``, if they are none."""
    try:
        factor, offset = (float(one) for one in given)
        if not (math.isfinite(factor) and math.isfinite(offset) and factor != 0.0):
            raise ValueError
    except (TypeError, ValueError):
        raise WrongCall(f"{what}; give a factor, not 0, and an offset, as 0.01 and 0") from None
    return factor, offset


def metric_file() -> str:
    """Where reports go; "" outside of a trial and a job."""
    if os.environ.get(METRIC_FILE):
        return os.environ[METRIC_FILE]
    directory = os.environ.get(DIRECTORY) or os.environ.get("NAS_HPC_JOB_DIR")
    return os.path.join(directory, METRICS_FILE) if directory else ""


def is_compatible() -> bool:
    """Whether reports are to be as Vertex AI NAS has them: where that is asked for, or where nothing of this
    package's has started the trial and that service's variables are there."""
    if os.environ.get(FORMAT):
        return os.environ[FORMAT] == COMPATIBLE
    return bool(os.environ.get(METRIC_FILE)) and not os.environ.get(DIRECTORY)


def environment(directory: Path | str, number: str, target: str) -> dict[str, str]:
    """What the trial ``number`` in ``directory`` finds in its environment; programs that were written for
    Vertex AI NAS find the variables of that one."""
    directory = os.path.abspath(directory)
    return {
        DIRECTORY: directory,
        NUMBER: number,
        TARGET: target,
        TRIAL_ID: number,
        METRIC_TAG: target,
        METRIC_FILE: os.path.join(directory, METRICS_FILE),
        MODEL_DIR: os.path.join(directory, "saved_model"),
    }


def completed(environ: Mapping[str, str]) -> dict[str, str]:
    """``environ`` of a trial with what it lacks of ``environment``."""
    if not environ.get(DIRECTORY):
        return dict(environ)
    usual = environment(environ[DIRECTORY], environ.get(NUMBER, ""), environ.get(TARGET, ""))
    return {**{name: value for name, value in usual.items() if value}, **environ}
