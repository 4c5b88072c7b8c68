"""The PostgreSQL dialect: several launchers at once, each commit synced to the server's disk.

Transactions that write take turns: the first thing that each does is to lock the counters' rows. So numbers
of events come in the order of the commits, no two of ours wait for each other in a circle, and what one reads
after that is what the one before it left. A process that is stopped in the middle is thrown out by the server
(``SETTINGS``), or by who waits for it, so that nobody waits for it for ever.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import psycopg
from sqlalchemy import Connection, Engine, create_engine
from sqlalchemy.pool import NullPool

from nas_hpc.errors import NasHpcError, SiteError, StoreError
from nas_hpc.records import Lease, new_id
from nas_hpc.store.notices import CHANNEL, Notice, write_notice
from nas_hpc.store.postgres_address import Address
from nas_hpc.store.postgres_errors import explain
from nas_hpc.store.session import Begun, Session

OLDEST = 120000
"""Of a server that has all that is used here: pg_advisory_lock, txid_status, tcp_user_timeout."""

PATIENCE_S = 8.0
"""How long a call by itself tries again to reach a server that went away: a restart takes so long."""

UP_S = 30.0
"""After its start a server is no witness: those that live need so long to come back."""

SURE_S = 2.0
"""For so long a launcher has to have no connection: one that lost them all for a moment is back by then."""

_IDLE = "idle_in_transaction_session_timeout"
SETTINGS = {
    "search_path": "public",
    "synchronous_commit": "on",  # acknowledged means on the disk, whatever the server's default is
    "standard_conforming_strings": "on",
    "enable_seqscan": "off",  # a plan that was made for an empty table must not stay one that reads it all
    "jit": "off",
    "lock_timeout": "20s",
    "statement_timeout": "120s",
    _IDLE: "15s",  # below lock_timeout: who waits gets his turn
    "tcp_keepalives_idle": "10",  # the server's side: a node that died holds nothing for longer
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "3",
    "tcp_user_timeout": "25s",
}
"""Of every session of ours."""

_TURN = (
    "SELECT name, value, txid_current(), pg_backend_pid(), (SELECT min(since) FROM witness)"
    " FROM counters ORDER BY name FOR UPDATE"
)
# After a crash numbers of transactions that had not come to the disk are given again. What the first
# checkpoint after it does not know as given was lost, whatever becomes of the next one with that number.
_OUTCOME = (
    "SELECT known, CASE WHEN known THEN txid_status(%(number)s) END FROM (SELECT"
    " (SELECT min(since) FROM witness) IS NOT DISTINCT FROM %(since)s::double precision OR %(number)s <"
    " (SELECT (split_part(next_xid, ':', 1)::bigint << 32) + split_part(next_xid, ':', 2)::bigint"
    " FROM pg_control_checkpoint()) AS known) AS crash"
)
_BEGIN_WRITE = f"BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE; {_TURN}"
_BEGIN_READ = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"
_MAKING = 0x6E61735F687063  # the lock of who makes or upgrades the tables
_BEGIN_MAKING = f"BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE; SELECT pg_advisory_xact_lock({_MAKING})"

_MORE = (
    """CREATE FUNCTION events_keep() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF TG_OP = 'UPDATE' OR EXISTS (SELECT 1 FROM public.jobs WHERE number = OLD.job) THEN
            RAISE EXCEPTION 'events are append-only' USING ERRCODE = 'integrity_constraint_violation';
        END IF;
        RETURN OLD;
    END $$""",
    "CREATE TRIGGER events_keep BEFORE UPDATE OR DELETE ON events FOR EACH ROW"
    " EXECUTE FUNCTION events_keep()",
    # An unlogged table is emptied when the server recovers from a crash, which ends all connections without
    # changing the time of its start: its oldest row tells since when connections have been there to stay.
    "CREATE UNLOGGED TABLE witness (since DOUBLE PRECISION NOT NULL)",
)
_SEEN = (
    "INSERT INTO witness SELECT extract(epoch FROM clock_timestamp())"
    " WHERE NOT EXISTS (SELECT 1 FROM witness)"
)
_UP = (
    "SELECT extract(epoch FROM clock_timestamp() - pg_postmaster_start_time()),"
    " extract(epoch FROM clock_timestamp()) - (SELECT min(since) FROM witness)"
)
_HOLDER = (
    "SELECT pid, coalesce(nullif(application_name, ''), 'somebody'),"
    " coalesce(client_hostname, host(client_addr), 'the server''s own host')"
    " FROM pg_locks JOIN pg_stat_activity USING (pid) WHERE relation = 'counters'::regclass"
    " AND mode <> 'AccessShareLock' ORDER BY xact_start LIMIT 1"
)
_END_STOPPED = (
    "SELECT pg_terminate_backend(pid) FROM pg_locks JOIN pg_stat_activity USING (pid)"
    " WHERE relation = 'counters'::regclass AND mode <> 'AccessShareLock' AND usename = current_user"
    " AND application_name = current_setting('application_name') AND wait_event = 'ClientRead'"
    " AND state_change < clock_timestamp() - %s::interval"
)
"""The server's own time limit does not heed who stopped with statements sent ahead."""

_END_BACKEND = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid = %s"
    " AND backend_xid::text = (%s %% 4294967296)::text"
)


class PostgresDialect:
    """Connections, errors and transactions of a server's database."""

    shared = True
    patience_s = PATIENCE_S

    def __init__(self, find: Callable[[], Address], *, read_only: bool) -> None:
        self._find = find
        self.address = find()
        """Where it was when this was asked last."""
        self.read_only = read_only
        self.sender = new_id()
        """Stands in the notices that this store sends."""
        self._kept: list[str] = []

    @property
    def pipeline(self) -> Callable[[Any], AbstractContextManager[Any]] | None:
        """Needs the client library of PostgreSQL 14 or later."""
        return _ahead if psycopg.Pipeline.is_supported() else None

    def engine(self) -> Engine:
        """An engine whose connections are made here."""
        return create_engine(
            "postgresql+psycopg://", creator=self.connect, poolclass=NullPool, pool_reset_on_return=None,
            paramstyle="format", use_native_hstore=False,
        )  # fmt: skip

    def connect(self) -> psycopg.Connection[Any]:
        """A new connection, with the locks that are kept. Raises SiteError for a server that is no good."""
        self.address = self._find()
        parameters = self.address.parameters(SETTINGS)
        connection = psycopg.connect(**parameters, autocommit=True)
        try:
            self._check(connection)
            for lease in self._kept:
                _take(connection, lease)
        except BaseException:
            connection.close()
            raise
        return connection

    def _check(self, connection: psycopg.Connection[Any]) -> None:
        version = connection.info.server_version
        if version < OLDEST:
            raise SiteError(
                f"the server of {self.address} is PostgreSQL {version // 10000}; this needs version "
                f"{OLDEST // 10000} or later"
            )
        encoding = connection.info.parameter_status("server_encoding")
        if encoding != "UTF8":
            raise SiteError(
                f"the database {self.address} has the encoding {encoding}, in which not every text can be "
                "stored; make one with: createdb --encoding UTF8 --template template0 NAME"
            )
        if not self.read_only and connection.info.parameter_status("in_hot_standby") == "on":
            raise SiteError(
                f"the server of {self.address} is a standby, which takes no changes; name its primary"
            )

    def begin(self, cursor: Any, *, write: bool, making: bool = False) -> Begun:
        """One that writes waits for its turn at the counters. The ticket is its number, its backend's,
        and since when the server has not crashed."""
        if not write:
            cursor.execute(_BEGIN_READ)
            return Begun()
        if self.read_only:
            raise SiteError(f"the job database {self.address} was opened for reading only")
        if making:
            cursor.execute(_BEGIN_MAKING)
            return Begun()
        try:
            cursor.execute(_BEGIN_WRITE)
        except psycopg.errors.LockNotAvailable as error:
            held = self._held(cursor)
            if not cursor.execute(_END_STOPPED, [SETTINGS[_IDLE]]).fetchall():
                raise held from error
            cursor.execute(_BEGIN_WRITE)
        cursor.nextset()
        rows = cursor.fetchall()
        return Begun({row[0]: row[1] for row in rows}, rows[0][2:] if rows else None)

    def _held(self, cursor: Any) -> StoreError:
        """Who has his turn for too long."""
        cursor.execute("ROLLBACK")
        row = cursor.execute(_HOLDER).fetchone()
        who = f"process {row[0]} of the server, for {row[1]} on {row[2]}" if row else "another process"
        error = StoreError(f"the job database {self.address} is locked by {who}; end that or try again")
        error.transient = True
        return error

    def create(self, connection: Connection) -> None:
        """The trigger that keeps events as they are, and the table that tells of a crash."""
        for statement in _MORE:
            connection.exec_driver_sql(statement)

    def lost(self, driver: Any) -> bool:
        """Whether the server, or the way to it, has closed the connection."""
        return driver is None or bool(driver.closed)

    def outcome(self, cursor: Any, ticket: Any) -> bool | None:
        """Ask the server. The backend that still has the transaction is ended: nobody can go on with it."""
        number, backend, since = ticket
        known, status = cursor.execute(_OUTCOME, {"number": number, "since": since}).fetchone()
        if not known:
            return False
        if status == "in progress":
            cursor.execute(_END_BACKEND, [backend, number])
            return None
        return bool(status == "committed")

    def send(self, cursor: Any, notices: Sequence[tuple[str, str]]) -> None:
        """NOTIFY them."""
        for topic, key in notices:
            text = write_notice(Notice(self.sender, topic, key))
            cursor.execute("SELECT pg_notify(%s, %s)", [CHANNEL, text])

    def keep(self, session: Session, lease: str) -> None:
        """Take the shared lock of ``lease``, on this connection and those that follow it."""
        if lease not in self._kept:
            with session.alone() as driver:
                _take(driver, lease)
            self._kept.append(lease)

    def gone(self, session: Session, leases: Sequence[Lease]) -> list[Lease]:
        """Those whose lock nobody holds, at two looks with ``SURE_S`` between."""
        asked = [lease for lease in leases if lease.id not in self._kept]
        free = _free(session, asked)
        if free:
            time.sleep(SURE_S)
            free = _free(session, free)
        return free

    def explain(self, error: BaseException) -> NasHpcError:
        """One line for what PostgreSQL said."""
        return explain(error, self.address)


@contextmanager
def _ahead(driver: psycopg.Connection[Any]) -> Iterator[None]:
    try:
        with driver.pipeline():
            yield
    finally:
        if driver.pgconn.pipeline_status != psycopg.pq.PipelineStatus.OFF:
            driver.close()  # it was lost in the middle: nothing else can be done with it


def lock_of(lease: str) -> int:
    """The number of the advisory lock that a launcher holds while it lives."""
    return int.from_bytes(hashlib.sha256(lease.encode()).digest()[:8], "big", signed=True)


def _take(driver: psycopg.Connection[Any], lease: str) -> None:
    driver.execute("SELECT pg_advisory_lock_shared(%s::bigint)", [lock_of(lease)])
    driver.execute(_SEEN)


def _free(session: Session, leases: Sequence[Lease]) -> list[Lease]:
    """Those whose lock could be had for oneself, for a moment. None if the server is no witness."""
    if not leases:
        return []
    with session.read(), session.alone() as driver:
        up_s = driver.execute(_UP).fetchone()
        if None in up_s or min(up_s) < UP_S:
            return []
        query = "SELECT pg_try_advisory_xact_lock(%s::bigint)"
        return [lease for lease in leases if driver.execute(query, [lock_of(lease.id)]).fetchone()[0]]
