"""Jobs that wait: what can run here, who is next, and why not.

All methods run in the loop's thread.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from nas_hpc.launcher.foresight import Foresight, like
from nas_hpc.launcher.mpi import Mpi
from nas_hpc.launcher.options import LauncherOptions
from nas_hpc.launcher.orders import Allocation
from nas_hpc.launcher.ownership import sessions_log
from nas_hpc.launcher.placing import Placing, deadlock
from nas_hpc.launcher.queue import JobQueue
from nas_hpc.launcher.stages import StageHooks, Stages
from nas_hpc.processes.orders import Key
from nas_hpc.records import App, Job, Node
from nas_hpc.resources import Placement, Pool, Request
from nas_hpc.states import RAN
from nas_hpc.store.base import Finished, Store

T = TypeVar("T")
MIN_PATIENCE = 16
"""So many jobs at least are placed before one that waits behind them goes first."""


@dataclass(frozen=True, slots=True)
class Run:
    """An attempt that holds a placement."""

    job: Job
    placement: Placement
    claimed: float
    held: bool = True
    """Whether the pool knows of the placement. Not that of an attempt that a dead launcher's agent ran, and
    that is only to be brought to its end."""


@dataclass(frozen=True, slots=True)
class Hooks:
    """Whom the dispatcher tells."""

    finished: Callable[[Sequence[Finished], Sequence[Job]], None]
    """Jobs reached a final state (after the commit); the evaluations, as they were, that went with them."""
    changed: Callable[[], None]
    """Something started, ended or was placed: capacity, idleness and displays may differ."""
    overtaken: Callable[[Sequence[Job]], None]
    """Attempts ended whose jobs a command had killed (and perhaps retried) before: look what they are now."""
    fatal: Callable[[BaseException], None]
    """The lease is lost, the database is gone, or the launcher itself is broken."""
    note: Callable[[str], None]
    unfit: Callable[[Mapping[str, tuple[Job, str]]], None]
    """These waited, and now it is known that they can never run here, and why."""


class Waiting(ABC):
    """Owns the queue and the rules of placing, and knows what runs."""

    def __init__(self, allocation: Allocation, options: LauncherOptions, pool: Pool, hooks: Hooks) -> None:
        self._allocation, self._options, self._hooks = allocation, options, hooks
        self.apps: Mapping[str, App] = {}
        self.creators: dict[str, Job] = {}
        self.running: dict[Key, Run] = {}
        self.persons: dict[Key, Run] = {}
        """Those of ``running`` that are no evaluations."""
        self._active: set[str] = set()
        """Jobs of which an attempt runs."""
        self.elsewhere: Callable[[], bool] = lambda: False
        """Whether other launchers run jobs of this site."""
        self.stopping = False
        self.never: dict[str, str] = {}
        """Waiting jobs that this allocation cannot run, and why."""
        self.deadlock = ""
        """What to say if nothing can move any more."""
        self.foresight = Foresight(is_search=self.is_search, has_evaluations=self.has_evaluations)
        self.placing = Placing(pool, allocation.mode, options.mpi_mode_packing)
        self.placing.latest_start = self.foresight.latest_start
        self.placing.ends_of = lambda: self.foresight.ends_of(
            (run.job, run.placement, run.claimed) for run in self.running.values()
        )
        self.queue = JobQueue(patience=max(MIN_PATIENCE, 2 * pool.open_nodes()))
        self.mpi = Mpi(
            allocation, options, apps=lambda: self.apps, note=hooks.note, changed=self._mpi_changed
        )
        self._unreached = allocation.found.elsewhere if allocation.mode == "mpi" else ()
        """Nodes on which only the MPI program, once it is found, can start anything."""
        self.stages = Stages(
            allocation,
            sessions_log(allocation.site, allocation.lease),
            options.grace_s,
            StageHooks(
                lambda: self.apps, self.write, self.has_evaluations, self.add,
                hooks.finished, hooks.overtaken, hooks.changed,
            ),
        )  # fmt: skip

    @abstractmethod
    def plan_flush(self) -> None:
        """Place what can be placed, at the end of this turn of the loop."""

    @abstractmethod
    def write(self, work: Callable[[Store], T], then: Callable[[T], None]) -> None:
        """Have the store's thread do ``work``; ``then`` is called in the loop after the commit, in order."""

    # -- what there is to do -------------------------------------------------------------------------
    def is_search(self, job: Job) -> bool:
        """Whether the job is a restartable application of a person: a search or a controller."""
        app = self.apps.get(job.application)
        return not job.creator and app is not None and app.restartable

    def has_evaluations(self, job: Job) -> bool:
        """Whether evaluations may have been asked for by the job. Called in the store's thread too."""
        return self.is_search(job) or job.id in self.creators

    def request_of(self, job: Job) -> Request:
        """What the job occupies here."""
        return self.placing.request_of(job, search=self.is_search(job))

    def add(self, jobs: Iterable[Job]) -> None:
        """Put runnable jobs into the queue; those that can never run here are named instead, and those for
        which something has to be done before, or after an attempt, are given to the stages."""
        for job in jobs:
            if job.id in self._active or self.queue.get(job.id) == job:
                continue
            why = "" if job.state in RAN else self.never_here(job)
            if why:
                self._refuse(job, why)
                continue
            self.never.pop(job.id, None)
            if not job.creator and self.stages.takes(job):
                self.queue.remove(job.id)
                continue
            need = job.resources
            kind = f"{like(job)} {need.timeout_s} {need.wall_time_minutes} {need.ranks_per_node}"
            self.queue.add(job, self.request_of(job), search=self.is_search(job), like=kind)
        self.plan_flush()

    def _refuse(self, job: Job, why: str) -> None:
        if job.id not in self.never:
            self._hooks.note(f"job {job.name} ({job.id[:8]}) cannot run here: {self.mpi.for_log(why)}")
        self.never[job.id] = why
        self.queue.remove(job.id)

    def gone(
        self, runnable: Iterable[Job], running: Iterable[Job], changed: Collection[str] | None = None
    ) -> list[Job]:
        """Jobs known here that are neither waiting nor running in the database: ended, changed or removed.
        Of all, or of ``changed``."""
        waiting = {job.id for job in runnable}
        current = {(job.id, job.attempt) for job in running}
        asked = self.never.keys() if changed is None else self.never.keys() & changed
        for job_id in asked - waiting:
            del self.never[job_id]
        known = self.queue if changed is None else filter(None, map(self.queue.get, changed))
        ended = [
            run.job
            for key, run in self.running.items()
            if key not in current and (changed is None or run.job.id in changed)
        ]
        return [*ended, *(job for job in known if job.id not in waiting)]

    def never_here(self, job: Job) -> str:
        """Why this allocation cannot ever run ``job``; empty if it can."""
        search = self.is_search(job)
        why = self.mpi.refusal(job, self.creators.get(job.creator), search=search)
        return why or self.placing.never(job, search=search)

    def _mpi_changed(self) -> None:
        """Something was found out about the MPI program: other hosts can be reached, or jobs cannot run."""
        if self.mpi.program is not None and self._unreached:
            for name in self._unreached:
                self.placing.pool.bring_back(name)
            self._unreached = ()
            self.capacity_changed()
        self._refuse_what_cannot_run()
        self.plan_flush()

    def _refuse_what_cannot_run(self) -> None:
        unfit = {job.id: (job, why) for job in self.queue if (why := self.never_here(job))}
        for job, why in unfit.values():
            self._refuse(job, why)
        self._hooks.unfit(unfit)

    # -- who is next ----------------------------------------------------------------------------------
    def _take(self) -> list[tuple[Job, Placement]]:
        def may_start(job: Job) -> bool:
            return self.mpi.may_start(job, self.creators.get(job.creator))

        placed, look = [], self.foresight
        for job, placement in self.queue.take(
            self.placing, look.fits, may_start=may_start, now=time.time(), estimate=look.surely_s
        ):
            self.mpi.starts(job)
            placed.append((job, placement))
        return placed

    def _look_for_deadlock(self) -> None:
        """Searches alone run, all have evaluations waiting, and none of these fits beside them.

        Called when nothing could be placed and the database is not busy.
        """
        searches = [run for run in self.persons.values() if self.has_evaluations(run.job)]
        stuck = bool(searches) and len(searches) == len(self.running) and len(self.queue) > 0
        if stuck and not (self.stopping or self.placing.pool.aside or self.mpi.pending):
            waiting = {job.creator for job in self.queue}
            firsts = [(job, request) for job, request in self.queue.firsts() if self.foresight.fits(job)]
            stuck = bool(firsts) and all(run.job.id in waiting for run in searches)
            stuck = stuck and not self.elsewhere()
            if stuck:
                said = deadlock([(run.job, run.placement) for run in searches], [r for _, r in firsts])
                if said != self.deadlock:
                    self._hooks.note(said)
                self.deadlock = said
                return
        self.deadlock = ""

    # -- what changes ---------------------------------------------------------------------------------
    def learned(self, node: Node, *, real: bool) -> None:
        """What a node has was told by its agent: other jobs may be able to run here now, or not to.

        ``real``: the core ids are the machine's.
        """
        self._allocation.told[node.name] = node, real
        better, worse = self.placing.updated(node)
        if worse:
            self._refuse_what_cannot_run()
        if better and self.never:
            self._hooks.overtaken(())  # they are looked up again

    def capacity_changed(self) -> None:
        """Nodes came or went: tell the searches, and place what waits."""
        self.queue.forget_kept(self.placing)
        self.plan_flush()

    def forget(self, job_ids: Iterable[str]) -> None:
        """Jobs that were killed while they waited, or while something was done before or after an attempt."""
        gone = list(job_ids)
        self.stages.forget(gone)
        for job_id in gone:
            self.queue.remove(job_id)
            self.never.pop(job_id, None)

    # -- what fits, and why not -------------------------------------------------------------------------
    def capacity(self, request: Request) -> int:
        """How many of ``request`` fit beside everything that runs and is no evaluation."""
        return self.placing.pool.capacity(request)

    def why_not(self, job: Job) -> str:
        """Why a waiting job does not run now."""
        if job.id in self.never:
            return self.never[job.id]
        if job.id not in self.queue:
            return "it is not in this launcher's queue (another workflow?)"
        if self.stopping:
            return "the launcher is stopping"
        if not self.foresight.fits(job):
            left, need = max(0.0, self.foresight.left_s()), self.foresight.estimate_s(job)
            return f"it takes about {need:.0f} s, and the allocation has {left:.0f} s left for jobs"
        request = self.request_of(job)
        next_one = self.queue.next
        why = (
            self.mpi.why_not(job)
            or self.deadlock
            or self.placing.why_not(job, request, is_next=next_one is not None and next_one.id == job.id)
        )
        ahead = len(self.queue) - 1
        return (
            f"it waits for {request}; {len(self.running)} jobs are running and {ahead} others wait"
            f"{'; ' * bool(why)}{why}"
        )
