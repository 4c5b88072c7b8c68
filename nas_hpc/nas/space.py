"""Search spaces of architectures: a directed acyclic graph, some of whose nodes leave a choice of operations.

The nodes are DeepHyper's. An architecture is the sequence of what the variable nodes choose: one index per
variable node, in the order in which the nodes came into the space.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping, Sequence
from math import prod
from typing import Any

import numpy as np

from nas_hpc.errors import WrongCall
from nas_hpc.nas.architecture import Architecture, Part
from nas_hpc.nas.nodes import (
    ConstantNode,
    InputNode,
    MimeNode,
    MirrorNode,
    Node,
    VariableNode,
    node_from_json,
    node_to_json,
    operations_of,
    optional_sources,
)
from nas_hpc.nas.operations import Connect, Operation, Shape, Zero, check_kind

__all__ = [
    "ConstantNode", "InputNode", "MimeNode", "MirrorNode", "Node", "SearchSpace", "VariableNode",
    "check_space",
]  # fmt: skip
VERSION = 1
"""Of the JSON form."""
ROUNDS = 4


class SearchSpace:
    """A graph from inputs to outputs; what no node follows, in any architecture, is an output.

    ``input_shape``, ``output_shape``: of one example, as (64,) or (28, 28, 1); lists of such shapes for
    networks with several inputs or outputs. Every method raises WrongCall, naming the node.
    """

    def __init__(self, input_shape: Shape | Sequence[Shape], output_shape: Shape | Sequence[Shape]) -> None:
        self._nodes: dict[str, Node] = {}
        self._inputs: dict[str, list[str]] = {}
        self.output_shapes = shapes_of(output_shape, "output")
        self.inputs: list[InputNode] = []
        for number, shape in enumerate(shapes_of(input_shape, "input")):
            node = InputNode(shape, f"input_{number}")
            self.inputs.append(node)
            self.add(node)

    # -- making ------------------------------------------------------------------------------------
    def add(self, node: Node) -> Node:
        """Bring a node into the space, which is done by ``connect``, too; gives it a name if it has none."""
        if not isinstance(node, Node):
            raise WrongCall(f"{node!r} is no node: give a VariableNode, ConstantNode, MirrorNode or MimeNode")
        if self._nodes.get(node.name) is node:
            return node
        if isinstance(node, MirrorNode | MimeNode) and self._nodes.get(node.node.name) is not node.node:
            raise WrongCall(f"{node!r} follows {node.node!r}, which is not in this space: connect it first")
        if node.name in self._nodes or (isinstance(node, InputNode) and node not in self.inputs):
            raise WrongCall(f"two nodes are named {node.name!r}: give each its own name")
        number = len(self._nodes)
        while not node.name:
            node.name = f"{node.kind}_{number}" if f"{node.kind}_{number}" not in self._nodes else ""
            number += 1
        self._nodes[node.name] = node
        self._inputs[node.name] = []
        return node

    def connect(self, source: Node, node: Node) -> None:
        """Let ``node`` have the output of ``source`` as its next input."""
        self.add(source)
        self.add(node)
        if isinstance(node, InputNode):
            raise WrongCall(f"{node!r} is an input of the space: nothing is connected to it")
        if source.name in self._inputs[node.name]:
            raise WrongCall(f"{source!r} is connected to {node!r} already")
        if node.name in self._before(source.name):
            raise WrongCall(f"connecting {source!r} to {node!r} closes a circle")
        self._inputs[node.name].append(source.name)

    def _before(self, name: str) -> set[str]:
        """The node ``name`` and all from which something comes to it in some architecture."""
        seen: set[str] = set()
        left = [name]
        while left:
            one = left.pop()
            if one not in seen and one in self._nodes:
                seen.add(one)
                left += self._sources(self._nodes[one])
        return seen

    def _sources(self, node: Node) -> list[str]:
        return [*self._inputs[node.name], *optional_sources(node)]

    # -- what it is ----------------------------------------------------------------------------------
    @property
    def nodes(self) -> list[Node]:
        """All nodes, in the order in which they came in."""
        return list(self._nodes.values())

    @property
    def variable_nodes(self) -> list[VariableNode]:
        """The nodes that leave a choice; a sequence has one number for each, in this order."""
        return [node for node in self._nodes.values() if isinstance(node, VariableNode)]

    @property
    def outputs(self) -> list[str]:
        """The names of the nodes that no node follows."""
        followed = {source for node in self._nodes.values() for source in self._sources(node)}
        return [name for name in self._nodes if name not in followed]

    @property
    def choices(self) -> list[int]:
        """How many operations each variable node has."""
        return [len(node.ops) for node in self.variable_nodes]

    @property
    def size(self) -> int:
        """How many sequences there are."""
        return prod(self.choices)

    def inputs_of(self, node: Node) -> list[str]:
        """The names of the nodes that are connected to ``node`` in every architecture."""
        return list(self._inputs[node.name])

    def sample(self, rng: np.random.Generator) -> list[int]:
        """A random sequence: every choice of every node equally likely."""
        return [int(rng.integers(count)) for count in self.choices]

    # -- architectures -------------------------------------------------------------------------------
    def architecture(self, sequence: Sequence[int]) -> Architecture:
        """The architecture that ``sequence`` chooses: what leads from the inputs to the outputs.

        Raises WrongCall for a sequence of another length or out of range, and where an operation does not fit
        its inputs or the output is not ``output_shape``.
        """
        return self._expand(self.check(sequence), self.outputs)

    def _expand(self, numbers: Sequence[int], outputs: Sequence[str]) -> Architecture:
        chosen = dict(zip((n.name for n in self.variable_nodes), numbers, strict=True))
        operations = {name: self._operation(node, chosen) for name, node in self._nodes.items()}
        inputs = {
            name: [*self._inputs[name], *([op.source] if isinstance(op, Connect) else [])]
            for name, op in operations.items()
        }
        present: dict[str, tuple[str, ...]] = {}
        for name in _ordered(inputs):
            given = tuple(one for one in inputs[name] if one in present)
            if isinstance(self._nodes[name], InputNode) or (given and not isinstance(operations[name], Zero)):
                present[name] = given
        used = _leading_to(outputs, present)
        owners: dict[str, str] = {}
        parts: list[Part] = []
        for name in present:
            node = self._nodes[name]
            if isinstance(node, InputNode):
                parts.append(Part(name, None, (), node.shape))
            elif name in used:
                owner = owners.setdefault(_root(node), name)
                shares = owner if owner != name else ""
                parts.append(Part(name, operations[name], present[name], (), shares, _is_chosen(node)))
        return Architecture(tuple(numbers), tuple(parts), tuple(outputs), tuple(self.output_shapes))

    def _operation(self, node: Node, chosen: Mapping[str, int]) -> Operation | None:
        if isinstance(node, MirrorNode | MimeNode):
            return self._operation(node.node, chosen)
        if isinstance(node, VariableNode):
            return node.ops[chosen[node.name]]
        return node.op if isinstance(node, ConstantNode) else None

    def check(self, sequence: Sequence[int]) -> list[int]:
        """``sequence`` as a list of whole numbers. Raises WrongCall if it is none of this space's."""
        nodes = self.variable_nodes
        if isinstance(sequence, str | bytes | Mapping) or not hasattr(sequence, "__len__"):
            raise WrongCall(f"the sequence {sequence!r} is none: give a list of {len(nodes)} whole numbers")
        if len(sequence) != len(nodes):
            raise WrongCall(
                f"the sequence {list(sequence)} has {len(sequence)} numbers, and the space {len(nodes)} "
                "variable nodes: give one number for each"
            )
        checked = []
        for node, given in zip(nodes, sequence, strict=True):
            number = _whole(given)
            if number is None or not 0 <= number < len(node.ops):
                raise WrongCall(
                    f"the sequence {list(sequence)}: {given!r} is no choice of {node.name}, which has "
                    f"{len(node.ops)} operations: give 0 to {len(node.ops) - 1}"
                )
            checked.append(number)
        return checked

    def check_graph(self) -> None:
        """Raise WrongCall for nodes to which nothing leads, connections to nodes that are not in the space,
        circles, and a number of outputs that is not that of ``output_shapes``."""
        sources = {node.name: self._sources(node) for node in self._nodes.values()}
        _ordered(sources)
        for name, leading in sources.items():
            if not leading and not isinstance(self._nodes[name], InputNode):
                raise WrongCall(
                    f"nothing is connected to the node {name}: connect something, or leave it out"
                )
            if not self._inputs[name]:
                self._check_optional(self._nodes[name])
        outputs = self.outputs
        for node in self.inputs:
            if node.name in outputs:
                raise WrongCall(f"the input {node.name} of the space is connected to nothing: connect it")
        if len(outputs) != len(self.output_shapes):
            raise WrongCall(
                f"the space has {len(outputs)} nodes that no node follows ({', '.join(outputs)}), and its "
                f"output_shape is for {len(self.output_shapes)}: give each output its shape"
            )

    @staticmethod
    def _check_optional(node: Node) -> None:
        for op in operations_of(node):
            if not isinstance(op, Connect | Zero):
                raise WrongCall(
                    f"the node {node.name} has no input but by Connect, so that {op} would be without one: "
                    "give Zero() instead, or connect a node"
                )

    # -- JSON ----------------------------------------------------------------------------------------
    def to_json(self) -> dict[str, Any]:
        """A stable form: equal spaces have equal ones, in every process and version of Python."""
        inner = [node for node in self._nodes.values() if not isinstance(node, InputNode)]
        return {
            "version": VERSION,
            "input_shapes": [list(node.shape) for node in self.inputs],
            "output_shapes": [list(shape) for shape in self.output_shapes],
            "nodes": [node_to_json(node, self.inputs_of(node)) for node in inner],
        }

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> SearchSpace:
        """The space of ``to_json``'s form. Raises WrongCall."""
        version = body.get("version")
        if version != VERSION:
            raise WrongCall(f"a search space of version {version!r}: this program reads {VERSION}")
        try:
            space = cls(
                [tuple(shape) for shape in body["input_shapes"]],
                [tuple(shape) for shape in body["output_shapes"]],
            )
            for one in body["nodes"]:
                space.add(node_from_json(one, space._nodes))
            for one in body["nodes"]:
                for source in one["inputs"]:
                    space.connect(space._nodes[source], space._nodes[one["name"]])
        except (KeyError, TypeError, AttributeError) as error:
            raise WrongCall(f"this is no search space: {type(error).__name__}: {error}") from error
        return space


def check_space(space: SearchSpace, *, samples: int = 100) -> None:
    """Raise WrongCall for a space that leaves no choice, or architectures of which cannot be.

    Looked at are architectures in which every operation of every node occurs ``ROUNDS`` times, and
    ``samples`` random ones. Named is, if there is one, one that differs from the first in one choice.
    """
    if not space.variable_nodes:
        raise WrongCall("the search space has no variable node: nothing is left to be searched")
    for node in space.variable_nodes:
        if len(node.ops) < 2:
            have = "no operation" if not node.ops else f"one operation, {node.ops[0]}"
            raise WrongCall(
                f"the variable node {node.name} has {have}: add others, or make it a ConstantNode"
            )
    for one in space.nodes:
        for op in operations_of(one):
            check_kind(op, one.name)
    space.check_graph()
    outputs = space.outputs
    try:
        for sequence in _probes(space, samples):
            space._expand(sequence, outputs)
    except WrongCall:
        for sequence in _first_and_neighbours(space.choices):
            space._expand(sequence, outputs)
        raise


def _probes(space: SearchSpace, samples: int) -> Iterator[list[int]]:
    choices, rng = space.choices, np.random.default_rng(0)
    for _ in range(ROUNDS):
        orders = [rng.permutation(count) for count in choices]
        for number in range(max(choices)):
            yield [int(order[number % len(order)]) for order in orders]
    for _ in range(samples):
        yield space.sample(rng)


def _first_and_neighbours(choices: Sequence[int]) -> Iterator[list[int]]:
    first = [0] * len(choices)
    yield first
    for position, count in enumerate(choices):
        for value in range(1, count):
            yield [*first[:position], value, *first[position + 1 :]]


def _root(node: Node) -> str:
    """The node whose weights ``node`` has."""
    return _root(node.node) if isinstance(node, MirrorNode) else node.name


def _is_chosen(node: Node) -> bool:
    """Whether what ``node`` does is a choice."""
    return isinstance(node, VariableNode | MimeNode) or (
        isinstance(node, MirrorNode) and _is_chosen(node.node)
    )


def _leading_to(ends: Sequence[str], inputs: Mapping[str, Sequence[str]]) -> set[str]:
    """``ends`` and all from which they get something."""
    found: set[str] = set()
    left = list(ends)
    while left:
        name = left.pop()
        if name not in found:
            found.add(name)
            left += inputs.get(name, ())
    return found


def _ordered(inputs: Mapping[str, Sequence[str]]) -> list[str]:
    """The nodes, each after its inputs. Raises WrongCall for an input that is nowhere, or a circle."""
    waiting = {name: len(sources) for name, sources in inputs.items()}
    following: dict[str, list[str]] = {name: [] for name in inputs}
    for name, sources in inputs.items():
        for source in sources:
            following.setdefault(source, []).append(name)
    order = [name for name, count in waiting.items() if not count]
    for name in order:
        for one in following[name]:
            waiting[one] -= 1
            if not waiting[one]:
                order.append(one)
    if len(order) < len(inputs):
        done = set(order)
        raise _no_order({name: some for name, some in inputs.items() if name not in done}, inputs)
    return order


def _no_order(left: Mapping[str, Sequence[str]], inputs: Mapping[str, Sequence[str]]) -> WrongCall:
    for name, sources in left.items():
        for source in sources:
            if source not in inputs:
                return WrongCall(
                    f"the node {name} has Connect({source}), and the space has no node {source!r}: "
                    "connect it first"
                )
    name = next(iter(left))
    circle: list[str] = []
    while name not in circle:  # each of these waits for another of them
        circle.append(name)
        name = next(source for source in left[name] if source in left)
    circle = circle[circle.index(name) :]
    if len(circle) == 1:
        return WrongCall(f"the node {name} is connected to itself: take that connection out")
    return WrongCall(f"the nodes {', '.join(circle)} wait for each other: take a connection out")


def _whole(given: object) -> int | None:
    """``given`` as a whole number; None: it is none."""
    if isinstance(given, float) and given.is_integer():
        return int(given)
    try:
        return None if isinstance(given, bool | np.bool_) else operator.index(given)  # type: ignore[arg-type]
    except TypeError:
        return None


def shapes_of(given: Any, what: str) -> list[Shape]:
    """One shape, or several, as a list of them; ``what`` names them in errors. Raises WrongCall."""
    example = "such as (64,), without the batch, or a list of such shapes"
    try:
        several = [given] if not len(given) or _whole(given[0]) is not None else list(given)
        shapes = [[_whole(length) for length in shape] for shape in several]
    except (TypeError, KeyError):
        raise WrongCall(f"the {what} shape {given!r} is none: give one {example}") from None
    if not all(shapes):
        raise WrongCall(f"the {what} shape {given!r} is empty: give one {example}")
    if any(length is None or length < 1 for shape in shapes for length in shape):
        raise WrongCall(f"the {what} shape {given!r} is none: give whole numbers above 0, {example}")
    return [tuple(length for length in shape if length) for shape in shapes]
