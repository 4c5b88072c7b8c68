"""Agents of other nodes as the launcher knows them, and what it asks of them and they tell as messages."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from dataclasses import fields as fields_of
from typing import Any

from nas_hpc.processes.orders import Ended, Key, Order
from nas_hpc.processes.sessions import MARKER_VARIABLE
from nas_hpc.records import Result
from nas_hpc.states import Outcome
from nas_hpc.wire import Message, RunEnded, RunStop


@dataclass(slots=True)
class Task:
    """An attempt whose end a remote agent has not reported."""

    order: Order | None
    """Until it is known to have arrived."""
    sent_to: str = ""
    """The incarnation that it was sent to; empty: none yet."""
    stop: tuple[Outcome, str, bool] | None = None


@dataclass(slots=True, eq=False)
class Remote:
    """The agent of some nodes, as the launcher knows it; it lives in another process."""

    number: int
    nodes: tuple[str, ...]
    state: str = "expected"
    """expected: never seen; here; away: its connection broke; lost: silent for too long."""
    host: str = ""
    label: int = 0
    """The number by which it was started; an MPI program may have another order of nodes than we."""
    incarnation: str = ""
    peer: bytes = b""
    welcomed: bool = False
    heard: float = 0.0
    """Loop time of its last word."""
    tasks: dict[Key, Task] = field(default_factory=dict)
    early: list[Message] = field(default_factory=list)
    """What it said before it was welcomed."""

    @property
    def name(self) -> str:
        """For a person."""
        where = f" on {self.host}" if self.host else ""
        return f"agent {self.number}{where} ({span(self.nodes)})"


def order_body(order: Order) -> dict[str, Any]:
    """The order as a message has it. The agent's own marker takes the place of the launcher's: what it runs
    outlives this launcher."""
    body = {one.name: getattr(order, one.name) for one in fields_of(order)}
    if order.call is not None:
        body["call"] = {one.name: getattr(order.call, one.name) for one in fields_of(order.call)}
    body["environ"] = {name: value for name, value in order.environ.items() if name != MARKER_VARIABLE}
    return body


def stop_of(key: Key, task: Task) -> RunStop:
    assert task.stop is not None
    outcome, reason, now = task.stop
    return RunStop(key[0], key[1], outcome.value, reason, now)


def never_began(key: Key, outcome: Outcome, reason: str) -> Ended:
    now = time.time()
    return Ended(key, Result(outcome, reason=reason, start=now, end=now))


def ended_of(message: RunEnded) -> Ended:
    result = Result(
        Outcome(message.outcome), message.objective, message.metadata, message.reason, message.return_code,
        message.start, message.end,
    )  # fmt: skip
    return Ended((message.job, message.attempt), result, message.tail, message.usage)


def span(nodes: Sequence[str]) -> str:
    return nodes[0] if len(nodes) == 1 else f"{nodes[0]} to {nodes[-1]}"
