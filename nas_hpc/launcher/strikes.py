"""Nodes on which nothing can be started, several times in a row. Pure."""

from __future__ import annotations

import errno
import os
from collections.abc import Collection, Iterable, Sequence

LIMIT = 3
_OF_PLACE = (
    "cannot make ", "cannot write ", "cannot open ", "cannot use the directory ", "cannot pin ",
    "cannot fork", "cannot start a keeper ",
)  # fmt: skip
"""How the reasons begin for which a start without an MPI program failed through no fault of the job's."""

_OF_MACHINE = tuple(
    os.strerror(number)
    for number in (
        errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.EAGAIN,
        errno.ENOMEM, errno.EMFILE, errno.ENFILE,
    )
)  # fmt: skip
"""What the system says when a whole file system or machine is at its end, and no job has caused it."""


def blames_machine(reason: str) -> bool:
    """Whether any other job would have failed to start there, too."""
    return blames_place(reason) and reason.endswith(_OF_MACHINE)


def blames_place(reason: str) -> bool:
    """Whether a start without an MPI program failed because of the node or its file system."""
    return reason.startswith(_OF_PLACE)


class Strikes:
    """Counts failed starts by node; a start that succeeds clears those of its nodes that are not given up.

    Failures of one thing alone, whatever that is, are no node's fault.
    """

    def __init__(self, limit: int = LIMIT) -> None:
        self._limit = limit
        self._failed: dict[str, list[object]] = {}

    def worked(self, nodes: Iterable[str]) -> None:
        """Something was started on these. One that is given up stays so: it may have been started before."""
        for name in nodes:
            if not self._is_over(name):
                self._failed.pop(name, None)

    def forgive(self, nodes: Iterable[str]) -> None:
        """These are used again."""
        for name in nodes:
            self._failed.pop(name, None)

    def failed(self, nodes: Sequence[str], reason: str, what: object = None) -> list[str]:
        """A start of ``what`` (None: of something else each time) on ``nodes`` failed; the nodes that have
        failed too often now. A node that the reason names is the one to blame, else all are.
        """
        what = object() if what is None else what
        blamed = named(nodes, reason) or nodes
        before = {name for name in nodes if self._is_over(name)}
        for name in blamed:
            self._failed.setdefault(name, []).append(what)
        return [name for name in blamed if self._is_over(name) and name not in before]

    def covers(self, nodes: Collection[str]) -> bool:
        """Whether all of these have failed too often."""
        return bool(nodes) and all(map(self._is_over, nodes))

    def _is_over(self, name: str) -> bool:
        failed = self._failed.get(name, [])
        return len(failed) >= self._limit and len(set(failed)) > 1


def named(nodes: Iterable[str], text: str) -> list[str]:
    """Those of ``nodes`` that a text names, in full or by their short names."""
    words = text.replace('"', " ").replace("'", " ").replace(":", " ").replace(",", " ").split()
    return [node for node in nodes if node in words or node.split(".")[0] in words]
