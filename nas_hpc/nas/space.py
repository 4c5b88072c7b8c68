"""Search spaces of architectures: a directed acyclic graph, some of whose nodes leave a choice of operations.

The nodes are DeepHyper's. An architecture is the sequence of what the variable nodes choose: one index per
variable node, in the order in which the nodes came into the space.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import prod
from typing import Any

import numpy as np

from nas_hpc.errors import WrongCall
from nas_hpc.nas.architecture import Architecture, Part
from nas_hpc.nas.operations import Connect, Operation, Shape, Zero, operation_from_json

VERSION = 1
"""Of the JSON form."""


class Node:
    """A node of a search space. It belongs to the space that it was first connected in."""

    kind = ""

    def __init__(self, name: str = "") -> None:
        self.name = name

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name or 'unnamed'})"


class InputNode(Node):
    """What comes in; a space makes its own."""

    kind = "input"

    def __init__(self, shape: Shape, name: str) -> None:
        super().__init__(name)
        self.shape = shape


class ConstantNode(Node):
    """Does ``op`` in every architecture."""

    kind = "constant"

    def __init__(self, op: Operation, name: str = "") -> None:
        super().__init__(name)
        self.op = op


class VariableNode(Node):
    """Does one of its operations: a choice of the search."""

    kind = "variable"

    def __init__(self, name: str = "", ops: Iterable[Operation] = ()) -> None:
        super().__init__(name)
        self.ops: list[Operation] = list(ops)

    def add_op(self, op: Operation) -> None:
        """One more operation to choose from."""
        self.ops.append(op)


class MirrorNode(Node):
    """Is another node: the same operation with the same weights, on inputs of its own."""

    kind = "mirror"

    def __init__(self, node: Node, name: str = "") -> None:
        super().__init__(name)
        self.node = node


class MimeNode(Node):
    """Does what a variable node chooses, with weights of its own."""

    kind = "mime"

    def __init__(self, node: VariableNode, name: str = "") -> None:
        super().__init__(name)
        self.node = node


class SearchSpace:
    """A graph from inputs to outputs; what no node follows is an output.

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
        if self._nodes.get(node.name) is node:
            return node
        if isinstance(node, MirrorNode | MimeNode):
            self._check_known(node.node, f"{node!r} follows")
        node.name = node.name or f"{node.kind}_{len(self._nodes)}"
        if node.name in self._nodes:
            raise WrongCall(f"two nodes are named {node.name!r}: give each its own name")
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

    def _check_known(self, node: Node, what: str) -> None:
        if self._nodes.get(node.name) is not node:
            raise WrongCall(f"{what} {node!r}, which is not in this space: connect it first")

    def _before(self, name: str) -> set[str]:
        """The node ``name`` and all from which something comes to it in some architecture."""
        seen: set[str] = set()
        left = [name]
        while left:
            one = left.pop()
            if one not in seen:
                seen.add(one)
                left += [*self._inputs[one], *_sources(self._nodes[one])]
        return seen

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
        """The architecture that ``sequence`` chooses. Raises WrongCall for a sequence of another length or
        out of range, and where an operation does not fit its inputs or the output is not ``output_shape``."""
        chosen = dict(zip((n.name for n in self.variable_nodes), self.check(sequence), strict=True))
        operations = {name: self._operation(node, chosen) for name, node in self._nodes.items()}
        inputs = {
            name: [*self._inputs[name], *([op.source] if isinstance(op, Connect) else [])]
            for name, op in operations.items()
        }
        absent: set[str] = set()
        parts: list[Part] = []
        owners: dict[str, str] = {}
        for name in _ordered(inputs):
            node, op = self._nodes[name], operations[name]
            present = tuple(one for one in inputs[name] if one not in absent)
            if isinstance(op, Zero) or (not present and not isinstance(node, InputNode)):
                absent.add(name)
                continue
            shape = node.shape if isinstance(node, InputNode) else ()
            owner = owners.setdefault(_root(node), name)
            parts.append(Part(name, op, present, shape, owner if owner != name else ""))
        followed = {one for name in inputs for one in inputs[name]}
        ends = tuple(name for name in self._nodes if name not in followed)
        return Architecture(tuple(sequence), tuple(parts), ends, tuple(self.output_shapes))

    def _operation(self, node: Node, chosen: Mapping[str, int]) -> Operation | None:
        if isinstance(node, MirrorNode | MimeNode):
            return self._operation(node.node, chosen)
        if isinstance(node, VariableNode):
            return node.ops[chosen[node.name]]
        return node.op if isinstance(node, ConstantNode) else None

    def check(self, sequence: Sequence[int]) -> list[int]:
        """``sequence`` as a list of whole numbers. Raises WrongCall if it is none of this space's."""
        choices = self.choices
        if len(sequence) != len(choices):
            raise WrongCall(
                f"the sequence {list(sequence)} has {len(sequence)} numbers, and the space {len(choices)} "
                "variable nodes: give one number for each"
            )
        for node, number in zip(self.variable_nodes, sequence, strict=True):
            if isinstance(number, bool) or int(number) != number or not 0 <= number < len(node.ops):
                raise WrongCall(
                    f"the sequence {list(sequence)}: {number!r} is no choice of {node.name}, which has "
                    f"{len(node.ops)} operations: give 0 to {len(node.ops) - 1}"
                )
        return [int(number) for number in sequence]

    # -- JSON ----------------------------------------------------------------------------------------
    def to_json(self) -> dict[str, Any]:
        """A stable form: equal spaces have equal ones, in every process and version of Python."""
        return {
            "version": VERSION,
            "input_shapes": [list(node.shape) for node in self.inputs],
            "output_shapes": [list(shape) for shape in self.output_shapes],
            "nodes": [self._node_json(n) for n in self.nodes if not isinstance(n, InputNode)],
        }

    def _node_json(self, node: Node) -> dict[str, Any]:
        body: dict[str, Any] = {"name": node.name, "kind": node.kind, "inputs": self.inputs_of(node)}
        if isinstance(node, VariableNode):
            body["ops"] = [op.to_json() for op in node.ops]
        elif isinstance(node, ConstantNode):
            body["op"] = node.op.to_json()
        elif isinstance(node, MirrorNode | MimeNode):
            body["node"] = node.node.name
        return body

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> SearchSpace:
        """The space of ``to_json``'s form. Raises WrongCall."""
        if body.get("version") != VERSION:
            raise WrongCall(
                f"a search space of version {body.get('version')!r}: this program reads {VERSION}"
            )
        space = cls(
            [tuple(shape) for shape in body["input_shapes"]],
            [tuple(shape) for shape in body["output_shapes"]],
        )
        for one in body["nodes"]:
            space.add(_node_of(one, space._nodes))
        for one in body["nodes"]:
            for source in one["inputs"]:
                space.connect(space._nodes[source], space._nodes[one["name"]])
        return space


def check_space(space: SearchSpace, *, samples: int = 100) -> None:
    """Raise WrongCall for a space that leaves no choice, or architectures of which cannot be.

    Looked at are all architectures that differ from the first one in one node, and ``samples`` random ones.
    """
    if not space.variable_nodes:
        raise WrongCall("the search space has no variable node: nothing is left to be searched")
    for node in space.variable_nodes:
        if len(node.ops) < 2:
            have = "no operation" if not node.ops else f"one operation, {node.ops[0]}"
            raise WrongCall(
                f"the variable node {node.name} has {have}: add others, or make it a ConstantNode"
            )
    for sequence in _probes(space, samples):
        space.architecture(sequence)


def _probes(space: SearchSpace, samples: int) -> Iterator[list[int]]:
    choices = space.choices
    first = [0] * len(choices)
    yield first
    for position, count in enumerate(choices):
        for value in range(1, count):
            yield [*first[:position], value, *first[position + 1 :]]
    rng = np.random.default_rng(0)
    for _ in range(samples):
        yield space.sample(rng)


def _sources(node: Node) -> list[str]:
    """The nodes that an operation of ``node`` may connect to it."""
    ops = node.ops if isinstance(node, VariableNode) else [node.op] if isinstance(node, ConstantNode) else []
    return [op.source for op in ops if isinstance(op, Connect)]


def _root(node: Node) -> str:
    """The node whose weights ``node`` has."""
    return _root(node.node) if isinstance(node, MirrorNode) else node.name


def _ordered(inputs: Mapping[str, Sequence[str]]) -> list[str]:
    """The nodes, each after its inputs. Raises WrongCall for an input that is nowhere, or a circle."""
    left, done = dict(inputs), set[str]()
    order: list[str] = []
    while left:
        ready = [name for name, sources in left.items() if all(one in done for one in sources)]
        if not ready:
            raise _no_order(left)
        for name in ready:
            del left[name]
        done.update(ready)
        order += ready
    return order


def _no_order(left: Mapping[str, Sequence[str]]) -> WrongCall:
    missing = sorted({one for sources in left.values() for one in sources} - set(left))
    if missing:
        return WrongCall(f"Connect: the space has no node {missing[0]!r}: connect it first")
    return WrongCall(f"the nodes {', '.join(left)} wait for each other: take a connection out")


def _node_of(body: Mapping[str, Any], nodes: Mapping[str, Node]) -> Node:
    kind, name = body.get("kind"), str(body["name"])
    if kind == VariableNode.kind:
        return VariableNode(name, [operation_from_json(op) for op in body["ops"]])
    if kind == ConstantNode.kind:
        return ConstantNode(operation_from_json(body["op"]), name)
    followed = nodes.get(str(body.get("node")))
    if followed is not None and kind == MirrorNode.kind:
        return MirrorNode(followed, name)
    if isinstance(followed, VariableNode) and kind == MimeNode.kind:
        return MimeNode(followed, name)
    raise WrongCall(f"the node {dict(body)} is none of this program's")


def shapes_of(given: Shape | Sequence[Shape], what: str) -> list[Shape]:
    """One shape, or several, as a list of them; ``what`` names them in errors. Raises WrongCall."""
    nested = isinstance(given, list | tuple) and given and isinstance(given[0], list | tuple)
    several: Any = given if nested else [given]
    if not all(isinstance(shape, list | tuple) for shape in several):
        raise WrongCall(f"the {what} shape {given!r} is none: give whole numbers above 0, such as (64,)")
    shapes: list[Shape] = [tuple(shape) for shape in several]
    for length in itertools.chain.from_iterable(shapes):
        if isinstance(length, bool) or not isinstance(length, int | np.integer) or length < 1:
            raise WrongCall(f"the {what} shape {given!r} is none: give whole numbers above 0, such as (64,)")
    if not shapes or not all(shapes):
        raise WrongCall(f"the {what} shape {given!r} is empty: give one such as (64,), without the batch")
    return [tuple(int(length) for length in shape) for shape in shapes]
