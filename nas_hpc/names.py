"""Names that become directories."""

from __future__ import annotations

MAX_NAME = 100
"""Longest name of a job or workflow, in bytes: its directory's name is nine longer and must fit
everywhere.
"""


def wrong_name(name: str) -> str:
    """What is wrong with ``name`` as the name of a job, workflow or application, and what is right; "" if
    nothing.
    """
    if not name.strip():
        return "is empty; give a name such as test"
    if "/" in name:
        better = name.strip("/").replace("/", "_") or "test"
        return f"has a slash, and it names a directory; use for instance {better!r}"
    if name[0] in ".-":
        return f"begins with {name[0]!r}; begin with a letter or a digit"
    if not name.isprintable() or any(c.isspace() or c in "%\\,:*?\"'" for c in name):
        return "has a character that a directory's name should not have; use letters, digits, and . _ - + ="
    if len(name.encode(errors="replace")) > MAX_NAME:
        return f"is {len(name.encode(errors='replace'))} bytes long; use at most {MAX_NAME}"
    return ""
