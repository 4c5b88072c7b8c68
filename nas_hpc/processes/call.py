"""Calling a run function in a process of its own, and judging what it returned.

Standard library only, Python 3.8 or later: it runs in the user's interpreters, in a fork of a warm one or in
a fresh one (``main``). The process that calls the run function writes result.json itself and then ends by
``os._exit``: nothing that was registered in its parent runs twice.

A run function is called with one argument that serves both styles: a dictionary, so that ``run(config)``
finds a real one, with the attributes of DeepHyper's job (``parameters``, ``id``), so that ``run(job)`` works
too. No guessing by names or annotations is needed.
"""

from __future__ import annotations

import contextlib
import json
import math
import numbers
import os
import random
import signal
import sys
import time

from nas_hpc.processes import child, linux, remains, results

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn

    from nas_hpc.processes.channel import Channel


class RunningJob(dict):  # type: ignore[type-arg]
    """The configuration, and the job that runs it.

    ``job["x"]``, ``job.get("x")``, ``dict(job)`` and all else of a dictionary give the configuration;
    ``job.parameters`` is the same as a plain dictionary; ``job.id`` is the job's identifier, ``job.seed`` the
    seed from which this process's random generators start.
    """

    def __init__(self, config: dict[str, Any], identifier: str, seed: int) -> None:
        super().__init__(config)
        self.id = identifier
        self.seed = seed
        self.parameters: dict[str, Any] = dict(config)


class Invalid(Exception):
    """What was returned is no result; the message says what it was and what would be right."""


class Failed(Exception):
    """The evaluation failed in a way that needs no traceback."""


def find(path: str, load: Callable[[str], Any]) -> Callable[[Any], Any]:
    """The run function "module.function". Raises Failed, which has an import's error as its cause."""
    module_name, _, name = path.rpartition(".")
    if not module_name or not name:
        raise Failed(f"{path!r} is no run function: give module.function")
    if module_name == "__main__":
        raise Failed(f"the run function {path} lives in __main__: put it into a module that can be imported")
    module = load(module_name)
    try:
        function = getattr(module, name)
    except AttributeError:
        raise Failed(f"module {module_name} has no function {name}") from None
    if not callable(function):
        raise Failed(f"{path} is {_kind(function)}, not a function")
    return function  # type: ignore[no-any-return]


def seed_all(seed: int) -> None:
    """Start the random generators of this process from ``seed``, those of libraries if they are loaded."""
    random.seed(seed)
    loaded = sys.modules
    if "numpy" in loaded:
        loaded["numpy"].random.seed(seed % 2**32)
    if "torch" in loaded:
        loaded["torch"].manual_seed(seed % 2**63)
    if "tensorflow" in loaded:
        loaded["tensorflow"].random.set_seed(seed % 2**63)


def load_generators() -> None:
    """Import what ``seed_all`` uses of the loaded libraries.

    numpy, for one, imports ``numpy.random`` when it is first used, which takes longer than all the rest of a
    start; every child of a warm interpreter would do so again.
    """
    for library in ("numpy", "torch", "tensorflow"):
        with contextlib.suppress(Exception):  # seeding will say what is wrong
            getattr(sys.modules.get(library), "random", None)


def _kind(value: object) -> str:
    name = type(value).__name__
    return f"an {name}" if name[:1].lower() in "aeiou" else f"a {name}"


def _number(value: object, what: str) -> float:
    should = "return a finite number"
    if type(value) is float and math.isfinite(value):
        return value
    if value is None:
        raise Invalid(f"{what} None; {should}")
    if isinstance(value, bool) or type(value).__name__ in ("bool_", "bool"):
        raise Invalid(f"{what} {value}, a truth value; {should}")
    if not isinstance(value, numbers.Real):
        shape = getattr(value, "shape", None)
        shown = f" of shape {tuple(shape)}" if isinstance(shape, tuple) else ""
        shown = shown or (f" {value!r:.80}" if isinstance(value, (str, bytes, complex)) else "")
        raise Invalid(f"{what} {_kind(value)}{shown}; {should}, for instance float(...) of it")
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise Invalid(f"{what} {_kind(value)} that is no float: {error}; {should}") from None
    if not math.isfinite(number):
        raise Invalid(f"{what} {number}; {should}, or a string that starts with F for a failure")
    return number


def _plain(value: Any, where: str) -> Any:
    """``value`` as JSON has it. NaN and infinities become null; what JSON cannot hold is refused by name."""
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, dict):
        plain = {}
        for key, item in value.items():
            if not isinstance(key, (str, int, float)):
                raise Invalid(f"{where} has the key {key!r:.80}; JSON's keys are strings")
            plain[str(key)] = _plain(item, f"{where}[{key!r}]")
        return plain
    if isinstance(value, (list, tuple)):
        return [_plain(item, f"{where}[{index}]") for index, item in enumerate(value)]
    if type(value).__name__ in ("bool_", "bool") and hasattr(value, "item"):
        return bool(value)
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value) if math.isfinite(value) else None
    raise Invalid(f"{where} is {_kind(value)}, which JSON cannot hold; give numbers, strings, lists, dicts")


def judge(returned: Any) -> tuple[str, float | None, dict[str, Any], str]:
    """(outcome, objective, metadata, reason) of what a run function returned. Raises Invalid."""
    metadata: dict[str, Any] = {}
    what = "the run function returned"
    if type(returned).__name__ == "JobSpec":  # behind a decorator without functools.wraps, for instance
        raise Invalid(f"{what} a JobSpec: put @job_specification before it, as the outermost decorator")
    value = returned
    if isinstance(returned, dict):
        if "objective" not in returned:
            raise Invalid(f"{what} a dict without 'objective' (its keys: {list(returned)!r:.200}); add it")
        value = returned["objective"]
        what = "the run function returned as objective"
        given = returned.get("metadata") or {}
        if not isinstance(given, dict):
            raise Invalid(f"metadata is {_kind(given)}; it must be a dict")
        more = {key: item for key, item in returned.items() if key not in ("objective", "metadata")}
        metadata = _plain({**more, **given}, "metadata")
    if isinstance(value, str):
        if value.startswith("F"):
            return "error", None, metadata, value
        raise Invalid(f"{what} the string {value!r:.80}; return a finite number, or 'F...' for a failure")
    return "ok", _number(value, what), metadata, ""


def exception_line(error: BaseException) -> str:
    """Class and message of an exception, whatever its ``__str__`` does."""
    try:
        message = str(error)
    except Exception:
        message = "(its message cannot be shown)"
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


def _show_traceback(error: BaseException) -> None:
    import traceback

    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename == __file__:
        trace = trace.tb_next  # our own frames tell the user nothing
    try:
        traceback.print_exception(type(error), error, trace)
    except Exception:
        os.write(2, results.one_line(exception_line(error)).encode() + b"\n")


def evaluate(
    order: dict[str, Any],
    load: Callable[[], Callable[[Any], Any]],
    judgement: Callable[[Any], tuple[str, float | None, dict[str, Any], str]] = judge,
) -> dict[str, Any]:
    """Call the run function that ``load`` gives; the content of result.json, whatever happens in it."""
    call = order["call"]
    try:
        function = load()
        seed_all(call.get("generators", call["seed"]))
        returned = function(RunningJob(call["config"], order["job"], call["seed"]))
        outcome, objective, metadata, reason = judgement(returned)
        result = results.make(order, outcome, reason, objective, metadata)
    except Invalid as error:
        result = results.make(order, "invalid_result", str(error))
    except Failed as error:
        if error.__cause__ is not None:
            _show_traceback(error.__cause__)
        result = results.make(order, "error", str(error))
    except SystemExit as error:
        _show_traceback(error)
        reason = f"SystemExit: the run function ended the program ({error.code!r:.80})"
        result = results.make(order, "error", reason)
    except BaseException as error:
        _show_traceback(error)
        result = results.make(order, "error", exception_line(error))
    result["end"] = time.time()
    return result


def prepare(order: dict[str, Any]) -> None:
    """Give a child of a keeper what belongs to this attempt before the user's code runs in it."""
    linux.adopt_orphans()
    environ = os.environ
    for name, value in order["env"].items():  # update() takes the long way
        environ[name] = value
    if order["gpus"]:
        environ.update(child.masks(order["gpus"]))


def answer(order: dict[str, Any], channel: Channel, load: Callable[[], Callable[[Any], Any]]) -> NoReturn:
    """Run one evaluation in this process, write what remains of it, tell the keeper, end."""
    mine = os.getpid()
    result = evaluate(order, load)
    if os.getpid() != mine:
        os._exit(0)  # the run function forked and its child came back here as well
    flush()
    if order["record"] != "each":  # a file that is open cannot be removed from every file system
        os.dup2(0, 1)
        os.dup2(0, 2)
    left = remains.leave(order, result)
    left.alone = linux.is_alone()
    remains.tell(channel, order, result, left)
    os._exit(0)


def flush() -> None:
    """Write out what Python and C libraries hold of the output."""
    for stream, original in ((sys.stdout, sys.__stdout__), (sys.stderr, sys.__stderr__)):
        for one in (stream, original if original is not stream else None):
            try:
                if one is not None:
                    one.flush()
            except Exception:
                continue  # a full disk, or the user's replacement for the stream
    linux.flush_c_output()


def main(arguments: list[str]) -> NoReturn:
    """Entry of a fresh interpreter: the order is in the file descriptor of the first argument."""
    from nas_hpc.processes import channel, warm

    order_fd, channel_fd = map(int, arguments)
    with open(order_fd, "rb") as stream:
        order = json.loads(stream.read())
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    linux.adopt_orphans()
    os.set_inheritable(channel_fd, False)
    warm.restore_path(order["sys_path"])
    warm.line_buffered()
    telling = channel.Channel.inherited(channel_fd)

    def load() -> Callable[[Any], Any]:
        function = find(order["call"]["run"], warm.import_module)
        warm.limit_threads(order["threads"])
        return function

    answer(order, telling, load)
