"""The job database: its protocol (``base``), one SQL implementation (``sql``), group commit (``writer``)."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from nas_hpc.errors import StoreError
from nas_hpc.store.base import Claim, Finish, Finished, JobFilter, Store

if TYPE_CHECKING:
    from nas_hpc.site import Site
    from nas_hpc.store.sql import SqlStore

__all__ = ["Claim", "Finish", "Finished", "JobFilter", "Store", "open_site", "open_store"]


def open_store(
    target: str | os.PathLike[str] | Callable[[], str],
    *,
    create: bool = False,
    read_only: bool = False,
    password_file: Path | None = None,
) -> SqlStore:
    """Open the job database at ``target``: a path, or a URL ``sqlite:///PATH`` or
    ``postgresql://USER@HOST:PORT/NAME``, for which ``password_file`` (mode 0600) may hold the password. A
    function is asked for the URL whenever it has to be connected: a server may come back elsewhere.

    ``create`` makes a file that is missing (mode 0600), and the tables in an empty database of a server;
    ``read_only`` refuses every write. The store belongs to the thread that opened it. Raises WrongCall for a
    URL that is none, SiteError for a database that is missing, no job database or not for this user,
    SchemaMismatch for one of another version, StoreError (``transient``) when the database cannot answer.
    """
    from nas_hpc.store.sql import open_sql  # SQLAlchemy takes a third of a second to import

    return open_sql(target, create=create, read_only=read_only, password_file=password_file)


def open_site(site: Site, *, read_only: bool = False) -> SqlStore:
    """Open the job database of ``site``, wherever it is. Raises as ``open_store`` does, and Occupied where
    another process owns it, as SQLite needs it on a file system of several hosts."""
    from nas_hpc.store.owner import is_shared
    from nas_hpc.store.place import place_of
    from nas_hpc.store.server import not_answering, url_of

    place = place_of(site)
    if place.kind != "sqlite":
        url: str | Callable[[], str] = place.url
        if place.owned:
            url_of(site)  # that it does not run is told at once
            url = partial(url_of, site)
        try:
            store = open_store(url, read_only=read_only, password_file=place.password_file)
        except StoreError as error:
            if place.owned and error.transient:
                raise not_answering(site, error) from error
            raise
        return store if read_only else _with_left(store, site)
    if is_shared(site):
        from nas_hpc.store.owned import open_owned

        return open_owned(site)
    return open_store(site.database, read_only=read_only)


def _with_left(store: SqlStore, site: Site) -> SqlStore:
    """``store``, after what commands left in the inbox while the site was moving to PostgreSQL."""
    try:
        if any(name.endswith(".call") for name in os.listdir(site.inbox)):
            from nas_hpc.store import inbox

            inbox.take_in(store, site)
    except BaseException:
        store.close()
        raise
    return store
