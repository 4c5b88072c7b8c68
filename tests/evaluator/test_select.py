"""Which evaluator a search gets, and how many evaluations share a node."""

from __future__ import annotations

import os

import pytest

from nas_hpc.errors import WrongCall
from nas_hpc.evaluator import Settings, create, evaluation_shape, workers_per_node
from nas_hpc.wire import Shape
from tests.evaluator.peer import Peer


@pytest.mark.parametrize(
    ("environ", "workers"),
    [
        ({"DEEPHYPER_WORKERS_PER_NODE": "4", "NAS_HPC_CORES_PER_NODE": "64"}, 4),
        ({"DEEPHYPER_WORKERS_PER_NODE": "4", "BALSAM_JOB_MODE": "mpi"}, 4),
        ({"NAS_HPC_CORES_PER_NODE": "64"}, 64),
        ({"NAS_HPC_CORES_PER_NODE": "1"}, 2),
        ({"NAS_HPC_CORES_PER_NODE": "64", "BALSAM_JOB_MODE": "serial"}, 64),
        ({"NAS_HPC_CORES_PER_NODE": "64", "BALSAM_JOB_MODE": "mpi"}, 1),
        ({}, max(2, os.cpu_count() or 1)),
    ],
)
def test_evaluations_per_node_follow_the_environment(environ: dict[str, str], workers: int) -> None:
    assert workers_per_node(environ) == workers


@pytest.mark.parametrize(
    ("given", "environ", "shape"),
    [
        ({}, {"NAS_HPC_CORES_PER_NODE": "8"}, Shape(node_packing_count=8)),
        ({"nodes": 2}, {"NAS_HPC_CORES_PER_NODE": "8"}, Shape(num_nodes=2)),
        ({"nodes": 2}, {"DEEPHYPER_WORKERS_PER_NODE": "1"}, Shape(num_nodes=2)),
        ({"ranks_per_node": 4}, {"NAS_HPC_CORES_PER_NODE": "8"}, Shape(ranks_per_node=4)),
        (
            {"ranks_per_node": 4},
            {"DEEPHYPER_WORKERS_PER_NODE": "2"},
            Shape(ranks_per_node=4, node_packing_count=2),
        ),
        (
            {"threads_per_rank": 3},
            {"NAS_HPC_CORES_PER_NODE": "8"},
            Shape(threads_per_rank=3, node_packing_count=8),
        ),
        (
            {"gpus_per_rank": 2},
            {"NAS_HPC_CORES_PER_NODE": "64", "NAS_HPC_GPUS_PER_NODE": "8"},
            Shape(gpus_per_rank=2, node_packing_count=4),
        ),
        (
            {"gpus_per_rank": 8},
            {"NAS_HPC_CORES_PER_NODE": "64", "NAS_HPC_GPUS_PER_NODE": "4"},
            Shape(gpus_per_rank=8, node_packing_count=1),
        ),
        (
            {"gpus_per_rank": 1},
            {"NAS_HPC_CORES_PER_NODE": "2", "NAS_HPC_GPUS_PER_NODE": "8"},
            Shape(gpus_per_rank=1, node_packing_count=2),
        ),
        (
            {"gpus_per_rank": 1},
            {"NAS_HPC_CORES_PER_NODE": "2", "NAS_HPC_GPUS_PER_NODE": "0"},
            Shape(gpus_per_rank=1, node_packing_count=2),
        ),
        (
            {"gpus_per_rank": 1},
            {"DEEPHYPER_WORKERS_PER_NODE": "6", "NAS_HPC_GPUS_PER_NODE": "4"},
            Shape(gpus_per_rank=1, node_packing_count=6),
        ),
    ],
)
def test_the_shape_of_evaluations_follows_flags_and_environment(
    given: dict[str, int], environ: dict[str, str], shape: Shape
) -> None:
    assert evaluation_shape(**given, environ=environ) == shape


def test_several_nodes_and_several_evaluations_on_a_node_contradict_each_other() -> None:
    with pytest.raises(WrongCall, match="--nodes-per-eval 3 .* DEEPHYPER_WORKERS_PER_NODE=4 packs 4"):
        evaluation_shape(nodes=3, environ={"DEEPHYPER_WORKERS_PER_NODE": "4"})


@pytest.mark.parametrize("value", ["0", "-3", "x", "1.5"])
@pytest.mark.parametrize("name", ["DEEPHYPER_WORKERS_PER_NODE", "NAS_HPC_CORES_PER_NODE"])
def test_a_number_per_node_that_is_none_is_refused_with_its_value(name: str, value: str) -> None:
    with pytest.raises(WrongCall, match=f"{name}='{value}'"):
        workers_per_node({name: value})


@pytest.mark.parametrize("kind", ["auto", "balsam", "nas-hpc"])
def test_under_this_launcher_every_kind_means_it(peer: Peer, kind: str) -> None:
    environ = {
        "NAS_HPC_ENDPOINT": str(peer.path),
        "NAS_HPC_JOB_ID": peer.job,
        "NAS_HPC_ATTEMPT": "2",
        "NAS_HPC_CORES_PER_NODE": "8",
        "BALSAM_DB_PATH": "/somewhere",
    }
    with create(kind, Settings(run="m.f"), environ=environ, reconnect_s=10) as evaluator:
        assert evaluator.capacity() == 2
    assert (peer.hellos[0].job, peer.hellos[0].attempt) == (peer.job, 2)
    assert peer.hellos[0].shape == Shape(node_packing_count=8)


@pytest.mark.parametrize(
    ("kind", "environ", "said"),
    [
        ("auto", {}, "nas-hpc run"),
        ("nas-hpc", {"BALSAM_DB_PATH": "/db"}, "no launcher"),
        ("auto", {"BALSAM_DB_PATH": "/db"}, "BALSAM_DB_PATH=/db"),
        ("balsam", {"BALSAM_DB_PATH": "/db"}, "Balsam"),
        ("ray", {}, "'ray'"),
        ("nonsense", {}, "auto, balsam, nas-hpc"),
        ("auto", {"NAS_HPC_ENDPOINT": "/e"}, "NAS_HPC_JOB_ID"),
        ("auto", {"NAS_HPC_ENDPOINT": "/e", "NAS_HPC_JOB_ID": "a", "NAS_HPC_ATTEMPT": "x"}, "'x'"),
    ],
)
def test_where_nothing_can_run_one_line_says_what_would_be_right(
    kind: str, environ: dict[str, str], said: str
) -> None:
    with pytest.raises(WrongCall, match=said) as refused:
        create(kind, Settings(run="m.f"), environ=environ, reconnect_s=1)
    assert "\n" not in refused.value.message
    assert refused.value.exit_code == 2
