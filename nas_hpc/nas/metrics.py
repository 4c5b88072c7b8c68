"""Losses and metrics of a problem as objects of Keras, under the names that a history has for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import keras

from nas_hpc.errors import WrongCall
from nas_hpc.nas.operations import Shape
from nas_hpc.nas.problem import NaProblem

Loss = Callable[[Any, Any], Any]
"""From targets and predictions of a batch to a number, or one for each example."""


@dataclass(frozen=True, slots=True)
class Target:
    """An output of a network, and what stands against it in the data."""

    name: str
    predicted: Shape
    """Of the network's output, without the batch."""
    wanted: Shape
    """Of the data's, without the batch: sparse labels have a dimension less."""


@dataclass(frozen=True, slots=True)
class NamedMetric:
    """A metric of one output, as the history names it."""

    name: str
    output: int
    metric: Any


def losses_of(problem: NaProblem, outputs: int) -> list[tuple[Loss, float]]:
    """The loss of each output and its weight. Raises WrongCall for one that Keras does not know, or for
    another number of them."""
    given = problem.loss_function
    several = list(given) if isinstance(given, (list, tuple)) else [given] * outputs
    if len(several) != outputs:
        raise WrongCall(f"loss: there are {len(several)} losses for {outputs} outputs: give one for each")
    weights = [1.0] * outputs if problem.loss_weights is None else [float(w) for w in problem.loss_weights]
    if len(weights) != outputs:
        raise WrongCall(f"loss: there are {len(weights)} weights for {outputs} outputs: give one for each")
    return [(_loss(one), weight) for one, weight in zip(several, weights, strict=True)]


def _loss(given: Any) -> Loss:
    try:
        found = keras.losses.get(given)
    except (ValueError, TypeError):
        raise WrongCall(
            f"loss: Keras knows no loss {given!r}: give one such as 'mse', or a function"
        ) from None
    made: Loss = found() if isinstance(found, type) else found
    return made


def metrics_of(problem: NaProblem, targets: Sequence[Target]) -> list[NamedMetric]:
    """Every metric of the problem for every output. With several outputs a name has the output's before it.

    Raises WrongCall for one that Keras does not know.
    """
    named = zip(problem.metric_names, problem.metric_list, strict=True)
    pairs = [(name, given) for name, given in named]
    return [
        NamedMetric(
            name if len(targets) == 1 else f"{target.name}_{name}", number, _metric(given, name, target)
        )
        for number, target in enumerate(targets)
        for name, given in pairs
    ]


def check_sums(metrics: Sequence[NamedMetric]) -> None:
    """Raise WrongCall for a metric of which it is not known that what two ranks have counted may be added up,
    and is then what one would have counted of all examples. Keras's are such.
    """
    for one in metrics:
        of_keras = type(one.metric).__module__.partition(".")[0] == "keras"
        if not of_keras and not getattr(one.metric, "additive", False):
            raise WrongCall(
                f"metrics: {one.name} is a {type(one.metric).__name__}, of which it is not known whether the "
                "ranks of a training may add up what they counted: give its class additive = True if they may"
            )


def _metric(given: Any, name: str, target: Target) -> Any:
    if given in ("accuracy", "acc"):
        return _accuracy(target)(name=name)
    if given == "r2":
        return keras.metrics.R2Score(name=name)
    try:
        found = keras.metrics.get(given)
    except (ValueError, TypeError):
        raise WrongCall(
            f"metrics: Keras knows no metric {given!r}: give one such as 'accuracy' or 'r2', or a function"
        ) from None
    if isinstance(found, type):
        found = found()
    if isinstance(found, keras.metrics.Metric):
        # An object serves all trainings of a process, and each has its own.
        return type(found).from_config(found.get_config())
    return keras.metrics.MeanMetricWrapper(found, name=name)


def _accuracy(target: Target) -> Any:
    """Keras's rule for which accuracy is meant."""
    if target.predicted[-1:] == (1,):
        return keras.metrics.BinaryAccuracy
    sparse = len(target.wanted) < len(target.predicted) or target.wanted[-1:] == (1,)
    return keras.metrics.SparseCategoricalAccuracy if sparse else keras.metrics.CategoricalAccuracy
