"""Giving a site its PostgreSQL database: on a server that exists, or on one of its own. And taking it away
again when the site could not be made."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nas_hpc.errors import NasHpcError, SiteError
from nas_hpc.site import Site
from nas_hpc.store import open_store
from nas_hpc.store.base import JobFilter
from nas_hpc.store.cluster import account_of, make, uninterrupted
from nas_hpc.store.listening import network_of
from nas_hpc.store.place import (
    PASSWORD_FILE,
    Place,
    check_secret,
    split_url,
    toml_table,
    write_secret,
)
from nas_hpc.store.programs import find_postgres
from nas_hpc.store.server import url_of
from nas_hpc.store.starting import destroy, start

OF_SITE = "site"
"""Row of the table meta: the path of the site whose jobs these are."""


@dataclass(slots=True)
class OwnServer:
    """A server that belongs to the site."""

    interface: str = ""
    server_user: str = ""
    _begun: bool = field(default=False, init=False)
    """Whether there is something to remove."""

    def check(self) -> None:
        """Raise WrongCall, WorkFailed for what can be told before anything is made."""
        account_of(self.server_user)
        network_of(self.interface)
        find_postgres()
        import_driver()

    def prepare(self, site: Site) -> Place:
        """Make and start it, without tables yet. Raises NasHpcError; then ``undo`` has to follow."""
        if site.postgres.exists():
            raise SiteError(f"{site.postgres} is there already and not of this site: move it away")
        self._begun = True
        secret = make(site, find_postgres(), account_of(self.server_user))
        place = Place(site.database, "", secret, True, self.interface, self.server_user)
        start(site, place)
        return place

    def make_tables(self, site: Site, place: Place) -> None:
        """See ``make_tables``."""
        make_tables(site, place)

    def undo(self, site: Site) -> None:
        """End it and remove it."""
        if self._begun:
            destroy(site)


@dataclass(slots=True)
class GivenServer:
    """A database of a server that exists; ``password_file`` is the user's, or empty."""

    url: str
    password_file: str = ""
    flag: str = "--database"
    """By which the user named it."""
    _place: Place | None = field(default=None, init=False)
    _made: bool = field(default=False, init=False)
    """Whether the tables are ours to remove."""

    def check(self) -> None:
        """Raise WrongCall for what can be told before anything is made."""
        split_url(self.url, self.flag)
        if self.password_file:
            check_secret(_absolute(self.password_file), "--password-file")
        import_driver()

    def prepare(self, site: Site) -> Place:
        """Take note of it; its password, if the URL has one, goes into a file of the site."""
        url, password = split_url(self.url, self.flag)
        secret = _absolute(self.password_file) if self.password_file else None
        if secret is not None:
            check_secret(secret, "--password-file")
        elif password:
            secret = site.path / PASSWORD_FILE
            write_secret(secret, password)
        self._place = Place(site.database, url, secret)
        return self._place

    def make_tables(self, site: Site, place: Place) -> None:
        """See ``make_tables``; remembers that there is something to undo."""
        make_tables(site, place)
        self._made = True

    def undo(self, site: Site) -> None:
        """Remove the tables that were made, and the password."""
        with uninterrupted():
            if self._made and self._place is not None:
                with suppress(NasHpcError):
                    remove_tables(site, self._place)
            (site.path / PASSWORD_FILE).unlink(missing_ok=True)


def fill(site: Site, server: OwnServer | GivenServer) -> str:
    """Make the database of a new site; returns what its site.toml has to say of it."""
    place = server.prepare(site)
    server.make_tables(site, place)
    return toml_table(place.table(site))


def address_of(site: Site, place: Place) -> str:
    """The URL by which the database is reached now. Raises StoreError where the own server does not run."""
    return url_of(site) if place.owned else place.url


def make_tables(site: Site, place: Place) -> None:
    """Make the tables in an empty database.

    Raises SiteError for a database that is not empty, unless it was made for this very site and nothing has
    been put into it.
    """
    store = open_store(address_of(site, place), create=True, password_file=place.password_file)
    with store:
        raw = store.raw()
        key = [OF_SITE, str(site.path)]
        new = raw.execute("INSERT INTO meta VALUES (%s, %s) ON CONFLICT (key) DO NOTHING RETURNING key", key)
        made = new.fetchone() is not None
        [owner] = raw.execute("SELECT value FROM meta WHERE key = %s", [OF_SITE]).fetchone()
        used = bool(store.apps() or store.jobs(JobFilter(limit=1)))
        if owner != str(site.path) or used:
            if made and owner == str(site.path):  # of a program that wrote no owner
                raw.execute("DELETE FROM meta WHERE key = %s", [OF_SITE])
            of = f"those of the site {owner}" if not made else "those of another site"
            raise SiteError(
                f"the database {place.url} holds jobs already, {of}: have an empty one made for this site "
                "(createdb NAME), or use that site"
            )


def remove_tables(site: Site, place: Place) -> None:
    """Remove all that ``make_tables`` has made."""
    from nas_hpc.store.schema import metadata

    names = ", ".join(f'"{table.name}"' for table in metadata.sorted_tables)
    with open_store(address_of(site, place), password_file=place.password_file) as store:
        raw: Any = store.raw()
        raw.execute(f"DROP TABLE IF EXISTS {names}, witness CASCADE")
        raw.execute("DROP FUNCTION IF EXISTS events_keep() CASCADE")


def import_driver() -> None:
    """Raise WrongCall if the library that speaks with PostgreSQL is missing."""
    from nas_hpc.errors import WrongCall

    try:
        import psycopg  # noqa: F401
    except ImportError as error:
        raise WrongCall(
            f'a PostgreSQL database needs psycopg ({error}): python -m pip install "nas-hpc[postgres]"'
        ) from None


def _absolute(path: str) -> Path:
    return Path.cwd() / Path(path).expanduser()
