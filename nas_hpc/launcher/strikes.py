"""Nodes on which MPI programs cannot start ranks, several times in a row. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

LIMIT = 3


class Strikes:
    """Counts failed starts by node; a start that succeeds clears those of its nodes."""

    def __init__(self, limit: int = LIMIT) -> None:
        self._limit = limit
        self._count: dict[str, int] = {}

    def worked(self, nodes: Iterable[str]) -> None:
        """Ranks ran on these."""
        for name in nodes:
            self._count.pop(name, None)

    def failed(self, nodes: Sequence[str], reason: str) -> list[str]:
        """A start on ``nodes`` failed; the nodes that have failed too often now. A node that the reason names
        is the one to blame, else all are.
        """
        named = [name for name in nodes if _names(reason, name)]
        over = []
        for name in named or nodes:
            self._count[name] = self._count.get(name, 0) + 1
            if self._count[name] == self._limit:
                over.append(name)
        return over


def _names(text: str, node: str) -> bool:
    words = text.replace('"', " ").replace("'", " ").replace(":", " ").replace(",", " ").split()
    return node in words or node.split(".")[0] in words
