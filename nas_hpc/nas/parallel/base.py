"""What a training asks of the ranks that it runs on, and what follows from it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
_TOGETHER = 1 << 24
"""Bytes from which arrays are sent: many small ones in one exchange, large ones without a copy of all."""


class Ranks(Protocol):
    """The processes that train one network together. Whatever one of them calls all of them call, in the same
    order: each call waits for the others."""

    @property
    def way(self) -> str:
        """How they meet: alone, horovod, mpi4py."""

    @property
    def rank(self) -> int:
        """This process's number, from 0."""

    @property
    def size(self) -> int:
        """How many they are."""

    def gradients(self, tape: Any, loss: Any, variables: Sequence[Any], beside: Any) -> tuple[list[Any], Any]:
        """The mean over the ranks of the gradients of ``loss``, which ``tape`` has recorded, with respect to
        the Keras ``variables`` (None where there is none), and of the vector ``beside`` (float32): in one
        exchange. Called while a step is traced."""

    def sum(self, array: Array) -> Array:
        """The sum over the ranks of ``array``, which has the same shape on all: the same bits on all.
        float32, float64, int32, int64 or uint8."""

    def broadcast(self, array: Array) -> Array:
        """The ``array`` of rank 0; those of the others have the same shape and type."""


def agreed(ranks: Ranks, *flags: bool) -> list[bool]:
    """Of each flag, whether a rank has it: the same on all."""
    return [bool(one) for one in ranks.sum(np.array(flags, np.int32))]


def gathered(ranks: Ranks, content: bytes) -> list[bytes]:
    """The ``content`` of each rank, on all of them; it is as long on each."""
    if not content:
        return [content] * ranks.size
    rows = np.zeros((ranks.size, len(content)), np.uint8)
    rows[ranks.rank] = np.frombuffer(content, np.uint8)
    return [row.tobytes() for row in ranks.sum(rows)]


def broadcast_bytes(ranks: Ranks, content: bytes) -> bytes:
    """The ``content`` of rank 0, of any length; what the others give is not looked at."""
    length = int(ranks.broadcast(np.array([len(content)], np.int64))[0])
    given = np.frombuffer(content, np.uint8) if ranks.rank == 0 else np.zeros(length, np.uint8)
    return ranks.broadcast(given).tobytes()


def broadcast_arrays(ranks: Ranks, arrays: Iterable[Array]) -> Iterator[Array]:
    """The ``arrays`` of rank 0, in as few exchanges as is reasonable; the others' are like them in shape and
    type."""
    waiting: list[Array] = []
    for array in arrays:
        waiting.append(array)
        if sum(one.nbytes for one in waiting) >= _TOGETHER:
            yield from _broadcast(ranks, waiting)
            waiting = []
    if waiting:
        yield from _broadcast(ranks, waiting)


def _broadcast(ranks: Ranks, arrays: Sequence[Array]) -> list[Array]:
    got = ranks.broadcast(np.frombuffer(joined(arrays), np.uint8))
    return parted(got.tobytes(), arrays)


def joined(arrays: Iterable[Array]) -> bytes:
    """The bytes of all ``arrays``."""
    return b"".join(one.tobytes() for one in arrays)


def parted(content: bytes, like: Iterable[Array]) -> list[Array]:
    """What ``joined`` made of arrays ``like`` these in shape and type."""
    parts, start = [], 0
    for one in like:
        part = np.frombuffer(content[start : start + one.nbytes], one.dtype)
        parts.append(part.reshape(one.shape))
        start += one.nbytes
    return parts


def differing(ranks: Ranks, arrays: Iterable[Array]) -> list[int]:
    """The ranks whose ``arrays`` are not, bit for bit, those of rank 0: by their hashes."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(array.tobytes())
    first, *others = gathered(ranks, digest.digest())
    return [rank for rank, other in enumerate(others, 1) if other != first]
