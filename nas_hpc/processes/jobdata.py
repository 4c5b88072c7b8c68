"""data.json in a job's directory: what its program noted of itself, an objective among it.

Standard library only, Python 3.8 or later: it is loaded in the user's interpreters.
"""

from __future__ import annotations

import json
import math
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

DATA_FILE = "data.json"
OBJECTIVES = ("dh_objective", "objective")
"""Keys under which a program may give its objective; the first one that is there counts."""


def read(directory: str, job: str) -> tuple[int, dict[str, Any]]:
    """(attempt that wrote last, what is in it); (0, {}) if there is none, or it is torn or another job's."""
    try:
        with open(os.path.join(directory, DATA_FILE), "rb") as stream:
            content = json.loads(stream.read(), parse_constant=_nothing)
    except (OSError, ValueError, RecursionError):
        return 0, {}
    if not isinstance(content, dict) or content.get("job") != job:
        return 0, {}
    attempt, data = content.get("attempt"), content.get("data")
    if not isinstance(attempt, int) or isinstance(attempt, bool) or not isinstance(data, dict):
        return 0, {}
    return attempt, data


def _nothing(name: str) -> None:
    """NaN and infinities are null, as in all results."""


def text(job: str, attempt: int, data: dict[str, Any]) -> bytes:
    """The content of data.json."""
    return json.dumps({"job": job, "attempt": attempt, "data": data}).encode("ascii")


def objective_of(data: dict[str, Any]) -> tuple[float | None, str]:
    """(objective, "") if ``data`` gives one; (None, what is wrong with it); (None, "") if it gives none."""
    name = next((key for key in OBJECTIVES if key in data), "")
    if not name:
        return None, ""
    value = data[name]
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if math.isfinite(number):
            return number, ""
    return None, f"{name} in the job's data is {value!r:.80}; the objective must be a finite number"


def without_objective(data: dict[str, Any]) -> dict[str, Any]:
    """All the rest of ``data``."""
    return {key: value for key, value in data.items() if key not in OBJECTIVES}
