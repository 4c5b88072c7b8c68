"""Operations on several inputs, and the two that make a connection optional."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from nas_hpc.errors import WrongCall
from nas_hpc.nas.operations.base import Make, Operation, Shape, check_activation, elements

if TYPE_CHECKING:
    from nas_hpc.nas.space import Node


@dataclass(frozen=True)
class Zero(Operation):
    """No connection: what follows gets nothing from this node."""


@dataclass(frozen=True)
class Connect(Operation):
    """A connection to another node of the space, whose output it hands on beside nothing else.

    ``source`` is that node, or its name. A variable node of ``Zero()`` and ``Connect(node)`` is an optional
    skip connection.
    """

    source: str

    def __init__(self, source: Node | str) -> None:
        name = source if isinstance(source, str) else getattr(source, "name", None)
        if not name or not isinstance(name, str):
            raise WrongCall(
                f"Connect({source!r}): give a node that has a name, or was brought into the space before"
            )
        object.__setattr__(self, "source", name)

    def output_shape(self, shapes: Sequence[Shape]) -> Shape:
        if len(shapes) != 1:
            raise WrongCall(f"{self} is the only input of its node: connect nothing else to it")
        return shapes[0]

    def build(self, tensors: Sequence[Any], make: Make) -> Any:
        return tensors[0]


@dataclass(frozen=True)
class Concatenate(Operation):
    """Its inputs side by side in the last dimension; the others have to be the same."""

    merges: ClassVar[bool] = True

    def output_shape(self, shapes: Sequence[Shape]) -> Shape:
        if len({shape[:-1] for shape in shapes}) > 1:
            raise WrongCall(
                f"{self} takes inputs that differ in their last dimension only, and these are "
                f"{', '.join(map(str, shapes))}"
            )
        return (*shapes[0][:-1], sum(shape[-1] for shape in shapes))

    def build(self, tensors: Sequence[Any], make: Make) -> Any:
        return make("Concatenate")(list(tensors)) if len(tensors) > 1 else tensors[0]


@dataclass(frozen=True)
class _Addition(Operation):
    """The sum of the inputs, brought to the shape of the first one, and a function of it."""

    activation: str = ""
    merges: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_activation(self)

    def output_shape(self, shapes: Sequence[Shape]) -> Shape:
        if len({len(shape) for shape in shapes}) > 1:
            raise WrongCall(f"{self} takes inputs of one rank, and these are {', '.join(map(str, shapes))}")
        if len(shapes[0]) > 3 and len(set(shapes)) > 1:
            raise WrongCall(f"{self} takes inputs of rank 1 to 3, and this one has rank {len(shapes[0])}")
        return self.common(shapes)

    def common(self, shapes: Sequence[Shape]) -> Shape:
        """The shape of the sum."""
        return shapes[0]

    def flops(self, shapes: Sequence[Shape]) -> int:
        return (len(shapes) - 1) * elements(self.common(shapes))

    def finish(self, tensors: Sequence[Any], make: Make) -> Any:
        """The sum of tensors of one shape."""
        total = make("Add")(list(tensors)) if len(tensors) > 1 else tensors[0]
        return make("Activation", activation=self.activation)(total) if self.activation else total


@dataclass(frozen=True)
class AddByProjecting(_Addition):
    """The sum of the inputs; those of another width go through a fully connected layer first, which gives
    them the last dimension of the first one. The other dimensions have to be the same."""

    def output_shape(self, shapes: Sequence[Shape]) -> Shape:
        super().output_shape(shapes)
        if len({shape[:-1] for shape in shapes}) > 1:
            raise WrongCall(
                f"{self} projects the last dimension only, and these inputs differ in another: "
                f"{', '.join(map(str, shapes))}"
            )
        return shapes[0]

    def _projected(self, shapes: Sequence[Shape]) -> list[Shape]:
        return [shape for shape in shapes if shape[-1] != shapes[0][-1]]

    def parameters(self, shapes: Sequence[Shape]) -> int:
        return sum((shape[-1] + 1) * shapes[0][-1] for shape in self._projected(shapes))

    def flops(self, shapes: Sequence[Shape]) -> int:
        each = [(2 * shape[-1] + 1) * elements(shapes[0]) for shape in self._projected(shapes)]
        return super().flops(shapes) + sum(each)

    def build(self, tensors: Sequence[Any], make: Make) -> Any:
        width = tensors[0].shape[-1]
        same = [t if t.shape[-1] == width else make("Dense", units=width)(t) for t in tensors]
        return self.finish(same, make)


@dataclass(frozen=True)
class AddByPadding(_Addition):
    """The sum of the inputs, each padded with zeros to the largest length in every dimension."""

    def common(self, shapes: Sequence[Shape]) -> Shape:
        return tuple(max(lengths) for lengths in zip(*shapes, strict=True))

    def build(self, tensors: Sequence[Any], make: Make) -> Any:
        shapes = [tuple(tensor.shape[1:]) for tensor in tensors]
        wanted = self.common(shapes)
        return self.finish([_padded(t, s, wanted, make) for t, s in zip(tensors, shapes, strict=True)], make)


def _padded(tensor: Any, shape: Shape, wanted: Shape, make: Make) -> Any:
    """``tensor`` with zeros after its numbers, by layers that are saved and loaded with a model."""
    if shape == wanted:
        return tensor
    ends = tuple((0, most - length) for length, most in zip(shape, wanted, strict=True))
    channels = make("Reshape", target_shape=(*shape, 1))(tensor)
    padded = make(f"ZeroPadding{len(shape)}D", padding=ends if len(shape) > 1 else ends[0])(channels)
    return make("Reshape", target_shape=wanted)(padded)
