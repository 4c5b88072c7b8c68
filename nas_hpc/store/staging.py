"""Jobs held for what is done before and after their attempts: linked files, scripts.

A held job carries the launcher's lease, as a RUNNING one does, in the state in which it waits. So another
launcher leaves it alone while that lease lives, takes it when the lease has ended, and a launcher whose lease
is gone moves nothing.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from sqlalchemy import BindParameter, bindparam, select

from nas_hpc.records import Job
from nas_hpc.states import RAN, Actor, State
from nas_hpc.store.base import Advance, Finished
from nas_hpc.store.history import WITH_ATTEMPT, finished_of
from nas_hpc.store.leasing import check_live
from nas_hpc.store.prepared import Query
from nas_hpc.store.rows import clean, job_of
from nas_hpc.store.running import Moves, check_path
from nas_hpc.store.schema import jobs, leases
from nas_hpc.store.session import Session
from nas_hpc.store.statements import Statements

_values: BindParameter[Any] = bindparam("values", expanding=True)
_TO_HOLD = Query(select(jobs).where(jobs.c.id.in_(_values)).with_for_update())
_TO_ADVANCE = Query(WITH_ATTEMPT.where(jobs.c.id.in_(_values)).with_for_update(of=jobs))
_ENDED = Query(select(leases.c.id).where(leases.c.id.in_(_values), leases.c.ended != 0))
_HOLDABLE = frozenset(state.value for state in (State.READY, State.RESTART_READY, *RAN))


def hold(session: Session, sql: Statements, lease: str, ids: Sequence[str]) -> list[Job]:
    """See ``Store.hold``."""
    check_live(session, lease)
    rows = {row.id: row for row in session.fetch_in(_TO_HOLD, ids) if row.state in _HOLDABLE}
    others = sorted({row.lease for row in rows.values() if row.lease not in (None, lease)})
    free = {None, lease, *(row.id for row in session.fetch_in(_ENDED, others))}
    won = [rows[one] for one in dict.fromkeys(ids) if one in rows and rows[one].lease in free]
    session.many(sql.adopt_job, [(lease, row.number) for row in won])
    return [job_of((*row[:8], lease, *row[9:])) for row in won]


def advance(session: Session, sql: Statements, lease: str, steps: Sequence[Advance]) -> list[Finished]:
    """See ``Store.advance``."""
    check_live(session, lease)
    for one in steps:
        check_path(one.job, one.state, one.path)
    rows = {row.id: row for row in session.fetch_in(_TO_ADVANCE, [one.job for one in steps])}
    current = []
    for one in steps:
        row = rows.get(one.job)
        if row is None or (row.lease, row.state, row.attempt) != (lease, one.state.value, one.attempt):
            continue
        current.append((one, rows.pop(one.job)))
    if not current:
        return []
    event = session.draw("events", sum(len(one.path) for one, _ in current))
    now = time.time()
    moves, finished = Moves(), []
    for one, row in current:
        order = moves.add(row, one.path, Actor.LAUNCHER.value, clean(one.message), event, now)
        event = order + 1
        state, kept, *_ = moves.jobs[-1]
        finished.append(finished_of((*row[:7], state, kept, *row[9:]), order))
    moves.write(session, sql)
    return finished
