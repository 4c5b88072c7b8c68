"""Searches in this process and in others, against the peer of tests/evaluator."""

from __future__ import annotations

import contextlib
import csv
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from nas_hpc.apps.results import ResultsFile
from nas_hpc.apps.search import Search
from nas_hpc.evaluator import LauncherEvaluator, Settings
from nas_hpc.evaluator.client import Client
from nas_hpc.problem import HpProblem
from nas_hpc.search.base import Optimizer
from nas_hpc.wire import Shape
from tests.apps.quadratic import Problem
from tests.evaluator.peer import Peer

ROOT = Path(__file__).resolve().parents[2]
Wrap = Callable[[Any], Any]


def evaluator_of(peer: Peer, attempt: int = 1, **settings: Any) -> LauncherEvaluator:
    """An evaluator connected with ``peer``."""
    client = Client(peer.path, job=peer.job, attempt=attempt, shape=Shape(), reconnect_s=10.0)
    return LauncherEvaluator(client, Settings(run="tests.apps.quadratic.run", **settings))


def search(
    peer: Peer,
    directory: Path,
    make_optimizer: Callable[[], Optimizer],
    *,
    max_evals: int,
    attempt: int = 1,
    wrap: Wrap = lambda whole: whole,
    problem: HpProblem = Problem,
    cache_key: Any = "uuid",
    time_limit_s: float = 0.0,
) -> None:
    """Run a search in this process. ``wrap`` is put around its optimizers and its evaluator."""
    with evaluator_of(peer, attempt, cache_key=cache_key) as evaluator:
        Search(
            lambda: wrap(make_optimizer()),
            wrap(evaluator),
            ResultsFile(directory, problem.hyperparameter_names),
            max_evals=max_evals,
            starting_points=len(problem.starting_point_asdict),
            time_limit_s=time_limit_s,
            repeats_run=cache_key == "uuid",
        ).run()


def rows(directory: Path) -> list[dict[str, str]]:
    """The rows of results.csv."""
    with (directory / "results.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def start(
    peer: Peer,
    directory: Path,
    *flags: str,
    app: str = "random_search",
    attempt: int = 1,
    more: Mapping[str, str] | None = None,
) -> subprocess.Popen[str]:
    """A search as a process of its own, as a launcher starts it; ``more`` goes into its environment."""
    directory.mkdir(parents=True, exist_ok=True)
    return subprocess.Popen(
        [sys.executable, "-m", f"nas_hpc.apps.{app}", *flags],
        env={**environment(peer, directory, attempt), **(more or {})},
        cwd=directory,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def environment(peer: Peer, directory: Path, attempt: int = 1) -> dict[str, str]:
    """What a launcher sets for a search."""
    return {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "NAS_HPC_ENDPOINT": str(peer.path),
        "NAS_HPC_JOB_ID": peer.job,
        "NAS_HPC_ATTEMPT": str(attempt),
        "NAS_HPC_JOB_DIR": str(directory),
        "NAS_HPC_CORES_PER_NODE": "2",
    }


@contextlib.contextmanager
def as_a_program() -> Iterator[None]:
    """Put back what a search takes for itself in its process, so that it can be called in this one."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    logger = logging.getLogger("nas_hpc")
    state = (logger.handlers[:], logger.level, logger.propagate)
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        logger.handlers[:], logger.level, logger.propagate = state
