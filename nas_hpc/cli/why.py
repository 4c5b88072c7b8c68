"""``nas-hpc why``: why a job does not run, or how it ended."""

from __future__ import annotations

from typing import Any

import click

from nas_hpc.cli.client import live_endpoint, query
from nas_hpc.cli.context import Invocation, site_options
from nas_hpc.cli.output import attempt_json, print_json, short, show_duration, show_time
from nas_hpc.cli.submission import find_job
from nas_hpc.errors import LauncherGone, ProtocolError, WorkFailed
from nas_hpc.records import Attempt, Event, Job
from nas_hpc.site import Site
from nas_hpc.states import FINAL, RUNNABLE, State
from nas_hpc.store.base import JobFilter, Store


@site_options
@click.command()
@click.argument("word", metavar="JOB")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def why(call: Invocation, word: str, as_json: bool) -> None:
    """Say why a job does not run, or how it ended.

    \b
    Example:
      nas-hpc why 3f2a
    """
    with call.store(write=False) as (site, store):
        job = find_job(store, word)
        attempts = store.attempts([job.id])
        events = store.events([job.id])
        waiting = _unfinished_parents(store, job)
    lines = [*_state_lines(job, attempts, events), *[_parent_line(parent) for parent in waiting]]
    ranks = job.resources.num_nodes * job.resources.ranks_per_node
    if job.state in RUNNABLE and ranks > 1:
        change = f"nas-hpc modify {short(job.id)} --num-nodes 1 --ranks-per-node 1"
        lines.append(f"it has {ranks} ranks, which need an MPI program, and there is none so far: {change}")
    if job.state not in FINAL:
        lines += _launcher_lines(site, job)
    if as_json:
        body: dict[str, Any] = {
            "id": job.id,
            "name": job.name,
            "workflow": job.workflow,
            "state": job.state.value,
            "why": lines,
            "parents": [parent.id for parent in waiting],
            "attempts": [attempt_json(attempt) for attempt in attempts],
        }
        print_json(body)
        return
    print(f"{job.workflow}/{job.name} ({short(job.id)}) is {job.state.value}")
    for line in lines:
        print(f"  {line}")


def _unfinished_parents(store: Store, job: Job) -> list[Job]:
    if not job.parents:
        return []
    return [p for p in store.jobs(JobFilter(ids=job.parents)) if p.state is not State.JOB_FINISHED]


def _state_lines(job: Job, attempts: list[Attempt], events: list[Event]) -> list[str]:
    """How its last attempt ended, and since when it is in its state."""
    lines = []
    if events:
        last = events[-1]
        message = f": {last.message}" if last.message else ""
        lines.append(f"since {show_time(last.time)} UTC{message}")
    if not attempts:
        return lines
    attempt = attempts[-1]
    result = attempt.result
    where = f" on {', '.join(attempt.nodes)}" if attempt.nodes else ""
    if result is None:
        lines.append(f"attempt {attempt.number} runs{where} since {show_time(attempt.claimed)} UTC")
        return lines
    took = f" after {show_duration(result.end - result.start)}" if result.end else ""
    reason = f": {result.reason}" if result.reason else ""
    code = f" (return code {result.return_code})" if result.return_code else ""
    lines.append(f"attempt {attempt.number}{where} ended {result.outcome.value}{took}{code}{reason}")
    lines += [f"| {line}" for line in attempt.tail.splitlines()[-10:]]
    if job.state in (State.FAILED, State.USER_KILLED) and not job.creator:
        lines.append(f"to let it run again: nas-hpc retry {short(job.id)}")
    return lines


def _parent_line(parent: Job) -> str:
    who = f"{parent.workflow}/{parent.name} ({short(parent.id)})"
    line = f"waits for its parent {who}, which is {parent.state.value}"
    if parent.state in (State.FAILED, State.USER_KILLED):
        line += f"; nas-hpc retry {short(parent.id)}"
    return line


def _launcher_lines(site: Site, job: Job) -> list[str]:
    """What the running launcher says of the job, or that there is none."""
    try:
        if live_endpoint(site) is None:
            if job.state is State.RUNNING:
                return ["its launcher is gone: the next one takes it over; nas-hpc launcher"]
            return [f"no launcher is running: start one with: nas-hpc launcher --wf-filter {job.workflow}"]
        view = query(site, job.id)
    except (LauncherGone, ProtocolError, WorkFailed) as error:
        return [str(error)]
    reason = str(view.get("why") or "")
    workflow = str(view.get("workflow") or "")
    if reason:
        return [f"the launcher says: {reason}"]
    if workflow and workflow != job.workflow:
        return [f"the running launcher takes only workflow {workflow}; it ends before another can be started"]
    if job.state in RUNNABLE:
        return ["the running launcher has not looked at it yet"]
    return []
