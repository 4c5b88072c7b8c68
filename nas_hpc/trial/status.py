"""job_status.json: how a trial ended; and why a training failed, told from what is left of it.

Standard library only.
"""

from __future__ import annotations

import os
import re
import signal
from dataclasses import dataclass
from typing import Any

from nas_hpc.plain import finite
from nas_hpc.trial.jsonfiles import read_object, write_json

STATUS_FILE = "job_status.json"
SUCCESS, FAILED, FAILED_NAN = "success", "failed", "failed_with_nan_error"
OOM, NAN, TIMEOUT, METRIC, ERROR = "oom", "nan", "timeout", "metric", "error"
"""Classes of reasons: there was not enough memory, a number was not finite, it took too long, the metric that
the search waits for was not reported, anything else. "" for a success."""

_MEMORY = re.compile(
    r"out of memory|out_of_memory|OutOfMemory|RESOURCE_EXHAUSTED|ResourceExhaustedError|OOM when allocating"
    r"|\bMemoryError\b|ArrayMemoryError|std::bad_alloc|Cannot allocate memory|oom[-_ ]kill",
    re.IGNORECASE,
)
_NAN = re.compile(
    r"non-?finite|not finite|NotFinite|FloatingPointError"
    r"|(?<![/.-])\b(?:nans?|inf(?:inity)?)\b(?![/-]|\.\w)",  # not those of a path
    re.IGNORECASE,
)
_TRACEBACK = "Traceback (most recent call last):"
_UNKNOWN_METRIC = "UnknownMetric"
_LAST_LINES = 30


@dataclass(frozen=True, slots=True)
class Ended:
    """How a trial ended. ``status`` and ``reason_class`` are words of this module."""

    status: str
    reason_class: str = ""
    reason: str = ""
    """One line for the user."""
    reward: float | None = None
    step: int | None = None
    return_code: int | None = None
    """The trainer's; negative for a signal."""
    start: float = 0.0
    end: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether it gave a reward."""
        return self.status == SUCCESS

    def to_dict(self) -> dict[str, Any]:
        """As in the file."""
        return {
            "job_status": self.status,
            "reason_class": self.reason_class,
            "reason": self.reason,
            "reward": self.reward,
            "step": self.step,
            "return_code": self.return_code,
            "start": self.start,
            "end": self.end,
        }


def read_status(directory: str | os.PathLike[str]) -> Ended | None:
    """What the trial in ``directory`` came to; None if it has not ended, or its file cannot be understood.

    The file of another program may have ``job_status`` alone.
    """
    content = read_object(os.path.join(directory, STATUS_FILE)) or {}
    status = content.get("job_status")
    if status not in (SUCCESS, FAILED, FAILED_NAN):
        return None
    usual = {SUCCESS: "", FAILED: ERROR, FAILED_NAN: NAN}[status]
    step, code = content.get("step"), content.get("return_code")
    return Ended(
        status,
        str(content.get("reason_class") or usual),
        str(content.get("reason") or ""),
        finite(content.get("reward")),
        step if isinstance(step, int) else None,
        code if isinstance(code, int) else None,
        finite(content.get("start")) or 0.0,
        finite(content.get("end")) or 0.0,
    )


def write_status(directory: str | os.PathLike[str], ended: Ended) -> None:
    """Put the trial's end into its directory, at once and for good. Raises OSError."""
    write_json(os.path.join(directory, STATUS_FILE), ended.to_dict())


def failed(reason_class: str, reason: str) -> Ended:
    """A failure of that class."""
    return Ended(FAILED_NAN if reason_class == NAN else FAILED, reason_class, reason)


def why(return_code: int, said: str) -> Ended:
    """Why a trainer failed that ended with ``return_code`` (not 0; negative: by that signal), and ``said``
    this at its end.

    What its last exception says decides, before what its last lines say: libraries print of memory and of
    numbers that are not finite where nothing has failed.
    """
    exception = last_exception(said)
    kind, _, text = exception.partition(": ")
    if kind.rpartition(".")[2] == _UNKNOWN_METRIC:
        return failed(METRIC, text)
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    end = describe(return_code)
    reason = _short(exception or (lines[-1] if lines else ""))
    reason = f"{reason} ({end})" if reason else end
    about = said[said.rindex(_TRACEBACK) :] if exception else "\n".join(lines[-_LAST_LINES:])
    if _MEMORY.search(exception) or _MEMORY.search(about):
        return failed(OOM, reason)
    if return_code in (-signal.SIGKILL, 128 + signal.SIGKILL):
        return failed(OOM, f"{reason}: so a node ends programs for which it has not enough memory")
    if _NAN.search(exception) or (not exception and lines and _NAN.search(lines[-1])):
        return failed(NAN, reason)
    return failed(ERROR, reason)


def last_exception(said: str) -> str:
    """The line of the last exception of Python that was printed, with its class; "": there is none.

    Before each line there may stand what a program of several ranks puts there, as ``[rank0]: ``."""
    before, found, after = said.rpartition(_TRACEBACK)
    mark = before.rpartition("\n")[2]
    for line in after.splitlines()[1:] if found else ():
        text = line.removeprefix(mark)
        if text and not text[0].isspace():
            return text.strip()
    return ""


def describe(return_code: int) -> str:
    """ "exit code 3", "killed by signal 9 (SIGKILL)"."""
    if return_code >= 0:
        return f"exit code {return_code}"
    try:
        name = signal.Signals(-return_code).name
    except ValueError:
        name = "real-time signal"
    return f"killed by signal {-return_code} ({name})"


def _short(line: str, limit: int = 300) -> str:
    line = " ".join(line.split()).encode("utf-8", "backslashreplace").decode("utf-8")
    return line if len(line) <= limit else line[: limit - 1] + "…"
