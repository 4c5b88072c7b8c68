"""``nas-hpc init``."""

from __future__ import annotations

import shlex
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from nas_hpc.cli.context import Invocation, debug_option, machine_option, note
from nas_hpc.errors import WrongCall
from nas_hpc.site import Site, create_site

if TYPE_CHECKING:
    from nas_hpc.batch.machine import Machine
    from nas_hpc.store.making import GivenServer, OwnServer


@machine_option
@click.command(params=[debug_option()])
@click.argument("path", metavar="SITE")
@click.option("--database", metavar="URL", default="", help="Jobs in this PostgreSQL database, an empty one.")
@click.option("--password-file", metavar="FILE", default="", help="Its password, in a file of mode 0600.")
@click.option("--postgres", is_flag=True, help="Make a PostgreSQL server for this site, and start it.")
@click.option("--interface", metavar="NAME", default="", help="Its server listens there, too (hsn0).")
@click.option("--server-user", metavar="USER", default="", help="Who runs its server, when root makes it.")
@click.pass_obj
def init(
    call: Invocation,
    path: str,
    database: str,
    password_file: str,
    postgres: bool,
    interface: str,
    server_user: str,
) -> None:
    """Make a site: a directory with a job database, private to you.

    The database is SQLite unless PostgreSQL is asked for, which several launchers may use at once.

    \b
    Examples:
      nas-hpc init testdb
      source nas-hpc-activate testdb
      nas-hpc init big --postgres --interface hsn0
      nas-hpc init big --database postgresql://me@dbhost/mine --password-file ~/.mine
    """
    server = wanted_server(database, password_file, postgres, interface, server_user)
    with ended_in_order():
        site = new_site(path, server, call.machine(None))
    print(f"made the site {site.path}")
    if database:
        from nas_hpc.store.place import place_of

        print(f"its jobs are in {place_of(site).url}")
    if postgres:
        from nas_hpc.store.server import read_record

        record = read_record(site)
        assert record is not None
        print(f"its PostgreSQL {record.version} runs ({record.where}); end it with: nas-hpc db stop")
    word = shlex.quote(path)
    print(f"use it with:  source nas-hpc-activate {word}   (or --site {word}, or from a directory below it)")


def wanted_server(
    database: str,
    password_file: str,
    postgres: bool,
    interface: str,
    server_user: str,
    flag: str = "--database",
) -> OwnServer | GivenServer | None:
    """What the flags ask for; None: SQLite. Raises WrongCall for those that do not go together."""
    if database and postgres:
        raise WrongCall(f"{flag} and --postgres do not go together: give one of them")
    if password_file and not database:
        raise WrongCall(f"--password-file {password_file} goes with {flag}, which is missing")
    for name, value in (("--interface", interface), ("--server-user", server_user)):
        if value and not postgres:
            raise WrongCall(f"{name} {value} goes with --postgres, which is missing")
    if not database and not postgres:
        return None
    from nas_hpc.store.making import GivenServer, OwnServer
    from nas_hpc.store.place import split_url

    server = OwnServer(interface, server_user) if postgres else GivenServer(database, password_file, flag)
    if database and split_url(database, flag)[1]:
        note(
            "note: others on this host can see the password of a command's arguments while it runs: "
            "--password-file FILE keeps it to yourself"
        )
    server.check()
    return server


def new_site(
    path: str, server: OwnServer | GivenServer | None = None, machine: Machine | None = None
) -> Site:
    """A site with an empty database: SQLite, or on ``server``; with what ``machine`` says of file systems."""
    shared = machine.shared_filesystem if machine is not None else "auto"
    own = "" if shared == "auto" else f'shared_filesystem = "{shared}"\n'
    if server is None:
        return create_site(path, lambda site: _make_database(site, own))
    from nas_hpc.store.making import fill

    return create_site(path, lambda site: own + (fill(site, server) or ""), server.undo)


@contextmanager
def ended_in_order() -> Iterator[None]:
    """Have a signal that ends a process end it as Ctrl-C does: what was half made is removed. Further ones do
    not disturb that."""
    came: list[int] = []

    def interrupt(number: int, frame: object) -> None:
        came.append(number)
        if len(came) == 1:
            raise KeyboardInterrupt

    before: dict[int, Any] = {}
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            before[number] = signal.signal(number, interrupt)
    try:
        yield
    finally:
        for ending, handler in before.items():
            signal.signal(ending, handler)


def _make_database(site: Site, more: str) -> str:
    from nas_hpc.store import open_store

    open_store(site.database, create=True).close()
    return more
