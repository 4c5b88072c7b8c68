"""``nas-hpc run-latency-calculator-local``."""

from __future__ import annotations

import contextlib
import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nas_hpc.cli.context import Invocation, note, site_options, working_directory
from nas_hpc.cli.latency_flags import CALCULATOR_FLAGS, calculator_words
from nas_hpc.cli.output import print_json
from nas_hpc.cli.submission import find_job
from nas_hpc.cli.trials_flags import TrialsCommand, flag_map, options
from nas_hpc.cli.types import Count, Duration
from nas_hpc.errors import NasHpcError, WorkFailed, WrongCall
from nas_hpc.states import FINAL
from nas_hpc.store.base import JobFilter

if TYPE_CHECKING:
    from nas_hpc.apps.proxy.worker import Worker, WorkerSettings
    from nas_hpc.apps.trials.spec import TrialsSpec
    from nas_hpc.records import Job
    from nas_hpc.store.base import Store

_APPLICATIONS = ("PROXY_TASKS", "TRIALS")


@site_options
@click.command(cls=TrialsCommand)
@click.option("--search-job-id", "search", default="", metavar="JOB", help="The search, or its directory.")
@click.option(
    "--controller-job-id", "controller", default="", metavar="JOB",
    help="The tool for proxy tasks, or its directory.",
)  # fmt: skip
@options(CALCULATOR_FLAGS)
@click.option(
    "--device", default="", metavar="WHICH",
    help="The GPU on which it measures, as in CUDA_VISIBLE_DEVICES; -1: none. [default: those that it sees]",
)  # fmt: skip
@click.option("--latency-worker-id", "number", type=Count(0), default=0, help="From 0. [default: 0]")
@click.option(
    "--num-latency-workers", "workers", type=Count(1), default=1,
    help="So many such workers there are. [default: 1]",
)  # fmt: skip
@click.option(
    "--local-output-dir", "logs", default="", metavar="DIR",
    help="For what the calculator prints. [default: latency_calculator.out of each trial]",
)  # fmt: skip
@click.option(
    "--look-every", "look_every_s", type=Duration(), default=10.0,
    help="Look for exported models so often. [default: 10s]",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print what was measured as JSON.")
@click.pass_obj
def run(call: Invocation, /, search: str, controller: str, as_json: bool, **flags: Any) -> int:
    """Measure the models that a search or a tool exports, on this machine, until that is over.

    The search or tool is run with --on-premises-latency. The worker has to see its directory, and nothing
    else; several of them, on several machines, share the work.

    \b
    Examples:
      nas-hpc run-latency-calculator-local --controller-job-id Model_Selection_first \\
        --latency-calculator 'python -m my.calculator' --device 0
      nas-hpc run-latency-calculator-local --search-job-id ~/searches/first_20260101_120000 \\
        --latency-calculator 'python -m my.calculator' --latency-worker-id 1 \\
        --num-latency-workers 2
    """
    from nas_hpc.apps.proxy.worker import Worker
    from nas_hpc.apps.trials.spec import read_spec

    words = [one for one in (search, controller) if one]
    if len(words) != 1:
        raise WrongCall("give one of --search-job-id and --controller-job-id: a job, or its directory")
    if not flags["latency_calculator"]:
        raise WrongCall("give --latency-calculator: the program that measures the latency of one model")
    if flags["number"] >= flags["workers"]:
        raise WrongCall(
            f"--latency-worker-id {flags['number']} of --num-latency-workers {flags['workers']}: they are "
            "counted from 0"
        )
    directory, job = _found(call, words[0], "--search-job-id" if search else "--controller-job-id")
    spec = read_spec(directory)
    settings = _settings(spec, flags)
    note(f"measures the models of {directory}")
    worker = Worker(settings, lambda: _ended(call, spec, job), note)
    return _work(worker, directory, as_json=as_json)


def _work(worker: Worker, directory: str, *, as_json: bool) -> int:
    number: int | None = None
    try:
        number = worker.run()
    except KeyboardInterrupt:
        number = 2
    except OSError as error:
        raise WorkFailed(f"{directory} cannot be used: {error.strerror or error}") from error
    failed = sum(bool(one["error"]) for one in worker.measured)
    count = len(worker.measured)
    if as_json:
        print_json({"directory": directory, "state": worker.over, "measured": worker.measured})
    else:
        lost = f", {failed} could not be measured" if failed else ""
        how = worker.over or "this worker was stopped"
        print(f"{count - failed} models measured{lost}; {how}: {directory}")
    if number is not None:
        return 128 + number
    return 1 if count and failed == count else 0


def _settings(spec: TrialsSpec, flags: dict[str, Any]) -> WorkerSettings:
    from nas_hpc.apps.proxy.worker import WorkerSettings
    from nas_hpc.trial.measure import Calculator

    logs = ""
    if flags["logs"]:
        place = Path(os.path.normpath(working_directory() / Path(flags["logs"]).expanduser()))
        try:
            place.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            why = f"{error.strerror}: give another"
            raise WrongCall(f"--local-output-dir {flags['logs']!r}: {why}") from error
        logs = str(place)
    calculator = Calculator(
        command=calculator_words(flags["latency_calculator"]),
        flags=flag_map("--latency-flags", flags["latency_flags"]),
        underscores=spec.flag_style != "dashes",
        worker=str(flags["number"]),
        device=flags["device"],
        limit_s=flags["latency_timeout_s"],
    )
    return WorkerSettings(
        directory=spec.directory,
        calculator=calculator,
        number=flags["number"],
        workers=flags["workers"],
        look_every_s=flags["look_every_s"],
        logs=logs,
    )


# -- what it follows -------------------------------------------------------------------------------
def _found(call: Invocation, word: str, flag: str) -> tuple[str, Job | None]:
    """The directory of what ``word`` is, or names, and its job where there is a site that knows it."""
    from nas_hpc.apps.proxy.tool import PREFIXES

    if os.path.isdir(word):
        directory = os.path.abspath(word)
        with contextlib.suppress(NasHpcError), call.store(write=False) as (_, store):
            return directory, _job_in(store, directory)
        return directory, None
    with call.store(write=False) as (_, store):
        names = (word, *(f"{prefix}_{word}" for prefix in PREFIXES.values()))
        named = [job for name in names for job in store.jobs(JobFilter(workflow=name)) if not job.creator]
        job = named[0] if len(named) == 1 else find_job(store, word, flag)
    if not _directory_of(job):
        raise WrongCall(f"{flag} {word!r} is a job of {job.application}: it trains no trials")
    return _directory_of(job), job


def _directory_of(job: Job) -> str:
    words = shlex.split(job.args)
    return words[1] if job.application in _APPLICATIONS and len(words) > 1 else ""


def _job_in(store: Store, directory: str) -> Job | None:
    here = os.path.realpath(directory)
    found = (job for name in _APPLICATIONS for job in store.jobs(JobFilter(application=name)))
    return next((job for job in found if os.path.realpath(_directory_of(job)) == here), None)


def _ended(call: Invocation, spec: TrialsSpec, job: Job | None) -> str:
    """How it has ended, "" if it has not: as the site says, where there is one, else as its files do."""
    from nas_hpc.apps.proxy.worker import ended

    if job is not None:
        with contextlib.suppress(NasHpcError, OSError), call.store(write=False) as (_, store):
            found = store.jobs(JobFilter(ids=(job.id,)))
            return "removed" if not found else found[0].state.value if found[0].state in FINAL else ""
    return ended(spec)
