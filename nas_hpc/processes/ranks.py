"""Which rank of an MPI start this process is, by what the MPI program put into its environment.

Standard library only, Python 3.8 or later: it runs in the user's interpreters. Nothing of MPI is loaded or
initialised, so it may be asked before, or without, mpi4py.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

RANKS_VARIABLE = "NAS_HPC_RANKS"
RANKS_PER_NODE_VARIABLE = "NAS_HPC_RANKS_PER_NODE"
"""Set by the launcher for every rank of a job; aprun tells no rank how many there are."""

_SOURCES = (
    # rank, size, local rank, local size: those that are set by the innermost start come first
    tuple("OMPI_COMM_WORLD_" + name for name in ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE")),
    ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
    ("PMI_RANK", "PMI_SIZE", "PMI_LOCAL_RANK", "PMI_LOCAL_SIZE"),
    ("PALS_RANKID", "PALS_SIZE", "PALS_LOCAL_RANKID", "PALS_LOCAL_SIZE"),
    ("ALPS_APP_PE", "", "", ""),
    ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", ""),
    ("SLURM_PROCID", "SLURM_NTASKS", "", ""),
    ("PMIX_RANK", "", "", ""),
)  # fmt: skip


class Ranks:
    """This process's place in an MPI start. What the environment does not tell, but for the rank, is None."""

    __slots__ = ("local_rank", "local_size", "rank", "size")

    def __init__(
        self, rank: int, size: int | None = None, local_rank: int | None = None, local_size: int | None = None
    ) -> None:
        self.rank = rank
        """From 0, over all nodes."""
        self.size = size
        """Ranks altogether."""
        self.local_rank = local_rank
        """From 0, on this node."""
        self.local_size = local_size
        """Ranks on this node."""

    def __repr__(self) -> str:
        return f"Ranks({self.rank}, {self.size}, {self.local_rank}, {self.local_size})"

    def __eq__(self, other: object) -> bool:
        return repr(self) == repr(other)

    __hash__ = None  # type: ignore[assignment]


def find(environ: Mapping[str, str] | None = None) -> Ranks | None:
    """Which rank the process with this environment (default: this process) is; None if it is none.

    A Slurm batch script is no rank: only what ``srun`` started has a step.
    """
    env = os.environ if environ is None else environ
    found: list[int | None] = [None, None, None, None]
    for names in _SOURCES:
        if names[0].startswith("SLURM") and not ("SLURM_STEP_ID" in env or "SLURM_STEPID" in env):
            continue
        rank = _number(env, names[0])
        if rank is None or (found[0] is not None and rank != found[0]):
            continue  # another number is that of a start around this one
        for place, name in enumerate(names):
            if found[place] is None:
                found[place] = _number(env, name)
    rank, size, local_rank, local_size = found
    if rank is None:
        return None
    if size is None:
        size = _number(env, RANKS_VARIABLE)
    per_node = _number(env, RANKS_PER_NODE_VARIABLE)
    if local_rank is None and per_node:
        local_rank = rank % per_node  # nodes are filled one after the other
    return Ranks(rank, size, local_rank, per_node if local_size is None else local_size)


def rank() -> int | None:
    """This process's rank; None if no MPI program started it."""
    here = find()
    return None if here is None else here.rank


def size() -> int | None:
    """How many ranks were started with this one; None if no MPI program started it or it does not tell."""
    here = find()
    return None if here is None else here.size


def local_rank() -> int | None:
    """This process's rank among those of its node; None if no MPI program started it or it does not tell."""
    here = find()
    return None if here is None else here.local_rank


def _number(env: Mapping[str, str], name: str) -> int | None:
    text = env.get(name, "")
    return int(text) if text.isascii() and text.isdigit() else None


__all__: Sequence[str] = [
    "RANKS_PER_NODE_VARIABLE",
    "RANKS_VARIABLE",
    "Ranks",
    "find",
    "local_rank",
    "rank",
    "size",
]
