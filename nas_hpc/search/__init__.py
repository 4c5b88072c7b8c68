"""Ask/tell algorithms of the searches: pure, without I/O and clocks."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from nas_hpc.search.base import Config, Optimizer, Problem

if TYPE_CHECKING:
    from nas_hpc.search.evolution import AgingEvolution
    from nas_hpc.search.forest import ForestOptimizer
    from nas_hpc.search.random import RandomSampler

__all__ = ["AgingEvolution", "Config", "ForestOptimizer", "Optimizer", "Problem", "RandomSampler"]

_HEAVY = {
    "AgingEvolution": "nas_hpc.search.evolution",
    "ForestOptimizer": "nas_hpc.search.forest",
    "RandomSampler": "nas_hpc.search.random",
}


def __getattr__(name: str) -> Any:
    """Import scikit-learn and ConfigSpace with the first algorithm that is used, not with the protocol."""
    if name not in _HEAVY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HEAVY[name]), name)
