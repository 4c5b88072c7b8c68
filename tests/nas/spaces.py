"""Search spaces for the tests: some by hand, and random ones."""

from __future__ import annotations

from collections import deque
from typing import Any

from hypothesis import strategies as st

from nas_hpc.nas import ConstantNode, MimeNode, MirrorNode, SearchSpace, VariableNode
from nas_hpc.nas.nodes import Node
from nas_hpc.nas.operations import (
    Activation,
    AddByPadding,
    AddByProjecting,
    AveragePooling2D,
    BatchNormalization,
    Concatenate,
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
    Zero,
)


def dense_space(layers: int = 3, skips: int = 3) -> SearchSpace:
    """Dense layers of 25 choices, a sum after each, with optional connections from ``skips`` sums before."""
    space = SearchSpace((64,), (10,))
    before: Node = space.inputs[0]
    anchors = deque([before], maxlen=skips)
    for number in range(layers):
        layer = VariableNode(f"dense_{number}", [Identity()])
        for units in range(16, 97, 16):
            for activation in ("relu", "tanh", "sigmoid", "linear"):
                layer.add_op(Dense(units, activation))
        space.connect(before, layer)
        merge = ConstantNode(AddByProjecting("relu"), f"merge_{number}")
        space.connect(layer, merge)
        for anchor in anchors:
            space.connect(VariableNode(ops=[Zero(), Connect(anchor)]), merge)
        before = merge
        anchors.append(merge)
    space.connect(before, ConstantNode(Dense(10, "softmax"), "classes"))
    return space


def image_space() -> SearchSpace:
    """Two-dimensional networks in which all operations on images, a mime and a mirror node occur."""
    space = SearchSpace((8, 8, 1), (10,))
    stem = ConstantNode(Conv2D(8, 3, "relu"), "stem")
    space.connect(space.inputs[0], stem)
    cell = VariableNode("cell", [
        Identity(), Conv2D(8, 1, "relu"), Conv2D(16, 3, "tanh"), Conv2D(8, 5, "", 2),
        Conv2D(4, 3, "relu", 1, "valid"), SeparableConv2D(8, 3, "relu"), MaxPooling2D(2, 1, "same"),
        AveragePooling2D(3), BatchNormalization(),
    ])  # fmt: skip
    space.connect(stem, cell)
    again, same = MimeNode(cell, "again"), MirrorNode(cell, "same")
    space.connect(stem, again)
    space.connect(stem, same)
    both = VariableNode("both", [Concatenate(), AddByPadding(), AddByPadding("relu"), AddByProjecting()])
    for node in (cell, again, same):
        space.connect(node, both)
    vector = VariableNode("vector", [Flatten(), GlobalAveragePooling2D()])
    space.connect(both, vector)
    space.connect(vector, ConstantNode(Dense(10, "softmax"), "classes"))
    return space


VECTORS = st.sampled_from(
    [Identity(), Dense(3), Dense(5, "tanh"), Activation("relu"), Dropout(0.5), BatchNormalization(), Zero()]
)
MERGES = st.sampled_from([Concatenate(), AddByProjecting("relu"), AddByPadding()])


@st.composite
def vector_spaces(draw: st.DrawFn, most: int = 6) -> SearchSpace:
    """Random graphs on vectors, in which every architecture is one: nodes of all kinds, optional connections,
    several inputs, absent branches. Every path reaches the output past a node that is always there."""
    space = SearchSpace([(4,), (6,)][: draw(st.integers(1, 2))], (2,))
    end = ConstantNode(Concatenate(), "end")
    there: list[Node] = list(space.inputs)
    for number in range(draw(st.integers(1, most))):
        node = draw(_nodes(space, there, number))
        if isinstance(node, VariableNode) and any(isinstance(op, Connect) for op in node.ops):
            space.add(node)
        else:
            space.connect(draw(st.sampled_from(there)), node)
        there.append(node)
    merges = []
    for number in range(draw(st.integers(0, 2))):
        merge = ConstantNode(draw(MERGES), f"merge_{number}")
        for source in draw(st.lists(st.sampled_from(there), min_size=1, max_size=3, unique=True)):
            space.connect(source, merge)
        merges.append(merge)
    followed = {source for node in space.nodes for source in space.inputs_of(node)}
    space.connect(space.inputs[0], end)
    for node in [*there[1:], *merges]:
        if node.name not in followed or draw(st.booleans()):
            space.connect(node, end)
    space.connect(end, ConstantNode(Dense(2), "out"))
    return space


@st.composite
def _nodes(draw: st.DrawFn, space: SearchSpace, there: list[Node], number: int) -> Node:
    variable = [node for node in there if isinstance(node, VariableNode) and not _connects(node)]
    kind = draw(
        st.sampled_from(["variable", "constant", "optional", *(["mime", "mime"] if variable else [])])
    )
    if kind == "mime":
        return MimeNode(draw(st.sampled_from(variable)), f"mime_{number}")
    if kind == "optional":
        sources = draw(st.lists(st.sampled_from(there), min_size=1, max_size=2, unique=True))
        return VariableNode(f"skip_{number}", [Zero(), *map(Connect, sources)])
    if kind == "constant":
        return ConstantNode(draw(VECTORS.filter(lambda op: op != Zero())), f"constant_{number}")
    ops: list[Operation] = draw(st.lists(VECTORS, min_size=2, max_size=4))
    return VariableNode(f"variable_{number}", ops)


def _connects(node: VariableNode) -> bool:
    return any(isinstance(op, Connect) for op in node.ops)


def sequences(space: SearchSpace) -> st.SearchStrategy[list[int]]:
    """Sequences of ``space``."""
    choices: list[Any] = [st.integers(0, count - 1) for count in space.choices]
    return st.tuples(*choices).map(list)
