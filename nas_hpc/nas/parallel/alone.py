"""One process: nothing is exchanged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nas_hpc.nas.parallel.base import Array


class Alone:
    """The only rank."""

    way = "alone"
    rank = 0
    size = 1

    def gradients(self, tape: Any, loss: Any, variables: Sequence[Any], beside: Any) -> tuple[list[Any], Any]:
        """Its own."""
        return tape.gradient(loss, variables), beside

    def sum(self, array: Array) -> Array:
        """``array`` itself."""
        return array

    def broadcast(self, array: Array) -> Array:
        """``array`` itself."""
        return array
