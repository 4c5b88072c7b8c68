"""Whether the modules that a search is told to load can be found, without importing any of them.

A user's module may take seconds to import, open a GPU, or fail; that is the search's and the evaluations'
affair. A name that no import could ever find is told to the user when he submits, not when the job runs at
night.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder

from nas_hpc.errors import WrongCall
from nas_hpc.records import App, Origin

_FLAGS = {"--problem": "problem", "-p": "problem", "--run": "run", "-r": "run"}


def search_flags(words: Sequence[str]) -> dict[str, str]:
    """Values of --problem and --run among ``words``."""
    found = {}
    for index, word in enumerate(words):
        flag, equals, value = word.partition("=")
        if flag in _FLAGS:
            found[_FLAGS[flag]] = value if equals else (words[index + 1] if index + 1 < len(words) else "")
    return found


def check_search_args(app: App, words: Sequence[str], origin: Origin) -> None:
    """Raise WrongCall if ``app`` is a search of nas-hpc and its --problem or --run can never be loaded."""
    if "-m nas_hpc.apps." not in app.executable:
        return
    given = search_flags(words)
    for kind in ("problem", "run"):
        if kind not in given:
            raise WrongCall(
                f"--args of {app.name} has no --{kind}; add --{kind} package.module.{_EXAMPLE[kind]}"
            )
    if app.executable.split()[0] != origin.interpreter:
        return  # another Python has other modules: only that one can tell
    for kind, dotted in given.items():
        check_findable(f"--{kind}", dotted, origin.sys_path, _EXAMPLE[kind])


_EXAMPLE = {"problem": "Problem", "run": "run"}


def check_findable(flag: str, dotted: str, sys_path: Sequence[str], example: str) -> None:
    """Raise WrongCall unless ``dotted`` begins with a module that can be found and ends with a name in it."""
    parts = dotted.split(".")
    if len(parts) < 2 or not all(part.isidentifier() for part in parts):
        raise WrongCall(f"{flag} {dotted!r} is no dotted path; write package.module.{example}")
    if parts[0] == "__main__":
        raise WrongCall(
            f"{flag} {dotted!r} lives in __main__, which other processes cannot import; put it into a module "
            "of its own"
        )
    spec = _top_level(parts[0], sys_path)
    if spec is None:
        looked = ", ".join(sys_path) or "nowhere"
        raise WrongCall(
            f"{flag} {dotted!r}: there is no module {parts[0]!r}; looked in {looked} and in the installed "
            "packages of "
            f"{sys.executable}"
        )
    for depth, part in enumerate(parts[1:-1], start=1):
        if spec.submodule_search_locations is None:
            return  # attributes of a module: a class, perhaps
        below = PathFinder.find_spec(".".join(parts[: depth + 1]), list(spec.submodule_search_locations))
        if below is None:
            raise WrongCall(
                f"{flag} {dotted!r}: {'.'.join(parts[:depth])} has no module {part!r}{_there(spec)}"
            )
        spec = below


def _top_level(name: str, sys_path: Sequence[str]) -> ModuleSpec | None:
    spec = PathFinder.find_spec(name, [*sys_path, *sys.path])
    if spec is None:
        try:
            spec = importlib.util.find_spec(name)  # built in, or installed to be edited
        except ValueError:
            return None
    return spec


def _there(spec: ModuleSpec) -> str:
    """The modules of a package, for a message."""
    names = set()
    for location in spec.submodule_search_locations or ():
        try:
            entries = sorted(os.listdir(location))
        except OSError:
            continue
        for entry in entries:
            stem, dot, suffix = entry.partition(".")
            is_package = os.path.isfile(os.path.join(location, entry, "__init__.py"))
            if not stem.startswith("_") and (suffix == "py" or (not dot and is_package)):
                names.add(stem)
    return f"; it has {', '.join(sorted(names)[:8])}" if names else ""
