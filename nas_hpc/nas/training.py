"""The training of a network, from its data to its history.

The loop is one of our own, a step at a time: a loss that is not finite is seen at once, and a training that
is asked to end writes a checkpoint between two steps, from which its next attempt goes on as if nothing had
happened. What an epoch shuffles follows from seed and epoch alone.

Several ranks train one network together: each has its part of every batch, and what one of them decides or
learns all know before the next step, so that none waits for one that has gone. Rank 0 alone writes.
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
from nas_hpc.nas.checkpoints import Arrays, Checkpoints, State, packed, unpacked
from nas_hpc.nas.data import Data, Sample
from nas_hpc.nas.failures import NotFinite, RanksDiffer
from nas_hpc.nas.objective import Objective
from nas_hpc.nas.parallel.alone import Alone
from nas_hpc.nas.parallel.base import Ranks, agreed, broadcast_bytes
from nas_hpc.nas.parallel.shards import Shard
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
    """One training of ``model`` on ``data``, by ``ranks`` together; ``on_epoch`` is called after each epoch,
    by rank 0. The order of the examples follows from ``seed``, the same on all ranks.

    Raises NotFinite, RanksDiffer, CannotBuild, WrongCall; and what TensorFlow raises.
    """

    def __init__(
        self,
        problem: NaProblem,
        model: Any,
        data: Data,
        seed: int,
        checkpoints: Checkpoints,
        on_epoch: Callable[[Progress], None] = lambda progress: None,
        ranks: Ranks | None = None,
    ) -> None:
        self._began = self._saved = time.monotonic()
        self._settings = problem.training
        self._best_of: Monitor | None = best_monitor(problem)
        self._early = early_monitor(problem)
        self._ranks = ranks or Alone()
        self._shard = Shard(len(data.train), self._settings.batch_size, self._ranks.rank, self._ranks.size)
        self._steps = Steps(model, problem, data.train, self._ranks)
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
        self._asked = [False, False]
        """On several ranks, what a rank wished in the last step: to end, to write a checkpoint."""

    def run(self) -> Trained:
        """Train to the end; if asked to end before it, write a checkpoint and end this process."""
        from_epoch, from_step = self._resume()
        if self._together and not from_step:
            self._steps.follow_first(normalisations=True)
        while not (stopped := why_stop(self._progress, self._settings, self._early)):
            self._epoch()
        self._compare()
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

    @property
    def _together(self) -> bool:
        return self._ranks.size > 1

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
        due = time.monotonic() - self._saved >= self._settings.checkpoint_s
        if self._together:  # one clock decides for all
            times = self._ranks.broadcast(np.array([progress.train_s, progress.epoch_s, due]))
            progress.train_s, progress.epoch_s, due = float(times[0]), float(times[1]), bool(times[2])
        self._keep_best()
        if self._ranks.rank == 0:
            self._on_epoch(progress)
        if progress.epoch == 1:
            self._compare()
        if due:
            self._save()

    def _train_epoch(self) -> None:
        progress, sample, shard = self._progress, self._data.train, self._shard
        rate = schedule_of(self._settings, shard.steps, shard.size)
        order = np.random.default_rng([self._seed, progress.epoch]).permutation(shard.count)
        if progress.step == 0:
            self._steps.reset()
        for batch in shard.batches(order, progress.step):
            self._look(within_epoch=True)
            inputs, targets = _rows(sample, batch.rows)
            if self._together:
                loss = self._step_together(inputs, targets, rate(self._done), batch.share)
            else:
                loss = self._steps.train(inputs, targets, rate(self._done))
            progress.step += 1
            self._done += 1
            self._unread.append((loss, batch.examples))
            late = time.monotonic() - self._read > _UNREAD_S
            if self._together or len(self._unread) >= _UNREAD_STEPS or late:
                self._read_losses()
            if self._together and self._done == 1:
                self._steps.follow_first(normalisations=False)  # whatever the first step has made
        self._read_losses()
        progress.trained = {"loss": progress.loss_sum / shard.count, **self._steps.results()}
        if self._together:
            self._steps.average()

    def _step_together(self, inputs: Batch, targets: Batch, rate: float, share: float) -> float:
        """With the gradients the ranks exchange loss and wishes: agreeing costs nothing beside them."""
        wishes = self._wishes()
        loss, self._asked = self._steps.train_together(inputs, targets, rate, share, wishes)
        return loss

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
        """Loss and metrics of ``sample``, of which each rank looks at its part."""
        self._steps.reset()
        total = 0.0
        for rows in _slices(sample, self._settings.batch_size, self._ranks):
            self._look()
            examples = len(sample.inputs[0][rows])
            if examples:
                total += self._steps.evaluate(*_rows(sample, rows)) * examples
        if self._together:
            total = float(self._ranks.sum(np.array([total]))[0])
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

    def _compare(self) -> None:
        """Raise RanksDiffer if the ranks have not the same weights, of which each has the hash."""
        if self._together and (other := self._steps.differing()):
            numbers = f"ranks {', '.join(map(str, other))} have" if len(other) > 1 else f"rank {other[0]} has"
            raise RanksDiffer(
                f"after epoch {self._progress.epoch} {numbers} other weights than rank 0: "
                f"{self._ranks.way} did not average the gradients"
            )

    def _settings_said(self) -> str:
        ranks = f" on {self._ranks.size} ranks" if self._together else ""
        return f"(learning_rate {self._settings.learning_rate:g}{ranks})"

    # -- interruptions -------------------------------------------------------------------------------
    def _look(self, *, within_epoch: bool = False) -> None:
        """Between two batches: whether to end, or to write a checkpoint of a long epoch."""
        if not self._checkpoints.possible:
            return
        if not self._together:
            end, save = self._wishes()
        else:
            end, save = self._asked if within_epoch else agreed(self._ranks, should_stop(), False)
        if end:
            self._save()
            agreed(self._ranks, True)  # the end of one rank may be that of all: it is written by now
            _end_as_asked()
        if within_epoch and save:
            self._save()

    def _wishes(self) -> tuple[bool, bool]:
        """Of this process: to end, to write a checkpoint. Of the time it is rank 0 that decides."""
        if not self._checkpoints.possible:
            return False, False
        after_s = self._settings.checkpoint_s
        due = self._ranks.rank == 0 and after_s > 0 and time.monotonic() - self._saved >= after_s
        return should_stop(), due

    def _save(self) -> None:
        if self._checkpoints.possible:
            self._read_losses()
            self._lap()
            arrays = self._steps.arrays()
            if self._ranks.rank == 0:
                self._checkpoints.save(State(self._progress, self._done, arrays, self._best))
        self._saved = time.monotonic()
        self._asked = [False, False]

    def _resume(self) -> tuple[int, int]:
        """Go on from a checkpoint, if there is one: the epochs and the steps that it had done."""
        state = self._load() if self._checkpoints.possible else None
        if state is None:
            return 0, 0
        self._steps.restore(state.arrays)
        self._progress, self._done, self._best = state.progress, state.steps, state.best
        if self._ranks.rank == 0:
            where = f"after {state.steps} steps, in epoch {state.progress.epoch + 1}"
            print(f"nas-hpc: goes on {where}", flush=True)
        return state.progress.epoch, state.steps

    def _load(self) -> State | None:
        """The newest checkpoint; rank 0 reads it for all."""
        like = self._steps.arrays()
        if not self._together:
            return self._checkpoints.load(like)
        state = self._checkpoints.load(like) if self._ranks.rank == 0 else None
        content = broadcast_bytes(self._ranks, b"" if state is None else packed(state, ""))
        return unpacked(content, "", like) if content else None

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


def _slices(sample: Sample, least: int, ranks: Ranks) -> Iterator[slice]:
    """What this one of the ranks looks at: each has as many batches, and the last may be empty."""
    count = len(sample.inputs[0])
    numbers = max(1, sum(array[:1].size for array in sample.inputs))
    size = max(least, min(_EVALUATED_EXAMPLES, _EVALUATED_NUMBERS // numbers)) * ranks.size
    for start in range(0, count, size):
        yield slice(start + ranks.rank, min(start + size, count), ranks.size)


def _end_as_asked() -> None:
    """End by the signal that asked for it: whoever sent it knows why, and this attempt has no result."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGTERM)
