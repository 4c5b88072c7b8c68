"""What there is to say of a site's job database, whether it can be used or not."""

from __future__ import annotations

import os
import sqlite3
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nas_hpc.cli.context import open_database
from nas_hpc.errors import NasHpcError
from nas_hpc.site import Site

if TYPE_CHECKING:
    from nas_hpc.store.base import Store

_ACTIVITY = (
    "SELECT pg_database_size(current_database()), (SELECT count(*) FROM pg_stat_activity"
    " WHERE datname = current_database() AND backend_type = 'client backend' AND pid <> pg_backend_pid())"
)


def status_of(site: Site) -> dict[str, Any]:
    """For ``nas-hpc db status``; works when the database is down, and says why."""
    from nas_hpc.store.place import place_of

    place = place_of(site)
    body: dict[str, Any] = {"site": str(site.path), "kind": place.kind, "usable": True, "trouble": ""}
    if place.owned:
        body |= _server(site)
    elif place.url:
        body |= {"server": "not the site's own", "address": place.url}
    else:
        body |= {"address": str(site.database), "version": sqlite3.sqlite_version}
    body |= {"size_bytes": None, "connections": None, "launchers": []}
    try:
        with open_database(site, read_only=True) as store:
            body |= _of_store(store, place.kind)
    except NasHpcError as error:
        body |= {"usable": False, "trouble": error.message}
    if body["size_bytes"] is None:
        body["size_bytes"] = _size(site)
    return body


def version_of(store: Store, kind: str) -> str:
    """Of the library, or of the server."""
    if kind == "sqlite":
        return sqlite3.sqlite_version
    [version] = store.raw().execute("SHOW server_version").fetchone()  # type: ignore[attr-defined]
    return str(version).split()[0]


def _server(site: Site) -> dict[str, Any]:
    from nas_hpc.store.server import LOG, look

    life = look(site)
    found: dict[str, Any] = {"server": life.state.value, "log": str(site.log / LOG)}
    record = life.record
    if record is not None:
        found |= {
            "host": record.host,
            "pid": record.pid,
            "since": record.started,
            "stopped": record.stopped or None,
            "version": record.version,
            "socket": record.socket_directory,
            "addresses": [f"{address}:{record.port}" for address in record.addresses],
            "user": record.user,
        }
    return found


def _of_store(store: Store, kind: str) -> dict[str, Any]:
    now = time.time()
    found: dict[str, Any] = {
        "launchers": [
            {"host": lease.host, "pid": lease.pid, "slots": lease.slots, "workflow": lease.workflow}
            for lease in store.leases(live_only=True)
            if lease.expires > now
        ]
    }
    if kind != "sqlite":
        raw: Any = store.raw()  # type: ignore[attr-defined]
        size, connections = raw.execute(_ACTIVITY).fetchone()
        found |= {"version": version_of(store, kind), "size_bytes": size, "connections": connections}
    return found


def _size(site: Site) -> int | None:
    """Of the files in the site; None if there are none."""
    sizes = [_bytes(path) for path in site.path.glob(site.database.name + "*")]
    for directory, _, names in os.walk(site.postgres):
        sizes += [_bytes(Path(directory, name)) for name in names]
    return sum(sizes) if sizes else None


def _bytes(path: Path) -> int:
    try:
        return path.lstat().st_size
    except OSError:
        return 0
