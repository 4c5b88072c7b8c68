"""One connection to the database: transactions that nest, numbers, errors made readable."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

from sqlalchemy import Connection, Engine, Executable, bindparam, select, update
from sqlalchemy.engine.interfaces import DBAPICursor
from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from nas_hpc.errors import NasHpcError, StoreError, WrongCall
from nas_hpc.records import Lease
from nas_hpc.store import schema
from nas_hpc.store.prepared import LONGEST, VALUES, Query
from nas_hpc.store.sending import Fixed, Sending

_COUNTERS = Query(select(schema.counters).order_by(schema.counters.c.name).with_for_update())


PAUSE_S = (0.05, 1.0)
"""First and longest pause before it is tried again to reach a database."""


@dataclass(frozen=True, slots=True)
class Begun:
    """What the begin of a transaction brought along."""

    counters: Mapping[str, int] = field(default_factory=dict)
    """Their values, if it has locked them already."""
    ticket: Any = None
    """By which ``Dialect.outcome`` finds out later whether it was committed."""


class Dialect(Protocol):
    """What differs between databases."""

    read_only: bool
    shared: bool
    """Whether several launchers may run jobs of such a database at a time."""
    sender: str
    """Whom notices name that its stores send."""
    patience_s: float
    """How long a call by itself tries again what may pass."""

    def begin(self, cursor: DBAPICursor, *, write: bool, making: bool = False) -> Begun:
        """Begin a transaction. One that writes must wait for its turn here, not in the middle: two readers
        that both want to go on writing would block each other. ``making``: there may be no tables yet."""

    def create(self, connection: Connection) -> None:
        """Make triggers and whatever else the tables' definition cannot say."""

    def lost(self, driver: Any) -> bool:
        """Whether the driver's connection is of no use any more."""

    def outcome(self, cursor: DBAPICursor, ticket: Any) -> bool | None:
        """On a new connection: whether the transaction was committed; None while that is open."""

    def send(self, cursor: DBAPICursor, notices: Sequence[tuple[str, str]]) -> None:
        """Have pairs of topic and key told to who listens, with the commit of this transaction."""

    @property
    def pipeline(self) -> Callable[[Any], AbstractContextManager[Any]] | None:
        """Has the driver's connection send statements before those before them are answered."""

    def keep(self, session: Session, lease: str) -> None:
        """See ``Store.keep``; outside of transactions."""

    def explain(self, error: BaseException) -> NasHpcError:
        """What the user is told about an error; ``transient`` where the same call may succeed later."""

    def gone(self, session: Session, leases: Sequence[Lease]) -> list[Lease]:
        """See ``Store.gone``; outside of transactions."""


class Session:
    """A connection and its transaction. Belongs to one thread."""

    def __init__(self, engine: Engine, dialect: Dialect) -> None:
        self.engine = engine
        self.dialect = dialect
        self.may_wait: Callable[[float], bool] = lambda waited_s: waited_s < dialect.patience_s
        """Whether it is tried again to reach the database, after so many seconds."""
        self._connection: Connection | None = None
        self.sending = Sending(engine, dialect.pipeline)
        driver = engine.dialect.loaded_dbapi
        self._refusals = (IntegrityError, driver.IntegrityError)
        self._errors = (SQLAlchemyError, driver.Error)
        column = schema.counters.c
        advance = update(schema.counters).where(column.name == bindparam("counter"))
        self._advance = str(advance.values(value=column.value + bindparam("count")).compile(engine))
        self._counters: dict[str, int] = {}
        """Their values at the beginning of this transaction, if it has drawn."""
        self._drawn: dict[str, int] = {}
        """How many numbers it has drawn."""
        self._notices: dict[tuple[str, str], None] = {}
        """What is told with its commit."""
        self._depth = 0
        """0: no writing transaction; 1: one; more: so many savepoints in it, less one."""
        self._doomed: BaseException | None = None
        """Why the innermost savepoint, or the transaction, is not to be kept."""
        self._lost = False
        """Whether that concerns the whole transaction."""

    def close(self) -> None:
        """Give the connection back. An open transaction is rolled back."""
        self._drop()
        self.engine.dispose()

    def _drop(self) -> None:
        """The next use connects anew."""
        self.sending.give_up(self._errors)
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(*self._errors):
                if not connection.invalidated and self.dialect.lost(connection.connection.driver_connection):
                    connection.invalidate()
                connection.close()

    @property
    def connection(self) -> Connection:
        """The connection, made at first use; nothing is under way on it."""
        self.sending.settle()
        if self._connection is None:
            self._connection = self.engine.connect()
        return self._connection

    @property
    def inside(self) -> bool:
        """Whether there is a writing transaction."""
        return self._depth > 0

    @contextmanager
    def write(self, *, apart: bool = False, making: bool = False) -> Iterator[None]:
        """A transaction that writes. In another one it is a part, and that one fails too if this fails after
        its first write; or, ``apart``, a savepoint: a refusal undoes what is inside and nothing else.

        After an error of the database itself (a full disk) the outer transaction is lost as a whole: every
        later call in it, and its end, raise that error. ``making``: there may be no tables yet.
        """
        if self._doomed is not None:
            raise self._doomed
        if self._depth:
            with self._savepoint() if apart else self._part():
                yield
            return
        try:
            with self._transaction(write=True, making=making):
                self._depth = 1
                yield
                if self._doomed is not None:
                    raise self._doomed
                self.many(self._advance, [(count, counter) for counter, count in self._drawn.items()])
                if self._notices:
                    self.dialect.send(self.sending.cursor, list(self._notices))
        except (*self._errors, UnicodeEncodeError) as error:
            raise self._told(error) from error
        finally:
            self._depth = 0
            self._doomed, self._lost = None, False
            self._counters, self._drawn, self._notices = {}, {}, {}

    @contextmanager
    def _transaction(self, *, write: bool, making: bool = False) -> Iterator[None]:
        # The driver's own: SQLAlchemy takes as long for an empty one as SQLite for a small commit.
        ticket = self._begin(write, making)
        try:
            yield
            self._commit(ticket)
        except BaseException:
            self._roll_back()
            raise
        finally:
            self.sending.cursor = None

    def _begin(self, write: bool, making: bool) -> Any:
        """Begin, on a new connection if the old one was lost since. The transaction's ticket."""
        old = self._connection is not None
        while True:
            try:
                self.sending.cursor = self.connection.connection.cursor()
                begun = self.dialect.begin(self.sending.cursor, write=write, making=making)
            except BaseException as error:
                self._roll_back()
                self.sending.cursor = None
                if old and self._connection is None and isinstance(error, self._errors):
                    old = False  # what happened while nothing was asked is nobody's trouble
                    continue
                raise
            self._counters = dict(begun.counters)
            return begun.ticket

    def _gone(self) -> bool:
        """Whether the connection to a server was lost."""
        if (connection := self._connection) is None:
            return self.dialect.shared
        return connection.invalidated or self.dialect.lost(connection.connection.driver_connection)

    def _roll_back(self) -> None:
        self.sending.give_up(self._errors)
        connection = self._connection
        if connection is None:
            return
        if not connection.invalidated:
            with suppress(*self._errors):  # what led here is to be told
                (connection if connection.in_transaction() else connection.connection).rollback()
        if connection.invalidated or self.dialect.lost(connection.connection.driver_connection):
            self._drop()

    def _commit(self, ticket: Any) -> None:
        connection = self._connection
        assert connection is not None
        driver = connection.connection
        try:
            # SQLAlchemy takes part in the transaction from its first statement on, if there was one.
            (connection if connection.in_transaction() else driver).commit()
            self.sending.give_up(self._errors)  # nothing is left, and what is committed is committed
        except self._errors as error:
            # A server that ends the connection may have committed before: it is not enough to look whether
            # the connection is known to be lost by now.
            if ticket is None or isinstance(error, self._refusals):
                raise
            told = self._told(error)  # while it is known whether the connection was lost
            self._drop()
            if not self._was_committed(ticket):
                raise told from error

    def _was_committed(self, ticket: Any) -> bool:
        """What became of a transaction whose connection was lost in its commit. Raises StoreError if that is
        not to be found out."""
        start, pause_s = time.monotonic(), PAUSE_S[0]
        while True:
            why = "its commit is still under way"
            try:
                outcome = self.dialect.outcome(self.connection.connection.cursor(), ticket)
                if outcome is not None:
                    return outcome
            except (*self._errors, StoreError) as error:
                why = str(self.dialect.explain(error) if isinstance(error, self._errors) else error)
                self._drop()
            if not self.may_wait(time.monotonic() - start):
                raise StoreError(
                    f"it is not known whether the last change was made, look before you repeat it: {why}"
                )
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, PAUSE_S[1])

    @contextmanager
    def _part(self) -> Iterator[None]:
        before = self.sending.writes
        try:
            yield
            self.sending.settle()
        except BaseException as error:
            told = self._told(error)
            half = self.sending.writes != before or isinstance(error, self._errors)
            if half and self._doomed is None:  # that must not be committed
                self._doomed = told
            if told is error:
                raise
            raise told from error

    @contextmanager
    def _savepoint(self) -> Iterator[None]:
        execute = self.sending.cursor.execute
        name = f"nested_{self._depth}"
        numbers = self._counters, dict(self._drawn), dict(self._notices)
        self._depth += 1
        try:
            execute(f"SAVEPOINT {name}")
            yield
            if self._doomed is not None:
                raise self._doomed
            execute(f"RELEASE SAVEPOINT {name}")
            self.sending.settle()
        except BaseException as error:
            told = self._told(error)
            self.sending.give_up(self._errors)
            if not self._lost:
                execute(f"ROLLBACK TO SAVEPOINT {name}")
                execute(f"RELEASE SAVEPOINT {name}")
                # Locks that were taken inside are gone too.
                self._counters, self._drawn, self._notices = numbers
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

    @contextmanager
    def alone(self) -> Iterator[Any]:
        """The driver's connection, for what is no part of a transaction of this session's."""
        try:
            yield self.connection.connection.driver_connection
        except self._errors as error:
            if not self._depth and self.sending.cursor is None:
                self._roll_back()
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
        if isinstance(told, StoreError) and self._gone():
            told.transient = True  # whatever the driver said of it
        if self._depth and isinstance(told, StoreError) and not isinstance(error, self._refusals):
            self._doomed, self._lost = told, True  # there may be no transaction any more
        return told

    def rows(self, statement: Executable, parameters: Mapping[str, Any] | None = None) -> Sequence[Any]:
        """All rows of a statement that is composed at each call."""
        return self.connection.execute(statement, parameters).all()

    def change(self, statement: Executable, parameters: Mapping[str, Any] | None = None) -> None:
        """Execute a statement that writes and is composed at each call."""
        self.sending.writes += 1
        self.connection.execute(statement, parameters)

    def in_chunks(self, statement: Executable, values: Sequence[Any]) -> list[Any]:
        """All rows of one whose parameter ``values`` is an IN list of any length."""
        found: list[Any] = []
        for start in range(0, len(values), LONGEST):
            found.extend(self.connection.execute(statement, {VALUES: values[start : start + LONGEST]}))
        return found

    def fetch(self, query: Query, fixed: Fixed = None) -> list[Any]:
        """See ``Sending.fetch``."""
        return self.sending.fetch(query, fixed)

    def fetch_in(self, query: Query, values: Sequence[Any], fixed: Fixed = None) -> list[Any]:
        """See ``Sending.fetch_in``."""
        return self.sending.fetch_in(query, values, fixed)

    def many(self, sql: str, tuples: Sequence[tuple[Any, ...]]) -> None:
        """See ``Sending.many``."""
        self.sending.many(sql, tuples)

    def tell(self, topic: str, key: str) -> None:
        """Have who listens told, with the commit, that something of ``topic`` changed for ``key``."""
        if self.dialect.shared:
            self._notices[topic, key] = None

    def draw(self, counter: str, count: int) -> int:
        """The first of ``count`` new consecutive numbers of ``counter``. They are written down at the end of
        the transaction, until which nobody else can draw."""
        if not self._counters:
            self._counters = dict(self.fetch(_COUNTERS))
        drawn = self._drawn.get(counter, 0)
        self._drawn[counter] = drawn + count
        return self._counters[counter] + drawn + 1
