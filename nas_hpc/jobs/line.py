"""One question of a job to its launcher, whoever that is by the time it is answered."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nas_hpc.errors import LauncherGone, ProtocolError, WrongCall
from nas_hpc.jobs.here import this_attempt

if TYPE_CHECKING:
    from nas_hpc import wire
    from nas_hpc.evaluator.connection import Connection

_REQUEST = 1
"""Number of the only request on a connection."""


@dataclass(frozen=True, slots=True)
class Child:
    """A job that this one has added, as it is now."""

    id: str
    name: str
    workflow: str
    application: str
    state: str
    """As in ``nas-hpc ls jobs``: JOB_FINISHED, FAILED and USER_KILLED are final."""
    attempt: int
    objective: float | None
    reason: str
    """Why its last attempt failed; empty if it did not."""
    directory: Path


@dataclass(frozen=True, slots=True)
class Asker:
    """Who asks: the current attempt of a job. ``request`` is what its messages carry."""

    protocol: int
    request: int
    job: str
    attempt: int


def ask(make: Callable[[Asker], wire.Message], timeout_s: float | None = None) -> wire.Message:
    """Send what ``make`` gives and return the answer, however often the launcher is replaced meanwhile.

    The request is sent again after every reconnect: it must be one that may be done twice. ``timeout_s`` is
    how long to wait for an answer; by default as long as a search waits (NAS_HPC_RECONNECT_S, 300 s).

    Raises:
        WrongCall: this process belongs to no job, or the launcher refuses, with its reason.
        LauncherGone: no launcher answered.
        ProtocolError: the launcher is of another version.
    """
    from nas_hpc import wire
    from nas_hpc.evaluator.client import reconnect_seconds
    from nas_hpc.evaluator.connection import Connection

    path, job = os.environ.get(wire.ENDPOINT_VARIABLE, ""), os.environ.get("NAS_HPC_JOB_ID", "")
    if not path or not job:
        raise WrongCall(
            "this process belongs to no job: jobs are added, killed and looked at from inside a job that a "
            "launcher runs; elsewhere use nas-hpc job, nas-hpc kill, nas-hpc ls jobs"
        )
    patience_s = reconnect_seconds() if timeout_s is None else timeout_s
    message = make(Asker(wire.PROTOCOL, _REQUEST, job, this_attempt()))
    connection = Connection(Path(path), lambda: message)
    try:
        return _answer(connection, time.monotonic() + patience_s)
    except LauncherGone:
        why = f"; {connection.refusal}" if connection.refusal else ""
        raise LauncherGone(f"no launcher answered for {patience_s:g} s (endpoint {path}){why}") from None
    finally:
        connection.close()


def _answer(connection: Connection, deadline: float) -> wire.Message:
    import zmq

    from nas_hpc import wire

    while (now := time.monotonic()) < deadline:
        connection.tend()
        link = connection.link
        wait_s = max(0.0, min(connection.due(), deadline) - now)
        if link is None:
            time.sleep(wait_s)
            continue
        poller = zmq.Poller()
        poller.register(link.socket, zmq.POLLIN)
        poller.register(link.monitor, zmq.POLLIN)
        for message in connection.receive() if poller.poll(max(1, int(wait_s * 1000))) else ():
            if isinstance(message, wire.End):
                raise ProtocolError(f"the launcher did not understand: {message.reason}")
            if isinstance(message, wire.Refused):
                raise WrongCall(message.message)
            if isinstance(message, wire.Accepted | wire.Added | wire.Children):
                return message
    raise LauncherGone("no launcher")
