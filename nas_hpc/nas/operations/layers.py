"""Operations with one input that are the same whatever the network is made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nas_hpc.errors import WrongCall
from nas_hpc.nas.operations.base import (
    Make,
    Operation,
    Shape,
    check_activation,
    check_positive,
    elements,
    whole_shape,
)


@dataclass(frozen=True)
class Identity(Operation):
    """Hands its input on."""

    def build(self, tensors: Sequence[Any], make: Make) -> Any:
        return tensors[0]


@dataclass(frozen=True)
class Dense(Operation):
    """A fully connected layer of ``units``, over the last dimension of its input."""

    units: int
    activation: str = ""

    def __post_init__(self) -> None:
        check_positive(self, "units")
        check_activation(self)

    def output_shape(self, shapes: Sequence[Shape]) -> Shape:
        return (*self.one(shapes)[:-1], self.units)

    def parameters(self, shapes: Sequence[Shape]) -> int:
        return (self.one(shapes)[-1] + 1) * self.units

    def flops(self, shapes: Sequence[Shape]) -> int:
        return (2 * self.one(shapes)[-1] + 1) * elements(self.output_shape(shapes))

    def build(self, tensors: Sequence[Any], make: Make) -> Any:
        return make("Dense", units=self.units, activation=self.activation or None)(tensors[0])


@dataclass(frozen=True)
class Activation(Operation):
    """A function of each number."""

    activation: str

    def __post_init__(self) -> None:
        check_activation(self)

    def build(self, tensors: Sequence[Any], make: Make) -> Any:
        return make("Activation", activation=self.activation or "linear")(tensors[0])


@dataclass(frozen=True)
class Dropout(Operation):
    """Sets a share ``rate`` of its input to zero while it is trained."""

    rate: float

    def __post_init__(self) -> None:
        if isinstance(self.rate, bool) or not isinstance(self.rate, int | float) or not 0 <= self.rate < 1:
            raise WrongCall(f"Dropout: rate={self.rate!r}: give a share from 0 to below 1")

    def build(self, tensors: Sequence[Any], make: Make) -> Any:
        return make("Dropout", rate=self.rate)(tensors[0])


@dataclass(frozen=True)
class BatchNormalization(Operation):
    """Normalises over the batch, each of the last dimension's numbers by itself."""

    def parameters(self, shapes: Sequence[Shape]) -> int:
        return 4 * self.one(shapes)[-1]

    def build(self, tensors: Sequence[Any], make: Make) -> Any:
        return make("BatchNormalization")(tensors[0])


@dataclass(frozen=True)
class Flatten(Operation):
    """Makes a vector of its input."""

    def output_shape(self, shapes: Sequence[Shape]) -> Shape:
        return (elements(self.one(shapes)),)

    def build(self, tensors: Sequence[Any], make: Make) -> Any:
        return make("Flatten")(tensors[0])


@dataclass(frozen=True)
class Reshape(Operation):
    """Gives its input another shape of as many numbers."""

    shape: Shape

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", whole_shape("Reshape", self.shape))

    def output_shape(self, shapes: Sequence[Shape]) -> Shape:
        if elements(self.one(shapes)) != elements(self.shape):
            raise WrongCall(
                f"{self} cannot be made of {shapes[0]}: they differ in how many numbers they have"
            )
        return self.shape

    def build(self, tensors: Sequence[Any], make: Make) -> Any:
        return make("Reshape", target_shape=self.shape)(tensors[0])
