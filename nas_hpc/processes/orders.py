"""What a launcher asks of an agent, and what comes back.

An agent runs attempts on the nodes of one host. It is an object in the launcher's process, or in a process of
its own on another node; then the same records go over the wire.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Protocol

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
    gpus: tuple[str, ...] = ()
    threads: int = 1
    """Width of the thread pools."""
    timeout_s: float = 0.0
    expects_result: bool = False
    """An evaluation: without a valid objective its outcome is INVALID_RESULT."""
    mpi: bool = False
    """``argv`` is an MPI program's (mpiexec, srun, aprun): its end is asked for before it is forced (SIGTERM
    first, also when the agent dies), for a killed one can leave ranks alive. With ``call`` set, too, the
    ranks run it (``processes.rank``) and rank 0 writes result.json."""
    ranks: Json = field(default_factory=dict)
    """With ``mpi``: what the wrapper of each rank is to know (``processes.rank.environment`` and beside)."""


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


class Runner(Protocol):
    """Who runs orders: the agent in the launcher's process, or a crew of agents on many nodes.

    What it tells (``Started``, ``Ended``) comes in the launcher's loop.
    """

    def start(self, order: Order) -> None:
        """Run an attempt on ``order.node``; its end is reported whatever happens."""

    def stop(self, key: Key, outcome: Outcome, reason: str) -> None:
        """Ask an attempt to end; after the grace it is forced. A second call changes nothing."""

    def kill_all(self) -> None:
        """Force everything to end now."""

    def running(self) -> set[Key]:
        """Attempts whose end was not reported."""

    def settled(self, keys: Iterable[Key]) -> None:
        """The ends of these are committed: nobody has to remember them any more."""

    async def close(self) -> None:
        """End everything, and wait for that."""


_TUPLES = tuple(one.name for one in fields(Order) if str(one.type).startswith("tuple"))


def order_of(body: Json) -> Order:
    """The order whose fields are ``body``, after a way as JSON or msgpack: its tuples have become lists.

    Raises TypeError, ValueError or KeyError for anything else.
    """
    job, number = body["key"]
    values: dict[str, Any] = {**body, "key": (str(job), int(number))}
    values |= {name: tuple(values[name]) for name in _TUPLES if name in values}
    call = body.get("call")
    return Order(**{**values, "call": None if call is None else Call(**call)})


__all__ = ["Call", "Ended", "Key", "Order", "Outcome", "Runner", "Started", "order_of"]
