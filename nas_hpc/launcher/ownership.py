"""Becoming the launcher of a site: the lease, a dead predecessor's leftovers, the adoption of its results."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

from nas_hpc.errors import LeaseLost, SiteError, StoreError, WrongCall
from nas_hpc.files import replace_file
from nas_hpc.launcher import policy
from nas_hpc.launcher.disk import elsewhere, results_on_disk
from nas_hpc.launcher.endings import cancel_with
from nas_hpc.launcher.journal import Journal
from nas_hpc.launcher.options import LauncherOptions
from nas_hpc.processes import sessions
from nas_hpc.processes.mpi import end_left_steps
from nas_hpc.records import App, Attempt, Job, Lease, Result, new_id
from nas_hpc.site import Site, is_local
from nas_hpc.states import FINAL, Outcome, State
from nas_hpc.store import open_site
from nas_hpc.store.base import Finish, Finished, JobFilter, Store
from nas_hpc.store.owner import Owner, is_owner, is_shared, read_owner

BATCH = 500


def sessions_log(site: Site, lease: str) -> Path:
    """Where the sessions of a launcher are recorded."""
    return site.run / f"sessions-{lease}.log"


def take_site(store: Store, site: Site, options: LauncherOptions) -> tuple[Lease, list[Lease]]:
    """Open a lease on ``site``; returns it and the leases of the dead that it succeeds.

    Raises SiteError when another launcher is alive there, or cannot be told from a living one yet.
    """
    now = time.time()
    dead = []
    for other in store.leases(live_only=True):
        proven = is_dead(other) or is_owner(site)  # a launcher is always the database's owner
        if not proven and other.expires > now:
            raise SiteError(_occupied(site, other, now))
        dead.append((other, proven))
    try:
        try:
            lease = _open(store, options, dead)
        except StoreError as error:
            if not (error.transient and _end_holders(dead)):
                raise
            lease = _open(store, options, [(other, True) for other, _ in dead])
    except LeaseLost as error:
        raise SiteError(f"another launcher took {site.path} at the same moment: {error}") from error
    if not is_shared(site):  # else the owner of the database says so itself
        _write_owner(site, lease)
    left = {log.stem.removeprefix("sessions-"): log for log in site.run.glob("sessions-*.log")}
    for marker, log in left.items():  # of one that died while it took over, too
        sessions.end_recorded(log, marker)
    end_left_steps(left, os.environ)
    for log in left.values():
        log.unlink(missing_ok=True)
    return lease, [other for other, _ in dead]


def new_lease(options: LauncherOptions) -> Lease:
    """A lease of this process, which nobody knows yet."""
    return Lease(
        id=new_id(),
        host=socket.gethostname(),
        boot_id=sessions.boot_id(),
        pid=os.getpid(),
        start_time=sessions.start_ticks(os.getpid()),
        workflow=options.workflow,
        expires=time.time() + options.lease_s,
    )


def _open(store: Store, options: LauncherOptions, dead: Sequence[tuple[Lease, bool]]) -> Lease:
    lease = new_lease(options)
    ending = [other.id for other, _ in dead]
    store.open_lease(lease, ending=ending, proven=all(sure for _, sure in dead), exclusive=True)
    return lease


def _end_holders(dead: Sequence[tuple[Lease, bool]]) -> bool:
    """Kill launchers of this host that hold the database beyond their lease: stopped in the middle of a
    transaction they would keep everybody out for ever. Whether there was one."""
    holders = [lease for lease, proven in dead if not proven and lease.host == socket.gethostname()]
    for lease in holders:
        sessions.end_process(lease.pid, int(lease.start_time))
    return bool(holders)


def end_stopped(owner: Owner) -> None:
    """Kill a process of this host that owns the database beyond its time: it is stopped, and would keep
    everybody out for ever."""
    sessions.end_process(owner.pid, owner.start_time)


def free_database(site: Site, lease_s: float, say: Callable[[str], None]) -> None:
    """End a launcher of this host that is stopped (SIGSTOP) at an instant at which nobody can even read the
    database, once it has been so for ``lease_s``. Not before: it may be told to go on.
    """
    holder = None if is_shared(site) else read_owner(site)
    if holder is None or not holder.here or holder.boot_id != sessions.boot_id():
        return
    until = time.monotonic() + lease_s
    while sessions.is_stopped(holder.pid, holder.start_time) and not _readable(site):
        if time.monotonic() >= until:
            say(f"ending process {holder.pid}, a launcher that is stopped and keeps the job database locked")
            end_stopped(holder)
            return


def _readable(site: Site) -> bool:
    """Whether the database answers; a look at a locked one takes seconds."""
    try:
        with closing(open_site(site, read_only=True)) as store:
            store.leases(live_only=True)
    except StoreError as error:
        if not error.transient:
            raise
        return False
    return True


def is_dead(lease: Lease) -> bool:
    """Whether the death of a lease's launcher is proven, which is possible only on its own host."""
    if lease.host != socket.gethostname():
        return False
    return lease.boot_id != sessions.boot_id() or not sessions.is_alive(lease.pid, int(lease.start_time))


def _occupied(site: Site, lease: Lease, now: float) -> str:
    where = f"process {lease.pid} on {lease.host}"
    if lease.host == socket.gethostname():
        return f"{site.path} is already run by a launcher ({where}); stop it, or let it do the work"
    return (
        f"{site.path} is run by a launcher on another host ({where}); if that is gone, its lease ends in "
        f"{lease.expires - now:.0f} s: try again then"
    )


def _write_owner(site: Site, lease: Lease) -> None:
    body = {name: getattr(lease, name) for name in ("id", "host", "boot_id", "pid", "start_time", "workflow")}
    replace_file(site.owner, json.dumps(body))


def close_lease(lease: str, store: Store) -> None:
    """Give the lease up, unless jobs are left RUNNING under it: those a successor settles."""
    if not store.jobs(JobFilter(lease=lease, states=frozenset({State.RUNNING}), limit=1)):
        store.close_lease(lease, time.time())


def renew_lease(lease: str, lease_s: float, store: Store) -> None:
    """For so long from now. Raises LeaseLost."""
    store.renew_lease(lease, time.time() + lease_s)


@dataclass(frozen=True, slots=True)
class Left:
    """An attempt that a dead launcher left RUNNING with an agent that may live."""

    job: Job
    """``job.lease`` is the dead one's."""
    attempt: Attempt
    alive_until: float
    """When the dead launcher gave its last sign of life, UTC."""

    @property
    def key(self) -> tuple[str, int]:
        """(job, attempt number)."""
        return self.job.id, self.job.attempt


def adopt(
    store: Store, site: Site, lease: Lease, options: LauncherOptions, served: Collection[str] = ()
) -> list[Left]:
    """Settle what the dead left RUNNING: results on disk are taken, the rest is lost and runs again.

    Their processes have been ended before, but for those on the nodes ``served`` by agents that may live:
    what these run is left as it is, and returned. The dead are all whose lease has ended: one that died while
    it took over itself has left those of its predecessor, too.
    """
    of_dead, leases = jobs_of_dead(store)
    left = left_on(store, of_dead, leases, served, options)
    spared = {one.job.id for one in left}
    settle(store, site, lease, options, [job for job in of_dead if job.id not in spared], leases)
    return left


def jobs_of_dead(store: Store) -> tuple[list[Job], dict[str, Lease]]:
    """The jobs that are RUNNING under leases that have ended, and all leases by id."""
    leases = {one.id: one for one in store.leases(live_only=False)}
    running = store.jobs(JobFilter(states=frozenset({State.RUNNING})))
    return [job for job in running if job.lease in leases and leases[job.lease].ended], leases


def left_on(
    store: Store,
    of_dead: Sequence[Job],
    leases: Mapping[str, Lease],
    served: Collection[str],
    options: LauncherOptions,
) -> list[Left]:
    """Those of ``of_dead`` that run on nodes ``served`` by agents that may live."""
    spared = _on_nodes(store, of_dead, frozenset(served)) if served else {}
    return [
        Left(job, spared[job.id], leases[job.lease].expires - options.lease_s)
        for job in of_dead
        if job.id in spared
    ]


def settle(
    store: Store,
    site: Site,
    lease: Lease,
    options: LauncherOptions,
    of_dead: Sequence[Job],
    leases: Mapping[str, Lease],
) -> tuple[list[Finished], list[Job]]:
    """Adopt jobs whose processes have ended, and end their attempts: with the results on disk, or as lost.
    Returns what was closed, and the evaluations, as they were, that went with their searches."""
    closed: list[Finished] = []
    cancelled: list[Job] = []
    apps = {app.name: app for app in store.apps()}
    restartable = {app.name for app in apps.values() if app.restartable}
    local = is_local(site.data, options.shared_filesystem)
    late = set() if local else elsewhere(store, of_dead, restartable)
    found = results_on_disk(site, of_dead, late, options.result_grace_s)
    running: dict[str, list[Job]] = {}
    for job in of_dead:
        running.setdefault(job.lease, []).append(job)
    for dead, jobs in running.items():
        alive_until = leases[dead].expires - options.lease_s
        for first in range(0, len(jobs), BATCH):
            batch = jobs[first : first + BATCH]
            with store.transaction():
                won = set(store.adopt(lease.id, dead, [(job.id, job.attempt) for job in batch]))
                finishes = [
                    _settle(store, lease.id, job, found.get(job.id), alive_until, options.lost_limit, apps)
                    for job in batch
                    if (job.id, job.attempt) in won
                ]
                done = store.finish(lease.id, finishes)
                over = [one.job for one in done if not one.job.creator and one.job.state in FINAL]
                went = cancel_with(store, over)
            closed += done
            cancelled += went
    return closed, cancelled


def _on_nodes(store: Store, jobs: Sequence[Job], nodes: frozenset[str]) -> dict[str, Attempt]:
    """The current attempts, by job, of those of ``jobs`` that run on ``nodes`` and nowhere else."""
    current = {(job.id, job.attempt) for job in jobs}
    return {
        attempt.job: attempt
        for attempt in store.attempts([job.id for job in jobs])
        if (attempt.job, attempt.number) in current and attempt.nodes and set(attempt.nodes) <= nodes
    }


def take_over(store: Store, lease: str, left: Sequence[Left]) -> tuple[dict[str, Job], list[Job]]:
    """Make what a dead launcher left this one's: the jobs that were won, by id, and their creators.

    What a command has ended in the meantime is not won. In the store's thread; raises LeaseLost.
    """
    by_lease: dict[str, list[tuple[str, int]]] = {}
    for one in left:
        by_lease.setdefault(one.job.lease, []).append(one.key)
    won = {pair[0] for dead, pairs in by_lease.items() for pair in store.adopt(lease, dead, pairs)}
    jobs = {one.job.id: replace(one.job, lease=lease) for one in left if one.job.id in won}
    creators = sorted({job.creator for job in jobs.values() if job.creator})
    return jobs, [job for creator in creators for job in _existing(store, creator)]


def _existing(store: Store, job_id: str) -> list[Job]:
    try:
        return store.jobs(JobFilter(ids=(job_id,)))
    except WrongCall:  # it was removed
        return []


def _settle(
    store: Store, lease: str, job: Job, result: Result | None, alive_until: float, lost_limit: int,
    apps: Mapping[str, App],
) -> Finish:  # fmt: skip
    attempts = [] if result is not None and result.outcome is Outcome.OK else store.attempts([job.id])
    earlier = [attempt for attempt in attempts if attempt.number < job.attempt]
    if result is None:
        start = next((a.claimed for a in attempts if a.number == job.attempt), alive_until)
        result = Result(Outcome.LOST, reason=policy.LAUNCHER_GONE, start=start, end=max(start, alive_until))
    path = policy.follow(
        result.outcome, earlier, retries=job.retries, lost_limit=lost_limit, reason=result.reason
    )
    if not job.creator:
        path = policy.paused(job, apps.get(job.application), result.outcome, path)
    return Finish(job.id, job.attempt, lease, result, path, message=result.reason or "found on disk")


def write_missing_lines(store: Store, journal: Journal, dead: list[Lease], options: LauncherOptions) -> None:
    """Append the lines of ended attempts that the dead did not come to write, and their own end."""
    if not dead:
        return
    workflows = {job.workflow for job in store.jobs(JobFilter(workflow=options.workflow))}
    for name in workflows:
        known = journal.known(name)
        jobs = {job.id: job for job in store.jobs(JobFilter(workflow=name))}
        missing = [
            (jobs[attempt.job], attempt)
            for attempt in store.attempts(list(jobs))
            if attempt.result is not None and (attempt.job, attempt.number) not in known
        ]
        journal.attempts(missing)
        for lease in dead:
            alive_until = lease.expires - options.lease_s
            ends = [a.result.end for _, a in missing if a.result is not None and a.lease == lease.id]
            last = max(ends, default=alive_until)
            time_s = min(max(last, alive_until), time.time())
            journal.launcher(
                name, {"launcher": lease.id, "time": time_s, "event": "end", "nodes": [], "slots": 0}
            )
