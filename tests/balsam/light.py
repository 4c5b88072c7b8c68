"""A run function that needs no time to load; it can be held, told to fail, and notes what it does.

In the directory of the environment variable LIGHT: ``limit``, evaluations with a greater number wait;
``failing``, the numbers of those that fail; ``ledger``, a line for each start, end and failure.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

LIGHT = "LIGHT"


def _note(directory: Path, word: str, number: int) -> None:
    descriptor = os.open(directory / "ledger", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(descriptor, f"{word} {number}\n".encode())
    finally:
        os.close(descriptor)


def run(config: dict[str, Any]) -> float:
    """Minus the sum of the squares of all numbers, as polynome2's, or of an architecture's sequence."""
    value = -float(sum(one**2 for one in config.get("arch_seq", config.values())))
    if LIGHT not in os.environ:
        return value
    directory = Path(os.environ[LIGHT])
    number = int(Path.cwd().name.partition("_")[0].removeprefix("task"))
    _note(directory, "start", number)
    while number > int((directory / "limit").read_text()):
        time.sleep(0.02)
    if str(number) in (directory / "failing").read_text().split():
        _note(directory, "fail", number)
        raise ValueError(f"no value at {number}")
    _note(directory, "end", number)
    return value
