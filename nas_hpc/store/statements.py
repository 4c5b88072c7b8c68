"""The statements that run thousands of times per second, compiled once and executed with plain tuples.

``connection.execute(statement, [dict, ...])`` spends more time per row than SQLite takes to insert it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
    bulk: Mapping[str, str]  # for some of these, on a server: the same for many rows, see ``Bulk``


class Bulk:
    """Statements that do for many rows what one of ``Statements`` does for one. Their parameters are columns:
    a JSON list for each parameter of the other. A server takes half as long for such a statement as for the
    rows one by one; SQLite has no use for it."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.texts: dict[str, str] = {}

    def _type(self, table: Table, name: str) -> str:
        text = str(table.columns[name].type.compile(self._engine.dialect))
        return text.partition(" COLLATE")[0]

    @staticmethod
    def _rows(names: Sequence[str]) -> str:
        columns = ", ".join(f'"{name}"' for name in names)
        lists = ", ".join(["json_array_elements_text(%s::json)"] * len(names))
        return f"ROWS FROM ({lists}) AS v({columns})"

    def insert(self, sql: str, table: Table, names: Sequence[str], fixed: Mapping[str, str]) -> None:
        """For one whose parameters are ``names``, and whose other columns have the values ``fixed``."""
        columns = ", ".join(f'"{column.name}"' for column in table.columns)
        values = ", ".join(
            fixed.get(column.name) or f'v."{column.name}"::{self._type(table, column.name)}'
            for column in table.columns
        )
        self.texts[sql] = f"INSERT INTO {table.name} ({columns}) SELECT {values} FROM {self._rows(names)}"

    def update(self, sql: str, table: Table, names: Sequence[str], keys: Mapping[str, str]) -> None:
        """For one that sets the columns ``names`` where each of ``keys``, by parameter, has its value. No row
        may be named twice."""
        values = ", ".join(f'"{name}" = v."{name}"::{self._type(table, name)}' for name in names)
        where = " AND ".join(
            f'{table.name}."{name}" = v."{key}"::{self._type(table, name)}' for key, name in keys.items()
        )
        rows = self._rows([*names, *keys])
        self.texts[sql] = f"UPDATE {table.name} SET {values} FROM {rows} WHERE {where}"


def statements(engine: Engine) -> Statements:
    """Compile them for ``engine``, whose parameter style has to be a positional one."""

    def text(statement: Insert | Update, order: list[str]) -> str:
        compiled = statement.compile(engine, column_keys=None)
        found = list(getattr(compiled, "positiontup", None) or [])
        if found != order:
            raise RuntimeError(f"parameters come as {found}, expected {order}")
        return str(compiled)

    bulk = Bulk(engine)

    def whole(table: Table, **fixed: Any) -> str:
        names = [column.name for column in table.columns if column.name not in fixed]
        sql = text(insert(table).values({name: bindparam(name) for name in names} | fixed), names)
        bulk.insert(sql, table, names, {name: str(value.compile(engine)) for name, value in fixed.items()})
        return sql

    job: Any = bindparam("_job")
    attempt: Any = bindparam("_attempt")
    this_attempt = (attempts.c.job == job) & (attempts.c.number == attempt)
    this_job: Any = jobs.c.number == job

    def change(table: Table, where: Any, names: tuple[str, ...], keys: list[str], **fixed: Any) -> str:
        values = {name: bindparam(name) for name in names} | fixed
        return text(update(table).where(where).values(values), [*names, *keys])

    of_attempt = {"_job": "job", "_attempt": "number"}
    result = Statements(
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
        bulk=bulk.texts if engine.dialect.name == "postgresql" else {},
    )  # fmt: skip
    bulk.update(result.claim, jobs, ("state", "lease", "attempt"), {"_job": "number"})
    bulk.update(result.move, jobs, ("state", "lease", "final_event"), {"_job": "number"})
    bulk.update(result.end_attempt, attempts, RESULT_COLUMNS, of_attempt)
    return result
