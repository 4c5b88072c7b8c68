"""When a launcher ends because it has nothing left to do."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nas_hpc.launcher.loop import Launcher


class Idling:
    """Calls ``end`` when there was nothing to do for as long as the launcher is to wait. All methods run in
    the loop's thread."""

    def __init__(self, launcher: Launcher, end: Callable[[], None]) -> None:
        self._launcher, self._end = launcher, end
        self._timer: asyncio.TimerHandle | None = None

    def check(self) -> None:
        """Something is other than before."""
        launcher = self._launcher
        if not launcher.looks.ready or self._busy():
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            return
        # What still waits does not fit into the time left or into the allocation, or it would be running;
        # what waits for parents waits for that.
        if launcher.fleet is not None:
            launcher.fleet.check_hope()
        if launcher.dispatcher.stopping:
            self._end()
        elif launcher.options.persistent:
            return
        elif launcher.options.idle_timeout_s == 0:
            self._end()
        elif self._timer is None:
            self._timer = launcher.loop.call_later(launcher.options.idle_timeout_s, self._over)

    def _busy(self) -> bool:
        launcher = self._launcher
        waits_for_agents = launcher.fleet is not None and launcher.fleet.unsettled
        return launcher.looks.planned or launcher.dispatcher.busy or waits_for_agents

    def _over(self) -> None:
        self._timer = None
        if not self._busy():
            self._end()
