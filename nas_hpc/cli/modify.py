"""``nas-hpc modify``: change a job that does not run."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import click

from nas_hpc.cli.client import wake
from nas_hpc.cli.context import Invocation, site_options, working_directory
from nas_hpc.cli.output import job_json, print_json, short
from nas_hpc.cli.stages import stage_options, stages_from
from nas_hpc.cli.submission import (
    check_args,
    check_evaluations,
    check_ranks,
    find_app,
    find_job,
    find_parents,
    resource_changes,
    resources_from,
)
from nas_hpc.cli.types import Count, Name, parse_environ
from nas_hpc.errors import WrongCall
from nas_hpc.records import Job
from nas_hpc.site import Site
from nas_hpc.states import State
from nas_hpc.store.base import JobFilter


@site_options
@click.command()
@click.argument("word", metavar="JOB")
@click.option("--name", type=Name(), default=None, help="New name, for a job that has not run.")
@click.option("--args", default=None, help="New arguments of the application, one string.")
@click.option("--env", multiple=True, metavar="K=V[:K2=V2]", help="Variables to set or to replace.")
@click.option("--retries", type=Count(0), default=None, help="Runs again after a failure, at most so often.")
@click.option(
    "--parents", default=None, metavar="JOB,JOB", help='Jobs that must be finished first; "" for none.'
)
@stage_options
@resource_changes
@click.option("--yes", is_flag=True, help="Accepted, as in Balsam; nothing is asked.")
@click.option("--json", "as_json", is_flag=True, help="Print the job as JSON.")
@click.pass_obj
def modify(
    call: Invocation,
    /,
    word: str,
    name: str | None,
    args: str | None,
    env: tuple[str, ...],
    retries: int | None,
    parents: str | None,
    yes: bool,
    as_json: bool,
    **flags: Any,
) -> None:
    """Change a job that does not run and is not finished.

    \b
    Example:
      nas-hpc modify 3f2a --node-packing-count 4 --env DEEPHYPER_WORKERS_PER_NODE=4
    """
    environ = parse_environ(env)
    with call.store(write=True) as (site, store):
        old = find_job(store, word)
        _check_changeable(site, old, name)
        app = next((app for app in store.apps() if app.name == old.application), None)
        new = replace(
            old,
            resources=resources_from(flags, old.resources),
            stages=stages_from(flags, old.stages, app, working_directory()),
        )
        given: dict[str, Any] = {"name": name, "args": args, "retries": retries}
        new = replace(new, **{key: value for key, value in given.items() if value is not None})
        if environ:
            new = replace(new, environ={**old.environ, **environ})
        if parents is not None:
            new = replace(new, parents=find_parents(store, parents, new.stages.on_parent_failure))
        if args is not None and old.application:
            app_of_old = find_app(store, old.application)
            check_args(app_of_old, args, old.origin)
            check_evaluations(app_of_old, args, call.settings(site))
        if new.resources != old.resources:
            check_ranks(new.resources, call.settings(site))
        if new == old:
            raise WrongCall(
                f"modify: nothing to change in {old.name} ({short(old.id)}); give at least one flag"
            )
        store.modify([new])
        [stored] = store.jobs(JobFilter(ids=(old.id,)))
    if as_json:
        print_json(job_json(stored))
    else:
        print(f"changed {stored.workflow}/{stored.name} ({short(stored.id)})")
    wake(site)


def _check_changeable(site: Site, job: Job, name: str | None) -> None:
    """Raise WrongCall for a job that runs or is finished, and for a new name where there is a directory."""
    who = f"modify: {job.name} ({short(job.id)})"
    if job.state is State.RUNNING:
        raise WrongCall(f"{who} is RUNNING; end it first with: nas-hpc kill {short(job.id)}")
    if job.state is State.JOB_FINISHED:
        raise WrongCall(f"{who} is JOB_FINISHED and will not run again; add another with: nas-hpc job")
    directory = site.job_directory(job.workflow, job.directory_name)
    if name not in (None, job.name) and directory.exists():
        raise WrongCall(
            f"{who} has run and has its directory {directory}; leave --name out, or add another job with: "
            "nas-hpc job"
        )
