"""Job specifications: a function that says, for each configuration, which program evaluates it and on what.

    @job_specification
    def run(parameters):
        return JobSpec(application="TRAIN", args=f"--lr {parameters['lr']}", num_nodes=2, ranks_per_node=4)

It stands where a run function stands. The search calls it, in its own process, and the launcher runs what it
returns. Names as in DeepHyper, whose ``balsamjob_spec`` returned a job of Balsam's.
"""

from __future__ import annotations

import functools
import math
import numbers
import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from nas_hpc.errors import WrongCall
from nas_hpc.plain import check_text, plain_object

F = TypeVar("F", bound=Callable[..., Any])
_MARK = "__nas_hpc_job_specification__"
_LEAST = {
    "num_nodes": 1,
    "ranks_per_node": 1,
    "threads_per_rank": 1,
    "threads_per_core": 1,
    "gpus_per_rank": 0,
    "node_packing_count": 1,
    "retries": 0,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class JobSpec:
    """What one evaluation runs. Fields that are None are as the search's own flags say.

    Either ``application`` (with ``args``) or ``argv``. The program's objective is that of a ``result.json``
    of its own, else ``dh_objective`` or ``objective`` in its data (``nas_hpc.jobs.update_data``), else the
    last word of the first line with ``DH-OUTPUT:`` that it prints. Greater is better.

    Raises WrongCall, in one line, for a value that makes no sense.
    """

    application: str = ""
    """Name of a registered application (``nas-hpc ls apps``)."""
    args: str | Sequence[str] = ""
    """Its arguments, as one command line or one by one; kept as a command line."""
    argv: Sequence[str | os.PathLike[str]] = ()
    """A program and its arguments; nothing has to be registered for it, and no shell sees it."""
    num_nodes: int | None = None
    ranks_per_node: int | None = None
    """MPI ranks on each node. More than one rank altogether needs a launcher in mpi mode."""
    threads_per_rank: int | None = None
    threads_per_core: int | None = None
    """Hardware threads used of each core."""
    gpus_per_rank: int | None = None
    node_packing_count: int | None = None
    """So many such evaluations share a node in serial mode; several nodes are never shared."""
    environ: Mapping[str, str] = field(default_factory=dict)
    """Set in the program's environment."""
    data: Mapping[str, Any] = field(default_factory=dict)
    """JSON for the program: ``nas_hpc.jobs.current().data``."""
    wall_time_minutes: float | None = None
    """How long it takes, at a guess; for placement near the end of an allocation."""
    timeout_s: float | None = None
    """It is ended after so long; 0: never."""
    retries: int | None = None
    """So often it is run again after a failure before that counts."""

    def __post_init__(self) -> None:
        put = functools.partial(object.__setattr__, self)
        put("args", _args(self.args))
        put("argv", _argv(self.argv))
        _check_program(self.application, str(self.args), self.argv)
        for name, least in _LEAST.items():
            put(name, _count(name, getattr(self, name), least))
        for name in ("wall_time_minutes", "timeout_s"):
            put(name, _amount(name, getattr(self, name)))
        packing, nodes = self.node_packing_count or 1, self.num_nodes or 1
        if packing > 1 and nodes > 1:
            raise WrongCall(
                f"JobSpec: node_packing_count is {packing} and num_nodes {nodes}: several evaluations can "
                "share one node only; leave one of the two out"
            )
        put("environ", _environ(self.environ))
        put("data", plain_object(self.data, "JobSpec: data"))


def job_specification(function: F) -> F:
    """Mark ``function``: it takes a configuration and returns the JobSpec that evaluates it.

    Raises WrongCall for what is no function.
    """
    given: object = function
    if not callable(given):
        kind = type(function).__name__
        raise WrongCall(f"@job_specification on {function!r:.80}, a {kind}: put it before a function")

    @functools.wraps(function)
    def specify(*args: Any, **keywords: Any) -> Any:
        return function(*args, **keywords)

    setattr(specify, _MARK, True)
    return specify  # type: ignore[return-value]


balsamjob_spec = job_specification
"""DeepHyper's name for it."""


def is_job_specification(function: object) -> bool:
    """Whether ``function`` is one, also behind decorators that use ``functools.wraps``, behind
    ``functools.partial``, or as the ``__call__`` of an object."""
    seen: set[int] = set()
    while function is not None and id(function) not in seen:
        seen.add(id(function))
        if getattr(function, _MARK, False) is True or getattr(type(function).__call__, _MARK, False) is True:
            return True
        inner = getattr(function, "__wrapped__", None)
        function = getattr(function, "func", None) if inner is None else inner
    return False


def specify(function: Callable[[dict[str, Any]], Any], parameters: dict[str, Any]) -> JobSpec:
    """Call a job specification. Raises what it raises, and TypeError for anything but a JobSpec."""
    spec = function(parameters)
    if not isinstance(spec, JobSpec):
        kind = "None" if spec is None else f"a {type(spec).__name__}"
        raise TypeError(
            f"the job specification returned {kind}, not a JobSpec: return JobSpec(application=…, args=…) "
            "or JobSpec(argv=[…])"
        )
    return spec


def _check_program(application: object, args: str, argv: Sequence[object]) -> None:
    if not isinstance(application, str):
        raise WrongCall(
            f"JobSpec: application is {application!r:.80}: give the name of a registered application"
        )
    check_text(application, "JobSpec: application")
    if application and argv:
        raise WrongCall(
            f"JobSpec: there are an application ({application!r:.80}) and an argv ({argv[0]!r:.80} …): give "
            "one of the two"
        )
    if not application and not argv:
        raise WrongCall("JobSpec: there is neither an application nor an argv: say which program to run")
    if args and not application:
        raise WrongCall("JobSpec: args belong to an application: put them into argv, one by one")


def _args(given: object) -> str:
    if isinstance(given, str):
        try:
            shlex.split(given)
        except ValueError as error:
            raise WrongCall(f"JobSpec: args {given!r:.200} cannot be split: {error}") from None
        text = given
    else:
        text = shlex.join(_strings("args", given))
    _check_string("args", text)
    return text


def _argv(given: object) -> tuple[str, ...]:
    words = _strings("argv", given)
    if words and not words[0]:
        raise WrongCall("JobSpec: argv[0] is empty: give a program")
    if words and "/" in words[0] and not os.path.isabs(words[0]):
        raise WrongCall(
            f"JobSpec: argv[0] {words[0]!r:.200} is a relative path, and each evaluation runs in a directory "
            "of its own: give an absolute path, or a program's name that is found in PATH"
        )
    return words


def _strings(name: str, given: object) -> tuple[str, ...]:
    if isinstance(given, str | bytes) or not isinstance(given, Sequence):
        raise WrongCall(f"JobSpec: {name} is {given!r:.80} ({type(given).__name__}): give a list of strings")
    words = []
    for index, word in enumerate(given):
        where = f"{name}[{index}]"
        if isinstance(word, os.PathLike):
            word = os.fspath(word)
        if not isinstance(word, str):
            kind = type(word).__name__
            raise WrongCall(f"JobSpec: {where} is {word!r:.80} ({kind}): give a string, as str(…) of it")
        _check_string(where, word)
        words.append(word)
    return tuple(words)


def _check_string(where: str, text: str) -> None:
    check_text(text, f"JobSpec: {where}")
    if "\0" in text:
        raise WrongCall(f"JobSpec: {where} has a null character, which no program can be given")


def _count(name: str, value: object, least: int) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or int(value) < least:
        raise WrongCall(f"JobSpec: {name} is {value!r:.80}: give a whole number from {least} on")
    return int(value)


def _amount(name: str, value: object) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not 0 <= float(value) < math.inf:
        raise WrongCall(f"JobSpec: {name} is {value!r:.80}: give a number from 0 on")
    return float(value)


def _environ(given: object) -> dict[str, str]:
    if not isinstance(given, Mapping):
        raise WrongCall(f"JobSpec: environ is {given!r:.80}: give a dictionary of strings")
    for name, value in given.items():
        if not isinstance(name, str) or not isinstance(value, str):
            kind = type(value if isinstance(name, str) else name).__name__
            raise WrongCall(
                f"JobSpec: environ has {name!r:.80} = {value!r:.80} ({kind}): names and values are strings"
            )
        if not name or "=" in name:
            raise WrongCall(f"JobSpec: environ has the name {name!r:.80}: a name is not empty and has no '='")
        _check_string("environ", name + value)
    return dict(given)
