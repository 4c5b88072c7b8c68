"""One architecture of a space: what is left of the graph when all is chosen, its shapes and its size."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from nas_hpc.errors import WrongCall
from nas_hpc.nas.operations import Operation, Shape


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
        given = [shapes[name] for name in part.inputs]
        shape = part.operation.output_shape(given)
        first = next((one for one in self.parts if one.name == part.shares), None) if part.shares else None
        if first is not None and [shapes[name][-1] for name in first.inputs] != [one[-1] for one in given]:
            raise WrongCall(
                f"it shares the weights of {part.shares}, whose inputs have another last dimension"
            )
        return shape

    def _said(self) -> str:
        return f"the architecture {list(self.sequence)}"

    # -- its size --------------------------------------------------------------------------------------
    @property
    def parameters(self) -> int:
        """Numbers that the network keeps; weights that nodes share count once."""
        return sum(
            part.operation.parameters([self.shapes[name] for name in part.inputs])
            for part in self.parts
            if part.operation is not None and not part.shares
        )

    @property
    def flops(self) -> int:
        """Floating-point operations of one example's way forward (see ``Operation.flops``)."""
        return sum(
            part.operation.flops([self.shapes[name] for name in part.inputs])
            for part in self.parts
            if part.operation is not None
        )

    # -- JSON --------------------------------------------------------------------------------------------
    def to_json(self) -> dict[str, Any]:
        """The expanded form: every part with its operation, inputs and output shape."""
        return {
            "arch_seq": list(self.sequence),
            "parameters": self.parameters,
            "flops": self.flops,
            "outputs": list(self.outputs),
            "nodes": [self._part_json(part) for part in self.parts],
        }

    def _part_json(self, part: Part) -> dict[str, Any]:
        body: dict[str, Any] = {"name": part.name, "inputs": list(part.inputs)}
        if part.operation is not None:
            body["op"] = part.operation.to_json()
        if part.shares:
            body["shares"] = part.shares
        return body | {"shape": list(self.shapes[part.name])}

    def __str__(self) -> str:
        return json.dumps(list(self.sequence))


def _several(shapes: Any) -> str:
    return ", ".join(str(shape) for shape in shapes)
