"""What is around a search's loop: its objects, its signals, its errors in one line."""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import click

from nas_hpc.apps.architectures import Searched, check_libraries, load_searched, show_size, write_space
from nas_hpc.apps.flags import SearchOptions
from nas_hpc.apps.functions import find_function, resolve_file
from nas_hpc.apps.progress import Interrupted
from nas_hpc.apps.ranks import check_way, shape_of
from nas_hpc.apps.results import ResultsFile
from nas_hpc.apps.search import Search
from nas_hpc.errors import NasHpcError
from nas_hpc.evaluator import (
    CacheKey,
    LauncherEvaluator,
    Settings,
    check_kind,
    create,
    derived_seed,
    directory_of,
    job_of,
)
from nas_hpc.evaluator.place import leave_group
from nas_hpc.loading import load_callable
from nas_hpc.processes import linux
from nas_hpc.wire import Report

if TYPE_CHECKING:  # loaded when they are needed: a wrong flag is answered before
    from nas_hpc.problem import HpProblem
    from nas_hpc.search.base import Optimizer

MakeOptimizer = Callable[["HpProblem", int], "Optimizer"]
STARTED_ONCE = 3
"""Instead of 1 in Balsam's serial mode, which starts a program again, up to three times, that ends with 1
soon after its start."""
_log = logging.getLogger("nas_hpc.apps")


@dataclass(frozen=True, slots=True)
class Prepared:
    """A search of which all was checked that can be before the first evaluation."""

    options: SearchOptions
    searched: Searched
    settings: Settings
    results: ResultsFile

    def connect(self) -> LauncherEvaluator:
        """The evaluator, with the search's past; the search is told of. Raises NasHpcError."""
        options, searched, settings = self.options, self.searched, self.settings
        what = "run function" if settings.specify is None else "job specification"
        _log.info("problem %s, %s %s, seed %d", options.problem, what, settings.run, settings.seed)
        if searched.space is not None:
            _log.info("%d decisions, %s architectures", len(searched.names), show_size(searched.space.size))
            write_space(searched.space, directory_of())
        evaluator = create(options.evaluator, settings)
        _log.info("at most %d at once, %d evaluations in all", evaluator.capacity(), options.max_evals)
        done = sum(result.objective is not None for result in evaluator.history)
        failed = len(evaluator.history) - done
        evaluator.report(
            Report(None, {}, done, failed, options.max_evals)
        )  # what is to be seen before a result
        return evaluator


def prepare(options: SearchOptions) -> Prepared:
    """Check all that can be without a launcher. Raises WrongCall, ConfigError."""
    check_kind(options.evaluator)
    settings = _settings(options)
    searched = load_searched(options.problem)
    results = _results_file(searched)
    shape = shape_of(options, searched.resources)
    if settings.specify is None:
        check_way(settings.run, shape, settings.environ)
    settings = replace(settings, shape=shape, environ=searched.environment(settings.environ))
    return Prepared(options, searched, settings, results)


def run_search(options: SearchOptions, make_optimizer: MakeOptimizer, *, repeats: bool = False) -> None:
    """Run a search as this process's work. Everything is checked before anything is submitted.

    ``repeats``: the optimizer asks for known configurations again, and need not be told of.

    Raises NasHpcError, or Interrupted after a signal.
    """
    prepared = prepare(options)
    searched, settings = prepared.searched, prepared.settings

    def make() -> Optimizer:
        return searched.outward(make_optimizer(searched.decisions, settings.seed))

    make()
    with prepared.connect() as evaluator:
        Search(
            make,
            evaluator,
            prepared.results,
            max_evals=options.max_evals,
            starting_points=len(searched.decisions.starting_point_asdict),
            time_limit_s=options.time_limit_s,
            repeats_run=settings.cache_key == "uuid" and not repeats,
        ).run()


def _settings(options: SearchOptions) -> Settings:
    """What all evaluations have in common, but for what the problem adds. Raises WrongCall, ConfigError."""
    run, specification = find_function(options.run)
    check_libraries(run)
    seed = options.seed if options.seed is not None else derived_seed(job_of())
    return Settings(
        run=run,
        seed=seed,
        cache_key=_cache_key(options.cache_key),
        timeout_s=options.eval_timeout_s,
        retries=options.eval_retries,
        environ=options.eval_environ or {},
        specify=specification,
    )


def main(command: click.Command, argv: Sequence[str] | None = None) -> int:
    """Run ``command``; returns the exit code: 0 done, 1 the work failed, 2 the call was wrong, 128 + a
    signal's number.

    Errors meant for the user are one line; those of the program itself keep their traceback.
    """
    if not leave_group():
        return _main(command, argv)
    linux.end_with_parent()
    code = _main(command, argv)
    return STARTED_ONCE if code == 1 else code


def _main(command: click.Command, argv: Sequence[str] | None) -> int:
    _log_to_stdout()
    arguments = list(sys.argv[1:] if argv is None else argv)
    signal.signal(signal.SIGTERM, _interrupt)
    signal.signal(signal.SIGINT, _interrupt)
    try:
        command.main(args=arguments, standalone_mode=False)
    except click.exceptions.Exit as end:
        return end.exit_code
    except click.ClickException as error:
        return _say(error.format_message(), error.exit_code)
    except NasHpcError as error:
        if "--debug" in arguments:
            raise
        return _say(error.message, error.exit_code)
    except Interrupted as stop:
        name = signal.Signals(stop.signal_number).name
        _log.info("ended by %s; the search goes on from here when it is started again", name)
        return 128 + stop.signal_number
    return 0


def _interrupt(signal_number: int, frame: FrameType | None) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)  # one is enough: what follows is short
    raise Interrupted(signal_number)


def _say(message: str, code: int) -> int:
    print(f"error: {' '.join(message.split())}", file=sys.stderr, flush=True)
    return code


def _cache_key(name: str) -> CacheKey:
    if name == "uuid":
        return "uuid"
    if name == "to_dict":
        return "to_dict"
    return load_callable(resolve_file(name), "cache key (uuid, to_dict or a function)")


def _results_file(searched: Searched) -> ResultsFile:
    directory = directory_of()
    place = Path(directory or ".")
    return ResultsFile(place, searched.names, cells=searched.cells, link=bool(directory))


def _log_to_stdout() -> None:
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    logger = logging.getLogger("nas_hpc")
    logger.handlers[:] = [handler]
    logger.setLevel(logging.INFO)
    logger.propagate = False
