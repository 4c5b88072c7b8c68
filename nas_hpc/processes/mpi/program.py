"""What an MPI start is: the program that makes it, and what is asked of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

FLAVOURS: Mapping[str, str] = {
    "mpich": "MPICH's mpiexec (hydra)",
    "pals": "PALS mpiexec",
    "openmpi": "Open MPI's mpirun",
    "slurm": "Slurm's srun",
    "aprun": "ALPS aprun",
}
"""What a person calls them."""


@dataclass(frozen=True, slots=True)
class MpiProgram:
    """A program that starts ranks."""

    path: str
    """Absolute."""
    flavour: str
    """One of ``FLAVOURS``."""
    version: str = ""
    flags: tuple[str, ...] = ()
    """More flags, for every start."""

    def __str__(self) -> str:
        return f"{FLAVOURS[self.flavour]} {self.version}".strip() + f" at {self.path}"


@dataclass(frozen=True, slots=True)
class Start:
    """One start of ``len(hosts) * ranks_per_node`` ranks, block by block: the first node's ranks first."""

    argv: tuple[str, ...]
    """What each rank runs."""
    hosts: tuple[str, ...]
    """The nodes in order, by the names that the MPI program knows."""
    ranks_per_node: int = 1
    threads_per_rank: int = 1
    threads_per_core: int = 1
    """Hardware threads used of each core."""
    gpus_per_rank: int = 0
    local: bool = False
    """All nodes are this machine (virtual ones, or the only one): a plain start without any host."""
    pin: bool = False
    """The MPI program pins ranks, for they have their nodes whole. Else it is told not to: ``cpus`` says
    where each rank goes, or its wrapper pins it, or nothing is known of the cores."""
    cpus: tuple[tuple[int, ...], ...] = ()
    """Hardware threads of each rank of a node, the same on every node; empty: not said."""
    mem_per_cpu_mb: int = 0
    """For Slurm: a step's memory; 0: not said."""
    environ: Mapping[str, str] = field(default_factory=dict)
    """Set on the ranks by the command line, which everybody on the machine can read: no secret."""
    forward: tuple[str, ...] = ()
    """Variables that ranks on other hosts need of the MPI program's; only Open MPI has to be told."""
    as_root: bool = False
    name: str = ""
    """For Slurm: what it calls the step."""

    @property
    def ranks(self) -> int:
        """How many there are."""
        return len(self.hosts) * self.ranks_per_node
