"""Ranks that meet over mpi4py: all gradients of a step go through one allreduce of one long vector.

It needs no build of its own, only mpi4py for the machine's MPI. The vector passes through the memory of the
processor, which costs a copy where the network is on a GPU.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from nas_hpc.errors import WrongCall
from nas_hpc.nas.parallel.base import Array

_PIECE = 1 << 30
"""Bytes of one broadcast: MPI counts in 32 bits."""


class Mpi:
    """All ranks of this MPI start. Raises WrongCall without mpi4py, or with an MPI that it cannot use."""

    way = "mpi4py"

    def __init__(self) -> None:
        try:
            from mpi4py import MPI
        except (ImportError, RuntimeError) as error:  # RuntimeError: it finds no MPI library
            raise WrongCall(f"data-parallel training over mpi4py: {error}: install nas-hpc[mpi]") from None
        if MPI.Query_thread() < MPI.THREAD_SERIALIZED:
            raise WrongCall(
                "data-parallel training over mpi4py: this MPI does not let a thread call it that did not "
                "start it: set MPICH_MAX_THREAD_SAFETY=multiple, or what your MPI has for it"
            )
        self._comm = MPI.COMM_WORLD.Dup()  # nothing that a problem sends is taken for ours
        self.rank: int = self._comm.Get_rank()
        self.size: int = self._comm.Get_size()

    def gradients(self, tape: Any, loss: Any, variables: Sequence[Any], beside: Any) -> tuple[list[Any], Any]:
        """Means, by one allreduce in single precision."""
        import tensorflow as tf

        found = tape.gradient(loss, variables)
        own = [tf.convert_to_tensor(one) for one in found if one is not None]
        shapes = [tuple(v.shape) for v, one in zip(variables, found, strict=True) if one is not None]
        sizes = [*map(math.prod, shapes), beside.shape[0]]
        flat = tf.concat([tf.reshape(tf.cast(one, tf.float32), (-1,)) for one in [*own, beside]], 0)
        mean = tf.numpy_function(self._mean, [flat], tf.float32)
        mean.set_shape([sum(sizes)])
        *parts, beside = tf.split(mean, sizes)
        each = zip(parts, own, shapes, strict=True)
        means = iter([tf.cast(tf.reshape(part, shape), one.dtype) for part, one, shape in each])
        return [None if one is None else next(means) for one in found], beside

    def _mean(self, flat: Array) -> Array:
        total = np.empty_like(flat)
        self._comm.Allreduce(np.ascontiguousarray(flat), total)
        total /= np.float32(self.size)
        return total

    def sum(self, array: Array) -> Array:
        """By way of rank 0: not every allreduce gives all ranks the same bits."""
        total = np.empty_like(array)
        self._comm.Reduce(np.ascontiguousarray(array), total)
        self._comm.Bcast(total)
        return total

    def broadcast(self, array: Array) -> Array:
        """As bytes, whatever its type."""
        buffer = np.frombuffer(bytearray(np.ascontiguousarray(array).tobytes()), np.uint8)
        for start in range(0, len(buffer), _PIECE):
            self._comm.Bcast(buffer[start : start + _PIECE])
        return buffer.view(array.dtype).reshape(array.shape)
