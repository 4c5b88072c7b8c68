"""The SQLite database of a site on a shared file system, opened by the process that owns it."""

from __future__ import annotations

from typing import Any

from sqlalchemy.engine.interfaces import DBAPICursor

from nas_hpc.site import Site
from nas_hpc.store import inbox
from nas_hpc.store.owner import Ownership, own
from nas_hpc.store.session import Begun
from nas_hpc.store.sql import SqlStore
from nas_hpc.store.sqlite import SqliteDialect, sqlite_engine


class OwnedDialect(SqliteDialect):
    """Transactions of the owner: each that writes makes sure that it still is."""

    def __init__(self, ownership: Ownership) -> None:
        super().__init__(ownership.site.database, read_only=False)
        self._ownership = ownership

    def begin(self, cursor: DBAPICursor, *, write: bool, making: bool = False) -> Begun:
        """See ``Dialect.begin``. Raises LeaseLost if somebody else owns the database by now."""
        if write:
            self._ownership.check()
        return super().begin(cursor, write=write, making=making)


class OwnedStore(SqlStore):
    """The one open database of a site; closed, it gives the site up."""

    def __init__(self, ownership: Ownership) -> None:
        path = ownership.site.database
        engine = sqlite_engine(path, create=False, read_only=False, exclusive=True)
        super().__init__(engine, OwnedDialect(ownership), str(path))
        self._ownership: Ownership | None = ownership

    def close(self) -> None:
        """See ``Store.close``."""
        super().close()
        ownership, self._ownership = self._ownership, None
        if ownership is not None:
            ownership.release()


def open_owned(site: Site, **options: Any) -> OwnedStore:
    """Own the database of ``site`` (see ``owner.own``, whose options these are) and open it; what commands
    left in the inbox is carried out. Raises Occupied, SiteError, StoreError."""
    ownership = own(site, **options)
    try:
        store = OwnedStore(ownership)
    except BaseException:
        ownership.release()
        raise
    try:
        store.prepare(create=False)
        inbox.take_in(store, site)
    except BaseException:
        store.close()
        raise
    return store
