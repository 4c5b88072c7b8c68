"""Hyperparameter and neural-architecture searches on batch supercomputers.

The package's rooms are imported by name (``nas_hpc.evaluator``, ``nas_hpc.problem``, ...); this module
stays free of imports so that every command starts fast. What job specifications need is loaded when it is
asked for: ``from nas_hpc import JobSpec, job_specification``.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nas_hpc.specification import JobSpec as JobSpec
    from nas_hpc.specification import balsamjob_spec as balsamjob_spec
    from nas_hpc.specification import job_specification as job_specification

__version__ = "0.1.0"

_SPECIFICATION = ("JobSpec", "balsamjob_spec", "job_specification")


def __getattr__(name: str) -> object:
    if name in _SPECIFICATION:
        from nas_hpc import specification

        return getattr(specification, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_SPECIFICATION])
