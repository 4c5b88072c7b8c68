"""Ranks that meet by Horovod: its gradient tape exchanges gradients while others are still computed, and on
GPUs without the way through the processor's memory where it was built so.

Only the tape: on Keras 3 Horovod's wrapped optimizer runs and averages nothing (see ``wrapped``).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from nas_hpc.errors import WrongCall
from nas_hpc.loading import one_line
from nas_hpc.nas.parallel.base import Array


class GlooAlone(WrongCall):
    """Horovod is built without MPI, and MPI has started the ranks."""


class Horovod:
    """All ranks of this start. Raises WrongCall where Horovod is missing, or of another TensorFlow, and
    GlooAlone."""

    way = "horovod"

    def __init__(self) -> None:
        # Whoever loads MPI first decides which: a Horovod that was built on a wheel finds it only loaded.
        with contextlib.suppress(ImportError, RuntimeError):
            from mpi4py import MPI  # noqa: F401
        try:
            import horovod.tensorflow as hvd

            if not hvd.mpi_built() and "HOROVOD_RANK" not in os.environ:  # which horovodrun would have set
                raise GlooAlone(
                    "data-parallel training by Horovod: it is built for Gloo alone, and MPI has started the "
                    "ranks: build it with MPI by launch_scripts/build_horovod.sh; --data-parallel mpi4py "
                    "does without"
                )
            hvd.init()
        except GlooAlone:
            raise
        except (
            Exception
        ) as error:  # it has classes of its own, and ValueError for a start that it cannot read
            raise WrongCall(
                f"data-parallel training by Horovod: {type(error).__name__}: {one_line(error)}: "
                "launch_scripts/build_horovod.sh builds it for this environment; --data-parallel mpi4py does "
                "without"
            ) from None
        self._hvd = hvd
        self.rank: int = hvd.rank()
        self.size: int = hvd.size()

    def gradients(self, tape: Any, loss: Any, variables: Sequence[Any], beside: Any) -> tuple[list[Any], Any]:
        """Means, by Horovod's tape. It takes TensorFlow's variables, not Keras's around them."""
        own = self._hvd.DistributedGradientTape(tape, op=self._hvd.Average, sparse_as_dense=True)
        found = own.gradient(loss, [one.value for one in variables])
        return list(found), self._hvd.allreduce(beside, op=self._hvd.Average, name="beside")

    def sum(self, array: Array) -> Array:
        """By one allreduce, whose root sends the sum to all."""
        import tensorflow as tf

        total = self._hvd.allreduce(tf.constant(array), op=self._hvd.Sum, name=f"sum_{array.dtype}")
        return np.array(total)

    def broadcast(self, array: Array) -> Array:
        """As bytes, whatever its type."""
        import tensorflow as tf

        buffer = np.frombuffer(np.ascontiguousarray(array).tobytes(), np.uint8)
        if not len(buffer):
            return array
        got = np.array(self._hvd.broadcast(tf.constant(buffer), root_rank=0, name="broadcast"))
        return got.view(array.dtype).reshape(array.shape)
