"""``nas-hpc log``: the output of a job."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import BinaryIO

import click

from nas_hpc.cli.context import Invocation, note, open_database, site_options
from nas_hpc.cli.output import short
from nas_hpc.cli.submission import find_job
from nas_hpc.cli.types import Count
from nas_hpc.processes import packed
from nas_hpc.records import Job
from nas_hpc.site import Site
from nas_hpc.states import FINAL
from nas_hpc.store.base import JobFilter

FOLLOW_S = 0.5
"""Between two looks at a file that is being followed; a person watches, no evaluation waits for this."""
_CHUNK = 1 << 16


@site_options
@click.command()
@click.argument("word", metavar="JOB")
@click.option("-f", "--follow", is_flag=True, help="Go on until the job is done.")
@click.option("--tail", "-n", "lines", type=Count(1), default=None, help="Only so many last lines.")
@click.pass_obj
def log(call: Invocation, word: str, follow: bool, lines: int | None) -> None:
    """Print the output of a job: its standard output and error.

    \b
    Examples:
      nas-hpc log 3f2a
      nas-hpc log TEST/test -f
    """
    with call.store(write=False) as (site, store):
        job = find_job(store, word)
    path = site.job_directory(job.workflow, job.directory_name) / f"{job.name}.out"
    if follow:
        _follow(site, job, path, lines)
    elif not path.is_file():
        if not _packed_tail(site, job):
            note(f"note: {job.name} ({short(job.id)}) is {job.state.value} and has written nothing")
    else:
        with path.open("rb") as file:
            _seek_tail(file, lines)
            _copy(file)


def _follow(site: Site, job: Job, path: Path, lines: int | None) -> None:
    """Print what is there and what comes, until the job is final and nothing is left to print."""
    file: BinaryIO | None = None
    try:
        while True:
            final = job.state in FINAL  # read before the file: what was written before the end is printed
            if file is None and path.is_file():
                file = path.open("rb")
                _seek_tail(file, lines)
            if file is not None:
                if path.exists() and path.stat().st_size < file.tell():
                    file.seek(0)  # a new attempt has begun it again
                _copy(file)
            if final:
                if file is None:
                    _packed_tail(site, job)
                note(f"note: {job.name} ({short(job.id)}) is {job.state.value}")
                return
            time.sleep(FOLLOW_S)
            with open_database(site, read_only=True) as store:
                found = store.jobs(JobFilter(workflow=job.workflow, name=job.name))
            current = [one for one in found if one.id == job.id]
            if not current:
                note(f"note: {job.name} ({short(job.id)}) was removed")
                return
            job = current[0]
    finally:
        if file is not None:
            file.close()


def _packed_tail(site: Site, job: Job) -> bool:
    """Print what is kept of the output of an evaluation that has no directory; False if it has no line."""
    if not job.creator:
        return False
    key = (job.id, job.attempt)
    lines = list(packed.read(site.workflow_directory(job.workflow), lambda *one: one == key))
    if not lines:
        return False
    tail = str(lines[-1].get("tail") or "")
    sys.stdout.flush()
    sys.stdout.buffer.write(tail.encode())
    sys.stdout.buffer.flush()
    kept = "of a failure's output only the last characters are" if tail else "a success's output is not"
    note(f"note: {job.name} ({short(job.id)}) has no directory (task_directories): {kept} kept")
    return True


def _copy(file: BinaryIO) -> None:
    """Bytes as they are: a program may print what is no text."""
    while chunk := file.read(_CHUNK):
        sys.stdout.flush()
        sys.stdout.buffer.write(chunk)
    sys.stdout.buffer.flush()


def _seek_tail(file: BinaryIO, lines: int | None) -> None:
    """Go to where the last ``lines`` lines begin."""
    if lines is None:
        return
    position = file.seek(0, 2)
    block = b""
    while position > 0 and block.count(b"\n") <= lines:
        step = min(_CHUNK, position)
        position = file.seek(position - step)
        block = file.read(step) + block
    kept = b"".join(block.splitlines(keepends=True)[-lines:])
    file.seek(position + len(block) - len(kept))
