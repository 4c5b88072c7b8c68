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

from nas_hpc.errors import SiteError

if TYPE_CHECKING:
    from nas_hpc.batch.machine import Machine
    from nas_hpc.config import MachineLayer, Setting, Settings
    from nas_hpc.site import Site
    from nas_hpc.store.base import Store

Function = TypeVar("Function", bound=Callable[..., Any])


class Invocation:
    """One call of the program."""

    def __init__(self) -> None:
        self.site_flag = ""
        self.machine_flag = ""
        self.debug = False
        self._asks = False
        self._layers: dict[tuple[str, str], MachineLayer] = {}

    def site(self) -> Site:
        """The site that this call is about. Raises SiteError."""
        from nas_hpc.site import find_site

        self._ask_for_machine()
        return find_site(self.site_flag or None, os.environ, working_directory())

    def settings(self, site: Site | None, flags: Mapping[str, object] | None = None) -> Settings:
        """The settings that hold for this call, those of its machine among them. Raises ConfigError, and
        WrongCall for a machine that is none.
        """
        from nas_hpc.config import load_settings
        from nas_hpc.site import read_site_file

        self._ask_for_machine()
        flags = {"machine": self.machine_flag or None, **(flags or {})}
        if site is None:
            return load_settings(os.environ, flags)
        return load_settings(os.environ, flags, site_values=read_site_file(site), site_file=str(site.file))

    def machine(self, site: Site | None, settings: Settings) -> Machine:
        """The machine that ``settings`` name, or that this host belongs to. Raises WrongCall, ConfigError."""
        from nas_hpc.batch.machines import find_machine

        return find_machine(settings, site, os.environ)

    def close(self) -> None:
        """The call is over: settings have no machine any more."""
        if self._asks:
            from nas_hpc.config import ask_for_machine

            ask_for_machine(None)

    def _ask_for_machine(self) -> None:
        from nas_hpc.config import ask_for_machine

        self._asks = True
        ask_for_machine(self._machine_layer)

    def _machine_layer(self, setting: Setting[str], site_file: str) -> MachineLayer:
        """What the machine's file says of settings; see ``nas_hpc.config.ask_for_machine``."""
        from nas_hpc.batch.machines import choose, layer
        from nas_hpc.config import Setting

        if self.machine_flag:
            setting = Setting(self.machine_flag, "flag --machine")
        asked = (setting.value, site_file)
        if asked not in self._layers:
            machine = choose(setting, Path(site_file).parent if site_file else None, os.environ).machine
            said = f"machine {machine.name} ({machine.origin})"
            self._layers[asked] = (layer(machine, os.environ), said)
        return self._layers[asked]

    @contextmanager
    def store(self, *, write: bool) -> Iterator[tuple[Site, Store]]:
        """The site and its open database. Raises SiteError where ``write`` is asked for and not possible."""
        site = self.site()
        if write:
            site.check_writable()
        with open_database(site, read_only=not write) as store:
            yield site, store


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
    from nas_hpc.config import load_settings
    from nas_hpc.resources.ends import has_ended
    from nas_hpc.site import read_site_file
    from nas_hpc.store.remote import RemoteStore

    settings = load_settings(os.environ, site_values=read_site_file(site), site_file=str(site.file))
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
    if value:
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
