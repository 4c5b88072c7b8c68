"""Jobs of the tools for proxy tasks: their flags, making them, going on with them, what came of them."""

from __future__ import annotations

import contextlib
import os
import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from nas_hpc.cli.check_search import check_space
from nas_hpc.cli.context import Invocation, note, open_database
from nas_hpc.cli.foreground import ensure_app, reason_of
from nas_hpc.cli.launcher import launcher_options, say_strange_variables, start
from nas_hpc.cli.output import print_json
from nas_hpc.cli.quota import check_quota
from nas_hpc.cli.run import make_site, own_lines
from nas_hpc.cli.serving import serving
from nas_hpc.cli.trials_flags import (
    COUNT_FLAGS,
    LAUNCH_FLAGS,
    RESOURCE_FLAGS,
    SEARCH_FLAGS,
    TRAINER_FLAGS,
    flag_map,
    options,
    spec_of,
    trainer_words,
    where_space,
    whole_root,
)
from nas_hpc.cli.trials_jobs import (
    again,
    check_nobody_runs,
    mode_flags,
    new_job,
    run_again,
    say_made,
    the_site,
)
from nas_hpc.cli.types import parse_environ
from nas_hpc.errors import INTERRUPTED, SiteError, WrongCall
from nas_hpc.names import wrong_name
from nas_hpc.records import Job
from nas_hpc.states import RUNNABLE, Actor, State
from nas_hpc.store.base import JobFilter, Store

if TYPE_CHECKING:
    from nas_hpc.apps.trials.spec import TrialsSpec
    from nas_hpc.config import Settings
    from nas_hpc.site import Site

APPLICATION = "PROXY_TASKS"
TOOL_FLAGS = options(
    (
        click.option("--job-name", default="", help="Of the tool's job and its directory."),
        *SEARCH_FLAGS[:2],
        click.option("--trainer", default="", metavar="COMMAND", help="The program that trains one model."),
        click.option("--root-output-dir", "root", default="", metavar="DIR",
                     help="The tool's directory is made there; all nodes have to see it."),
        COUNT_FLAGS[1],
        *SEARCH_FLAGS[3:],
    ),
    RESOURCE_FLAGS, TRAINER_FLAGS[2:], LAUNCH_FLAGS,
)  # fmt: skip
_ANEW = frozenset({"trainer", "search_flags", "env", "max_parallel", "trial_timeout", "trials_per_node",
                   "nodes", "no_launch", "as_json"})  # fmt: skip
"""Flags that a tool which goes on may be given anew."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """One of the tools, for its command."""

    kind: str
    command: str
    previous: str
    """The flag with which it goes on."""
    lines: Callable[[str], list[str]]
    """What is to be said of its directory at its end."""
    total: Callable[[TrialsSpec, Mapping[str, Any]], int]
    """Trainings in all, as far as that is known before."""
    unfinished: Callable[[Mapping[str, Any]], range]
    """The numbers of the rounds that its state does not yet call finished."""
    anew: frozenset[str] = frozenset()
    """More flags that may be given anew: settings of the tool."""
    goes_on: bool = False
    """Whether it may go on after it has come to its end."""
    space: bool = True
    """Whether it draws its models from a search space."""
    distinct: bool = False
    """Whether the space has to have as many models as it begins with."""


# -- a new one -------------------------------------------------------------------------------------
def begin(
    call: Invocation, tool: Tool, flags: Mapping[str, Any], settings: Mapping[str, Any], models: int
) -> int:
    """Make the tool's job, and run it unless --no-launch is given; ``models`` are trained at most at once,
    and are drawn from the space. Returns the exit code."""
    from nas_hpc.apps.trials.spec import make_directory

    spec = _new_spec(tool, flags, models)
    root = whole_root(flags["root"])
    if tool.space:
        check_space(spec.space, "random", models, least=models if tool.distinct else 0)
    launched = not flags["no_launch"]
    site = the_site(call, launch=launched)
    config = call.settings(site, mode_flags(spec, flags["nodes"]) if launched else {})
    if site is not None:
        with open_database(site, read_only=True) as store:
            _check_name(store, site, tool, spec)
    check_quota(site, spec, config, launched=launched)
    spec = replace(spec, directory=str(make_directory(root, _name(spec))))
    _write(spec, settings)
    job = tool_job(spec, config, launched=launched)
    site = site or make_site(call.machine(None, config))
    with open_database(site) as store:
        _check_name(store, site, tool, spec)
        ensure_app(store, APPLICATION)
        store.add_jobs([job], Actor.COMMAND)
    return _run(call, tool, site, job, spec, config, settings, flags)


def _new_spec(tool: Tool, flags: Mapping[str, Any], models: int) -> TrialsSpec:
    for name in ("job_name", "trainer", "root"):
        if not flags[name]:
            flag = "--root-output-dir" if name == "root" else f"--{name.replace('_', '-')}"
            raise WrongCall(f"give {flag}, or {tool.previous} to go on with what was begun")
    rest = {
        "algorithm": "random", "max_trials": models, "max_failed": 0, "time_limit": None, "train_flags": (),
        "train_frequency": None, "train_max_parallel": None,
    }  # fmt: skip
    spec = replace(
        spec_of({**rest, **flags, "metric": flags.get("metric") or "reward"}, "", needs_space=tool.space),
        kind=tool.kind,
        metric=flags.get("metric") or "",
        max_parallel=min(flags["max_parallel"] or 2, models),
    )
    wrong = wrong_name(_name(spec))
    if wrong:
        raise WrongCall(f"--job-name {flags['job_name']!r}, of which {_name(spec)} is made, {wrong}")
    return spec


def _name(spec: TrialsSpec) -> str:
    from nas_hpc.apps.proxy.tool import PREFIXES

    return f"{PREFIXES[spec.kind]}_{spec.job_name}"


def tool_job(spec: TrialsSpec, settings: Settings, *, launched: bool) -> Job:
    """The job that runs the tool of ``spec``; ``launched``: here and now."""
    name = _name(spec)
    job = new_job(spec, settings, launched=launched)
    return replace(job, name=name, workflow=name, application=APPLICATION)


def _check_name(store: Store, site: Site, tool: Tool, spec: TrialsSpec) -> None:
    if store.counts(JobFilter(workflow=_name(spec))):
        raise WrongCall(
            f"--job-name {spec.job_name!r}: {site.path} has {_name(spec)} already: give another name, or go "
            f"on with that one by {tool.previous} and its directory"
        )


def _write(spec: TrialsSpec, settings: Mapping[str, Any]) -> None:
    from nas_hpc.apps.proxy.tool import write_tool

    try:
        write_tool(spec, settings)
    except OSError as error:
        raise WrongCall(f"{spec.directory} cannot be written: {error.strerror}") from error


# -- going on --------------------------------------------------------------------------------------
def go_on(
    call: Invocation, tool: Tool, directory: str, flags: Mapping[str, Any], settings: Mapping[str, Any]
) -> int:
    """Go on with the tool in ``directory``. Flags that say something else than it was begun with are refused,
    but for those that may be given anew. Returns the exit code."""
    from nas_hpc.apps.proxy.tool import read_state_of, read_tool

    spec, old = read_tool(directory)
    check_kind(tool, spec, directory)
    spec, kept = _taken_over(tool, spec, old, flags, settings)
    launched = not flags["no_launch"]
    site = call.site()
    check_nobody_runs(site, launch=launched)
    state = read_state_of(directory, tool.kind)
    config = call.settings(site, mode_flags(spec, flags["nodes"]) if launched else {})
    with call.store(write=True) as (_, store):
        job = _job_of(store, site, spec)
        if job.state is State.JOB_FINISHED and not tool.goes_on:
            note(f"{job.name} is finished")
            return _finish(tool, site, job, spec, 0, as_json=flags["as_json"])
        rounds = tool.unfinished(state)
        spec = _again(site, store, job, spec, rounds)
        _write(spec, kept)
        fresh = tool_job(spec, config, launched=launched)
        run_again(store, job, fresh, f"goes on by nas-hpc {tool.command}")
    return _run(call, tool, site, job, spec, config, kept, flags)


def check_kind(tool: Tool, spec: TrialsSpec, directory: str) -> None:
    """Raise WrongCall if ``directory`` is that of another tool."""
    if spec.kind != tool.kind:
        raise WrongCall(f"{tool.previous} {directory}: that is one of another tool ({spec.kind})")


def _again(site: Site, store: Store, job: Job, spec: TrialsSpec, rounds: range) -> TrialsSpec:
    """``spec`` with those trials of ``rounds`` to run again that were ended with the job, and, if it failed,
    those that had failed."""
    from nas_hpc.apps.proxy.rounds import MOST_MODELS, trial_key

    only = frozenset(trial_key(number, k) for number in rounds for k in range(1, MOST_MODELS + 1))
    spec = again(site, store, job, spec, State.USER_KILLED, only)
    return again(site, store, job, spec, State.FAILED, only) if job.state is State.FAILED else spec


def _job_of(store: Store, site: Site, spec: TrialsSpec) -> Job:
    found = [one for one in store.jobs(JobFilter(workflow=_name(spec))) if not one.creator]
    here = os.path.realpath(spec.directory)
    for job in found:
        words = shlex.split(job.args)
        if len(words) > 1 and os.path.realpath(words[1]) == here:
            return job
    raise SiteError(
        f"no job of {site.path} works in {spec.directory}: give --site with the one that it is of"
    )


def _given(flags: Mapping[str, Any], settings: Mapping[str, Any]) -> set[str]:
    """The names of the flags that were given on the command line."""
    context = click.get_current_context()
    names = {*flags, *settings}
    return {name for name in names if context.get_parameter_source(name) is ParameterSource.COMMANDLINE}


def _taken_over(
    tool: Tool,
    spec: TrialsSpec,
    old: Mapping[str, Any],
    flags: Mapping[str, Any],
    settings: Mapping[str, Any],
) -> tuple[TrialsSpec, dict[str, Any]]:
    """What is asked now. Raises WrongCall for what cannot be given anew."""
    given = _given(flags, settings)
    before = {
        "job_name": spec.job_name, "metric": spec.metric, "seed": spec.seed, "flag_style": spec.flag_style,
        "nodes_per_trial": spec.nodes_per_trial, "ranks_per_node": spec.ranks_per_node,
        "threads_per_rank": spec.threads_per_rank, "gpus_per_rank": spec.gpus_per_rank,
        "root": os.path.realpath(Path(spec.directory).parent), "space": spec.space, "problem": spec.space,
    }  # fmt: skip
    now = {**flags, **settings}
    if "root" in given:
        now["root"] = os.path.realpath(whole_root(flags["root"]))
    if given & {"space", "problem"}:
        now["space"] = now["problem"] = where_space(flags)
    for name in sorted(given - _ANEW - tool.anew):
        was = {**before, **old}.get(name, now[name])
        if now[name] != was:
            flag = name.replace("_", "-")
            raise WrongCall(
                f"{tool.previous}: it was begun with {flag} {was!r}, not {now[name]!r}: leave that out, or "
                "begin anew"
            )
    changed: dict[str, Any] = {
        "trainer": lambda: trainer_words(flags["trainer"]),
        "search_flags": lambda: flag_map("--search-flags", flags["search_flags"]),
        "environ": lambda: parse_environ(flags["env"]),
        "max_parallel": lambda: flags["max_parallel"],
        "trial_timeout_s": lambda: flags["trial_timeout"],
        "trials_per_node": lambda: flags["trials_per_node"],
    }
    flag_of = {"environ": "env", "trial_timeout_s": "trial_timeout"}
    fields = {name: make() for name, make in changed.items() if flag_of.get(name, name) in given}
    kept = {**old, **{name: settings[name] for name in given & tool.anew if name in settings}}
    return replace(spec, **fields), kept


# -- running it ------------------------------------------------------------------------------------
def _run(
    call: Invocation,
    tool: Tool,
    site: Site,
    job: Job,
    spec: TrialsSpec,
    config: Settings,
    settings: Mapping[str, Any],
    flags: Mapping[str, Any],
) -> int:
    from nas_hpc.cli.progress import display

    as_json, launched = bool(flags["as_json"]), not flags["no_launch"]
    say_made(job, spec, as_json=as_json, site=site, launched=launched)
    if not launched:
        return 0
    with serving(site):
        code = 0
        with (
            _resumable(tool, spec),
            display(job.name, tool.total(spec, settings), as_json=as_json) as progress,
            own_lines(as_json),
        ):
            say_strange_variables()
            code = start(site, launcher_options(config, job.workflow, 0.0, progress))
        return _finish(tool, site, job, spec, code, as_json=as_json)


@contextlib.contextmanager
def _resumable(tool: Tool, spec: TrialsSpec) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        note(f"{_name(spec)} was stopped; {_hint(tool, spec)}")
        raise


def _hint(tool: Tool, spec: TrialsSpec) -> str:
    return f"it goes on by: nas-hpc {tool.command} {tool.previous} {spec.directory}"


def _finish(tool: Tool, site: Site, job: Job, spec: TrialsSpec, code: int, *, as_json: bool) -> int:
    """Say what came of the job; returns the exit code."""
    from nas_hpc.apps.proxy.tool import read_state_of

    with open_database(site) as store:
        job = store.jobs(JobFilter(ids=(job.id,)))[0]
        reason = reason_of(store, job) if job.state is State.FAILED else ""
    stopped = job.state in RUNNABLE or job.state is State.RUNNING
    exit_code = INTERRUPTED if stopped else 1 if job.state is not State.JOB_FINISHED else code
    if as_json:
        print_json({**read_state_of(spec.directory, tool.kind), "job": job.id, "job_state": job.state.value,
                    "reason": reason, "directory": spec.directory})  # fmt: skip
    else:
        for line in tool.lines(spec.directory):
            print(line)
        print(f"{'directory':<15} {spec.directory}")
    if reason:
        note(f"nas-hpc: error: {reason}")
        note(f"after what made it fail was corrected, {_hint(tool, spec)}")
    elif stopped or job.state is State.USER_KILLED:
        note(f"{job.name} was {'stopped' if stopped else 'killed'}; {_hint(tool, spec)}")
    return exit_code
