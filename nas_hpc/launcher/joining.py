"""Running jobs of a site beside other launchers: the lease, the end of those that died, what they left.

Any launcher that lives may find another one dead; who ends its lease in the database first does what is left
to be done for it. Its jobs any launcher adopts, its agents only a launcher of the same allocation.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from nas_hpc.errors import NasHpcError
from nas_hpc.launcher import ownership, roster
from nas_hpc.launcher.journal import Journal
from nas_hpc.launcher.options import LauncherOptions
from nas_hpc.launcher.ownership import Left
from nas_hpc.launcher.roster import Roster
from nas_hpc.processes import sessions
from nas_hpc.processes.mpi import end_left_steps
from nas_hpc.records import Attempt, Job, Lease
from nas_hpc.site import Site
from nas_hpc.store.base import JobFilter, Store
from nas_hpc.wire import endpoint_files, read_endpoint

FAREWELL_S = 60.0
"""So long after its deadline an agent on another host has certainly ended all that it ran."""
SLACK_S = 5.0
"""So much later than its lease says a launcher may come back from a pause in which the database was away."""


def join_site(store: Store, options: LauncherOptions) -> Lease:
    """Open a lease beside those of other launchers."""
    lease = ownership.new_lease(options)
    store.keep(lease.id)
    store.open_lease(lease, exclusive=False)
    return lease


@dataclass(slots=True)
class Deaths:
    """Finds out which of the other launchers have died: by their process on this host, by the database, or
    because they did not renew their lease while this one could see it, by this one's clock."""

    lease: Lease
    lease_s: float
    _seen: dict[str, tuple[float, float]] = field(default_factory=dict)
    """What each lease's ``expires`` is, and until when (monotonic) it must have changed."""

    def find(self, store: Store) -> list[Lease]:
        """The dead. Blocking: it waits a moment before it believes the database."""
        others = [one for one in store.leases() if one.id != self.lease.id]
        dead = [one for one in others if ownership.is_dead(one)]
        unsure = [one for one in others if one not in dead]
        gone = store.gone(unsure)
        return [*dead, *gone, *self._silent([one for one in unsure if one not in gone])]

    def forget(self) -> None:
        """The database was away: nobody could renew his lease."""
        self._seen.clear()

    def _silent(self, others: Sequence[Lease]) -> list[Lease]:
        now = time.monotonic()
        before, self._seen = self._seen, {}
        silent = []
        for one in others:
            expires, until = before.get(one.id, (0.0, 0.0))
            if expires != one.expires:
                until = now + max(self.lease_s, one.expires - time.time()) + SLACK_S
            elif now > until:
                silent.append(one)
            self._seen[one.id] = one.expires, until
        return silent


def bury(store: Store, site: Site, lease: str, dead: Sequence[Lease]) -> list[Lease]:
    """End the leases of ``dead``, and on this host what their launchers started. Returns those that this call
    has ended. Blocking; raises LeaseLost."""
    ended = store.end_leases(lease, dead) if dead else []
    here = {one.id for one in dead if one.host == socket.gethostname()}
    for marker in here:
        sessions.end_recorded(ownership.sessions_log(site, marker), marker)
    if here:
        end_left_steps(here, os.environ)
    for marker in here:
        ownership.sessions_log(site, marker).unlink(missing_ok=True)
    gone = {one.id for one in dead}
    for path in endpoint_files(site.run):
        with contextlib.suppress(OSError, NasHpcError):
            if path != site.endpoint and read_endpoint(path).epoch in gone:
                path.unlink()
    return ended


def end_leftovers(store: Store, site: Site) -> None:
    """End what is left on this host of launchers whose leases have ended: they, or who ended them, may have
    been killed before that was done. Blocking."""
    logs = {log.stem.removeprefix("sessions-"): log for log in site.run.glob("sessions-*.log")}
    known = {one.id: one for one in store.leases(live_only=False)} if logs else {}
    for marker, log in logs.items():
        lease = known.get(marker)
        if lease is not None and lease.ended and lease.host == socket.gethostname():
            sessions.end_recorded(log, marker)
            log.unlink(missing_ok=True)


def spared(store: Store, site: Site, jobs: Iterable[Job], lease: str, options: LauncherOptions) -> set[str]:
    """Ids of jobs of dead launchers that agents of another allocation may still be running: its next launcher
    may take these over, and if none comes, the agents end them after ``agent_deadline_s``."""
    records = [one for one in roster.read_all(site) if one.launchers[-1] != lease]
    by_launcher = {one: record for record in records for one in record.launchers}
    theirs = [job for job in jobs if job.lease in by_launcher]
    if not theirs:
        return set()
    ended = {one.id: one.ended for one in store.leases(live_only=False)}
    current = {(job.id, job.attempt): by_launcher[job.lease] for job in theirs}
    lease_of = {job.id: job.lease for job in theirs}
    patience_s = options.agent_deadline_s + FAREWELL_S
    kept = set()
    for attempt in store.attempts([job.id for job in theirs]):
        record = current.get((attempt.job, attempt.number))
        if record is None or ended.get(lease_of[attempt.job], 0.0) + patience_s < time.time():
            continue
        nodes = {name for number in record.living(site) for name in record.nodes[number]}
        if attempt.nodes and nodes.issuperset(attempt.nodes):
            kept.add(attempt.job)
    return kept


def missing_lines(store: Store, ended: Sequence[Lease]) -> list[tuple[Job, Attempt]]:
    """The ended attempts of these launchers' workflows that are of no launcher which lives: they may have no
    lines. Whoever ended one may have died before he wrote it, and so may who found that one dead.
    """
    live = {one.id for one in store.leases()}
    workflows = {one.workflow for one in ended}
    jobs = {job.id: job for name in workflows for job in store.jobs(JobFilter(workflow=name))}
    return [
        (jobs[attempt.job], attempt)
        for attempt in store.attempts(list(jobs))
        if attempt.lease not in live and attempt.result is not None
    ]


def write_lines(
    journal: Journal, lines: Sequence[tuple[Job, Attempt]], ended: Sequence[Lease], lease_s: float
) -> None:
    """Write what the dead did not come to write, and their own end."""
    by_workflow: dict[str, list[tuple[Job, Attempt]]] = {}
    for job, attempt in lines:
        by_workflow.setdefault(job.workflow, []).append((job, attempt))
    for name, mine in by_workflow.items():
        journal.missing(name, mine)
        for lease in ended:
            ends = [a.result.end for _, a in mine if a.result is not None and a.lease == lease.id]
            if ends:
                time_s = min(max(*ends, lease.expires - lease_s), time.time())
                line = {"launcher": lease.id, "time": time_s, "event": "end", "nodes": [], "slots": 0}
                journal.launcher(name, line)


@dataclass(frozen=True, slots=True)
class Joined:
    """What a launcher begins with."""

    lease: Lease
    ended: list[Lease]
    """Of launchers of this host that were found dead."""
    agents: Roster | None
    left: list[Left]


def join(
    store: Store, site: Site, options: LauncherOptions, wanted: Roster | None, note: Callable[[str], None]
) -> Joined:
    """Become one of the launchers of ``site``, and end what is left on this host of those that died here;
    what they ran is settled later, by ``watching``. Blocking."""
    lease = join_site(store, options)
    others = [one for one in store.leases() if one.id != lease.id]
    dead = [one for one in others if ownership.is_dead(one)]
    if wanted is not None:  # of one that ran this allocation's agents it is worth a moment to know it
        records = [one for one in roster.read_all(site) if one.allocation == wanted.allocation]
        masters = {one.launchers[-1] for one in records}
        dead += store.gone([one for one in others if one.id in masters and one not in dead])
    ended = bury(store, site, lease.id, dead)
    end_leftovers(store, site)
    live = {one.id for one in others} - {one.id for one in dead}
    agents, served = roster.succeed_among(site, wanted, lease.id, live, note)
    before = agents.launchers[:-1] if agents is not None else ()
    of_dead, leases = ownership.jobs_of_dead(store)
    theirs = [job for job in of_dead if job.lease in before]
    return Joined(lease, ended, agents, ownership.left_on(store, theirs, leases, served, options))
