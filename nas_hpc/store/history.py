"""What has happened: finished evaluations, attempts, events."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import BindParameter, Select, and_, bindparam, select

from nas_hpc.records import Attempt, Event
from nas_hpc.states import State
from nas_hpc.store.base import Finished
from nas_hpc.store.prepared import Query
from nas_hpc.store.rows import attempt_of, job_of
from nas_hpc.store.schema import attempts, events, jobs
from nas_hpc.store.session import Session

JOB_WIDTH = len(jobs.columns)

WITH_ATTEMPT: Select[Any] = select(*jobs.columns, *attempts.columns).select_from(
    jobs.outerjoin(attempts, and_(attempts.c.job == jobs.c.number, attempts.c.number == jobs.c.attempt))
)
"""Jobs with their current or last attempt."""

_values: BindParameter[Any] = bindparam("values", expanding=True)
_BY_ID = Query(WITH_ATTEMPT.where(jobs.c.id.in_(_values)))
_OF_CREATOR = (
    WITH_ATTEMPT.where(jobs.c.creator == bindparam("creator"), jobs.c.final_event > bindparam("after"))
    .order_by(jobs.c.final_event)
)  # fmt: skip
_ATTEMPTS = Query(
    select(jobs.c.id, attempts).join(jobs, attempts.c.job == jobs.c.number).where(jobs.c.id.in_(_values))
)
_EVENTS = (
    select(events, jobs.c.id.label("job_id")).join(jobs, events.c.job == jobs.c.number).order_by(events.c.id)
)
_STATES = {state.value: state for state in State}


def finished_of(row: Sequence[Any], order: int) -> Finished:
    """The record of a row of ``WITH_ATTEMPT``."""
    job = job_of(row)
    tail = row[JOB_WIDTH:]
    return Finished(job, None if tail[0] is None else attempt_of(job.id, tail), order)


def finished_by_id(session: Session, ids: Sequence[str]) -> dict[str, Finished]:
    """Jobs with their last attempts; ``order`` is 0 for those that are not final."""
    return {row.id: finished_of(row, row.final_event or 0) for row in session.fetch_in(_BY_ID, ids)}


def read_finished(session: Session, creator: str, after: int, limit: int) -> list[Finished]:
    """See ``Store.finished``."""
    query = _OF_CREATOR.limit(limit) if limit else _OF_CREATOR
    rows = session.rows(query, {"creator": creator, "after": after})
    return [finished_of(row, row.final_event) for row in rows]


def read_attempts(session: Session, job_ids: Sequence[str]) -> list[Attempt]:
    """See ``Store.attempts``."""
    rows = session.fetch_in(_ATTEMPTS, sorted(set(job_ids)))
    rows.sort(key=lambda row: (row[1], row[2]))
    return [attempt_of(row[0], row[1:]) for row in rows]


def read_events(session: Session, job_ids: Sequence[str], after: int, limit: int) -> list[Event]:
    """See ``Store.events``."""
    query = _EVENTS.where(events.c.id > after) if after else _EVENTS
    if limit:
        query = query.limit(limit)
    if job_ids:
        rows = session.in_chunks(query.where(jobs.c.id.in_(_values)), sorted(set(job_ids)))
        rows.sort(key=lambda row: row[0])
        rows = rows[:limit] if limit else rows
    else:
        rows = list(session.rows(query))
    return [
        Event(id_, job_id, at, _STATES[old], _STATES[new], actor, attempt, message)
        for id_, _, at, old, new, actor, attempt, message, job_id in rows
    ]
