"""One architecture of a space: what is left of the graph when all is chosen, its shapes and its size."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from nas_hpc.errors import WrongCall
from nas_hpc.nas.operations import Operation, Shape, operation_from_json

VERSION = 1
"""Of the JSON form."""


@dataclass(frozen=True, slots=True)
class Part:
    """A node of an architecture."""

    name: str
    operation: Operation | None
    """None: an input."""
    inputs: tuple[str, ...]
    """Names of the parts whose outputs it takes, in this order."""
    shape: Shape = ()
    """Of an input."""
    shares: str = ""
    """The node whose weights it has, if that is another one."""
    chosen: bool = False
    """Whether another operation could stand here."""


@dataclass(frozen=True)
class Architecture:
    """Parts in an order in which each stands after its inputs; made by ``SearchSpace.architecture``.

    Raises WrongCall where an operation does not take its inputs, or the output has another shape.
    """

    sequence: tuple[int, ...]
    parts: tuple[Part, ...]
    outputs: tuple[str, ...]
    """Names of the parts that nothing follows."""
    output_shapes: tuple[Shape, ...]
    shapes: Mapping[str, Shape] = field(init=False, compare=False, repr=False)
    """Of the output of each part, by name, without the batch."""

    def __post_init__(self) -> None:
        shapes: dict[str, Shape] = {}
        for part in self.parts:
            try:
                shapes[part.name] = self._shape(part, shapes)
            except WrongCall as error:
                raise WrongCall(f"node {part.name} of {self._said()}: {error.message}") from None
        object.__setattr__(self, "shapes", shapes)
        have = [shapes.get(name) for name in self.outputs]
        if None in have:
            raise WrongCall(
                f"{self._said()}: nothing is connected to its output {self.outputs[have.index(None)]}"
            )
        if have != list(self.output_shapes):
            raise WrongCall(
                f"{self._said()} has the output shape {_several(have)}, and the space is for "
                f"{_several(self.output_shapes)}"
            )

    def _shape(self, part: Part, shapes: Mapping[str, Shape]) -> Shape:
        if part.operation is None:
            return part.shape
        given = self._given(part, shapes)
        if part.shares:
            first = next(one for one in self.parts if one.name == part.shares)
            whole = part.operation.merges
            if _alike(self._given(first, shapes), whole) != _alike(given, whole):
                raise WrongCall(
                    f"it shares the weights of {first.name}, whose inputs have other "
                    f"{'shapes' if whole else 'ranks or last dimensions'}: {_several(given)} here, "
                    f"{_several(self._given(first, shapes))} there"
                )
        return part.operation.output_shape(given)

    @staticmethod
    def _given(part: Part, shapes: Mapping[str, Shape]) -> list[Shape]:
        return [shapes[name] for name in part.inputs]

    def _said(self) -> str:
        return f"the architecture {list(self.sequence)}"

    # -- its size --------------------------------------------------------------------------------------
    @property
    def parameters(self) -> int:
        """Numbers that the network keeps; weights that nodes share count once."""
        return sum(self.parameters_of(part) for part in self.parts)

    def parameters_of(self, part: Part) -> int:
        """Those that ``part`` has for itself."""
        if part.operation is None or part.shares:
            return 0
        return part.operation.parameters(self._given(part, self.shapes))

    @property
    def flops(self) -> int:
        """Floating-point operations of one example's way forward (see ``Operation.flops``)."""
        return sum(self.flops_of(part) for part in self.parts)

    def flops_of(self, part: Part) -> int:
        """Those of ``part``."""
        return 0 if part.operation is None else part.operation.flops(self._given(part, self.shapes))

    # -- JSON --------------------------------------------------------------------------------------------
    def to_json(self) -> dict[str, Any]:
        """The expanded form: every part with its operation, inputs, output shape and size. What follows from
        the rest (text, parameters, flops) is there for readers without the operations' classes."""
        return {
            "version": VERSION,
            "arch_seq": list(self.sequence),
            "parameters": self.parameters,
            "flops": self.flops,
            "outputs": list(self.outputs),
            "nodes": [self._part_json(part) for part in self.parts],
        }

    def _part_json(self, part: Part) -> dict[str, Any]:
        body: dict[str, Any] = {"name": part.name, "inputs": list(part.inputs)}
        if part.operation is not None:
            body |= {"op": part.operation.to_json(), "text": str(part.operation), "chosen": part.chosen}
            body |= {"parameters": self.parameters_of(part), "flops": self.flops_of(part)}
        if part.shares:
            body["shares"] = part.shares
        return body | {"shape": list(self.shapes[part.name])}

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> Architecture:
        """The architecture of ``to_json``'s form; modules of operations of one's own are imported.

        Raises WrongCall.
        """
        version = body.get("version")
        if version != VERSION:
            raise WrongCall(f"an architecture of version {version!r}: this program reads {VERSION}")
        try:
            shapes = {one["name"]: tuple(one["shape"]) for one in body["nodes"]}
            return cls(
                tuple(body["arch_seq"]),
                tuple(_part_of(one) for one in body["nodes"]),
                tuple(body["outputs"]),
                tuple(shapes[name] for name in body["outputs"]),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise WrongCall(f"this is no architecture: {type(error).__name__}: {error}") from error

    def __str__(self) -> str:
        return json.dumps(list(self.sequence))


def _part_of(body: Mapping[str, Any]) -> Part:
    if "op" not in body:
        return Part(body["name"], None, (), tuple(body["shape"]))
    operation, inputs = operation_from_json(body["op"]), tuple(body["inputs"])
    return Part(body["name"], operation, inputs, (), body.get("shares", ""), body["chosen"])


def _alike(shapes: Sequence[Shape], whole: bool) -> list[tuple[int, ...]]:
    """What inputs have to have in common for the same weights to take them."""
    return [shape if whole else (len(shape), shape[-1]) for shape in shapes]


def _several(shapes: Any) -> str:
    return ", ".join(str(shape) for shape in shapes)
