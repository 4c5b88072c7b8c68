"""Ending batch jobs."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

from nas_hpc.batch.following import FIRST_PAUSE_S, Followed, cancel, refresh
from nas_hpc.batch.jobs import is_unknown, read_job, read_jobs
from nas_hpc.cli.batch_view import PATIENCE_S, PREFIX, find_batch, name_of, shape_of, state_of, word_of
from nas_hpc.cli.context import note
from nas_hpc.cli.output import short
from nas_hpc.cli.submission import named_job
from nas_hpc.errors import BatchSilent, WorkFailed, WrongCall
from nas_hpc.records import BatchJob
from nas_hpc.site import Site
from nas_hpc.states import BATCH_FINAL, BatchState
from nas_hpc.store.base import Store

VERIFY_S = 10.0
"""So long the batch system is watched for what it does with a job that it was told to end."""
_GOES = BATCH_FINAL | {BatchState.ENDING}


def batch_words(site: Site, words: Sequence[str]) -> dict[str, BatchJob]:
    """Those of ``words`` that name batch jobs. Raises WrongCall for a ``batch:…`` that names none."""
    found = ((word, find_batch(site, word)) for word in words)
    return {word: job for word, job in found if job is not None}


def check_clear(store: Store, batch: Sequence[str]) -> None:
    """Raise WrongCall if a word that names a batch job names a job, too."""
    for word in batch:
        if word.startswith(PREFIX):
            continue
        job = named_job(store, word)
        if job is not None:
            raise WrongCall(
                f"kill: {word!r} is a batch job, and job {job.workflow}/{job.name} ({short(job.id)}), too; "
                f"say {PREFIX}{word} or {job.id[:12]}"
            )


def kill_batch(site: Site, jobs: Sequence[BatchJob]) -> list[BatchJob]:
    """End batch jobs and say what became of each; returns those that end or have ended now.

    Raises WrongCall for one whose id nobody knows, WorkFailed if one is still there, BatchSilent.
    """
    ended: list[BatchJob] = []
    for job in jobs:
        if not job.id and job.state not in BATCH_FINAL:
            _without_id(job)
    alive: dict[str, list[BatchJob]] = {}
    for job in {job.key: job for job in jobs}.values():
        if job.state in BATCH_FINAL:
            note(f"note: {name_of(job)} is {state_of(job)} already")
        else:
            alive.setdefault(job.system, []).append(job)
    failed: list[str] = []
    for system, of_system in alive.items():
        refused = _cancel(site, system, of_system)
        followed = _watch(site, [job for job in of_system if job.key not in refused])
        for job in followed.jobs:
            if job.state in _GOES:
                ended.append(job)
            else:
                told = "".join(f"; {line}" for line in followed.trouble)
                failed.append(f"{name_of(job)} was told to end and is {state_of(job)}{told}")
        failed += [f"{name_of(job)}: {refused[job.key]}" for job in of_system if job.key in refused]
    _tell_chains(site, ended)
    if failed:
        for job in ended:
            note(describe(job))
        raise WorkFailed("; ".join(failed))
    return ended


def _without_id(job: BatchJob) -> None:
    if is_unknown(job, time.time()):
        raise WrongCall(
            f"kill: it is not known whether {name_of(job)} was submitted, nor its id; look for {job.key} in "
            f"{job.system}, end it there, and remove {Path(job.script).with_suffix('.json')} to forget it"
        )
    raise WrongCall(f"kill: {name_of(job)} is being submitted just now; say it again when it has an id")


def _cancel(site: Site, system: str, jobs: Sequence[BatchJob]) -> dict[str, str]:
    """Tell the system to end them, again while it is silent and there is patience."""
    end, pause_s = time.monotonic() + PATIENCE_S, FIRST_PAUSE_S
    while True:
        try:
            return cancel(site, jobs, os.environ)
        except BatchSilent as error:
            if time.monotonic() + pause_s > end:
                names = ", ".join(name_of(job) for job in jobs)
                raise BatchSilent(
                    f"{system} gave no answer: {error}; whether {names} will end is not known, look with: "
                    "nas-hpc ls queues"
                ) from None
        time.sleep(pause_s)
        pause_s *= 2


def _watch(site: Site, jobs: Sequence[BatchJob]) -> Followed:
    """The jobs when they end, or when they still do not after a while."""
    end = time.monotonic() + VERIFY_S
    now = [read_job(site, job.key) or job for job in jobs]
    while True:
        followed = refresh(site, now, os.environ, patience_s=0.0, insist=True)
        if all(job.state in _GOES for job in followed.jobs) or time.monotonic() > end:
            return followed
        time.sleep(FIRST_PAUSE_S)
        now = followed.jobs


def describe(job: BatchJob) -> str:
    """What became of it, in a line."""
    if job.state is BatchState.ENDING:
        return f"{name_of(job)} ({shape_of(job)}) is ending: its launcher stops what runs"
    if job.state is BatchState.CANCELLED:
        return f"cancelled {name_of(job)} ({shape_of(job)})"
    return f"{name_of(job)} ({shape_of(job)}) is {state_of(job)}"


def _tell_chains(site: Site, ended: Sequence[BatchJob]) -> None:
    """Name what is left of the chains of batch jobs that were ended."""
    gone = {job.key for job in ended}
    for chain in dict.fromkeys(job.chain for job in ended if job.chain):
        rest = [
            job
            for job in read_jobs(site)
            if job.chain == chain and job.key not in gone and job.state not in BATCH_FINAL
        ]
        if rest:
            words = " ".join(word_of(job) for job in rest)
            note(f"note: later ones of its chain are still there; end them with: nas-hpc kill {words}")


def tell_left(site: Site, workflow: str) -> None:
    """Say which batch jobs are still there for a workflow whose jobs were ended."""
    rest = [job for job in read_jobs(site) if job.workflow == workflow and job.state not in BATCH_FINAL]
    if rest:
        words = " ".join(word_of(job) for job in rest)
        note(f"note: batch jobs for workflow {workflow} are still there; end them with: nas-hpc kill {words}")
