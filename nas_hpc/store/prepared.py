"""Queries that run thousands of times per second: compiled once, on SQLite for each length of their IN list.

Executing a SQLAlchemy statement, even a compiled and cached one, takes several times as long as SQLite takes
to answer it. So what is asked at every evaluation is text and plain tuples, made by SQLAlchemy beforehand.
"""

from __future__ import annotations

import re
from collections import namedtuple
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import Engine, Select
from sqlalchemy.engine.interfaces import DBAPICursor

LONGEST = 512
"""Most values in one IN list: SQLite before 3.32 takes 999 parameters."""

_IN_LIST = re.compile(r'IN \(%s::(\w+)(?: COLLATE "C")?\)')

VALUES = "values"
"""The parameter of a query that is its IN list."""


class Query:
    """A query that a module holds as a constant. Its columns need no conversion; its IN list, if it has one,
    is the expanding parameter ``values``. What it finds are named tuples with the columns' names."""

    def __init__(self, statement: Select[Any]) -> None:
        self.statement = statement
        make_type: Any = namedtuple  # mypy wants names that are spelled out
        row = make_type("Row", statement.selected_columns.keys())
        self.make: Callable[[Iterable[Any]], Any] = row._make


class Prepared:
    """A query for an engine with positional parameters and for IN lists of ``size`` values.

    A server gets the list as one array, so that it plans once, and the driver parses the text once, for all
    lengths; ``size`` is 1 then.
    """

    def __init__(self, query: Query, engine: Engine, size: int) -> None:
        compiled: Any = query.statement.compile(engine)
        given: dict[str, Any] = compiled.params
        state = compiled.construct_expanded_state(given | ({VALUES: [None] * size} if size else {}))
        names = list(state.positiontup or ())
        inside = set(state.parameter_expansion.get(VALUES, ()))
        before = next((place for place, name in enumerate(names) if name in inside), len(names))
        if len(inside) != size or [name in inside for name in names[before:]].count(True) != size:
            raise RuntimeError(f"parameters come as {names}, expected {size} values once")
        self._make = query.make
        self._size = size
        self._sql: str = state.statement
        self._array = bool(size) and takes_array(engine)
        if self._array:
            self._sql, lists = _IN_LIST.subn(r"= ANY(%s::\1[])", self._sql)
            if lists != 1:
                raise RuntimeError(f"expected one IN list in {self._sql}")
        self._given = {name: value for name, value in given.items() if value is not None}
        self._before = names[:before]
        self._after = names[before + size :]

    def execute(self, cursor: DBAPICursor, values: Sequence[Any], fixed: Mapping[str, Any] | None) -> None:
        """Ask for the rows of at most ``size`` values, or an array; where there are fewer, the last is
        repeated."""
        parameters = [list(values)] if self._array else values
        if missing := self._size - len(parameters):
            parameters = [*values, *[values[-1]] * missing]
        if self._before or self._after:
            given = {**self._given, **fixed} if fixed else self._given
            head = [given[name] for name in self._before]
            parameters = [*head, *parameters, *[given[name] for name in self._after]]
        cursor.execute(self._sql, parameters)

    def rows(self, cursor: DBAPICursor) -> list[Any]:
        """All that was asked for."""
        return list(map(self._make, cursor.fetchall()))


def takes_array(engine: Engine) -> bool:
    """Whether the database of ``engine`` takes a list as one parameter."""
    return engine.dialect.name == "postgresql"


def padded(count: int) -> int:
    """The size of IN list, a power of two, that takes ``count`` values."""
    return 1 << (count - 1).bit_length() if count else 0
