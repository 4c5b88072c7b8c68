"""Which jobs: filters to queries, counts, identifiers from prefixes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, bindparam, func, select

from nas_hpc.errors import WrongCall
from nas_hpc.records import Job
from nas_hpc.states import RAN, RUNNABLE, State
from nas_hpc.store.base import Changes, JobFilter
from nas_hpc.store.prepared import Query
from nas_hpc.store.rows import job_of, made_by_pattern
from nas_hpc.store.schema import events, jobs
from nas_hpc.store.session import Session

ID_DIGITS = 32
PREFIX_DIGITS = 4
"""Least length of a prefix that stands for an id."""

_NUMBERS = Query(select(jobs.c.number).where(jobs.c.id.in_(bindparam("values", expanding=True))))
_KNOWN_IDS = Query(select(jobs.c.id).where(jobs.c.id.in_(bindparam("values", expanding=True))))
_BY_NUMBER = Query(select(jobs).where(jobs.c.number.in_(bindparam("values", expanding=True))))
_PREFIX = Query(
    select(jobs.c.id, jobs.c.name)
    .where(jobs.c.id >= bindparam("low"), jobs.c.id < bindparam("high"))
    .order_by(jobs.c.number)
    .limit(4)
)
_WAITING = frozenset(state.value for state in (State.AWAITING_PARENTS, *RUNNABLE, *RAN))


def resolve_ids(session: Session, given: Sequence[str]) -> list[str]:
    """Full ids of full or abbreviated ones. Raises WrongCall for one that fits no job, or several."""
    full = [one for one in given if len(one) == ID_DIGITS]
    known = {row.id for row in session.fetch_in(_KNOWN_IDS, full)}
    resolved = []
    for one in given:
        if len(one) == ID_DIGITS:
            if one not in known:
                raise WrongCall(f"there is no job {one}; see: nas-hpc ls jobs")
            resolved.append(one)
            continue
        prefix = one.lower()
        if not re.fullmatch(f"[0-9a-f]{{{PREFIX_DIGITS},{ID_DIGITS}}}", prefix):
            raise WrongCall(
                f"{one!r} is no job id; give its first {PREFIX_DIGITS} or more hexadecimal digits"
            )
        fits = session.fetch(_PREFIX, {"low": prefix, "high": f"{prefix}g"})
        if not fits:
            raise WrongCall(f"there is no job whose id starts with {one}; see: nas-hpc ls jobs")
        if len(fits) > 1:
            some = ", ".join(f"{row.id[:12]} ({row.name})" for row in fits[:3])
            raise WrongCall(f"several jobs have ids that start with {one}: {some}; give more digits")
        resolved.append(fits[0].id)
    return resolved


def conditions(where: JobFilter) -> list[ColumnElement[bool]]:
    """The filter without its ids, states and limit."""
    column = jobs.c
    pairs = (
        (column.workflow, where.workflow), (column.name, where.name), (column.creator, where.creator),
        (column.lease, where.lease), (column.application, where.application),
    )  # fmt: skip
    chosen = [found == value for found, value in pairs if value]
    if where.made_by:  # jobs of persons only: there are few, and the text is looked for in no others
        chosen += [column.creator.is_(None), column.body.contains(made_by_pattern(where.made_by))]
    return chosen


def job_rows(session: Session, where: JobFilter) -> list[Any]:
    """Rows of ``schema.jobs``, in the order of insertion."""
    if where.ids:
        return _rows_by_id(session, where)
    states = _states(where)
    query = select(jobs).where(*conditions(where)).order_by(jobs.c.number)
    if not where.limit:
        return list(session.rows(query.where(jobs.c.state.in_(states)) if states else query))
    query = query.limit(where.limit)
    if not states:
        return list(session.rows(query))
    # One state at a time comes from its index in order; several at once would all be read and sorted.
    found = [row for state in states for row in session.rows(query.where(jobs.c.state == state))]
    return sorted(found, key=lambda row: row.number)[: where.limit]


def last_event(session: Session) -> int:
    """See ``Store.last_event``."""
    return int(session.rows(select(func.max(events.c.id)))[0][0] or 0)


def read_changes(session: Session, after: int, workflow: str, lease: str, also: Sequence[str]) -> Changes:
    """See ``Store.changed``."""
    changed = {row.job for row in session.rows(select(events.c.job).where(events.c.id > after).distinct())}
    numbers = sorted(changed.union(row.number for row in session.fetch_in(_NUMBERS, also)))
    here = (jobs.c.workflow == workflow,) if workflow else ()
    heads = session.in_chunks(
        select(jobs.c.number, jobs.c.id, jobs.c.state, jobs.c.lease).where(
            jobs.c.number.in_(bindparam("values", expanding=True)), *here
        ),
        numbers,
    )
    wanted = sorted(row.number for row in heads if row.state in _WAITING or row.lease == lease)
    rows = sorted(session.fetch_in(_BY_NUMBER, wanted), key=lambda row: row.number)
    found = [job_of(row) for row in rows]
    kept = {job.id for job in found}
    return Changes(found, [row.id for row in heads if row.id not in kept])


def _states(where: JobFilter) -> list[str]:
    """The states to ask for. A workflow alone asks for all: the index is by state, then workflow."""
    narrow = where.name or where.creator or where.lease or where.application or where.made_by
    wanted = State if where.workflow and not where.states and not narrow else where.states
    return sorted(state.value for state in wanted)


def _rows_by_id(session: Session, where: JobFilter) -> list[Any]:
    ids = sorted(set(resolve_ids(session, where.ids)))
    query = select(jobs).where(jobs.c.id.in_(bindparam("values", expanding=True)), *conditions(where))
    found = session.in_chunks(query, ids)
    if where.states:
        states = {state.value for state in where.states}
        found = [row for row in found if row.state in states]
    found.sort(key=lambda row: row.number)
    return found[: where.limit] if where.limit else found


def job_page(session: Session, where: JobFilter, most: int) -> list[Any]:
    """See ``SqlStore.job_page``. Listings by ids or with a limit are never cut."""
    if where.ids or where.limit:
        return [list(row) for row in job_rows(session, where)]
    states = _states(where)
    query = select(jobs.c.number).where(*conditions(where)).order_by(jobs.c.number)
    numbers = [row[0] for row in session.rows(query.where(jobs.c.state.in_(states)) if states else query)]
    return numbers if len(numbers) > most else rows_by_number(session, numbers)


def rows_by_number(session: Session, numbers: Sequence[int]) -> list[list[Any]]:
    """See ``SqlStore.job_rows``."""
    return sorted((list(row) for row in session.fetch_in(_BY_NUMBER, numbers)), key=lambda row: row[0])


def read_jobs(session: Session, where: JobFilter) -> list[Job]:
    """See ``Store.jobs``."""
    found = [job_of(row) for row in job_rows(session, where)]
    return [job for job in found if job.made_by == where.made_by] if where.made_by else found


def count_jobs(session: Session, where: JobFilter) -> dict[State, int]:
    """See ``Store.counts``."""
    query = select(jobs.c.state, func.count()).where(*conditions(where)).group_by(jobs.c.state)
    if states := _states(where):
        query = query.where(jobs.c.state.in_(states))
    if not where.ids:
        rows = list(session.rows(query))
    else:
        ids = sorted(set(resolve_ids(session, where.ids)))
        rows = session.in_chunks(query.where(jobs.c.id.in_(bindparam("values", expanding=True))), ids)
    counted: dict[State, int] = {}
    for state, number in rows:
        counted[State(state)] = counted.get(State(state), 0) + number
    return counted
