"""Trainings on two ranks each under a real launcher in mpi mode, by Horovod and over mpi4py."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.launcher.bench import Bench
from tests.peers.mpi import MpiPeer
from tests.support import processes_of, wait_until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.extra("tensorflow"),
    pytest.mark.extra("horovod"),
    pytest.mark.needs_mpich,
    pytest.mark.timeout(900),
]

TRIALS = """
import os
import time
from pathlib import Path
from nas_hpc.nas import NaProblem, alpha
from nas_hpc.problems.nas.digits_conv import load_data
from nas_hpc.problems.nas.spaces import conv_skip

def meet():
    folder = Path(__file__).parent
    (folder / f"met-{os.environ['NAS_HPC_JOB_ID']}").touch()
    while len(list(folder.glob("met-*"))) < 3:
        time.sleep(0.05)
    return load_data()

def problem(epochs, load):
    made = NaProblem(seed=3)
    made.load_data(load)
    made.search_space(conv_skip, num_cells=1, num_layers=1, input_shape=(8, 8, 1), output_shape=(10,))
    made.hyperparameters(batch_size=32, learning_rate=0.003, num_epochs=epochs)
    made.loss("sparse_categorical_crossentropy")
    made.metrics(["accuracy"])
    made.objective("val_accuracy__max")
    made.resources(ranks_per_node=2)
    made.baseline(3, 0, 0, 1, 1)
    return made

Problem = problem(6, meet)
Endless = problem(1_000_000, load_data)

def forgetful(config):
    from nas_hpc.nas.parallel.mpi import Mpi
    Mpi.gradients = lambda self, tape, loss, variables, beside: (tape.gradient(loss, variables), beside)
    return alpha.run(config)
"""
"""Trainings of ``Problem`` begin when there are three at once."""


def add(
    bench: Bench, name: str, way: str, problem: str = "Problem", run: str = "nas_hpc.nas.alpha.run"
) -> None:
    """A search of one evaluation, in a workflow of its own."""
    args = f"--evaluator balsam --problem trials.{problem} --run {run} --max-evals 1 --data-parallel {way}"
    bench.job(name, "RAN", args=args, workflow=name)


def task(bench: Bench, name: str) -> Path:
    """The directory of the one evaluation."""
    return next((bench.site / "data" / name).glob("task1*"))


def result(bench: Bench, name: str) -> dict[str, Any]:
    """How it ended."""
    found: dict[str, Any] = json.loads((task(bench, name) / "result.json").read_text())
    return found


@pytest.fixture
def trials(bench: Bench) -> Bench:
    """A site with the search and the problems."""
    bench.searches()
    (bench.directory / "trials.py").write_text(TRIALS)
    return bench


def test_trainings_of_two_ranks_run_side_by_side_by_both_ways_and_one_whose_ranks_differ_fails(
    trials: Bench, mpich: MpiPeer
) -> None:
    """The ranks begin with different weights; a training compares them at its end."""
    add(trials, "horovod", "horovod")
    add(trials, "mpi4py", "mpi4py")
    add(trials, "forgetful", "mpi4py", run="trials.forgetful")
    log = trials.launch("--nodes", "6", "--mpi", str(mpich.mpiexec), code=1, timeout_s=600)
    for way in ("horovod", "mpi4py"):
        found = result(trials, way)
        assert found["outcome"] == "ok", (found, log)
        assert (found["metadata"]["ranks"], found["metadata"]["data_parallel"]) == (2, way)
        assert found["objective"] > 0.7, found
        assert trials.state(way) == "JOB_FINISHED"
    wrong = result(trials, "forgetful")
    assert (wrong["outcome"], wrong["objective"]) == ("error", None), wrong
    assert "RanksDiffer: " in wrong["reason"]
    assert "mpi4py" in wrong["reason"]


def test_a_training_of_which_one_rank_is_killed_fails_and_leaves_no_rank(
    trials: Bench, mpich: MpiPeer
) -> None:
    ways = ("horovod", "mpi4py")
    for way in ways:
        add(trials, way, way, "Endless")

    def trains(way: str) -> bool:
        return any((trials.site / "data" / way).glob("task1*/metrics.jsonl"))

    def ranks(way: str) -> dict[str, psutil.Process]:
        """By number: the processes of the evaluation's own program."""
        found = {}
        for process in processes_of(trials.test_id):
            try:
                environ, place = process.environ(), process.cwd()
            except psutil.Error:
                continue
            if "NAS_HPC_RANK" in environ and Path(place) == task(trials, way):
                found[environ["NAS_HPC_RANK"]] = process
        return found

    launcher = trials.start("--nodes", "4", "--mpi", str(mpich.mpiexec))
    try:
        wait_until(lambda: launcher.poll() is not None or all(map(trains, ways)), 400, "an epoch of both")
        for way in ways:
            wait_until(lambda: len(ranks(way)) == 2, 60, f"two ranks of {way}")  # noqa: B023
            os.kill(ranks(way)["1"].pid, signal.SIGKILL)
        log, _ = launcher.communicate(timeout=120)
    finally:
        launcher.kill()
    assert launcher.returncode == 1, log
    for way in ways:
        found = result(trials, way)
        assert found["outcome"] == "error", (found, log)
        assert found["reason"].endswith("Killed (signal 9)"), found
        assert trials.state(way) == "FAILED"
    wait_until(lambda: not processes_of(trials.test_id), 60, "the end of all ranks")
