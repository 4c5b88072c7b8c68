"""polynome2 that takes a while and writes down its starts and ends, for ``benchmarks.recovery``.

Nothing but the standard library beside the problem's own function: it is imported in the warm interpreters.
"""

from __future__ import annotations

import os
import time
from typing import Any

from nas_hpc.problems.hps import polynome2

NOTES, SECONDS = "BENCH_NOTES", "BENCH_SECONDS"
"""Environment variables: the file of the notes, how long an evaluation takes."""


def note(what: str) -> None:
    """Append a line about this attempt: one write, so that lines of many processes do not mix."""
    line = f"{what} {os.environ['NAS_HPC_JOB_ID']} {os.environ['NAS_HPC_ATTEMPT']} {time.time()}\n"
    descriptor = os.open(os.environ[NOTES], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(descriptor, line.encode())
    finally:
        os.close(descriptor)


def run(config: dict[str, Any]) -> float:
    """polynome2; of several ranks the first one notes."""
    first = os.environ.get("NAS_HPC_RANK", "0") == "0"
    if first:
        note("start")
    time.sleep(float(os.environ[SECONDS]))
    if first:
        note("end")
    return polynome2.run(config)
