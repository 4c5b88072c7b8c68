"""What ``nas-hpc doctor`` looks at of a site's batch jobs."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator

from nas_hpc.batch.following import refresh
from nas_hpc.batch.jobs import read_jobs
from nas_hpc.cli.batch_view import PATIENCE_S, name_of, state_of
from nas_hpc.cli.checks import OK, WARN, Finding
from nas_hpc.site import Site
from nas_hpc.states import BATCH_FINAL, BatchState


def check_batch_jobs(site: Site) -> Iterator[Finding]:
    """Whether the batch systems of its batch jobs answer, and what of them is not known."""
    strange: list[str] = []
    jobs = [job for job in read_jobs(site, strange.append) if job.state not in BATCH_FINAL]
    for line in strange:
        yield Finding("batch jobs", WARN, line.removeprefix("note: "), "remove it")
    if not jobs:
        return
    followed = refresh(site, jobs, os.environ, patience_s=PATIENCE_S, insist=True)
    for line in followed.trouble:
        yield Finding("batch jobs", WARN, line, "try its status command by hand; nothing is lost meanwhile")
    for job in followed.jobs:
        if job.state is BatchState.SUBMITTING and state_of(job) == "unknown":
            text = f"it is not known whether {name_of(job)} was submitted"
            yield Finding("batch jobs", WARN, text, f"look for it in {job.system}; nas-hpc why {job.key}")
    counts = Counter(state_of(job) for job in followed.jobs)
    if not followed.trouble:
        yield Finding("batch jobs", OK, ", ".join(f"{count} {state}" for state, count in counts.items()))
