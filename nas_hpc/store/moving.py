"""A site moves from SQLite to PostgreSQL: copied in one transaction, compared, then site.toml is replaced.

Until that instant the site is the old one, from it on the new one, whenever the process is killed. The old
file is locked from the first row that is read until it refuses changes: nobody adds to it meanwhile.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Boolean, Double, Table

from nas_hpc.errors import SiteError, WorkFailed, WrongCall
from nas_hpc.records import Lease
from nas_hpc.site import Site
from nas_hpc.store import open_site, open_store, who
from nas_hpc.store.cluster import interrupted_later
from nas_hpc.store.making import OF_SITE, GivenServer, OwnServer, address_of
from nas_hpc.store.place import PASSWORD_FILE, Place, place_of, write_place
from nas_hpc.store.schema import SCHEMA, metadata
from nas_hpc.store.sql import SqlStore
from nas_hpc.store.starting import destroy

_UNFINISHED = "copy"
"""Row of the table meta of a copy that no site uses yet: the site's path, and its counters."""
_BATCH = 1000
_REFUSAL = "the jobs of this site have been moved to PostgreSQL: call the command again"


@dataclass(frozen=True, slots=True)
class Moved:
    """What came of it."""

    counts: dict[str, int]
    """Rows, by table."""
    kept: Path
    """The old database."""


def move(site: Site, server: OwnServer | GivenServer) -> Moved:
    """Move the jobs of ``site`` to ``server``. Raises NasHpcError, leaving all as it was; so does Ctrl-C."""
    site.check_writable()
    old = place_of(site)
    if old.kind != "sqlite":
        where = "a server of its own" if old.owned else old.url
        raise WrongCall(f"the jobs of {site.path} are in PostgreSQL already ({where}); nothing was changed")
    switched = False
    with open_site(site) as source, source.transaction():
        check_no_launcher(site, source.leases(live_only=True))
        _remove_leftovers(site)
        try:
            place = server.prepare(site)
            counts = _copy(site, source.raw(), server, place)
            with interrupted_later():
                write_place(site, place)
                switched = True
                _close(source.raw())
        except BaseException:
            if not switched:
                server.undo(site)
            raise
    with open_site(site) as target:  # which carries out what was left for the old one
        target.raw().execute("DELETE FROM meta WHERE key = %s", [_UNFINISHED])
    return Moved(counts, _rename(site))


def check_no_launcher(site: Site, leases: Sequence[Lease]) -> None:
    """Raise SiteError if the launcher of one of the live ``leases`` may be alive."""
    for lease in leases:
        here = lease.host == who.this_host()
        left_s = lease.expires - time.time()
        if here:
            alive = lease.boot_id == who.boot_id() and who.is_alive(lease.pid, int(lease.start_time))
        else:
            alive = left_s > 0
        if alive:
            more = "" if here else f" (if that is gone, its lease ends in {left_s:.0f} s)"
            raise SiteError(
                f"a launcher runs on {site.path}: process {lease.pid} on {lease.host}{more}; stop it first"
            )


def _remove_leftovers(site: Site) -> None:
    """Remove the server, or the password, of a move that was killed: this site does not use them."""
    if (site.path / PASSWORD_FILE).exists():  # made first, removed last
        destroy(site)


def _copy(site: Site, source: Any, server: OwnServer | GivenServer, place: Place) -> dict[str, int]:
    """Copy and compare all tables; committed when it returns their counts."""
    tables = metadata.sorted_tables
    names = ", ".join(table.name for table in tables)
    with _open_target(site, server, place) as store, store.raw().transaction():
        target = store.raw()
        target.execute("SET LOCAL statement_timeout = 0")
        target.execute("SET LOCAL idle_in_transaction_session_timeout = 0")
        target.execute(f"TRUNCATE {names}")
        counts = {}
        for table in tables:
            sent = _Sum()
            with target.cursor() as cursor, cursor.copy(f"COPY {_into(table)} FROM STDIN") as copying:
                for row in sent.over(_rows(source, table)):
                    copying.write_row(row)
            got = _Sum()
            with target.cursor(name="compared") as cursor:
                cursor.itersize = _BATCH
                cursor.execute(_select(table))
                for _ in got.over(cursor):
                    pass
            if (got.count, got.total) != (sent.count, sent.total):
                raise WorkFailed(
                    f"the table {table.name} is not the same after the copy ({sent.count} rows, {got.count} "
                    "arrived); nothing was changed, please report this"
                )
            counts[table.name] = got.count
            _advance_sequence(target, table)
        counters = dict(target.execute("SELECT name, value FROM counters").fetchall())
        mark = json.dumps([str(site.path), counters], sort_keys=True)
        for row in ((OF_SITE, str(site.path)), (_UNFINISHED, mark)):
            target.execute("INSERT INTO meta (key, value) VALUES (%s, %s)", row)
    return counts


def _open_target(site: Site, server: OwnServer | GivenServer, place: Place) -> SqlStore:
    """The target with empty tables; an earlier copy that no site came to use is removed."""
    with open_store(address_of(site, place), create=True, password_file=place.password_file) as store:
        raw = store.raw()
        found = raw.execute("SELECT value FROM meta WHERE key = %s", [_UNFINISHED]).fetchone()
        counters = dict(raw.execute("SELECT name, value FROM counters").fetchall())
        if found is not None and found[0] == json.dumps([str(site.path), counters], sort_keys=True):
            raw.execute(f"TRUNCATE {', '.join(table.name for table in metadata.sorted_tables)}")
            raw.execute("INSERT INTO meta (key, value) VALUES ('schema', %s)", [str(SCHEMA)])
    server.make_tables(site, place)
    return open_store(address_of(site, place), password_file=place.password_file)


class _Sum:
    """Number of rows, and a sum of them that does not depend on their order, in which databases differ."""

    def __init__(self) -> None:
        self.count = 0
        self.total = 0

    def over(self, rows: Iterable[tuple[Any, ...]]) -> Iterator[tuple[Any, ...]]:
        for row in rows:
            self.count += 1
            digest = hashlib.sha256(repr(tuple(row)).encode()).digest()
            self.total = (self.total + int.from_bytes(digest, "big")) % (1 << 256)
            yield row


def _rows(source: Any, table: Table) -> Iterator[tuple[Any, ...]]:
    """The rows of SQLite's table as PostgreSQL has them: with booleans, and no NUL in texts."""
    kinds = [column.type for column in table.columns]
    for row in source.execute(_select(table)):
        yield tuple(_value(value, kind) for value, kind in zip(row, kinds, strict=True))


def _value(value: Any, kind: Any) -> Any:
    if value is None:
        return None
    if isinstance(kind, Boolean):
        return bool(value)
    if isinstance(kind, Double):
        return float(value)
    return value.replace("\0", "\ufffd") if isinstance(value, str) and "\0" in value else value


def _columns(table: Table) -> str:
    return ", ".join(f'"{column.name}"' for column in table.columns)


def _into(table: Table) -> str:
    return f"{table.name} ({_columns(table)})"


def _select(table: Table) -> str:
    return f"SELECT {_columns(table)} FROM {table.name}"


def _advance_sequence(target: Any, table: Table) -> None:
    """Have new rows numbered after the copied ones, where the database numbers them."""
    for column in table.primary_key:
        given = [table.name, column.name]
        [sequence] = target.execute("SELECT pg_get_serial_sequence(%s, %s)", given).fetchone()
        if sequence is not None:
            [last] = target.execute(f'SELECT coalesce(max("{column.name}"), 0) FROM {table.name}').fetchone()
            target.execute("SELECT setval(%s, %s, false)", [sequence, last + 1])


def _close(source: Any) -> None:
    """Have the old file refuse changes by who opened it before and waits for its lock."""
    for table in metadata.sorted_tables:
        for action in ("INSERT", "UPDATE", "DELETE"):
            source.execute(
                f"CREATE TRIGGER moved_{table.name}_{action.lower()} BEFORE {action} ON {table.name} "
                f"BEGIN SELECT RAISE(ABORT, '{_REFUSAL}'); END"
            )


def _rename(site: Site) -> Path:
    kept = site.database.with_name(f"{site.database.name}.moved")
    with suppress(OSError):
        for ending in ("-wal", "-shm", "-journal", ""):
            path = site.database.with_name(site.database.name + ending)
            if path.exists():
                os.replace(path, kept.with_name(kept.name + ending))
        return kept
    return site.database
