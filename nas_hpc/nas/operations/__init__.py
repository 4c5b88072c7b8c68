"""What the nodes of an architecture can do, for dense, one- and two-dimensional networks."""

from collections.abc import Mapping
from typing import Any

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
    "Zero", "operation_from_json",
]  # fmt: skip
OPERATIONS: tuple[type[Operation], ...] = (
    Activation, AddByPadding, AddByProjecting, AveragePooling1D, AveragePooling2D, BatchNormalization,
    Concatenate, Connect, Conv1D, Conv2D, Dense, Dropout, Flatten, GlobalAveragePooling1D,
    GlobalAveragePooling2D, Identity, MaxPooling1D, MaxPooling2D, Reshape, SeparableConv2D, Zero,
)  # fmt: skip
_KNOWN = {kind.__name__: kind for kind in OPERATIONS}


def operation_from_json(body: Mapping[str, Any]) -> Operation:
    """The operation of ``Operation.to_json``'s form. Raises WrongCall."""
    return base.from_json(body, _KNOWN)
