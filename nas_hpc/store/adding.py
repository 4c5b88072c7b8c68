"""Insertion of jobs: idempotent by (creator, seq) and by id, parents checked, one event each."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import BindParameter, bindparam, select

from nas_hpc.errors import WrongCall
from nas_hpc.records import Attempt, Job, ParentFailure, Result
from nas_hpc.states import FINAL, Actor, Outcome, State
from nas_hpc.store.base import Finished
from nas_hpc.store.history import finished_by_id
from nas_hpc.store.notices import FINISHED, JOBS
from nas_hpc.store.prepared import Query
from nas_hpc.store.rows import clean, job_body, job_of, result_values, stored_job
from nas_hpc.store.schema import apps, jobs
from nas_hpc.store.session import Session
from nas_hpc.store.statements import Statements

_values: BindParameter[Any] = bindparam("values", expanding=True)
_BY_ID = Query(select(jobs).where(jobs.c.id.in_(_values)))
_OF_CREATOR = select(jobs).where(jobs.c.creator == bindparam("creator"))
_BY_SEQ = Query(_OF_CREATOR.where(jobs.c.seq.between(bindparam("low"), bindparam("high"))))
_SEQS = Query(_OF_CREATOR.where(jobs.c.seq.in_(_values)))
_PARENTS = Query(select(jobs.c.id, jobs.c.number, jobs.c.state).where(jobs.c.id.in_(_values)))
_READY = State.READY.value
_AWAITING = State.AWAITING_PARENTS.value
_CREATED = State.CREATED.value
_FINISHED = State.JOB_FINISHED.value
_FINAL = frozenset(state.value for state in FINAL)
_RUN = ParentFailure.RUN.value

LARGEST = 2**63 - 1
"""Number that a column takes."""

SHOWN = 8
"""Of a long cycle so many jobs are named at its beginning, and at its end."""

Key = tuple[str, int] | str
"""What makes a job the same when it is sent again: (creator, seq), or the id of a job of a person."""


def add_jobs(session: Session, sql: Statements, new: Sequence[Job], actor: Actor) -> list[Job]:
    """See ``Store.add_jobs``."""
    keys, fresh, known = _split(session, new)
    stored = {key: job_of(row) for key, row in known.items()}
    if fresh:
        _check_applications(session, fresh.values())
        stored |= zip(fresh, _insert(session, sql, list(fresh.values()), actor), strict=True)
    return [stored[key] for key in keys]


def _insert(session: Session, sql: Statements, fresh: Sequence[Job], actor: Actor) -> list[Job]:
    parents = Parents(session, fresh)
    number, event = session.draw("jobs", len(fresh)), session.draw("events", len(fresh))
    parents.place(fresh, number)
    now = time.time()
    by = actor.value
    job_rows, event_rows, edge_rows, stored = [], [], [], []
    for job in fresh:
        unmet = 0
        if job.parents:
            links = parents.links(job)
            failure = job.stages.on_parent_failure.value
            unmet = sum(not is_met(state, failure) for _, state in links)
            edge_rows += [(parent, number, failure) for parent, _ in links]
        state, text = (State.AWAITING_PARENTS, _AWAITING) if unmet else (State.READY, _READY)
        created = job.created or now
        job_rows.append(_row(number, job, text, unmet, created, None))
        event_rows.append((event, number, now, _CREATED, text, by, 0, ""))
        stored.append(stored_job(job, state, created))
        number += 1
        event += 1
    session.many(sql.insert_job, job_rows)
    session.many(sql.insert_event, event_rows)
    session.many(sql.insert_edge, edge_rows)
    for workflow in dict.fromkeys(job.workflow for job in stored):
        session.tell(JOBS, workflow)
    return stored


def add_finished(session: Session, sql: Statements, new: Sequence[tuple[Job, Result]]) -> list[Finished]:
    """See ``Store.add_finished``. The result stands in an attempt number 0 that no lease made."""
    keys, fresh, known = _split(session, [job for job, _ in new])
    stored: dict[Key, Finished] = {}
    if known:
        old = finished_by_id(session, [row.id for row in known.values()])
        stored |= {key: old[row.id] for key, row in known.items()}
    if fresh:
        results = {job.id: result for job, result in new}
        pairs = [(job, results[job.id]) for job in fresh.values()]
        stored |= zip(fresh, _insert_finished(session, sql, pairs), strict=True)
    return [stored[key] for key in keys]


def _insert_finished(
    session: Session, sql: Statements, fresh: Sequence[tuple[Job, Result]]
) -> list[Finished]:
    number, event = session.draw("jobs", len(fresh)), session.draw("events", len(fresh))
    now = time.time()
    job_rows, event_rows, attempt_rows, stored = [], [], [], []
    for job, result in fresh:
        created = job.created or now
        state = State.JOB_FINISHED if result.outcome is Outcome.OK else State.FAILED
        message = clean(result.reason)
        job_rows.append(_row(number, job, state.value, 0, created, event))
        event_rows.append((event, number, now, _CREATED, state.value, Actor.SEARCH.value, 0, message))
        attempt_rows.append((number, 0, "", "[]", "[]", "[]", now, *result_values(result, "")))
        attempt = Attempt(job.id, 0, "", claimed=now, result=result)
        stored.append(Finished(stored_job(job, state, created), attempt, event))
        number += 1
        event += 1
    session.many(sql.insert_job, job_rows)
    session.many(sql.insert_event, event_rows)
    session.many(sql.insert_attempt, attempt_rows)
    for creator in dict.fromkeys(one.job.creator for one in stored if one.job.creator):
        session.tell(FINISHED, creator)
    return stored


def check_text(job: Job) -> None:
    """Raise WrongCall for a name that not every database can hold."""
    for text in (job.name, job.workflow):
        if "\0" in text:
            raise WrongCall(f"{text[:60]!r} has a NUL character, which cannot be stored: leave it out")


def _row(
    number: int, job: Job, state: str, unmet: int, created: float, final_event: int | None
) -> tuple[Any, ...]:
    check_text(job)
    return (
        number, job.id, job.name, job.workflow, job.application or None, job.creator or None, job.seq or None,
        state, unmet, created, final_event, job_body(job),
    )  # fmt: skip


def _split(session: Session, new: Sequence[Job]) -> tuple[list[Key], dict[Key, Job], dict[Key, Any]]:
    """The key of each job, the jobs to be inserted, and the rows of those that exist already."""
    keys: list[Key] = []
    persons: list[str] = []
    ranges: dict[str, tuple[int, int]] = {}
    for job in new:
        creator, seq = job.creator, job.seq
        if creator and 0 < seq <= LARGEST:
            keys.append((creator, seq))
            low, high = ranges.get(creator, (seq, seq))
            ranges[creator] = (seq if seq < low else low, seq if seq > high else high)
        elif seq > LARGEST:
            raise WrongCall(
                f"job {job.name!r} cannot be stored: its seq is {seq}, at most {LARGEST} is right"
            )
        elif creator or seq:
            raise WrongCall(
                f"job {job.name!r} has creator {creator!r} and seq {seq}: both or none, seq from 1"
            )
        else:
            keys.append(job.id)
            persons.append(job.id)
    known: dict[Key, Any] = {row.id: row for row in session.fetch_in(_BY_ID, persons)}
    wanted = set(keys)
    for creator, (low, high) in ranges.items():
        if high - low < 2 * len(new):
            rows = session.fetch(_BY_SEQ, {"creator": creator, "low": low, "high": high})
        else:  # a few numbers far apart: what lies between them is not read
            seqs = [job.seq for job in new if job.creator == creator]
            rows = session.fetch_in(_SEQS, seqs, {"creator": creator})
        for row in rows:
            if (creator, row.seq) in wanted:
                known[creator, row.seq] = row
    fresh: dict[Key, Job] = {}
    for key, job in zip(keys, new, strict=True):  # a request may name one job twice: the first counts
        if key not in fresh and key not in known:
            fresh[key] = job
    return keys, fresh, known


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


def is_met(parent_state: str, failure: str) -> bool:
    """Whether a child whose policy is ``failure`` waits no longer for a parent in ``parent_state``."""
    return parent_state == _FINISHED or (failure == _RUN and parent_state in _FINAL)


class Parents:
    """The parents that new or changed jobs name: in the database, or among these jobs themselves."""

    def __init__(self, session: Session, new: Sequence[Job]) -> None:
        own = {job.id: job for job in new if job.parents}
        self._numbers: dict[str, int] = {}
        self._states: dict[str, str] = {}
        if not own:
            return
        among = {job.id for job in new}
        wanted = {parent for job in own.values() for parent in job.parents}
        for row in session.fetch_in(_PARENTS, sorted(wanted)):
            self._numbers[row.id] = row.number
            self._states[row.id] = row.state
        for job in own.values():
            for parent in job.parents:
                if parent not in self._numbers and parent not in among:
                    raise WrongCall(
                        f"job {job.name!r} names the parent {parent!r}, which does not exist; "
                        "see: nas-hpc ls jobs"
                    )
            if len(set(job.parents)) < len(job.parents):
                raise WrongCall(f"job {job.name!r} names a parent twice: {', '.join(job.parents)}")
        names = {job.id: f"{job.name} ({job.id[:8]})" for job in own.values()}
        refuse_cycle({job.id: job.parents for job in own.values()}, names)

    def place(self, new: Sequence[Job], first: int) -> None:
        """``new`` will be inserted with consecutive numbers from ``first``."""
        for offset, job in enumerate(new):
            self._numbers[job.id] = first + offset

    def know(self, rows: dict[str, tuple[int, str]]) -> None:
        """Jobs that are in the database already: number and state by id."""
        for id_, (number, state) in rows.items():
            self._numbers[id_] = number
            self._states[id_] = state

    def links(self, job: Job) -> list[tuple[int, str]]:
        """Number of each parent, and its state."""
        return [(self._numbers[parent], self._states.get(parent, _CREATED)) for parent in job.parents]


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
                circle[SHOWN:-SHOWN] = ["…"] if len(circle) > 2 * SHOWN else circle[SHOWN:-SHOWN]
                raise WrongCall(
                    f"the parents form a cycle: {' <- '.join(circle)}; a job cannot wait for itself"
                )
            elif job not in done:
                path.append(job)
                on_path.add(job)
                stack.append((job, True))
                stack.extend((parent, False) for parent in parents.get(job, ()))
