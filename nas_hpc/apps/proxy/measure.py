"""Measuring the latency of one trial's exported model: ``python -m nas_hpc.apps.proxy.measure``.

The user's calculator gets ``--saved-model-dir``, ``--nas-params-str`` and ``--job-dir``, and prints what it
measured in its last line: milliseconds, or a JSON object with latency_in_milli_seconds.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from nas_hpc.apps.proxy.latency import (
    LATENCY_KEY,
    MODEL_DIR,
    claim,
    is_measured,
    measured_latency,
    parsed,
    write_latency,
)
from nas_hpc.apps.trials.runner import PARAMETERS_FILE
from nas_hpc.apps.trials.spec import flag_words
from nas_hpc.trial.child import Child

LIMIT_S: Final = 1800.0
"""A measurement that takes longer is given up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Calculator:
    """The user's program that measures models, and who runs it."""

    command: tuple[str, ...]
    flags: Mapping[str, str] = field(default_factory=dict)
    underscores: bool = False
    whole: bool = False
    """The command has all flags already."""
    worker: str = "0"
    device: str = ""
    limit_s: float = LIMIT_S

    def words(self, trial_dir: Path) -> list[str]:
        """Its command line for the model of one trial."""
        if self.whole:
            return list(self.command)
        own = {
            "saved-model-dir": str(trial_dir / MODEL_DIR),
            "nas-params-str": str(trial_dir / PARAMETERS_FILE),
            "job-dir": str(trial_dir),
        }
        if self.underscores:
            own = {name if name == "job-dir" else name.replace("-", "_"): one for name, one in own.items()}
        return [*self.command, *flag_words(own), *flag_words(self.flags)]


def measure(trial_dir: Path, calculator: Calculator) -> int | None:
    """Measure the model of a trial, unless that is done or another one does it; one that cannot be measured
    is left with the reason.

    Returns the signal that ended it, if one did: it may be measured by the next one. Raises OSError if the
    directory cannot be used.
    """
    if is_measured(trial_dir):
        return None
    mine = claim(trial_dir, calculator.worker)
    if mine is None:
        return None
    if is_measured(trial_dir):  # while it was being claimed
        return None
    child = Child(calculator.words(trial_dir), os.environ)
    try:
        code = child.run(calculator.limit_s)
    except OSError as error:
        mine.release()
        raise OSError(error.errno, f"{calculator.command[0]}: {error.strerror}") from error
    if child.interrupted is not None:
        mine.release()
        return child.interrupted
    if mine.is_mine():
        write_latency(trial_dir, _found(child, code, calculator), calculator.worker, calculator.device)
    return None


def _found(child: Child, code: int, calculator: Calculator) -> dict[str, Any]:
    if child.timed_out:
        return {"error": f"it took longer than {calculator.limit_s:g} s"}
    if code != 0:
        last = next((line.strip() for line in reversed(child.said.splitlines()) if line.strip()), "")
        return {"error": f"the calculator ended with {code}{': ' + last[:300] if last else ''}"}
    found = parsed(child.printed)
    if found is None:
        what = f"a number of milliseconds, or a JSON object with {LATENCY_KEY}, in its last line"
        return {"error": f"the calculator did not print {what}"}
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """As a program, one evaluation of a tool."""
    words = list(sys.argv[1:] if argv is None else argv)
    at = words.index("--") if "--" in words else len(words)
    parser = argparse.ArgumentParser(prog="python -m nas_hpc.apps.proxy.measure", description=__doc__)
    parser.add_argument("--trial-dir", type=Path, required=True)
    parser.add_argument("--worker", default="0")
    flags = parser.parse_args(words[:at])
    command = tuple(words[at + 1 :])
    if not command:
        parser.error("there is no calculator: give its command behind --")
    try:
        ended = measure(flags.trial_dir, Calculator(command=command, whole=True, worker=flags.worker))
    except OSError as error:
        print(f"nas-hpc: cannot measure {flags.trial_dir}: {error.strerror}", file=sys.stderr)
        return 1
    if ended is not None:
        return 128 + ended
    found = measured_latency(flags.trial_dir)
    print(f"DH-OUTPUT: {'F_error' if found is None or not math.isfinite(found) else repr(found)}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
