"""Run functions of the tests: doubling, failing, and what an evaluation may do else."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

HOLD = "HOLD_FILE"
"""Environment variable with a file: while it is there nothing is finished."""


def double(config: dict[str, Any]) -> float:
    """2·x, noted in the ledger of the configuration's directory; or a failure where ``fail`` is given."""
    held = os.environ.get(HOLD)
    while held and os.path.exists(held):
        time.sleep(0.02)
    if config.get("ledger"):
        with open(config["ledger"], "a") as stream:
            stream.write(f"{config['x']}\n")
    if config.get("fail"):
        raise ValueError(f"no value for {config['x']}")
    return 2.0 * float(config["x"])


def fails_at_first(config: dict[str, Any]) -> float:
    """A failure until it was called ``times`` before."""
    ledger = Path(config["ledger"])
    before = len(ledger.read_text().split()) if ledger.exists() else 0
    with ledger.open("a") as stream:
        stream.write("x\n")
    if before < config["times"]:
        raise RuntimeError(f"failure {before + 1}")
    return float(before)


def sleep(config: dict[str, Any]) -> float:
    """Longer than any test waits, having written its number."""
    Path("pid").write_text(str(os.getpid()))
    time.sleep(600)
    return 0.0


def end_at_once(config: dict[str, Any]) -> float:
    """Ends with the code that Balsam's serial mode takes for a reason to start again."""
    os._exit(1)


def place(config: dict[str, Any]) -> dict[str, Any]:
    """What an evaluation finds around it."""
    return {
        "objective": 1.0,
        "job": os.environ["NAS_HPC_JOB_ID"],
        "here": os.environ["NAS_HPC_JOB_DIR"],
        "threads": os.environ["OMP_NUM_THREADS"],
        "own": os.environ.get("OWN", ""),
        "pmi": os.environ.get("PMI_RANK", ""),
        "group": os.getpgid(0) != os.getpgid(os.getppid()),
    }


def together(config: dict[str, Any]) -> float | None:
    """The sum of all ranks' numbers; a failure of the rank ``fail``; with ``wait`` longer than any test."""
    from mpi4py import MPI

    world = MPI.COMM_WORLD
    if config.get("fail") == world.rank:
        raise ValueError(f"rank {world.rank} has no value")
    if config.get("wait"):
        Path(config["wait"]).touch()
        time.sleep(600)
    total = world.allreduce(world.rank + 1)
    return float(total) if world.rank == 0 else None
