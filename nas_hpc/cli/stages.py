"""Flags and checks of what is done around a job's program: scripts before and after, its parents' files."""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import click

from nas_hpc.cli.types import parse_args
from nas_hpc.errors import WrongCall
from nas_hpc.records import App, ParentFailure, Stages

Function = TypeVar("Function", bound=Callable[..., Any])

_OPTIONS = (
    click.option(
        "--preprocess", metavar="COMMAND", default=None,
        help="Run in its directory before the first attempt, instead of the application's; \"\": nothing.",
    ),
    click.option(
        "--postprocess", metavar="COMMAND", default=None,
        help="Run after a successful attempt, instead of the application's; \"\": nothing.",
    ),
    click.option(
        "--post-error-handler/--no-post-error-handler", default=None,
        help="Run the postprocess command also after a failure; if it succeeds the job is finished.",
    ),
    click.option(
        "--post-timeout-handler/--no-post-timeout-handler", default=None,
        help="The same when the job was out of time.",
    ),
    click.option(
        "--input-files", metavar="PATTERNS", default=None,
        help="Which files of its parents' directories are linked into its own; \"\": none. [default: *]",
    ),
    click.option(
        "--on-parent-failure", type=click.Choice([policy.value for policy in ParentFailure]), default=None,
        help="A parent fails or is killed: fail with it, run all the same, or wait for its retry.",
    ),
)  # fmt: skip


def stage_options(command: Function) -> Function:
    """The flags of a job's ``Stages``; their values are None where not given."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def stages_from(flags: Mapping[str, Any], base: Stages, app: App | None, cwd: Path) -> Stages:
    """``base`` with the given ones of ``stage_options`` put in. Raises WrongCall for what cannot be run."""
    given = {name: flags[name] for name in Stages.__slots__ if flags.get(name) is not None}
    for name in ("preprocess", "postprocess"):
        if given.get(name):
            given[name] = check_command(given[name], cwd, f"--{name}")
    if "on_parent_failure" in given:
        given["on_parent_failure"] = ParentFailure(given["on_parent_failure"])
    if "input_files" in given:
        given["input_files"] = _check_patterns(given["input_files"])
    stages = replace(base, **given)
    script = stages.postprocess if stages.postprocess is not None else (app.postprocess if app else "")
    handlers = ("post_error_handler", "post_timeout_handler")
    for flag in handlers if given.keys() & {"postprocess", *handlers} else ():
        if getattr(stages, flag) and not script:
            raise WrongCall(
                f"--{flag.replace('_', '-')}: the job has no postprocess command to handle it; give one with "
                "--postprocess, or register one with its application"
            )
    return stages


def _check_patterns(text: str) -> str:
    for pattern in text.split():
        if pattern.startswith("/") or ".." in PurePosixPath(pattern).parts:
            raise WrongCall(
                f"--input-files {pattern!r} leads out of the parents' directories; give patterns of files in "
                "them, as in --input-files '*.dat model/*.h5'"
            )
    return " ".join(text.split())


def check_command(text: str, cwd: Path, flag: str) -> str:
    """The command with its program as an absolute path. Raises WrongCall if there is no such program."""
    words = parse_args(text, flag)
    if not words or not words[0]:
        raise WrongCall(
            f'{flag} {text!r} names no program; give one, as in {flag} "$(which python) -m my.search"'
        )
    program = words[0]
    if "/" in program:
        path = Path(os.path.normpath(cwd / Path(program).expanduser()))
        if not path.exists():
            raise WrongCall(f"{flag}: the program {path} does not exist; give the path of one that does")
        if path.is_dir():
            raise WrongCall(f"{flag}: {path} is a directory; give the path of a program")
        if not os.access(path, os.X_OK):
            raise WrongCall(
                f"{flag}: {path} is not executable; chmod +x it, or name its interpreter in front of it"
            )
    else:
        found = shutil.which(program)
        if found is None:
            raise WrongCall(f"{flag}: there is no program {program!r} on PATH; give its absolute path")
        path = Path(os.path.abspath(found))
    return text if str(path) == program else shlex.join([str(path), *words[1:]])


def check_script(text: str, cwd: Path, flag: str) -> str:
    """The absolute path of a shell script to be sourced. Raises WrongCall if it cannot be read."""
    path = Path(os.path.normpath(cwd / Path(text).expanduser()))
    if not path.is_file():
        what = "is no file" if path.exists() else "does not exist"
        raise WrongCall(f"{flag}: {path} {what}; give the path of a shell script")
    if not os.access(path, os.R_OK):
        raise WrongCall(f"{flag}: {path} cannot be read; chmod +r it")
    return str(path)
