"""``nas-hpc init``."""

from __future__ import annotations

import shlex

import click

from nas_hpc.cli.context import debug_option
from nas_hpc.site import Site, create_site


@click.command(params=[debug_option()])
@click.argument("path", metavar="SITE")
def init(path: str) -> None:
    """Make a site: a directory with a job database, private to you.

    \b
    Example:
      nas-hpc init testdb
      source nas-hpc-activate testdb
    """
    site = new_site(path)
    print(f"made the site {site.path}")
    word = shlex.quote(path)
    print(f"use it with:  source nas-hpc-activate {word}   (or --site {word}, or from a directory below it)")


def new_site(path: str) -> Site:
    """A site with an empty database."""
    return create_site(path, _make_database)


def _make_database(site: Site) -> None:
    from nas_hpc.store import open_store

    open_store(site.database, create=True).close()
