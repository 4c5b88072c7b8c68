"""A search in the foreground: the job that it is, whether it is new or goes on, and what came of it."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from nas_hpc.cli.apps import standard_apps
from nas_hpc.cli.check_search import check_search
from nas_hpc.cli.context import note, open_database
from nas_hpc.cli.output import print_json, short, show_config, show_number
from nas_hpc.cli.submission import now, record_origin
from nas_hpc.cli.types import parse_args
from nas_hpc.errors import INTERRUPTED, NasHpcError, WrongCall
from nas_hpc.records import App, Job, Resources, new_id
from nas_hpc.states import FINAL, RUNNABLE, Actor, State
from nas_hpc.store.base import JobFilter, Store

if TYPE_CHECKING:
    from nas_hpc.analytics.summary import Summary
    from nas_hpc.config import Settings
    from nas_hpc.site import Site

_MAX_EVALS, _TIME_LIMIT = "--max-evals", "--time-limit"
_FREE = (_MAX_EVALS, _TIME_LIMIT)
"""Flags that may differ when a search goes on."""
_MPI_FLAGS = ("--nodes-per-eval", "--ranks-per-node")


@dataclass(frozen=True, slots=True)
class Wish:
    """The search that the user wants."""

    name: str
    architectures: bool
    application: str
    problem: str
    function: str
    max_evals: int
    seed: int | None
    more: tuple[str, ...]
    time_limit_s: float
    workers: int
    """Evaluations at once on a node (by agents: in all); 0: its cores."""
    agents: int = 0
    """Of a search by agents, on a node each; 0: it is none."""

    def words(self) -> list[str]:
        """The search's flags."""
        words = ["--problem", self.problem, "--run", self.function, _MAX_EVALS, str(self.max_evals)]
        if self.seed is not None:
            words += ["--seed", str(self.seed)]
        if self.time_limit_s:
            words += [_TIME_LIMIT, f"{self.time_limit_s:.3f}s"]
        return [*words, *self.more]


def check(wish: Wish) -> None:
    """Raise WrongCall if the search could not begin. Nothing is made before."""
    for word in wish.more:
        flag = word.partition("=")[0]
        if flag in ("--problem", "--run", "--seed", *_FREE):
            raise WrongCall(f"--args has {flag}; give it to nas-hpc run itself")
    for flag in () if wish.agents else _MPI_FLAGS:
        value = _value(wish.more, flag)
        if value.isdigit() and int(value) > 1:
            raise WrongCall(
                f"{flag} {value} needs mpi mode, and nas-hpc run works in serial mode; give the search to "
                "nas-hpc job and run it with: nas-hpc launcher --job-mode mpi"
            )
    check_search(
        _module(wish.application),
        wish.words(),
        architectures=wish.architectures,
        serial=not wish.agents,
    )


def nodes_for(wish: Wish, settings: Settings) -> int:
    """How many nodes a search by agents is to have: as was said, all of a batch job's (0), or on this
    machine one virtual node for each agent and each evaluation at once.

    Raises WrongCall if an agent would get no evaluator, or where the agents could not be started.
    """
    from nas_hpc.batch.machines import in_batch_job
    from nas_hpc.launcher.policy import evaluations_of

    of_each, _ = evaluations_of(shlex.join(wish.more))
    agents, nodes = wish.agents, settings.nodes.value
    if not nodes and not in_batch_job(os.environ):
        workers = wish.workers or max(2, settings.cores_per_node.value or len(os.sched_getaffinity(0)))
        nodes = agents + max(agents, workers) * of_each
    if agents > 1:
        _check_mpi(agents, settings)
    alone = nodes == agents == of_each == 1  # there they share
    least = agents * (1 + of_each)
    if nodes and not alone and nodes < least:
        raise WrongCall(
            f"--agents {agents} on {nodes} nodes: each agent has a node, and {of_each} more for an "
            f"evaluation at least; give --nodes {least} or more, or fewer agents"
        )
    return nodes


def _check_mpi(agents: int, settings: Settings) -> None:
    """Raise WrongCall where there is no MPI for several agents."""
    import asyncio
    import importlib.util

    from nas_hpc.processes.mpi import find_program

    if importlib.util.find_spec("mpi4py") is None:
        raise WrongCall(
            f"--agents {agents}: agents speak by mpi4py, which is not installed: install nas-hpc[mpi]"
        )
    found = asyncio.run(find_program(settings.mpi.value, settings.mpi_flags.value, os.environ))
    if found.program is None:
        raise WrongCall(
            f"--agents {agents}: they are started by an MPI program, and there is none: {found.problem}"
        )


def _module(application: str) -> str:
    from nas_hpc.apps import STANDARD_APPS

    if application not in STANDARD_APPS:
        raise WrongCall(
            f"--app {application!r} is no search of nas-hpc; give one of {', '.join(STANDARD_APPS)}"
        )
    return STANDARD_APPS[application][0]


def prepare(store: Store, wish: Wish, settings: Settings) -> tuple[Job, bool]:
    """The search's job, made or made to go on, and whether there is anything to run. Raises WrongCall."""
    old = _existing(store, wish)
    if old is None:
        ensure_app(store, wish.application)
        [job] = store.add_jobs([_new_job(wish, settings)], Actor.COMMAND)
        return job, True
    _compare(old, wish)
    ensure_app(store, wish.application)
    before = int(_value(shlex.split(old.args), _MAX_EVALS) or 0)
    done = sum(count for state, count in store.counts(JobFilter(creator=old.id)).items() if state in FINAL)
    if wish.max_evals < before:
        raise WrongCall(
            f"search {wish.name} was begun with --max-evals {before}, {done} are done; give {before} or "
            "more, or "
            "another name"
        )
    if old.state is State.JOB_FINISHED and done >= wish.max_evals:
        return old, False
    if old.state is State.FAILED and done >= wish.max_evals:
        raise WrongCall(
            f"search {wish.name} has failed: {reason_of(store, old)}; correct that, then give another name "
            "or remove it "
            f"with: nas-hpc rm --workflow {wish.name} --yes"
        )
    return _continue(store, old, wish, settings, done), True


def _existing(store: Store, wish: Wish) -> Job | None:
    found = [job for job in store.jobs(JobFilter(workflow=wish.name)) if not job.creator]
    if len(found) > 1 or any(job.name != wish.name for job in found):
        names = ", ".join(job.name for job in found[:4])
        raise WrongCall(
            f"workflow {wish.name!r} has other jobs already ({names}); choose another name for the search"
        )
    return found[0] if found else None


def _compare(old: Job, wish: Wish) -> None:
    """Raise WrongCall naming what is different from the search that has that name."""
    was, is_now = _comparable(shlex.split(old.args)), _comparable(wish.words())
    if old.application != wish.application:
        was, is_now = [("--app", old.application), *was], [("--app", wish.application), *is_now]
    if was != is_now:
        gone, new = _without(was, is_now), _without(is_now, was)
        begun = f"with {gone}, not {new}" if gone and new else f"with {gone}" if gone else f"without {new}"
        raise WrongCall(
            f"search {wish.name} was begun {begun}; give the same again to go on with it, or another name "
            "for another search"
        )


def _comparable(words: Sequence[str]) -> list[tuple[str, ...]]:
    """Each flag with its values, without those that may differ."""
    parts: list[tuple[str, ...]] = []
    for word in words:
        if word.startswith("--") or not parts:
            flag, equals, value = word.partition("=")
            parts.append((flag, value) if equals else (word,))
        else:
            parts[-1] += (word,)
    return sorted(part for part in parts if part[0] not in _FREE)


def _without(mine: Sequence[tuple[str, ...]], others: Sequence[tuple[str, ...]]) -> str:
    """Those flags of ``mine`` that are not among ``others``, as one would type them."""
    return shlex.join(word for part in mine if part not in others for word in part)


def _value(words: Sequence[str], flag: str) -> str:
    for word, following in pairwise([*words, ""]):
        name, equals, value = word.partition("=")
        if name == flag:
            return value if equals else following
    return ""


def _continue(store: Store, old: Job, wish: Wish, settings: Settings, done: int) -> Job:
    check_not_run(store, old)
    note(f"search {wish.name} goes on: {done} evaluations are done, {max(0, wish.max_evals - done)} are left")
    fresh = _new_job(wish, settings)
    new = replace(old, args=fresh.args, environ=fresh.environ, resources=fresh.resources)
    if new != old and old.state is State.RUNNING:
        # Its launcher is gone, but only a launcher may declare it lost; a person may end it.
        store.set_state([old.id], State.USER_KILLED, Actor.COMMAND, "its launcher was gone")
        old = store.jobs(JobFilter(ids=(old.id,)))[0]
    if old.state in FINAL:
        store.set_state([old.id], State.RESTART_READY, Actor.COMMAND, "goes on by nas-hpc run")
    if new != old:
        store.modify([replace(new, state=State.RESTART_READY)])
    return store.jobs(JobFilter(ids=(old.id,)))[0]


def check_not_run(store: Store, search: Job) -> None:
    """Raise WrongCall if one of several launchers runs the search."""
    owner = next((one for one in store.leases() if one.id == search.lease), None)
    if store.shared and owner is not None and search.state is State.RUNNING:
        raise WrongCall(
            f"search {search.name} runs already, under launcher {owner.pid} on {owner.host}; look at "
            "it with: nas-hpc watch"
        )


def ensure_app(store: Store, name: str) -> None:
    """Register the search ``name`` if it is not, or if the Python that was to run it has gone."""
    known = {app.name: app for app in store.apps()}
    if name not in known:
        store.put_app(_standard(name))
    elif not os.access(parse_args(known[name].executable)[0], os.X_OK):
        store.put_app(_standard(name), replace=True)


def _standard(name: str) -> App:
    return next(app for app in standard_apps() if app.name == name)


def _new_job(wish: Wish, settings: Settings) -> Job:
    """Search and evaluations share each node in equal parts, as many as there are to run at once; agents and
    their evaluations have nodes of their own."""
    workers = wish.workers or max(2, settings.cores_per_node.value or len(os.sched_getaffinity(0)))
    resources = Resources(node_packing_count=workers)
    if wish.agents:
        workers, resources = 1, Resources(num_nodes=wish.agents)
    return Job(
        id=new_id(),
        name=wish.name,
        workflow=wish.name,
        application=wish.application,
        args=shlex.join(wish.words()),
        environ={"DEEPHYPER_WORKERS_PER_NODE": str(workers)},
        origin=record_origin(),
        resources=resources,
        created=now(),
    )


def finish(site: Site, job: Job, code: int, *, write: bool, as_json: bool) -> int:
    """Say what came of the search; returns the exit code."""
    with open_database(site) as store:
        job = store.jobs(JobFilter(ids=(job.id,)))[0]
        reason = reason_of(store, job) if job.state is State.FAILED else ""
    directory = site.workflow_directory(job.workflow)
    summary = _summary(site, job)
    report = _write_report(site, job) if write and summary is not None and summary.best is not None else ""
    results = site.job_directory(job.workflow, job.directory_name) / "results.csv"
    stopped = job.state in RUNNABLE or job.state is State.RUNNING
    exit_code = INTERRUPTED if stopped else 1 if job.state is not State.JOB_FINISHED else code
    body: dict[str, Any] = {
        "name": job.name,
        "state": job.state.value,
        "reason": reason,
        "evaluations": summary.n_evaluations if summary else 0,
        "failed": summary.n_failed if summary else 0,
        "objective": summary.best.objective if summary and summary.best else None,
        "metadata": dict(summary.best.metadata) if summary and summary.best else {},
        "config": dict(summary.best.config) if summary and summary.best else {},
        "best_directory": summary.best.directory if summary and summary.best else "",
        "utilization": summary.utilization if summary else None,
        "elapsed_s": summary.elapsed_s if summary else 0.0,
        "report": report,
        "results": str(results) if results.is_file() else "",
        "directory": str(directory),
    }
    if as_json:
        print_json(body)
    else:
        _print_result(body, _objective_of(summary))
    if reason:
        note(
            f"nas-hpc: error: search {job.name} ({short(job.id)}) failed: {reason}; see: nas-hpc log "
            f"{short(job.id)}"
        )
    elif stopped:
        note(f"search {job.name} was stopped; the same command goes on with it")
    elif job.state is State.USER_KILLED:
        note(f"nas-hpc: error: search {job.name} was killed; the same command goes on with it")
    elif ended := _ended_by_time(job, summary):
        note(f"search {job.name} reached its time limit {ended}; the same command goes on with it")
    return exit_code


def _ended_by_time(job: Job, summary: Summary | None) -> str:
    """How far a finished search came that was to end after some time; "" if it had enough."""
    words = shlex.split(job.args)
    most = int(_value(words, _MAX_EVALS) or 0)
    done = summary.n_evaluations + summary.n_cancelled if summary else 0
    return (
        f"after {summary.n_evaluations} of {most} evaluations"
        if summary and _value(words, _TIME_LIMIT) and done < most
        else ""
    )


def _objective_of(summary: Summary | None) -> str:
    """What the search maximised, where its evaluations say it."""
    from nas_hpc.analytics import architectures

    best = summary.best if summary else None
    return architectures.objective_of(best) if best and architectures.is_architecture(best) else ""


def _of_architecture(metadata: Mapping[str, Any], objective: str) -> dict[str, Any]:
    """What is told of a trained architecture; the rest is in its result.json and in the report."""
    from nas_hpc.analytics.architectures import test_metrics

    sizes = {name: metadata[name] for name in ("parameters", "epochs") if name in metadata}
    return {**test_metrics(metadata, objective), **sizes}


def _print_result(body: dict[str, Any], objective: str) -> None:
    from nas_hpc.analytics.text import duration

    if body["objective"] is not None:
        print(f"best objective  {show_number(body['objective'])}{f' ({objective})' if objective else ''}")
        sequence = body["config"].get("arch_seq")
        sequence = sequence if isinstance(sequence, list) else []
        said = _of_architecture(body["metadata"], objective) if sequence else body["metadata"]
        for key, value in said.items():
            if isinstance(value, int | float | str) and not isinstance(value, bool):
                print(f"{key.replace('_', ' '):<15} {show_number(value)}")
        if not sequence:
            print(f"configuration   {show_config(body['config'])}")
        else:
            print(f"architecture    {', '.join(map(str, sequence))}")
    failed = f", {body['failed']} failed" if body["failed"] else ""
    print(f"evaluations     {body['evaluations']}{failed}")
    if body["elapsed_s"]:
        print(f"took            {duration(body['elapsed_s'])}")
    if body["utilization"] is not None:
        print(f"utilization     {body['utilization']:.1%}")
    for title, path in (
        ("best evaluation", body["best_directory"]),
        ("results", body["results"]),
        ("report", body["report"]),
    ):
        if path:
            print(f"{title:<15} {path}")


def _summary(site: Site, job: Job) -> Summary | None:
    from nas_hpc.analytics import summarize

    try:
        return summarize(site.workflow_directory(job.workflow))
    except NasHpcError:
        return None  # nothing has run


def _write_report(site: Site, job: Job) -> str:
    from nas_hpc.analytics import write_report

    directory = site.workflow_directory(job.workflow)
    try:
        return str(write_report(directory, directory / "report.html"))
    except (NasHpcError, OSError) as error:
        note(f"note: the report could not be written: {error}")
        return ""


def reason_of(store: Store, job: Job) -> str:
    """Why the search failed: its own last word, else how its attempt ended."""
    attempts = store.attempts([job.id])
    if not attempts:
        return "it was never started"
    said = [line for line in attempts[-1].tail.splitlines() if line.startswith("error: ")]
    result = attempts[-1].result
    return said[-1].removeprefix("error: ") if said else (result.reason if result else "no reason is known")
