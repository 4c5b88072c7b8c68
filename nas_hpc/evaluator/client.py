"""A search's end of the wire: its connection with the launcher, and what has to be sent again.

Everything happens in the caller's thread: ``receive`` blocks in one poll on the connection's socket and its
monitor. After every reconnect Hello tells the launcher from where on the results are to be sent.
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import zmq

from nas_hpc import wire
from nas_hpc.errors import ConfigError, LauncherGone, NasHpcError, PlacementError, ProtocolError, Superseded
from nas_hpc.evaluator.connection import Connection, Link

RECONNECT_VARIABLE = "NAS_HPC_RECONNECT_S"
RECONNECT_S = 300.0
"""So long a search waits for a launcher; then it ends."""

_log = logging.getLogger("nas_hpc.evaluator")

Request = wire.Submit | wire.Cancel


def reconnect_seconds(environ: dict[str, str] | os._Environ[str] = os.environ) -> float:
    """How long to wait for a launcher. Raises ConfigError for a value that is no positive number."""
    text = environ.get(RECONNECT_VARIABLE, "")
    try:
        value = float(text) if text else RECONNECT_S
    except ValueError:
        value = -1.0
    if not 0 < value < float("inf"):
        raise ConfigError(f"{RECONNECT_VARIABLE}={text!r}: give a positive number of seconds, such as 300")
    return value


class SearchClient(Protocol):
    """What an evaluator has its evaluations run by: one attempt of one search, connected.

    Everything happens in the caller's thread.
    """

    @property
    def cursor(self) -> int:
        """The order of the last result that was received."""

    def submit(self, asks: tuple[wire.Ask, ...]) -> int:
        """Ask for evaluations; returns the number that Accepted or Refused will name."""

    def cancel(self, seqs: tuple[int, ...]) -> int:
        """Have evaluations ended; their results come like all others."""

    def report(self, report: wire.Report) -> None:
        """Show progress."""

    def receive(self, timeout_s: float | None = None) -> list[wire.Message]:
        """Wait for messages and return all that are there: Results, Welcome, Capacity, Accepted, Refused.

        The first Welcome comes after the search's whole past. Empty when ``timeout_s`` has passed (None:
        never; 0: only look). Raises NasHpcError when the search has to end.
        """

    def close(self) -> None:
        """Leave. What is in flight goes on."""


class Client:
    """The connection of one attempt of one search with its launcher, whoever that is at the time.

    Requests are kept and sent again after every reconnect until they are answered; the launcher knows them by
    (search, seq), so that nothing is done twice. Results are asked for from the last order seen.
    """

    def __init__(
        self, path: Path, *, job: str, attempt: int, shape: wire.Shape, reconnect_s: float | None = None
    ) -> None:
        self._path = path
        self._job, self._attempt, self._shape = job, attempt, shape
        self._patience_s = reconnect_seconds() if reconnect_s is None else reconnect_s
        self._connection = Connection(path, self._hello, on_loss=self._on_loss)
        self._unanswered: dict[int, Request] = {}
        self._requests = 0
        self._ended: NasHpcError | None = None
        self.cursor = 0

    # -- what the evaluator uses -------------------------------------------------------------------
    def submit(self, asks: tuple[wire.Ask, ...]) -> int:
        """Ask for evaluations; returns the number that a Refused would name."""
        return self._request(lambda number: wire.Submit(number, asks))

    def cancel(self, seqs: tuple[int, ...]) -> int:
        """Have evaluations ended; their results come like all others."""
        return self._request(lambda number: wire.Cancel(number, seqs))

    def report(self, report: wire.Report) -> None:
        """Show progress. Lost without harm when no launcher is there."""
        if self._connection.greeted:
            self._connection.send(report)

    def receive(self, timeout_s: float | None = None) -> list[wire.Message]:
        """Wait for messages and return all that are there: Results, Welcome, Capacity, Accepted, Refused.

        Empty when ``timeout_s`` has passed (None: never; 0: only look). Welcome comes after every reconnect.

        Raises:
            LauncherGone: no launcher for the time to wait, or it says that it stops.
            Superseded: another attempt of this search runs.
            PlacementError: the launcher cannot serve this search, from the start.
            ProtocolError: the launcher speaks another version.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            messages = self._step(deadline)
            if messages or (deadline is not None and time.monotonic() >= deadline):
                return messages

    def close(self) -> None:
        """End the connection; what was sent before still leaves, for a moment."""
        self._connection.close()

    # -- one step of the loop ----------------------------------------------------------------------
    def _step(self, deadline: float | None) -> list[wire.Message]:
        if self._ended is not None:
            raise self._ended
        connection = self._connection
        connection.tend()
        if not connection.greeted:
            self._check_patience()
        wait_s = self._wait_s(deadline)
        if connection.link is None:
            time.sleep(wait_s)  # no launcher: nothing can come
            return []
        return self._poll(connection.link, wait_s)

    def _poll(self, link: Link, wait_s: float) -> list[wire.Message]:
        poller = zmq.Poller()
        poller.register(link.socket, zmq.POLLIN)
        poller.register(link.monitor, zmq.POLLIN)
        if not poller.poll(math.ceil(wait_s * 1000)):
            return []
        return [message for message in self._connection.receive() if self._take(message)]

    def _wait_s(self, deadline: float | None) -> float:
        until = [self._connection.due()]
        if deadline is not None:
            until.append(deadline)
        if not self._connection.greeted:
            until.append(self._connection.lost_since + self._patience_s)
        return max(0.0, min(until) - time.monotonic())

    def _take(self, message: wire.Message) -> bool:
        """Do the connection's own part of ``message``; whether the evaluator is to see it."""
        if isinstance(message, wire.Results):
            self.cursor = max([self.cursor, *(done.order for done in message.done)])
        elif isinstance(message, wire.Welcome):
            if message.protocol != wire.PROTOCOL:
                other = message.protocol
                raise ProtocolError(
                    f"the launcher speaks protocol {other}; this program speaks {wire.PROTOCOL}"
                )
            self._greet()
        elif isinstance(message, wire.Accepted | wire.Refused):
            return self._unanswered.pop(message.request, None) is not None
        elif isinstance(message, wire.End):  # raised after what came before it was taken
            if self._ended is None:  # another answers what crossed the first: it knows no reason
                self._ended = _ending(message.reason, self._connection.greeted)
            return False
        return True

    def _hello(self) -> wire.Hello:
        return wire.Hello(wire.PROTOCOL, self._job, self._attempt, self.cursor, self._shape)

    def _greet(self) -> None:
        self._connection.greet()
        for request in self._unanswered.values():
            self._connection.send(request)

    def _on_loss(self, why: str) -> None:
        _log.warning("%s; waiting up to %g s for a launcher", why, self._patience_s)

    def _check_patience(self) -> None:
        if time.monotonic() - self._connection.lost_since >= self._patience_s:
            why = f"; {self._connection.refusal}" if self._connection.refusal else ""
            raise LauncherGone(
                f"no launcher answered for {self._patience_s:g} s (endpoint {self._path}{why}): "
                f"start one with nas-hpc launcher; {RECONNECT_VARIABLE} sets the time to wait"
            )

    # -- sending -----------------------------------------------------------------------------------
    def _request(self, make: Callable[[int], Request]) -> int:
        self._requests += 1
        request = make(self._requests)
        self._unanswered[self._requests] = request
        if self._connection.greeted:
            self._connection.send(request)
        return self._requests


def _ending(reason: str, greeted: bool) -> NasHpcError:
    if "superseded" in reason or "another process" in reason:
        return Superseded(f"this search has to end: {reason}")
    if not greeted:
        return PlacementError(f"the launcher does not take this search: {reason}")
    return LauncherGone(f"the launcher ends this search: {reason}")
