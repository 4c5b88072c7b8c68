"""One connection to the database: transactions that nest, numbers, errors made readable."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Protocol

from sqlalchemy import Connection, Engine, Executable, bindparam, select, update
from sqlalchemy.engine.interfaces import DBAPICursor
from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from nas_hpc.errors import NasHpcError, StoreError, WrongCall
from nas_hpc.records import Lease
from nas_hpc.store import schema
from nas_hpc.store.prepared import LONGEST, VALUES, Prepared, Query, padded

_COUNTERS = Query(select(schema.counters).order_by(schema.counters.c.name).with_for_update())


class Dialect(Protocol):
    """What differs between databases."""

    read_only: bool
    shared: bool
    """Whether several launchers may run jobs of such a database at a time."""

    def begin(self, cursor: DBAPICursor, *, write: bool) -> None:
        """Begin a transaction. One that writes must wait for its turn here, not in the middle: two readers
        that both want to go on writing would block each other."""

    def create(self, connection: Connection) -> None:
        """Make triggers and whatever else the tables' definition cannot say."""

    def explain(self, error: BaseException) -> NasHpcError:
        """What the user is told about an error; ``transient`` where the same call may succeed later."""

    def gone(self, session: Session, leases: Sequence[Lease]) -> list[Lease]:
        """See ``Store.gone``; in a reading transaction."""


class Session:
    """A connection and its transaction. Belongs to one thread."""

    def __init__(self, engine: Engine, dialect: Dialect) -> None:
        self.engine = engine
        self.dialect = dialect
        self._connection: Connection | None = None
        self._cursor: Any = None
        """The driver's own, while there is a transaction."""
        driver = engine.dialect.loaded_dbapi
        self._refusals = (IntegrityError, driver.IntegrityError)
        self._errors = (SQLAlchemyError, driver.Error)
        self._prepared: dict[tuple[Query, int], Prepared] = {}
        column = schema.counters.c
        advance = update(schema.counters).where(column.name == bindparam("counter"))
        self._advance = str(advance.values(value=column.value + bindparam("count")).compile(engine))
        self._counters: dict[str, int] = {}
        """Their values at the beginning of this transaction, if it has drawn."""
        self._drawn: dict[str, int] = {}
        """How many numbers it has drawn."""
        self._depth = 0
        """0: no writing transaction; 1: one; more: so many savepoints in it, less one."""
        self._writes = 0
        """Grows with every write: tells whether a part has begun to."""
        self._doomed: BaseException | None = None
        """Why the innermost savepoint, or the transaction, is not to be kept."""
        self._lost = False
        """Whether that concerns the whole transaction."""

    def close(self) -> None:
        """Give the connection back. An open transaction is rolled back."""
        if self._connection is not None:
            with suppress(*self._errors):
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
    def write(self, *, apart: bool = False) -> Iterator[None]:
        """A transaction that writes. In another one it is a part, and that one fails too if this fails after
        its first write; or, ``apart``, a savepoint: a refusal undoes what is inside and nothing else.

        After an error of the database itself (a full disk) the outer transaction is lost as a whole: every
        later call in it, and its end, raise that error.
        """
        if self._doomed is not None:
            raise self._doomed
        if self._depth:
            with self._savepoint() if apart else self._part():
                yield
            return
        try:
            with self._transaction(write=True):
                self._depth = 1
                yield
                if self._doomed is not None:
                    raise self._doomed
                self.many(self._advance, [(count, counter) for counter, count in self._drawn.items()])
        except (*self._errors, UnicodeEncodeError) as error:
            raise self._told(error) from error
        finally:
            self._depth = 0
            self._doomed, self._lost = None, False
            self._counters, self._drawn = {}, {}

    @contextmanager
    def _transaction(self, *, write: bool) -> Iterator[None]:
        # The driver's own: SQLAlchemy takes as long for an empty one as SQLite for a small commit.
        connection = self.connection
        driver = connection.connection
        self._cursor = driver.cursor()
        try:
            self.dialect.begin(self._cursor, write=write)
            yield
            # SQLAlchemy takes part in the transaction from its first statement on, if there was one.
            (connection if connection.in_transaction() else driver).commit()
        except BaseException:
            with suppress(*self._errors):  # what led here is to be told
                (connection if connection.in_transaction() else driver).rollback()
            raise
        finally:
            self._cursor = None

    @contextmanager
    def _part(self) -> Iterator[None]:
        before = self._writes
        try:
            yield
        except BaseException as error:
            told = self._told(error)
            half = self._writes != before or isinstance(error, self._errors)
            if half and self._doomed is None:  # that must not be committed
                self._doomed = told
            if told is error:
                raise
            raise told from error

    @contextmanager
    def _savepoint(self) -> Iterator[None]:
        execute = self._cursor.execute
        name = f"nested_{self._depth}"
        numbers = self._counters, dict(self._drawn)
        self._depth += 1
        try:
            execute(f"SAVEPOINT {name}")
            yield
            if self._doomed is not None:
                raise self._doomed
            execute(f"RELEASE SAVEPOINT {name}")
        except BaseException as error:
            told = self._told(error)
            if not self._lost:
                execute(f"ROLLBACK TO SAVEPOINT {name}")
                execute(f"RELEASE SAVEPOINT {name}")
                self._counters, self._drawn = numbers  # locks that were taken inside are gone too
                self._doomed = None
            if told is error:
                raise
            raise told from error
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
            except self._errors as error:
                raise self._told(error) from error
            return
        try:
            with self._transaction(write=False):
                yield
        except self._errors as error:
            raise self._told(error) from error

    def _told(self, error: BaseException) -> BaseException:
        """``error``, or what is said instead of an error of the database; notes one that ends all."""
        if isinstance(error, UnicodeEncodeError):
            return WrongCall(
                f"{error.object[:60]!r} is no text that can be stored: name it in valid characters"
            )
        if not isinstance(error, self._errors):
            return error
        told = self.dialect.explain(error)
        if self._depth and isinstance(told, StoreError) and not isinstance(error, self._refusals):
            self._doomed, self._lost = told, True  # there may be no transaction any more
        return told

    def rows(self, statement: Executable, parameters: Mapping[str, Any] | None = None) -> Sequence[Any]:
        """All rows of a statement that is composed at each call."""
        return self.connection.execute(statement, parameters).all()

    def change(self, statement: Executable, parameters: Mapping[str, Any] | None = None) -> None:
        """Execute a statement that writes and is composed at each call."""
        self._writes += 1
        self.connection.execute(statement, parameters)

    def in_chunks(self, statement: Executable, values: Sequence[Any]) -> list[Any]:
        """All rows of one whose parameter ``values`` is an IN list of any length."""
        found: list[Any] = []
        for start in range(0, len(values), LONGEST):
            found.extend(self.connection.execute(statement, {VALUES: values[start : start + LONGEST]}))
        return found

    def fetch(self, query: Query, fixed: Mapping[str, Any] | None = None) -> list[Any]:
        """All rows of a prepared query without IN list."""
        return self._fetch(query, (), fixed)

    def fetch_in(
        self, query: Query, values: Sequence[Any], fixed: Mapping[str, Any] | None = None
    ) -> list[Any]:
        """All rows of a prepared query with an IN list, of any length."""
        if len(values) <= LONGEST:
            return self._fetch(query, values, fixed) if values else []
        chunks = range(0, len(values), LONGEST)
        return [row for start in chunks for row in self._fetch(query, values[start : start + LONGEST], fixed)]

    def _fetch(self, query: Query, values: Sequence[Any], fixed: Mapping[str, Any] | None) -> list[Any]:
        size = padded(len(values))
        prepared = self._prepared.get((query, size))
        if prepared is None:
            prepared = self._prepared[query, size] = Prepared(query, self.engine, size)
        return prepared.execute(self._cursor, values, fixed)

    def many(self, sql: str, tuples: Sequence[tuple[Any, ...]]) -> None:
        """Execute a statement of ``statements`` for each of ``tuples``."""
        self._writes += len(tuples)
        if len(tuples) == 1:
            self._cursor.execute(sql, tuples[0])
        elif tuples:
            self._cursor.executemany(sql, tuples)

    def draw(self, counter: str, count: int) -> int:
        """The first of ``count`` new consecutive numbers of ``counter``. They are written down at the end of
        the transaction, until which nobody else can draw."""
        if not self._counters:
            self._counters = dict(self.fetch(_COUNTERS))
        drawn = self._drawn.get(counter, 0)
        self._drawn[counter] = drawn + count
        return self._counters[counter] + drawn + 1
