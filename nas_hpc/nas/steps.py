"""A network with its loss, metrics and optimizer: one step of its training, one of an evaluation, as
TensorFlow functions that are traced once.

Batches are given as arrays, so that a step is the same whatever feeds it, and gradients pass through one
place, where data-parallel training averages them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from nas_hpc.errors import WrongCall
from nas_hpc.loading import one_line
from nas_hpc.nas.checkpoints import Arrays
from nas_hpc.nas.data import Sample
from nas_hpc.nas.failures import CannotBuild, is_memory
from nas_hpc.nas.metrics import Target, check_sums, losses_of, metrics_of
from nas_hpc.nas.parallel.alone import Alone
from nas_hpc.nas.parallel.base import Ranks, broadcast_arrays, differing, gathered, joined, parted
from nas_hpc.nas.parallel.wrapped import refuse_wrapped
from nas_hpc.nas.problem import NaProblem
from nas_hpc.nas.settings import Training

Batch = Sequence[np.ndarray[Any, Any]]

_LONG = 1 << 22
"""A network of more numbers has enough to do with each variable."""
_OPTIMIZERS = {
    "sgd": "SGD", "momentum": "SGD", "rmsprop": "RMSprop", "adam": "Adam", "adamw": "AdamW",
    "adagrad": "Adagrad", "adadelta": "Adadelta", "adamax": "Adamax", "nadam": "Nadam",
}  # fmt: skip


def optimizer_of(training: Training) -> Any:
    """The Keras optimizer that ``training`` names, which shortens gradients to ``clip_norm``."""
    more: dict[str, Any] = {"momentum": 0.9} if training.optimizer == "momentum" else {}
    if training.clip_norm:
        more["global_clipnorm"] = training.clip_norm
    return getattr(keras.optimizers, _OPTIMIZERS[training.optimizer])(training.learning_rate, **more)


class Updates:
    """What gradients do to ``variables``.

    A small network's are updated as one long variable: an optimizer's operations cost the same for ten
    numbers as for ten thousand, and optimizers treat each number by itself.
    """

    def __init__(self, optimizer: Any, variables: Sequence[Any]) -> None:
        refuse_wrapped(optimizer)
        self.optimizer = optimizer
        self._variables = list(variables)
        self._sizes = [math.prod(one.shape) for one in self._variables]
        plain = all(one.dtype == "float32" for one in self._variables)
        self._long: Any = None
        if plain and len(self._sizes) > 1 and sum(self._sizes) <= _LONG:
            self._long = keras.Variable(self._joined(), trainable=True, name="all_trainable")
        optimizer.build(self._variables if self._long is None else [self._long])

    def apply(self, gradients: Sequence[Any]) -> None:
        """One step."""
        if self._long is None:
            if self._variables:
                self.optimizer.apply(gradients, self._variables)
            return
        pairs = zip(gradients, self._variables, strict=True)
        joined = [tf.zeros(v.shape) if g is None else tf.convert_to_tensor(g) for g, v in pairs]
        self.optimizer.apply([tf.concat([tf.reshape(one, (-1,)) for one in joined], 0)], [self._long])
        for variable, part in zip(self._variables, tf.split(self._long.value, self._sizes), strict=True):
            variable.assign(tf.reshape(part, variable.shape))

    def follow(self) -> None:
        """Somebody else has changed the variables."""
        if self._long is not None:
            self._long.assign(self._joined())

    def _joined(self) -> Any:
        return np.concatenate([_copy(one).ravel() for one in self._variables])


class Steps:
    """The steps of ``model``, trained as ``problem`` says on data like ``sample``, by ``ranks`` together.

    On several ranks weights and optimizer are the same on all; what normalisations have seen, what dropouts
    have drawn and what metrics have counted is each rank's own until it is put together.
    Raises WrongCall for losses and metrics that Keras does not know, CannotBuild if they do not fit.
    """

    def __init__(self, model: Any, problem: NaProblem, sample: Sample, ranks: Ranks | None = None) -> None:
        self.model = model
        self._ranks = ranks or Alone()
        self.optimizer = optimizer_of(problem.training)
        targets = [
            Target(name, tuple(output.shape[1:]), tuple(array.shape[1:]))
            for name, output, array in zip(model.output_names, model.outputs, sample.targets, strict=True)
        ]
        self._losses = losses_of(problem, len(targets))
        self._metrics = metrics_of(problem, targets)
        if self._ranks.size > 1:
            check_sums(self._metrics)
        self._rate = problem.training.learning_rate
        specs = _specs(sample.inputs), _specs(sample.targets)
        self._updates = Updates(self.optimizer, model.trainable_variables)
        try:
            self._train = self._traced(specs)
            self._evaluate = tf.function(self._evaluation_step, autograph=False).get_concrete_function(*specs)
        except WrongCall:
            raise
        except Exception as error:
            if is_memory(error):
                raise
            raise CannotBuild(
                f"the network, its loss and its metrics do not fit together: {one_line(error)}"
            ) from error

    def _traced(self, specs: tuple[list[Any], list[Any]]) -> Any:
        if self._ranks.size == 1:
            return tf.function(self._train_step, autograph=False).get_concrete_function(*specs)
        share, wishes = tf.TensorSpec((), tf.float32), tf.TensorSpec((2,), tf.float32)
        common = tf.function(self._common_step, autograph=False)
        return common.get_concrete_function(*specs, share, wishes)

    # -- steps ---------------------------------------------------------------------------------------
    def train(self, inputs: Batch, targets: Batch, rate: float) -> Any:
        """One step with the learning ``rate``; the batch's loss before it, as a tensor: not waited for."""
        if rate != self._rate:
            self.optimizer.learning_rate = self._rate = rate
        return self._train(_tensors(inputs), _tensors(targets))

    def train_together(
        self, inputs: Batch, targets: Batch, rate: float, share: float, wishes: Sequence[bool]
    ) -> tuple[float, list[bool]]:
        """One step of all ranks, in which this one's loss counts ``share``, on average 1; with 0 nothing of
        its batch is counted. The loss of all, and which of the two ``wishes`` a rank has: the same on all.
        """
        if rate != self._rate:
            self.optimizer.learning_rate = self._rate = rate
        counted = None if share else [_copy(one) for one in self._counts]
        numbers = tf.constant(share, tf.float32), tf.constant(wishes, tf.float32)
        loss, *wished = self._train(_tensors(inputs), _tensors(targets), *numbers).numpy()
        for variable, array in zip(self._counts, counted or [], strict=False):
            variable.assign(array)
        return float(loss), [bool(one) for one in wished]

    def evaluate(self, inputs: Batch, targets: Batch) -> float:
        """The batch's loss."""
        return float(self._evaluate(_tensors(inputs), _tensors(targets)))

    def _train_step(self, inputs: Any, targets: Any) -> Any:
        with tf.GradientTape() as tape:
            loss, outputs = self._forward(inputs, targets, training=True)
        self._updates.apply(tape.gradient(loss, self.model.trainable_variables))
        self._update(targets, outputs)
        return loss

    def _common_step(self, inputs: Any, targets: Any, share: Any, wishes: Any) -> Any:
        with tf.GradientTape() as tape:
            loss, outputs = self._forward(inputs, targets, training=True)
            loss = loss * share
        beside = tf.concat([tf.reshape(loss, (1,)), wishes], 0)
        variables = self.model.trainable_variables
        gradients, beside = self._ranks.gradients(tape, loss, variables, beside)
        self._updates.apply(gradients)
        self._update(targets, outputs)
        return beside

    def _evaluation_step(self, inputs: Any, targets: Any) -> Any:
        loss, outputs = self._forward(inputs, targets, training=False)
        self._update(targets, outputs)
        return loss

    def _forward(self, inputs: Any, targets: Any, training: bool) -> tuple[Any, list[Any]]:
        got = self.model(inputs if len(inputs) > 1 else inputs[0], training=training)
        outputs = list(got) if isinstance(got, (list, tuple)) else [got]
        parts = [
            weight * _mean(loss, wanted, predicted)
            for (loss, weight), wanted, predicted in zip(self._losses, targets, outputs, strict=True)
        ]
        return tf.add_n([*parts, *(tf.cast(one, tf.float32) for one in self.model.losses)]), outputs

    def _update(self, targets: Any, outputs: list[Any]) -> None:
        for one in self._metrics:
            one.metric.update_state(_like(targets[one.output], outputs[one.output]), outputs[one.output])

    # -- metrics -------------------------------------------------------------------------------------
    def results(self) -> dict[str, float]:
        """The metrics of all examples since the last ``reset``, by name: of all ranks' examples, which each
        of them has counted afterwards."""
        if self._ranks.size > 1:
            self._add_up(self._counts, 1)
        return {one.name: float(one.metric.result()) for one in self._metrics}

    @property
    def names(self) -> list[str]:
        """Of loss and metrics, as the history has them."""
        return ["loss", *(one.name for one in self._metrics)]

    def reset(self) -> None:
        """Begin the metrics anew."""
        for one in self._metrics:
            one.metric.reset_state()

    # -- numbers -------------------------------------------------------------------------------------
    def arrays(self) -> Arrays:
        """All numbers of network, optimizer and metrics, and what other ranks have of their own: what
        ``restore`` takes back."""
        arrays = [_copy(one) for one in self._variables]
        if self._ranks.size > 1:
            own = joined(map(_copy, self._own))
            arrays.append(np.array([np.frombuffer(row, np.uint8) for row in gathered(self._ranks, own)]))
        return arrays

    def restore(self, arrays: Arrays) -> None:
        """Take over the numbers of ``arrays``; fewer of them: the network's."""
        for variable, array in zip(self._variables, arrays, strict=False):
            variable.assign(array)
        if len(arrays) > len(self._variables):
            own = parted(arrays[-1][self._ranks.rank].tobytes(), map(_copy, self._own))
            for variable, array in zip(self._own, own, strict=True):
                variable.assign(array)
        self._follow()

    def follow_first(self, *, normalisations: bool) -> None:
        """All ranks take over the network's and the optimizer's numbers from rank 0; whether also what no
        gradient changes."""
        weights = self.model.weights if normalisations else self.model.trainable_weights
        variables = [*weights, *self.optimizer.variables]
        arrays = broadcast_arrays(self._ranks, map(_copy, variables))
        for variable, array in zip(variables, arrays, strict=True):
            variable.assign(array)
        self._follow()

    def average(self) -> None:
        """What normalisations have seen becomes the mean of what they have on the ranks."""
        seen = [one for one in self.model.non_trainable_weights if "float" in one.dtype]
        self._add_up(seen, self._ranks.size)

    def _add_up(self, variables: Sequence[Any], divisor: int) -> None:
        """Each becomes its sum over the ranks, divided; in one exchange."""
        arrays = [_copy(one) for one in variables]
        if not arrays:
            return
        flat = np.concatenate([one.ravel().astype(np.float64) for one in arrays])
        totals = np.split(self._ranks.sum(flat) / divisor, np.cumsum([one.size for one in arrays])[:-1])
        for variable, array, total in zip(variables, arrays, totals, strict=True):
            variable.assign(total.reshape(array.shape).astype(array.dtype))

    def differing(self) -> list[int]:
        """The ranks whose weights are not those of rank 0."""
        return differing(self._ranks, [_copy(one) for one in self.model.weights])

    def _follow(self) -> None:
        self._updates.follow()
        self._rate = float(self.optimizer.learning_rate)

    def weights(self) -> Arrays:
        """The network's numbers, which ``restore`` takes back."""
        return [_copy(one) for one in self.model.variables]

    @property
    def _variables(self) -> list[Any]:
        return [*self.model.variables, *self.optimizer.variables, *self._counts]

    @property
    def _own(self) -> list[Any]:
        """Of which each rank has numbers of its own."""
        common = {id(one) for one in self.model.trainable_variables}
        return [*(one for one in self.model.variables if id(one) not in common), *self._counts]

    @property
    def _counts(self) -> list[Any]:
        return [variable for one in self._metrics for variable in one.metric.variables]


def _mean(loss: Any, wanted: Any, predicted: Any) -> Any:
    value = tf.cast(loss(_like(wanted, predicted), predicted), tf.float32)
    return value if value.shape.rank == 0 else tf.reduce_mean(value)


def _like(wanted: Any, predicted: Any) -> Any:
    """Targets without a last dimension of 1 that the predictions have get one, as in Keras."""
    lacks = len(wanted.shape) == len(predicted.shape) - 1 and predicted.shape[-1] == 1
    return tf.expand_dims(wanted, -1) if lacks else wanted


def _specs(arrays: Batch) -> list[Any]:
    return [tf.TensorSpec((None, *array.shape[1:]), array.dtype) for array in arrays]


def _tensors(arrays: Batch) -> list[Any]:
    return [tf.convert_to_tensor(array) for array in arrays]


def _copy(variable: Any) -> np.ndarray[Any, Any]:
    return np.array(keras.ops.convert_to_numpy(variable))
