"""Calls of the job database by processes that do not own it: records as plain values, and what does them.

The owner executes a call in one transaction (``execute``). One that changes something carries an id and is
carried out once, however often it arrives: its caller may have lost its answer with an owner that died.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nas_hpc import errors
from nas_hpc.errors import LeaseLost, NasHpcError, ProtocolError, StoreError, WrongCall
from nas_hpc.records import App, Attempt, Event, Job, Lease, Result
from nas_hpc.states import Actor, Outcome, State
from nas_hpc.store.base import Finished, JobFilter
from nas_hpc.store.fast_json import read_json
from nas_hpc.store.rows import dump_json, job_body, job_of
from nas_hpc.wire import PROTOCOL, StoreAnswer, StoreCall

if TYPE_CHECKING:
    from nas_hpc.store.sql import SqlStore

PAGE = 1_000
"""Jobs that the owner reads at a time for somebody else: its own commits wait in the meantime."""
PART = 2_000
"""Rows in one message of an answer."""

Rows = list[Any]


# -- records as plain values -------------------------------------------------------------------------
def put_app(app: App) -> Rows:
    """Plain values of an application."""
    return [getattr(app, name) for name in App.__slots__]


def put_job(job: Job) -> Rows:
    """The job as a row of ``schema.jobs``, as which all are sent. Raises WrongCall as the database does."""
    return [
        0, job.id, job.name, job.workflow, job.application, job.creator, job.seq, job.state.value, job.lease,
        job.attempt, 0, job.created, 0, job_body(job),
    ]  # fmt: skip


def get_job(row: Sequence[Any]) -> Job:
    """The job of such a row."""
    return job_of(row)


def put_filter(where: JobFilter) -> Rows:
    """Plain values of a filter."""
    body = [getattr(where, name) for name in JobFilter.__slots__]
    body[JobFilter.__slots__.index("states")] = sorted(state.value for state in where.states)
    return body


def get_filter(values: Sequence[Any]) -> JobFilter:
    """The filter of them."""
    body = dict(zip(JobFilter.__slots__, values, strict=True))
    return JobFilter(
        **{**body, "ids": tuple(body["ids"]), "states": frozenset(State(state) for state in body["states"])}
    )


def _put_result(result: Result) -> Rows:
    metadata = dump_json(dict(result.metadata), "the metadata of a result")
    return [
        result.outcome.value, result.objective, metadata, result.reason, result.return_code, result.start,
        result.end,
    ]  # fmt: skip


def _get_result(values: Sequence[Any]) -> Result:
    outcome, objective, metadata, *rest = values
    return Result(Outcome(outcome), objective, read_json(metadata), *rest)


def put_attempt(one: Attempt) -> Rows:
    """Plain values of an attempt."""
    result = None if one.result is None else _put_result(one.result)
    return [
        one.job, one.number, one.lease, one.nodes, one.cores, one.gpus, one.claimed, result, one.tail,
    ]  # fmt: skip


def get_attempt(values: Sequence[Any]) -> Attempt:
    """The attempt of them."""
    job, number, lease, nodes, cores, gpus, claimed, result, tail = values
    ended = None if result is None else _get_result(result)
    return Attempt(job, number, lease, tuple(nodes), tuple(cores), tuple(gpus), claimed, ended, tail)


def put_event(one: Event) -> Rows:
    """Plain values of an event."""
    return [one.id, one.job, one.time, one.old.value, one.new.value, one.actor, one.attempt, one.message]


def get_event(values: Sequence[Any]) -> Event:
    """The event of them."""
    id_, job, time_s, old, new, actor, attempt, message = values
    return Event(id_, job, time_s, State(old), State(new), actor, attempt, message)


def put_lease(one: Lease) -> Rows:
    """Plain values of a lease."""
    return [getattr(one, name) for name in Lease.__slots__]


def put_finished(one: Finished) -> Rows:
    """Plain values of a finished evaluation."""
    return [put_job(one.job), None if one.attempt is None else put_attempt(one.attempt), one.order]


def get_finished(values: Sequence[Any]) -> Finished:
    """The finished evaluation of them."""
    job, attempt, order = values
    return Finished(get_job(job), None if attempt is None else get_attempt(attempt), order)


# -- what the owner does -----------------------------------------------------------------------------
def _jobs(store: SqlStore, where: Sequence[Any]) -> Rows:
    """A row for each job; of more than ``PAGE`` their numbers only, which are asked for with ``_page``."""
    return store.job_page(get_filter(where), PAGE)


def _page(store: SqlStore, numbers: Sequence[int]) -> Rows:
    return store.job_rows(numbers)


def _moved(store: SqlStore, ids: Sequence[str], state: str, actor: str, message: str) -> Rows:
    return list(map(put_job, store.set_state(ids, State(state), Actor(actor), message)))


def _removed(store: SqlStore, where: Sequence[Any]) -> Rows:
    return list(map(put_job, store.remove(get_filter(where))))


def _added(store: SqlStore, jobs: Sequence[Any], actor: str) -> Rows:
    return list(map(put_job, store.add_jobs(list(map(get_job, jobs)), Actor(actor))))


def _modified(store: SqlStore, jobs: Sequence[Any]) -> Rows:
    store.modify(list(map(get_job, jobs)))
    return []


def _app_put(store: SqlStore, app: Sequence[Any], replace: bool) -> Rows:
    store.put_app(App(*app), replace=replace)
    return []


def _app_removed(store: SqlStore, name: str) -> Rows:
    store.remove_app(name)
    return []


def _counts(store: SqlStore, where: Sequence[Any]) -> Rows:
    return [[state.value, count] for state, count in store.counts(get_filter(where)).items()]


def _finished(store: SqlStore, creator: str, after: int, limit: int) -> Rows:
    return list(map(put_finished, store.finished(creator, after, limit)))


@dataclass(frozen=True, slots=True)
class _Call:
    work: Callable[..., Rows]
    writes: bool = False
    again: bool = False
    """Done twice it is as done once, and says the same: its answer can be had again."""


CALLS: dict[str, _Call] = {
    "apps": _Call(lambda store: list(map(put_app, store.apps()))),
    "put_app": _Call(_app_put, writes=True),
    "remove_app": _Call(_app_removed, writes=True),
    "add_jobs": _Call(_added, writes=True, again=True),
    "jobs": _Call(_jobs),
    "page": _Call(_page),
    "counts": _Call(_counts),
    "modify": _Call(_modified, writes=True),
    "remove": _Call(_removed, writes=True),
    "set_state": _Call(_moved, writes=True),
    "leases": _Call(lambda store, live: list(map(put_lease, store.leases(live_only=live)))),
    "finished": _Call(_finished),
    "attempts": _Call(lambda store, ids: list(map(put_attempt, store.attempts(ids)))),
    "events": _Call(lambda store, ids, after, limit: list(map(put_event, store.events(ids, after, limit)))),
}
"""What the owner does for others."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of a call."""

    rows: Rows
    repeated: bool = False
    error: NasHpcError | None = None


def writes(call: StoreCall) -> bool:
    """Whether the call changes something."""
    return call.call in CALLS and CALLS[call.call].writes


def execute(store: SqlStore, call: StoreCall) -> Answer:
    """Carry out ``call``. What it refuses is returned, and nothing written; raises LeaseLost, and StoreError
    for troubles of the database that may pass."""
    try:
        known = _known(call)
        if not known.writes:
            return Answer(known.work(store, *call.arguments))
        with store.transaction():
            if not store.first_time(call.id) and not known.again:
                return Answer([], repeated=True)
            return Answer(known.work(store, *call.arguments))
    except LeaseLost:
        raise
    except NasHpcError as error:
        if error.transient:
            raise
        return Answer([], error=error)
    except (TypeError, ValueError, KeyError, IndexError, AttributeError) as error:
        said = f"{type(error).__name__}: {error}"
        return Answer([], error=ProtocolError(f"the call {call.call!r:.40} makes no sense: {said:.200}"))


def _known(call: StoreCall) -> _Call:
    if call.protocol != PROTOCOL:
        raise ProtocolError(f"the owner of the job database speaks protocol {PROTOCOL}, not {call.protocol}")
    if call.call not in CALLS:
        raise ProtocolError(f"the owner of the job database has no call {call.call!r:.40}")
    return CALLS[call.call]


def messages(request: int, answer: Answer) -> Iterator[StoreAnswer]:
    """The answer to the call ``request``, in parts."""
    rows, error = answer.rows, answer.error
    if error is not None:
        kind = next(one.__name__ for one in type(error).__mro__ if one.__module__ == errors.__name__)
        text = str(error).encode("utf-8", "backslashreplace").decode()
        yield StoreAnswer(request, [], error=kind, message=text, transient=error.transient)
        return
    for start in range(0, len(rows) - PART, PART):
        yield StoreAnswer(request, rows[start : start + PART], last=False)
    start = max(0, (len(rows) - 1) // PART * PART)
    yield StoreAnswer(request, rows[start:], repeated=answer.repeated)


def answer_of(parts: Sequence[StoreAnswer]) -> Answer:
    """What the messages say. Raises the error that they tell."""
    last = parts[-1]
    if last.error:
        raise error_of(last)
    return Answer([row for part in parts for row in part.rows], last.repeated)


def error_of(answer: StoreAnswer) -> NasHpcError:
    """The error that the answer tells: of the same class, with the same text."""
    kind = getattr(errors, answer.error, None)
    known = isinstance(kind, type) and issubclass(kind, NasHpcError)
    error: NasHpcError = kind(answer.message) if known else StoreError(answer.message)  # type: ignore[misc]
    if answer.transient != error.transient:
        error.transient = answer.transient
    return error


def refused_text(error: UnicodeEncodeError) -> WrongCall:
    """As the database says it of text that is none."""
    text = str(error.object)[:60]
    return WrongCall(f"{text!r} is no text that can be stored: name it in valid characters")
