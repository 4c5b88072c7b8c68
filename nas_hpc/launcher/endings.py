"""What the database has to be told when something ends. All functions run in the store's thread."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import TypeVar

from nas_hpc.errors import NasHpcError, WrongCall
from nas_hpc.launcher import policy
from nas_hpc.processes.orders import Ended
from nas_hpc.records import Attempt, Event, Job
from nas_hpc.states import FINAL, RUNNABLE, Actor, Outcome, State
from nas_hpc.store.base import Finish, JobFilter, Store

T = TypeVar("T")
SEARCH_ENDED = "its search has ended"
UNFINISHED = frozenset(State) - FINAL


def finish_of(
    store: Store, job: Job, nodes: Iterable[str], ended: Ended, lease: str, lost_limit: int
) -> Finish:
    """How the attempt of ``job`` on ``nodes`` that ended so is to be recorded."""
    result = ended.result
    earlier: list[Attempt] = []
    counted = result.outcome in (Outcome.LOST, Outcome.START_FAILED)
    if counted or (result.outcome is not Outcome.OK and job.retries):
        earlier = [attempt for attempt in store.attempts([job.id]) if attempt.number < job.attempt]
    harmless = result.outcome is Outcome.LOST and _got_on(store, job, lost_limit)
    path = policy.follow(
        result.outcome,
        earlier,
        retries=job.retries,
        lost_limit=lost_limit,
        reason=result.reason,
        got_on=harmless,
    )
    if path == (State.FAILED,):
        where = ", ".join(sorted({name for attempt in earlier for name in attempt.nodes} | set(nodes)))
        result = replace(result, reason=f"{result.reason} (attempt {job.attempt}, on {where})")
    return Finish(job.id, job.attempt, lease, result, path, ended.tail, result.reason)


def _got_on(store: Store, search: Job, lost_limit: int) -> bool:
    """Whether an evaluation of ``search`` has ended during its last ``lost_limit`` attempts: one that is lost
    at once may follow others that came far."""
    begun = sorted(attempt.claimed for attempt in store.attempts([search.id]))[-lost_limit:]
    results = (one.attempt.result for one in reversed(store.finished(search.id)) if one.attempt is not None)
    return bool(begun) and any(result is not None and result.end > begun[0] for result in results)


def cancel_with(store: Store, searches: Iterable[Job]) -> list[Job]:
    """End the evaluations of searches that are over for good; returns them as they were before.

    In the transaction that ends the search: a launcher that dies between the two would leave evaluations that
    the next one runs for nobody.
    """
    killed: list[Job] = []
    for search in searches:
        alive = store.jobs(JobFilter(creator=search.id, states=UNFINISHED))
        ids = [job.id for job in alive]
        killed += store.set_state(ids, State.USER_KILLED, Actor.LAUNCHER, SEARCH_ENDED)
    return killed


def cancel_if_over(store: Store, search: Job, lease: str) -> list[Job]:
    """``cancel_with``, unless the search waits or runs (again): it may have been changed or retried.

    Raises LeaseLost.
    """
    store.claim(lease, ())
    now = state_of(store, search)
    return cancel_with(store, [search]) if now is None or now.state in FINAL else []


def taken(store: Store, ids: Sequence[str]) -> list[str]:
    """Those of ``ids`` that wait no longer; none if one was removed, as the next look tells better."""
    try:
        found = store.jobs(JobFilter(ids=tuple(ids))) if ids else []
    except WrongCall:
        return []
    return [job.id for job in found if job.state not in RUNNABLE]


def state_of(store: Store, job: Job) -> Job | None:
    """The job as it is now; None if it was removed."""
    try:
        return store.jobs(JobFilter(ids=(job.id,)))[0]
    except WrongCall:
        return None


def check_current(store: Store, lease: str, search: Job) -> None:
    """Before anything is written for a search: this launcher is the site's, this attempt the search's.

    Raises LeaseLost, or WrongCall for a search that was ended in the meantime.
    """
    store.claim(lease, ())
    now = state_of(store, search)
    if now is None or (now.state, now.lease, now.attempt) != (State.RUNNING, lease, search.attempt):
        raise WrongCall(f"attempt {search.attempt} of search {search.name} is over: it was ended or removed")


def or_refusal(work: Callable[[Store], T]) -> Callable[[Store], T | NasHpcError]:
    """``work``; what it refuses is returned, and nothing written. Troubles of the database are raised."""

    def attempt(store: Store) -> T | NasHpcError:
        try:
            with store.transaction():
                return work(store)
        except NasHpcError as error:
            if error.exit_code != 2:
                raise
            return error

    return attempt


def revive(store: Store, search: Job) -> list[Job]:
    """A search that was ended and is retried goes on where it was: what was ended with it runs again.

    Evaluations that it cancelled itself, or that a person killed alone, stay as they are.
    """
    ids = [job.id for job in ended_with(store, search)]
    return store.set_state(ids, State.RESTART_READY, Actor.COMMAND, "retried with its search") if ids else []


def ended_with(store: Store, search: Job) -> list[Job]:
    """The evaluations that were ended with ``search``: by its launcher, or at the instant at which it was."""
    killed = store.jobs(JobFilter(creator=search.id, states=frozenset({State.USER_KILLED})))
    if not killed:
        return []
    instants = {event.time for event in store.events([search.id]) if event.new is State.USER_KILLED}
    last = {event.job: event for event in store.events([job.id for job in killed])}

    def went(event: Event) -> bool:
        by_command = event.actor == Actor.COMMAND.value and event.time in instants
        return event.message == SEARCH_ENDED or by_command

    return [job for job in killed if went(last[job.id])]
