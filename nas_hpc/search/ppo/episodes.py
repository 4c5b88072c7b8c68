"""Sequences of decisions with what the policy thought of them when it drew them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.floating[Any]]
Whole: TypeAlias = NDArray[np.integer[Any]]


@dataclass(frozen=True, slots=True, eq=False)
class Episodes:
    """n sequences of T decisions each."""

    actions: NDArray[np.int32]
    """(n, T): each from 0 to below the number of its decision's operations."""
    log_probs: NDArray[np.float32]
    """(n, T): natural logarithms of the probabilities with which the actions were drawn."""
    values: NDArray[np.float32]
    """(n, T): what the critic expected before each action, in its own scale."""

    def __len__(self) -> int:
        return len(self.actions)

    def take(self, index: slice | Sequence[int] | Whole) -> Episodes:
        """Some of them, in the order of ``index``."""
        which = index if isinstance(index, slice) else np.asarray(index, dtype=np.intp)
        return Episodes(self.actions[which], self.log_probs[which], self.values[which])

    @staticmethod
    def join(several: Sequence[Episodes]) -> Episodes:
        """All of at least one, one after the other."""
        return Episodes(
            np.concatenate([one.actions for one in several]),
            np.concatenate([one.log_probs for one in several]),
            np.concatenate([one.values for one in several]),
        )
