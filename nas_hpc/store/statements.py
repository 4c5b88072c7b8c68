"""The statements that run thousands of times per second, compiled once and executed with plain tuples.

``connection.execute(statement, [dict, ...])`` spends more time per row than SQLite takes to insert it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Engine, Table, Update, bindparam, func, insert, literal_column, null, update
from sqlalchemy.sql.dml import Insert

from nas_hpc.store.schema import attempts, edges, events, jobs

RESULT_COLUMNS = ("outcome", "objective", "metadata", "reason", "return_code", "start", "end", "tail")
"""Columns of an attempt that ``rows.result_values`` gives."""


@dataclass(frozen=True, slots=True)
class Statements:
    """SQL text with positional parameters; the comment says which."""

    insert_job: str  # columns of jobs without lease and attempt
    insert_edge: str  # parent, child, failure
    insert_attempt: str  # columns of attempts
    insert_event: str  # columns of events
    claim: str  # state, lease, attempt, number
    move: str  # state, lease, final_event, number
    end_attempt: str  # RESULT_COLUMNS, job, attempt number
    kill_attempt: str  # outcome, metadata, reason, end, tail, job, attempt number; start: the claim
    adopt_job: str  # lease, number
    adopt_attempt: str  # lease, job, attempt number
    unmet: str  # difference, number


def statements(engine: Engine) -> Statements:
    """Compile them for ``engine``, whose parameter style has to be a positional one."""

    def text(statement: Insert | Update, order: list[str]) -> str:
        compiled = statement.compile(engine, column_keys=None)
        found = list(getattr(compiled, "positiontup", None) or [])
        if found != order:
            raise RuntimeError(f"parameters come as {found}, expected {order}")
        return str(compiled)

    def whole(table: Table, **fixed: Any) -> str:
        names = [column.name for column in table.columns if column.name not in fixed]
        return text(insert(table).values({name: bindparam(name) for name in names} | fixed), names)

    job: Any = bindparam("_job")
    attempt: Any = bindparam("_attempt")
    this_attempt = (attempts.c.job == job) & (attempts.c.number == attempt)
    this_job: Any = jobs.c.number == job

    def change(table: Table, where: Any, names: tuple[str, ...], keys: list[str], **fixed: Any) -> str:
        values = {name: bindparam(name) for name in names} | fixed
        return text(update(table).where(where).values(values), [*names, *keys])

    return Statements(
        insert_job=whole(jobs, lease=null(), attempt=literal_column("0")),
        insert_edge=whole(edges),
        insert_attempt=whole(attempts),
        insert_event=whole(events),
        claim=change(jobs, this_job, ("state", "lease", "attempt"), ["_job"]),
        move=text(
            update(jobs)
            .where(this_job)
            .values(
                state=bindparam("state"), lease=bindparam("lease"), final_event=bindparam("final_event")
            ),
            ["state", "lease", "final_event", "_job"],
        ),
        end_attempt=change(attempts, this_attempt, RESULT_COLUMNS, ["_job", "_attempt"]),
        kill_attempt=change(
            attempts, this_attempt, ("outcome", "metadata", "reason", "end", "tail"), ["_job", "_attempt"],
            start=func.coalesce(attempts.c.start, attempts.c.claimed),
        ),
        adopt_job=change(jobs, this_job, ("lease",), ["_job"]),
        adopt_attempt=change(attempts, this_attempt, ("lease",), ["_job", "_attempt"]),
        unmet=text(
            update(jobs).where(this_job).values(unmet=jobs.c.unmet + bindparam("difference")),
            ["difference", "_job"],
        ),
    )  # fmt: skip
