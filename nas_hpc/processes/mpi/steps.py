"""Steps of srun that outlived their launcher: a killed srun leaves its tasks running."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence

CALL_S = 10.0
"""Deadline of each of Slurm's commands; a controller that is away must not hold up a start for long."""
_END_S = 20.0
_POLL_S = 0.2


def step_name(lease: str) -> str:
    """What srun calls the steps that the launcher with this lease has started."""
    return f"nas-hpc-{lease}"


def end_left_steps(leases: Iterable[str], environ: Mapping[str, str]) -> int:
    """End the steps of dead launchers in the Slurm allocation of ``environ``, and wait for it, at most 20 s.

    Blocking. Returns how many there were; 0 where there is no Slurm, or where it does not answer.
    """
    job = environ.get("SLURM_JOB_ID", "")
    squeue, scancel = shutil.which("squeue"), shutil.which("scancel")
    names = {step_name(lease) for lease in leases}
    if not (job and names and squeue and scancel):
        return 0

    def left() -> list[str]:
        words = [
            line.split() for line in _output([squeue, "-h", "-s", "-j", job, "-o", "%i %j"]).splitlines()
        ]
        return [word[0] for word in words if len(word) == 2 and word[1] in names]

    found = left()
    if not found:
        return 0
    _output([scancel, *found])
    deadline = time.monotonic() + _END_S
    while left() and time.monotonic() < deadline:
        time.sleep(_POLL_S)
    return len(found)


def _output(argv: Sequence[str]) -> str:
    try:
        done = subprocess.run(
            argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=CALL_S,
            check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout
