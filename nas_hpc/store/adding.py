"""Insertion of jobs: idempotent by (creator, seq) and by id, parents checked, one event each."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import bindparam, select

from nas_hpc.errors import WrongCall
from nas_hpc.records import Attempt, Job, Result
from nas_hpc.states import Actor, State
from nas_hpc.store.base import Finished
from nas_hpc.store.rows import job_body, job_of, result_values, stored_job
from nas_hpc.store.schema import apps, jobs
from nas_hpc.store.session import Session
from nas_hpc.store.statements import Statements

_BY_ID = select(jobs).where(jobs.c.id.in_(bindparam("values", expanding=True)))
_BY_SEQ = select(jobs).where(
    jobs.c.creator == bindparam("creator"), jobs.c.seq.between(bindparam("low"), bindparam("high"))
)
_PARENTS = select(jobs.c.id, jobs.c.number, jobs.c.state).where(
    jobs.c.id.in_(bindparam("values", expanding=True))
)
_READY = State.READY.value
_AWAITING = State.AWAITING_PARENTS.value
_CREATED = State.CREATED.value
_FINISHED = State.JOB_FINISHED.value


def add_jobs(session: Session, sql: Statements, new: Sequence[Job], actor: Actor) -> list[Job]:
    """See ``Store.add_jobs``."""
    fresh, known = _split(session, new)
    _check_applications(session, fresh)
    parents = Parents(session, fresh)
    number, event = _draw(session, len(fresh))
    now = time.time()
    job_rows, event_rows, edge_rows = [], [], []
    stored: dict[str, Job] = {}
    parents.place(fresh, number)
    for job in fresh:
        unmet = 0
        if job.parents:
            links = parents.links(job)
            unmet = sum(not finished for _, finished in links)
            edge_rows += [(parent, number) for parent, _ in links]
        state = State.AWAITING_PARENTS if unmet else State.READY
        created = job.created or now
        text = _AWAITING if unmet else _READY
        job_rows.append((
            number, job.id, job.name, job.workflow, job.application or None, job.creator or None, job.seq or None,
            text, None, 0, unmet, created, None, job_body(job),
        ))  # fmt: skip
        event_rows.append((event, number, now, _CREATED, text, actor.value, 0, ""))
        stored[job.id] = stored_job(job, state, created)
        number += 1
        event += 1
    session.many(sql.insert_job, job_rows)
    session.many(sql.insert_event, event_rows)
    session.many(sql.insert_edge, edge_rows)
    return [known[index] if index in known else stored[job.id] for index, job in enumerate(new)]


def add_finished(session: Session, sql: Statements, new: Sequence[tuple[Job, Result]]) -> list[Finished]:
    """See ``Store.add_finished``. The result stands in an attempt number 0 that no lease made."""
    fresh, known = _split(session, [job for job, _ in new])
    results = {job.id: result for job, result in new}
    number, event = _draw(session, len(fresh))
    now = time.time()
    job_rows, event_rows, attempt_rows = [], [], []
    stored: dict[str, Finished] = {}
    for job in fresh:
        result = results[job.id]
        created = job.created or now
        job_rows.append((
            number, job.id, job.name, job.workflow, job.application or None, job.creator or None, job.seq or None,
            _FINISHED, None, 0, 0, created, event, job_body(job),
        ))  # fmt: skip
        event_rows.append((event, number, now, _CREATED, _FINISHED, Actor.SEARCH.value, 0, ""))
        attempt_rows.append((number, 0, "", "[]", "[]", "[]", now, *result_values(result, "")))
        attempt = Attempt(job.id, 0, "", claimed=now, result=result)
        stored[job.id] = Finished(stored_job(job, State.JOB_FINISHED, created), attempt, event)
        number += 1
        event += 1
    session.many(sql.insert_job, job_rows)
    session.many(sql.insert_event, event_rows)
    session.many(sql.insert_attempt, attempt_rows)
    old = _as_finished(session, [job.id for job in known.values()])
    return [old[known[index].id] if index in known else stored[job.id] for index, (job, _) in enumerate(new)]


def _as_finished(session: Session, ids: Sequence[str]) -> dict[str, Finished]:
    from nas_hpc.store.history import finished_by_id

    return finished_by_id(session, ids) if ids else {}


def _draw(session: Session, count: int) -> tuple[int, int]:
    """The first numbers of ``count`` new jobs and events."""
    return (session.draw("jobs", count), session.draw("events", count)) if count else (0, 0)


def _split(session: Session, new: Sequence[Job]) -> tuple[list[Job], dict[int, Job]]:
    """The jobs to be inserted, and those that exist already by their position in ``new``."""
    by_seq = _existing_by_seq(session, new)
    by_id = {row.id: row for row in session.in_chunks(_BY_ID, [job.id for job in new if not job.creator])}
    fresh: list[Job] = []
    known: dict[int, Job] = {}
    seen: dict[tuple[str, int] | str, Job] = {}  # a request may name one job twice
    for index, job in enumerate(new):
        if (job.creator == "") != (job.seq == 0) or job.seq < 0:
            raise WrongCall(
                f"job {job.name!r} has creator {job.creator!r} and seq {job.seq}: both or none, seq from 1"
            )
        key: tuple[str, int] | str = (job.creator, job.seq) if job.creator else job.id
        row = by_seq.get((job.creator, job.seq)) if job.creator else by_id.get(job.id)
        if row is not None:
            known[index] = job_of(row)
        elif key in seen:
            first = seen[key]
            if first.id != job.id:
                raise WrongCall(f"jobs {first.id} and {job.id} of one request have both seq {job.seq}")
        else:
            seen[key] = job
            fresh.append(job)
    return fresh, known


def _existing_by_seq(session: Session, new: Sequence[Job]) -> dict[tuple[str, int], Any]:
    ranges: dict[str, tuple[int, int]] = {}
    for job in new:
        if job.creator:
            low, high = ranges.get(job.creator, (job.seq, job.seq))
            ranges[job.creator] = (min(low, job.seq), max(high, job.seq))
    found: dict[tuple[str, int], Any] = {}
    wanted = {(job.creator, job.seq) for job in new}
    for creator, (low, high) in ranges.items():
        for row in session.rows(_BY_SEQ, {"creator": creator, "low": low, "high": high}):
            if (creator, row.seq) in wanted:
                found[creator, row.seq] = row
    return found


def _check_applications(session: Session, new: Iterable[Job]) -> None:
    wanted = {job.application: job.name for job in new if job.application}
    if not wanted:
        return
    have = {row.name for row in session.rows(select(apps.c.name))}
    for application, name in wanted.items():
        if application not in have:
            known = ", ".join(sorted(have)) or "none"
            raise WrongCall(
                f"job {name!r} wants the unknown application {application!r}; known: {known}; "
                f"register it with: nas-hpc app --name {application} --exec PROGRAM"
            )


class Parents:
    """The parents that new or changed jobs name: in the database, or among these jobs themselves."""

    def __init__(self, session: Session, new: Sequence[Job]) -> None:
        own = {job.id: job for job in new if job.parents}
        self._numbers: dict[str, int] = {}
        self._finished: dict[str, bool] = {}
        if not own:
            return
        among = {job.id for job in new}
        wanted = {parent for job in own.values() for parent in job.parents}
        for row in session.in_chunks(_PARENTS, sorted(wanted)):
            self._numbers[row.id] = row.number
            self._finished[row.id] = row.state == _FINISHED
        for job in own.values():
            for parent in job.parents:
                if parent not in self._numbers and parent not in among:
                    raise WrongCall(
                        f"job {job.name!r} names the parent {parent!r}, which does not exist; see: nas-hpc ls jobs"
                    )
            if len(set(job.parents)) < len(job.parents):
                raise WrongCall(f"job {job.name!r} names a parent twice: {', '.join(job.parents)}")
        refuse_cycle(
            {job.id: job.parents for job in own.values()}, {job.id: job.name for job in own.values()}
        )

    def place(self, new: Sequence[Job], first: int) -> None:
        """``new`` will be inserted with consecutive numbers from ``first``."""
        for offset, job in enumerate(new):
            self._numbers[job.id] = first + offset

    def know(self, rows: dict[str, tuple[int, str]]) -> None:
        """Jobs that are in the database already: number and state by id."""
        for id_, (number, state) in rows.items():
            self._numbers[id_] = number
            self._finished[id_] = state == _FINISHED

    def links(self, job: Job) -> list[tuple[int, bool]]:
        """Number of each parent, and whether it is finished."""
        return [(self._numbers[parent], self._finished.get(parent, False)) for parent in job.parents]


def refuse_cycle(parents: dict[str, tuple[str, ...]], names: dict[str, str]) -> None:
    """Raise WrongCall if following ``parents`` from a job leads back to it. Linear, without recursion."""
    done: set[str] = set()
    for start in parents:
        path: list[str] = []
        on_path: set[str] = set()
        stack: list[tuple[str, bool]] = [(start, False)]
        while stack:
            job, leaving = stack.pop()
            if leaving:
                path.pop()
                on_path.discard(job)
                done.add(job)
            elif job in on_path:
                circle = [names.get(one, one[:8]) for one in (*path[path.index(job) :], job)]
                raise WrongCall(
                    f"the parents form a cycle: {' <- '.join(circle)}; a job cannot wait for itself"
                )
            elif job not in done:
                path.append(job)
                on_path.add(job)
                stack.append((job, True))
                stack.extend((parent, False) for parent in parents.get(job, ()))
