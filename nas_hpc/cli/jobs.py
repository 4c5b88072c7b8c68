"""``nas-hpc job``: add a job."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from nas_hpc.cli.client import wake
from nas_hpc.cli.context import Invocation, site_options
from nas_hpc.cli.output import job_json, print_json
from nas_hpc.cli.stages import stage_options, stages_from
from nas_hpc.cli.submission import (
    check_agents,
    check_args,
    check_evaluations,
    check_ranks,
    find_app,
    find_parents,
    now,
    record_origin,
    resource_options,
    resources_from,
)
from nas_hpc.cli.types import Count, Name, parse_environ
from nas_hpc.records import Job, Resources, Stages, new_id
from nas_hpc.states import Actor


@site_options
@click.command()
@click.option("--name", type=Name(), required=True, help="Its directory is NAME_id in the workflow's.")
@click.option("--workflow", type=Name(), required=True, help="Jobs that belong together.")
@click.option(
    "--application", "--app", "application", required=True, help="What it runs; see: nas-hpc ls apps."
)
@click.option("--args", default="", help="Arguments of the application, one string.")
@click.option("--env", multiple=True, metavar="K=V[:K2=V2]", help="Environment variables; may be repeated.")
@click.option("--retries", type=Count(0), default=0, help="Runs again after a failure, at most so often.")
@click.option("--parents", default="", metavar="JOB,JOB", help="Jobs that must be finished first.")
@stage_options
@resource_options
@click.option("--yes", is_flag=True, help="Accepted, as in Balsam; nothing is asked.")
@click.option("--json", "as_json", is_flag=True, help="Print the job as JSON.")
@click.pass_obj
def job(
    call: Invocation,
    /,
    name: str,
    workflow: str,
    application: str,
    args: str,
    env: tuple[str, ...],
    retries: int,
    parents: str,
    yes: bool,
    as_json: bool,
    **flags: Any,
) -> None:
    """Add a job; prints its id.

    \b
    Example:
      nas-hpc job --name test --workflow TEST --application AMBS \\
        --args '--problem nas_hpc.problems.hps.polynome2.Problem
                --run nas_hpc.problems.hps.polynome2.run --max-evals 50'
    """
    environ = parse_environ(env)
    origin = record_origin()
    resources = resources_from(flags, Resources())
    with call.store(write=True) as (site, store):
        settings = call.settings(site)
        check_ranks(resources, settings)
        app = find_app(store, application)
        check_args(app, args, origin)
        check_evaluations(app, args, settings)
        check_agents(app, args, settings)
        stages = stages_from(flags, Stages(), app, Path(origin.directory))
        new = Job(
            id=new_id(),
            name=name,
            workflow=workflow,
            application=application,
            args=args,
            environ=environ,
            origin=origin,
            resources=resources,
            parents=find_parents(store, parents, stages.on_parent_failure),
            retries=retries,
            stages=stages,
            created=now(),
        )
        [stored] = store.add_jobs([new], Actor.COMMAND)
    if as_json:
        print_json(job_json(stored))
    else:
        print(stored.id)
    wake(site)
