"""One connection to the database: transactions that nest, numbers, errors made readable."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Protocol

from sqlalchemy import Connection, Engine, Executable, bindparam, select, update
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
        """Prepare ``connection`` for its next transaction. One that writes must wait for its turn here, not
        in the middle: two readers that both want to go on writing would block each other."""

    def create(self, connection: Connection) -> None:
        """Make triggers and whatever else the tables' definition cannot say."""

    def explain(self, error: BaseException) -> NasHpcError:
        """What the user is told about an error; ``transient`` where the same call may succeed later."""


class Session:
    """A connection and its transaction. Belongs to one thread."""

    def __init__(self, engine: Engine, dialect: Dialect) -> None:
        self.engine = engine
        self.dialect = dialect
        self._connection: Connection | None = None
        column = schema.counters.c
        this = column.name == bindparam("counter")
        advance = update(schema.counters).where(this).values(value=column.value + bindparam("count"))
        self._advance = str(advance.compile(engine))
        self._value = str(select(column.value).where(this).compile(engine))
        self._depth = 0
        """0: no writing transaction; 1: one; more: so many savepoints in it, less one."""
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
        """A transaction that writes; in another one a savepoint, so that a refusal undoes itself alone.

        After an error of the database itself (a full disk) the outer transaction is lost as a whole: every
        later call in it, and its end, raise that error.
        """
        if self._doomed is not None:
            raise self._doomed
        if self._depth:
            with self._savepoint():
                yield
            return
        try:
            self.dialect.begin(self.connection, write=True)
            with self.connection.begin():
                self._depth = 1
                yield
                if self._doomed is not None:
                    raise self._doomed
        except (*_DATABASE_ERRORS, UnicodeEncodeError) as error:
            raise self._told(error) from error
        finally:
            self._depth = 0
            self._doomed = None

    @contextmanager
    def _savepoint(self) -> Iterator[None]:
        # SQLAlchemy's own savepoints are compiled anew each time, which takes longer than a small request.
        execute = self.connection.exec_driver_sql
        name = f"nested_{self._depth}"
        self._depth += 1
        try:
            execute(f"SAVEPOINT {name}")
            yield
            if self._doomed is not None:
                raise self._doomed
            execute(f"RELEASE SAVEPOINT {name}")
        except BaseException as error:
            told = self._told(error) if isinstance(error, (*_DATABASE_ERRORS, UnicodeEncodeError)) else None
            if self._doomed is None:  # else there may be no transaction any more
                execute(f"ROLLBACK TO SAVEPOINT {name}")
                execute(f"RELEASE SAVEPOINT {name}")
            if told is not None:
                raise told from error
            raise
        finally:
            self._depth -= 1

    @contextmanager
    def read(self) -> Iterator[None]:
        """A transaction that reads one state of the database; inside of ``write``, part of it."""
        if self._depth:
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
        if self._depth and isinstance(told, StoreError) and not isinstance(error, IntegrityError):
            self._doomed = told
        return told

    def rows(self, statement: Executable, parameters: Mapping[str, Any] | None = None) -> Sequence[Any]:
        """All rows of a query."""
        return self.connection.execute(statement, parameters).all()

    def in_chunks(
        self, statement: Executable, values: Sequence[Any], fixed: Mapping[str, Any] | None = None
    ) -> list[Any]:
        """All rows of a query whose parameter ``values`` is an IN list of any length."""
        found: list[Any] = []
        parameters = dict(fixed or {})
        for start in range(0, len(values), CHUNK):
            parameters["values"] = values[start : start + CHUNK]
            found.extend(self.connection.execute(statement, parameters))
        return found

    def many(self, sql: str, tuples: list[tuple[Any, ...]]) -> None:
        """Execute a statement of ``statements`` for each of ``tuples``."""
        if tuples:
            self.connection.exec_driver_sql(sql, tuples)

    def draw(self, counter: str, count: int) -> int:
        """The first of ``count`` new consecutive numbers of ``counter``."""
        self.connection.exec_driver_sql(self._advance, (count, counter))
        last = self.connection.exec_driver_sql(self._value, (counter,)).scalar_one()
        return int(last) - count + 1
