"""Making and changing jobs from flags: shared by ``job``, ``modify`` and ``run``."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import click

from nas_hpc.cli.context import note, working_directory
from nas_hpc.cli.modules import check_search_args, has_agents, is_search
from nas_hpc.cli.types import Amount, Count, parse_args, parse_list
from nas_hpc.config import Settings
from nas_hpc.errors import WrongCall
from nas_hpc.records import App, Job, Origin, ParentFailure, Resources
from nas_hpc.states import State
from nas_hpc.store.base import JobFilter, Store

Function = TypeVar("Function", bound=Callable[..., Any])

_RESOURCES: tuple[tuple[str, Any, str], ...] = (
    ("num-nodes", Count(1), "Nodes of the job."),
    ("ranks-per-node", Count(1), "MPI ranks on each node."),
    ("threads-per-rank", Count(1), "Threads of each rank."),
    ("threads-per-core", Count(1, 64), "Hardware threads used of each core."),
    ("gpus-per-rank", Count(0), "GPUs of each rank."),
    ("node-packing-count", Count(1), "So many such jobs share a node in serial mode."),
    ("wall-time-minutes", Amount("minutes"), "How long it takes, at a guess; for placement."),
    ("timeout", Amount("seconds"), "End it after so many seconds; 0: never."),
)
_FIELD = {"timeout": "timeout_s"}
SHOWN = 5
"""So many parents that failed are named; of more, their number is told."""


def resource_options(command: Function) -> Function:
    """The flags that say what a new job occupies; their values are None where not given."""
    return _resource_options(command, defaults=True)


def resource_changes(command: Function) -> Function:
    """The same flags for a job that has its values."""
    return _resource_options(command, defaults=False)


def _resource_options(command: Function, *, defaults: bool) -> Function:
    for flag, kind, text in reversed(_RESOURCES):
        default = getattr(Resources(), _field(flag))
        shown = f"{text}  [default: {default:g}]" if defaults and "never" not in text else text
        command = click.option(f"--{flag}", type=kind, default=None, help=shown)(command)
    return command


def _field(flag: str) -> str:
    name = flag.replace("-", "_")
    return _FIELD.get(name, name)


def resources_from(flags: Mapping[str, Any], base: Resources) -> Resources:
    """``base`` with the given ones of ``resource_options`` put in."""
    given: dict[str, Any] = {
        _field(flag): flags[flag.replace("-", "_")]
        for flag, _, _ in _RESOURCES
        if flags.get(flag.replace("-", "_")) is not None
    }
    return replace(base, **given)


def check_ranks(resources: Resources, settings: Settings) -> None:
    """Raise WrongCall for more than one rank where the site's launchers run one on one node."""
    nodes, per_node, mode = resources.num_nodes, resources.ranks_per_node, settings.job_mode
    if mode.value == "serial" and nodes * per_node > 1:
        raise WrongCall(
            f"--num-nodes {nodes} --ranks-per-node {per_node}: job_mode is serial ({mode.origin}), where "
            "a job has one rank on one node; leave them at 1, or have the site's jobs run in mpi mode"
        )


def check_evaluations(app: App, args: str, settings: Settings) -> None:
    """The same for a search of nas-hpc whose evaluations are to have several ranks."""
    from nas_hpc.launcher.policy import evaluations_of

    nodes, per_node = evaluations_of(args) if is_search(app) else (1, 1)
    mode = settings.job_mode
    if mode.value == "serial" and nodes * per_node > 1:
        raise WrongCall(
            f"--args: --nodes-per-eval {nodes} --ranks-per-node {per_node}: job_mode is serial "
            f"({mode.origin}), where an evaluation has one rank on one node; leave them at 1, or have the "
            "site's jobs run in mpi mode"
        )


def check_agents(app: App, args: str, settings: Settings) -> None:
    """Raise WrongCall for the search by agents with flags that cannot be, or where launchers run in serial
    mode."""
    if not has_agents(app):
        return
    mode = settings.job_mode
    if mode.value == "serial":
        raise WrongCall(
            f"application {app.name}: its agents are MPI ranks, and job_mode is serial "
            f"({mode.origin}); have the site's jobs run in mpi mode, or search by EVO, AMBS or RAN"
        )
    from nas_hpc.apps.ppo import check_flags, ppo

    try:
        flags = ppo.make_context(app.name, parse_args(args)).params
    except click.ClickException as error:
        raise WrongCall(f"--args of {app.name}: {error.format_message()}") from error
    except click.exceptions.Exit:  # --help
        return
    check_flags(flags)


def record_origin() -> Origin:
    """Where this call comes from: what the job needs to run as if it were started here."""
    from nas_hpc.processes.environment import recordable
    from nas_hpc.processes.staging import original

    cwd = working_directory()
    entries = [str(cwd)]
    for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep):
        if entry:
            entries.append(original(os.path.normpath(cwd / Path(entry)), os.environ))
    return Origin(
        directory=str(cwd),
        sys_path=tuple(dict.fromkeys(entries)),
        interpreter=original(os.path.abspath(sys.executable), os.environ),
        environ=recordable(os.environ),
    )


def find_app(store: Store, name: str) -> App:
    """The application ``name``. Raises WrongCall naming those there are."""
    apps = {app.name: app for app in store.apps()}
    if name not in apps:
        there_are = f"known are {', '.join(apps)}" if apps else "none is registered yet"
        raise WrongCall(
            f"application {name!r} is unknown; {there_are}; register it with: nas-hpc app --name "
            f"{name or 'NAME'} "
            "--exec COMMAND, or the searches of nas-hpc with: nas-hpc app --sync"
        )
    return apps[name]


def check_args(app: App, args: str, origin: Origin) -> None:
    """Raise WrongCall if ``args`` cannot be split, or names modules that the search could not find."""
    words = parse_args(args)
    check_search_args(app, words, origin)


def find_parents(store: Store, text: str, policy: ParentFailure) -> tuple[str, ...]:
    """Full ids of the jobs ``one,another`` (ids, names or WORKFLOW/NAME), in this order. Raises WrongCall for
    one that does not exist; warns of those that failed, which a job with this ``policy`` would wait for.
    """
    wanted = parse_list(text)
    by_id = _by_ids(store, [one for one in wanted if _may_be_id(one)])
    parents: dict[str, Job] = {}
    for one in wanted:
        parent = by_id.get(one.lower()) or find_job(store, one, "--parents")
        parents[parent.id] = parent
    lost = [parent for parent in parents.values() if parent.state in (State.FAILED, State.USER_KILLED)]
    if policy is not ParentFailure.RUN:
        for parent in lost[:SHOWN]:
            note(
                f"note: parent {parent.name} ({parent.id[:8]}) is {parent.state.value}; the job waits until "
                f"it was retried and is done: nas-hpc retry {parent.id[:8]}"
            )
        if len(lost) > SHOWN:
            note(f"note: so are {len(lost) - SHOWN} other parents")
    return tuple(parents)


def _by_ids(store: Store, words: Sequence[str]) -> dict[str, Job]:
    """The jobs with these ids, or beginnings of ids, looked up at once; none if any is none."""
    if not words:
        return {}
    try:
        found = {job.id: job for job in store.jobs(JobFilter(ids=tuple(one.lower() for one in words)))}
    except WrongCall:  # one is a name, or wrong: each is looked for by itself
        return {}
    beginnings = {id_[:length]: job for id_, job in found.items() for length in set(map(len, words))}
    return {one.lower(): beginnings[one.lower()] for one in words}


def _may_be_id(word: str) -> bool:
    """Whether this can be a job's id, or the beginning of one."""
    return 4 <= len(word) <= 32 and not set(word.lower()) - set("0123456789abcdef")


def find_jobs(store: Store, words: Sequence[str], flag: str = "JOB") -> list[Job]:
    """The jobs of ``words``: ids, their beginnings, names, or WORKFLOW/NAME. Raises WrongCall."""
    found: dict[str, Job] = {}
    for word in words:
        job = find_job(store, word, flag)
        found[job.id] = job
    return list(found.values())


def find_job(store: Store, word: str, flag: str = "JOB") -> Job:
    """The one job of ``word``: an id, its beginning (4 digits or more), a name, or WORKFLOW/NAME. Raises
    WrongCall.
    """
    workflow, _, name = word.rpartition("/")
    if name.strip():
        named = store.jobs(JobFilter(workflow=workflow, name=name))
        if len(named) == 1:
            return named[0]
        if len(named) > 1:
            some = ", ".join(f"{job.id[:8]} ({job.workflow}/{job.name})" for job in named[:4])
            more = ", …" if len(named) > 4 else ""
            raise WrongCall(
                f"{flag} {word!r}: {len(named)} jobs have that name, {some}{more}; give the id of one"
            )
    if _may_be_id(word):
        try:
            return store.jobs(JobFilter(ids=(word.lower(),)))[0]
        except WrongCall as error:
            raise WrongCall(f"{flag} {word!r}: {error.message}") from error
    raise WrongCall(
        f"{flag} {word!r}: there is no job of that id or name; nas-hpc ls jobs shows those there are"
    )


def named_job(store: Store, word: str) -> Job | None:
    """The one job of ``word``, as ``find_job``; None if it names none, or is the beginning of several ids."""
    try:
        return find_job(store, word)
    except WrongCall:
        return None


def now() -> float:
    """The time that a new job carries."""
    return time.time()
