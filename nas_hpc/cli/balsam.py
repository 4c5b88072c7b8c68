"""``nas-hpc balsam``: the searches of this package in a database of Balsam classic."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nas_hpc.cli.context import Invocation, debug_option, note, site_option, working_directory
from nas_hpc.cli.output import print_json, print_table
from nas_hpc.errors import SiteError, WorkFailed, WrongCall

if TYPE_CHECKING:
    from nas_hpc.integrations.balsam.process import Bridge


@click.group(
    invoke_without_command=True,
    no_args_is_help=False,
    params=[site_option(), debug_option()],
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.pass_context
def balsam(ctx: click.Context) -> None:
    """Searches in a database of Balsam classic, under Balsam's own launcher.

    \b
    Example:
      nas-hpc balsam register my-database
    """
    if ctx.invoked_subcommand is None:
        raise WrongCall("balsam: say what: nas-hpc balsam register, protect")


@balsam.command(params=[site_option(), debug_option()])
@click.argument("database", type=click.Path(path_type=Path))
@click.option("--python", metavar="PATH", default="", help="Interpreter with nas-hpc. [default: this one]")
@click.option("--replace", is_flag=True, help="Change applications that are there with another command.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def register(call: Invocation, database: Path, python: str, replace: bool, as_json: bool) -> None:
    """Enter the searches (AMBS, PPO, EVO, RAN), and what runs their evaluations, as applications.

    DATABASE is the directory that `balsam init` made. Its server has to run: `source balsamactivate DATABASE`
    starts it.

    \b
    Example:
      nas-hpc balsam register my-database
    """
    wanted = _applications(_interpreter(python))
    with _bridge(call, database) as bridge:
        hello = _asked(bridge, "hello")
        there = hello["applications"]
        for one in wanted:
            name, command = one["name"], one["executable"]
            if not replace and there.get(name, command).split() != command.split():
                raise WrongCall(
                    f"{name} is registered with {there[name]!r}: --replace changes it to {command!r}"
                )
        done = _asked(bridge, "register", applications=wanted, replace=replace)
    if as_json:
        print_json({**done, "applications": wanted, "trust": hello["trust"], "database": hello["database"]})
    else:
        states = {name: state for state in ("added", "changed", "same") for name in done[state]}
        rows = [(one["name"], states[one["name"]], one["executable"]) for one in wanted]
        print_table(("application", "", "command"), rows)
    if not done["trigger"]:
        note(
            f"nas-hpc: note: searches look for changes once a second: {hello['user']} may not make a trigger"
        )
    if hello["trust"]:
        note(
            f"nas-hpc: note: whoever reaches {hello['host']}:{hello['port']} may do all in this database, "
            f"and run programs as its owner: nas-hpc balsam protect {database} sets a password"
        )


@balsam.command(params=[site_option(), debug_option()])
@click.argument("database", type=click.Path(path_type=Path))
@click.pass_obj
def protect(call: Invocation, database: Path) -> None:
    """Set a password in a database that lets in whoever reaches its port, as `balsam init` leaves it.

    Balsam's programs find it in DATABASE/server-info, which only its owner can read from then on. What is
    connected stays connected.

    \b
    Example:
      nas-hpc balsam protect my-database
    """
    with _bridge(call, database) as bridge:
        done = _asked(bridge, "protect")
    print(
        f"{database}: "
        + ("a password is asked for" if done["changed"] else "a password was asked for already")
    )


def _bridge(call: Invocation, database: Path) -> Bridge:
    """To a database that is a directory. Raises WrongCall."""
    from nas_hpc.integrations.balsam.process import Bridge
    from nas_hpc.integrations.balsam.where import VARIABLE

    path = working_directory() / database.expanduser()
    if not path.is_dir():
        raise WrongCall(f"{path} is no directory: give that of a Balsam database, which balsam init makes")
    try:
        site = call.site()
    except SiteError:
        if call.site_flag:
            raise
        site = None  # none is needed
    chosen = call.settings(site).balsam_python.value
    return Bridge(path, {**os.environ, **({VARIABLE: chosen} if chosen else {})})


def _asked(bridge: Bridge, do: str, **fields: Any) -> dict[str, Any]:
    """The answer to a request. Raises WrongCall for a database that cannot be meant, else WorkFailed."""
    from nas_hpc.integrations.balsam.protocol import BridgeError

    try:
        return bridge.call(do, **fields)
    except BridgeError as error:
        raise (WrongCall if error.kind == "missing" else WorkFailed)(error.message) from None


def _interpreter(given: str) -> str:
    """Absolute, and with this package. Raises WrongCall."""
    if not given:
        return os.path.abspath(sys.executable)
    path = os.path.abspath(working_directory() / os.path.expanduser(given))
    try:
        done = subprocess.run(
            [path, "-c", "import nas_hpc.apps.program"], stdin=subprocess.DEVNULL, capture_output=True,
            text=True, timeout=120, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        raise WrongCall(f"--python {given!r} cannot be run: {error}") from None
    if done.returncode != 0:
        why = done.stderr.strip().split("\n")[-1]
        raise WrongCall(f"--python {given!r} cannot load nas-hpc ({why}): install it there, or give another")
    return path


def _applications(python: str) -> list[dict[str, str]]:
    from nas_hpc.apps import STANDARD_APPS
    from nas_hpc.integrations.balsam.engine import TRIAL, command_of
    from nas_hpc.integrations.balsam.protocol import TRIAL_APPLICATION

    modules = {**STANDARD_APPS, TRIAL_APPLICATION: TRIAL}
    return [
        {"name": name, "executable": command_of(module, python), "description": description}
        for name, (module, description) in modules.items()
    ]
