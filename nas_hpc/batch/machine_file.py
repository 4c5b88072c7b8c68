"""Reading the file of a machine: TOML with the keys of ``Machine``. docs/machines.md shows one."""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from nas_hpc.batch.machine import Machine, Queue, Step
from nas_hpc.errors import ConfigError

SYSTEMS = ("cobalt", "pbs", "slurm", "local")

_Check = tuple[type, Callable[[Any], bool], str]
_TEXT: _Check = (str, lambda _: True, "a text")
_WORD: _Check = (str, lambda v: re.fullmatch(r"\S*", v) is not None, "one word, without blanks")
_COUNT: _Check = (int, lambda v: v >= 0, "a whole number, 0 (not known) or more")
_NUMBER: _Check = (int, lambda v: v >= 1, "a whole number, 1 or more")
_WORDS: _Check = (
    list,
    lambda v: all(isinstance(one, str) and re.fullmatch(r"\S+", one) for one in v),
    'a list of words without blanks, such as ["one", "two"]',
)
_PAIRS: _Check = (
    list,
    lambda v: all(isinstance(one, str) and re.fullmatch(r"[^\s=]+=\S+", one) for one in v),
    'a list of "name=value" without blanks',
)
_TABLES: _Check = (
    list,
    lambda v: all(isinstance(one, dict) for one in v),
    "a list of tables",
)

_MACHINE: Mapping[str, _Check] = {
    "title": _TEXT,
    "as_of": _TEXT,
    "system": (str, lambda v: v in SYSTEMS, f"one of {', '.join(SYSTEMS)}"),
    "hosts": _WORDS,
    "variables": _PAIRS,
    "project_required": (bool, lambda _: True, "true or false"),
    "queue": _WORD,
    "queue_flag": (str, lambda v: re.fullmatch(r"(-\S+)?", v) is not None, 'a flag, such as "--qos"'),
    "attrs": _PAIRS,
    "flags": _WORDS,
    "environment": _TEXT,
    "cores": _COUNT,
    "threads_per_core": _NUMBER,
    "gpus": _COUNT,
    "starts_on": (str, lambda v: v in ("first", "head"), '"first" or "head"'),
    "shared_filesystem": (str, lambda v: v in ("auto", "yes", "no"), '"auto", "yes" or "no"'),
    "settings": (dict, lambda _: True, "a table: [settings]"),
    "queues": _TABLES,
}
_NOT_HERE = {
    "machine": "that is chosen before the file is read: remove it",
    "shared_filesystem": "it is a site's own: above [settings] it is written into sites that are made",
}
_QUEUE: Mapping[str, _Check] = {
    "name": (str, lambda v: re.fullmatch(r"\S+", v) is not None, "one word"),
    "description": _TEXT,
    "min_nodes": _NUMBER,
    "max_nodes": _COUNT,
    "min_minutes": _NUMBER,
    "max_minutes": _COUNT,
    "max_queued": _COUNT,
    "steps": _TABLES,
}
_STEP: Mapping[str, _Check] = {"nodes": _NUMBER, "max_minutes": _NUMBER, "min_minutes": _COUNT}


def read_machine(path: Path, name: str = "") -> Machine:
    """The machine of a file; its name is the file's. Raises ConfigError naming file, key and value."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:  # pragma: no cover
        import tomli as tomllib
    try:
        body = tomllib.loads(path.read_bytes().decode())
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}") from None
    except ValueError as error:  # not UTF-8, or not TOML
        raise ConfigError(f"{path} is not valid TOML: {' '.join(str(error).split())}") from None
    return parse_machine(body, name or path.stem, str(path))


def parse_machine(body: Mapping[str, Any], name: str, file: str) -> Machine:
    """The machine ``name`` of a file's content. Raises ConfigError."""
    values = _checked(body, _MACHINE, file, needed=("system",))
    queues = tuple(
        _queue(table, f"{file}: queue {table.get('name', number)!r}")
        for number, table in enumerate(values.pop("queues", ()), 1)
    )
    names = [queue.name for queue in queues]
    for one in names:
        if names.count(one) > 1:
            raise ConfigError(f"{file}: queue {one!r} stands there {names.count(one)} times; once is right")
    for key, why in _NOT_HERE.items():
        if key in values.get("settings", {}):
            raise ConfigError(f"{file}: [settings] has {key}; {why}")
    for key in ("hosts", "variables", "attrs", "flags"):
        values[key] = tuple(values.get(key, ()))
    return Machine(name=name, queues=queues, origin=file, **values)


def _queue(table: Mapping[str, Any], where: str) -> Queue:
    values = _checked(table, _QUEUE, where, needed=("name",))
    steps = tuple(
        Step(**_checked(step, _STEP, f"{where}, step {number}", needed=("nodes", "max_minutes")))
        for number, step in enumerate(values.pop("steps", ()), 1)
    )
    for before, after in zip(steps, steps[1:]):  # noqa: B905 - pairs of neighbours
        if after.nodes <= before.nodes:
            raise ConfigError(
                f"{where}: steps has {after.nodes} nodes after {before.nodes}; numbers of nodes have to rise"
            )
    queue = Queue(steps=steps, **values)
    _check_order(where, "nodes", queue.min_nodes, queue.max_nodes)
    _check_order(where, "minutes", queue.min_minutes, queue.max_minutes)
    for number, step in enumerate(steps, 1):
        _check_order(f"{where}, step {number}", "minutes", step.min_minutes, step.max_minutes)
    return queue


def _check_order(where: str, what: str, least: int, most: int) -> None:
    if most and least > most:
        raise ConfigError(f"{where}: min_{what} is {least} and max_{what} {most}; it has to be the other way")


def _checked(
    table: Mapping[str, Any], checks: Mapping[str, _Check], where: str, *, needed: tuple[str, ...]
) -> dict[str, Any]:
    """The table's values, if all are known and right."""
    for key in needed:
        if key not in table:
            raise ConfigError(f"{where}: {key} is missing; it has to be {checks[key][2]}")
    for key, value in table.items():
        if key not in checks:
            near = difflib.get_close_matches(key, list(checks), n=1, cutoff=0.5)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ConfigError(f"{where}: unknown key {key!r}{hint}; known are {', '.join(checks)}")
        kind, allowed, wanted = checks[key]
        if type(value) is not kind or not allowed(value):
            raise ConfigError(f"{where}: {key} is {value!r}; it has to be {wanted}")
    return dict(table)
