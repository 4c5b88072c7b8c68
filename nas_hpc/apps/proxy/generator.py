"""The proxy tasks that a user's generator makes: found by name, called with the baseline's flags, checked."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from nas_hpc.apps.functions import resolve_file
from nas_hpc.apps.proxy.tool import SEARCH_TASK, read_state_of
from nas_hpc.errors import WrongCall
from nas_hpc.loading import load_callable, one_line
from nas_hpc.names import MAX_NAME, wrong_name
from nas_hpc.plain import plain
from nas_hpc.trial.proxy_tasks import ProxyTaskConfig

_WHAT = "proxy task config generator"
_OURS = ("nas-params-str", "job-dir", "retrain-search-job-dir", "retrain-search-job-trials",
         "retrain-use-search-job-checkpoint")  # fmt: skip
"""Flags of a trainer that the search gives itself."""


def make_tasks(path: str, baseline_args: Mapping[str, str]) -> list[ProxyTaskConfig]:
    """The tasks of the generator at "module.function" or "file.py:function", in its order, their flags as
    text.

    Raises WrongCall for a generator that is none or raises, returns no tasks, one without a name that a
    directory can have, two with one name, or flags that are no flags.
    """
    generate = load_callable(resolve_file(path), _WHAT, "generate(baseline_args)")
    try:
        made = generate(dict(baseline_args))
    except WrongCall as error:
        raise WrongCall(f"{_WHAT} {path!r}: {error}") from error
    except Exception as error:
        raised = f"{type(error).__name__}: {one_line(error)}"
        raise WrongCall(f"{_WHAT} {path!r} raised {raised}: correct it") from error
    if not isinstance(made, list | tuple):
        kind = "nothing" if made is None else f"a {type(made).__name__}"
        raise WrongCall(f"{_WHAT} {path!r} returned {kind}: return a list of ProxyTaskConfig(name, flags)")
    if not made:
        raise WrongCall(f"{_WHAT} {path!r} returned no proxy task: return at least one")
    tasks: dict[str, ProxyTaskConfig] = {}
    for place, one in enumerate(made, start=1):
        task = _checked(one, f"{_WHAT} {path!r}: task {place}")
        if task.name in tasks:
            raise WrongCall(f"{_WHAT} {path!r} returned two tasks with the name {task.name!r}: name each one")
        tasks[task.name] = task
    return list(tasks.values())


def hash_of(flags: Mapping[str, Any]) -> str:
    """By which a task is known again: of the same flags the same, whatever their order."""
    text = json.dumps({str(name): str(value) for name, value in flags.items()}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def check_known(directory: str, tasks: Sequence[ProxyTaskConfig]) -> None:
    """Raise WrongCall if one of ``tasks`` was tried in ``directory`` before, with other flags."""
    known = read_state_of(directory, SEARCH_TASK).get("proxy_tasks_map", {})
    for task in tasks:
        if task.name in known:
            _check_same(known[task.name], task)


def _check_same(record: Mapping[str, Any], task: ProxyTaskConfig) -> None:
    if record.get("docker_args_hash") == hash_of(task.docker_args_map):
        return
    before, now = dict(record.get("docker_args_map", {})), dict(task.docker_args_map)
    other = sorted(name for name in {**before, **now} if before.get(name) != now.get(name))
    flag = other[0] if other else ""
    raise WrongCall(
        f"the proxy task {task.name!r} had {flag}={before.get(flag)!r} and has {flag}={now.get(flag)!r} now: "
        "its results are those of the former flags; give the new one another name"
    )


def _checked(one: Any, where: str) -> ProxyTaskConfig:
    name, flags = getattr(one, "name", None), getattr(one, "docker_args_map", None)
    if not isinstance(name, str) or not isinstance(flags, Mapping):
        kind = type(one).__name__
        raise WrongCall(f"{where} is a {kind}: give ProxyTaskConfig(name, docker_args_map), of nas_hpc.trial")
    wrong = wrong_name(name)
    if wrong:
        raise WrongCall(f"{where} has the name {name!r}, which {wrong}")
    if len(name.encode()) > MAX_NAME // 2:
        raise WrongCall(f"{where} has the name {name!r}: give one of at most {MAX_NAME // 2} bytes")
    return ProxyTaskConfig(name, {_flag(key, where): _text(key, flags[key], where) for key in flags})


def _flag(name: Any, where: str) -> str:
    if not isinstance(name, str) or not name.strip("-") or any(one.isspace() or one == "=" for one in name):
        raise WrongCall(f"{where} has the flag {name!r}: give a name such as training_data_path")
    bare = name.lstrip("-")
    if bare.replace("_", "-") in _OURS:
        raise WrongCall(f"{where} has the flag {name!r}, which the search gives to every trial: leave it out")
    return bare


def _text(name: str, value: Any, where: str) -> str:
    value = plain(value, where)
    if not isinstance(value, bool | int | float | str) or (
        isinstance(value, float) and not math.isfinite(value)
    ):
        raise WrongCall(f"{where} has {value!r:.80} for {name!r}: give text or a number")
    return str(value)
