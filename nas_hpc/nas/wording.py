"""How operations and numbers are said in pictures and listings."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from itertools import groupby
from math import prod
from typing import Any

from nas_hpc.nas.nodes import ConstantNode, InputNode, MimeNode, MirrorNode, Node, VariableNode
from nas_hpc.nas.operations import Operation

FEW = 4
"""So many values, or operations, are listed singly."""


def does(node: Node, columns: int) -> list[str]:
    """What a node may do, in lines of ``columns``."""
    if isinstance(node, VariableNode):
        return choice_lines(node.ops, columns)
    if isinstance(node, ConstantNode):
        return [str(node.op)]
    if isinstance(node, MirrorNode):
        return [f"is {node.node.name}"]
    if isinstance(node, MimeNode):
        return [f"chooses as {node.node.name}"]
    return [str(node.shape)] if isinstance(node, InputNode) else []


def choice_lines(ops: Sequence[Operation], columns: int) -> list[str]:
    """What a node may do, briefly: operations of one kind in a line, with the numbers that choose them."""
    lines: list[str] = []
    for kind, group in groupby(enumerate(ops), key=lambda one: type(one[1])):
        numbers, alike = zip(*group, strict=True)
        number = str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]}–{numbers[-1]}"
        lines += wrapped(f"{number}: {_together(kind, alike)}", columns)
    return lines


def _together(kind: type[Operation], ops: Sequence[Operation]) -> str:
    """Operations of one kind; those that are all combinations of their fields' values by these values."""
    if len(ops) == 1:
        return str(ops[0])
    values = {one.name: list(dict.fromkeys(getattr(op, one.name) for op in ops)) for one in fields(kind)}
    if len(set(ops)) == len(ops) == prod(map(len, values.values())):
        return f"{kind.__name__}({', '.join(_arguments(kind, values))})"
    texts = [str(op) for op in ops[:FEW]]
    return "; ".join(texts) + (f"; and {len(ops) - FEW} more" if len(ops) > FEW else "")


def _arguments(kind: type[Operation], values: Mapping[str, Sequence[Any]]) -> Iterator[str]:
    """As ``Operation.__str__`` has them, each with all its values."""
    skipped = False
    for one in fields(kind):
        found = values[one.name]
        if len(found) == 1 and found[0] in ("", one.default):
            skipped = True
        else:
            yield f"{one.name}={_values(found)}" if skipped else _values(found)


def _values(found: Sequence[Any]) -> str:
    """Values of a field: 16|32|48, or 16…96 by 16."""
    steps = {right - left for left, right in zip(found, found[1:], strict=False)} if _whole(found) else set()
    if len(found) > FEW and len(steps) == 1 and 0 not in steps:
        step = steps.pop()
        return f"{found[0]}…{found[-1]}" + (f" by {step}" if step != 1 else "")
    return "|".join(str(value) or "linear" for value in found)


def _whole(found: Sequence[Any]) -> bool:
    return all(isinstance(value, int) and not isinstance(value, bool) for value in found)


def large_number(number: int) -> str:
    """A count with commas, from 10^15 on as a power of ten."""
    if number < 10**15:
        return f"{number:,}"
    digits = str(number)
    return f"{digits[0]}.{digits[1:3]} × 10^{len(digits) - 1}"


def wrapped(text: str, columns: int) -> list[str]:
    """``text`` in lines of at most ``columns``, if its words allow it."""
    return textwrap.wrap(text, max(columns, 20), break_long_words=False) or [""]
