"""Which examples a rank has, and how its learning rate follows: pure functions of numbers."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from nas_hpc.errors import WrongCall
from nas_hpc.nas.parallel.base import Array


@dataclass(frozen=True, slots=True)
class Batch:
    """A rank's part of a step."""

    rows: Array
    share: float
    """What its loss counts, so that the mean over the ranks is that of all examples of the step; 0: its rows
    only keep it in step with the others."""
    examples: int
    """Of all ranks."""


@dataclass(frozen=True, slots=True)
class Shard:
    """What ``rank`` of ``size`` has of ``count`` examples: every ``size``-th of an epoch's order, in batches
    of ``batch``. Raises WrongCall if there are fewer examples than ranks."""

    count: int
    batch: int
    rank: int = 0
    size: int = 1

    def __post_init__(self) -> None:
        if self.count < self.size:
            raise WrongCall(
                f"the training has {self.count} examples for {self.size} ranks: give each at least one"
            )

    @property
    def steps(self) -> int:
        """Of an epoch: the same on all ranks."""
        return math.ceil(self.count / (self.batch * self.size))

    def batches(self, order: Array, first: int) -> Iterator[Batch]:
        """Those of an epoch from step ``first`` on."""
        together = self.batch * self.size
        for start in range(first * together, self.count, together):
            rows = order[start : start + together]
            mine = rows[self.rank :: self.size]
            if len(mine):
                yield Batch(mine, len(mine) * self.size / len(rows), len(rows))
            else:
                yield Batch(order[self.rank :: self.size][: self.batch], 0.0, len(rows))


def seed_of(seed: int, rank: int) -> int:
    """From which the network of ``rank`` is drawn: rank 0's is that of a training in one process."""
    return seed if rank == 0 else int(np.random.SeedSequence([seed, rank]).generate_state(1)[0]) >> 1
