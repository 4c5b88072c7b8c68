"""From waiting to finished: places jobs, claims them, has agents run them, and commits how they ended.

One attempt's way: queue -> place (memory) -> claim (commit) -> agent -> ended -> finish (commit) -> told to
its search. Ends and the claims that they make possible share one commit.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

from nas_hpc.errors import PlacementError, WorkFailed
from nas_hpc.launcher import policy
from nas_hpc.launcher.disk import results_on_disk
from nas_hpc.launcher.endings import cancel_with, finish_of
from nas_hpc.launcher.foresight import Foresight, like
from nas_hpc.launcher.journal import Journal
from nas_hpc.launcher.mpi import Mpi
from nas_hpc.launcher.options import LauncherOptions
from nas_hpc.launcher.orders import Allocation, build_order
from nas_hpc.launcher.ownership import sessions_log
from nas_hpc.launcher.placing import Placing, deadlock
from nas_hpc.launcher.queue import JobQueue
from nas_hpc.launcher.stages import StageHooks, Stages
from nas_hpc.launcher.strikes import Strikes, blames_machine, blames_place
from nas_hpc.processes.orders import Ended, Key, Runner, Started
from nas_hpc.processes.start_failures import blames_node
from nas_hpc.records import App, Attempt, Job, Node, Result
from nas_hpc.resources import Placement, Pool, Request
from nas_hpc.site import is_local
from nas_hpc.states import FINAL, RAN, Outcome, State
from nas_hpc.store.base import Claim, Finish, Finished, Store
from nas_hpc.store.writer import Writer

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


_Exchanged = tuple[list[Finished], list[Job], list[Job]]
"""What was closed, what was claimed, and which evaluations ended with their searches, as they were."""


class Dispatcher:
    """Owns queue, pool and running attempts. All methods run in the loop's thread."""

    def __init__(
        self,
        allocation: Allocation,
        options: LauncherOptions,
        pool: Pool,
        writer: Writer,
        journal: Journal,
        hooks: Hooks,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._allocation, self._options = allocation, options
        self._writer, self._journal, self._hooks = writer, journal, hooks
        self.agent: Runner | None = None
        self.apps: Mapping[str, App] = {}
        self.creators: dict[str, Job] = {}
        self.placing = Placing(pool, allocation.mode, options.mpi_mode_packing)
        self.foresight = Foresight(is_search=self.is_search, has_evaluations=self.has_evaluations)
        self.placing.latest_start = self.foresight.latest_start
        self.placing.ends_of = lambda: self.foresight.ends_of(
            (run.job, run.placement, run.claimed) for run in self.running.values()
        )
        self.queue = JobQueue(patience=max(MIN_PATIENCE, 2 * pool.open_nodes()))
        self.running: dict[Key, Run] = {}
        self.persons: dict[Key, Run] = {}
        """Those of ``running`` that are no evaluations."""
        self.evaluating: set[Key] = set()
        """Evaluations whose process exists."""
        self.deadlock = ""
        """What to say if nothing can move any more."""
        self._active: set[str] = set()
        self.stopping = False
        self._stopped_as = (Outcome.WALLTIME, "")
        self.mpi = Mpi(allocation, options, note=hooks.note, changed=self._mpi_changed)
        self._unreached = allocation.found.elsewhere if allocation.mode == "mpi" else ()
        """Nodes on which only the MPI program, once it is found, can start anything."""
        self._strikes = Strikes()
        self.never: dict[str, str] = {}
        """Waiting jobs that this allocation cannot run, and why."""
        self._ended: list[tuple[Run, Ended]] = []
        self._writes = 0
        self._flush_planned = False
        self._looks: set[asyncio.Task[None]] = set()
        """Looks for results on disk."""
        self.stages = Stages(
            allocation,
            sessions_log(allocation.site, allocation.lease),
            options.grace_s,
            StageHooks(
                lambda: self.apps, self.write, self.has_evaluations, self.add,
                hooks.finished, hooks.overtaken, hooks.changed,
            ),
        )  # fmt: skip

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
            self._hooks.note(f"job {job.name} ({job.id[:8]}) cannot run here: {why}")
        self.never[job.id] = why
        self.queue.remove(job.id)

    def gone(self, runnable: Iterable[Job], running: Iterable[Job]) -> list[Job]:
        """Jobs known here that are neither waiting nor running in the database: ended, changed or removed."""
        waiting = {job.id for job in runnable}
        current = {(job.id, job.attempt) for job in running}
        for job_id in [job_id for job_id in self.never if job_id not in waiting]:
            del self.never[job_id]
        ended = [run.job for key, run in self.running.items() if key not in current]
        return [*ended, *(job for job in self.queue if job.id not in waiting)]

    def never_here(self, job: Job) -> str:
        """Why this allocation cannot ever run ``job``; empty if it can."""
        why = self.mpi.refusal(job, self.creators.get(job.creator))
        return why or self.placing.never(job, search=self.is_search(job))

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

    # -- placing and committing ----------------------------------------------------------------------
    def plan_flush(self) -> None:
        """Place and commit at the end of this turn of the loop, once for everything that happened in it."""
        if not self._flush_planned:
            self._flush_planned = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_planned = False
        ended, self._ended = self._ended, []
        placed = [] if self.stopping else self._take()
        if not ended and not placed:
            self._look_for_deadlock()
            self._hooks.changed()
            return
        now = time.time()
        runs = {job.id: Run(job, placement, now) for job, placement in placed}
        claims = [Claim(j.id, p.nodes, p.cores[0], p.gpus[0]) for j, p in placed]
        lease, limit = self._allocation.lease, self._options.lost_limit

        def commit(store: Store) -> _Exchanged:
            finishes = [finish_of(store, r.job, r.placement.nodes, end, lease, limit) for r, end in ended]
            finishes = [self._paused(r.job, one) for (r, _), one in zip(ended, finishes, strict=True)]
            closed, won = store.exchange(lease, finishes, claims)
            over = [f.job for f in closed if f.job.state in FINAL and self.has_evaluations(f.job)]
            return closed, won, cancel_with(store, over)

        self.write(commit, partial(self._committed, runs, ended))

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

    def _paused(self, job: Job, finish: Finish) -> Finish:
        """``finish`` up to where a person's job has to wait for its postprocess script."""
        if job.creator:
            return finish
        app = self.apps.get(job.application)
        return replace(finish, path=policy.paused(job, app, finish.result.outcome, finish.path))

    def write(self, work: Callable[[Store], T], then: Callable[[T], None]) -> None:
        """Have the store's thread do ``work``; ``then`` is called in the loop after the commit, in order."""
        committed = self._writer.submit(work)
        self._writes += 1
        committed.add_done_callback(partial(self._settle, then))

    def _settle(self, then: Callable[[Any], None], done: asyncio.Future[Any]) -> None:
        error = done.exception()
        try:
            if error is None:
                then(done.result())
            else:
                self._hooks.fatal(error)
        finally:
            self._writes -= 1
        if not self.busy:
            self._hooks.changed()

    def _look_for_deadlock(self) -> None:
        """Searches alone run, all have evaluations waiting, and none of these fits beside them."""
        searches = [run for run in self.persons.values() if self.has_evaluations(run.job)]
        stuck = bool(searches) and len(searches) == len(self.running) and len(self.queue) > 0
        if stuck and not (self._writes or self.stopping or self.placing.pool.aside or self.mpi.pending):
            waiting = {job.creator for job in self.queue}
            firsts = [(job, request) for job, request in self.queue.firsts() if self.foresight.fits(job)]
            stuck = bool(firsts) and all(run.job.id in waiting for run in searches)
            if stuck:
                said = deadlock([(run.job, run.placement) for run in searches], [r for _, r in firsts])
                if said != self.deadlock:
                    self._hooks.note(said)
                self.deadlock = said
                return
        self.deadlock = ""

    def _committed(self, runs: dict[str, Run], ended: list[tuple[Run, Ended]], done: _Exchanged) -> None:
        closed, won, cancelled = done
        for job in won:
            self._start(replace(runs.pop(job.id), job=job))
        for run in runs.values():
            self.mpi.ended(run.job)
            self.placing.free(run.placement)  # killed or taken by another launcher in the meantime
        self._journal.attempts((f.job, f.attempt) for f in closed if f.attempt is not None)
        assert self.agent is not None
        self.agent.settled([(run.job.id, run.job.attempt) for run, _ in ended])
        settled = {f.job.id for f in closed}
        overtaken = [(run, end) for run, end in ended if run.job.id not in settled]
        self._journal_killed(overtaken)
        if overtaken:
            self._hooks.overtaken([run.job for run, _ in overtaken])
        self.add(f.job for f in closed if f.job.state is State.RESTART_READY or f.job.lease)
        final = [f for f in closed if f.job.state in FINAL]
        if final:
            self._hooks.finished(final, cancelled)
        if runs:
            self.plan_flush()
        self._check_places(end.result.reason for _, end in ended)
        self._hooks.changed()

    def _journal_killed(self, ended: list[tuple[Run, Ended]]) -> None:
        """A killed attempt was closed in the database by who killed it; its line is written at its end."""
        lease = self._allocation.lease
        self._journal.attempts(
            (run.job, Attempt(run.job.id, run.job.attempt, lease, run.placement.nodes,
                              result=replace(end.result, outcome=Outcome.KILLED, objective=None)))
            for run, end in ended
        )  # fmt: skip

    # -- running -------------------------------------------------------------------------------------
    def _start(self, run: Run) -> None:
        job = run.job
        key = self._enter(run)
        if self.stopping:  # since it was placed
            outcome, reason = self._stopped_as
            now = time.time()
            self.on_ended(Ended(key, Result(outcome, reason=reason, start=now, end=now)))
            return
        try:
            creator = self.creators.get(job.creator)
            order = build_order(job, run.placement, self._allocation, self.apps, creator, self.mpi.program)
        except (WorkFailed, ValueError) as error:
            now = time.time()
            self.on_ended(Ended(key, Result(Outcome.ERROR, reason=str(error), start=now, end=now)))
            return
        assert self.agent is not None
        self.agent.start(order)

    def _enter(self, run: Run) -> Key:
        key = (run.job.id, run.job.attempt)
        self.running[key] = run
        self._active.add(run.job.id)
        if not run.job.creator:
            self.persons[key] = run
        return key

    def resume(self, job: Job, attempt: Attempt, *, runs: bool) -> bool:
        """An attempt of a dead launcher is this one's now: it goes on (``runs``), or its end is to be told or
        looked for. Whether it keeps its place."""
        share = self.request_of(job).share
        placement = Placement(attempt.nodes, share, (attempt.cores,), (attempt.gpus,))
        held = False
        if runs:
            try:
                placement = self.placing.retake(job, attempt, search=self.is_search(job))
                held = True
            except PlacementError as error:
                self._hooks.note(f"job {job.name} ({job.id[:8]}) cannot go on where it runs: {error}")
        key = self._enter(Run(job, placement, attempt.claimed, held))
        if held and job.creator:
            self.evaluating.add(key)
        return held

    def lost(
        self,
        keys: Collection[Key],
        reason: str,
        end: float = 0.0,
        before: Callable[[], object] = lambda: None,
    ) -> None:
        """Nobody will report the ends of these: what result.json says counts, else they were lost at ``end``
        (UTC; 0: now). ``before`` that is looked at a thread calls ``before``, to end what is left of them."""
        runs = [self.running[key] for key in keys if key in self.running]
        if runs:
            task = self._loop.create_task(self._look_for(runs, reason, end, before))
            self._looks.add(task)
            task.add_done_callback(self._looks.discard)

    async def _look_for(
        self, runs: Sequence[Run], reason: str, end: float, before: Callable[[], object]
    ) -> None:
        jobs = [run.job for run in runs]
        late = {job.id for job in jobs if not self.is_search(job)}  # a search that was lost leaves no result
        await asyncio.to_thread(before)
        found = await asyncio.to_thread(self._on_disk, jobs, late)
        for run in runs:
            start = run.claimed
            lost = Result(Outcome.LOST, reason=reason, start=start, end=max(start, end or time.time()))
            self.on_ended(Ended((run.job.id, run.job.attempt), found.get(run.job.id, lost)))

    def _on_disk(self, jobs: Sequence[Job], late: Collection[str]) -> dict[str, Result]:
        """Blocking, in a thread."""
        site = self._allocation.site
        return results_on_disk(site, jobs, () if is_local(site.data) else late, self._options.result_grace_s)

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

    def on_started(self, started: Started) -> None:
        """An attempt's process exists."""
        run = self.running.get(started.key)
        if run is not None and run.job.creator:
            self.evaluating.add(started.key)
        self._hooks.changed()

    def on_ended(self, ended: Ended) -> None:
        """An attempt's process is gone: its place is free at once."""
        run = self.running.pop(ended.key, None)
        if run is None:
            return
        self.evaluating.discard(ended.key)
        self.persons.pop(ended.key, None)
        self._active.discard(run.job.id)
        if run.held:
            self.mpi.ended(run.job)
            self.placing.free(run.placement)
        result = ended.result
        self._blame(run, result)
        outcome = policy.effective_outcome(result, restartable=self.is_search(run.job))
        if outcome is not result.outcome:
            ended = replace(ended, result=replace(result, outcome=outcome))
        if outcome is Outcome.OK:
            self.foresight.took(run.job, result.end - result.start)
        self._ended.append((run, ended))
        self.plan_flush()

    def _blame(self, run: Run, result: Result) -> None:
        """Nodes on which starts fail again and again are not used any more: by MPI programs, or
        where a file system is at its end, any starts, else those of different jobs."""
        names, job = run.placement.nodes, run.job
        by_mpi = self._allocation.starts_by_mpi(len(names) * job.resources.ranks_per_node, names)
        if result.outcome is not Outcome.START_FAILED:
            if result.outcome is not Outcome.LOST:
                self._strikes.worked(names)
            return
        if not (blames_node if by_mpi else blames_place)(result.reason):
            return
        alone = by_mpi or blames_machine(result.reason)
        for name in self._strikes.failed(names, result.reason, None if alone else job.id):
            self._hooks.note(f"nothing more is started on {name}: {result.reason}")
            self.placing.pool.set_aside(name)
            self.capacity_changed()

    def _check_places(self, reasons: Iterable[str]) -> None:
        """Without a node on which anything can be started there is nothing left to do."""
        nodes = [node.name for node in self.placing.pool.job_nodes]
        working = any(not self.is_search(run.job) for run in self.running.values())
        if not working and not self.stopping and self._strikes.covers(nodes):
            why = next(iter(reasons), "see the notes above")
            self._hooks.fatal(WorkFailed(f"nothing can be started on any node: {why}"))

    def stop(self, keys: Iterable[Key], outcome: Outcome, reason: str) -> None:
        """Have running attempts ended; they come back through ``on_ended``."""
        assert self.agent is not None
        for key in keys:
            self.agent.stop(key, outcome, reason)

    def stop_all(self, outcome: Outcome, reason: str) -> None:
        """Start nothing more, and have everything that runs ended; what is being claimed does not start."""
        self.stopping, self._stopped_as = True, (outcome, reason)
        self.stop(list(self.running), outcome, reason)
        self.stages.stop()

    def stop_as_all(self, keys: Iterable[Key]) -> None:
        """``stop_all`` came before these were known."""
        self.stop(keys, *self._stopped_as)

    def forget(self, job_ids: Iterable[str]) -> None:
        """Jobs that were killed while they waited, or while something was done before or after an attempt."""
        gone = list(job_ids)
        self.stages.forget(gone)
        for job_id in gone:
            self.queue.remove(job_id)
            self.never.pop(job_id, None)

    @property
    def busy(self) -> bool:
        """Whether anything runs, waits for the database or is about to be placed."""
        mine = self.running or self._writes or self._ended or self._flush_planned
        return bool(mine or self.stages.busy or (len(self.queue) > 0 and self.mpi.pending))

    def evaluations_of(self, search: str) -> int:
        """How many evaluations of a search are running."""
        return sum(run.job.creator == search for run in self.running.values())

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
