"""The job database in SQL: each call of the protocol is a transaction around its topic's function."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Engine, insert, inspect, select, update

from nas_hpc.errors import SchemaMismatch, SiteError, StoreError, WrongCall
from nas_hpc.records import App, Attempt, Event, Job, Lease, Result
from nas_hpc.states import Actor, State
from nas_hpc.store import adding, applications, changing, history, leasing, reading, running, schema, staging
from nas_hpc.store.base import Advance, Changes, Claim, Finish, Finished, JobFilter, Store
from nas_hpc.store.session import PAUSE_S, Dialect, Session
from nas_hpc.store.sqlite import SqliteDialect, sqlite_engine
from nas_hpc.store.statements import statements

T = TypeVar("T")

POSTGRES = ("postgresql", "postgres")
"""How URLs of PostgreSQL begin."""


Target = str | os.PathLike[str] | Callable[[], str]


def open_sql(
    target: Target,
    *,
    create: bool = False,
    read_only: bool = False,
    password_file: Path | None = None,
) -> SqlStore:
    """See ``nas_hpc.store.open_store``."""
    text = target() if callable(target) else os.fspath(target)
    scheme, separator, rest = text.partition("://")
    if separator and scheme in POSTGRES:
        open_ = partial(_open_postgres, target if callable(target) else lambda: text, password_file)
    elif not separator or scheme == "sqlite":  # sqlite:///relative, sqlite:////absolute
        open_ = partial(_open_sqlite, Path(rest.removeprefix("/") if separator else text))
    else:
        raise WrongCall(
            f"the database {scheme}://... is of no kind that this version has; give a path, sqlite:///PATH "
            "or postgresql://USER@HOST:PORT/NAME"
        )
    try:
        return open_(create=create, read_only=read_only)
    except _Outdated:
        with contextlib.suppress(SiteError, StoreError):  # not writable: then the first error is told
            open_(create=False, read_only=False).close()
        return open_(create=False, read_only=read_only)


class _Outdated(SchemaMismatch):
    """An older schema, which who may write brings to this program's."""


def _open_sqlite(path: Path, *, create: bool, read_only: bool) -> SqlStore:
    engine = sqlite_engine(path, create=create, read_only=read_only)
    return _prepared(
        SqlStore(engine, SqliteDialect(path, read_only=read_only), str(path)), create and not read_only
    )


def _open_postgres(
    url: Callable[[], str], password_file: Path | None, *, create: bool, read_only: bool
) -> SqlStore:
    try:
        from nas_hpc.store.postgres import PostgresDialect
        from nas_hpc.store.postgres_address import read_address
    except ImportError as error:
        raise WrongCall(
            f'a PostgreSQL database needs psycopg ({error}): python -m pip install "nas-hpc[postgres]"'
        ) from None
    dialect = PostgresDialect(lambda: read_address(url(), password_file), read_only=read_only)
    return _prepared(SqlStore(dialect.engine(), dialect, str(dialect.address)), create and not read_only)


def _prepared(store: SqlStore, create: bool) -> SqlStore:
    try:
        store.prepare(create=create)
    except BaseException:
        store.close()
        raise
    return store


class SqlStore:
    """A ``Store`` on any SQL database that has a ``Dialect``. One thread owns it."""

    def __init__(self, engine: Engine, dialect: Dialect, name: str) -> None:
        self._session = Session(engine, dialect)
        self._sql = statements(engine)
        self._session.sending.bulk = self._sql.bulk
        self._name = name
        self.shared = dialect.shared
        self.sender = dialect.sender

    def close(self) -> None:
        """See ``Store.close``."""
        self._session.close()

    def __enter__(self) -> SqlStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def raw(self) -> Any:
        """The driver's own connection, for benchmarks and tests."""
        return self._session.connection.connection.driver_connection

    def driver(self) -> AbstractContextManager[Any]:
        """The driver's own connection, whose errors become ours; outside of transactions."""
        return self._session.alone()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """See ``Store.transaction``."""
        with self._session.write(apart=True):
            yield

    def wait_while(self, may_wait: Callable[[float], bool]) -> None:
        """For as long as ``may_wait(seconds)`` is true of the seconds that passed, a call outside of
        transactions tries again what may pass, and one whose connection is lost in its commit, to find out
        what became of it."""
        self._session.may_wait = may_wait

    def _write(self, function: Callable[..., T], *arguments: Any) -> T:
        return self._do(self._session.write, function, arguments)

    def _read(self, function: Callable[..., T], *arguments: Any) -> T:
        return self._do(self._session.read, function, arguments)

    def _do(
        self, begin: Callable[[], AbstractContextManager[None]], function: Callable[..., T], arguments: Any
    ) -> T:
        start, pause_s = time.monotonic(), PAUSE_S[0]
        while True:
            try:
                with begin():
                    return function(*arguments)
            except StoreError as error:
                passing = error.transient and not self._session.inside
                if not passing or not self._session.may_wait(time.monotonic() - start):
                    raise
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, PAUSE_S[1])

    def prepare(self, *, create: bool) -> None:
        """Check the schema number; ``create`` makes the tables in an empty database."""
        with self._session.read():
            tables = inspect(self._session.connection).get_table_names()
        if not tables and create:
            with self._session.write(making=True):
                if not inspect(self._session.connection).get_table_names():
                    self._create()
            tables = ["meta"]
        if "meta" not in tables:
            holds = f"it holds the tables {', '.join(tables[:4])}" if tables else "it is empty"
            raise SiteError(
                f"{self._name} is no job database of nas-hpc: {holds}; make a site with: nas-hpc init SITE"
            )
        with self._session.read():
            found = self._schema()
        if found in map(str, schema.UPGRADES):
            found = self._upgrade(found)
        if found != str(schema.SCHEMA):
            raise SchemaMismatch(
                f"the job database {self._name} has schema {found}, this program knows {schema.SCHEMA}: "
                "use the version of nas-hpc that made it, or make a new site with: nas-hpc init SITE"
            )

    def _schema(self) -> str:
        rows = self._session.rows(select(schema.meta.c.value).where(schema.meta.c.key == "schema"))
        return str(rows[0].value) if rows else "none"

    def _upgrade(self, found: str) -> str:
        """Bring a database of an older schema to this program's, in one transaction. Its schema then."""
        if self._session.dialect.read_only:
            raise _Outdated(
                f"the job database {self._name} has schema {found}, this program knows {schema.SCHEMA}: "
                "it is brought there by the first command that may write to it"
            )
        with self._session.write(making=True):
            self._session.draw("events", 0)  # whoever writes has to be done
            while (found := self._schema()) in map(str, schema.UPGRADES):  # nobody was faster
                for statement in schema.UPGRADES[int(found)]:
                    self._session.connection.exec_driver_sql(statement)
                where = schema.meta.c.key == "schema"
                self._session.change(update(schema.meta).where(where).values(value=str(int(found) + 1)))
        return found

    def _create(self) -> None:
        connection = self._session.connection
        schema.metadata.create_all(connection)
        self._session.dialect.create(connection)
        connection.execute(insert(schema.meta), [{"key": "schema", "value": str(schema.SCHEMA)}])
        connection.execute(insert(schema.counters), [{"name": name, "value": 0} for name in schema.COUNTERS])

    # -- applications ------------------------------------------------------------------------------
    def put_app(self, app: App, *, replace: bool = False) -> None:
        """See ``Store.put_app``."""
        self._write(applications.put_app, self._session, app, replace)

    def apps(self) -> list[App]:
        """See ``Store.apps``."""
        return self._read(applications.read_apps, self._session)

    def remove_app(self, name: str) -> None:
        """See ``Store.remove_app``."""
        self._write(applications.remove_app, self._session, name)

    # -- jobs --------------------------------------------------------------------------------------
    def add_jobs(self, jobs: Sequence[Job], actor: Actor) -> list[Job]:
        """See ``Store.add_jobs``."""
        return self._write(adding.add_jobs, self._session, self._sql, jobs, actor)

    def add_finished(self, jobs: Sequence[tuple[Job, Result]]) -> list[Finished]:
        """See ``Store.add_finished``."""
        return self._write(adding.add_finished, self._session, self._sql, jobs)

    def jobs(self, where: JobFilter) -> list[Job]:
        """See ``Store.jobs``."""
        return self._read(reading.read_jobs, self._session, where)

    def job_page(self, where: JobFilter, most: int) -> list[Any]:
        """Rows of ``schema.jobs`` as plain lists, in the order of insertion; of more than ``most`` their
        numbers only: for ``job_rows``."""
        return self._read(reading.job_page, self._session, where, most)

    def job_rows(self, numbers: Sequence[int]) -> list[list[Any]]:
        """Those of the jobs with these numbers that there still are, in their order."""
        return self._read(reading.rows_by_number, self._session, numbers)

    def counts(self, where: JobFilter) -> dict[State, int]:
        """See ``Store.counts``."""
        return self._read(reading.count_jobs, self._session, where)

    def modify(self, changed: Sequence[Job]) -> None:
        """See ``Store.modify``."""
        self._write(changing.modify, self._session, self._sql, changed)

    def remove(self, where: JobFilter) -> list[Job]:
        """See ``Store.remove``."""
        return self._write(changing.remove, self._session, where)

    def set_state(self, ids: Iterable[str], state: State, actor: Actor, message: str = "") -> list[Job]:
        """See ``Store.set_state``."""
        ids = tuple(ids)
        return self._write(running.set_state, self._session, self._sql, ids, state, actor, message)

    # -- running -----------------------------------------------------------------------------------
    def claim(self, lease: str, claims: Sequence[Claim]) -> list[Job]:
        """See ``Store.claim``."""
        return self._write(running.claim, self._session, self._sql, lease, claims)

    def finish(self, lease: str, finishes: Sequence[Finish]) -> list[Finished]:
        """See ``Store.finish``."""
        return self._write(running.finish, self._session, self._sql, lease, finishes)

    def adopt(self, new: str, dead: str, attempts: Sequence[tuple[str, int]]) -> list[tuple[str, int]]:
        """See ``Store.adopt``."""
        return self._write(running.adopt, self._session, self._sql, new, dead, attempts)

    def exchange(
        self, lease: str, finishes: Sequence[Finish], claims: Sequence[Claim]
    ) -> tuple[list[Finished], list[Job]]:
        """See ``Store.exchange``."""
        return self._write(running.exchange, self._session, self._sql, lease, finishes, claims)

    # -- stages ------------------------------------------------------------------------------------
    def hold(self, lease: str, ids: Sequence[str]) -> list[Job]:
        """See ``Store.hold``."""
        return self._write(staging.hold, self._session, self._sql, lease, ids)

    def advance(self, lease: str, steps: Sequence[Advance]) -> list[Finished]:
        """See ``Store.advance``."""
        return self._write(staging.advance, self._session, self._sql, lease, steps)

    # -- leases ------------------------------------------------------------------------------------
    def open_lease(
        self, lease: Lease, *, ending: Sequence[str] = (), proven: bool = False, exclusive: bool
    ) -> None:
        """See ``Store.open_lease``."""
        self._write(leasing.open_lease, self._session, lease, ending, proven, exclusive)

    def renew_lease(self, lease: str, expires: float) -> None:
        """See ``Store.renew_lease``."""
        self._write(leasing.renew_lease, self._session, lease, expires)

    def close_lease(self, lease: str, now: float) -> None:
        """See ``Store.close_lease``."""
        self._write(leasing.close_lease, self._session, lease, now)

    def leases(self, *, live_only: bool = True) -> list[Lease]:
        """See ``Store.leases``."""
        return self._read(leasing.read_leases, self._session, live_only)

    def end_leases(self, lease: str, dead: Sequence[Lease]) -> list[Lease]:
        """See ``Store.end_leases``."""
        return self._write(leasing.end_leases, self._session, lease, dead)

    def tell_slots(self, lease: str, slots: int) -> None:
        """See ``Store.tell_slots``."""
        self._write(leasing.tell_slots, self._session, lease, slots)

    def gone(self, leases: Sequence[Lease]) -> list[Lease]:
        """See ``Store.gone``."""
        return self._do(nullcontext, self._session.dialect.gone, (self._session, leases))

    def keep(self, lease: str) -> None:
        """See ``Store.keep``."""
        self._do(nullcontext, self._session.dialect.keep, (self._session, lease))

    # -- requests ----------------------------------------------------------------------------------
    def first_time(self, request: str) -> bool:
        """See ``Store.first_time``."""
        return self._write(changing.first_time, self._session, request)

    def forget_requests(self, before: float, spare: Sequence[str]) -> None:
        """See ``Store.forget_requests``."""
        self._write(changing.forget_requests, self._session, before, spare)

    # -- history -----------------------------------------------------------------------------------
    def finished(self, creator: str, after: int = 0, limit: int = 0) -> list[Finished]:
        """See ``Store.finished``."""
        return self._read(history.read_finished, self._session, creator, after, limit)

    def attempts(self, job_ids: Sequence[str]) -> list[Attempt]:
        """See ``Store.attempts``."""
        return self._read(history.read_attempts, self._session, job_ids)

    def last_event(self) -> int:
        """See ``Store.last_event``."""
        return self._read(reading.last_event, self._session)

    def changed(self, after: int, workflow: str, lease: str, also: Sequence[str] = ()) -> Changes:
        """See ``Store.changed``."""
        return self._read(reading.read_changes, self._session, after, workflow, lease, also)

    def events(self, job_ids: Sequence[str] = (), after: int = 0, limit: int = 0) -> list[Event]:
        """See ``Store.events``."""
        return self._read(history.read_events, self._session, job_ids, after, limit)


_PROMISED: type[Store] = SqlStore
"""For the type checker: the whole protocol is there."""
