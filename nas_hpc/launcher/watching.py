"""A thread that looks after the other launchers of a site: finds those that died, and does what is left to do
for them. It has a connection of its own, so that its launcher never waits for it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from nas_hpc.errors import LeaseLost, NasHpcError
from nas_hpc.launcher import joining, ownership
from nas_hpc.launcher.options import LauncherOptions
from nas_hpc.processes.orders import Key
from nas_hpc.records import Attempt, Job, Lease
from nas_hpc.site import Site
from nas_hpc.store import open_site
from nas_hpc.store.base import Finished, Store

LOOK_S = 2.0
"""Between two looks: a death that the database proves becomes known so late."""
GUARDIAN_S = 2.0
"""So long the guardian of a launcher on another host has to end what that had started."""
EACH = 15
"""Every so many looks jobs are looked for that nobody runs, whoever was found dead: who found out may have
died himself, and what was spared may have to wait no longer."""


@dataclass(frozen=True, slots=True)
class WatchHooks:
    """Whom the thread tells; all are called in it."""

    settled: Callable[[Sequence[Finished], Sequence[Job]], None]
    """Attempts of dead launchers were ended; the evaluations, as they were, that went with their searches."""
    ended: Callable[[Sequence[Lease], Sequence[tuple[Job, Attempt]]], None]
    """These died; these attempts may have no lines."""
    lost: Callable[[LeaseLost], None]
    """The own lease has ended."""
    note: Callable[[str], None]


class Watch:
    """The thread, from its making to ``close``."""

    def __init__(
        self,
        site: Site,
        lease: Lease,
        options: LauncherOptions,
        hooks: WatchHooks,
        *,
        ended: Sequence[Lease] = (),
        left: Collection[Key] = (),
    ) -> None:
        """``ended`` were found dead before; ``left`` are attempts that are another's care."""
        self._site, self._lease, self._options, self._hooks = site, lease, options, hooks
        self._deaths = joining.Deaths(lease, options.lease_s)
        self._ended, self._left = list(ended), frozenset(left)
        self._looks = 0
        self._again = False
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._thread.start()

    def close(self, timeout_s: float) -> None:
        """Look no more; a look that takes longer ends with the process."""
        self._closing.set()
        self._thread.join(timeout_s)

    def _run(self) -> None:
        store: Store | None = None
        troubled = False
        while not self._closing.is_set():
            try:
                if store is None:
                    store = open_site(self._site)
                    store.keep(self._lease.id)
                self._look(store)
                troubled = False
            except LeaseLost as error:
                if not self._closing.is_set():
                    self._hooks.lost(error)
                break
            except (NasHpcError, OSError) as error:
                self._deaths.forget()
                if not troubled and not self._closing.is_set():
                    self._hooks.note(f"other launchers are not looked after for the time being: {error}")
                troubled = True
            self._closing.wait(LOOK_S)
        if store is not None:
            store.close()

    def _look(self, store: Store) -> None:
        dead = self._deaths.find(store)
        for one in dead:
            self._hooks.note(f"the launcher {one.pid} on {one.host} has died: its jobs are taken over")
        self._ended += joining.bury(store, self._site, self._lease.id, dead)
        if any(one.host != self._lease.host for one in dead):
            self._closing.wait(GUARDIAN_S)
        if self._ended:
            self._hooks.ended(self._ended, joining.missing_lines(store, self._ended))
        if self._looks % EACH == 0:
            joining.end_leftovers(store, self._site)
        if self._ended or dead or self._again or self._looks % EACH == 0:
            self._again = True  # until it has been done
            self._settle(store)
            self._again = False
        self._ended = []
        self._looks += 1

    def _settle(self, store: Store) -> None:
        jobs, leases = ownership.jobs_of_dead(store)
        mine = [job for job in jobs if (job.id, job.attempt) not in self._left]
        if not mine:
            return
        kept = joining.spared(store, self._site, mine, self._lease.id, self._options)
        rest = [job for job in mine if job.id not in kept]
        closed, cancelled = ownership.settle(store, self._site, self._lease, self._options, rest, leases)
        if closed or cancelled:
            self._hooks.settled(closed, cancelled)
