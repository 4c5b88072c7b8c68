"""Convolutions and poolings over one dimension (length, channels) and two (height, width, channels)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from nas_hpc.errors import WrongCall
from nas_hpc.nas.operations.base import (
    Make,
    Operation,
    Shape,
    check_activation,
    check_positive,
    elements,
)

PADDINGS = ("same", "valid")


@dataclass(frozen=True)
class _Window(Operation):
    """What slides a window over all dimensions but the last, the channels."""

    def window(self) -> tuple[int, int, str]:
        """(size, stride, padding), of every dimension."""
        raise NotImplementedError

    def check_window(self) -> None:
        """Raise WrongCall unless ``window`` is one."""
        size, stride, padding = self.window()
        if padding not in PADDINGS:
            raise WrongCall(f"{type(self).__name__}: padding={padding!r}: give same or valid")

    def slide(self, shape: Shape) -> Shape:
        """How many places the window has in each dimension of ``shape`` (without the channels).

        Raises WrongCall where it is larger than the input.
        """
        self.check_rank(shape)
        size, stride, padding = self.window()
        if padding == "same":
            return tuple(-(-length // stride) for length in shape[:-1])
        if min(shape[:-1]) < size:
            raise WrongCall(
                f"{self} has a window of {size}, larger than its input {shape}: give padding='same'"
            )
        return tuple((length - size) // stride + 1 for length in shape[:-1])


@dataclass(frozen=True)
class _Convolution(_Window):
    filters: int
    kernel_size: int
    activation: str = ""
    strides: int = 1
    padding: str = "same"

    def __post_init__(self) -> None:
        check_positive(self, "filters", "kernel_size", "strides")
        check_activation(self)
        self.check_window()

    def window(self) -> tuple[int, int, str]:
        return self.kernel_size, self.strides, self.padding

    def output_shape(self, shapes: Sequence[Shape]) -> Shape:
        return (*self.slide(self.one(shapes)), self.filters)

    def _weights(self, shape: Shape) -> int:
        return int(self.kernel_size ** (len(shape) - 1)) * shape[-1]

    def parameters(self, shapes: Sequence[Shape]) -> int:
        return (self._weights(self.one(shapes)) + 1) * self.filters

    def flops(self, shapes: Sequence[Shape]) -> int:
        return (2 * self._weights(self.one(shapes)) + 1) * elements(self.output_shape(shapes))

    def build(self, tensors: Sequence[Any], make: Make) -> Any:
        layer = make(
            type(self).__name__, filters=self.filters, kernel_size=self.kernel_size, strides=self.strides,
            padding=self.padding, activation=self.activation or None,
        )  # fmt: skip
        return layer(tensors[0])


@dataclass(frozen=True)
class Conv1D(_Convolution):
    """A convolution over (length, channels)."""

    ranks: ClassVar[tuple[int, ...]] = (2,)


@dataclass(frozen=True)
class Conv2D(_Convolution):
    """A convolution over (height, width, channels), its kernel and stride the same both ways."""

    ranks: ClassVar[tuple[int, ...]] = (3,)


@dataclass(frozen=True)
class SeparableConv2D(_Convolution):
    """A convolution of each channel by itself, then one over the channels (depth multiplier 1)."""

    ranks: ClassVar[tuple[int, ...]] = (3,)

    def parameters(self, shapes: Sequence[Shape]) -> int:
        channels = self.one(shapes)[-1]
        return self.kernel_size**2 * channels + (channels + 1) * self.filters

    def flops(self, shapes: Sequence[Shape]) -> int:
        places, channels = elements(self.slide(self.one(shapes))), shapes[0][-1]
        return places * (2 * self.kernel_size**2 * channels + (2 * channels + 1) * self.filters)


@dataclass(frozen=True)
class _Pooling(_Window):
    pool_size: int = 2
    strides: int = 0
    """0: as the window's size."""
    padding: str = "valid"

    def __post_init__(self) -> None:
        check_positive(self, "pool_size")
        if self.strides:
            check_positive(self, "strides")
        self.check_window()

    def window(self) -> tuple[int, int, str]:
        return self.pool_size, self.strides or self.pool_size, self.padding

    def output_shape(self, shapes: Sequence[Shape]) -> Shape:
        return (*self.slide(self.one(shapes)), shapes[0][-1])

    def flops(self, shapes: Sequence[Shape]) -> int:
        return int(self.pool_size ** (len(self.one(shapes)) - 1)) * elements(self.output_shape(shapes))

    def build(self, tensors: Sequence[Any], make: Make) -> Any:
        layer = make(
            type(self).__name__, pool_size=self.pool_size, strides=self.strides or None, padding=self.padding
        )
        return layer(tensors[0])


@dataclass(frozen=True)
class MaxPooling1D(_Pooling):
    """The largest of each window over (length, channels)."""

    ranks: ClassVar[tuple[int, ...]] = (2,)


@dataclass(frozen=True)
class AveragePooling1D(_Pooling):
    """The mean of each window over (length, channels)."""

    ranks: ClassVar[tuple[int, ...]] = (2,)


@dataclass(frozen=True)
class MaxPooling2D(_Pooling):
    """The largest of each window over (height, width, channels)."""

    ranks: ClassVar[tuple[int, ...]] = (3,)


@dataclass(frozen=True)
class AveragePooling2D(_Pooling):
    """The mean of each window over (height, width, channels)."""

    ranks: ClassVar[tuple[int, ...]] = (3,)


@dataclass(frozen=True)
class _GlobalPooling(Operation):
    def output_shape(self, shapes: Sequence[Shape]) -> Shape:
        return (self.one(shapes)[-1],)

    def flops(self, shapes: Sequence[Shape]) -> int:
        return elements(self.one(shapes))

    def build(self, tensors: Sequence[Any], make: Make) -> Any:
        return make(type(self).__name__)(tensors[0])


@dataclass(frozen=True)
class GlobalAveragePooling1D(_GlobalPooling):
    """The mean of each channel of (length, channels)."""

    ranks: ClassVar[tuple[int, ...]] = (2,)


@dataclass(frozen=True)
class GlobalAveragePooling2D(_GlobalPooling):
    """The mean of each channel of (height, width, channels)."""

    ranks: ClassVar[tuple[int, ...]] = (3,)
