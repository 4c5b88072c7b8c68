"""Jobs of trials: making them, finding them again, running them in the foreground, what came of them."""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nas_hpc.cli.client import live_endpoint, wake
from nas_hpc.cli.context import Invocation, note, open_database
from nas_hpc.cli.foreground import check_not_run, ensure_app, reason_of
from nas_hpc.cli.launcher import launcher_options, say_strange_variables, start
from nas_hpc.cli.output import print_json, short
from nas_hpc.cli.run import check_free, known_site, make_site, own_lines
from nas_hpc.cli.serving import serving
from nas_hpc.cli.submission import find_job, now, record_origin
from nas_hpc.errors import INTERRUPTED, WrongCall
from nas_hpc.records import Job, Resources, new_id
from nas_hpc.states import FINAL, RUNNABLE, Actor, State
from nas_hpc.store.base import JobFilter, Store

if TYPE_CHECKING:
    from nas_hpc.apps.trials.spec import TrialsSpec
    from nas_hpc.config import Settings
    from nas_hpc.site import Site

APPLICATION = "TRIALS"
_TOOLS = "PROXY_TASKS"
_DIRECTORY = "--directory"
_WORKERS = "DEEPHYPER_WORKERS_PER_NODE"
_INSTEAD = "have that one run it by --no-launch"


@dataclass(frozen=True, slots=True)
class Found:
    """A job of trials, or what is left of one: its directory."""

    directory: str
    job: Job | None = None


def new_job(spec: TrialsSpec, settings: Settings, *, launched: bool) -> Job:
    """The job that runs what ``spec`` asks for.

    On this machine's one node it takes no share of it from its trials (``launched``: it runs here and now);
    on the nodes of a batch job it does, so that one more of them shares a node.
    """
    several = spec.nodes_per_trial > 1 or spec.ranks_per_node > 1
    packing = packing_of(spec, settings, launched=launched)
    by_gpus = spec.gpus_per_rank and not spec.trials_per_node  # then a node's GPUs say how many share it
    environ = {} if several or by_gpus else {_WORKERS: str(packing)}
    shape = ["--nodes-per-eval", str(spec.nodes_per_trial), "--ranks-per-node", str(spec.ranks_per_node)]
    shape = shape if several else []
    return Job(
        id=new_id(),
        name=spec.job_name,
        workflow=spec.job_name,
        application=APPLICATION,
        args=shlex.join([_DIRECTORY, spec.directory, *shape]),
        environ=environ,
        origin=record_origin(),
        resources=Resources(node_packing_count=packing),
        created=now(),
    )


def packing_of(spec: TrialsSpec, settings: Settings, *, launched: bool) -> int:
    """How many trials share a node, the job itself among them where it has a share (see ``new_job``)."""
    from nas_hpc.batch.machines import in_batch_job

    if spec.nodes_per_trial > 1 or spec.ranks_per_node > 1:
        return 1
    cores = settings.cores_per_node.value or len(os.sched_getaffinity(0))
    itself = 0 if launched and not in_batch_job(os.environ) else 1
    at_once = itself + spec.max_parallel + (spec.train_max_parallel if spec.train_flags is not None else 0)
    return spec.trials_per_node or max(2, min(at_once, cores))


def mode_flags(spec: TrialsSpec, nodes: int | None) -> dict[str, Any]:
    """Settings of a launcher in the foreground: mpi mode where a trial has several ranks or nodes, and then,
    on this machine, so many virtual nodes as run at once."""
    from nas_hpc.batch.machines import in_batch_job

    if spec.nodes_per_trial == 1 and spec.ranks_per_node == 1:
        return {"job_mode": "serial", "nodes": nodes}
    if nodes is None and not in_batch_job(os.environ):
        nodes = 1 + spec.max_parallel * spec.nodes_per_trial
    return {"job_mode": "mpi", "nodes": nodes}


def the_site(call: Invocation, *, launch: bool) -> Site | None:
    """The site for a new job, None where it is to be made. Raises SiteError where it cannot be used."""
    known = known_site(call)
    if known is not None and launch:
        check_free(known, _INSTEAD)
    elif known is not None:
        known.check_writable()
    return known


def add(call: Invocation, site: Site | None, settings: Settings, job: Job) -> Site:
    """Put a new job into its site, which is made if need be. Raises WrongCall if its name is taken."""
    site = site or make_site(call.machine(None, settings))
    with open_database(site) as store:
        check_name(store, site, job.workflow)
        ensure_app(store, APPLICATION)
        store.add_jobs([job], Actor.COMMAND)
    return site


def check_name(store: Store, site: Site, name: str) -> None:
    """Raise WrongCall if there is a workflow of that name."""
    if store.counts(JobFilter(workflow=name)):
        raise WrongCall(
            f"--job-name {name!r} is taken in {site.path}: give another name, or go on with that one by: "
            f"nas-hpc search-resume {name}"
        )


def launch(
    call: Invocation, site: Site, job: Job, spec: TrialsSpec, settings: Settings, total: int, *, as_json: bool
) -> int:
    """Run the job in the foreground; returns the exit code."""
    from nas_hpc.cli.progress import display

    with serving(site):
        code = 0
        with (
            _resumable(spec.job_name),
            display(spec.job_name, total, as_json=as_json) as progress,
            own_lines(as_json),
        ):
            say_strange_variables()
            code = start(site, launcher_options(settings, job.workflow, 0.0, progress))
        return finish(site, job, spec, code, as_json=as_json)


@contextlib.contextmanager
def _resumable(name: str) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        note(f"{name} was stopped; it goes on by: nas-hpc search-resume {name}")
        raise


def finish(site: Site, job: Job, spec: TrialsSpec, code: int, *, as_json: bool) -> int:
    """Say what came of the job; returns the exit code."""
    from nas_hpc.apps.trials.figure import FIGURE_FILE
    from nas_hpc.apps.trials.records import TRIALS_FILE, read_state

    with open_database(site) as store:
        job = store.jobs(JobFilter(ids=(job.id,)))[0]
        reason = reason_of(store, job) if job.state is State.FAILED else ""
    state = read_state(spec.directory)
    stopped = job.state in RUNNABLE or job.state is State.RUNNING
    exit_code = INTERRUPTED if stopped else 1 if job.state is not State.JOB_FINISHED else code
    if as_json:
        print_json({**state, "job": job.id, "job_state": job.state.value, "reason": reason,
                    "directory": spec.directory})  # fmt: skip
    else:
        message = str(state.get("message") or "")
        if message and not stopped and not reason and state.get("state") != "INTERRUPTED":
            print(message)
        for title, name in (("trials", TRIALS_FILE), ("figure", FIGURE_FILE)):
            path = os.path.join(spec.directory, name)
            if os.path.isfile(path):
                print(f"{title:<15} {path}")
        print(f"{'directory':<15} {spec.directory}")
    if reason:
        note(f"nas-hpc: error: {reason}")
    elif stopped or job.state is State.USER_KILLED:
        what = "stopped" if stopped else "killed"
        note(f"{spec.job_name} was {what}; it goes on by: nas-hpc search-resume {spec.job_name}")
    return exit_code


def say_made(job: Job, spec: TrialsSpec, *, as_json: bool, site: Site, launched: bool) -> None:
    """Say where a new job is to be found; wake a launcher that is to run it."""
    from nas_hpc.batch.machines import batch_job_of

    out = sys.stderr if as_json or launched else sys.stdout
    batch = batch_job_of(os.environ) if launched else ""
    within = f", batch job {batch}" if batch else ""
    print(
        f"job {job.workflow}/{job.name} ({short(job.id)}) in {spec.directory}{within}", file=out, flush=True
    )
    if launched:
        return
    if as_json:
        print_json({"job": job.id, "directory": spec.directory})
    note(f"run it by: nas-hpc launcher --wf-filter {job.workflow}, or nas-hpc submit-launch")
    wake(site)


# -- jobs that there are ---------------------------------------------------------------------------
def find(call: Invocation, word: str) -> Found:
    """The job of trials that ``word`` is: a job of the site, or the directory of one. Raises WrongCall."""
    from nas_hpc.apps.trials.spec import SPEC_FILE

    if os.path.isfile(os.path.join(word, SPEC_FILE)):
        _check_no_tool(word, word)
        return Found(os.path.abspath(word))
    if os.path.isdir(word) and "/" in word:
        raise WrongCall(f"{word!r} is no directory of a search of trials: it has no {SPEC_FILE}")
    with call.store(write=False) as (_, store):
        return found_in(store, word)


def found_in(store: Store, word: str) -> Found:
    """The job of trials that ``word`` names in a site. Raises WrongCall."""
    named = store.jobs(JobFilter(workflow=word, name=word))
    job = named[0] if len(named) == 1 else find_job(store, word)
    words = shlex.split(job.args)
    if job.application == _TOOLS and len(words) > 1:
        _check_no_tool(word, words[1])
    if job.application != APPLICATION or words[:1] != [_DIRECTORY] or len(words) < 2:
        raise WrongCall(
            f"{word!r} is a job of {job.application}, and not one of trials, as nas-hpc search and nas-hpc "
            "train make them"
        )
    return Found(words[1], job)


def _check_no_tool(word: str, directory: str) -> None:
    """Raise WrongCall if ``directory`` is that of a tool for proxy tasks, whose rounds have the trials."""
    from nas_hpc.apps.proxy.tool import PREFIXES
    from nas_hpc.apps.trials.spec import SPEC_FILE, read_spec

    if read_spec(directory).kind not in PREFIXES:
        return
    rounds = sorted(one.parent for one in Path(directory).glob(f"*/{SPEC_FILE}"))
    there = (
        f": give one of its rounds: {', '.join(map(str, rounds))}" if rounds else ", and has no rounds yet"
    )
    raise WrongCall(f"{word!r} is a tool for proxy tasks, and no search of trials{there}")


def again(
    site: Site, store: Store, job: Job, spec: TrialsSpec, state: State, only: frozenset[int] | None = None
) -> TrialsSpec:
    """``spec`` with its trials that are in ``state`` to run again, if ``only`` has them; and let
    the job itself run again. Raises WrongCall while it runs.

    What was killed with the job goes on with it, without being asked to (``ended_with``): as another
    evaluation it would run twice. But for what is too much for a lower ``spec.max_parallel``.
    """
    from nas_hpc.apps.trials.spec import own_stage, trial_of
    from nas_hpc.launcher.endings import ended_with

    check_not_run(store, job)
    if job.state is State.RUNNING and live_endpoint(site) is not None:
        raise WrongCall(
            f"{job.name} ({short(job.id)}) is RUNNING: wait for its end, or end it with: nas-hpc kill "
            f"{short(job.id)}"
        )
    went = {one.id for one in ended_with(store, job)}
    held = {one.id for one in _hold_back(store, job, spec, went)}
    times = dict(spec.again)
    for one in store.jobs(JobFilter(creator=job.id, states=frozenset({state, State.USER_KILLED}))):
        stage, number, before = trial_of(one.seq)
        key = f"{stage}/{number}"
        asked = one.state is state and one.id not in went
        wanted = asked and (only is None or (stage == own_stage(spec) and number in only))
        if (wanted or one.id in held) and before == spec.again.get(key, 0):
            times[key] = before + 1
    return replace(spec, again=times)


def _hold_back(store: Store, job: Job, spec: TrialsSpec, went: Collection[str]) -> list[Job]:
    """End those of the trials that would go on at once with the job (``went``: killed with it) which are more
    than may run at once now: they run again one after the other."""
    from nas_hpc.apps.trials.spec import own_stage, trial_of

    unfinished = store.jobs(JobFilter(creator=job.id))
    going = [one for one in unfinished if one.id in went or one.state not in FINAL]
    own = own_stage(spec)
    mine = sorted((one for one in going if trial_of(one.seq)[0] == own), key=lambda one: one.seq)
    surplus = mine[spec.max_parallel :]
    if surplus:
        killed = [one.id for one in surplus if one.id in went]
        store.set_state(killed, State.RESTART_READY, Actor.COMMAND, "retried with its search")
        why = f"no more than {spec.max_parallel} run at once now"
        store.set_state([one.id for one in surplus], State.USER_KILLED, Actor.COMMAND, why)
    return surplus


def run_again(store: Store, job: Job, fresh: Job, what: str) -> None:
    """Let a job of trials that is over run again; ``fresh`` says how many trials share a node now."""
    if job.state in FINAL:
        store.set_state([job.id], State.RESTART_READY, Actor.COMMAND, what)
        [job] = store.jobs(JobFilter(ids=(job.id,)))
    if job.state in RUNNABLE and (job.environ, job.resources) != (fresh.environ, fresh.resources):
        store.modify([replace(job, environ=fresh.environ, resources=fresh.resources)])


def check_nobody_runs(site: Site, *, launch: bool) -> None:
    """Raise SiteError if a launcher runs the site that this command is to run."""
    if launch:
        check_free(site, _INSTEAD)
    else:
        site.check_writable()
