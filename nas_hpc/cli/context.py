"""What every command shares: the flags --site and --debug, the site, the settings, the open database.

Imports nothing heavy: the database's library is loaded when a command opens it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click

from nas_hpc.errors import SiteError, WrongCall

if TYPE_CHECKING:
    from nas_hpc.batch.machine import Machine
    from nas_hpc.config import Settings
    from nas_hpc.site import Site
    from nas_hpc.store.base import Store

Function = TypeVar("Function", bound=Callable[..., Any])


class Invocation:
    """One call of the program."""

    def __init__(self) -> None:
        self.site_flag = ""
        self.machine_flag = ""
        self.debug = False

    def site(self) -> Site:
        """The site that this call is about. Raises SiteError."""
        from nas_hpc.site import find_site

        return find_site(self.site_flag or None, os.environ, working_directory())

    def settings(self, site: Site | None, flags: Mapping[str, object] | None = None) -> Settings:
        """The settings that hold for this call, those of its machine among them. Raises ConfigError, and
        WrongCall for a machine that is none.
        """
        return settings_of(site, {"machine": self.machine_flag or None, **(flags or {})})

    def machine(self, site: Site | None, settings: Settings | None = None) -> Machine:
        """The machine that ``settings`` name (None: flag or environment), or that this host belongs to.

        Raises WrongCall, ConfigError.
        """
        from nas_hpc.batch.machines import choose
        from nas_hpc.config import machine_setting

        named = settings.machine if settings is not None else machine_setting(os.environ, self.machine_flag)
        return choose(named, site.path if site is not None else None, os.environ).machine

    @contextmanager
    def store(self, *, write: bool) -> Iterator[tuple[Site, Store]]:
        """The site and its open database. Raises SiteError where ``write`` is asked for and not possible."""
        site = self.site()
        if write:
            site.check_writable()
        with open_database(site, read_only=not write) as store:
            yield site, store


def settings_of(site: Site | None, flags: Mapping[str, object] | None = None) -> Settings:
    """The settings that hold: of the machine, of ``site``, of the environment, ``flags``.

    Raises ConfigError, and WrongCall for a machine that is none.
    """
    from nas_hpc.batch.machines import choose, layer
    from nas_hpc.config import load_settings, machine_setting
    from nas_hpc.site import read_site_file

    values, file = (read_site_file(site), str(site.file)) if site is not None else ({}, "site.toml")
    flag = str((flags or {}).get("machine") or "")
    named = machine_setting(os.environ, flag, site_values=values, site_file=file)
    machine = choose(named, site.path if site is not None else None, os.environ).machine
    return load_settings(
        os.environ,
        flags,
        site_values=values,
        site_file=file,
        machine_values=layer(machine, os.environ),
        machine_file=f"machine {machine.name} ({machine.origin})",
    )


@contextmanager
def open_database(site: Site, *, read_only: bool = False) -> Iterator[Store]:
    """The open database of ``site``."""
    from nas_hpc.store.place import place_of

    if place_of(site).kind == "sqlite" and not site.database.is_file():
        raise SiteError(
            f"the site {site.path} has lost its database {site.database.name}; restore it from a copy, or "
            "make a new "
            "site with: nas-hpc init NAME"
        )
    store = _open(site, read_only)
    try:
        yield store
    finally:
        store.close()


def _open(site: Site, read_only: bool) -> Store:
    from nas_hpc.store.owner import is_shared

    if not is_shared(site):
        from nas_hpc.store import open_site

        return open_site(site, read_only=read_only)
    from nas_hpc.resources.ends import has_ended
    from nas_hpc.store.remote import RemoteStore

    settings = settings_of(site)
    remote = RemoteStore(
        site,
        read_only=read_only,
        heartbeat_s=settings.heartbeat_s.value,
        batch_ended=partial(has_ended, environ=os.environ),
    )
    return cast("Store", remote)  # what it lacks is for launchers


def working_directory() -> Path:
    """Where the user stands. Raises SiteError if that directory was removed."""
    try:
        return Path.cwd()
    except FileNotFoundError:
        raise SiteError("the working directory does not exist any more; cd to another one") from None


def _take_site(ctx: click.Context, _param: click.Parameter, value: str | None) -> None:
    if value is not None:
        if not value.strip():
            raise SiteError("--site is empty; give the path of a site, or leave the flag out")
        ctx.ensure_object(Invocation).site_flag = value


def _take_debug(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if value:
        ctx.ensure_object(Invocation).debug = True


def _take_machine(ctx: click.Context, _param: click.Parameter, value: str | None) -> None:
    if value is not None:
        if not value.strip():
            raise WrongCall("--machine is empty; give the name of a machine, or leave the flag out")
        ctx.ensure_object(Invocation).machine_flag = value


def machine_option(command: Function) -> Function:
    """Give a command --machine. Goes above ``click.command``."""
    assert isinstance(command, click.Command)
    command.params.append(
        click.Option(
            ["--machine"],
            metavar="NAME",
            expose_value=False,
            is_eager=True,
            callback=_take_machine,
            help="The machine (theta, slurm, local ...); default: that of this host.",
        )
    )
    return command


def site_option() -> click.Option:
    """``--site PATH``."""
    return click.Option(
        ["--site"],
        metavar="PATH",
        expose_value=False,
        is_eager=True,
        callback=_take_site,
        help="The site to work on.",
    )


def debug_option() -> click.Option:
    """``--debug``."""
    return click.Option(
        ["--debug"],
        is_flag=True,
        expose_value=False,
        is_eager=True,
        callback=_take_debug,
        help="Show tracebacks.",
    )


def site_options(command: Function) -> Function:
    """Give a command --site and --debug, so that they may stand behind its name too. Goes above
    ``click.command``.
    """
    assert isinstance(command, click.Command)
    command.params += [site_option(), debug_option()]
    command.context_settings.setdefault("help_option_names", ["-h", "--help"])
    return command


def note(text: str) -> None:
    """Say something to the user that is not the command's output."""
    print(text, file=sys.stderr, flush=True)
