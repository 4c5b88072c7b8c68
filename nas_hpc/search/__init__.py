"""Ask/tell algorithms of the searches: pure, without I/O and clocks."""

from __future__ import annotations

from nas_hpc.search.base import Config, Optimizer, Problem
from nas_hpc.search.forest import ForestOptimizer
from nas_hpc.search.random import RandomSampler

__all__ = ["Config", "ForestOptimizer", "Optimizer", "Problem", "RandomSampler"]
