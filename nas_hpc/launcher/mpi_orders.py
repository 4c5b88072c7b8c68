"""From the order of one process to that of an MPI program which starts it on all ranks."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from nas_hpc.errors import WorkFailed
from nas_hpc.processes import boot
from nas_hpc.processes.mpi import MpiProgram, Start, command, step_name
from nas_hpc.processes.orders import Order
from nas_hpc.processes.ranks import RANKS_PER_NODE_VARIABLE, RANKS_VARIABLE
from nas_hpc.processes.sessions import MARKER_VARIABLE
from nas_hpc.records import Job
from nas_hpc.resources import Placement

_FORWARDED = ("NAS_HPC_LAUNCHER_ID", "NAS_HPC_JOB_ID", "NAS_HPC_ATTEMPT", "LD_LIBRARY_PATH")
"""By these a process is found and ended before the wrapper gave it the whole environment."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """The allocation, as MPI starts see it."""

    addresses: Mapping[str, str]
    """Of the nodes, by name."""
    here: Callable[[Sequence[str]], bool]
    """Whether nodes are this machine."""
    pins: Callable[[str], bool]
    """Whether a node's core ids are its machine's."""
    environ: Mapping[str, str]
    """Of the batch job, for the MPI program."""
    mem_per_cpu_mb: int = 0
    slurm_has_gpus: bool = False


def mpi_order(
    order: Order, job: Job, placement: Placement, around: Surroundings, program: MpiProgram | None
) -> Order:
    """``order``, started by ``program`` on every rank of ``placement``.

    Who pins the ranks: Slurm decides itself which cores a step has; nodes that the job has whole and that are
    other hosts are left to the MPI program; on this machine the wrapper does it by the cores placed. Raises
    WorkFailed without a program, WrongCall for a host that it does not know how to name.
    """
    need = job.resources
    if program is None:
        raise WorkFailed(f"job {job.name} on {', '.join(placement.nodes)} needs an MPI program")
    local = around.here(placement.nodes)
    slurm = program.flavour == "slurm"
    ranks = len(placement.nodes) * need.ranks_per_node
    room = min(map(len, placement.cores), default=0) * need.threads_per_core
    whole = placement.share == 1 and order.threads * need.ranks_per_node <= room
    by_wrapper = local and all(map(around.pins, placement.nodes)) and not slurm
    gpus_by_mpi = slurm and around.slurm_has_gpus
    place = {RANKS_VARIABLE: str(ranks), RANKS_PER_NODE_VARIABLE: str(need.ranks_per_node)}
    environ = {**around.environ, **order.environ, **place}
    start = Start(
        argv=tuple(boot.command(sys.executable, "rank", order.directory, isolated=True)),
        hosts=tuple(around.addresses[name] for name in placement.nodes),
        ranks_per_node=need.ranks_per_node,
        threads_per_rank=order.threads,
        threads_per_core=need.threads_per_core,
        gpus_per_rank=need.gpus_per_rank if gpus_by_mpi else 0,
        local=local,
        pin=whole and (slurm or not local),
        mem_per_cpu_mb=around.mem_per_cpu_mb,
        forward=() if local else tuple(name for name in _FORWARDED if name in environ),
        as_root=os.geteuid() == 0,
        name=step_name(environ.get(MARKER_VARIABLE, "")),
    )
    return replace(
        order,
        argv=tuple(command(program, start)),
        environ=environ,
        mpi=True,
        ranks={
            "argv": order.argv,
            "ranks": ranks,
            "ranks_per_node": need.ranks_per_node,
            "threads_per_core": need.threads_per_core,
            "cores": placement.cores if by_wrapper else (),
            "gpus": placement.gpus,
            "gpus_per_rank": need.gpus_per_rank,
            "gpus_by_mpi": gpus_by_mpi,
            "virtual": local,
        },
    )
