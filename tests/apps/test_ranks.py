"""What evaluations occupy, by flags and problem, and what trainings on several ranks need."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path

import click
import pytest

from nas_hpc.apps.flags import WAY_VARIABLE, WAYS, SearchOptions, search_flags, take_options
from nas_hpc.apps.ranks import check_mode, check_way, shape_of
from nas_hpc.errors import WrongCall
from nas_hpc.nas import parallel
from nas_hpc.wire import Shape
from tests.apps.sequences import Parallel
from tests.apps.support import as_a_program, environment
from tests.evaluator.peer import Peer

TRAINING = "nas_hpc.nas.alpha.run"
TWO = Shape(ranks_per_node=2)
PROBLEM = ("--problem", "tests.apps.sequences.Parallel", "--run", "tests.apps.sequences.run")


def options(*words: str) -> SearchOptions:
    """The options of a search that is called with ``words``."""

    @click.command()
    @search_flags
    def command() -> None: ...

    return take_options(dict(command.make_context("search", [*PROBLEM, *words]).params))


@pytest.mark.parametrize(
    ("words", "shape"),
    [
        ((), Shape(ranks_per_node=2, threads_per_rank=3)),
        (("--ranks-per-node", "1"), Shape(threads_per_rank=3, node_packing_count=2)),
        (("--nodes-per-eval", "2"), Shape(2, 2, threads_per_rank=3)),
        (("--gpus-per-rank", "1", "--threads-per-rank", "1"), Shape(1, 2, 1, 1)),
    ],
)
def test_what_the_flags_leave_open_is_as_the_problem_says(
    monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], shape: Shape
) -> None:
    monkeypatch.setenv("NAS_HPC_CORES_PER_NODE", "2")
    assert shape_of(options(*words), Parallel.asked_resources) == shape


def test_without_flags_and_problem_an_evaluation_has_one_rank_on_one_node() -> None:
    shape = shape_of(options(), {})
    assert replace(shape, node_packing_count=1) == Shape()


def test_the_way_of_data_parallel_trainings_is_in_the_environment_of_evaluations() -> None:
    assert options().eval_environ == {}
    given = options("--eval-env", "A=1", "--data-parallel", "mpi4py").eval_environ
    assert given == {"A": "1", WAY_VARIABLE: "mpi4py"}
    with pytest.raises(click.BadParameter, match="'nccl' is unknown: give one of auto, horovod, mpi4py"):
        options("--data-parallel", "nccl")


def test_searches_and_trainings_call_the_ways_alike() -> None:
    assert (WAYS, WAY_VARIABLE) == (parallel.WAYS, parallel.WAY_VARIABLE)


@pytest.mark.parametrize(
    ("way", "there", "said"),
    [
        ("horovod", "mpi4py", "--data-parallel horovod: Horovod is not installed: .*build_horovod.sh"),
        ("mpi4py", "horovod", "--data-parallel mpi4py: mpi4py is not installed: install nas-hpc.mpi."),
        ("auto", "", "on 2 ranks needs mpi4py or Horovod, and neither is installed"),
        ("gloo", "horovod", "NAS_HPC_DATA_PARALLEL='gloo': give one of auto, horovod, mpi4py"),
    ],
)
def test_a_way_that_is_not_there_is_one_line_before_the_first_job(
    monkeypatch: pytest.MonkeyPatch, way: str, there: str, said: str
) -> None:
    find = importlib.util.find_spec
    others = {"horovod": "no_such_module", "mpi4py": "no_such_module", there: "json"}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: find(others.get(name, name)))
    with pytest.raises(WrongCall, match=said) as refused:
        check_way(TRAINING, TWO, {WAY_VARIABLE: way})
    assert "\n" not in str(refused.value)
    if way != "gloo":  # nobody needs it
        check_way(TRAINING, Shape(), {WAY_VARIABLE: way})
        check_way("mine.run", TWO, {WAY_VARIABLE: way})
    if there:
        check_way(TRAINING, TWO, {WAY_VARIABLE: there})
        check_way(TRAINING, TWO, {})


def test_several_ranks_are_refused_where_the_launcher_is_to_run_in_serial_mode() -> None:
    check_mode("p", TWO, serial=False)
    check_mode("p", Shape(), serial=True)
    with pytest.raises(WrongCall, match=r"evaluations of p are to have 1 x 2 ranks .* --job-mode mpi"):
        check_mode("p", TWO, serial=True)


def test_a_search_asks_for_what_its_problem_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nas_hpc.apps.program import main
    from nas_hpc.apps.random_search import random_search
    from tests.apps import sequences

    with Peer(tmp_path / "endpoint.json", sequences.run, workers=2) as peer, as_a_program():
        for name, value in environment(peer, tmp_path).items():
            monkeypatch.setenv(name, value)
        assert main(random_search, [*PROBLEM, "--max-evals", "2", "--data-parallel", "horovod"]) == 0
        asks = [row.ask for row in peer.rows.values()]
    assert {(ask.shape.ranks_per_node, ask.shape.threads_per_rank) for ask in asks} == {(2, 3)}
    assert {ask.environ[WAY_VARIABLE] for ask in asks} == {"horovod"}
