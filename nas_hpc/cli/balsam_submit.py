"""``nas-hpc balsam-submit``: a search made and given to the batch system, in one command."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import click

from nas_hpc.cli.context import Invocation, machine_option, note, open_database, site_options
from nas_hpc.cli.run import whole_path
from nas_hpc.cli.search_job import (
    ARCHITECTURES,
    HYPERPARAMETERS,
    Wish,
    check_loads,
    check_new,
    check_wish,
    choose_app,
    new_search_job,
)
from nas_hpc.cli.submit_launch import Minutes, parse_attrs, parse_ids, show
from nas_hpc.cli.types import Count, Name, WithSearchFlags, parse_args
from nas_hpc.errors import NasHpcError, WrongCall
from nas_hpc.states import Actor, BatchState
from nas_hpc.store.base import JobFilter

if TYPE_CHECKING:
    from nas_hpc.batch.submitting import Planned, Wanted
    from nas_hpc.config import Settings
    from nas_hpc.records import App, BatchJob, Job
    from nas_hpc.site import Site

Function = TypeVar("Function", bound=Callable[..., Any])
_FLAGS = (
    click.argument("workflow", type=Name()),
    click.argument("search_flags", metavar="[-- SEARCH-FLAG...]", nargs=-1, type=click.UNPROCESSED),
    click.option("-p", "--problem", required=True, metavar="WHERE", help="module.Problem or file.py:Problem"),
    click.option("-r", "--run", "function", required=True, metavar="WHERE", help="module.run or file.py:run"),
    click.option("-t", "--time", "minutes", type=Minutes(), required=True, help="Minutes, or HH:MM:SS."),
    click.option("-n", "--nodes", type=Count(1), required=True, help="Nodes of the batch job."),
    click.option("-q", "--queue", default="", help="Queue, partition or QOS.  [default: the machine's]"),
    click.option("-A", "--project", default="", help="Project (account) that pays for it."),
    click.option("-j", "--job-mode", type=click.Choice(["mpi", "serial"]), default=None,
                 help="[default: the setting's, mpi]"),
    click.option("--dependencies", multiple=True, metavar="IDS", help="Start after these batch jobs."),
    click.option("--attrs", multiple=True, metavar="K=V", help="Attributes, as of submit-launch."),
    click.option("--sched-flags", default="", metavar="WORDS", help="More words for the submitting command."),
    click.option("--chain", type=Count(1, 100), default=1, help="So many allocations, one after the other."),
    click.option("--no-check", is_flag=True, help="Do not look at the limits of the machine's queues."),
    click.option("--dry-run", is_flag=True, help="Print the script; make, submit, record nothing."),
    click.option("--yes", is_flag=True, help="Accepted; nothing is asked."),
    click.option("--json", "as_json", is_flag=True, help="Print what was made as JSON."),
)  # fmt: skip


def _search_options(function: Function) -> Function:
    for flag in reversed(_FLAGS):
        function = flag(function)
    return function


class _Handing(WithSearchFlags):
    right = "flags of the search stand behind --, as in -- {flag} ..."


@site_options
@machine_option
@click.group("balsam-submit", invoke_without_command=True, no_args_is_help=False)
@click.pass_context
def balsam_submit(ctx: click.Context) -> None:
    """Make a search and have the batch system run it.

    \b
    Example:
      nas-hpc balsam-submit hps test -p nas_hpc.problems.hps.polynome2.Problem \\
        -r nas_hpc.problems.hps.polynome2.run -t 60 -q debug-cache-quad -n 4 -A datascience -j mpi
    """
    if ctx.invoked_subcommand is None:
        raise WrongCall(
            "balsam-submit: nothing to submit; say what: nas-hpc balsam-submit hps WORKFLOW -p PROBLEM "
            "-r RUN -t MINUTES -n NODES"
        )


@site_options
@machine_option
@balsam_submit.command(cls=_Handing)
@_search_options
@click.option("--app", "application", type=click.Choice(HYPERPARAMETERS), default="AMBS", show_default=True)
@click.pass_obj
def hps(call: Invocation, /, **flags: Any) -> int:
    """Submit a search of hyperparameters: its job, its applications, and a launcher for it.

    \b
    Examples:
      nas-hpc balsam-submit hps test -p nas_hpc.problems.hps.polynome2.Problem \\
        -r nas_hpc.problems.hps.polynome2.run -t 60 -q debug-cache-quad -n 4 -A datascience -j mpi
      nas-hpc balsam-submit hps mine -p mine.py:Problem -r mine.py:run -t 60 -n 2 -j serial -- --max-evals 100
    """
    return _submit(call, flags, architectures=False, own_nodes=1)


@site_options
@machine_option
@balsam_submit.command(cls=_Handing)
@_search_options
@click.option("--app", "application", type=click.Choice(ARCHITECTURES), default="EVO", show_default=True)
@click.option("--nas-nodes", type=Count(1), default=1, show_default=True, help="Nodes of the search itself.")
@click.pass_obj
def nas(call: Invocation, /, nas_nodes: int, **flags: Any) -> int:
    """Submit a search of architectures: its job, its application, and a launcher for it.

    \b
    Example:
      nas-hpc balsam-submit nas arch -p nas_hpc.problems.nas.digits_dense.Problem \\
        -r nas_hpc.nas.alpha.run -t 60 -q debug-cache-quad -n 4 -A datascience --app EVO
    """
    return _submit(call, flags, architectures=True, own_nodes=nas_nodes)


def _submit(call: Invocation, flags: dict[str, Any], *, architectures: bool, own_nodes: int) -> int:
    """All checks, then the job, then the batch job; or, of a dry run, the checks and the script."""
    from nas_hpc.batch import submitting

    dry_run, as_json = flags["dry_run"], flags["as_json"]
    site = call.site()
    if not dry_run:
        site.check_writable()
    settings = call.settings(site, {"job_mode": flags["job_mode"]})
    machine = call.machine(site, settings)
    wish = Wish(
        workflow=flags["workflow"],
        architectures=architectures,
        application=flags["application"],
        problem=whole_path(flags["problem"]),
        function=whole_path(flags["function"]),
        flags=tuple(flags["search_flags"]),
        nodes=flags["nodes"],
        own_nodes=own_nodes,
    )
    app, job = _prepare(site, wish, settings)
    wanted = _wanted(wish, settings, flags)
    planned = submitting.plan(site, machine, settings, wanted, note=note, reserve=not dry_run)
    if dry_run:
        check_loads(app, job, wish, settings)
        show(machine, planned, as_json)
        return 0
    with _undone(site, job, planned):
        check_loads(app, job, wish, settings)
        _add(site, app, job)
        done = submitting.submit(site, machine, planned, note)
    _tell(site, app, job, done, as_json)
    return 0


def _prepare(site: Site, wish: Wish, settings: Settings) -> tuple[App, Job]:
    """Application and job of the search, checked but for what takes an import; nothing is changed."""
    workers = check_wish(wish, settings, os.environ)
    with open_database(site, read_only=True) as store:
        check_new(site, store, wish.workflow)
        known = {app.name: app for app in store.apps()}
    app = choose_app(known, wish)
    return app, new_search_job(wish, app, settings, workers)


def _wanted(wish: Wish, settings: Settings, flags: dict[str, Any]) -> Wanted:
    from nas_hpc.batch.submitting import Wanted

    return Wanted(
        nodes=wish.nodes,
        walltime_minutes=flags["minutes"],
        queue=flags["queue"],
        project=flags["project"],
        job_mode=settings.job_mode.value,
        workflow=wish.workflow,
        dependencies=parse_ids(flags["dependencies"]),
        attrs=parse_attrs(flags["attrs"]),
        flags=tuple(parse_args(flags["sched_flags"], "--sched-flags")),
        chain=flags["chain"],
        check=not flags["no_check"],
    )


def _add(site: Site, app: App, job: Job) -> None:
    """Register the application, if it is not, and add the job."""
    with open_database(site) as store:
        check_new(site, store, job.workflow)  # somebody may have been faster while modules were imported
        if app not in store.apps():
            store.put_app(app, replace=True)  # only one whose Python has gone is replaced
        store.add_jobs([job], Actor.COMMAND)


@contextmanager
def _undone(site: Site, job: Job, planned: Sequence[Planned]) -> Iterator[None]:
    """Take the job away again if the block ends before anything was submitted that will run it."""
    from nas_hpc.batch.jobs import read_job
    from nas_hpc.batch.submitting import abandon

    try:
        yield
    except BaseException:
        abandon(site, planned)
        records = [record for link in planned if (record := read_job(site, link.job.key)) is not None]
        if any(record.id for record in records):
            note(f"note: the search's job {job.id} is there and will run; nas-hpc ls queues shows by what")
        elif any(record.state is BatchState.SUBMITTING for record in records):
            note(
                f"note: the search's job {job.id} is there. If the batch job was not submitted: nas-hpc "
                f"submit-launch --wf-filter {job.workflow}, or nas-hpc rm --workflow {job.workflow}"
            )
        else:
            _take_away(site, job)
        raise


def _take_away(site: Site, job: Job) -> None:
    try:
        with open_database(site) as store:
            if store.counts(JobFilter(workflow=job.workflow)):
                store.remove(JobFilter(ids=(job.id,)))
    except NasHpcError as error:
        note(
            f"note: the search's job {job.id} could not be taken away again: {error}; remove it with: "
            f"nas-hpc rm --workflow {job.workflow}"
        )


def _tell(site: Site, app: App, job: Job, done: Sequence[BatchJob], as_json: bool) -> None:
    from nas_hpc.cli.batch_view import batch_json
    from nas_hpc.cli.client import live_endpoints
    from nas_hpc.cli.output import job_json, print_json

    directory = site.job_directory(job.workflow, job.directory_name)
    log = directory / f"{job.name}.out"
    if as_json:
        body = {"job": job_json(job), "batch_jobs": [batch_json(one) for one in done]}
        print_json({**body, "directory": str(directory), "log": str(log)})
    else:
        print(f"job         {job.id} ({job.workflow}/{job.name}, application {app.name})")
        for one in done:
            print(f"batch job   {one.id}")
            print(f"  script    {one.script}")
            print(f"  launcher  {one.output}")
        print(f"search      {directory}")
        print(f"  log       {log}")
        print(f"what it waits for: nas-hpc why {job.workflow}/{job.name}")
    try:
        if live_endpoints(site):
            note("note: a launcher runs on this site already: it may begin the search before the batch job")
    except NasHpcError:
        pass
