"""The SQLite dialect: one file, write-ahead log on a local filesystem, else a rollback journal; every commit
synced to disk."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sqlalchemy import Connection, Engine, create_engine
from sqlalchemy.engine.interfaces import DBAPICursor
from sqlalchemy.exc import IntegrityError
from sqlalchemy.pool import NullPool

from nas_hpc.errors import NasHpcError, SiteError, StoreError
from nas_hpc.records import Lease
from nas_hpc.site import NETWORK_FILESYSTEMS, filesystem_type
from nas_hpc.store.session import Begun, Session

BUSY_TIMEOUT_S = 20.0
"""How long a transaction waits for another process's; the longest of ours takes well below a second."""

PAGE_BYTES = 8192
"""A commit of 1,000 jobs writes half as many log frames as with 4096 bytes."""

_PRAGMAS = (
    "PRAGMA synchronous=FULL",
    "PRAGMA foreign_keys=ON",
    "PRAGMA temp_store=MEMORY",
    "PRAGMA cache_size=-65536",  # KiB
    "PRAGMA wal_autocheckpoint=4000",  # pages
    "PRAGMA journal_size_limit=67108864",  # bytes
)

_TRIGGERS = (
    "CREATE TRIGGER events_keep BEFORE UPDATE ON events "
    "BEGIN SELECT RAISE(ABORT, 'events are append-only'); END",
    "CREATE TRIGGER events_stay BEFORE DELETE ON events "
    "WHEN EXISTS (SELECT 1 FROM jobs WHERE number = OLD.job) "
    "BEGIN SELECT RAISE(ABORT, 'events are append-only'); END",
)


def sqlite_engine(
    path: Path,
    *,
    create: bool,
    read_only: bool,
    busy_timeout_s: float = BUSY_TIMEOUT_S,
    exclusive: bool = False,
) -> Engine:
    """An engine for the database file ``path``; connections of it belong to the thread that uses them.

    ``exclusive``: the first connection keeps the file's locks until it is closed, and no other can be made.
    Raises SiteError if the file is missing (unless ``create``) or cannot be read or written.
    """
    _check_file(path, create=create, read_only=read_only)
    mode = "ro" if read_only else "rw"
    if (
        read_only
        and not os.access(path.parent, os.W_OK, effective_ids=True)
        and not path.with_name(f"{path.name}-wal").exists()
    ):
        mode = "ro&immutable=1"  # no place for the log's index, and nobody who could write a log
    uri = f"file:{quote(str(path.absolute()))}?mode={mode}"
    # Shared memory, which the write-ahead log needs, does not reach other hosts.
    journal = "TRUNCATE" if exclusive or filesystem_type(path) in NETWORK_FILESYSTEMS else "WAL"

    def connect() -> sqlite3.Connection:
        connection = sqlite3.connect(
            uri, uri=True, timeout=busy_timeout_s, isolation_level=None, cached_statements=256
        )
        try:
            if exclusive:  # before the first look: a log that was left is then read without shared memory
                connection.execute("PRAGMA locking_mode=EXCLUSIVE")
            tables = {
                row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
            }
            ours = {"meta", "counters"} <= tables or (create and not tables)
            if ours and not read_only:  # another program's file is left as it is
                connection.execute(f"PRAGMA page_size={PAGE_BYTES}")  # heeded by an empty file only
                connection.execute(f"PRAGMA journal_mode={journal}")
            for pragma in _PRAGMAS:
                connection.execute(pragma)
        except BaseException:
            connection.close()
            raise
        return connection

    return create_engine("sqlite+pysqlite://", creator=connect, poolclass=NullPool)


def _check_file(path: Path, *, create: bool, read_only: bool) -> None:
    try:
        if create and not read_only and not path.exists():
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        if not path.is_file():
            what = "is not a file" if path.exists() else "does not exist"
            raise SiteError(f"the job database {path} {what}; make a site with: nas-hpc init SITE")
        with path.open("rb" if read_only else "r+b") as file:
            head = file.read(16)
    except OSError as error:
        action = "read" if read_only else "written"
        raise SiteError(f"the job database {path} cannot be {action}: {error.strerror or error}") from None
    if head and head != b"SQLite format 3\0":
        raise SiteError(f"{path} is no job database: it starts with {head!r}; name the db.sqlite3 of a site")


_BEGUN = Begun()


class SqliteDialect:
    """Errors and begin of transactions of the database file ``path``."""

    shared = False
    pipeline: Callable[[Any], AbstractContextManager[Any]] | None = None
    sender = ""
    patience_s = 0.0  # SQLite itself has waited for the lock

    def __init__(self, path: Path, *, read_only: bool) -> None:
        self.path = path
        self.read_only = read_only

    def begin(self, cursor: DBAPICursor, *, write: bool, making: bool = False) -> Begun:
        """IMMEDIATE takes the write lock at once; a reading transaction that began to write would fail."""
        if write and self.read_only:
            raise SiteError(f"the job database {self.path} was opened for reading only")
        cursor.execute("BEGIN IMMEDIATE" if write else "BEGIN")
        return _BEGUN

    def create(self, connection: Connection) -> None:
        """The triggers that keep events as they are."""
        for trigger in _TRIGGERS:
            connection.exec_driver_sql(trigger)

    def lost(self, driver: Any) -> bool:
        """A file does not go away."""
        return False

    def outcome(self, cursor: DBAPICursor, ticket: Any) -> bool | None:
        """What was not acknowledged was not committed."""
        return False

    def send(self, cursor: DBAPICursor, notices: Sequence[tuple[str, str]]) -> None:
        """Nobody listens: a file has one launcher."""

    def keep(self, session: Session, lease: str) -> None:
        """A file knows nothing of who opened it."""

    def gone(self, session: Session, leases: Sequence[Lease]) -> list[Lease]:
        """A file knows nothing of who opened it."""
        return []

    def explain(self, error: BaseException) -> NasHpcError:
        """One line for what SQLite said."""
        said = " ".join(str(getattr(error, "orig", None) or error).split())
        lower = said.lower()
        if any(word in lower for word in ("locked", "busy", "locking protocol")):  # the last: of its log
            told: NasHpcError = StoreError(
                f"the job database {self.path} is locked by {lock_holder(self.path) or 'another process'}; "
                "end it or try again"
            )
            told.transient = True
        elif "is full" in lower:
            told = StoreError(f"the job database {self.path} cannot grow: {said}; make room on its disk")
            told.transient = True
        elif "disk i/o error" in lower:
            told = StoreError(
                f"the disk of the job database {self.path} failed: {said}; check its quota and health"
            )
            told.transient = True
        elif "readonly" in lower or "unable to open" in lower or "permission" in lower:
            told = SiteError(f"the job database {self.path} cannot be written: {said}")
        elif "not a database" in lower or "no such table" in lower or "no such column" in lower:
            told = SiteError(f"{self.path} is no job database of nas-hpc: {said}")
        elif isinstance(error, (IntegrityError, sqlite3.IntegrityError)):
            told = StoreError(f"the job database {self.path} refused a row: {said}")
        else:
            told = StoreError(f"the job database {self.path} failed: {said}")
        return told


def lock_holder(path: Path) -> str:
    """Who holds a write lock on the database, "process 123 (command)", by /proc/locks; empty if unknown."""
    inodes = set()
    for name in (path.name, f"{path.name}-shm"):
        try:
            inodes.add(path.with_name(name).stat().st_ino)
        except OSError:
            continue
    try:
        lines = Path("/proc/locks").read_text().splitlines()
    except OSError:
        return ""
    for line in lines:
        fields = line.split()  # 1: POSIX ADVISORY WRITE 123 fd:00:456 120 120
        if len(fields) < 8 or fields[1] == "->" or fields[3] != "WRITE" or fields[4] == str(os.getpid()):
            continue
        if int(fields[5].rsplit(":", 1)[1]) in inodes and int(fields[4]) > 0:
            return f"process {fields[4]}{_command(fields[4])}"
    return ""


def _command(pid: str) -> str:
    try:
        words = Path("/proc", pid, "cmdline").read_bytes().split(b"\0")
    except OSError:
        return ""
    text = " ".join(word.decode("utf-8", "replace") for word in words if word)
    return f" ({text[:60]})" if text else ""
