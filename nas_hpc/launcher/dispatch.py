"""From waiting to finished: places jobs, claims them, has agents run them, and commits how they ended.

One attempt's way: queue -> place (memory) -> claim (commit) -> agent -> ended -> finish (commit) -> told to
its search. Ends and the claims that they make possible share one commit.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any, TypeVar

from nas_hpc.errors import PlacementError, WorkFailed
from nas_hpc.launcher import policy
from nas_hpc.launcher.disk import results_on_disk
from nas_hpc.launcher.endings import cancel_with, finish_of, taken
from nas_hpc.launcher.journal import Journal
from nas_hpc.launcher.options import LauncherOptions
from nas_hpc.launcher.orders import Allocation, build_order
from nas_hpc.launcher.resting import Resting
from nas_hpc.launcher.strikes import Strikes, blames_machine, blames_place
from nas_hpc.launcher.waiting import Hooks, Run, Waiting
from nas_hpc.processes.orders import Ended, Key, Runner, Started
from nas_hpc.processes.start_failures import blames_node, blames_node_alone
from nas_hpc.records import Attempt, Job, Result
from nas_hpc.resources import Placement, Pool
from nas_hpc.site import is_local
from nas_hpc.states import FINAL, Outcome, State
from nas_hpc.store.base import Claim, Finish, Finished, Store
from nas_hpc.store.writer import Writer

T = TypeVar("T")


_Exchanged = tuple[list[Finished], list[Job], list[Job], list[str]]
"""What was closed, what was claimed, which evaluations ended with their searches, as they were, and ids of
waiting jobs that others have taken."""
NEXT = 64
"""Of so many jobs that wait it is asked whether they still do, when other launchers were faster with some."""


class Dispatcher(Waiting):
    """From the queue to the end of an attempt. All methods run in the loop's thread."""

    def __init__(
        self,
        allocation: Allocation,
        options: LauncherOptions,
        pool: Pool,
        writer: Writer,
        journal: Journal,
        hooks: Hooks,
    ) -> None:
        super().__init__(allocation, options, pool, hooks)
        self._loop = asyncio.get_running_loop()
        self._writer, self._journal = writer, journal
        self.agent: Runner | None = None
        self.evaluating: set[Key] = set()
        """Evaluations whose process exists."""
        self._stopped_as = (Outcome.WALLTIME, "")
        self._strikes = Strikes()
        self.resting = Resting(pool, self.capacity_changed)
        self._ended: list[tuple[Run, Ended]] = []
        self._writes = 0
        self._flush_planned = False
        self._looks: set[asyncio.Task[None]] = set()
        """Looks for results on disk."""

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
            if not self._writes:
                self._look_for_deadlock()
            self._hooks.changed()
            return
        self.deadlock = ""
        now = time.time()
        runs = {job.id: Run(job, placement, now) for job, placement in placed}
        claims = [Claim(j.id, p.nodes, p.cores[0], p.gpus[0]) for j, p in placed]
        lease, limit = self._allocation.lease, self._options.lost_limit
        following = [job.id for job in islice(self.queue, NEXT)] if self._allocation.shared else []

        def commit(store: Store) -> _Exchanged:
            finishes = [finish_of(store, r.job, r.placement.nodes, end, lease, limit) for r, end in ended]
            finishes = [self._paused(r.job, one) for (r, _), one in zip(ended, finishes, strict=True)]
            closed, won = store.exchange(lease, finishes, claims)
            over = [f.job for f in closed if f.job.state in FINAL and self.has_evaluations(f.job)]
            cancelled = cancel_with(store, over)
            return closed, won, cancelled, taken(store, following) if len(won) < len(claims) else []

        self.write(commit, partial(self._committed, runs, ended))

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

    def _committed(self, runs: dict[str, Run], ended: list[tuple[Run, Ended]], done: _Exchanged) -> None:
        closed, won, cancelled, taken_by_others = done
        for job in won:
            self._start(replace(runs.pop(job.id), job=job))
        for run in runs.values():
            self.mpi.ended(run.job)
            self.placing.free(run.placement)  # killed or taken by another launcher in the meantime
        for job_id in taken_by_others:
            self.queue.remove(job_id)
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
        local = is_local(site.data, self._options.shared_filesystem)
        return results_on_disk(site, jobs, () if local else late, self._options.result_grace_s)

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
        alone = blames_node_alone(result.reason) or blames_machine(result.reason)
        over = self._strikes.failed(names, result.reason, None if alone else job.id)
        if by_mpi and not over:
            self.resting.rest(names, result.reason)
        for name in over:
            self.resting.give_up(name)
            self._hooks.note(f"nothing more is started on {name}: {result.reason}")
            self.placing.pool.set_aside(name)
            self.capacity_changed()

    def brought_back(self, names: Iterable[str]) -> None:
        """Something may be started on these nodes again."""
        self._strikes.forgive(names)
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

    @property
    def busy(self) -> bool:
        """Whether anything runs, waits for the database or is about to be placed."""
        mine = self.running or self._writes or self._ended or self._flush_planned
        soon = len(self.queue) > 0 and (self.mpi.pending or self.resting.pending)
        return bool(mine or self.stages.busy or soon)

    def evaluations_of(self, search: str) -> int:
        """How many evaluations of a search are running."""
        return sum(run.job.creator == search for run in self.running.values())
