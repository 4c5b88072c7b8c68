"""What a launcher does for the batch job that it runs in: its record, and the end of its chain."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from nas_hpc.batch import jobs
from nas_hpc.batch.following import cancel
from nas_hpc.errors import INTERRUPTED, NasHpcError
from nas_hpc.processes.sessions import boot_id
from nas_hpc.site import Site
from nas_hpc.states import BATCH_FINAL

Say = Callable[[str], None]


@dataclass(slots=True)
class Told:
    """What the launcher has to say at its end."""

    exit_code: int = 0
    left: int | None = None
    """So many of its jobs are not at their end."""


@contextmanager
def recording(site: Site, say: Say) -> Iterator[Told]:
    """Write the start and the end of this launcher where its batch job's script has told to; elsewhere
    nothing is written. That it cannot be written is said, and is no reason not to work.
    """
    told = Told()
    key = os.environ.get(jobs.JOB_VARIABLE, "")
    if not key or not os.path.isfile(
        jobs.script_of(site, key)
    ):  # of another site's batch job: not ours to tell
        yield told
        return
    start = {"host": socket.gethostname(), "pid": os.getpid(), "boot_id": boot_id(), "started": time.time()}
    _write(site, key, start | {"ended": 0.0, "exit_code": None, "left": None}, say)
    try:
        yield told
    except NasHpcError as error:
        told.exit_code = error.exit_code
        raise
    except KeyboardInterrupt:
        told.exit_code = INTERRUPTED
        raise
    except BaseException:
        told.exit_code = 1
        raise
    finally:
        end = {"ended": time.time(), "exit_code": told.exit_code, "left": told.left}
        _write(site, key, start | end, say)


def _write(site: Site, key: str, values: dict[str, object], say: Say) -> None:
    try:
        jobs.write_launch(site, key, **values)
    except (OSError, NasHpcError) as error:
        why = error.strerror or error if isinstance(error, OSError) else error.message
        say(f"note: the record of batch job {key} cannot be written: {why}")


def end_chain(site: Site, say: Say) -> None:
    """Cancel what is left of the chain that this launcher's batch job belongs to, as far as that goes: each
    of them would find nothing to do.
    """
    mine = jobs.read_job(site, os.environ.get(jobs.JOB_VARIABLE, ""))
    if mine is None or not mine.chain:
        return
    rest = [
        job
        for job in jobs.read_jobs(site)
        if job.chain == mine.chain and job.key != mine.key and job.id and job.state not in BATCH_FINAL
        and job.submitted >= mine.submitted  # those before it have ended: it was told to wait for them
    ]  # fmt: skip
    if not rest:
        return
    try:
        why = cancel(site, rest, os.environ)
    except NasHpcError as error:
        say(f"note: the rest of the chain was not cancelled, it will end by itself: {error.message}")
        return
    for job in rest:
        if job.key in why:
            say(f"note: {job.id} of the chain was not cancelled, it will end by itself: {why[job.key]}")
        else:
            say(f"cancelled {job.id} of the chain: there is nothing left to do for it")
