"""Nodes that get nothing for a moment, because an MPI program could not start ranks there."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from nas_hpc.launcher.strikes import named
from nas_hpc.resources import Pool

REST_S = 5.0
"""Meanwhile the job is tried on another node, if there is one."""


class Resting:
    """Sets nodes aside and brings them back. Lives in a running asyncio loop.

    ``changed`` is called when one came back.
    """

    def __init__(self, pool: Pool, changed: Callable[[], None]) -> None:
        self._pool, self._changed = pool, changed
        self._timers: dict[str, asyncio.TimerHandle] = {}

    @property
    def pending(self) -> bool:
        """Whether a node will come back."""
        return bool(self._timers)

    def rest(self, nodes: Sequence[str], reason: str) -> None:
        """A start on ``nodes`` failed. The one that the reason names rests, or the only one; of several of
        which nobody knows who is at fault, none."""
        blamed = named(nodes, reason) or list(nodes)
        if len(blamed) != 1 or blamed[0] in self._pool.aside:
            return
        self._pool.set_aside(blamed[0])
        loop = asyncio.get_running_loop()
        self._timers[blamed[0]] = loop.call_later(REST_S, self._rested, blamed[0])

    def give_up(self, name: str) -> None:
        """It will not come back."""
        timer = self._timers.pop(name, None)
        if timer is not None:
            timer.cancel()

    def _rested(self, name: str) -> None:
        del self._timers[name]
        self._pool.bring_back(name)
        self._changed()

    def close(self) -> None:
        """None comes back any more."""
        for name in list(self._timers):
            self.give_up(name)
