"""The training of a network, from its data to its history.

The loop is one of our own, a step at a time: a loss that is not finite is seen at once, and a training that
is asked to end writes a checkpoint between two steps, from which its next attempt goes on as if nothing had
happened. What an epoch shuffles follows from seed and epoch alone.
"""

from __future__ import annotations

import math
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nas_hpc.errors import WrongCall
from nas_hpc.loading import close_names
from nas_hpc.nas.checkpoints import Arrays, Checkpoints, State
from nas_hpc.nas.data import Data, Sample
from nas_hpc.nas.failures import NotFinite
from nas_hpc.nas.objective import Objective
from nas_hpc.nas.problem import NaProblem
from nas_hpc.nas.progress import Monitor, Progress, best_monitor, early_monitor, why_stop
from nas_hpc.nas.schedules import schedule_of
from nas_hpc.nas.steps import Batch, Steps
from nas_hpc.trial import should_stop

_UNREAD_STEPS, _UNREAD_S = 32, 0.2
"""Losses are read when so many are there or so much time has passed: reading waits for the accelerator."""
_EVALUATED_NUMBERS = 1 << 20
_EVALUATED_EXAMPLES = 4096
"""Evaluations keep nothing for a way back and may take larger batches: of so many numbers and examples."""


@dataclass(frozen=True, slots=True)
class Trained:
    """What a training gave."""

    history: dict[str, list[float]]
    epochs: int
    best_epoch: int
    """Counted from 1: the one that the objective takes, else the last."""
    stopped: str
    """Why no further epoch began: epochs (all are done), early, time."""
    train_s: float
    """Of all attempts."""
    resumed_from: int
    """Epochs that were done when this attempt began."""
    resumed_step: int
    """Steps that were done when this attempt began."""
    test: dict[str, float]
    """Loss and metrics of the test data, with the weights of the best epoch; empty if there are none."""


class Trainer:
    """One training of ``model`` on ``data``; ``on_epoch`` is called after each epoch.

    Raises NotFinite, CannotBuild, WrongCall; and what TensorFlow raises.
    """

    def __init__(
        self,
        problem: NaProblem,
        model: Any,
        data: Data,
        seed: int,
        checkpoints: Checkpoints,
        on_epoch: Callable[[Progress], None] = lambda progress: None,
    ) -> None:
        self._began = self._saved = time.monotonic()
        self._settings = problem.training
        self._best_of: Monitor | None = best_monitor(problem)
        self._early = early_monitor(problem)
        self._steps = Steps(model, problem, data.train)
        _check_names(problem, self._early, self._steps.names)
        self._data = data
        self._seed = seed
        self._checkpoints = checkpoints
        self._on_epoch = on_epoch
        self._progress = Progress()
        self._done = 0
        """Steps of all epochs."""
        self._best: Arrays = []
        self._unread: list[tuple[Any, int]] = []
        self._read = self._began

    def run(self) -> Trained:
        """Train to the end; if asked to end before it, write a checkpoint and end this process."""
        from_epoch, from_step = self._resume()
        while not (stopped := why_stop(self._progress, self._settings, self._early)):
            self._epoch()
        history = self._progress.history
        best = self._best_of.best_epoch(history) if self._best_of is not None else self._progress.epoch
        test = {f"test_{name}": value for name, value in self._test().items()}
        self._lap()
        return Trained(
            history, self._progress.epoch, best, stopped, self._progress.train_s, from_epoch, from_step, test
        )

    @property
    def history(self) -> dict[str, list[float]]:
        """Of the epochs that are done."""
        return self._progress.history

    # -- epochs --------------------------------------------------------------------------------------
    def _epoch(self) -> None:
        self._lap()
        before_s = self._progress.train_s
        progress, epoch = self._progress, self._progress.epoch + 1
        if not progress.trained:
            self._train_epoch()
        values = dict(progress.trained)
        for name, value in self._evaluate(self._data.valid).items():
            values[f"val_{name}"] = value
        if not math.isfinite(values["val_loss"]):
            raise NotFinite(f"val_loss is {values['val_loss']} after epoch {epoch} {self._settings_said()}")
        progress.add_epoch(values)
        self._lap()
        progress.epoch_s = progress.train_s - before_s
        self._keep_best()
        self._on_epoch(progress)
        if time.monotonic() - self._saved >= self._settings.checkpoint_s:
            self._save()

    def _train_epoch(self) -> None:
        progress, size = self._progress, self._settings.batch_size
        sample = self._data.train
        count = len(sample.inputs[0])
        rate = schedule_of(self._settings, math.ceil(count / size))
        order = np.random.default_rng([self._seed, progress.epoch]).permutation(count)
        if progress.step == 0:
            self._steps.reset()
        for start in range(progress.step * size, count, size):
            self._look(within_epoch=True)
            rows = order[start : start + size]
            loss = self._steps.train(*_rows(sample, rows), rate(self._done))
            progress.step += 1
            self._done += 1
            self._unread.append((loss, len(rows)))
            if len(self._unread) >= _UNREAD_STEPS or time.monotonic() - self._read > _UNREAD_S:
                self._read_losses()
        self._read_losses()
        progress.trained = {"loss": progress.loss_sum / count, **self._steps.results()}

    def _read_losses(self) -> None:
        progress = self._progress
        first = progress.step - len(self._unread) + 1
        for step, (tensor, examples) in enumerate(self._unread, first):
            loss = float(tensor)
            if not math.isfinite(loss):
                where = f"after {step} step{'s' if step > 1 else ''} of epoch {progress.epoch + 1}"
                raise NotFinite(f"loss is {loss} {where} {self._settings_said()}")
            progress.loss_sum += loss * examples
        self._unread.clear()
        self._read = time.monotonic()

    def _evaluate(self, sample: Sample) -> dict[str, float]:
        """Loss and metrics of ``sample``."""
        self._steps.reset()
        total = 0.0
        for rows in _slices(sample, self._settings.batch_size):
            self._look()
            total += self._steps.evaluate(*_rows(sample, rows)) * (rows.stop - rows.start)
        return {"loss": total / len(sample.inputs[0]), **self._steps.results()}

    def _test(self) -> dict[str, float]:
        if self._data.test is None:
            return {}
        if self._best:
            self._steps.restore(self._best)
        return self._evaluate(self._data.test)

    def _keep_best(self) -> None:
        """The network's numbers are kept if this epoch is the best one, and somebody asks for them later."""
        if self._best_of is None or self._data.test is None:
            return
        if self._best_of.best_epoch(self._progress.history) == self._progress.epoch:
            self._best = self._steps.weights()

    def _settings_said(self) -> str:
        return f"(learning_rate {self._settings.learning_rate:g})"

    # -- interruptions -------------------------------------------------------------------------------
    def _look(self, *, within_epoch: bool = False) -> None:
        """Between two batches: whether to end, or to write a checkpoint of a long epoch."""
        if not self._checkpoints.possible:
            return
        if should_stop():
            self._save()
            _end_as_asked()
        after_s = self._settings.checkpoint_s
        if within_epoch and after_s and time.monotonic() - self._saved >= after_s:
            self._save()

    def _save(self) -> None:
        if self._checkpoints.possible:
            self._read_losses()
            self._lap()
            self._checkpoints.save(State(self._progress, self._done, self._steps.arrays(), self._best))
        self._saved = time.monotonic()

    def _resume(self) -> tuple[int, int]:
        """Go on from a checkpoint, if there is one: the epochs and the steps that it had done."""
        state = self._checkpoints.load(self._steps.arrays()) if self._checkpoints.possible else None
        if state is None:
            return 0, 0
        self._steps.restore(state.arrays)
        self._progress, self._done, self._best = state.progress, state.steps, state.best
        print(f"nas-hpc: goes on after {state.steps} steps, in epoch {state.progress.epoch + 1}", flush=True)
        return state.progress.epoch, state.steps

    def _lap(self) -> None:
        """Add the time since the last lap to the training's."""
        now = time.monotonic()
        self._progress.train_s += now - self._began
        self._began = now


def _check_names(problem: NaProblem, early: Monitor, names: Sequence[str]) -> None:
    """Raise WrongCall if the objective or early stopping is of a metric that there will not be."""
    objective = problem.the_objective
    if isinstance(objective, Objective):
        objective.check([name for name in names if name != "loss"])
    if problem.training.patience and early.name.removeprefix("val_") not in names:
        near = close_names(early.name, [*names, *(f"val_{name}" for name in names)])
        raise WrongCall(f"hyperparameters: monitor={early.name!r} names no metric of the network{near}")


def _rows(sample: Sample, rows: Any) -> tuple[Batch, Batch]:
    return [array[rows] for array in sample.inputs], [array[rows] for array in sample.targets]


def _slices(sample: Sample, least: int) -> Iterator[slice]:
    count = len(sample.inputs[0])
    numbers = max(1, sum(array[:1].size for array in sample.inputs))
    size = max(least, min(_EVALUATED_EXAMPLES, _EVALUATED_NUMBERS // numbers))
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))


def _end_as_asked() -> None:
    """End by the signal that asked for it: whoever sent it knows why, and this attempt has no result."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGTERM)
