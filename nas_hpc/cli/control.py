"""``nas-hpc kill``, ``retry`` and ``rm``: jobs as a whole."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterable, Sequence

import click

from nas_hpc.cli.batch_control import batch_words, check_clear, describe, kill_batch, tell_left
from nas_hpc.cli.batch_view import PREFIX, batch_json
from nas_hpc.cli.client import wake
from nas_hpc.cli.context import Invocation, note, site_options
from nas_hpc.cli.output import job_json, print_json, short
from nas_hpc.cli.submission import find_jobs
from nas_hpc.errors import WrongCall
from nas_hpc.records import Job
from nas_hpc.site import Site
from nas_hpc.states import FINAL, Actor, State
from nas_hpc.store.base import JobFilter, Store

_JOBS = click.argument("words", metavar="[JOB]...", nargs=-1)
_YES = click.option("--yes", "-y", is_flag=True, help="Do not ask.")
_JSON = click.option("--json", "as_json", is_flag=True, help="Print the jobs as JSON.")
_WORKFLOW = click.option(
    "--workflow", "--wf-filter", "workflow", default="", help="All jobs of this workflow."
)
_ENDED_BY_PERSON = (State.FAILED, State.USER_KILLED)


@site_options
@click.command()
@click.argument("words", metavar="[JOB|BATCHID]...", nargs=-1)
@_WORKFLOW
@_YES
@_JSON
@click.pass_obj
def kill(call: Invocation, words: tuple[str, ...], workflow: str, yes: bool, as_json: bool) -> None:
    """End jobs, running or waiting, with a search its evaluations (they can be retried); or batch jobs.

    \b
    Examples:
      nas-hpc kill 3f2a
      nas-hpc kill --workflow TEST --yes
      nas-hpc kill batch:12345
    """
    batch = batch_words(call.site(), words)
    if any(not word.startswith(PREFIX) for word in batch):
        with call.store(write=False) as (_, store):
            check_clear(store, list(batch))
    jobs = [word for word in words if word not in batch]
    moved = _kill_jobs(call, jobs, workflow, yes) if jobs or workflow or not batch else []
    if not as_json and (moved or not batch):
        _say(moved, "killed", as_json=False)
    ended = kill_batch(call.site(), list(batch.values())) if batch else []
    if as_json:
        print_json([*map(job_json, moved), *map(batch_json, ended)])
    else:
        for one in ended:
            print(describe(one))


def _kill_jobs(call: Invocation, words: Sequence[str], workflow: str, yes: bool) -> list[Job]:
    with call.store(write=True) as (site, store):
        found = _chosen(store, words, workflow, "kill")
        alive = [job for job in found if job.state not in FINAL]
        for job in found:
            if job.state in FINAL and words:
                note(f"note: {job.name} ({short(job.id)}) is {job.state.value} already")
        if workflow:
            _confirm(f"end {_jobs(len(alive))} of workflow {workflow}", yes or not alive)
        ids = [job.id for job in alive]
        for job in alive:
            if not job.creator:
                ids += [one.id for one in store.jobs(JobFilter(creator=job.id)) if one.state not in FINAL]
        moved = store.set_state(
            list(dict.fromkeys(ids)), State.USER_KILLED, Actor.COMMAND, "killed by a command"
        )
    wake(site)
    if workflow:
        tell_left(site, workflow)
    return moved


@site_options
@click.command()
@_JOBS
@click.option("--failed", is_flag=True, help="All that failed, evaluations of searches left out.")
@_WORKFLOW
@_JSON
@click.pass_obj
def retry(call: Invocation, words: tuple[str, ...], failed: bool, workflow: str, as_json: bool) -> None:
    """Let failed or killed jobs run again; a search goes on where it was.

    \b
    Examples:
      nas-hpc retry 3f2a
      nas-hpc retry --failed --workflow TEST
    """
    if words and (failed or workflow):
        raise WrongCall("retry: give either jobs or --failed, not both")
    if not words and not failed:
        raise WrongCall("retry: nothing to do; give jobs, or --failed for all that failed")
    with call.store(write=True) as (site, store):
        if failed:
            where = JobFilter(workflow=workflow, states=frozenset({State.FAILED}))
            found = [job for job in store.jobs(where) if not job.creator]
        else:
            found = find_jobs(store, words)
            for job in found:
                if job.state not in _ENDED_BY_PERSON:
                    raise WrongCall(
                        f"retry: {job.name} ({short(job.id)}) is {job.state.value}; only a job that is "
                        "FAILED or USER_KILLED can be retried"
                    )
                if job.creator:
                    raise WrongCall(
                        f"retry: {job.name} ({short(job.id)}) is an evaluation, and its search has counted "
                        "it already; give the search --eval-retries, or more --max-evals"
                    )
        moved = store.set_state(
            [job.id for job in found], State.RESTART_READY, Actor.COMMAND, "retried by a command"
        )
    _say(moved, "to run again:", as_json)
    wake(site)


@site_options
@click.command()
@_JOBS
@_WORKFLOW
@click.option("--keep-files", is_flag=True, help="Leave the jobs' directories where they are.")
@_YES
@_JSON
@click.pass_obj
def rm(
    call: Invocation, words: tuple[str, ...], workflow: str, keep_files: bool, yes: bool, as_json: bool
) -> None:
    """Remove jobs and their directories; with a search its evaluations. A running job has to be killed first.

    \b
    Examples:
      nas-hpc rm 3f2a
      nas-hpc rm --workflow OLD --yes
      nas-hpc rm --workflow OLD --keep-files --yes
    """
    with call.store(write=True) as (site, store):
        found = _chosen(store, words, workflow, "rm")
        for job in found:
            if job.state is State.RUNNING:
                raise WrongCall(
                    f"rm: {job.name} ({short(job.id)}) is RUNNING; end it first with: nas-hpc kill "
                    f"{short(job.id)}"
                )
        evaluations = sum(
            sum(store.counts(JobFilter(creator=job.id)).values()) for job in found if not job.creator
        )
        also = f" with {evaluations} evaluations" if evaluations and words else ""
        owner = "its directory" if len(found) == 1 and not also else "their directories"
        files = "" if keep_files else f" and {owner}"
        _confirm(f"remove {_jobs(len(found))}{also}{files}", yes or not found)
        ids = tuple(job.id for job in found)
        removed = store.remove(JobFilter(ids=ids)) if ids else []
        empty = {w for w in {job.workflow for job in removed} if not store.counts(JobFilter(workflow=w))}
    if not keep_files:
        _remove_files(site, removed, empty)
    _say(removed, "removed", as_json)
    wake(site)


def _jobs(count: int) -> str:
    return "1 job" if count == 1 else f"{count} jobs"


def _chosen(store: Store, words: Sequence[str], workflow: str, command: str) -> list[Job]:
    if bool(words) == bool(workflow):
        problem = "jobs and --workflow do not go together" if words else "nothing to do"
        raise WrongCall(f"{command}: {problem}; give jobs (ids or names), or --workflow NAME")
    if words:
        return find_jobs(store, words)
    found = store.jobs(JobFilter(workflow=workflow))
    if not found:
        raise WrongCall(
            f"{command}: no job belongs to workflow {workflow!r}; nas-hpc ls jobs shows those there are"
        )
    return found


def _confirm(what: str, agreed: bool) -> None:
    """Ask, on a terminal, unless ``agreed``. Raises WrongCall where nobody can be asked."""
    if agreed:
        return
    if not sys.stdin.isatty():
        raise WrongCall(f"this would {what}, and there is no terminal to ask; say --yes if that is meant")
    if not click.confirm(f"{what[0].upper()}{what[1:]}?", err=True):
        raise click.Abort


def _remove_files(site: Site, removed: Sequence[Job], empty: Iterable[str]) -> None:
    for job in removed:
        directory = site.job_directory(job.workflow, job.directory_name)
        try:
            shutil.rmtree(directory)
        except FileNotFoundError:
            continue
        except OSError as error:
            note(f"note: {directory} could not be removed: {error.strerror or error}")
    for workflow in empty:  # its records tell of nothing any more, and would be taken for a new one's
        shutil.rmtree(site.workflow_directory(workflow), ignore_errors=True)


def _say(jobs: Sequence[Job], what: str, as_json: bool) -> None:
    if as_json:
        print_json([job_json(job) for job in jobs])
        return
    own = [job for job in jobs if not job.creator]
    for job in own:
        print(f"{what} {job.workflow}/{job.name} ({short(job.id)})")
    if others := len(jobs) - len(own):
        print(f"{what} {others} evaluation{'s' * (others > 1)}")
    if not jobs:
        print("no job changed")
