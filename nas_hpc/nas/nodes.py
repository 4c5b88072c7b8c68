"""The nodes of a search space, with DeepHyper's names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from nas_hpc.errors import WrongCall
from nas_hpc.nas.operations import Connect, Operation, Shape, operation_from_json


class Node:
    """A node of a search space. It belongs to the space that it was first connected in."""

    kind = ""

    def __init__(self, name: str = "") -> None:
        if not isinstance(name, str) or "/" in name or name != name.strip() or not name.isprintable():
            raise WrongCall(
                f"{type(self).__name__}: the name {name!r}: give a line without slashes and outer blanks"
            )
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
        self.op = _operation(op, self)


class VariableNode(Node):
    """Does one of its operations: a choice of the search."""

    kind = "variable"

    def __init__(self, name: str = "", ops: Iterable[Operation] = ()) -> None:
        super().__init__(name)
        if isinstance(ops, Operation):
            raise WrongCall(f"{self!r}: give a list of operations, such as [{ops}, ...]")
        self.ops: list[Operation] = [_operation(op, self) for op in ops]

    def add_op(self, op: Operation) -> None:
        """One more operation to choose from."""
        self.ops.append(_operation(op, self))


class MirrorNode(Node):
    """Is another node: the same operation with the same weights, on inputs of its own."""

    kind = "mirror"

    def __init__(self, node: Node, name: str = "") -> None:
        super().__init__(name)
        if not isinstance(node, Node) or isinstance(node, InputNode):
            raise WrongCall(f"MirrorNode of {node!r}: give a node that has an operation")
        self.node = node


class MimeNode(Node):
    """Does what a variable node chooses, with weights of its own."""

    kind = "mime"

    def __init__(self, node: VariableNode, name: str = "") -> None:
        super().__init__(name)
        if not isinstance(node, VariableNode):
            raise WrongCall(f"MimeNode of {node!r}: give a VariableNode")
        self.node = node


def _operation(given: Any, node: Node) -> Operation:
    if not isinstance(given, Operation):
        what = f"the class {given.__name__}" if isinstance(given, type) else repr(given)
        raise WrongCall(f"{node!r}: {what} is no operation: give one such as Dense(16, 'relu')")
    return given


def operations_of(node: Node) -> list[Operation]:
    """What ``node`` may do, if that is not another node's matter."""
    return node.ops if isinstance(node, VariableNode) else [node.op] if isinstance(node, ConstantNode) else []


def optional_sources(node: Node) -> list[str]:
    """The nodes that an operation of ``node`` may connect to it."""
    if isinstance(node, MirrorNode | MimeNode):
        return optional_sources(node.node)
    return list(dict.fromkeys(op.source for op in operations_of(node) if isinstance(op, Connect)))


def node_to_json(node: Node, inputs: Sequence[str]) -> dict[str, Any]:
    """{"name", "kind", "inputs", and what its kind has: "op", "ops" or "node"}."""
    body: dict[str, Any] = {"name": node.name, "kind": node.kind, "inputs": list(inputs)}
    if isinstance(node, VariableNode):
        body["ops"] = [op.to_json() for op in node.ops]
    elif isinstance(node, ConstantNode):
        body["op"] = node.op.to_json()
    elif isinstance(node, MirrorNode | MimeNode):
        body["node"] = node.node.name
    return body


def node_from_json(body: Mapping[str, Any], nodes: Mapping[str, Node]) -> Node:
    """The node of ``node_to_json``'s form; ``nodes`` are those before it. Raises WrongCall, and KeyError for
    what is missing."""
    kind, name = body.get("kind"), body["name"]
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
