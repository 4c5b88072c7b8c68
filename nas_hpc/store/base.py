"""The protocol of a job database.

Every call takes and returns batches, runs in one transaction and returns after the commit
(acknowledged means committed). Implementations are not thread-safe: one thread owns a store.

Fencing: ``claim`` writes the lease and a new attempt number into the job; ``finish``, ``adopt`` and every
other write about a running job names both and changes nothing when they differ.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Protocol

from nas_hpc.records import App, Attempt, Event, Job, Lease, Result
from nas_hpc.states import Actor, State


@dataclass(frozen=True, slots=True)
class Claim:
    """A wish to start a job now on these resources."""

    job: str
    nodes: tuple[str, ...] = ()
    cores: tuple[int, ...] = ()
    gpus: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Finish:
    """The end of an attempt. ``path`` are the states entered, in order, from RUNNING on."""

    job: str
    attempt: int
    lease: str
    result: Result
    path: tuple[State, ...]
    tail: str = ""
    message: str = ""


@dataclass(frozen=True, slots=True)
class Advance:
    """A stage of a held job is over. ``path`` are the states entered, in order, from ``state`` on."""

    job: str
    attempt: int
    state: State
    path: tuple[State, ...]
    message: str = ""


@dataclass(frozen=True, slots=True)
class JobFilter:
    """Which jobs; empty fields do not restrict. ``ids`` may be full ids or unique prefixes (>= 4 digits)."""

    ids: tuple[str, ...] = ()
    workflow: str = ""
    name: str = ""
    states: frozenset[State] = field(default_factory=frozenset)
    creator: str = ""
    lease: str = ""
    application: str = ""
    made_by: str = ""
    limit: int = 0


@dataclass(frozen=True, slots=True)
class Finished:
    """A finished evaluation as its search sees it; ``order`` is the id of its final event."""

    job: Job
    attempt: Attempt | None
    """None for one that never ran (cancelled while it waited)."""
    order: int


@dataclass(frozen=True, slots=True)
class Changes:
    """Jobs that have changed, as they are now."""

    jobs: list[Job]
    """Those that wait for something, and those under the lease that was named, in the order of insertion."""
    others: list[str]
    """Ids of the others: they run elsewhere, or are final."""


class Store(Protocol):
    """A job database."""

    shared: bool
    """Whether several launchers may run its jobs at a time."""

    sender: str
    """Whom the notices name that it sends; empty if it sends none."""

    def close(self) -> None:
        """Release the database."""

    def transaction(self) -> AbstractContextManager[None]:
        """Calls inside are committed together at its end, or not at all. An inner transaction that raises
        undoes itself alone; a call that raises has written nothing, or the transaction around it fails with
        it, at its end if not before. An error of the database (a full disk) undoes all."""

    # -- applications ------------------------------------------------------------------------------
    def put_app(self, app: App, *, replace: bool = False) -> None:
        """Register ``app``. Raises WrongCall if another application has that name and not ``replace``."""

    def apps(self) -> list[App]:
        """All applications, by name."""

    def remove_app(self, name: str) -> None:
        """Raises WrongCall if it is unknown or a job that is not final uses it."""

    # -- jobs --------------------------------------------------------------------------------------
    def add_jobs(self, jobs: Sequence[Job], actor: Actor) -> list[Job]:
        """Insert; state READY, or AWAITING_PARENTS while a parent is not finished. Returns the jobs as
        stored, in order. A job whose (creator, seq), or whose id if it is a person's, exists already is not
        inserted: the existing one is returned. Raises WrongCall, inserting none, for an unknown application,
        an unknown parent or a cycle. Parents may be among ``jobs``."""

    def add_finished(self, jobs: Sequence[tuple[Job, Result]]) -> list[Finished]:
        """Insert evaluations that are over before they began, idempotent as ``add_jobs``: JOB_FINISHED with
        outcome OK (cache hits), FAILED with any other (there is nothing that could run). Their result stands
        in an attempt with number 0 and no lease."""

    def jobs(self, where: JobFilter) -> list[Job]:
        """The jobs, in the order of insertion. Raises WrongCall for an id that fits none, or several."""

    def counts(self, where: JobFilter) -> dict[State, int]:
        """How many jobs are in each state."""

    def modify(self, changed: Sequence[Job]) -> None:
        """Replace name, args, environ, resources, parents, retries, data, stages of jobs not RUNNING. Raises
        WrongCall for one that runs, changing none. New parents make a runnable job wait, none release it."""

    def remove(self, where: JobFilter) -> list[Job]:
        """Delete jobs (with attempts and events) that are not RUNNING; WrongCall, deleting none, if one runs.
        Evaluations of a deleted search go with it. Jobs that have a deleted one as parent: refused."""

    def set_state(self, ids: Iterable[str], state: State, actor: Actor, message: str = "") -> list[Job]:
        """Move those jobs to which the table allows it (kill, retry); returns the ones that moved, as they
        were before (so that the caller sees which were RUNNING), in the order of insertion. A RUNNING job can
        only be killed; its attempt ends with it. RESTART_READY becomes AWAITING_PARENTS for a job whose
        parents are not finished; and children that failed because of their parents wait for them again, as
        soon as none of those is failed or killed: they are among the ones returned. Else children of a job
        fare as with ``finish``."""

    # -- running -----------------------------------------------------------------------------------
    def claim(self, lease: str, claims: Sequence[Claim]) -> list[Job]:
        """Make the runnable ones RUNNING under ``lease`` with attempt + 1 and record an Attempt. Returns
        those that were won, as stored. Raises LeaseLost, claiming none, if the lease has ended."""

    def finish(self, lease: str, finishes: Sequence[Finish]) -> list[Finished]:
        """Close attempts. Those whose (lease, attempt) is not current are skipped; returns the others. A job
        whose path ends in one of ``states.RAN`` stays held by ``lease``, for its postprocess script. One that
        reaches JOB_FINISHED makes its children READY when all their parents are; one that reaches FAILED or
        USER_KILLED does with its waiting children what their ``stages.on_parent_failure`` says: fails them,
        counts as done, or lets them wait. Raises LeaseLost, writing nothing, if ``lease`` has ended."""

    def adopt(self, new: str, dead: str, attempts: Sequence[tuple[str, int]]) -> list[tuple[str, int]]:
        """Take over running (job, attempt) pairs of a dead lease by compare-and-set; returns those won.
        Raises LeaseLost if ``new`` has ended or ``dead`` has not."""

    def exchange(
        self, lease: str, finishes: Sequence[Finish], claims: Sequence[Claim]
    ) -> tuple[list[Finished], list[Job]]:
        """``finish`` and ``claim`` in one transaction: what a launcher does when a slot becomes free."""

    # -- stages ------------------------------------------------------------------------------------
    def hold(self, lease: str, ids: Sequence[str]) -> list[Job]:
        """Take jobs that are READY, RESTART_READY or in ``states.RAN`` for what has to be done before or
        after their attempts, unless another live lease holds them; returns those won, in order. No event is
        recorded. A held job is still killed, changed or removed as before, which ends the holding. Raises
        LeaseLost if ``lease`` has ended."""

    def advance(self, lease: str, steps: Sequence[Advance]) -> list[Finished]:
        """Make transitions of jobs that ``lease`` holds, and release them. Those that it does not hold any
        more, or whose state or attempt is another, are skipped; returns the others as ``finish`` does.
        Raises LeaseLost, writing nothing, if ``lease`` has ended."""

    # -- leases ------------------------------------------------------------------------------------
    def open_lease(
        self, lease: Lease, *, ending: Sequence[str] = (), proven: bool = False, exclusive: bool
    ) -> None:
        """Record a new lease and end those of ``ending`` in the same transaction. Raises LeaseLost, writing
        nothing, if one of ``ending`` was ended by somebody else, or is unexpired at ``time.time()`` and its
        death is not ``proven``; and, if ``exclusive``, when any other live lease remains."""

    def renew_lease(self, lease: str, expires: float) -> None:
        """Raises LeaseLost if it has ended."""

    def close_lease(self, lease: str, now: float) -> None:
        """Give it up in order. No error if it has ended already."""

    def end_leases(self, lease: str, dead: Sequence[Lease]) -> list[Lease]:
        """End those of launchers that have died, as ``lease``'s launcher found; returns the ones that this
        call has ended: neither those that had ended, nor those that were renewed since they were read. Raises
        LeaseLost if ``lease`` has ended."""

    def leases(self, *, live_only: bool = True) -> list[Lease]:
        """The leases, oldest first."""

    def tell_slots(self, lease: str, slots: int) -> None:
        """How many evaluations its launcher can run at a time. Raises LeaseLost if it has ended."""

    def keep(self, lease: str) -> None:
        """Prove by this connection, and those that follow it when it is lost, that the launcher of ``lease``
        lives: for ``gone``. Call it before ``open_lease``, so that no lease is seen without its proof."""

    def gone(self, leases: Sequence[Lease]) -> list[Lease]:
        """Those whose launchers have died as far as the database itself can prove it: none on SQLite. On
        PostgreSQL those of which no connection has been there for two seconds, for which it waits if there
        are any. Not in a transaction."""

    # -- requests ----------------------------------------------------------------------------------
    def first_time(self, request: str) -> bool:
        """Record that a request that was left in the inbox is carried out, in the transaction around; False
        if that was recorded before: it is done already."""

    def forget_requests(self, before: float, spare: Sequence[str]) -> None:
        """Remove the records of those that were carried out before that time (UTC), but ``spare``."""

    # -- history -----------------------------------------------------------------------------------
    def finished(self, creator: str, after: int = 0, limit: int = 0) -> list[Finished]:
        """Evaluations of a search that are final, in the order of their final events with id > ``after``.
        Those in state JOB_FINISHED, FAILED and USER_KILLED; a retried job appears under its newest."""

    def attempts(self, job_ids: Sequence[str]) -> list[Attempt]:
        """Attempts, by job and number."""

    def last_event(self) -> int:
        """The number of the newest event; 0 if there is none."""

    def changed(self, after: int, workflow: str, lease: str, also: Sequence[str] = ()) -> Changes:
        """What became of the jobs of ``workflow`` (empty: any) that have events newer than number ``after``,
        and of those with the ids ``also`` if they are still there.
        A job that was modified or held, or whose lease has ended, need not have one; one that was removed has
        none."""

    def events(self, job_ids: Sequence[str] = (), after: int = 0, limit: int = 0) -> list[Event]:
        """Events in their order; of all jobs when ``job_ids`` is empty."""
