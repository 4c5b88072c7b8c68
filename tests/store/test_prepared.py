"""Prepared queries find what SQLAlchemy finds, whatever the length of their IN list."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import BindParameter, Engine, bindparam, create_engine, select

from nas_hpc.store import history, running
from nas_hpc.store.prepared import LONGEST, Prepared, Query, padded
from nas_hpc.store.schema import jobs
from nas_hpc.store.session import Session
from nas_hpc.store.sql import SqlStore
from tests.store.supply import add, person_job


@pytest.fixture
def session(store: SqlStore) -> Session:
    """That of a store with jobs, half of which wait for another."""
    (parent,) = add(store, person_job())
    add(store, *(person_job(parents=[parent] if number % 2 else []) for number in range(1200)))
    return store._session


_CASES: list[tuple[Query, Callable[[Any], Any]]] = [
    (history._BY_ID, lambda row: row.id),
    (running._WAITING, lambda row: row.number),
    (running._CHILD_EDGES, lambda row: row.number),
]


@pytest.mark.parametrize("count", [0, 1, 2, 3, 511, LONGEST, LONGEST + 1, 1100])
@pytest.mark.parametrize(("query", "key"), _CASES)
def test_rows_are_those_that_sqlalchemy_finds(
    session: Session, query: Query, key: Callable[[Any], Any], count: int
) -> None:
    with session.read():
        values: list[Any] = [
            key(row) for row in session.rows(select(jobs).order_by(jobs.c.number).limit(count))
        ]
        expected = session.in_chunks(query.statement, values) if values else []
        found = session.fetch_in(query, values)
    assert sorted(found) == sorted(map(tuple, expected))
    assert [row._asdict() for row in found] == [dict(row._mapping) for row in expected]


def test_the_length_of_a_list_is_the_next_power_of_two() -> None:
    assert [padded(count) for count in (0, 1, 2, 3, 5, 511, 512)] == [0, 1, 2, 4, 8, 512, 512]


def test_parameters_before_and_after_the_list_find_their_places(session: Session) -> None:
    values: BindParameter[Any] = bindparam("values", expanding=True)
    query = Query(
        select(jobs.c.number).where(
            jobs.c.workflow == bindparam("workflow"), jobs.c.number.in_(values), jobs.c.name == "job",
            jobs.c.unmet == bindparam("unmet"),
        )
    )  # fmt: skip
    with session.read():
        found = session.fetch_in(query, [2, 3, 4, 5, 9999], {"unmet": 1, "workflow": "W"})
        assert [row.number for row in found] == [3, 5]
        assert session.fetch_in(query, [3], {"unmet": 1, "workflow": "X"}) == []
        with pytest.raises(KeyError, match="unmet"):
            session.fetch_in(query, [3], {"workflow": "W"})


def test_a_query_that_uses_its_list_twice_is_refused() -> None:
    engine: Engine = create_engine("sqlite+pysqlite://")
    values: BindParameter[Any] = bindparam("values", expanding=True)
    query = Query(select(jobs.c.id).where(jobs.c.number.in_(values) | jobs.c.unmet.in_(values)))
    with pytest.raises(RuntimeError, match="parameters come as"):
        Prepared(query, engine, 4)
