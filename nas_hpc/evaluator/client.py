"""A search's end of the wire: one ZeroMQ DEALER with CURVE, its reconnects, and what has to be sent again.

Everything happens in the caller's thread: ``receive`` blocks in one poll on the socket and its monitor. A
launcher that ends, is replaced or freezes is noticed by the end of the TCP connection, by ZeroMQ's
heartbeats, or by a change of the endpoint file, which is looked at every ``FILE_CHECK_S`` seconds while
nothing comes. Then the file is read again, and Hello tells the launcher from where on the results are to be
sent.
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import zmq
from zmq.utils.monitor import recv_monitor_message

from nas_hpc import wire
from nas_hpc.errors import ConfigError, LauncherGone, NasHpcError, PlacementError, ProtocolError, Superseded

RECONNECT_VARIABLE = "NAS_HPC_RECONNECT_S"
RECONNECT_S = 300.0
"""So long a search waits for a launcher; then it ends."""
FILE_CHECK_S = 2.0
RETRY_S = (0.05, 2.0)
"""First and longest pause between two attempts to connect."""
HEARTBEAT_S = 5.0
SILENCE_S = 20.0
"""A launcher from which not even a heartbeat came for so long is frozen or gone."""
LINGER_MS = 300
"""How long an orderly close waits for the last messages to leave."""

_LOST = (
    zmq.EVENT_DISCONNECTED
    | zmq.EVENT_CLOSED
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
)
_log = logging.getLogger("nas_hpc.evaluator")

Request = wire.Submit | wire.Cancel


@dataclass(slots=True)
class _Link:
    """One connection: to one address of one endpoint."""

    socket: zmq.Socket[bytes]
    monitor: zmq.Socket[bytes]
    poller: zmq.Poller
    endpoint: wire.Endpoint
    greeted: bool = False


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
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._link: _Link | None = None
        self._unanswered: dict[int, Request] = {}
        self._requests = 0
        self._tries = 0
        self._next_try = 0.0
        self._pause_s = RETRY_S[0]
        self._lost_since = time.monotonic()
        self._checked = 0.0
        self._identity: tuple[int, int, int] | None = None
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
        if self._link is not None and self._link.greeted:
            self._send(self._link, report)

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
        self._drop(linger_ms=LINGER_MS)
        self._context.destroy(linger=LINGER_MS)

    # -- one step of the loop ----------------------------------------------------------------------
    def _step(self, deadline: float | None) -> list[wire.Message]:
        if self._ended is not None:
            raise self._ended
        now = time.monotonic()
        if self._link is None and now >= self._next_try:
            self._connect()
        link = self._link
        if link is None or not link.greeted:
            self._check_patience(now)
        wait_s = self._wait_s(now, deadline)
        if link is None:
            time.sleep(wait_s)  # no launcher: nothing can come
            return []
        ready = dict(link.poller.poll(math.ceil(wait_s * 1000)))
        messages = self._read(link) if link.socket in ready else []
        if link.monitor in ready and self._is_lost(link):
            self._lose("the connection to the launcher ended")
        elif not ready and time.monotonic() - self._checked >= FILE_CHECK_S:
            self._check_file(link)
        return messages

    def _wait_s(self, now: float, deadline: float | None) -> float:
        until = [now + FILE_CHECK_S if deadline is None else deadline]
        until.append(self._next_try if self._link is None else self._checked + FILE_CHECK_S)
        if self._link is None or not self._link.greeted:
            until.append(self._lost_since + self._patience_s)
        return max(0.0, min(until) - now)

    def _read(self, link: _Link) -> list[wire.Message]:
        messages: list[wire.Message] = []
        while True:
            try:
                body = link.socket.recv(zmq.DONTWAIT)
            except zmq.Again:
                return messages
            message = wire.unpack(body)
            if self._take(link, message):
                messages.append(message)

    def _take(self, link: _Link, message: wire.Message) -> bool:
        """Do the connection's own part of ``message``; whether the evaluator is to see it."""
        if isinstance(message, wire.Results):
            self.cursor = max([self.cursor, *(done.order for done in message.done)])
        elif isinstance(message, wire.Welcome):
            if message.protocol != wire.PROTOCOL:
                other = message.protocol
                raise ProtocolError(
                    f"the launcher speaks protocol {other}; this program speaks {wire.PROTOCOL}"
                )
            self._greet(link)
        elif isinstance(message, wire.Accepted | wire.Refused):
            return self._unanswered.pop(message.request, None) is not None
        elif isinstance(message, wire.End):
            self._ended = _ending(message.reason, link.greeted)  # raised after what came before it was taken
            return False
        return True

    def _greet(self, link: _Link) -> None:
        link.greeted = True
        self._pause_s = RETRY_S[0]
        for request in self._unanswered.values():
            self._send(link, request)

    # -- connecting --------------------------------------------------------------------------------
    def _connect(self) -> None:
        self._identity = _identity(self._path)
        self._checked = time.monotonic()
        try:
            endpoint = wire.read_endpoint(self._path)
        except LauncherGone:
            self._postpone()
            return
        self._link = self._open(endpoint)
        self._send(self._link, wire.Hello(wire.PROTOCOL, self._job, self._attempt, self.cursor, self._shape))

    def _open(self, endpoint: wire.Endpoint) -> _Link:
        socket = self._context.socket(zmq.DEALER)
        socket.curve_serverkey = endpoint.server_public.encode()
        socket.curve_publickey = endpoint.client_public.encode()
        socket.curve_secretkey = endpoint.client_secret.encode()
        socket.linger = 0
        socket.sndhwm = socket.rcvhwm = 0  # a whole history may come at once
        socket.reconnect_ivl = -1  # a new connection begins with Hello: it is made here, not by ZeroMQ
        socket.heartbeat_ivl = int(HEARTBEAT_S * 1000)
        socket.heartbeat_timeout = int(SILENCE_S * 1000)
        monitor = socket.get_monitor_socket(_LOST)
        poller = zmq.Poller()
        poller.register(socket, zmq.POLLIN)
        poller.register(monitor, zmq.POLLIN)
        address = endpoint.addresses[self._tries % len(endpoint.addresses)]
        self._tries += 1
        link = _Link(socket, monitor, poller, endpoint)
        try:
            socket.connect(address)
        except zmq.ZMQError as error:
            self._link = link
            self._drop()
            raise ProtocolError(f"{self._path}: the address {address!r} is none: {error}") from error
        return link

    def _is_lost(self, link: _Link) -> bool:
        lost = False
        while link.monitor.poll(0):
            lost = recv_monitor_message(link.monitor)["event"] & _LOST != 0 or lost
        return lost

    def _check_file(self, link: _Link) -> None:
        self._checked = time.monotonic()
        identity = _identity(self._path)
        if identity is None or identity == self._identity:
            return
        try:
            changed = wire.read_endpoint(self._path) != link.endpoint
        except LauncherGone:  # removed since we looked
            return
        self._identity = identity
        if changed:
            self._lose("another launcher has taken over")
            self._next_try = 0.0

    def _lose(self, why: str) -> None:
        if self._link is None:
            return
        if self._link.greeted:
            self._lost_since = time.monotonic()
            _log.warning("%s; waiting up to %g s for a launcher", why, self._patience_s)
        self._drop()
        self._postpone()

    def _postpone(self) -> None:
        self._next_try = time.monotonic() + self._pause_s
        self._pause_s = min(self._pause_s * 1.5, RETRY_S[1])

    def _drop(self, linger_ms: int = 0) -> None:
        link, self._link = self._link, None
        if link is not None:
            link.socket.disable_monitor()
            link.monitor.close(linger=0)
            link.socket.close(linger=linger_ms)

    def _check_patience(self, now: float) -> None:
        if now - self._lost_since >= self._patience_s:
            raise LauncherGone(
                f"no launcher answered for {self._patience_s:g} s (endpoint {self._path}): "
                f"start one with nas-hpc launcher; {RECONNECT_VARIABLE} sets the time to wait"
            )

    # -- sending -----------------------------------------------------------------------------------
    def _request(self, make: Callable[[int], Request]) -> int:
        self._requests += 1
        request = make(self._requests)
        self._unanswered[self._requests] = request
        if self._link is not None and self._link.greeted:
            self._send(self._link, request)
        return self._requests

    def _send(self, link: _Link, message: wire.Message) -> None:
        try:
            link.socket.send(wire.pack(message), zmq.DONTWAIT)
        except zmq.Again:
            self._lose("the connection to the launcher ended")


def _ending(reason: str, greeted: bool) -> NasHpcError:
    if "superseded" in reason or "another process" in reason:
        return Superseded(f"this search has to end: {reason}")
    if not greeted:
        return PlacementError(f"the launcher does not take this search: {reason}")
    return LauncherGone(f"the launcher ends this search: {reason}")


def _identity(path: Path) -> tuple[int, int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size
