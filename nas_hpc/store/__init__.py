"""The job database: its protocol (``base``), one SQL implementation (``sql``), group commit (``writer``)."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from nas_hpc.store.base import Claim, Finish, Finished, JobFilter, Store

if TYPE_CHECKING:
    from nas_hpc.site import Site
    from nas_hpc.store.sql import SqlStore

__all__ = ["Claim", "Finish", "Finished", "JobFilter", "Store", "open_site", "open_store"]


def open_store(target: str | os.PathLike[str], *, create: bool = False, read_only: bool = False) -> SqlStore:
    """Open the job database at ``target``: a path, or a URL ``sqlite:///PATH``.

    ``create`` makes it if it is missing (mode 0600); ``read_only`` refuses every write. The store belongs to
    the thread that opened it. Raises SiteError for a file that is missing, no job database or not writable,
    SchemaMismatch for one of another version, StoreError when the database cannot answer.
    """
    from nas_hpc.store.sql import open_sql  # SQLAlchemy takes a third of a second to import

    return open_sql(target, create=create, read_only=read_only)


def open_site(site: Site, *, read_only: bool = False) -> SqlStore:
    """Open the job database of ``site``, wherever it is. Raises as ``open_store`` does."""
    return open_store(site.database, read_only=read_only)
