"""Checkpoints of trials: the whole state of a training, its optimizer and its step included.

A checkpoint is one file in ``checkpoint/`` of the trial's directory: a line of JSON with its step and a
checksum, then what the trainer gave. The last two are kept, so that one that cannot be read costs the way
from the one before it. Loads numpy only where arrays are given or asked for.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nas_hpc.errors import WorkFailed, WrongCall
from nas_hpc.files import replace_file
from nas_hpc.trial.place import trial_dir
from nas_hpc.trial.proxy import adopt_training, read_training
from nas_hpc.trial.retrain import previous_trial_dir

DIRECTORY = "checkpoint"
_NAME = re.compile(r"step-(\d+)\.ckpt")
_KEPT = 2
ModelDir = str | os.PathLike[str] | None


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The state of a training after ``step`` steps."""

    step: int
    content: bytes
    path: Path

    def arrays(self) -> dict[str, Any]:
        """The arrays that it was made of, by name. Raises WorkFailed if it was not made of arrays."""
        import numpy as np

        try:
            with np.load(io.BytesIO(self.content), allow_pickle=False) as archive:
                return {name: archive[name] for name in archive.files}
        except (OSError, ValueError, EOFError) as error:
            raise WorkFailed(f"the checkpoint {self.path} holds no arrays: {error}") from None


def save_checkpoint(model_dir: ModelDir, step: int, content: bytes | Mapping[str, Any]) -> None:
    """Keep the state of a training after ``step`` steps: numpy's arrays by name, or bytes. Outside of a trial
    this does nothing. Raises WrongCall, also for what is no array of numbers or text, and OSError."""
    if isinstance(step, bool) or int(step) != step or step < 0:
        raise WrongCall(f"save_checkpoint: the step is {step!r:.80}; give a whole number from 0 on")
    directory = trial_dir(model_dir)
    if directory is None:
        return
    data = _packed(content) if isinstance(content, Mapping) else bytes(memoryview(content))
    head = json.dumps({"step": int(step), "sha256": hashlib.sha256(data).hexdigest()})
    place = directory / DIRECTORY
    place.mkdir(parents=True, exist_ok=True)
    replace_file(place / f"step-{int(step):012d}.ckpt", head.encode() + b"\n" + data, mode=0o644)
    for path in _files(directory)[_KEPT:]:
        path.unlink(missing_ok=True)


def remove_torn(directory: Path) -> None:
    """Take out what a killed process left of checkpoints that it was writing, while nobody writes any."""
    for path in (directory / DIRECTORY).glob(".step-*.ckpt.*"):
        path.unlink(missing_ok=True)


def load_checkpoint(model_dir: ModelDir = None) -> Checkpoint | None:
    """The newest checkpoint of the trial that is whole; None if there is none."""
    directory = trial_dir(model_dir)
    for path in _files(directory) if directory is not None else []:
        try:
            with path.open("rb") as stream:
                about, data = json.loads(stream.readline()), stream.read()
            if about["sha256"] != hashlib.sha256(data).hexdigest():
                raise ValueError("it is damaged")
            return Checkpoint(int(about["step"]), data, path)
        except (OSError, ValueError, KeyError, TypeError) as error:
            _say(f"passed over the checkpoint {path}: {error}")
    return None


def find_checkpoint(flags: argparse.Namespace) -> Checkpoint | None:
    """What a trainer with the flags of ``add_arguments`` goes on from: its own checkpoint, for it may have
    been interrupted; else, with ``--retrain-use-search-job-checkpoint``, that of the chosen trial, whose
    record it then takes over if it has none; None: it begins.

    Raises WorkFailed if the record of the trial is further than that: what was skipped would never be
    recorded again. WrongCall as ``previous_trial_dir``.
    """
    found = load_checkpoint(flags.job_dir or None)
    if found is None and flags.retrain_use_search_job_checkpoint:
        previous = previous_trial_dir(flags.retrain_search_job_dir, flags.retrain_search_job_trials)
        found = load_checkpoint(previous)
        if found is not None:
            adopt_training(previous, flags.job_dir or None)
        if found is None and read_training(flags.job_dir or None)["training_accuracy_over_steps"]:
            raise WorkFailed(f"{previous} has no checkpoint, from which this trial is to go on")
        if found is None:
            _say(f"{previous} has no checkpoint: the training begins anew")
    check_restored_step(0 if found is None else found.step, flags.job_dir or None)
    return found


def check_restored_step(step: int, model_dir: ModelDir = None) -> None:
    """Raise WorkFailed if a training that goes on after ``step`` steps is behind its record.

    One cycle may be missing: it is recorded before the checkpoint, so that an interrupted one is made again.
    """
    points = read_training(model_dir)["training_accuracy_over_steps"]
    least = points[-2]["training_step"] + 1 if len(points) > 1 else 0
    if step < least:
        raise WorkFailed(
            f"the training would go on after step {step}, and its record is at "
            f"{points[-1]['training_step'] + 1}: its checkpoint is missing, of another training, or was not "
            "restored with its step"
        )


def save_keras(model: Any, model_dir: ModelDir = None) -> int:
    """Keep a compiled model of Keras 3: weights, state of the optimizer and its step, which is returned."""
    step = int(model.optimizer.iterations)
    save_checkpoint(model_dir, step, {f"v{at}": _array(one) for at, one in enumerate(_variables(model))})
    return step


def load_keras(model: Any, checkpoint: Checkpoint | None) -> int:
    """Bring a compiled model to ``checkpoint``; its step, 0 for none. What is restored is looked at: weights
    without the optimizer, or an optimizer at another step, would train differently, and nobody would see it.

    Raises WorkFailed if the checkpoint is of another network or optimizer, or the step is not restored.
    """
    if checkpoint is None:
        return 0
    variables, arrays = _variables(model), checkpoint.arrays()
    shapes = [tuple(one.shape) for one in variables]
    if [tuple(one.shape) for one in arrays.values()] != shapes:
        raise WorkFailed(f"the checkpoint {checkpoint.path} is of another network or optimizer")
    for variable, value in zip(variables, arrays.values(), strict=True):
        variable.assign(value)
    step = int(model.optimizer.iterations)
    if step != checkpoint.step:
        raise WorkFailed(
            f"the checkpoint {checkpoint.path} is of step {checkpoint.step}, and the optimizer is at {step}"
        )
    return step


def _variables(model: Any) -> list[Any]:
    if not model.optimizer.built:
        model.optimizer.build(model.trainable_variables)
    return [*model.weights, *model.optimizer.variables]


def _array(variable: Any) -> Any:
    import numpy as np

    return np.asarray(variable.numpy() if hasattr(variable, "numpy") else variable)


def _packed(arrays: Mapping[str, Any]) -> bytes:
    import numpy as np

    made = {name: np.asarray(one) for name, one in arrays.items()}
    for name, one in made.items():
        if one.dtype.hasobject:  # could be kept, but not be read again
            raise WrongCall(
                f"save_checkpoint: {name!r} is {arrays[name]!r:.80}; give arrays of numbers, or bytes"
            )
    stream = io.BytesIO()
    np.savez(stream, **made)
    return stream.getvalue()


def _files(directory: Path) -> list[Path]:
    """Newest first."""
    try:
        names = os.listdir(directory / DIRECTORY)
    except OSError:
        return []
    found = [(int(match[1]), name) for name in names if (match := _NAME.fullmatch(name))]
    return [directory / DIRECTORY / name for _, name in sorted(found, reverse=True)]


def _say(text: str) -> None:
    print(f"nas-hpc: {text}", file=sys.stderr, flush=True)
