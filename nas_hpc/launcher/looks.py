"""When a launcher looks into the database for what commands, and other launchers, have changed."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable
from functools import partial
from typing import TYPE_CHECKING

from nas_hpc.launcher.looking import Seen, look, look_at_changes
from nas_hpc.states import FINAL
from nas_hpc.store.base import Store

if TYPE_CHECKING:
    from nas_hpc.launcher.loop import Launcher

PAUSE_S = (0.05, 1.0)
"""Because of what other launchers did the database is read again after such a pause at the soonest, the
longer the more there is to read."""


class Looks:
    """Reads what waits into the queue. All methods run in the loop's thread."""

    def __init__(self, launcher: Launcher) -> None:
        self._launcher = launcher
        self.ready = False
        """Whether the first look is over."""
        self.planned = False
        self.children_wait = False
        """Whether a job waits for its parents: it may be ready when a person's job has ended."""
        self._not_before = 0.0
        self._all = True
        """Whether the next look is at everything: what was changed is not only what has new events."""
        self._last = 0
        """Number of the newest event that was seen."""
        self._also: set[str] = set()
        """Jobs to be read whose events have been seen, and could not be heeded then."""

    def look(self, then: Callable[[], object] = lambda: None, *, everything: bool = False) -> None:
        """Look now; ``then`` is called when what was found is in the queue. See ``soon``."""
        self._all |= everything
        launcher, loop = self._launcher, self._launcher.loop
        shared = launcher.allocation.shared
        # Later children are told by who adds them, and what runs here is known, unless there are others.
        known: Container[str] = launcher.dispatcher.creators
        if shared:
            known = [run.job.id for run in launcher.dispatcher.persons.values()]
        workflow, lease, last = launcher.options.workflow, launcher.lease.id, self._last
        everything, self._all = self._all, False
        also = sorted(self._also)
        self._also.clear()
        all_children = shared or not self.ready

        def read(store: Store) -> Seen:
            if everything:
                return look(store, workflow, lease, known, all_children=all_children)
            return look_at_changes(store, workflow, lease, known, last, also)

        begun = loop.time()
        self._not_before = begun + PAUSE_S[0] if shared else 0.0
        launcher.dispatcher.write(read, partial(self._seen, begun, then))

    def _seen(self, begun: float, then: Callable[[], object], seen: Seen) -> None:
        launcher, dispatcher = self._launcher, self._launcher.dispatcher
        if launcher.together is not None:
            now = launcher.loop.time()
            self._not_before = now + min(PAUSE_S[1], max(PAUSE_S[0], 4 * (now - begun)))
            launcher.together.saw(seen.waiting)
        self._last = max(self._last, seen.last)
        self.children_wait = bool(seen.children) or (self.children_wait and seen.changed is not None)
        launcher.visitors.await_parents(seen.children)
        dispatcher.apps = {app.name: app for app in seen.apps}
        dispatcher.creators |= {job.id: job for job in seen.creators}
        over = [job for job in seen.creators if job.state in FINAL]  # their evaluations run for nobody
        gone = dispatcher.gone(seen.waiting, seen.mine, seen.changed)
        launcher.searches.killed([*gone, *over], "killed by a command")
        dispatcher.stages.keep(seen.mine, seen.changed)
        nobodys = {job.id for job in over}
        dispatcher.add(job for job in seen.waiting if job.creator not in nobodys)
        self.ready = True
        then()
        dispatcher.plan_flush()

    def soon(self, *, everything: bool = False, also: Iterable[str] = ()) -> None:
        """One look for all that happens while the database is busy, or has just been read: at what has new
        events, and the jobs with the ids ``also``; or at everything."""
        self._also.update(also)
        self._all |= everything
        if not self.planned:
            self.planned = True
            loop = self._launcher.loop
            loop.call_at(max(self._not_before, loop.time()), self._planned_one)

    def _planned_one(self) -> None:
        self.planned = False
        self.look()
