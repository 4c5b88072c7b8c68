"""Changes of jobs that do not run, and their removal."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from sqlalchemy import BindParameter, bindparam, delete, insert, select, update

from nas_hpc.errors import WrongCall
from nas_hpc.records import Job
from nas_hpc.states import RUNNABLE, Actor, State
from nas_hpc.store.adding import Parents, check_text, is_met, refuse_cycle
from nas_hpc.store.base import JobFilter
from nas_hpc.store.notices import EDITED
from nas_hpc.store.prepared import LONGEST, Query
from nas_hpc.store.reading import job_rows
from nas_hpc.store.rows import job_body, job_of
from nas_hpc.store.running import move
from nas_hpc.store.schema import attempts, edges, events, jobs, requests
from nas_hpc.store.session import Session
from nas_hpc.store.statements import Statements

_values: BindParameter[Any] = bindparam("values", expanding=True)
_BY_ID = Query(select(jobs).where(jobs.c.id.in_(_values)).with_for_update())
_BY_CREATOR = Query(select(jobs).where(jobs.c.creator.in_(_values)).with_for_update())
_CHILDREN = Query(select(edges.c.parent, edges.c.child).where(edges.c.parent.in_(_values)))
_PARENT_IDS = Query(
    select(edges.c.child, jobs.c.id, jobs.c.name)
    .join(jobs, jobs.c.number == edges.c.parent)
    .where(edges.c.child.in_(_values))
)
_NUMBERS = Query(select(jobs.c.number, jobs.c.id, jobs.c.name).where(jobs.c.id.in_(_values)))


def modify(session: Session, sql: Statements, changed: Sequence[Job]) -> None:
    """See ``Store.modify``."""
    rows = {row.id: row for row in session.fetch_in(_BY_ID, [job.id for job in changed])}
    regrown: list[Job] = []
    for job in changed:
        check_text(job)
        row = rows.get(job.id)
        if row is None:
            raise WrongCall(f"there is no job {job.id} ({job.name}); see: nas-hpc ls jobs")
        if row.state == State.RUNNING.value:
            raise WrongCall(
                f"job {row.name!r} ({row.id[:8]}) is RUNNING: kill it before changing it, or wait"
            )
        old = job_of(row)
        if (job.parents, job.stages.on_parent_failure) != (old.parents, old.stages.on_parent_failure):
            regrown.append(job)
        kept = Job(
            old.id, job.name, old.workflow, old.application, job.args, job.environ, old.origin, job.resources,
            old.evaluation, job.parents, old.creator, old.seq, job.retries, job.data, old.made_by, job.stages,
        )  # fmt: skip
        session.change(
            update(jobs).where(jobs.c.number == row.number).values(name=job.name, body=job_body(kept))
        )
        session.tell(EDITED, row.workflow)
    if regrown:
        _regrow(session, sql, regrown)


def _regrow(session: Session, sql: Statements, changed: Sequence[Job]) -> None:
    """New parents: edges, count of unmet ones, and the state that follows."""
    parents = Parents(session, changed)
    rows = {row.id: row for row in session.fetch_in(_BY_ID, [job.id for job in changed])}
    parents.know({row.id: (row.number, row.state) for row in rows.values()})
    message = "its parents were changed"
    moves = []
    for job in changed:
        row = rows[job.id]
        links = parents.links(job)
        session.change(delete(edges).where(edges.c.child == row.number))
        failure = job.stages.on_parent_failure.value
        session.many(sql.insert_edge, [(parent, row.number, failure) for parent, _ in links])
        unmet = sum(not is_met(state, failure) for _, state in links)
        session.change(update(jobs).where(jobs.c.number == row.number).values(unmet=unmet))
        state = State(row.state)
        if unmet and state in RUNNABLE:
            moves.append((row, State.AWAITING_PARENTS, message))
        elif not unmet and state is State.AWAITING_PARENTS:
            moves.append((row, State.READY, message))
    _refuse_grown_cycle(session, [rows[job.id] for job in changed])
    move(session, sql, moves, Actor.COMMAND)


def _refuse_grown_cycle(session: Session, rows: Sequence[Any]) -> None:
    """Follow the edges upward from the changed jobs, a generation at a time."""
    ids = {row.number: row.id for row in rows}
    names = {row.id: f"{row.name} ({row.id[:8]})" for row in rows}
    graph: dict[str, tuple[str, ...]] = {}
    frontier = dict(ids)
    while frontier:
        found: dict[str, list[str]] = {one: [] for one in frontier.values()}
        for child, parent, name in session.fetch_in(_PARENT_IDS, sorted(frontier)):
            found[frontier[child]].append(parent)
            names[parent] = f"{name} ({parent[:8]})"
        graph |= {child: tuple(parents) for child, parents in found.items()}
        above = sorted({parent for parents in found.values() for parent in parents if parent not in graph})
        frontier = {row.number: row.id for row in session.fetch_in(_NUMBERS, above)}
    refuse_cycle(graph, names)


def remove(session: Session, where: JobFilter) -> list[Job]:
    """See ``Store.remove``."""
    rows = {row.number: row for row in job_rows(session, where)}
    creators = [row.id for row in rows.values()]
    while creators:  # an evaluation could itself have asked for more
        found = [row for row in session.fetch_in(_BY_CREATOR, creators) if row.number not in rows]
        rows |= {row.number: row for row in found}
        creators = [row.id for row in found]
    for row in rows.values():
        if row.state == State.RUNNING.value:
            raise WrongCall(f"job {row.name!r} ({row.id[:8]}) is RUNNING; first: nas-hpc kill {row.id[:8]}")
    numbers = sorted(rows)
    for parent, child in session.fetch_in(_CHILDREN, numbers):
        if child not in rows:
            row = rows[parent]
            raise WrongCall(
                f"job {row.name!r} ({row.id[:8]}) is a parent of jobs that stay; remove those too"
            )
    for start in range(0, len(numbers), LONGEST):
        values = {"values": numbers[start : start + LONGEST]}
        for statement in (
            delete(edges).where(edges.c.child.in_(_values)),
            delete(attempts).where(attempts.c.job.in_(_values)),
        ):
            session.change(statement, values)
    for start in range(0, len(numbers), LONGEST):  # jobs before events: a trigger keeps the events of a job
        values = {"values": numbers[start : start + LONGEST]}
        session.change(delete(jobs).where(jobs.c.number.in_(_values)), values)
        session.change(delete(events).where(events.c.job.in_(_values)), values)
    for workflow in dict.fromkeys(row.workflow for row in rows.values()):
        session.tell(EDITED, workflow)
    return [job_of(rows[number]) for number in numbers]


def first_time(session: Session, request: str) -> bool:
    """See ``Store.first_time``."""
    if session.rows(select(requests.c.id).where(requests.c.id == request)):
        return False
    session.change(insert(requests).values(id=request, time=time.time()))
    return True


def forget_requests(session: Session, before: float, spare: Sequence[str]) -> None:
    """See ``Store.forget_requests``."""
    old = session.rows(select(requests.c.id).where(requests.c.time < before))
    gone = sorted({row.id for row in old}.difference(spare))
    for start in range(0, len(gone), LONGEST):
        values = {"values": gone[start : start + LONGEST]}
        session.change(delete(requests).where(requests.c.id.in_(_values)), values)
