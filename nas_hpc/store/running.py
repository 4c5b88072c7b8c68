"""Transitions of jobs: claims, ends of attempts, adoption, kill, retry, and what follows for children."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from sqlalchemy import BindParameter, bindparam, or_, select

from nas_hpc.errors import LeaseLost, WrongCall
from nas_hpc.records import Job, ParentFailure
from nas_hpc.states import FINAL, RAN, RUNNABLE, Actor, Outcome, State, may_follow
from nas_hpc.store.adding import is_met
from nas_hpc.store.base import Claim, Finish, Finished
from nas_hpc.store.history import WITH_ATTEMPT, finished_of
from nas_hpc.store.leasing import asked_live, check_live
from nas_hpc.store.notices import FINISHED, JOBS
from nas_hpc.store.prepared import Query
from nas_hpc.store.rows import clean, job_of, place_text, result_values
from nas_hpc.store.schema import edges, events, jobs, leases
from nas_hpc.store.session import Session
from nas_hpc.store.statements import Statements

_values: BindParameter[Any] = bindparam("values", expanding=True)
_JOBS = select(jobs).where(jobs.c.id.in_(_values))
_TO_CLAIM = Query(_JOBS.with_for_update(skip_locked=True))
_TO_MOVE = Query(_JOBS.with_for_update())
_TO_FINISH = Query(WITH_ATTEMPT.where(jobs.c.id.in_(_values)).with_for_update(of=jobs))
_CHILD_EDGES = Query(
    select(edges.c.parent, edges.c.child, edges.c.failure).where(edges.c.parent.in_(_values))
)
_WAITING = Query(select(jobs).where(jobs.c.number.in_(_values), jobs.c.state == State.AWAITING_PARENTS.value))
_FAILED_WITH_PARENT = Query(
    select(jobs)
    .join(events, events.c.id == jobs.c.final_event)
    .where(
        jobs.c.number.in_(_values),
        jobs.c.state == State.FAILED.value,
        events.c.old == State.AWAITING_PARENTS.value,
    )
)
_LOST_PARENT = Query(
    select(edges.c.child)
    .join(jobs, jobs.c.number == edges.c.parent)
    .where(
        edges.c.child.in_(_values),
        or_(jobs.c.state == State.FAILED.value, jobs.c.state == State.USER_KILLED.value),
    )
    .distinct()
)

_RUNNING = State.RUNNING.value
_RUNNABLE = frozenset(state.value for state in RUNNABLE)
_FINAL = frozenset(state.value for state in FINAL)
_RAN = frozenset(state.value for state in RAN)
_LAUNCHER = Actor.LAUNCHER.value
_FAIL, _RUN = ParentFailure.FAIL.value, ParentFailure.RUN.value


Step = tuple[Any, State, str]
"""Row before, state after, message."""


@dataclass(slots=True)
class Moves:
    """Transitions to be written together; rows are those of ``schema.jobs`` as they were before."""

    moved: list[tuple[Any, State]] = field(default_factory=list)
    """(row, state after), one per job."""
    jobs: list[tuple[Any, ...]] = field(default_factory=list)
    events: list[tuple[Any, ...]] = field(default_factory=list)

    def add(self, row: Any, path: Sequence[State], actor: str, message: str, event: int, now: float) -> int:
        """The job of ``row`` enters the states of ``path``; events from number ``event`` on. The last one."""
        number, attempt, old = row.number, row.attempt, row.state
        for state in path:
            new = state.value
            self.events.append((event, number, now, old, new, actor, attempt, message))
            old = new
            event += 1
        lease = row.lease if old in _RAN else None
        self.jobs.append((old, lease, event - 1 if old in _FINAL else None, number))
        self.moved.append((row, path[-1]))
        return event - 1

    def write(self, session: Session, sql: Statements) -> None:
        """Write them, and what follows for children and their children."""
        follow = self._write_own(session, sql)
        while follow:
            follow = _single_steps(session, follow, _LAUNCHER)._write_own(session, sql)

    def _write_own(self, session: Session, sql: Statements) -> list[Step]:
        """The steps that follow."""
        changed = {row.number: (row, new) for row, new in self.moved if new in FINAL or row.state in _FINAL}
        links = session.fetch_in(_CHILD_EDGES, sorted(changed))
        session.many(sql.move, self.jobs)
        session.many(sql.insert_event, self.events)
        for row, new in self.moved:
            if new in FINAL and row.creator is not None:
                session.tell(FINISHED, row.creator)
            if new in RUNNABLE or new is State.USER_KILLED:
                session.tell(JOBS, row.workflow)
        return _consequences(session, sql, changed, links) if links else []


def _single_steps(session: Session, steps: Sequence[Step], actor: str) -> Moves:
    event = session.draw("events", len(steps))
    now = time.time()
    moves = Moves()
    for row, state, message in steps:
        event = moves.add(row, (state,), actor, message, event, now) + 1
    return moves


def move(session: Session, sql: Statements, steps: Sequence[Step], actor: Actor) -> None:
    """Write one transition for each step, and what follows from it."""
    if steps:
        _single_steps(session, steps, actor.value).write(session, sql)


def _consequences(
    session: Session, sql: Statements, changed: Mapping[int, tuple[Any, State]], links: Sequence[Any]
) -> list[Step]:
    """Keep the children's counts of unmet parents. Returns the steps of children that wait no longer: none of
    their parents is left, or one of them will not finish and they are to fail with it. ``changed``: row
    before and state after, by number; ``links``: their edges to children."""
    unmet: list[tuple[int, int]] = []
    lost: dict[int, tuple[str, str]] = {}
    for parent, child, failure in links:
        row, new = changed[parent]
        if difference := is_met(row.state, failure) - is_met(new.value, failure):
            unmet.append((difference, child))
        if new in FINAL and new is not State.JOB_FINISHED:
            message = f"its parent {row.name} ({row.id[:8]}) is {new.value}"
            lost.setdefault(child, (failure, message))
    session.many(sql.unmet, unmet)
    steps: list[Step] = []
    for row in session.fetch_in(_WAITING, sorted({child for _, child, _ in links})):
        failure, message = lost.get(row.number, (_RUN, ""))
        if failure == _FAIL:
            steps.append((row, State.FAILED, message))
        elif row.unmet == 0:
            steps.append((row, State.READY, f"{message}: it runs all the same" if message else ""))
    return steps


def claim(session: Session, sql: Statements, lease: str, claims: Sequence[Claim]) -> list[Job]:
    """See ``Store.claim``."""
    live = asked_live(session, lease)
    waiting = session.sending.ask_in(_TO_CLAIM, [one.job for one in claims])
    live()
    return _claim(session, sql, lease, claims, waiting())


def finish(session: Session, sql: Statements, lease: str, finishes: Sequence[Finish]) -> list[Finished]:
    """See ``Store.finish``."""
    live = asked_live(session, lease)
    running = session.sending.ask_in(_TO_FINISH, [one.job for one in finishes])
    live()
    return _finish(session, sql, lease, finishes, running())


def exchange(
    session: Session, sql: Statements, lease: str, finishes: Sequence[Finish], claims: Sequence[Claim]
) -> tuple[list[Finished], list[Job]]:
    """See ``Store.exchange``."""
    live = asked_live(session, lease)
    running = session.sending.ask_in(_TO_FINISH, [one.job for one in finishes])
    waiting = session.sending.ask_in(_TO_CLAIM, [one.job for one in claims])
    live()
    finished = _finish(session, sql, lease, finishes, running())
    found = {row.id: row for row in waiting()}
    became = [one.job for one in claims if one.job not in found or found[one.job].state not in _RUNNABLE]
    if finished and became:  # perhaps by what has just been finished
        found |= {row.id: row for row in session.fetch_in(_TO_CLAIM, became)}
    return finished, _claim(session, sql, lease, claims, list(found.values()))


def _claim(
    session: Session, sql: Statements, lease: str, claims: Sequence[Claim], found: Sequence[Any]
) -> list[Job]:
    """``found``: rows of ``_TO_CLAIM``."""
    rows = {row.id: row for row in found}
    now = time.time()
    won: list[tuple[Claim, Any]] = []
    for one in claims:
        row = rows.pop(one.job, None)
        if row is not None and row.state in _RUNNABLE:
            won.append((one, row))
    if not won:
        return []
    event = session.draw("events", len(won))
    job_rows, attempt_rows, event_rows = [], [], []
    nothing = (None,) * 8
    for one, row in won:
        number, attempt = row.number, row.attempt + 1
        job_rows.append((_RUNNING, lease, attempt, number))
        places = (place_text(one.nodes), place_text(one.cores), place_text(one.gpus))
        attempt_rows.append((number, attempt, lease, *places, now, *nothing))
        event_rows.append((event, number, now, row.state, _RUNNING, _LAUNCHER, attempt, ""))
        event += 1
    session.many(sql.insert_attempt, attempt_rows)  # before its job has a new row, which had to be locked
    session.many(sql.claim, job_rows)
    session.many(sql.insert_event, event_rows)
    return [job_of((*row[:7], _RUNNING, lease, row.attempt + 1, *row[10:])) for _, row in won]


def _finish(
    session: Session, sql: Statements, lease: str, finishes: Sequence[Finish], found: Sequence[Any]
) -> list[Finished]:
    """``found``: rows of ``_TO_FINISH``."""
    for one in finishes:
        check_path(one.job, State.RUNNING, one.path)
    rows = {row.id: row for row in found}
    current: list[tuple[Finish, Any]] = []
    for one in finishes:
        row = rows.get(one.job)
        if row is None or row.state != _RUNNING or row.lease != lease:
            continue
        if one.lease == lease and one.attempt == row.attempt:
            current.append((one, rows.pop(one.job)))
    if not current:
        return []
    event = session.draw("events", sum(len(one.path) for one, _ in current))
    now = time.time()
    moves = Moves()
    attempt_rows, after = [], []
    for one, row in current:
        order = moves.add(row, one.path, _LAUNCHER, clean(one.message), event, now)
        event = order + 1
        values = result_values(one.result, one.tail)
        attempt_rows.append((*values, row.number, one.attempt))
        state, kept, *_ = moves.jobs[-1]
        after.append(((*row[:7], state, kept, *row[9:21], *values), order))
    session.many(sql.end_attempt, attempt_rows)
    moves.write(session, sql)
    return [finished_of(values, order) for values, order in after]


def check_path(job: str, start: State, path: Sequence[State]) -> None:
    """Raise WrongCall unless a launcher may bring ``job`` from ``start`` along ``path``, without a claim."""
    way = [start, *path]
    by_launcher = all(may_follow(old, new, Actor.LAUNCHER) for old, new in pairwise(way))
    if not path or not by_launcher or State.RUNNING in path:
        said = " -> ".join(state.value for state in way)
        raise WrongCall(f"job {job[:8]} cannot go {said}: that is no path of states.TRANSITIONS")


def adopt(
    session: Session, sql: Statements, new: str, dead: str, pairs: Sequence[tuple[str, int]]
) -> list[tuple[str, int]]:
    """See ``Store.adopt``."""
    check_live(session, new)
    ended = session.rows(select(leases.c.ended).where(leases.c.id == dead))
    if not ended or not ended[0].ended:
        raise LeaseLost(f"the lease {dead[:8]!r} has not ended: its jobs are not to be adopted; end it first")
    rows = {row.id: row for row in session.fetch_in(_TO_MOVE, [job for job, _ in pairs])}
    won = []
    for job, attempt in pairs:
        row = rows.get(job)
        if row is None or row.state != _RUNNING or row.lease != dead or row.attempt != attempt:
            continue
        del rows[job]  # a pair that is named twice is won once
        session.many(sql.adopt_job, [(new, row.number)])
        session.many(sql.adopt_attempt, [(new, row.number, attempt)])
        won.append((job, attempt))
    return won


def set_state(
    session: Session, sql: Statements, ids: Iterable[str], state: State, actor: Actor, message: str
) -> list[Job]:
    """See ``Store.set_state``."""
    if state is State.RUNNING:
        raise WrongCall("a job becomes RUNNING by a claim only")
    message = clean(message)
    rows = session.fetch_in(_TO_MOVE, sorted(set(ids)))
    rows.sort(key=lambda row: row.number)
    allowed = [
        row
        for row in rows
        if may_follow(State(row.state), state, actor)
        and (row.state != _RUNNING or state is State.USER_KILLED)
    ]
    now = time.time()
    killed = (Outcome.KILLED.value, "{}", message, now, "")
    session.many(
        sql.kill_attempt, [(*killed, row.number, row.attempt) for row in allowed if row.state == _RUNNING]
    )
    if state is not State.RESTART_READY:
        move(session, sql, [(row, state, message) for row in allowed], actor)
    else:
        allowed = _retry(session, sql, allowed, actor, message)
    return [job_of(row) for row in allowed]


def _retry(session: Session, sql: Statements, rows: Sequence[Any], actor: Actor, message: str) -> list[Any]:
    """RESTART_READY for those whose parents are done. The others wait for them again: among them children of
    jobs that were done and are retried in the same call. Returns these rows and those of children that had
    failed with them, as they were."""
    again = {row.number: row.state for row in rows}
    reopened: dict[int, int] = {}
    for parent, child, failure in session.fetch_in(_CHILD_EDGES, sorted(again)):
        if is_met(again[parent], failure):
            reopened[child] = reopened.get(child, 0) + 1
    targets = []
    for row in rows:
        waits = row.unmet + reopened.get(row.number, 0) > 0
        state = State.AWAITING_PARENTS if waits else State.RESTART_READY
        if may_follow(State(row.state), state, actor):
            targets.append((row, state, message))
    move(session, sql, targets, actor)
    children = _reopen(session, sql, [row for row, _, _ in targets], actor) if targets else []
    return sorted([*rows, *children], key=lambda row: row.number)


def _reopen(session: Session, sql: Statements, retried: Sequence[Any], actor: Actor) -> list[Any]:
    """Children that failed because a parent did wait again if none of their parents is failed any more; then
    theirs. Returns their rows as they were."""
    found: list[Any] = []
    front = {row.number: row for row in retried}
    while front:
        links = session.fetch_in(_CHILD_EDGES, sorted(front))
        parent_of = {child: front[parent] for parent, child, failure in links if failure == _FAIL}
        children = session.fetch_in(_FAILED_WITH_PARENT, sorted(parent_of))
        numbers = sorted(row.number for row in children)
        lost = {row.child for row in session.fetch_in(_LOST_PARENT, numbers)}
        front = {row.number: row for row in children if row.number not in lost}
        steps = []
        for number, row in front.items():
            parent = parent_of[number]
            message = f"its parent {parent.name} ({parent.id[:8]}) was retried"
            steps.append((row, State.AWAITING_PARENTS, message))
        move(session, sql, steps, actor)
        found += front.values()
    return found
