"""``nas-hpc db``: the site's job database, its own PostgreSQL server above all."""

from __future__ import annotations

from typing import Any

import click

from nas_hpc.cli.context import Invocation, site_options
from nas_hpc.cli.output import print_json, show_time
from nas_hpc.cli.sites import ended_in_order, wanted_server
from nas_hpc.errors import WrongCall
from nas_hpc.site import Site


@site_options
@click.group(invoke_without_command=True, no_args_is_help=False)
@click.pass_context
def db(ctx: click.Context) -> None:
    """The site's job database: its own PostgreSQL server, and moving there.

    \b
    Examples:
      nas-hpc db start --interface hsn0
      nas-hpc db status
    """
    if ctx.invoked_subcommand is None:
        raise WrongCall("db: say what: nas-hpc db start, stop, status or move")


@site_options
@db.command()
@click.option(
    "--interface", metavar="NAME", default="", help="Listen there, too; none: nowhere. [default: as at init]"
)
@click.option("--gone", metavar="HOST", default="", help="The host where it ran last is gone, or rebooted.")
@click.pass_obj
def start(call: Invocation, interface: str, gone: str) -> None:
    """Start the site's own PostgreSQL server, on this host.

    \b
    Example:
      nas-hpc db start --site testdb --interface hsn0
    """
    site = _owned(call.site())
    from nas_hpc.store.place import place_of
    from nas_hpc.store.starting import start as start_server

    with ended_in_order():
        record = start_server(site, place_of(site), interface=interface, gone=gone)
    listens = f", also on {', '.join(record.addresses)} port {record.port}" if record.addresses else ""
    print(f"PostgreSQL {record.version} of {site.path} runs ({record.where}){listens}")


@site_options
@db.command()
@click.pass_obj
def stop(call: Invocation) -> None:
    """Stop the site's own PostgreSQL server in order; who uses it is sent away and comes back to the next.

    \b
    Example:
      nas-hpc db stop --site testdb
    """
    site = _owned(call.site())
    from nas_hpc.store.server import stop as stop_server

    record = stop_server(site)
    print(f"PostgreSQL {record.version} of {site.path} was stopped ({record.where})")


@site_options
@db.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def status(call: Invocation, as_json: bool) -> int:
    """Where the job database is, since when, its version, size, connections, launchers; exit 1 if it is down.

    \b
    Example:
      nas-hpc db status --site testdb
    """
    from nas_hpc.cli.database_status import status_of

    body = status_of(call.site())
    if as_json:
        print_json(body)
    else:
        for name, value in body.items():
            if value not in ("", None, []):
                print(f"{name.replace('_bytes', ''):<12} {_shown(name, value)}")
    return 0 if body["usable"] else 1


@site_options
@db.command()
@click.option("--to", "url", metavar="URL", default="", help="This PostgreSQL database, an empty one.")
@click.option("--password-file", metavar="FILE", default="", help="Its password, in a file of mode 0600.")
@click.option("--postgres", is_flag=True, help="A PostgreSQL server of the site's own, made and started.")
@click.option("--interface", metavar="NAME", default="", help="That server listens there, too (hsn0).")
@click.option("--server-user", metavar="USER", default="", help="Who runs that server, when root makes it.")
@click.pass_obj
def move(
    call: Invocation, url: str, password_file: str, postgres: bool, interface: str, server_user: str
) -> None:
    """Move the site's jobs from SQLite to PostgreSQL. No launcher may run; the old file is kept.

    \b
    Examples:
      nas-hpc db move --postgres
      nas-hpc db move --to postgresql://me@dbhost/mine --password-file ~/.mine
    """
    site = call.site()
    server = wanted_server(url, password_file, postgres, interface, server_user, "--to")
    if server is None:
        raise WrongCall("db move: say where to: --to postgresql://USER@HOST:5432/DATABASE, or --postgres")
    from nas_hpc.store.moving import move as move_site

    with ended_in_order():
        moved = move_site(site, server)
    rows = sum(moved.counts.values())
    print(
        f"moved {moved.counts['jobs']} jobs and {moved.counts['events']} events ({rows} rows, compared after "
        f"the copy) of {site.path} to PostgreSQL; the old file is {moved.kept}"
    )


def _owned(site: Site) -> Site:
    """``site``, which has a server of its own. Raises WrongCall if it has none."""
    from nas_hpc.store.place import place_of

    place = place_of(site)
    if not place.owned:
        has = f"the database {place.url} of a server that is not its own" if place.url else "SQLite"
        raise WrongCall(
            f"the site {site.path} has no PostgreSQL server of its own to start or stop, it uses {has}; "
            "nas-hpc db status shows it"
        )
    return site


def _shown(name: str, value: Any) -> str:
    if name in ("since", "stopped"):
        return f"{show_time(value)} UTC"
    if name == "size_bytes":
        return f"{value / (1 << 20):.1f} MiB"
    if name == "launchers":
        return "; ".join(f"process {one['pid']} on {one['host']}, {one['slots']} slots" for one in value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
