"""``nas-hpc ls``: list jobs, applications, nodes, queues."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from nas_hpc.cli.client import query, several
from nas_hpc.cli.context import Invocation, machine_option, site_options
from nas_hpc.cli.output import (
    event_json,
    job_json,
    print_json,
    print_table,
    short,
    show_age,
    show_instant,
    show_number,
    show_state,
)
from nas_hpc.cli.types import Count, StateName
from nas_hpc.errors import WrongCall
from nas_hpc.records import Event, Job
from nas_hpc.states import State
from nas_hpc.store.base import JobFilter

_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@site_options
@click.group(invoke_without_command=True, no_args_is_help=False)
@click.pass_context
def ls(ctx: click.Context) -> None:
    """List jobs, applications, nodes, queues.

    \b
    Examples:
      nas-hpc ls jobs --workflow TEST --state FAILED
      nas-hpc ls apps --json
    """
    if ctx.invoked_subcommand is None:
        raise WrongCall("ls: nothing to list; say what: nas-hpc ls jobs, apps, nodes or queues")


@site_options
@ls.command()
@click.option(
    "--state", "states", type=StateName(), multiple=True, help="Only in this state; may be repeated."
)
@click.option("--workflow", "--wf-filter", "workflow", default="", help="Only of this workflow.")
@click.option("--name", default="", help="Only of this name.")
@click.option("--id", "ids", multiple=True, help="Only this job (id or its beginning); may be repeated.")
@click.option("--history", is_flag=True, help="With every state that each went through.")
@click.option("--limit", type=Count(1), default=None, help="At most so many, the newest.")
@_JSON
@click.pass_obj
def jobs(
    call: Invocation,
    states: tuple[State, ...],
    workflow: str,
    name: str,
    ids: tuple[str, ...],
    history: bool,
    limit: int | None,
    as_json: bool,
) -> None:
    """List jobs, oldest first.

    \b
    Example:
      nas-hpc ls jobs --workflow TEST --state RUNNING --state READY --limit 20
    """
    where = JobFilter(ids=ids, workflow=workflow, name=name, states=frozenset(states))
    with call.store(write=False) as (_, store):
        found = store.jobs(where)
        left_out = len(found) - limit if limit else 0
        if left_out > 0:
            found = found[left_out:]
        events = store.events([job.id for job in found]) if history and found else []
    by_job: dict[str, list[Event]] = {job.id: [] for job in found}
    for event in events:
        by_job[event.job].append(event)
    if as_json:
        print_json([job_json(job, by_job[job.id] if history else None) for job in found])
    elif history:
        _print_history(found, by_job)
    else:
        rows = [
            (
                short(job.id),
                job.name,
                job.workflow,
                job.application or "-",
                show_state(job),
                show_age(job.created),
            )
            for job in found
        ]
        print_table(("id", "name", "workflow", "application", "state", "age"), rows, "no jobs")
        if left_out > 0:
            print(f"({left_out} older ones are not shown)")


def _print_history(found: Sequence[Job], by_job: dict[str, list[Event]]) -> None:
    if not found:
        print("no jobs")
    for job in found:
        print(f"{job.id}  {job.workflow}/{job.name}  {job.state.value}")
        for event in by_job[job.id]:
            body = event_json(event)
            attempt = f" attempt {event.attempt}" if event.attempt else ""
            message = f"  {event.message}" if event.message else ""
            print(
                f"  [{show_instant(event.time)}] {body['old']} -> {body['new']} "
                f"({event.actor}{attempt}){message}"
            )


@site_options
@ls.command()
@_JSON
@click.pass_obj
def apps(call: Invocation, as_json: bool) -> None:
    """List applications.

    \b
    Example:
      nas-hpc ls apps
    """
    with call.store(write=False) as (_, store):
        found = store.apps()
    if as_json:
        print_json([{name: getattr(app, name) for name in app.__slots__} for app in found])
        return
    rows = [(a.name, a.executable, "yes" if a.restartable else "no", a.description) for a in found]
    print_table(
        ("name", "executable", "restartable", "description"),
        rows,
        "no applications; add some with: nas-hpc app",
    )


@site_options
@ls.command()
@_JSON
@click.pass_obj
def nodes(call: Invocation, as_json: bool) -> None:
    """List the running launchers' nodes: which agent serves them, and how free they are.

    Where the launcher does an agent's work there is no number. States: here; expected (the agent has not
    come yet); away (its connection broke); lost; given up; set aside (programs could not be started there);
    master's (it runs no jobs).

    \b
    Example:
      nas-hpc ls nodes
    """
    site = call.site()
    found: list[dict[str, Any]] = []
    for view in query(site):
        who = {"launcher": f"{view.get('host')}:{view.get('pid')}"} if several(site) else {}
        found += [{**who, **node} for node in view.get("nodes") or []]
    if as_json:
        print_json(found)
        return
    columns = ["name", "host", "agent", "state", "cores", "gpus", "free", "running"]
    columns += ["launcher"] if several(site) else []
    rows = [[show_number("-" if node.get(key) is None else node[key]) for key in columns] for node in found]
    print_table(columns, rows, "no nodes")


@site_options
@machine_option
@ls.command()
@click.option("--all", "everything", is_flag=True, help="With the batch jobs that are at their end.")
@_JSON
@click.pass_obj
def queues(call: Invocation, everything: bool, as_json: bool) -> None:
    """List the machine's queues with their limits, and the site's batch jobs.

    \b
    Examples:
      nas-hpc ls queues
      nas-hpc ls queues --all --json
    """
    from nas_hpc.cli.batch_view import show_queues

    site = call.site()
    machine = call.machine(site, call.settings(site))
    show_queues(site, machine, everything=everything, as_json=as_json)
