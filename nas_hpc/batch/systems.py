"""The batch systems by name. Each is imported when it is asked for."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import cast

from nas_hpc.batch.system import BatchSystem
from nas_hpc.errors import WrongCall

NAMES = {"cobalt": "Cobalt", "pbs": "Pbs", "slurm": "Slurm", "local": "Local"}
"""Name, that of the module too -> class."""


def system_of(name: str) -> BatchSystem:
    """The batch system of that name. Raises WrongCall for one that is unknown."""
    if name not in NAMES:
        raise WrongCall(f"{name!r} is no batch system; known are {', '.join(NAMES)}")
    module = importlib.import_module(f"nas_hpc.batch.{name}")
    return cast("Callable[[], BatchSystem]", getattr(module, NAMES[name]))()
