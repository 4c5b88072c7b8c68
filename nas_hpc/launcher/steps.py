"""Steps of a Slurm job that outlived the srun that started them."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import time
from collections.abc import Callable

CALL_S = 20.0
"""Deadline of a call of Slurm's commands."""
GONE_S = 30.0
"""So long a cancelled step may take to end: Slurm itself waits between SIGTERM and SIGKILL."""


def name_of(ensemble: str) -> str:
    """What a step of agents is called."""
    return f"nas-hpc-{ensemble}"


def end(job: str, ensemble: str, note: Callable[[str], None]) -> None:
    """Cancel the steps of ``ensemble`` in Slurm job ``job`` and wait until they are gone. Blocking."""
    squeue, scancel = shutil.which("squeue"), shutil.which("scancel")
    if squeue is None or scancel is None:
        return
    wanted = name_of(ensemble)
    ask = [squeue, "--steps", f"--jobs={job}", "--noheader", "--format=%i %j"]
    deadline = time.monotonic() + GONE_S
    told = False
    with contextlib.suppress(subprocess.TimeoutExpired, OSError):
        while steps := [line.split()[0] for line in _said(ask) if line.split()[1:] == [wanted]]:
            if not told:
                told = True
                note(f"the steps {', '.join(steps)} of an earlier launch are cancelled")
                _said([scancel, *steps])
            if time.monotonic() > deadline:
                note(f"the steps {', '.join(steps)} do not end")
                return
            time.sleep(0.2)
        return
    note("Slurm did not say whether steps of an earlier launch are left")


def _said(argv: list[str]) -> list[str]:
    done = subprocess.run(
        argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=CALL_S, check=False
    )
    return done.stdout.splitlines()
