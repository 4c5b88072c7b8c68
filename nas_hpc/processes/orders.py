"""What a launcher asks of an agent, and what comes back.

An agent runs attempts on one node. On one host it is an object in the launcher's process; on other nodes it
is a process of its own with the same records on the wire.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from nas_hpc.records import Json, Result
from nas_hpc.states import Outcome

Key = tuple[str, int]
"""(job id, attempt number)."""


@dataclass(frozen=True, slots=True)
class Call:
    """A run function to call in a process of its own."""

    run: str
    """Dotted path, "module.function"."""
    config: Json
    seed: int
    warm: bool
    """Fork it from a warm interpreter where that is safe, else start a fresh one."""


@dataclass(frozen=True, slots=True)
class Order:
    """Run one attempt. Exactly one of ``argv`` and ``call`` is set."""

    key: Key
    name: str
    directory: str
    """Absolute; made if missing. ``job.json`` and ``{name}.out`` are written there."""
    job_json: Json
    environ: Mapping[str, str]
    """The complete environment of the process."""
    argv: tuple[str, ...] = ()
    call: Call | None = None
    interpreter: str = ""
    """Absolute path of the Python for ``call``."""
    sys_path: tuple[str, ...] = ()
    node: str = ""
    cores: tuple[int, ...] = ()
    """The process is pinned to these; empty: not pinned."""
    gpus: tuple[int, ...] = ()
    threads: int = 1
    """Width of the thread pools."""
    timeout_s: float = 0.0
    expects_result: bool = False
    """An evaluation: without a valid objective its outcome is INVALID_RESULT."""


@dataclass(frozen=True, slots=True)
class Started:
    """The attempt's process exists."""

    key: Key
    pid: int
    time: float


@dataclass(frozen=True, slots=True)
class Ended:
    """The attempt's process and its session are gone, and result.json is written and synced.

    ``result.outcome`` is OK, ERROR, INVALID_RESULT, START_FAILED, LOST (its keeper died), or what ``stop``
    gave as the reason (TIMEOUT, WALLTIME, KILLED) unless a valid result had been written before the signal
    took effect.
    """

    key: Key
    result: Result
    tail: str = ""
    """The last lines (at most 2,000 characters) of the output, for a failure."""
    usage: Mapping[str, float] = field(default_factory=dict)
    """cpu_s, max_rss_bytes."""


__all__ = ["Call", "Ended", "Key", "Order", "Outcome", "Started"]
