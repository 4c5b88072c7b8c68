"""What an agent knows of an attempt, and what keepers are told of it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nas_hpc.launcher.recording import Place
from nas_hpc.processes import remains, results, sessions
from nas_hpc.processes.environment import thread_variables
from nas_hpc.processes.interpreters import Warm
from nas_hpc.processes.link import Link
from nas_hpc.processes.orders import Key, Order
from nas_hpc.processes.packed import PACKED
from nas_hpc.records import Result
from nas_hpc.resources.topology import pinning
from nas_hpc.states import Outcome


@dataclass(slots=True, eq=False)
class Attempt:
    """One order from its arrival to the report of its end."""

    order: Order
    place: Place
    """Where it runs and what is to remain of that."""
    environ: dict[str, str]
    link: Link | None = None
    """The keeper that has the order; None while it waits for an import."""
    warm: Warm | None = None
    pid: int = 0
    told: bool = False
    """Its keeper has told its end, and the line about it is being written."""
    stop: tuple[Outcome, str] | None = None
    disowned: bool = False
    """Nobody wants to know of its end."""
    timer: asyncio.TimerHandle | None = None
    grace: asyncio.TimerHandle | None = None

    def quiet(self) -> None:
        """No timer of it is to go off any more."""
        for handle in (self.timer, self.grace):
            if handle is not None:
                handle.cancel()


def message_of(
    op: str, attempt: Attempt, environ: Mapping[str, str], result_grace_s: float
) -> dict[str, Any]:
    """What a keeper is told of an attempt; ``op`` is "start", or "record" for one that gets no process."""
    order, call = attempt.order, attempt.order.call
    message: dict[str, Any] = {
        "op": op,
        **named(order.key),
        "name": order.name,
        "dir": attempt.place.directory,
        "record": attempt.place.mode,
        "job_json": "" if attempt.place.mode == PACKED and not order.argv else json.dumps(order.job_json),
        "env": environ,
        "argv": order.argv,
        "call": None,
        "cores": pinning(order.cores),
        "gpus": order.gpus,
        "expects": order.expects_result,
        "result_grace_s": result_grace_s,
    }
    if call is not None:
        message["call"] = {"run": call.run, "config": call.config, "seed": call.seed}
    if order.mpi:
        of_call = {"interpreter": order.interpreter, "sys_path": order.sys_path, "threads": order.threads}
        message["mpi"] = {**order.ranks, **of_call}
    elif call is not None and attempt.warm is None:
        message["env"] = {**environ, **thread_variables(order.threads)}
        message["interpreter"] = order.interpreter
        message["sys_path"] = order.sys_path
        message["threads"] = order.threads
    return message


def named(key: Key) -> dict[str, Any]:
    """How messages name an attempt."""
    return {"job": key[0], "attempt": key[1]}


def result_of(content: Mapping[str, Any]) -> Result:
    """The record of a result.json's content."""
    return Result(
        outcome=Outcome(content["outcome"]),
        objective=None if content.get("objective") is None else float(content["objective"]),
        metadata=content.get("metadata") or {},
        reason=content.get("reason") or "",
        return_code=content.get("return_code"),
        start=content.get("start") or 0.0,
        end=content.get("end") or 0.0,
    )


def clean_up(
    link: Link, orphans: Sequence[Attempt], log: Path, marker: str
) -> tuple[str, list[dict[str, Any] | None]]:
    """End what a dead keeper left of its attempts: how it ended, and the results that they had left.

    ``log`` and ``marker`` are the agent's. Blocking.
    """
    how = link.bury()
    if orphans:
        sessions.end_attempts(log, marker, [attempt.order.key for attempt in orphans])
    found = [results.read(attempt.place.directory, *attempt.order.key) for attempt in orphans]
    for attempt in orphans:
        if attempt.place.mode == PACKED:
            remains.remove(attempt.place.directory)
    return how, found
