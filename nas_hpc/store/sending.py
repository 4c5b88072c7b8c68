"""The statements of a transaction. A server is sent each before it has answered the one before, until rows
are wanted: it works on them while the next are made. Where one fails, the rest is not carried out, and
``settle`` or the next rows that are wanted raise its error."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from typing import Any

from sqlalchemy import Engine

from nas_hpc.store.fast_json import write_finite
from nas_hpc.store.prepared import LONGEST, Prepared, Query, padded, takes_array

FEWEST = 4
"""Rows that are worth a statement for many."""

Fixed = Mapping[str, Any] | None
"""Parameters of a query beside its IN list, by name."""


def _columns(tuples: Sequence[tuple[Any, ...]]) -> list[str] | None:
    """The columns of these rows, each a JSON list; None if there is a number that JSON does not have."""
    try:
        return [write_finite(column) for column in zip(*tuples, strict=True)]
    except ValueError:
        return None


class Sending:
    """Executes statements with the driver's ``cursor``. ``pipeline(connection)`` has the driver's connection
    send ahead until it is left; None where the database has no such thing."""

    def __init__(self, engine: Engine, pipeline: Callable[[Any], AbstractContextManager[Any]] | None) -> None:
        self.cursor: Any = None
        """The driver's own, while there is a transaction."""
        self.bulk: Mapping[str, str] = {}
        """See ``Statements.bulk``."""
        self.writes = 0
        """Grows with every write: tells whether a part has begun to."""
        self._engine = engine
        self._arrays = takes_array(engine)
        self._prepared: dict[tuple[Query, int], Prepared] = {}
        self._pipeline = pipeline
        self._ahead: AbstractContextManager[Any] | None = None

    def _go_ahead(self) -> bool:
        """Whether what is executed now is sent ahead."""
        if self._ahead is None and self._pipeline is not None:
            ahead = self._pipeline(self.cursor.connection)
            ahead.__enter__()
            self._ahead = ahead
        return self._ahead is not None

    def settle(self) -> None:
        """Wait until all that was sent is done. Raises the error of the first statement that failed."""
        if self._ahead is not None:
            ahead, self._ahead = self._ahead, None
            ahead.__exit__(None, None, None)

    def give_up(self, errors: tuple[type[BaseException], ...]) -> None:
        """The same where ``errors`` are of no interest any more."""
        with suppress(*errors):
            self.settle()

    def fetch(self, query: Query, fixed: Fixed = None) -> list[Any]:
        """All rows of a prepared query without IN list."""
        return self._rows(self._send(query, (), fixed))

    def fetch_in(self, query: Query, values: Sequence[Any], fixed: Fixed = None) -> list[Any]:
        """All rows of a prepared query with an IN list, of any length."""
        if len(values) <= LONGEST:
            return self._rows(self._send(query, values, fixed)) if values else []
        chunks = range(0, len(values), LONGEST)
        return [
            row
            for start in chunks
            for row in self._rows(self._send(query, values[start : start + LONGEST], fixed))
        ]

    def ask(self, query: Query, fixed: Fixed = None) -> Callable[[], list[Any]]:
        """``fetch`` whose rows are wanted later: a server looks for them meanwhile."""
        return self._asked(query, [()], fixed)

    def ask_in(self, query: Query, values: Sequence[Any], fixed: Fixed = None) -> Callable[[], list[Any]]:
        """``fetch_in`` whose rows are wanted later."""
        chunks = [values[start : start + LONGEST] for start in range(0, len(values), LONGEST)]
        return self._asked(query, chunks, fixed)

    def _asked(self, query: Query, chunks: Sequence[Sequence[Any]], fixed: Fixed) -> Callable[[], list[Any]]:
        if chunks and self._go_ahead():
            sent = [self._send(query, values, fixed) for values in chunks]
            return lambda: [row for one in sent for row in self._rows(one)]
        rows = [row for values in chunks for row in self._rows(self._send(query, values, fixed))]
        return lambda: rows

    def _send(self, query: Query, values: Sequence[Any], fixed: Fixed) -> tuple[Prepared, Any]:
        size = min(len(values), 1) if self._arrays else padded(len(values))
        prepared = self._prepared.get((query, size))
        if prepared is None:
            prepared = self._prepared[query, size] = Prepared(query, self._engine, size)
        cursor = self.cursor if self._ahead is None else self.cursor.connection.cursor()
        prepared.execute(cursor, values, fixed)
        return prepared, cursor

    @staticmethod
    def _rows(sent: tuple[Prepared, Any]) -> list[Any]:
        prepared, cursor = sent
        return prepared.rows(cursor)

    def many(self, sql: str, tuples: Sequence[tuple[Any, ...]]) -> None:
        """Execute a statement of ``statements`` for each of ``tuples``."""
        if not tuples:
            return
        self.writes += len(tuples)
        self._go_ahead()
        if len(tuples) == 1:
            self.cursor.execute(sql, tuples[0])
        elif sql in self.bulk and len(tuples) >= FEWEST and (columns := _columns(tuples)) is not None:
            self.cursor.execute(self.bulk[sql], columns)
        else:
            self.cursor.executemany(sql, tuples)
