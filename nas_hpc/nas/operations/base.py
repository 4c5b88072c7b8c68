"""What an operation of an architecture is: a frozen record that knows its shape, size and Keras layer."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from math import prod
from typing import Any, ClassVar, Protocol

from nas_hpc.errors import WrongCall
from nas_hpc.loading import load_object

Shape = tuple[int, ...]
"""Of one example, without the batch's dimension: (64,), (length, channels), (height, width, channels)."""

ACTIVATIONS = (
    "elu", "exponential", "gelu", "hard_sigmoid", "leaky_relu", "linear", "relu", "relu6", "selu", "sigmoid",
    "silu", "softmax", "softplus", "softsign", "swish", "tanh",
)  # fmt: skip
"""Keras's; "" is none."""


class Make(Protocol):
    """Gives a Keras layer of the node that is built: the same one again where nodes share their layers."""

    def __call__(self, layer: str, **arguments: Any) -> Any:
        """An instance of ``keras.layers.{layer}``; calls are told apart by their order within a node."""


@dataclass(frozen=True)
class Operation:
    """What a node does with its inputs.

    Derive a frozen dataclass whose fields are plain values (they are its JSON form), name the ranks that it
    takes, and give the methods below. Nothing here loads Keras but ``build``.
    """

    ranks: ClassVar[tuple[int, ...]] = ()
    """Ranks of inputs that it takes, without the batch; empty: any."""
    merges: ClassVar[bool] = False
    """Takes any number of inputs; others take one."""

    def output_shape(self, shapes: Sequence[Shape]) -> Shape:
        """The shape of the output for inputs of ``shapes``. Raises WrongCall if it does not take them."""
        return self.one(shapes)

    def parameters(self, shapes: Sequence[Shape]) -> int:
        """Numbers that it has to keep, trainable or not."""
        return 0

    def flops(self, shapes: Sequence[Shape]) -> int:
        """Floating-point operations of one example's way forward: a multiplication and an addition count two;
        activations and normalisation count nothing."""
        return 0

    def build(self, tensors: Sequence[Any], make: Make) -> Any:
        """The output as a Keras tensor."""
        raise NotImplementedError(f"{type(self).__name__} has no build()")

    def one(self, shapes: Sequence[Shape]) -> Shape:
        """The shape of the only input. Raises WrongCall for several, or one of another rank."""
        if len(shapes) != 1:
            raise WrongCall(
                f"{self} takes one input, and here are {len(shapes)}: put Concatenate or AddByProjecting "
                "before it"
            )
        self.check_rank(shapes[0])
        return shapes[0]

    def check_rank(self, shape: Shape) -> None:
        """Raise WrongCall if inputs of ``shape`` are of a rank that this does not take."""
        if self.ranks and len(shape) not in self.ranks:
            takes = " or ".join(str(rank) for rank in self.ranks)
            raise WrongCall(
                f"{self} takes inputs of rank {takes} (without the batch), and this one has rank "
                f"{len(shape)}: {shape}"
            )

    def to_json(self) -> dict[str, Any]:
        """{"op": NAME, field: value ...}; ``from_json`` takes it back."""
        return {
            "op": _name(type(self)),
            **{one.name: _plain(getattr(self, one.name)) for one in fields(self)},
        }

    def __str__(self) -> str:
        """As in a program: Dense(16, relu), MaxPooling2D(strides=1)."""
        said: list[str] = []
        skipped = False
        for one in fields(self):
            value = getattr(self, one.name)
            if value in ("", one.default):
                skipped = True
            else:
                said.append(f"{one.name}={value}" if skipped else str(value))
        return type(self).__name__ + (f"({', '.join(said)})" if said else "")


def elements(shape: Shape) -> int:
    """How many numbers an output of ``shape`` has."""
    return prod(shape)


def check_positive(operation: Operation, *names: str) -> None:
    """Raise WrongCall unless the fields ``names`` are whole numbers above 0; numpy's become Python's."""
    for name in names:
        value = getattr(operation, name)
        number = _whole(value)
        if number is None or number < 1:
            raise WrongCall(f"{type(operation).__name__}: {name}={value!r}: give a whole number above 0")
        object.__setattr__(operation, name, number)


def whole_shape(what: str, given: Any) -> Shape:
    """``given`` as a shape. Raises WrongCall if it is none."""
    lengths = [_whole(one) for one in given] if isinstance(given, tuple | list) else []
    numbers = [one for one in lengths if one is not None and one > 0]
    if not numbers or len(numbers) < len(lengths):
        raise WrongCall(f"{what}: shape={given!r}: give whole numbers above 0, such as (8, 8, 1)")
    return tuple(numbers)


def _whole(value: Any) -> int | None:
    try:
        return None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        return None


def check_activation(operation: Operation) -> None:
    """Raise WrongCall unless the field ``activation`` names one of Keras's; None becomes ""."""
    value = getattr(operation, "activation")  # noqa: B009  # not every operation has one
    if value is None:
        object.__setattr__(operation, "activation", "")
    elif value != "" and value not in ACTIVATIONS:
        raise WrongCall(
            f"{type(operation).__name__}: unknown activation {value!r}: give one of {', '.join(ACTIVATIONS)}"
        )


def from_json(body: Mapping[str, Any], known: Mapping[str, type[Operation]]) -> Operation:
    """The operation of ``to_json``'s form; ``known`` are the package's own, others are found by their path.

    Raises WrongCall.
    """
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in body.items()}
    name = str(values.pop("op", ""))
    kind = known.get(name) or (load_object(name, "operation", "") if "." in name else None)
    if not (isinstance(kind, type) and issubclass(kind, Operation)):
        raise WrongCall(
            f"unknown operation {name!r}: give one of {', '.join(sorted(known))}, or module.Class"
        )
    try:
        return kind(**values)
    except TypeError as error:
        raise WrongCall(f"operation {dict(body)}: {error}") from None


def _name(kind: type[Operation]) -> str:
    own = kind.__module__.startswith("nas_hpc.nas.operations")
    return kind.__name__ if own else f"{kind.__module__}.{kind.__qualname__}"


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
