"""Lists of nodes as batch systems write them: Slurm's and Cobalt's compact lists, node files. Pure but for
reading the file.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import product
from pathlib import Path

from nas_hpc.errors import WrongCall

MOST_NODES = 100_000
"""No machine has more: a longer list is a slip of the pen, and would fill the memory."""
MOST_BYTES = 16 << 20
"""No node file is larger."""
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", re.ASCII)
_RANGE = re.compile(r"(\d+)(?:-(\d+))?", re.ASCII)
_NUMBERED = re.compile(r"(.*?)(\d+)([^\d]*)", re.ASCII)
_ALPS = re.compile(r"nid0*(\d+)", re.ASCII)
EXAMPLE = "node[1,3-5]"


def parse_hostlist(text: str, what: str = "node list") -> list[str]:
    """The names of a list as Slurm writes it, each once, in their order: ``node[1,3-5]``, ``c``,
    ``a[01-03]b[2,4],c``.

    ``what`` names the origin in errors. Raises WrongCall for what is no such list, an empty one included.
    """
    names: list[str] = []
    try:
        for part in _split(text.strip()):
            names += _expand(part)
            _check_length(len(names))
    except ValueError as error:
        raise WrongCall(f"{what} {_shown(text)}: {error}; a list looks like {EXAMPLE}") from None
    return list(dict.fromkeys(names))


def parse_node_ids(text: str, what: str = "node ids") -> list[int]:
    """The numbers of a list as Cobalt writes it (COBALT_PARTNAME), each once, in their order: ``1-5,7,10``.

    Raises WrongCall for anything else.
    """
    numbers: list[int] = []
    try:
        for part in text.strip().split(","):
            numbers += [int(number) for number in _range(part.strip())]
            _check_length(len(numbers))
    except ValueError as error:
        raise WrongCall(f"{what} {_shown(text)}: {error}; a list looks like 1-5,7,10") from None
    return list(dict.fromkeys(numbers))


def alps_name(node_id: int) -> str:
    """The host name of a Cray node."""
    return f"nid{node_id:05d}"


def alps_id(name: str) -> int | None:
    """The number by which ``aprun -L`` knows a Cray node; None if ``name`` is no such node's."""
    match = _ALPS.fullmatch(name)
    return int(match[1]) if match else None


def read_node_file(path: str | Path, what: str = "node file") -> list[str]:
    """The nodes of a file that has a line for each node or for each slot of it: each once, in their order.

    Blank lines and spaces around a name mean nothing. Raises WrongCall, with file and line, for a file that
    cannot be read, holds no node, or has a line that is no host's name.
    """
    try:
        with open(path, "rb") as file:
            body = file.read(MOST_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise WrongCall(f"{what} {path} cannot be read: {reason}") from None
    if len(body) > MOST_BYTES:
        raise WrongCall(f"{what} {path} has more than {MOST_BYTES} bytes; it should have a host name a line")
    names: dict[str, None] = {}
    for number, line in enumerate(body.decode(errors="replace").splitlines(), 1):
        name = line.strip()
        if name and not is_host(name):
            raise WrongCall(f"{what} {path}, line {number}: {_shown(name)} is no host name; give one a line")
        if name:
            names[name] = None
    if not names:
        raise WrongCall(f"{what} {path} is empty; it should have a host name a line")
    return list(names)


def is_host(name: str) -> bool:
    """Whether ``name`` can be a host's: letters, digits and ``. _ -``, not beginning like a flag."""
    return len(name) <= 255 and _NAME.fullmatch(name) is not None


def compress(names: Iterable[str]) -> str:
    """A short list that ``parse_hostlist`` reads: names that differ in their last number share brackets."""
    groups: list[tuple[str, str, list[str]]] = []
    plain = ("", "", [""])
    for name in names:
        match = _NUMBERED.fullmatch(name)
        prefix, number, suffix = match.groups() if match else (name, "", "")
        last = groups[-1] if groups else plain
        if match and last[2][0] and (last[0], last[1]) == (prefix, suffix):
            last[2].append(number)
        else:
            groups.append((prefix, suffix, [number]))
    return ",".join(_compressed(*group) for group in groups)


def _compressed(prefix: str, suffix: str, numbers: list[str]) -> str:
    if len(numbers) == 1:
        return f"{prefix}{numbers[0]}{suffix}"
    spans: list[list[str]] = []
    for number in numbers:
        if spans and number == f"{int(spans[-1][-1]) + 1:0{len(spans[-1][0])}d}":
            spans[-1] = [spans[-1][0], number]
        else:
            spans.append([number])
    return f"{prefix}[{','.join('-'.join(span) for span in spans)}]{suffix}"


def _split(text: str) -> Iterator[str]:
    """The parts between the commas that stand in no brackets."""
    depth, start = 0, 0
    for position, letter in enumerate(text):
        if letter == "[":
            depth += 1
        elif letter == "]":
            depth -= 1
        if depth not in (0, 1):
            raise ValueError(f"its brackets do not match (at {_shown(text[position:])})")
        if letter == "," and depth == 0:
            yield text[start:position].strip()
            start = position + 1
    if depth:
        raise ValueError("a bracket is not closed")
    yield text[start:].strip()


def _expand(part: str) -> list[str]:
    """The names of one part: all combinations of what its brackets name."""
    if not part:
        raise ValueError("it is empty, or has a comma too many")
    pieces: list[list[str]] = []
    total = 1
    for index, piece in enumerate(re.split(r"\[([^\]]*)\]", part)):
        if index % 2:
            inside = [number for span in piece.split(",") for number in _range(span.strip())]
            total *= len(inside)
            _check_length(total)
            pieces.append(inside)
        else:
            pieces.append([piece])
    names = ["".join(combination) for combination in product(*pieces)]
    if not is_host(names[0]):
        raise ValueError(f"{_shown(names[0])} is no host name")
    return names


def _range(span: str) -> list[str]:
    """``7`` or ``08-11``: the numbers, with as many digits at least as the first has."""
    match = _RANGE.fullmatch(span)
    if match is None:
        raise ValueError(f"{_shown(span)} is no number and no range")
    low, high = match[1], match[2] or match[1]
    if len(low) > 18 or len(high) > 18 or int(high) < int(low):
        raise ValueError(f"{_shown(span)} is no range: give the smaller number first")
    _check_length(int(high) - int(low) + 1)
    return [f"{number:0{len(low)}d}" for number in range(int(low), int(high) + 1)]


def _check_length(count: int) -> None:
    if count > MOST_NODES:
        raise ValueError(f"it names more than {MOST_NODES} nodes")


def _shown(text: str) -> str:
    """``text`` as it may stand in a line for the user."""
    return repr(text if len(text) <= 60 else text[:57] + "...")
