"""``nas-hpc app``: register, replace, remove applications."""

from __future__ import annotations

import importlib.util
import os
import shlex
import shutil
import sys
from pathlib import Path

import click

from nas_hpc.cli.client import wake
from nas_hpc.cli.context import Invocation, site_options, working_directory
from nas_hpc.cli.types import Name, parse_args
from nas_hpc.errors import WrongCall
from nas_hpc.records import App

OWN_APPS = "nas_hpc.apps"


@site_options
@click.command()
@click.option("--name", type=Name(), help="Name by which jobs call it.")
@click.option(
    "--exec", "--executable", "executable", metavar="COMMAND", help="Program and its first arguments."
)
@click.option("--description", default="", help="For people.")
@click.option(
    "--restartable/--no-restartable",
    default=None,
    help="It goes on where it was when started again (searches). Default: yes for nas_hpc.apps, else no.",
)
@click.option("--replace", is_flag=True, help="Replace an application of the same name.")
@click.option("--sync", is_flag=True, help="Register the searches of nas-hpc for this Python.")
@click.option("--rm", "remove", metavar="NAME", help="Remove an application.")
@click.option("--yes", is_flag=True, help="Accepted, as in Balsam; nothing is asked.")
@click.pass_obj
def app(
    call: Invocation,
    name: str | None,
    executable: str | None,
    description: str,
    restartable: bool | None,
    replace: bool,
    sync: bool,
    remove: str | None,
    yes: bool,
) -> None:
    """Register, replace or remove an application.

    \b
    Examples:
      nas-hpc app --name AMBS --exec "$(which python) -m nas_hpc.apps.ambs"
      nas-hpc app --sync
      nas-hpc app --rm AMBS
    """
    wishes = [
        flag for flag, given in (("--name", name or executable), ("--sync", sync), ("--rm", remove)) if given
    ]
    if len(wishes) != 1:
        said = f"{' and '.join(wishes)} do not go together" if wishes else "nothing to do"
        raise WrongCall(f"app: {said}; give either --name NAME --exec COMMAND, or --sync, or --rm NAME")
    if remove:
        with call.store(write=True) as (_, store):
            store.remove_app(remove)
        print(f"removed application {remove}")
        return
    new = standard_apps() if sync else [_given_app(name, executable, description, restartable)]
    with call.store(write=True) as (site, store):
        known = {old.name: old.executable for old in store.apps()}
        for one in new:
            if known.get(one.name, one.executable) != one.executable and not (replace or sync):
                raise WrongCall(
                    f"application {one.name!r} is registered as {known[one.name]}; add --replace to put the "
                    "new one in "
                    "its place, or choose another name"
                )
            store.put_app(one, replace=replace or sync)
    for one in new:
        print(f"registered application {one.name}: {one.executable}")
    wake(site)


def _given_app(name: str | None, executable: str | None, description: str, restartable: bool | None) -> App:
    if not name or executable is None:
        missing = "--name NAME" if not name else "--exec COMMAND"
        raise WrongCall(f"app: {missing} is missing; an application has a name and a command")
    command = check_executable(executable, working_directory())
    own = _own_module(command)
    return App(name, command, description, bool(own) if restartable is None else restartable)


def standard_apps() -> list[App]:
    """The searches of this package, run by this Python."""
    from nas_hpc.apps import STANDARD_APPS

    return [
        App(name, shlex.join([os.path.abspath(sys.executable), "-m", module]), description, restartable=True)
        for name, (module, description) in STANDARD_APPS.items()
    ]


def check_executable(text: str, cwd: Path) -> str:
    """The command with its program as an absolute path. Raises WrongCall if there is no such program."""
    words = parse_args(text, "--exec")
    if not words or not words[0]:
        raise WrongCall(
            f'--exec {text!r} names no program; give one, as in --exec "$(which python) -m my.search"'
        )
    program = words[0]
    if "/" in program:
        path = Path(os.path.normpath(cwd / Path(program).expanduser()))
        if not path.exists():
            raise WrongCall(f"--exec: the program {path} does not exist; give the path of one that does")
        if path.is_dir():
            raise WrongCall(f"--exec: {path} is a directory; give the path of a program")
        if not os.access(path, os.X_OK):
            raise WrongCall(
                f"--exec: {path} is not executable; chmod +x it, or name its interpreter in front of it"
            )
    else:
        found = shutil.which(program)
        if found is None:
            raise WrongCall(f"--exec: there is no program {program!r} on PATH; give its absolute path")
        path = Path(os.path.abspath(found))
    own = _own_module(text)
    if own and importlib.util.find_spec(OWN_APPS) is not None and importlib.util.find_spec(own) is None:
        raise WrongCall(f"--exec: there is no application {own}; there are {', '.join(_own_modules())}")
    return text if str(path) == program else shlex.join([str(path), *words[1:]])


def _own_module(command: str) -> str:
    """The module below nas_hpc.apps that ``command`` runs by ``-m``, or ""."""
    words = parse_args(command, "--exec")
    for flag, module in zip(words, words[1:], strict=False):
        if flag == "-m":
            return module if module.startswith(OWN_APPS + ".") else ""
    return ""


def _own_modules() -> list[str]:
    from nas_hpc.apps import STANDARD_APPS

    return [module for module, _ in STANDARD_APPS.values()]
