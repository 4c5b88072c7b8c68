"""Whether the modules that a search is told to load can be found, without importing any of them.

A user's module may take seconds to import, open a GPU, or fail; that is the search's and the evaluations'
affair. A name that no import could ever find is told to the user when he submits, not when the job runs at
night.
"""

from __future__ import annotations

import difflib
import importlib.util
import os
import shlex
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder

from nas_hpc.errors import WrongCall
from nas_hpc.records import App, Origin

_EXAMPLE = {"problem": "Problem", "run": "run"}
_FLAGS = {"--problem": "problem", "-p": "problem", "--run": "run", "-r": "run"}


def search_flags(words: Sequence[str]) -> dict[str, str]:
    """Values of --problem and --run among ``words``."""
    found = {}
    for index, word in enumerate(words):
        flag, equals, value = word.partition("=")
        if flag in _FLAGS:
            found[_FLAGS[flag]] = value if equals else (words[index + 1] if index + 1 < len(words) else "")
    return found


def is_search(app: App) -> bool:
    """Whether an application is a search of nas-hpc."""
    from nas_hpc.apps import CONTROLLERS

    words = app.executable.split()
    modules = [after for word, after in zip(words, words[1:], strict=False) if word == "-m"]
    controllers = {module for module, _ in CONTROLLERS.values()}
    return any(one.startswith("nas_hpc.apps.") and one not in controllers for one in modules)


def has_agents(app: App) -> bool:
    """Whether an application is the search of nas-hpc whose ranks are agents."""
    from nas_hpc.apps import BY_AGENTS, STANDARD_APPS

    return f"-m {STANDARD_APPS[BY_AGENTS][0]}" in app.executable


def check_search_args(app: App, words: Sequence[str], origin: Origin) -> None:
    """Raise WrongCall if ``app`` is a search of nas-hpc and its --problem or --run can never be loaded."""
    if not is_search(app):
        return
    given = search_flags(words)
    for kind, example in _EXAMPLE.items():
        if kind not in given:
            raise WrongCall(f"--args of {app.name} has no --{kind}; add --{kind} package.module.{example}")
    if shlex.split(app.executable)[:1] != [origin.interpreter]:
        return  # another Python has other modules: only that one can tell
    for kind, path in given.items():
        check_findable(f"--{kind}", path, origin, _EXAMPLE[kind])


def check_findable(flag: str, path: str, origin: Origin, example: str) -> None:
    """Raise WrongCall unless ``path`` (``package.module.name``, ``package.module:name``, ``file.py:name``)
    names a module or file that is there."""
    file = path.partition(":")[0]
    if file.endswith(".py"):
        if not any(
            os.path.isfile(os.path.join(entry, os.path.expanduser(file))) for entry in origin.sys_path
        ):
            looked = "" if os.path.isabs(file) else f" in {', '.join(origin.sys_path)}"
            right = f"give a .py file or package.module.{example}"
            raise WrongCall(f"{flag} {path!r}: there is no file {file}{looked}; {right}")
        return
    parts = path.replace(":", ".", 1).split(".")
    if len(parts) < 2 or not all(part.isidentifier() for part in parts):
        raise WrongCall(
            f"{flag} {path!r} is no dotted name; write package.module.{example} or /path/file.py:{example}"
        )
    if parts[0] == "__main__":
        raise WrongCall(
            f"{flag} {path!r} lives in __main__, where no other process can find it; move it to a module"
        )
    spec = _top_level(parts[0], origin.sys_path)
    if spec is None:
        looked = ", ".join(origin.sys_path) or "nowhere"
        raise WrongCall(
            f"{flag} {path!r}: there is no module {parts[0]!r} in {looked}, nor installed "
            f"for {sys.executable}; correct the name, or add its directory to PYTHONPATH"
        )
    for depth, part in enumerate(parts[1:-1], start=1):
        here = ".".join(parts[:depth])
        if spec.submodule_search_locations is None:
            raise WrongCall(f"{flag} {path!r}: {here} is a module, not a package; write {here}.{example}")
        # By its bare name: under its full name a folder without __init__.py would ask for its imported
        # parent.
        below = PathFinder.find_spec(part, _folders(spec))
        if below is None:
            raise WrongCall(f"{flag} {path!r}: {here} has no module {part!r}{_there(spec, part)}")
        spec = below


def _top_level(name: str, sys_path: Sequence[str]) -> ModuleSpec | None:
    spec = PathFinder.find_spec(name, [*sys_path, *sys.path])
    if spec is None:
        try:
            spec = importlib.util.find_spec(name)  # built in, or installed to be edited
        except ValueError:
            return None
    return spec


def _folders(spec: ModuleSpec) -> list[str]:
    """Where a package's modules are; ``_path`` because iterating over a namespace's looks at sys.path
    again.
    """
    locations = spec.submodule_search_locations
    return [] if locations is None else list(getattr(locations, "_path", locations))


def _there(spec: ModuleSpec, wanted: str) -> str:
    """The modules of a package for a message: those like ``wanted``, else the first ones."""
    names = set()
    for location in _folders(spec):
        try:
            entries = sorted(os.listdir(location))
        except OSError:
            continue
        for entry in entries:
            stem, dot, suffix = entry.partition(".")
            is_package = os.path.isfile(os.path.join(location, entry, "__init__.py"))
            if not stem.startswith("_") and (suffix == "py" or (not dot and is_package)):
                names.add(stem)
    near = difflib.get_close_matches(wanted, sorted(names), n=1)
    if near:
        return f"; did you mean {near[0]!r}?"
    return f"; it has {', '.join(sorted(names)[:8])}" if names else ""
