"""What a search sees of the machine: submit configurations, gather results, whatever runs them."""

from __future__ import annotations

from nas_hpc.evaluator.base import CacheKey, EvaluationResult, Evaluator, canonical, derived_seed
from nas_hpc.evaluator.deephyper import DeepHyperEvaluator
from nas_hpc.evaluator.evaluator import LauncherEvaluator, Settings
from nas_hpc.evaluator.place import directory_of, job_of
from nas_hpc.evaluator.select import KINDS, check_kind, create, evaluation_shape, workers_per_node

__all__ = [
    "KINDS",
    "CacheKey",
    "DeepHyperEvaluator",
    "EvaluationResult",
    "Evaluator",
    "LauncherEvaluator",
    "Settings",
    "canonical",
    "check_kind",
    "create",
    "derived_seed",
    "directory_of",
    "evaluation_shape",
    "job_of",
    "workers_per_node",
]
