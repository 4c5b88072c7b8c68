"""Search spaces for problems of one's own, too: functions for ``NaProblem.search_space``."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from nas_hpc.nas import ConstantNode, SearchSpace, VariableNode
from nas_hpc.nas.operations import (
    AddByProjecting,
    AveragePooling2D,
    Connect,
    Conv2D,
    Dense,
    Dropout,
    Flatten,
    GlobalAveragePooling2D,
    Identity,
    MaxPooling2D,
    Operation,
    SeparableConv2D,
    Shape,
    Zero,
)
from nas_hpc.nas.space import Node

_UNITS = tuple(range(16, 97, 16))
_ACTIVATIONS = ("swish", "relu", "tanh", "sigmoid")
_REACH = 3
"""Optional connections come from so many nodes before."""


def dense_skipco(
    input_shape: Shape,
    output_shape: Shape,
    num_layers: int = 10,
    *,
    regression: bool = True,
    dropout: float = 0.0,
) -> SearchSpace:
    """Fully connected layers with optional skip connections, as in DeepHyper's space of this name.

    Each layer is one of 25: nothing, or 16 to 96 units with one of four activations; to its output the
    outputs of the three places before it can be added, each by a choice of its own. ``regression``: the
    output is linear, else softmax. ``dropout``: the share that is set to zero before the output.
    """
    space = SearchSpace(input_shape, output_shape)
    dense = [Dense(units, activation) for units in _UNITS for activation in _ACTIVATIONS]
    last = _layers(space, space.inputs[0], num_layers, [Identity(), *dense], "layer")
    _finish(space, last, dropout, regression)
    return space


def conv_skip(
    input_shape: Shape,
    output_shape: Shape,
    num_cells: int = 2,
    num_layers: int = 2,
    *,
    regression: bool = False,
    dropout: float = 0.0,
) -> SearchSpace:
    """Convolutions over images (height, width, channels), with optional skip connections.

    ``num_cells`` cells of ``num_layers`` layers each; a layer is one of 19: nothing, a convolution of 8 to
    32 filters, or a separable one; skip connections as in ``dense_skipco``, within a cell. After a cell the
    image is halved, by the mean or the maximum; at the end it is averaged or flattened, and a fully
    connected layer may follow. ``regression`` and ``dropout`` as there.
    """
    space = SearchSpace(input_shape, output_shape)
    ops: list[Operation] = [Identity()]
    for activation in ("relu", "swish"):
        ops += [Conv2D(filters, size, activation) for filters in (8, 16, 32) for size in (3, 5)]
        ops += [SeparableConv2D(filters, 3, activation) for filters in (8, 16, 32)]
    last: Node = space.inputs[0]
    for cell in range(num_cells):
        last = _layers(space, last, num_layers, ops, f"cell_{cell}_layer")
        halves = [MaxPooling2D(padding="same"), AveragePooling2D(padding="same")]
        space.connect(last, last := VariableNode(f"cell_{cell}_pooling", halves))
    space.connect(last, last := VariableNode("flat", [GlobalAveragePooling2D(), Flatten()]))
    heads = [
        Identity(),
        *(Dense(units, activation) for units in (32, 64) for activation in ("relu", "swish")),
    ]
    space.connect(last, last := VariableNode("head", heads))
    _finish(space, last, dropout, regression)
    return space


def _layers(space: SearchSpace, last: Node, count: int, ops: Sequence[Operation], name: str) -> Node:
    """``count`` layers after ``last``, each a choice of ``ops`` to whose output earlier ones can be added."""
    before = deque([last], maxlen=_REACH)
    for number in range(count):
        layer = VariableNode(f"{name}_{number}", ops)
        space.connect(last, layer)
        total = ConstantNode(AddByProjecting("relu"), f"{name}_{number}_sum")
        space.connect(layer, total)
        for source in before:
            skip = VariableNode(f"{source.name}_to_{layer.name}", [Zero(), Connect(source)])
            space.connect(skip, total)
        before.append(total)
        last = total
    return last


def _finish(space: SearchSpace, last: Node, dropout: float, regression: bool) -> None:
    if dropout:
        space.connect(last, last := ConstantNode(Dropout(dropout), "dropout"))
    activation = "" if regression else "softmax"
    space.connect(last, ConstantNode(Dense(space.output_shapes[0][-1], activation), "output"))
