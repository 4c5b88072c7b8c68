"""Batch jobs and queues as commands show them."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from nas_hpc.batch.following import Followed, refresh
from nas_hpc.batch.jobs import UNKNOWN, find_job, is_unknown, read_jobs, read_launch
from nas_hpc.batch.machine import Machine, Queue
from nas_hpc.batch.system import ask
from nas_hpc.batch.systems import system_of
from nas_hpc.cli.context import note
from nas_hpc.cli.output import print_json, print_table, show_age, show_duration, show_time
from nas_hpc.errors import NasHpcError, WrongCall
from nas_hpc.processes import results
from nas_hpc.records import BatchJob, Job
from nas_hpc.site import Site
from nas_hpc.states import BATCH_FINAL, BatchState

PREFIX = "batch:"
"""Before a word: it names a batch job, and no job."""
PATIENCE_S = 3.0
"""So long a command asks a silent batch system again."""
ASK_S = 8.0
"""So long the batch system may take to tell its queues."""
READ_BYTES = 1 << 16
"""So much of the end of a batch job's output is looked at."""
TAIL = 10
"""So many last lines of a batch job's output are shown."""
SHOWN = 3
"""So many batch jobs that will run a job are told."""


def find_batch(site: Site, word: str) -> BatchJob | None:
    """The batch job that ``word`` names; None if it names none. Raises WrongCall if it can only mean one."""
    found = find_job(site, word)
    if found is None and word.startswith(PREFIX):
        raise WrongCall(
            f"{word!r}: the site has no batch job {word.removeprefix(PREFIX)!r}; nas-hpc ls queues --all "
            "shows those there are"
        )
    return found


def name_of(job: BatchJob) -> str:
    """How a user names it."""
    return f"batch job {job.id or job.key}"


def word_of(job: BatchJob) -> str:
    """What he types to name it."""
    return f"{PREFIX}{job.id or job.key}"


def state_of(job: BatchJob) -> str:
    """Its state in a word."""
    return "unknown" if is_unknown(job, time.time()) else job.state.value


def reason_of(job: BatchJob) -> str:
    """Why it is in that state, as far as it is known."""
    return UNKNOWN if is_unknown(job, time.time()) else job.reason


def shape_of(job: BatchJob) -> str:
    """What was asked for."""
    queue = f"queue {job.queue}, " if job.queue else ""
    nodes = "1 node" if job.nodes == 1 else f"{job.nodes} nodes"
    return f"{queue}{nodes}, {show_duration(job.walltime_minutes * 60)}"


def batch_json(job: BatchJob) -> dict[str, Any]:
    """A batch job for ``--json``."""
    return {**asdict(job), "state": state_of(job), "reason": reason_of(job)}


def follow(site: Site, jobs: Sequence[BatchJob], *, patience_s: float = PATIENCE_S) -> Followed:
    """Their states now."""
    return refresh(site, jobs, os.environ, patience_s=patience_s)


def show_queues(site: Site, machine: Machine, *, everything: bool, as_json: bool) -> None:
    """The machine's queues, and the site's batch jobs: those at their end only if ``everything`` is asked
    for.
    """
    jobs = read_jobs(site, note)
    followed = follow(site, [job for job in jobs if everything or job.state not in BATCH_FINAL])
    for line in followed.trouble:
        note(f"note: {line}")
    queues = machine.queues or _told_queues(machine)
    if as_json:
        print_json(
            {
                "machine": machine.name,
                "system": machine.system,
                "queues": [asdict(queue) for queue in queues],
                "batch_jobs": [batch_json(job) for job in followed.jobs],
                "trouble": followed.trouble,
            }
        )
        return
    print(f"machine {machine.name} ({machine.system}){f': {machine.title}' if machine.title else ''}")
    head = ("queue", "nodes", "minutes", "queued at once", "about")
    print_table(head, [_queue_row(queue, machine) for queue in queues], _no_queues(machine))
    print()
    _print_jobs(followed.jobs, len(jobs) - len(followed.jobs))


def _no_queues(machine: Machine) -> str:
    if machine.system == "local":
        return f"no queues: batch jobs run in the background on {os.uname().nodename}"
    return f"{machine.origin} names no queues, and {machine.system} has told none"


def _told_queues(machine: Machine) -> tuple[Queue, ...]:
    """What the batch system tells of its queues, for a machine whose file has none."""
    if machine.system == "local":
        return ()
    try:
        told = system_of(machine.system).queues(partial(ask, timeout_s=ASK_S))
    except NasHpcError as error:
        note(f"note: {machine.system} does not tell its queues: {error}")
        return ()
    return tuple(
        Queue(
            state.name,
            min_nodes=state.min_nodes or 1,
            max_nodes=state.max_nodes or 0,
            max_minutes=state.max_minutes or 0,
            description="" if state.open else "takes no batch jobs at the moment",
        )
        for state in told
    )


def _queue_row(queue: Queue, machine: Machine) -> tuple[str, ...]:
    default = " (default)" if queue.name == machine.queue else ""
    return (
        f"{queue.name}{default}",
        _span(queue.min_nodes, queue.max_nodes),
        _minutes(queue),
        str(queue.max_queued or "-"),
        queue.description,
    )


def _span(least: int, most: int) -> str:
    return f"{least}-{most}" if most else f"{least} or more"


def _minutes(queue: Queue) -> str:
    """The limits of its walltime, by numbers of nodes where they differ."""
    if not queue.steps:
        return _span(queue.min_minutes, queue.max_minutes)
    spans = [
        f"{_span(max(step.min_minutes, queue.min_minutes), step.max_minutes)} from {step.nodes} nodes"
        for step in queue.steps
    ]
    return ", ".join(spans)


def _print_jobs(jobs: Sequence[BatchJob], left_out: int) -> None:
    rows = [
        (
            job.id or "-",
            job.workflow or "all",
            job.queue or "-",
            str(job.nodes),
            show_duration(job.walltime_minutes * 60),
            state_of(job) + (f" ({job.exit_code})" if job.exit_code else ""),
            show_age(job.submitted),
            reason_of(job),
        )
        for job in jobs
    ]
    head = ("batch job", "workflow", "queue", "nodes", "walltime", "state", "submitted", "reason")
    empty = "no batch jobs" if not left_out else "no batch jobs that wait or run"
    print_table(head, rows, f"{empty}; submit one with: nas-hpc submit-launch")
    if left_out:
        print(f"({left_out} at their end are not shown; --all shows them)")


def show_why(site: Site, job: BatchJob, *, as_json: bool) -> None:
    """Why a batch job waits, or how it ended."""
    [job], trouble = (followed := follow(site, [job])).jobs, followed.trouble
    lines = [*_batch_lines(site, job), *trouble]
    if as_json:
        launch = read_launch(site, job.key)
        said = asdict(launch) if launch is not None else None
        print_json({**batch_json(job), "why": lines, "launcher": said, "trouble": trouble})
        return
    print(f"{name_of(job)} is {state_of(job)}")
    for line in lines:
        print(f"  {line}")


def _batch_lines(site: Site, job: BatchJob) -> list[str]:
    known = {one.id: one for one in read_jobs(site) if one.id}
    what = f"jobs of workflow {job.workflow}" if job.workflow else "all jobs"
    project = f", project {job.project}" if job.project else ""
    lines = [
        f"{shape_of(job)}{project}; its launcher runs {what} in {job.job_mode} mode",
        f"submitted {show_time(job.submitted)} UTC to {job.machine or job.system}",
    ]
    if reason_of(job):
        lines.append(f"because: {reason_of(job)}")
    if is_unknown(job, time.time()):
        lines.append(f"look for it in {job.system}; {Path(job.script).with_suffix('.json')} is its record")
    if job.state not in BATCH_FINAL:
        lines += [_dependency_line(id_, known) for id_ in job.dependencies]
    if job.exit_code is not None:
        lines.append(f"exit code {job.exit_code}")
    lines += _launch_lines(site, job)
    lines += [f"script {job.script}", f"output {job.output}"]
    if job.state in BATCH_FINAL and Path(job.output).is_file():
        lines += [f"| {line}" for line in results.tail(job.output).splitlines()[-TAIL:]]
    return lines


def _dependency_line(id_: str, known: Mapping[str, BatchJob]) -> str:
    other = known.get(id_)
    return f"begins after batch job {id_}" + (f", which is {state_of(other)}" if other is not None else "")


def _launch_lines(site: Site, job: BatchJob) -> list[str]:
    """What its launcher said of itself."""
    launch = read_launch(site, job.key)
    if launch is None:
        return []
    began = f"its launcher began {show_time(launch.started)} UTC (process {launch.pid} on {launch.host})"
    if not launch.ended:
        return [began]
    left = f", {launch.left} job{'s' if launch.left > 1 else ''} not finished" if launch.left else ""
    return [f"{began} and ended {show_time(launch.ended)} UTC with exit code {launch.exit_code}{left}"]


def waiting_lines(site: Site, job: Job, machine: Machine | None) -> list[str]:
    """Which batch jobs will run a job that waits without a launcher, or what to type where none will."""
    mine = [one for one in read_jobs(site) if one.workflow in ("", job.workflow)]
    followed = follow(site, mine)
    lines = [_will_run(one) for one in followed.jobs if one.state not in BATCH_FINAL]
    if len(lines) > SHOWN:
        lines[SHOWN:] = [f"and {len(lines) - SHOWN} more; nas-hpc ls queues shows them"]
    if not lines:
        ended = [one for one in followed.jobs if one.state in BATCH_FINAL and one.submitted > job.created]
        queue = f" -q {machine.queue}" if machine is not None and machine.queue else ""
        project = " -A PROJECT" if machine is not None and machine.project_required else ""
        lines = [
            *(_ended_lines(site, job, ended[-1]) if ended else []),
            f"no launcher is running: start one with: nas-hpc launcher --wf-filter {job.workflow}, or submit "
            f"one with: nas-hpc submit-launch -n NODES{queue} -t MINUTES{project} --wf-filter {job.workflow}",
        ]
    return [*lines, *followed.trouble]


def _ended_lines(site: Site, job: Job, batch: BatchJob) -> list[str]:
    """How the last batch job ended that was to run ``job``, and what its launcher said of that job."""
    launch = read_launch(site, batch.key)
    when = launch.ended if launch is not None and launch.ended else batch.asked
    code = f" with exit code {batch.exit_code}" if batch.exit_code is not None else ""
    since = f", {show_time(when)} UTC" if when else ""
    reason = f": {reason_of(batch)}" if reason_of(batch) else ""
    how = f"is {state_of(batch)}{code}{since}{reason}"
    first = f"the last one for it, {name_of(batch)} ({shape_of(batch)}), {how}"
    said = _last_lines(Path(batch.output))
    if not said:
        return [first]
    of_job = [line for line in said if f"({job.id[:8]})" in line]
    lines = of_job[-SHOWN:] or said[-SHOWN:]
    return [first, f"its output {batch.output} says:", *(f"| {line}" for line in lines)]


def _last_lines(path: Path) -> list[str]:
    """Of the last part of a file; none if it cannot be read."""
    try:
        with path.open("rb") as stream:
            stream.seek(max(0, stream.seek(0, os.SEEK_END) - READ_BYTES))
            return stream.read(READ_BYTES).decode(errors="replace").replace("\0", "\ufffd").splitlines()
    except OSError:
        return []


def _will_run(job: BatchJob) -> str:
    since = f"submitted {show_age(job.submitted)} ago"
    reason = f": {reason_of(job)}" if reason_of(job) else ""
    who = f"{name_of(job)} ({shape_of(job)})"
    if job.state is BatchState.RUNNING:
        return f"{who} is running, its launcher is not to be seen (yet); {since}{reason}"
    if job.state is BatchState.ENDING:
        return f"{who} is ending; {since}{reason}"
    return f"waits for {who}, which is {state_of(job)}; {since}{reason}"
