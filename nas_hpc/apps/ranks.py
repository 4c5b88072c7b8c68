"""What each evaluation of a search occupies, and what a training on several ranks needs."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping

from nas_hpc.apps.architectures import TRAINING
from nas_hpc.apps.flags import WAY_VARIABLE, WAYS, SearchOptions
from nas_hpc.errors import WrongCall
from nas_hpc.evaluator import evaluation_shape
from nas_hpc.wire import Shape

_BUILD = "launch_scripts/build_horovod.sh builds it"


def shape_of(options: SearchOptions, asked: Mapping[str, int]) -> Shape:
    """By the flags, then by the problem (``asked``), else one rank on one node.

    Raises ConfigError, WrongCall.
    """

    def one(given: int | None, name: str, least: int) -> int:
        return asked.get(name, least) if given is None else given

    return evaluation_shape(
        nodes=one(options.nodes_per_eval, "num_nodes", 1),
        ranks_per_node=one(options.ranks_per_node, "ranks_per_node", 1),
        threads_per_rank=one(options.threads_per_rank, "threads_per_rank", 1),
        gpus_per_rank=one(options.gpus_per_rank, "gpus_per_rank", 0),
    )


def check_way(run: str, shape: Shape, environ: Mapping[str, str]) -> None:
    """Raise WrongCall if ``run`` is the training of this package, has several ranks, and what lets them work
    together is not installed. Nothing is loaded.

    ``environ``: what the user gives the evaluations.
    """
    ranks = shape.num_nodes * shape.ranks_per_node
    way = environ.get(WAY_VARIABLE, "auto")
    if way not in WAYS:
        raise WrongCall(f"{WAY_VARIABLE}={way!r}: give one of {', '.join(WAYS)}")
    if run != TRAINING or ranks == 1:
        return
    there = [name for name in ("horovod", "mpi4py") if importlib.util.find_spec(name) is not None]
    if way == "horovod" and "horovod" not in there:
        raise WrongCall(
            f"--data-parallel horovod: Horovod is not installed: {_BUILD}; or give --data-parallel mpi4py"
        )
    if way == "mpi4py" and "mpi4py" not in there:
        raise WrongCall("--data-parallel mpi4py: mpi4py is not installed: install nas-hpc[mpi]")
    if not there:
        raise WrongCall(
            f"{run} on {ranks} ranks needs mpi4py or Horovod, and neither is installed: install nas-hpc[mpi]"
        )


def check_mode(problem: str, shape: Shape, *, serial: bool) -> None:
    """Raise WrongCall for evaluations of several ranks where a launcher is to run in serial mode."""
    if serial and shape.num_nodes * shape.ranks_per_node > 1:
        raise WrongCall(
            f"evaluations of {problem} are to have {shape.num_nodes} x {shape.ranks_per_node} ranks (nodes x "
            "ranks on each), which need mpi mode; give the search to nas-hpc job and run it with: nas-hpc "
            "launcher --job-mode mpi, or give --nodes-per-eval 1 --ranks-per-node 1"
        )
