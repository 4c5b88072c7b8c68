"""The job database in SQL: each call of the protocol is a transaction around its topic's function."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, insert, inspect, select, update

from nas_hpc.errors import SchemaMismatch, SiteError, StoreError, WrongCall
from nas_hpc.records import App, Attempt, Event, Job, Lease, Result
from nas_hpc.states import Actor, State
from nas_hpc.store import adding, applications, changing, history, leasing, reading, running, schema, staging
from nas_hpc.store.base import Advance, Claim, Finish, Finished, JobFilter, Store
from nas_hpc.store.session import Dialect, Session
from nas_hpc.store.sqlite import SqliteDialect, sqlite_engine
from nas_hpc.store.statements import statements


def open_sql(target: str | os.PathLike[str], *, create: bool = False, read_only: bool = False) -> SqlStore:
    """See ``nas_hpc.store.open_store``."""
    text = os.fspath(target)
    scheme, separator, rest = text.partition("://")
    if not separator:
        path = Path(text)
    elif scheme == "sqlite":
        path = Path(rest.removeprefix("/"))  # sqlite:///relative, sqlite:////absolute
    else:
        raise WrongCall(
            f"the database {scheme}://... is of no kind that this version has; give a path or sqlite:///PATH"
        )
    try:
        return _open_sqlite(path, create=create, read_only=read_only)
    except _Outdated:
        with contextlib.suppress(SiteError, StoreError):  # not writable: then the first error is told
            _open_sqlite(path, create=False, read_only=False).close()
        return _open_sqlite(path, create=False, read_only=read_only)


class _Outdated(SchemaMismatch):
    """An older schema, which who may write brings to this program's."""


def _open_sqlite(path: Path, *, create: bool, read_only: bool) -> SqlStore:
    engine = sqlite_engine(path, create=create, read_only=read_only)
    store = SqlStore(engine, SqliteDialect(path, read_only=read_only), str(path))
    try:
        store.prepare(create=create and not read_only)
    except BaseException:
        store.close()
        raise
    return store


class SqlStore:
    """A ``Store`` on any SQL database that has a ``Dialect``. One thread owns it."""

    def __init__(self, engine: Engine, dialect: Dialect, name: str) -> None:
        self._session = Session(engine, dialect)
        self._sql = statements(engine)
        self._name = name
        self.shared = dialect.shared

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

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """See ``Store.transaction``."""
        with self._session.write(apart=True):
            yield

    def prepare(self, *, create: bool) -> None:
        """Check the schema number; ``create`` makes the tables in an empty database."""
        with self._session.read():
            tables = inspect(self._session.connection).get_table_names()
        if not tables and create:
            with self._session.write():
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
        with self._session.write():
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
        with self._session.write():
            applications.put_app(self._session, app, replace)

    def apps(self) -> list[App]:
        """See ``Store.apps``."""
        with self._session.read():
            return applications.read_apps(self._session)

    def remove_app(self, name: str) -> None:
        """See ``Store.remove_app``."""
        with self._session.write():
            applications.remove_app(self._session, name)

    # -- jobs --------------------------------------------------------------------------------------
    def add_jobs(self, jobs: Sequence[Job], actor: Actor) -> list[Job]:
        """See ``Store.add_jobs``."""
        with self._session.write():
            return adding.add_jobs(self._session, self._sql, jobs, actor)

    def add_finished(self, jobs: Sequence[tuple[Job, Result]]) -> list[Finished]:
        """See ``Store.add_finished``."""
        with self._session.write():
            return adding.add_finished(self._session, self._sql, jobs)

    def jobs(self, where: JobFilter) -> list[Job]:
        """See ``Store.jobs``."""
        with self._session.read():
            return reading.read_jobs(self._session, where)

    def counts(self, where: JobFilter) -> dict[State, int]:
        """See ``Store.counts``."""
        with self._session.read():
            return reading.count_jobs(self._session, where)

    def modify(self, changed: Sequence[Job]) -> None:
        """See ``Store.modify``."""
        with self._session.write():
            changing.modify(self._session, self._sql, changed)

    def remove(self, where: JobFilter) -> list[Job]:
        """See ``Store.remove``."""
        with self._session.write():
            return changing.remove(self._session, where)

    def set_state(self, ids: Iterable[str], state: State, actor: Actor, message: str = "") -> list[Job]:
        """See ``Store.set_state``."""
        with self._session.write():
            return running.set_state(self._session, self._sql, ids, state, actor, message)

    # -- running -----------------------------------------------------------------------------------
    def claim(self, lease: str, claims: Sequence[Claim]) -> list[Job]:
        """See ``Store.claim``."""
        with self._session.write():
            return running.claim(self._session, self._sql, lease, claims)

    def finish(self, lease: str, finishes: Sequence[Finish]) -> list[Finished]:
        """See ``Store.finish``."""
        with self._session.write():
            return running.finish(self._session, self._sql, lease, finishes)

    def adopt(self, new: str, dead: str, attempts: Sequence[tuple[str, int]]) -> list[tuple[str, int]]:
        """See ``Store.adopt``."""
        with self._session.write():
            return running.adopt(self._session, self._sql, new, dead, attempts)

    def exchange(
        self, lease: str, finishes: Sequence[Finish], claims: Sequence[Claim]
    ) -> tuple[list[Finished], list[Job]]:
        """See ``Store.exchange``."""
        with self._session.write():
            return running.exchange(self._session, self._sql, lease, finishes, claims)

    # -- stages ------------------------------------------------------------------------------------
    def hold(self, lease: str, ids: Sequence[str]) -> list[Job]:
        """See ``Store.hold``."""
        with self._session.write():
            return staging.hold(self._session, self._sql, lease, ids)

    def advance(self, lease: str, steps: Sequence[Advance]) -> list[Finished]:
        """See ``Store.advance``."""
        with self._session.write():
            return staging.advance(self._session, self._sql, lease, steps)

    # -- leases ------------------------------------------------------------------------------------
    def open_lease(
        self, lease: Lease, *, ending: Sequence[str] = (), proven: bool = False, exclusive: bool
    ) -> None:
        """See ``Store.open_lease``."""
        with self._session.write():
            leasing.open_lease(self._session, lease, ending, proven, exclusive)

    def renew_lease(self, lease: str, expires: float) -> None:
        """See ``Store.renew_lease``."""
        with self._session.write():
            leasing.renew_lease(self._session, lease, expires)

    def close_lease(self, lease: str, now: float) -> None:
        """See ``Store.close_lease``."""
        with self._session.write():
            leasing.close_lease(self._session, lease, now)

    def leases(self, *, live_only: bool = True) -> list[Lease]:
        """See ``Store.leases``."""
        with self._session.read():
            return leasing.read_leases(self._session, live_only)

    def end_leases(self, lease: str, dead: Sequence[Lease]) -> list[Lease]:
        """See ``Store.end_leases``."""
        with self._session.write():
            return leasing.end_leases(self._session, lease, dead)

    def tell_slots(self, lease: str, slots: int) -> None:
        """See ``Store.tell_slots``."""
        with self._session.write():
            leasing.tell_slots(self._session, lease, slots)

    def gone(self, leases: Sequence[Lease]) -> list[Lease]:
        """See ``Store.gone``."""
        with self._session.read():
            return self._session.dialect.gone(self._session, leases)

    # -- requests ----------------------------------------------------------------------------------
    def first_time(self, request: str) -> bool:
        """See ``Store.first_time``."""
        with self._session.write():
            return changing.first_time(self._session, request)

    # -- history -----------------------------------------------------------------------------------
    def finished(self, creator: str, after: int = 0, limit: int = 0) -> list[Finished]:
        """See ``Store.finished``."""
        with self._session.read():
            return history.read_finished(self._session, creator, after, limit)

    def attempts(self, job_ids: Sequence[str]) -> list[Attempt]:
        """See ``Store.attempts``."""
        with self._session.read():
            return history.read_attempts(self._session, job_ids)

    def events(self, job_ids: Sequence[str] = (), after: int = 0, limit: int = 0) -> list[Event]:
        """See ``Store.events``."""
        with self._session.read():
            return history.read_events(self._session, job_ids, after, limit)


_PROMISED: type[Store] = SqlStore
"""For the type checker: the whole protocol is there."""
