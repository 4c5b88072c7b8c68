"""One connection to the database: transactions that nest, numbers, errors made readable."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Protocol

from sqlalchemy import Connection, Engine, Executable, Transaction, select, update
from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from nas_hpc.errors import NasHpcError, StoreError, WrongCall
from nas_hpc.store import schema

CHUNK = 500
"""Most values in one IN list: SQLite before 3.32 takes 999 parameters."""

_DATABASE_ERRORS = (SQLAlchemyError, sqlite3.Error)


class Dialect(Protocol):
    """What differs between databases."""

    read_only: bool

    def begin(self, connection: Connection, *, write: bool) -> None:
        """Prepare ``connection`` for its next transaction. One that writes must wait for its turn here, not in
        the middle: two readers that both want to go on writing would block each other."""

    def create(self, connection: Connection) -> None:
        """Make triggers and whatever else the tables' definition cannot say."""

    def explain(self, error: BaseException) -> NasHpcError:
        """What the user is told about a database error; ``transient`` where the same call may succeed later."""


class Session:
    """A connection and its transaction. Belongs to one thread."""

    def __init__(self, engine: Engine, dialect: Dialect) -> None:
        self.engine = engine
        self.dialect = dialect
        self._connection: Connection | None = None
        self._writing = False
        self._doomed: NasHpcError | None = None

    def close(self) -> None:
        """Give the connection back. An open transaction is rolled back."""
        if self._connection is not None:
            with suppress(*_DATABASE_ERRORS):
                self._connection.close()
            self._connection = None
        self.engine.dispose()

    @property
    def connection(self) -> Connection:
        """The connection, made at first use."""
        if self._connection is None:
            self._connection = self.engine.connect()
        return self._connection

    @contextmanager
    def write(self) -> Iterator[None]:
        """A transaction that writes; inside of another one a savepoint, so that a refusal undoes itself alone.

        After an error of the database itself (a full disk) the outer transaction is lost as a whole: every
        later call in it, and its end, raise that error.
        """
        if self._doomed is not None:
            raise self._doomed
        outermost = not self._writing
        self._writing = True
        transaction: Transaction | None = None
        try:
            if outermost:
                self.dialect.begin(self.connection, write=True)
                transaction = self.connection.begin()
            else:
                transaction = self.connection.begin_nested()
            yield
            if self._doomed is not None:
                raise self._doomed
            transaction.commit()
        except BaseException as error:
            if transaction is not None:
                with suppress(*_DATABASE_ERRORS):
                    transaction.rollback()
            if isinstance(error, (*_DATABASE_ERRORS, UnicodeEncodeError)):
                raise self._told(error) from error
            raise
        finally:
            if outermost:
                self._writing = False
                self._doomed = None

    @contextmanager
    def read(self) -> Iterator[None]:
        """A transaction that reads one state of the database; inside of ``write``, part of it."""
        if self._writing:
            if self._doomed is not None:
                raise self._doomed
            try:
                yield
            except _DATABASE_ERRORS as error:
                raise self._told(error) from error
            return
        try:
            self.dialect.begin(self.connection, write=False)
            with self.connection.begin():
                yield
        except _DATABASE_ERRORS as error:
            raise self._told(error) from error

    def _told(self, error: BaseException) -> NasHpcError:
        if isinstance(error, UnicodeEncodeError):
            return WrongCall(
                f"{error.object[:60]!r} is no text that can be stored: name it in valid characters"
            )
        told = self.dialect.explain(error)
        if self._writing and isinstance(told, StoreError) and not isinstance(error, IntegrityError):
            self._doomed = told
        return told

    def rows(self, statement: Executable, parameters: Mapping[str, Any] | None = None) -> Sequence[Any]:
        """All rows of a query."""
        return self.connection.execute(statement, parameters).all()

    def in_chunks(self, statement: Executable, values: Sequence[Any]) -> list[Any]:
        """All rows of a query whose parameter ``values`` is an IN list of any length."""
        found: list[Any] = []
        for start in range(0, len(values), CHUNK):
            found.extend(self.connection.execute(statement, {"values": values[start : start + CHUNK]}))
        return found

    def many(self, sql: str, tuples: list[tuple[Any, ...]]) -> None:
        """Execute a statement of ``statements`` for each of ``tuples``."""
        if tuples:
            self.connection.exec_driver_sql(sql, tuples)

    def draw(self, counter: str, count: int) -> int:
        """The first of ``count`` new consecutive numbers of ``counter``."""
        column = schema.counters.c
        self.connection.execute(
            update(schema.counters).where(column.name == counter).values(value=column.value + count)
        )
        last = self.connection.execute(select(column.value).where(column.name == counter)).scalar_one()
        return int(last) - count + 1
