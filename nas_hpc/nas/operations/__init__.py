"""What the nodes of an architecture can do, for dense, one- and two-dimensional networks."""

from collections.abc import Mapping
from typing import Any

from nas_hpc.errors import WrongCall
from nas_hpc.nas.operations import base
from nas_hpc.nas.operations.base import ACTIVATIONS, Make, Operation, Shape
from nas_hpc.nas.operations.convolutions import (
    AveragePooling1D,
    AveragePooling2D,
    Conv1D,
    Conv2D,
    GlobalAveragePooling1D,
    GlobalAveragePooling2D,
    MaxPooling1D,
    MaxPooling2D,
    SeparableConv2D,
)
from nas_hpc.nas.operations.layers import (
    Activation,
    BatchNormalization,
    Dense,
    Dropout,
    Flatten,
    Identity,
    Reshape,
)
from nas_hpc.nas.operations.merges import AddByPadding, AddByProjecting, Concatenate, Connect, Zero

__all__ = [
    "ACTIVATIONS", "Activation", "AddByPadding", "AddByProjecting", "AveragePooling1D",
    "AveragePooling2D", "BatchNormalization", "Concatenate", "Connect", "Conv1D", "Conv2D", "Dense",
    "Dropout", "Flatten", "GlobalAveragePooling1D", "GlobalAveragePooling2D", "Identity", "Make",
    "MaxPooling1D", "MaxPooling2D", "OPERATIONS", "Operation", "Reshape", "SeparableConv2D", "Shape",
    "Zero", "check_kind", "operation_from_json",
]  # fmt: skip
OPERATIONS: tuple[type[Operation], ...] = (
    Activation, AddByPadding, AddByProjecting, AveragePooling1D, AveragePooling2D, BatchNormalization,
    Concatenate, Connect, Conv1D, Conv2D, Dense, Dropout, Flatten, GlobalAveragePooling1D,
    GlobalAveragePooling2D, Identity, MaxPooling1D, MaxPooling2D, Reshape, SeparableConv2D, Zero,
)  # fmt: skip
_KNOWN = {kind.__name__: kind for kind in OPERATIONS}


def check_kind(operation: Operation, node: str) -> None:
    """Raise WrongCall for an operation of the user's own that cannot be built, or not be found again."""
    kind = type(operation)
    if kind.build is Operation.build and kind is not Zero:
        raise WrongCall(f"node {node}: the operation {kind.__name__} has no build(): write that method")
    if "<locals>" in kind.__qualname__:
        raise WrongCall(
            f"node {node}: the operation {kind.__name__} is a class inside a function, where no other "
            "process finds it: put it at the top of its module"
        )


def operation_from_json(body: Mapping[str, Any]) -> Operation:
    """The operation of ``Operation.to_json``'s form. Raises WrongCall."""
    return base.from_json(body, _KNOWN)
