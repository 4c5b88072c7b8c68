"""``nas-hpc why``: why a job does not run, or how it ended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import click

from nas_hpc.cli.client import live_endpoints, query, several
from nas_hpc.cli.context import Invocation, machine_option, note, site_options
from nas_hpc.cli.output import attempt_json, print_json, short, show_duration, show_time
from nas_hpc.cli.submission import find_job, named_job
from nas_hpc.errors import LauncherGone, NasHpcError, ProtocolError, WorkFailed
from nas_hpc.processes import results
from nas_hpc.records import Attempt, Event, Job, ParentFailure
from nas_hpc.site import Site
from nas_hpc.states import FINAL, RUNNABLE, Outcome, State
from nas_hpc.store.base import JobFilter, Store

TAIL = 10
"""So many last lines of output are shown."""
SHOWN = 10
"""So many parents are named; of more, their number is told."""
_SCRIPT_OUTPUT = {
    State.READY: "preprocess.out",
    State.RESTART_READY: "preprocess.out",
    State.RUN_DONE: "postprocess.out",
}
"""Where the output of a script stands that made a job FAILED in this state."""


@site_options
@machine_option
@click.command()
@click.argument("word", metavar="JOB|BATCHID")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def why(call: Invocation, word: str, as_json: bool) -> None:
    """Say why a job, or a batch job, does not run, or how it ended.

    \b
    Examples:
      nas-hpc why 3f2a
      nas-hpc why batch:12345
    """
    if _is_batch_job(call, word, as_json):
        return
    with call.store(write=False) as (site, store):
        job = find_job(store, word)
        attempts = store.attempts([job.id])
        events = store.events([job.id])
        waiting = _unfinished_parents(store, job)
    lines = [
        *_state_lines(job, attempts, events),
        *_stage_lines(site, job, events),
        *_parent_lines(job, waiting),
    ]
    if job.state in (State.FAILED, State.USER_KILLED) and not job.creator:
        lines.append(f"to let it run again: nas-hpc retry {short(job.id)}")
    if job.state not in FINAL:
        lines += _launcher_lines(call, site, job)
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


def _is_batch_job(call: Invocation, word: str, as_json: bool) -> bool:
    """Whether the word names a batch job, and no job; then it is shown. ``batch:…`` needs no database."""
    from nas_hpc.cli.batch_view import PREFIX, find_batch, show_why

    site = call.site()
    batch = find_batch(site, word)
    if batch is None:
        return False
    if not word.startswith(PREFIX):
        try:
            with call.store(write=False) as (_, store):
                job = named_job(store, word)
        except NasHpcError as error:
            note(f"note: whether {word!r} is a job, too, cannot be told: {error}")
        else:
            if job is not None:
                note(f"note: this is job {short(job.id)}; for the batch job: nas-hpc why {PREFIX}{word}")
                return False
    show_why(site, batch, as_json=as_json)
    return True


def _unfinished_parents(store: Store, job: Job) -> list[Job]:
    """The parents for which the job waits, or because of which it failed."""
    if not job.parents:
        return []
    enough = FINAL if job.stages.on_parent_failure is ParentFailure.RUN else {State.JOB_FINISHED}
    return [parent for parent in store.jobs(JobFilter(ids=job.parents)) if parent.state not in enough]


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
    if attempt.number == 0:
        known = "; its result is that of an equal configuration" if result.outcome is Outcome.OK else reason
        lines.append(f"it was not run{known}")
        return lines
    lines.append(f"attempt {attempt.number}{where} ended {result.outcome.value}{took}{code}{reason}")
    lines += [f"| {line}" for line in attempt.tail.splitlines()[-TAIL:]]
    return lines


def _stage_lines(site: Site, job: Job, events: list[Event]) -> list[str]:
    """The last output of a script before or after its program, if that is what failed."""
    if not events or events[-1].new is not State.FAILED:
        return []
    file = _SCRIPT_OUTPUT.get(events[-1].old)
    path = site.job_directory(job.workflow, job.directory_name) / str(file)
    if file is None or not path.is_file():
        return []
    return [f"| {line}" for line in results.tail(str(path)).splitlines()[-TAIL:]]


def _parent_lines(job: Job, parents: list[Job]) -> list[str]:
    if job.state not in (State.AWAITING_PARENTS, State.FAILED):
        return []
    lines = [_parent_line(job, parent) for parent in parents[:SHOWN]]
    if len(parents) > SHOWN:
        lines.append(f"and for {len(parents) - SHOWN} more; its parents stand in: nas-hpc ls jobs --json")
    return lines


def _parent_line(job: Job, parent: Job) -> str:
    who = f"{parent.workflow}/{parent.name} ({short(parent.id)})"
    lost = parent.state in (State.FAILED, State.USER_KILLED)
    if job.state is State.FAILED:
        line = f"its parent {who} is {parent.state.value}"
        return f"{line}; both run again with: nas-hpc retry {short(parent.id)}" if lost else line
    line = f"waits for its parent {who}, which is {parent.state.value}"
    return f"{line}; nas-hpc retry {short(parent.id)}" if lost else line


def _launcher_lines(call: Invocation, site: Site, job: Job) -> list[str]:
    """What the running launcher says of the job, or that there is none, and which batch job will have one."""
    try:
        if not live_endpoints(site):
            if job.state is State.RUNNING:
                return ["its launcher is gone: the next one takes it over; nas-hpc launcher"]
            return _no_launcher_lines(call, site, job)
        views = query(site, job.id)
    except (LauncherGone, ProtocolError, WorkFailed) as error:
        return [str(error)]
    if several(site):
        return _several_lines(views, job)
    return _view_lines(views[0], job)


def _no_launcher_lines(call: Invocation, site: Site, job: Job) -> list[str]:
    from nas_hpc.cli.batch_view import waiting_lines

    try:
        machine = call.machine(site, call.settings(site))
    except NasHpcError:  # doctor tells of it
        machine = None
    return waiting_lines(site, job, machine)


def _several_lines(views: Sequence[Mapping[str, Any]], job: Job) -> list[str]:
    """What each of several launchers says; of a job that runs, or is about to, the one that has it."""
    owner = [view for view in views if job.lease and view.get("launcher") == job.lease]
    lines = []
    for view in owner or views:
        who = f"launcher {view.get('pid')} on {view.get('host')}"
        workflow = str(view.get("workflow") or "")
        if workflow and workflow != job.workflow:
            lines.append(f"{who} takes only workflow {workflow}")
        elif view.get("why"):
            lines.append(f"{who} says: {view['why']}")
        elif job.state in RUNNABLE:
            lines.append(f"{who} has not looked at it yet")
    return lines


def _view_lines(view: Mapping[str, Any], job: Job) -> list[str]:
    reason = str(view.get("why") or "")
    workflow = str(view.get("workflow") or "")
    if reason:
        return [f"the launcher says: {reason}"]
    if workflow and workflow != job.workflow:
        return [f"the running launcher takes only workflow {workflow}; it ends before another can be started"]
    if job.state in RUNNABLE:
        return ["the running launcher has not looked at it yet"]
    return []
