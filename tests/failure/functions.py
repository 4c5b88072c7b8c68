"""Run functions that behave as users' do on bad days; each notes its start and end in the ledger."""

from __future__ import annotations

import fcntl
import math
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from tests.failure.ledger import GATE, LEDGER, WORK_S, note


def gated(config: dict[str, Any]) -> float:
    """Ends when it has worked and the file named in the environment is there."""
    note("start")
    work()
    note("end")
    return float(config["e0"])


def work() -> None:
    """Take as long as the environment says, and until the gate is open."""
    time.sleep(float(os.environ.get(WORK_S, "0.03")))
    while not Path(os.environ[GATE]).exists():
        time.sleep(0.01)


def raises() -> None:
    raise ValueError("two\nlines, and no text: \udcff")


def hangs() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(600)


def eats_memory() -> None:
    """Until there is no more, here by a limit of its own."""
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + (256 << 20), now + (256 << 20)))
    hoard = []
    while True:
        hoard.append(bytearray(8 << 20))


def dies_of_memory() -> None:
    """As the kernel ends it when there is no more."""
    os.kill(os.getpid(), signal.SIGKILL)


def prints_binary() -> float:
    os.write(1, bytes(range(256)) * 4000)
    print("DH-OUTPUT: 77 \x00\x1b[2J", flush=True)
    return 3.0


def forks() -> float:
    """Both of it go on to return a value."""
    return 4.0 if os.fork() else 5.0


def leaves_a_daemon() -> float:
    """A process of a session and an environment of its own, deaf to what asks it to end."""
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
    subprocess.Popen([sys.executable, "-c", deaf], start_new_session=True)
    return 6.0


def closes_everything() -> float:
    os.closerange(0, 256)
    return 7.0


def removes_its_directory() -> float:
    directory = Path.cwd()
    for path in directory.iterdir():
        path.unlink()
    directory.rmdir()
    return 8.0


def writes_anothers_result() -> float:
    Path("result.json").write_text(
        '{"job": "' + "0" * 32 + '", "attempt": 1, "outcome": "ok", "objective": 99}'
    )
    return 9.0


def recurses() -> None:
    recurses()


KINDS: tuple[tuple[Callable[[], Any], str], ...] = (
    (raises, "error"),
    (hangs, "timeout"),
    (eats_memory, "error"),
    (dies_of_memory, "error"),
    (prints_binary, "ok"),
    (forks, "ok"),
    (lambda: math.nan, "invalid_result"),
    (lambda: -math.inf, "invalid_result"),
    (lambda: "0.5 or so", "invalid_result"),
    (lambda: None, "invalid_result"),
    (lambda: sys.exit(3), "error"),
    (leaves_a_daemon, "ok"),
    (closes_everything, "ok"),
    (removes_its_directory, "ok"),
    (writes_anothers_result, "ok"),
    (recurses, "error"),
    (lambda: 1.0, "ok"),
)
"""What evaluations number 1, 2, 3, ... do, and the outcome that it has to have."""


def unlucky(config: dict[str, Any]) -> Any:
    """What the evaluation's number says."""
    match = re.match(r"task(\d+)_", Path.cwd().name)
    assert match is not None
    note("start")
    value = KINDS[(int(match.group(1)) - 1) % len(KINDS)][0]()
    note("end")
    return value


def pair(config: dict[str, Any]) -> float | None:
    """Two ranks that have to meet."""
    from mpi4py import MPI

    comm = MPI.COMM_WORLD
    if comm.rank == 0:
        note("start")
    total = comm.allreduce(comm.rank + 1)
    work()
    comm.barrier()
    if comm.rank == 0:
        note("end")
    return float(config["e0"]) if total == 3 else None


def lone_pair(config: dict[str, Any]) -> float | None:
    """``pair`` whose ranks say if a rank of another attempt still lives."""
    hold_place()
    return pair(config)


def hold_place() -> None:
    """Hold a lock for this process's life, one for each rank of a job; if another process holds it, leave a
    file that says so beside the ledger.
    """
    job, attempt, rank = (os.environ[f"NAS_HPC_{name}"] for name in ("JOB_ID", "ATTEMPT", "RANK"))
    places = Path(f"{os.environ[LEDGER]}-places")
    places.mkdir(exist_ok=True)
    lock = (places / f"{job}.{rank}").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        (places / f"overlap-{job}.{attempt}.{rank}").touch()
    _held.append(lock)


_held: list[IO[str]] = []
