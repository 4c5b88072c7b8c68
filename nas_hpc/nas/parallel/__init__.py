"""Data-parallel training: one network on several ranks, each of which computes the gradients of its own part
of every batch.

All ways have one interface (``Ranks``): ``Alone`` for one process, Horovod, and a flat allreduce over mpi4py.
Nothing here loads TensorFlow or MPI when it is imported.
"""

from __future__ import annotations

from nas_hpc.nas.parallel.alone import Alone
from nas_hpc.nas.parallel.base import Ranks
from nas_hpc.nas.parallel.choose import WAY_VARIABLE, WAYS, ranks_here

__all__ = ["WAYS", "WAY_VARIABLE", "Alone", "Ranks", "ranks_here"]
