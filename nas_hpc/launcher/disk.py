"""What a launcher that takes over finds on disk of the attempts of a dead one."""

from __future__ import annotations

import socket
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from nas_hpc.launcher import policy
from nas_hpc.processes import packed, results
from nas_hpc.processes.attempts import FIRST_PAUSE_S, LONGEST_PAUSE_S
from nas_hpc.records import Job, Result
from nas_hpc.site import Site
from nas_hpc.states import Outcome
from nas_hpc.store.base import Store


def elsewhere(store: Store, jobs: Sequence[Job], restartable: Collection[str]) -> set[str]:
    """Ids of the jobs that ran on other hosts. What this one has written itself it sees at once; a search
    leaves no result when its launcher dies.
    """
    host = socket.gethostname()
    current = {(job.id, job.attempt) for job in jobs if job.application not in restartable}
    return {
        attempt.job
        for attempt in store.attempts([job for job, _ in current])
        if (attempt.job, attempt.number) in current
        and any(node != host and node.rpartition("-")[0] != host for node in attempt.nodes)
    }


def results_on_disk(
    site: Site, jobs: Iterable[Job], late: Collection[str] = (), grace_s: float = 0.0
) -> dict[str, Result]:
    """The valid results of the jobs' current attempts in their directories and in packed files, by job id.

    Those of ``late`` are looked for again for ``grace_s`` in all: what another node wrote just before the
    launcher's end may be seen late.
    """
    found: dict[str, Result] = {}
    missing = list(jobs)
    deadline, pause_s = time.monotonic() + grace_s, FIRST_PAUSE_S
    again = False
    while True:
        for job in missing:
            directory = site.job_directory(job.workflow, job.directory_name)
            result = result_on_disk(directory, job, again=again)
            if result is not None:
                found[job.id] = result
        found |= _packed(site, [job for job in missing if job.creator and job.id not in found])
        missing = [job for job in missing if job.id in late and job.id not in found]
        left_s = deadline - time.monotonic()
        if not missing or left_s <= 0:
            return found
        time.sleep(min(pause_s, left_s))
        pause_s, again = min(2 * pause_s, LONGEST_PAUSE_S), True


def result_on_disk(directory: Path, job: Job, *, again: bool = False) -> Result | None:
    """The valid result of the job's current attempt in its directory, else None."""
    return _result(results.read(str(directory), job.id, job.attempt, again=again), job)


def _packed(site: Site, jobs: Sequence[Job]) -> dict[str, Result]:
    """Those of evaluations without a directory, by job id."""
    by_workflow: dict[str, dict[tuple[str, int], Job]] = {}
    for job in jobs:
        by_workflow.setdefault(job.workflow, {})[job.id, job.attempt] = job
    found = {}
    for workflow, wanted in by_workflow.items():
        for line in packed.read(site.workflow_directory(workflow), lambda *key: key in wanted):  # noqa: B023
            job = wanted[line["id"], line["attempt"]]
            result = _result(results.valid(line["result"], job.id, job.attempt), job)
            if result is not None:
                found[line["id"]] = result
    return found


def _result(body: Mapping[str, Any] | None, job: Job) -> Result | None:
    """The record of a valid result of ``job``."""
    if body is None:
        return None
    outcome, objective = Outcome(body["outcome"]), body["objective"]
    if outcome in (Outcome.LOST, Outcome.WALLTIME):
        return None
    if outcome is Outcome.ERROR and body.get("return_code") in policy.ENDED_FROM_OUTSIDE:
        return None  # whatever ended who ran it may have ended it first: it is lost with that
    if outcome is Outcome.OK and job.evaluation is not None and objective is None:
        return None  # a program wrote it, and nobody has judged it
    try:
        return Result(
            outcome, None if objective is None else float(objective), body.get("metadata") or {},
            body.get("reason") or "", body.get("return_code"), float(body["start"]), float(body["end"]),
        )  # fmt: skip
    except (KeyError, TypeError, ValueError, OverflowError):
        return None
