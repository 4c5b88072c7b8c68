"""The run function of architecture searches: trains one architecture, and returns the problem's objective.

``nas_hpc.nas.alpha.run`` is what ``--run`` names. It loads Keras when it is called, not before, so that a
search may look at it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import random
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nas_hpc.errors import WrongCall
from nas_hpc.files import replace_file
from nas_hpc.nas.architecture import Architecture
from nas_hpc.nas.checkpoints import Checkpoints
from nas_hpc.nas.data import Data, load_data, space_of
from nas_hpc.nas.failures import (
    NotFinite,
    RanksDiffer,
    TrainingFailed,
    is_memory,
    out_of_memory,
    refused_step,
)
from nas_hpc.nas.objective import Objective
from nas_hpc.nas.parallel import Ranks, ranks_here
from nas_hpc.nas.parallel.base import agreed, broadcast_bytes
from nas_hpc.nas.parallel.shards import seed_of
from nas_hpc.nas.problem import NaProblem, load_na_problem, name_of
from nas_hpc.nas.progress import Progress
from nas_hpc.nas.space import SearchSpace
from nas_hpc.trial import report

if TYPE_CHECKING:
    from nas_hpc.nas.events import Events
    from nas_hpc.nas.training import Trained

PROBLEM_VARIABLE = "NAS_HPC_PROBLEM"
"""The problem's path, in the environment of a search's evaluations."""
_REPORTED = ("step", "value", "time")


@dataclass(frozen=True, slots=True)
class Setup:
    """What all trainings of a problem share."""

    path: str
    problem: NaProblem
    data: Data
    space: SearchSpace


_setups: dict[str, Setup] = {}
"""By path. A warm interpreter makes its own before it forks, and its children read it there."""


def run(config: Mapping[str, Any]) -> dict[str, Any]:
    """Train the architecture ``config["arch_seq"]`` of a problem; its objective, and how it came to it.

    The problem is at the path ``config["problem"]``, else at that in the variable NAS_HPC_PROBLEM. The
    evaluation's directory, if there is one, gets ``architecture.json`` and ``history.json``, and while the
    training runs its checkpoints: an attempt that follows one that was interrupted goes on from there.

    Called by all ranks of a start at once it trains one network on all of them, and rank 0 writes.

    Raises WrongCall for a problem or a sequence that is none; NotFinite, OutOfMemory, RanksDiffer.
    """
    path = _path(config)
    _surroundings()
    setup = _setup(path)
    sequence = config.get("arch_seq")
    if not isinstance(sequence, (list, tuple)):
        raise WrongCall(
            f"arch_seq is {sequence!r:.80}: give the sequence of an architecture, as in [3, 0, 1]"
        )
    architecture = setup.space.architecture(sequence)
    ranks = ranks_here()
    seed = int(broadcast_bytes(ranks, str(_seed(setup.problem, config)).encode()))
    training = _Training(setup, architecture, seed, ranks)
    try:
        return training.run()
    except (NotFinite, RanksDiffer):
        agreed(ranks, True)  # all ranks have it; the first that ends, ends the others, and rank 0 has written
        raise
    except TrainingFailed:
        raise
    except Exception as error:
        if is_memory(error):
            raise out_of_memory(error, training.doing) from error
        refused = refused_step(error)
        if refused is None:
            raise
        raise refused from error


def prepare() -> None:
    """What a warm interpreter does before it forks: the libraries, the problem, its data and its space.

    No operation of TensorFlow runs here: none may before a fork. Without the variable NAS_HPC_PROBLEM there
    is only the loading of libraries.
    """
    _surroundings()
    _load_libraries()
    path = os.environ.get(PROBLEM_VARIABLE)
    if path:
        _setup(path)


run.prepare = prepare  # type: ignore[attr-defined]


# -- what all trainings share ------------------------------------------------------------------------------
def _path(config: Mapping[str, Any]) -> str:
    path = config.get("problem") or os.environ.get(PROBLEM_VARIABLE)
    if not path:
        raise WrongCall(
            f'no problem: give its path as config["problem"], or in the environment as {PROBLEM_VARIABLE}'
        )
    return str(path)


def _setup(path: str) -> Setup:
    if path not in _setups:
        problem = load_na_problem(path)
        with _seeded(problem.seed or 0):
            data = load_data(problem)
        _setups[path] = Setup(path, problem, data, space_of(problem, data))
    return _setups[path]


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Data that is drawn at random is the same in every interpreter; generators go on as they were."""
    python, ours = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(ours)


def _surroundings() -> None:
    """What Keras and TensorFlow read when they are loaded, or when their first operation runs."""
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    # Several trainings may share a GPU: none takes all of its memory at its start.
    os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
    width = os.environ.get("TF_NUM_INTRAOP_THREADS")
    if width:  # else operations that could run beside each other use cores of other evaluations
        os.environ.setdefault("TF_NUM_INTEROP_THREADS", width)


def _load_libraries() -> None:
    try:
        import nas_hpc.nas.model
        import nas_hpc.nas.training  # noqa: F401
    except ModuleNotFoundError as error:
        raise WrongCall(
            f"architecture search needs {error.name}, which is not installed: install nas-hpc[nas]"
        ) from error
    import keras

    if keras.backend.backend() != "tensorflow":
        raise WrongCall(
            f"Keras has the backend {keras.backend.backend()!r}: set the environment variable "
            "KERAS_BACKEND=tensorflow"
        )


def _seed(problem: NaProblem, config: Mapping[str, Any]) -> int:
    """The problem's, else the evaluation's own, which its record names; by hand a new one."""
    seed = problem.seed if problem.seed is not None else getattr(config, "seed", None)
    return secrets.randbits(31) if seed is None else abs(int(seed))


# -- one of them -------------------------------------------------------------------------------------------
class _Training:
    """The training of one architecture, with its files."""

    def __init__(self, setup: Setup, architecture: Architecture, seed: int, ranks: Ranks) -> None:
        self.setup = setup
        self.ranks = ranks
        self.architecture = architecture
        self.seed = seed
        self.doing = "load Keras"
        """For a failure's message."""
        self.events: Events | None = None
        directory = os.environ.get("NAS_HPC_JOB_DIR")
        self.directory = Path(directory) if directory else None
        place = None if self.directory is None else self.directory / "checkpoint"
        self.checkpoints = Checkpoints(place, _key(setup, architecture, seed, ranks.size))

    def run(self) -> dict[str, Any]:
        problem = self.setup.problem
        self._write("architecture.json", self._about())
        _load_libraries()
        from nas_hpc.nas.model import build_model
        from nas_hpc.nas.training import Trainer

        size = f"{self.architecture.parameters} parameters"
        self.doing = f"build the network ({size})"
        model = build_model(self.architecture, seed_of(self.seed, self.ranks.rank))
        self.doing = f"train the network ({size}, batch_size {problem.training.batch_size})"
        data, ranks = self.setup.data, self.ranks
        trainer = Trainer(problem, model, data, self.seed, self.checkpoints, self._on_epoch, ranks)
        try:
            trained = trainer.run()
            return {
                "objective": _objective(problem, trained.history),
                "metadata": self._metadata(trained),
            }
        finally:
            self._write("history.json", _strict(trainer.history))
            if ranks.rank == 0:
                self.checkpoints.remove()

    def _about(self) -> dict[str, Any]:
        more = {"problem": self.setup.path, "seed": self.seed, "objective": self._objective_name}
        return {**self.architecture.to_json(), **more}

    @property
    def _objective_name(self) -> str:
        objective = self.setup.problem.the_objective
        return objective.text if isinstance(objective, Objective) else name_of(objective)

    def _metadata(self, trained: Trained) -> dict[str, Any]:
        return {
            "parameters": self.architecture.parameters,
            "flops": self.architecture.flops,
            "epochs": trained.epochs,
            "best_epoch": trained.best_epoch,
            "stopped": trained.stopped,
            "train_s": round(trained.train_s, 4),
            "resumed_from": trained.resumed_from,
            "resumed_step": trained.resumed_step,
            "seed": self.seed,
            **({"ranks": self.ranks.size, "data_parallel": self.ranks.way} if self.ranks.size > 1 else {}),
            **trained.test,
        }

    def _on_epoch(self, progress: Progress) -> None:
        """Tell of an epoch where those look who watch a running trial."""
        values = {name: series[-1] for name, series in progress.history.items()}
        objective = self.setup.problem.the_objective
        named = objective.name if isinstance(objective, Objective) else "val_loss"
        more = {name: value for name, value in values.items() if name not in _REPORTED}
        report(progress.epoch, values.get(named, values["val_loss"]), **more)
        if self.setup.problem.training.tensorboard and self.directory is not None:
            from nas_hpc.nas.events import Events

            self.events = self.events or Events(self.directory / "tensorboard")
            self.events.add(progress.epoch, values)

    def _write(self, name: str, body: Mapping[str, Any]) -> None:
        if self.directory is not None and self.ranks.rank == 0:
            replace_file(self.directory / name, json.dumps(body), mode=0o644)


def _objective(problem: NaProblem, history: Mapping[str, list[float]]) -> Any:
    objective = problem.the_objective
    if isinstance(objective, Objective) and not any(map(math.isfinite, history.get(objective.name, [0.0]))):
        raise NotFinite(f"{objective.name} is {history[objective.name][-1]} after every epoch")
    return objective(history)


def _key(setup: Setup, architecture: Architecture, seed: int, ranks: int) -> str:
    """What two attempts at one training have in common, and no others."""
    problem, data = setup.problem, setup.data
    same = {
        "architecture": architecture.to_json(),
        "training": asdict(problem.training),
        "loss": _loss_names(problem.loss_function),
        "metrics": problem.metric_names,
        "seed": seed,
        "ranks": ranks,
        "data": [
            [list(array.shape) for array in (*one.inputs, *one.targets)] for one in (data.train, data.valid)
        ],
    }
    return hashlib.sha256(json.dumps(same, sort_keys=True).encode()).hexdigest()


def _loss_names(loss: Any) -> list[str]:
    several = loss if isinstance(loss, (list, tuple)) else [loss]
    return [one if isinstance(one, str) else name_of(one) for one in several]


def _strict(history: Mapping[str, list[float]]) -> dict[str, list[float | None]]:
    """As JSON has it: null for what is no finite number."""
    return {
        name: [value if math.isfinite(value) else None for value in series]
        for name, series in history.items()
    }
