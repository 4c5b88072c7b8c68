"""The data of a problem: loaded, preprocessed, checked, and turned into arrays of one form.

Nothing here loads Keras, so that a search can refuse what is wrong before its first job.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nas_hpc.errors import WrongCall
from nas_hpc.loading import one_line
from nas_hpc.nas.losses import check_losses, check_metrics, check_output, check_targets, loss_kind
from nas_hpc.nas.objective import Objective
from nas_hpc.nas.operations import Shape
from nas_hpc.nas.problem import NaProblem, name_of
from nas_hpc.nas.progress import early_monitor
from nas_hpc.nas.space import SearchSpace

Array = NDArray[Any]
_PARTS = ("training", "validation", "test")


@dataclass(frozen=True, slots=True)
class Sample:
    """Examples, the same number in each array: inputs as float32 (n, ...), one array for each input of the
    network; targets as float32 (n, ...), or int32 where the loss takes numbers of classes, one for each
    output. What was given as (n,) is (n, 1) here."""

    inputs: tuple[Array, ...]
    targets: tuple[Array, ...]

    def __len__(self) -> int:
        return len(self.inputs[0])


@dataclass(frozen=True, slots=True)
class Data:
    """What a network is trained on, chosen by, and, where there is such a pair, tested on at the end."""

    train: Sample
    valid: Sample
    test: Sample | None
    output_shapes: tuple[Shape, ...]
    """Of one example: those of the targets, and of as many numbers as there are classes where these are
    numbers of classes."""

    @property
    def input_shapes(self) -> tuple[Shape, ...]:
        """Of one example, without the batch."""
        return tuple(array.shape[1:] for array in self.train.inputs)


def check_problem(problem: NaProblem) -> tuple[SearchSpace, Data | None]:
    """The space of ``problem`` and its data, after all that can be refused before a network is trained.

    Where ``search_space`` was given both shapes the data is not loaded, and is None. Raises WrongCall.
    """
    problem.check()
    check_losses(problem.loss_function)
    check_metrics(problem.metric_list)
    early_monitor(problem)
    data = None if problem.given_shapes else load_data(problem)
    space = space_of(problem, data)
    _check_objective(problem, space)
    return space, data


def space_of(problem: NaProblem, data: Data | None) -> SearchSpace:
    """The space of ``problem`` for ``data``; None: for the shapes that ``search_space`` was given.

    Raises WrongCall if there are no such shapes, the data has others, or the loss does not fit the output.
    """
    if data is not None:
        space = problem.build_space(_one_or_all(data.input_shapes), _one_or_all(data.output_shapes))
        _check_shapes("input", [node.shape for node in space.inputs], data.input_shapes)
        _check_shapes("output", space.output_shapes, data.output_shapes)
    elif problem.given_shapes is None:
        raise WrongCall("search_space: the shapes of the data are not known: load it, or give both shapes")
    else:
        space = problem.build_space()
    losses = _losses(problem, len(space.output_shapes))
    for loss, shape in zip(losses, space.output_shapes, strict=True):
        check_output(loss, shape)
    return space


def load_data(problem: NaProblem) -> Data:
    """The data of ``problem``, preprocessed by what is fitted on its training part alone.

    Raises WrongCall for data that is none: of unequal lengths, empty, with numbers that are not finite,
    labels out of range of the loss, parts whose shapes differ; and for what the problem's functions raise.
    """
    function, arguments = problem.loader
    said = f"load_data: {name_of(function)}"
    parts = [
        _arrays(pair, f"load_data: {part}")
        for pair, part in zip(_pairs(_call(said, function, arguments), said), _PARTS, strict=False)
    ]
    losses = _losses(problem, len(parts[0][1]))
    inputs = _transformed([one[0] for one in parts], problem.preprocessor)
    targets = _transformed([one[1] for one in parts], problem.target_preprocessor)
    numbers = [np.int32 if loss_kind(loss) == "classes" else np.float32 for loss in losses]
    samples = [
        Sample(
            tuple(_numbers(a, f"load_data: {part} inputs") for a in inputs[n]),
            tuple(_numbers(a, f"load_data: {part} targets") for a in targets[n]),
        )
        for n, part in zip(range(len(parts)), _PARTS, strict=False)
    ]
    _check_parts(samples)
    shapes = _output_shapes(problem, losses, samples[0].targets)
    for sample, part in zip(samples, _PARTS, strict=False):
        for loss, array, shape in zip(losses, sample.targets, shapes, strict=True):
            check_targets(loss, array, shape[-1], f"load_data: {part} targets")
    train, valid, *test = [
        Sample(s.inputs, tuple(a.astype(t, copy=False) for a, t in zip(s.targets, numbers, strict=True)))
        for s in samples
    ]
    return Data(train, valid, test[0] if test else None, shapes)


# -- what was loaded -------------------------------------------------------------------------------------
def _pairs(loaded: Any, said: str) -> Sequence[Any]:
    right = "let it return ((x, y), (x, y)) of training and validation, and as a third pair the test's"
    if not isinstance(loaded, tuple | list):
        raise WrongCall(f"{said} gave a {type(loaded).__name__}: {right}")
    if len(loaded) not in (2, 3):
        raise WrongCall(f"{said} gave {len(loaded)} parts: {right}")
    for part, name in zip(loaded, _PARTS, strict=False):
        if not isinstance(part, tuple | list) or len(part) != 2:
            raise WrongCall(f"{said} gave no pair (inputs, targets) for {name}: {right}")
    return loaded


def _arrays(pair: Sequence[Any], said: str) -> tuple[list[Array], list[Array]]:
    """Inputs and targets as arrays with two dimensions or more, all of one length."""
    inputs, targets = _several(pair[0], f"{said} inputs"), _several(pair[1], f"{said} targets")
    for arrays, name in ((inputs, "inputs"), (targets, "targets")):
        for array in arrays:
            if len(array) != len(inputs[0]):
                raise WrongCall(
                    f"{said} inputs have {len(inputs[0])} examples and its {name} {len(array)}: "
                    "give as many of each"
                )
    if not len(inputs[0]):
        raise WrongCall(f"{said} has no examples: give at least one")
    return inputs, targets


def _several(given: Any, said: str) -> list[Array]:
    each = given if isinstance(given, list | tuple) and given and _all_arrays(given) else [given]
    try:
        arrays = [np.asarray(one) for one in each]
    except ValueError as error:  # rows of unequal lengths
        raise WrongCall(f"{said} are no array ({one_line(error)}): give one example in each row") from None
    for array in arrays:
        if not array.ndim:
            kind = type(given).__name__
            raise WrongCall(f"{said} are a {kind}, no array: give one example in each row")
        if not array.size and len(array):
            raise WrongCall(f"{said} have the shape {array.shape}: nothing is in an example")
    return [array.reshape(-1, 1) if array.ndim == 1 else array for array in arrays]


def _all_arrays(given: Sequence[Any]) -> bool:
    return all(isinstance(one, np.ndarray) and one.ndim for one in given)


def _numbers(array: Array, said: str) -> Array:
    """``array`` as float32. Raises WrongCall if it has something else than finite numbers."""
    try:
        with np.errstate(over="ignore"):
            numbers = np.ascontiguousarray(array, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise WrongCall(
            f"{said} are no numbers ({one_line(error)}): give numbers, or preprocessing"
        ) from None
    wrong = np.argwhere(~np.isfinite(numbers))
    if len(wrong):
        place = tuple(int(one) for one in wrong[0])
        raise WrongCall(
            f"{said} have {len(wrong)} numbers that are not finite in float32, the first at {list(place)}: "
            f"{array[place]}"
        )
    return numbers


def _check_parts(samples: Sequence[Sample]) -> None:
    """Raise WrongCall if the parts differ in the number or shapes of their arrays."""
    for sample, part in zip(samples[1:], _PARTS[1:], strict=False):
        for name in ("inputs", "targets"):
            first = [array.shape[1:] for array in getattr(samples[0], name)]
            other = [array.shape[1:] for array in getattr(sample, name)]
            if first != other:
                raise WrongCall(
                    f"load_data: training {name} have the shape {_said(first)} and {part} {name} "
                    f"{_said(other)}: give both the same"
                )


def _output_shapes(problem: NaProblem, losses: Sequence[Any], targets: Sequence[Array]) -> tuple[Shape, ...]:
    """Of one example: the targets', with the classes as last dimension where these are class numbers."""
    given = problem.given_output_shapes
    shapes = []
    for number, (loss, array) in enumerate(zip(losses, targets, strict=True)):
        shape = tuple(array.shape[1:])
        if loss_kind(loss) == "classes":
            known = given is not None and number < len(given)
            classes = given[number][-1] if given is not None and known else int(array.max()) + 1
            shape = (*(shape[:-1] if shape[-1] == 1 else shape), max(classes, 1))
        shapes.append(shape)
    return tuple(shapes)


# -- preprocessing -----------------------------------------------------------------------------------------
def _transformed(parts: list[list[Array]], make: Callable[[], Any] | None) -> list[list[Array]]:
    """The arrays of each part, transformed by what is fitted on those of the first part."""
    if make is None:
        return parts
    said = f"preprocessing: {name_of(make)}"
    if any(len(part) != len(parts[0]) for part in parts):
        raise WrongCall(f"{said}: training has another number of arrays than the others: give all the same")
    columns = []
    for arrays in zip(*parts, strict=True):
        transformer = _call(said, make, {})
        _call(said, lambda t=transformer, a=arrays: t.fit(_rows(a[0])), {})
        columns.append([_call(said, lambda t=transformer, a=a: _apply(t, a), {}) for a in arrays])
    return [list(part) for part in zip(*columns, strict=True)]


def _rows(array: Array) -> Array:
    """One row for each example, as transformers take them."""
    return array.reshape(len(array), -1)


def _apply(transformer: Any, array: Array) -> Array:
    """What ``transformer`` makes of ``array``, in its shape where that still fits."""
    changed = transformer.transform(_rows(array))
    changed = np.asarray(changed.toarray() if hasattr(changed, "toarray") else changed)
    return changed.reshape(array.shape) if changed.size == array.size else changed


# -- small things --------------------------------------------------------------------------------------------
def _losses(problem: NaProblem, outputs: int) -> list[Any]:
    """A loss for each output. Raises WrongCall if there are more or fewer of them."""
    loss = problem.loss_function
    losses = list(loss) if isinstance(loss, list | tuple) else [loss]
    if len(losses) != outputs:
        raise WrongCall(
            f"the problem has {outputs} outputs and {len(losses)} losses: give a list with one for each"
        )
    return losses


def _check_objective(problem: NaProblem, space: SearchSpace) -> None:
    """Raise WrongCall if the history of a network with several outputs has nothing of the objective's name:
    its metrics have the output's name before theirs."""
    objective = problem.the_objective
    if isinstance(objective, Objective) and len(space.output_shapes) > 1:
        outputs = space.architecture([0] * len(space.choices)).outputs
        objective.check([f"{output}_{name}" for output in outputs for name in problem.metric_names])


def _check_shapes(what: str, space: Sequence[Shape], data: Sequence[Shape]) -> None:
    if list(space) != list(data):
        raise WrongCall(
            f"search_space: its {what} shape is {_said(space)}, and that of the data {_said(data)}: "
            "give both the same"
        )


def _call(said: str, function: Callable[..., Any], arguments: dict[str, Any]) -> Any:
    """What the user's ``function`` gives; whatever it raises becomes one line."""
    try:
        return function(**arguments)
    except WrongCall:
        raise
    except MemoryError:
        raise
    except Exception as error:
        raise WrongCall(f"{said} raised {type(error).__name__}: {one_line(error)}: correct it") from error


def _one_or_all(shapes: Sequence[Shape]) -> Any:
    return shapes[0] if len(shapes) == 1 else list(shapes)


def _said(shapes: Sequence[Shape]) -> str:
    return ", ".join(str(tuple(shape)) for shape in shapes)
