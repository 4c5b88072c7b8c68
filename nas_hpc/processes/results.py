"""result.json: writing it, believing it, and making it from a program's return code and output.

Standard library only, Python 3.8 or later: it is loaded in the user's interpreters.
"""

from __future__ import annotations

import json
import math
import os
import signal

from nas_hpc.processes import jobdata

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

RESULT_FILE = "result.json"
TAIL_CHARACTERS = 2000
_LINE_LIMIT = 65536
"""Longer lines of output are looked at in pieces: a binary file may have no line ends at all."""
_OUTCOMES = frozenset(
    {"ok", "error", "invalid_result", "timeout", "start_failed", "walltime", "lost", "killed"}
)  # states.Outcome, which this module cannot import


def replace_file(directory: str, name: str, content: bytes, sync: bool) -> None:
    """Write ``directory/name`` so that readers see all of it or nothing."""
    temporary = f"{directory}/.{name}.{os.getpid()}"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
    try:
        while content:
            content = content[os.write(fd, content) :]
        if sync:
            os.fsync(fd)
    finally:
        os.close(fd)
    os.replace(temporary, f"{directory}/{name}")


def one_line(text: str, limit: int = 500) -> str:
    """``text`` as one line of at most ``limit`` characters, printable everywhere."""
    line = " ".join(text.split())
    line = line.encode("utf-8", "backslashreplace").decode("utf-8")
    return line if len(line) <= limit else line[: limit - 3] + "..."


def make(
    order: dict[str, Any],
    outcome: str,
    reason: str = "",
    objective: float | None = None,
    metadata: dict[str, Any] | None = None,
    return_code: int | None = None,
    end: float = 0.0,
) -> dict[str, Any]:
    """The content of result.json for an order."""
    return {
        "job": order["job"],
        "attempt": order["attempt"],
        "outcome": outcome,
        "objective": objective,
        "metadata": metadata or {},
        "reason": one_line(reason),
        "start": order["start"],
        "end": end,
        "return_code": return_code,
    }


def read(
    directory: str, job: str, attempt: int, *, again: bool = False, name: str = RESULT_FILE
) -> dict[str, Any] | None:
    """The result.json (or ``name``) in ``directory`` if it is this attempt's, else None: missing, torn, late,
    foreign.

    ``again``: it was looked for before. A client of a network file system remembers for a while that a file
    was not there; that its directory is listed makes it ask the server.
    """
    try:
        if again:
            with os.scandir(directory) as entries:
                for _ in entries:
                    pass
        with open(os.path.join(directory, name), "rb") as stream:
            result = json.loads(stream.read())
    except (OSError, ValueError, RecursionError):
        return None
    return valid(result, job, attempt)


def valid(result: Any, job: str, attempt: int) -> dict[str, Any] | None:
    """What stands in a result.json, if it is a result of this attempt."""
    if not isinstance(result, dict) or result.get("job") != job or result.get("attempt") != attempt:
        return None
    if result.get("outcome") not in _OUTCOMES or not isinstance(result.get("metadata", {}), dict):
        return None
    objective = result.setdefault("objective", None)
    if objective is not None and (
        isinstance(objective, bool) or not isinstance(objective, (int, float)) or not math.isfinite(objective)
    ):
        return None
    if not isinstance(result.get("reason", ""), str):
        return None
    return result


def tail(path: str, offset: int = 0) -> str:
    """The last characters (at most 2,000) of an output from ``offset`` on; what is no text is replaced."""
    try:
        with open(path, "rb") as stream:
            size = stream.seek(0, os.SEEK_END)
            stream.seek(max(offset, size - 4 * TAIL_CHARACTERS))
            text = stream.read(4 * TAIL_CHARACTERS).decode("utf-8", "replace")
    except OSError:
        return ""
    return text.replace("\0", "\ufffd")[-TAIL_CHARACTERS:]


def remove_if_empty(path: str) -> None:
    """Remove an output to which nothing was written: few small files."""
    try:
        if os.stat(path).st_size == 0:
            os.unlink(path)
    except OSError:
        pass  # removed by the program itself


def describe_end(status: int) -> str:
    """A failure by its wait status: "exit code 3", "killed by signal 9 (SIGKILL)"; empty for success."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        try:
            name = signal.Signals(number).name
        except ValueError:
            name = "real-time signal"
        return f"killed by signal {number} ({name})"
    code = os.WEXITSTATUS(status)
    return f"exit code {code}" if code else ""


def return_code(status: int) -> int:
    """The return code as subprocess has it: negative for a signal."""
    return -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


_SHOULD = "print one like 'DH-OUTPUT: 0.93'"


def printed_objective(path: str, name: str, offset: int = 0) -> tuple[float | None, str]:
    """(objective, "") from the first line with ``DH-OUTPUT:``, its last word; (None, what is wrong with it);
    (None, "") if there is no such line.
    """
    line = _marked_line(path, offset)
    if line is None:
        return None, ""
    words = line.split(b"DH-OUTPUT:", 1)[1].split()
    word = words[-1].decode("utf-8", "replace") if words else ""
    try:
        value = float(word)
    except ValueError:
        wrong = f"the DH-OUTPUT: line in {name}.out ends with {word[:80]!r}, not with a number"
        return None, f"{wrong}; {_SHOULD}"
    if not math.isfinite(value):
        return None, f"the DH-OUTPUT: line in {name}.out gives {word}; the objective must be finite"
    return value, ""


def _marked_line(path: str, offset: int) -> bytes | None:
    try:
        with open(path, "rb") as stream:
            stream.seek(offset)
            while True:
                line = stream.readline(_LINE_LIMIT)
                if not line:
                    return None
                if b"DH-OUTPUT:" in line:
                    return line
    except OSError:
        return None


def judge(
    order: dict[str, Any], status: int | None, end: float, *, patient: bool = False
) -> dict[str, Any] | None:
    """The result of an attempt whose process ended with wait ``status`` and that reported nothing itself.

    ``order`` may hold "stop", the outcome and reason for which it was ended. A valid result.json of the
    attempt counts first, whoever wrote it: the work was done. After a success the objective is what the
    program left in its data, else what it printed; a person's job need not have one. ``patient``: None
    instead of a failure when a success is expected to have left a result, or has told of one, and none is to
    be seen; a file system may show it late.
    """
    code = None if status is None else return_code(status)
    looked = "looked" in order
    written = read(order["dir"], order["job"], order["attempt"], again=looked)
    if order.get("mpi"):
        from nas_hpc.processes import rank

        failed = rank.failure_of(order)
        if failed is not None and not order.get("stop"):
            return _completed(order, failed, code, end)
    if written is not None and (
        written["outcome"] != "ok" or not order["expects"] or written["objective"] is not None
    ):
        return _completed(order, written, code, end)
    stop = order.get("stop")
    if stop:
        return make(order, stop[0], stop[1], return_code=code, end=end)
    if status is None:
        return make(order, "error", "it was never started", end=end)
    failure = describe_end(status)
    if failure and order.get("mpi"):
        outcome, reason = rank.why(order, failure, code or 0, end)
        return make(order, outcome, reason, return_code=code, end=end)
    if order["call"] and not order.get("mpi"):
        if patient and not failure and "told" in order:
            return None
        reason = failure or "exit code 0"
        if not os.WIFSIGNALED(status):
            reason += " before the run function returned: it or a library called os._exit"
        return make(order, "error", reason, return_code=code, end=end)
    if failure:
        return make(order, "error", failure, return_code=code, end=end)
    if order.get("mpi"):
        gone = rank.lost_with_node(order)
        if gone:
            return make(order, "lost", gone, return_code=code, end=end)
    objective, wrong, metadata = _left_behind(order, printed=not (patient and looked))
    if objective is None and not wrong and order["expects"]:
        if patient and written is None:
            return None
        wrong = _nothing_left(order)
    if wrong and order["expects"]:
        return make(order, "invalid_result", wrong, metadata=metadata, return_code=code, end=end)
    return make(order, "ok", objective=objective, metadata=metadata, return_code=code, end=end)


def _left_behind(order: dict[str, Any], printed: bool) -> tuple[float | None, str, dict[str, Any]]:
    """(objective or None, what is wrong with it, metadata) of a program that wrote no result.json of its own.

    ``printed``: its output is looked at, too.
    """
    attempt, data = jobdata.read(order["dir"], order["job"])
    if attempt != order["attempt"]:
        data = {}  # an earlier attempt's: it is not this one's success
    objective, wrong = jobdata.objective_of(data)
    if objective is None and not wrong and printed and not order["call"]:
        path = os.path.join(order["dir"], order["name"] + ".out")
        objective, wrong = printed_objective(path, order["name"], order.get("offset", 0))
    return objective, wrong, jobdata.without_objective(data)


def _nothing_left(order: dict[str, Any]) -> str:
    """Why the success of a program is none."""
    within = f"no result.json within {order.get('result_grace_s', 0.0):g} s"
    if order["call"]:
        return f"exit code 0, but {within}"
    also = f", and {within}" if "looked" in order else ""
    return f"no line with DH-OUTPUT: in {order['name']}.out{also}; {_SHOULD}"


def _completed(
    order: dict[str, Any], written: dict[str, Any], code: int | None, end: float
) -> dict[str, Any]:
    """A result.json as the program wrote it, with the fields that it may have left out."""
    full = make(order, written["outcome"], return_code=code, end=end)
    full.update({key: value for key, value in written.items() if key in full and value is not None})
    if not all(isinstance(full[key], (int, float)) for key in ("start", "end")):
        full["start"], full["end"] = order["start"], end
    return full


def write(directory: str, result: dict[str, Any]) -> str:
    """Write result.json durably; what went wrong, or "". A full disk must not lose a result that is known.

    The result of a later attempt stays: one that hung with its node may come to its end after that.
    """
    try:
        if not _is_overtaken(directory, result):
            replace_file(directory, RESULT_FILE, json.dumps(result).encode("ascii"), sync=True)
    except OSError as error:
        return f"cannot write {os.path.join(directory, RESULT_FILE)}: {error.strerror}"
    return ""


def _is_overtaken(directory: str, result: dict[str, Any]) -> bool:
    """Whether the result of a later attempt is there, and such an attempt was started: a program may write
    what it likes.
    """
    told = _attempt_of(os.path.join(directory, RESULT_FILE), "job", result["job"])
    attempt: int = result["attempt"]
    return min(told, started_attempt(directory, result["job"])) > attempt


def started_attempt(directory: str, job: str) -> int:
    """The number of the newest attempt of ``job`` that was started in ``directory``; 0: none, or unknown."""
    return _attempt_of(os.path.join(directory, "job.json"), "id", job)


def _attempt_of(path: str, key: str, job: str) -> int:
    try:
        with open(path, "rb") as stream:
            found = json.loads(stream.read())
        return int(found["attempt"]) if found[key] == job else 0
    except (OSError, ValueError, RecursionError, TypeError, KeyError):
        return 0
