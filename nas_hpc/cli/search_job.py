"""The job of a search that is given to a batch system: its application, its packing, its checks."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nas_hpc.batch.limits import WORKERS_VARIABLE, check_packing
from nas_hpc.cli.apps import standard_apps
from nas_hpc.cli.check_search import check_objects, check_search
from nas_hpc.cli.context import note
from nas_hpc.cli.modules import check_search_args, has_agents
from nas_hpc.cli.submission import check_agents, check_evaluations, check_ranks, now, record_origin
from nas_hpc.cli.types import MAX_COUNT, parse_args
from nas_hpc.config import Settings
from nas_hpc.errors import WrongCall
from nas_hpc.records import App, Job, Resources, new_id
from nas_hpc.site import Site
from nas_hpc.store.base import JobFilter, Store

HYPERPARAMETERS = ("AMBS", "EVO", "RAN")
"""Searches of hyperparameters among the ready-made applications."""
ARCHITECTURES = ("EVO", "PPO", "RAN", "AMBS")
"""Searches of architectures among them."""
_OWN_FLAGS = ("--problem", "--run", "-p", "-r")


@dataclass(frozen=True, slots=True)
class Wish:
    """The search that is to be submitted."""

    workflow: str
    architectures: bool
    application: str
    problem: str
    function: str
    flags: tuple[str, ...]
    """More flags of the search."""
    nodes: int
    """Of the batch job."""
    own_nodes: int = 1
    """Of the search's own job."""

    def words(self) -> list[str]:
        """The arguments of its application."""
        words = ["--problem", self.problem, "--run", self.function]
        given = any(flag.partition("=")[0] == "--evaluator" for flag in self.flags)
        return [*([] if given else ["--evaluator", "balsam"]), *words, *self.flags]


def check_wish(wish: Wish, settings: Settings, environ: Mapping[str, str]) -> int:
    """Raise WrongCall for what cannot be; returns how many evaluations are to share a node, 0 if not told."""
    for flag in wish.flags:
        name = flag.partition("=")[0]
        if name in _OWN_FLAGS:
            raise WrongCall(f"{name} stands behind --; give it to balsam-submit itself, before --")
    if wish.own_nodes > wish.nodes:
        raise WrongCall(
            f"--nas-nodes {wish.own_nodes}: the batch job has {wish.nodes} (-n); the search and its "
            "evaluations share them, so give fewer than that"
        )
    workers = _workers(environ)
    check_packing(settings, settings.job_mode.value, workers or 1)
    if settings.job_mode.value == "serial" and wish.own_nodes > 1:
        raise WrongCall(
            f"--nas-nodes {wish.own_nodes}: job mode is serial ({settings.job_mode.origin}), where a job has "
            "one node; use -j mpi, or --nas-nodes 1"
        )
    return workers


def _workers(environ: Mapping[str, str]) -> int:
    text = environ.get(WORKERS_VARIABLE, "").strip()
    if not text:
        return 0
    if not text.isdecimal() or not 1 <= int(text) <= MAX_COUNT:
        raise WrongCall(
            f"{WORKERS_VARIABLE}={text!r}: it says how many evaluations share a node; give a whole number, 1 "
            "or more, or unset it"
        )
    return int(text)


def check_new(site: Site, store: Store, workflow: str) -> None:
    """Raise WrongCall if the site has such a workflow."""
    counts = store.counts(JobFilter(workflow=workflow))
    if counts:
        jobs = sum(counts.values())
        raise WrongCall(
            f"workflow {workflow!r} exists in {site.path}, with {'a job' if jobs == 1 else f'{jobs} jobs'}; "
            "choose another name, let it go on with: nas-hpc submit-launch --wf-filter "
            f"{workflow}, or remove it with: nas-hpc rm --workflow {workflow}"
        )


def choose_app(known: Mapping[str, App], wish: Wish) -> App:
    """The application of the search: the site's, else the ready-made one. Raises WrongCall."""
    own = known.get(wish.application)
    ours = _ready_made(wish.application)
    if own is None:
        return ours
    if _module_of(own) != _module_of(ours):
        raise WrongCall(
            f"application {own.name} of this site is {own.executable}, not the search of nas-hpc "
            f"({ours.executable}); put that in its place with: nas-hpc app --sync, or run your own with: "
            "nas-hpc job and nas-hpc submit-launch"
        )
    python = parse_args(own.executable)[0]
    if not os.access(python, os.X_OK):
        note(f"note: application {own.name} ran by {python}, which is gone; now by {_python_of(ours)}")
        return ours
    if own.executable != ours.executable:
        note(f"note: application {own.name} of this site runs by {python}; nas-hpc app --sync changes that")
    return own


def _ready_made(name: str) -> App:
    return next(app for app in standard_apps() if app.name == name)


def _module_of(app: App) -> str:
    """The module that an application runs by ``-m``, or ""."""
    words = parse_args(app.executable)
    return next((after for word, after in zip(words, words[1:], strict=False) if word == "-m"), "")


def _python_of(app: App) -> str:
    return parse_args(app.executable)[0]


def new_search_job(wish: Wish, app: App, settings: Settings, workers: int) -> Job:
    """The search's job, checked as ``nas-hpc job`` does it. Raises WrongCall."""
    packing = workers or 1
    if not workers and settings.job_mode.value == "serial" and wish.nodes == 2:
        packing = 2  # the first node is the launcher's: a search alone on the other would have no evaluator
    args = shlex.join(wish.words())
    job = Job(
        id=new_id(),
        name=wish.workflow,
        workflow=wish.workflow,
        application=app.name,
        args=args,
        environ={WORKERS_VARIABLE: str(workers)} if workers else {},
        origin=record_origin(),
        resources=Resources(
            num_nodes=wish.own_nodes, node_packing_count=packing if wish.own_nodes == 1 else 1
        ),
        created=now(),
    )
    check_ranks(job.resources, settings)
    check_evaluations(app, args, settings)
    check_agents(app, args, settings)
    _check_division(app, args, wish, min(packing, settings.mpi_mode_packing.value))
    return job


def _check_division(app: App, args: str, wish: Wish, packing: int) -> None:
    """Raise WrongCall if an agent would get no evaluator."""
    if not has_agents(app) or wish.nodes == 1:  # there it shares its node with its evaluator
        return
    from nas_hpc.launcher.policy import evaluations_of

    nodes, _ = evaluations_of(args)
    workers = (wish.nodes - wish.own_nodes) // nodes * packing
    if workers < wish.own_nodes:
        raise WrongCall(
            f"--nas-nodes {wish.own_nodes}: of {wish.nodes} nodes (-n) that leaves evaluators for {workers} "
            f"of {wish.own_nodes} agents; give fewer --nas-nodes, or more nodes"
        )


def check_loads(app: App, job: Job, wish: Wish, settings: Settings) -> None:
    """Import problem and run function, in a process of their own, as far as this Python can tell.

    Raises WrongCall if the search could not begin.
    """
    words: Sequence[str] = wish.words()
    check_search_args(app, words, job.origin)
    program = parse_args(app.executable)[0]
    if os.path.basename(program).startswith("python") and program != job.origin.interpreter:
        note(f"note: {program} runs {app.name}: whether it can import {wish.problem} is not looked at here")
        return
    module = _module_of(app)
    if module.startswith("nas_hpc.apps."):
        serial = settings.job_mode.value == "serial"
        check_search(module, words, architectures=wish.architectures, serial=serial)
    else:
        check_objects(wish.problem, wish.function)
