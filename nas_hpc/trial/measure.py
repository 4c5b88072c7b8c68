"""Measuring the latency of one trial's exported model: ``python -m nas_hpc.trial.measure``.

The user's calculator gets ``--saved-model-dir``, ``--nas-params-str`` and ``--job-dir``, and prints what it
measured in its last line: milliseconds, or a JSON object with latency_in_milli_seconds. Standard
library only.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from nas_hpc.errors import WorkFailed
from nas_hpc.trial.architecture import PARAMETERS_FILE
from nas_hpc.trial.child import Child
from nas_hpc.trial.latency import (
    LATENCY_KEY,
    LIMIT_S,
    MODEL_DIR,
    claim,
    error_of,
    is_measured,
    measured_latency,
    parsed,
    write_latency,
)

DEVICES: Final = ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "ZE_AFFINITY_MASK")
"""The variables by which a calculator's device is chosen."""


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
    """What DEVICES say in its environment; "": what they say here."""
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
        return [*self.command, *(f"--{name}={one}" for name, one in {**own, **self.flags}.items())]

    def environ(self) -> dict[str, str]:
        """That of its process."""
        return {**os.environ, **(dict.fromkeys(DEVICES, self.device) if self.device else {})}


def measure(
    trial_dir: Path, calculator: Calculator, since: float = 0.0, log: Path | None = None
) -> int | None:
    """Measure the model of a trial, unless that is done or another one does it; one that cannot be measured
    is left with the reason.

    ``since``: that it could not be measured before this time (UTC seconds) does not count. ``log``: the file
    that gets what the calculator prints; None: this process's output does.

    Returns the signal that ended it, if one did: it may be measured by the next one. Raises OSError if the
    directory cannot be used, WorkFailed if the calculator cannot be started.
    """
    if is_measured(trial_dir, since):
        return None
    mine = claim(trial_dir, calculator.worker, calculator.limit_s)
    if mine is None:
        return None
    try:
        if is_measured(trial_dir, since):  # while it was being claimed
            return None
        child, code = _run(trial_dir, calculator, log)
        if child.interrupted is None and mine.is_mine():
            found = _found(child, code, calculator)
            write_latency(trial_dir, found, calculator.worker, calculator.device)
        return child.interrupted
    finally:
        mine.release()


def _run(trial_dir: Path, calculator: Calculator, log: Path | None) -> tuple[Child, int]:
    with open(log or os.devnull, "ab") as file:
        child = Child(
            calculator.words(trial_dir), calculator.environ(), None if log is None else file.fileno()
        )
        try:
            return child, child.run(calculator.limit_s)
        except OSError as error:
            raise WorkFailed(
                f"the calculator {calculator.command[0]} cannot be started: {error.strerror}"
            ) from error


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


def program(trial_dir: Path, calculator: Calculator, since: float = 0.0) -> list[str]:
    """The command line that measures in a process of its own."""
    own = {"trial-dir": trial_dir, "worker": calculator.worker, "device": calculator.device, "since": since,
           "limit-s": calculator.limit_s}  # fmt: skip
    flags = [f"--{name}={value}" for name, value in own.items()]
    return [sys.executable, "-m", "nas_hpc.trial.measure", *flags, "--", *calculator.words(trial_dir)]


def main(argv: Sequence[str] | None = None) -> int:
    """As a program, one evaluation of a tool."""
    words = list(sys.argv[1:] if argv is None else argv)
    at = words.index("--") if "--" in words else len(words)
    parser = argparse.ArgumentParser(prog="python -m nas_hpc.trial.measure", description=__doc__)
    parser.add_argument("--trial-dir", type=Path, required=True)
    parser.add_argument("--worker", default="0")
    parser.add_argument("--device", default="")
    parser.add_argument("--since", type=float, default=0.0)
    parser.add_argument("--limit-s", type=float, default=LIMIT_S)
    flags = parser.parse_args(words[:at])
    command = tuple(words[at + 1 :])
    if not command:
        parser.error("there is no calculator: give its command behind --")
    calculator = Calculator(
        command=command, whole=True, worker=flags.worker, device=flags.device, limit_s=flags.limit_s
    )
    try:
        ended = measure(flags.trial_dir, calculator, flags.since)
    except (OSError, WorkFailed) as error:
        why = error.message if isinstance(error, WorkFailed) else error.strerror
        print(f"nas-hpc: cannot measure {flags.trial_dir}: {why}", file=sys.stderr)
        return 1
    if ended is not None:
        return 128 + ended
    found = measured_latency(flags.trial_dir)
    if found is None and error_of(flags.trial_dir):
        print(f"nas-hpc: no latency of {flags.trial_dir}: {error_of(flags.trial_dir)}", file=sys.stderr)
    print(f"DH-OUTPUT: {'F_error' if found is None else repr(found)}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
