"""``nas-hpc app``: register, replace, remove applications."""

from __future__ import annotations

import importlib.util
import os
import shlex
import sys
from dataclasses import replace as replace_fields
from pathlib import Path

import click

from nas_hpc.cli.client import wake
from nas_hpc.cli.context import Invocation, site_options, working_directory
from nas_hpc.cli.stages import check_command, check_script
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
@click.option(
    "--preprocess", default="", metavar="COMMAND", help="Run in a job's directory before its first attempt."
)
@click.option(
    "--postprocess",
    default="",
    metavar="COMMAND",
    help="Run in a job's directory after its program's success.",
)
@click.option(
    "--environment-script", default="", metavar="FILE", help="Shell script sourced before the program starts."
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
    preprocess: str,
    postprocess: str,
    environment_script: str,
    replace: bool,
    sync: bool,
    remove: str | None,
    yes: bool,
) -> None:
    """Register, replace or remove an application.

    \b
    Examples:
      nas-hpc app --name AMBS --exec "$(which python) -m nas_hpc.apps.ambs"
      nas-hpc app --name SIM --exec ./sim.x --preprocess ./mesh.py --postprocess "./collect.py --all"
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
    if sync:
        new = standard_apps()
    else:
        one = _given_app(name, executable, description, restartable)
        new = [_with_scripts(one, preprocess, postprocess, environment_script)]
    with call.store(write=True) as (site, store):
        known = {old.name: old for old in store.apps()}
        for one in new:
            if known.get(one.name, one) != one and not (replace or sync):
                raise WrongCall(
                    f"application {one.name!r} is registered as {_difference(known[one.name], one)}; add "
                    "--replace to put the new one in its place, or choose another name"
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


def _with_scripts(app: App, preprocess: str, postprocess: str, environment_script: str) -> App:
    cwd = working_directory()
    return replace_fields(
        app,
        preprocess=check_command(preprocess, cwd, "--preprocess") if preprocess else "",
        postprocess=check_command(postprocess, cwd, "--postprocess") if postprocess else "",
        environment_script=(
            check_script(environment_script, cwd, "--environment-script") if environment_script else ""
        ),
    )


def _difference(old: App, new: App) -> str:
    """What the registered one is, where the new one is something else."""
    if old.executable != new.executable:
        return old.executable
    names = [name for name in App.__slots__ if getattr(old, name) != getattr(new, name)]
    return f"{old.executable} with {', '.join(f'{name} {getattr(old, name)!r}' for name in names)}"


def standard_apps() -> list[App]:
    """The searches and controllers of this package, run by this Python."""
    from nas_hpc.apps import CONTROLLERS, STANDARD_APPS

    return [
        App(name, shlex.join([os.path.abspath(sys.executable), "-m", module]), description, restartable=True)
        for name, (module, description) in (STANDARD_APPS | CONTROLLERS).items()
    ]


def check_executable(text: str, cwd: Path) -> str:
    """The command with its program as an absolute path. Raises WrongCall if there is no such program."""
    command = check_command(text, cwd, "--exec")
    own = _own_module(command)
    if own and importlib.util.find_spec(OWN_APPS) is not None and importlib.util.find_spec(own) is None:
        raise WrongCall(f"--exec: there is no application {own}; there are {', '.join(_own_modules())}")
    return command


def _own_module(command: str) -> str:
    """The module below nas_hpc.apps that ``command`` runs by ``-m``, or ""."""
    words = parse_args(command, "--exec")
    for flag, module in zip(words, words[1:], strict=False):
        if flag == "-m":
            return module if module.startswith(OWN_APPS + ".") else ""
    return ""


def _own_modules() -> list[str]:
    from nas_hpc.apps import CONTROLLERS, STANDARD_APPS

    return [module for module, _ in (STANDARD_APPS | CONTROLLERS).values()]
