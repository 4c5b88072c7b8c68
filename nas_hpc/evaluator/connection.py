"""A connection with whatever launcher the endpoint file names: one ZeroMQ DEALER with CURVE, and its renewal.

It never waits: who has it polls the link's socket and monitor (or their descriptors), calls ``receive`` when
something came, and ``tend`` when the time ``due`` has come. A launcher that ends, is replaced or freezes is
noticed by the end of the TCP connection, by ZeroMQ's heartbeats, or by a change of the endpoint file. Then
the file is read again, its addresses are tried in their order, and the owner's first message goes out.
"""

from __future__ import annotations

import contextlib
import os
import socket as sockets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import zmq
from zmq.utils.monitor import recv_monitor_message

from nas_hpc import wire
from nas_hpc.errors import LauncherGone, ProtocolError

FILE_CHECK_S = 2.0
"""The endpoint file is looked at so often while a launcher is there."""
FIRST_PAUSE_S, QUICK_PAUSE_S, LONGEST_PAUSE_S = 0.05, 0.2, 2.0
QUICK_S = 10.0
"""Pauses between two attempts to connect grow from the first to the quick one, and to the longest when the
launcher was away for so long: a restarted one is found at once, a missing one costs nothing."""
CONNECT_S = 3.0
HANDSHAKE_S = 10.0
HEARTBEAT_S = 5.0
SILENCE_S = 20.0
"""A launcher from which not even a heartbeat came for so long is frozen or gone."""
_NEVER_MS = 86_400_000
LINGER_MS = 300
"""How long an orderly close waits for the last messages to leave."""
ENDED = "the connection to the launcher ended"
REFUSED = "the launcher does not accept these keys"
_SURE = 2
"""So often in a row an address has to refuse before that is said: a launcher may end in the middle of it."""

_REFUSED = (
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
)
_LOST = zmq.EVENT_DISCONNECTED | zmq.EVENT_CLOSED | _REFUSED


@dataclass(slots=True)
class Link:
    """One connection: to one address of one endpoint."""

    socket: zmq.Socket[bytes]
    monitor: zmq.Socket[bytes]
    endpoint: wire.Endpoint
    address: str
    opened: float
    """Monotonic."""
    greeted: bool = False


class Connection:
    """See the module. ``first`` gives the message that begins every connection.

    ``on_loss`` gets a line when a launcher was there and is not any more, ``on_link`` is called whenever
    ``link`` has changed.
    """

    def __init__(
        self,
        path: Path,
        first: Callable[[], wire.Message],
        *,
        on_loss: Callable[[str], None] = lambda why: None,
        on_link: Callable[[Link | None], None] = lambda link: None,
    ) -> None:
        self._path, self._first = path, first
        self._on_loss, self._on_link = on_loss, on_link
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.link: Link | None = None
        self.lost_since = time.monotonic()
        """When the last launcher was lost; meaningless while one is there."""
        self.refusal = ""
        """What listens there refuses, again and again: a line for a person."""
        self._refusals = 0
        self._why_lost = ""
        self._addresses: list[str] = []
        """Those still to be tried before the next pause."""
        self._next_try = 0.0
        self._pause_s = FIRST_PAUSE_S
        self._checked = 0.0
        self._identity: tuple[int, int, int] | None = None

    # -- time ----------------------------------------------------------------------------------------------
    @property
    def greeted(self) -> bool:
        """Whether a launcher has answered."""
        return self.link is not None and self.link.greeted

    def due(self) -> float:
        """When ``tend`` has something to do, in monotonic seconds."""
        if self.link is None:
            return self._next_try
        return self._checked + (FILE_CHECK_S if self.link.greeted else self._pause_s)

    def tend(self) -> None:
        """Connect, or look whether the endpoint file was replaced, if it is time. Raises ProtocolError for
        an endpoint file that makes no sense; the next attempt comes after a pause.
        """
        now = time.monotonic()
        if now < self.due():
            return
        if self.link is not None:
            self._check_file(self.link)
        if self.link is None and now >= self._next_try:
            self._connect()

    def greet(self) -> None:
        """The launcher has answered the first message."""
        if self.link is not None:
            self.link.greeted = True
        self._pause_s, self._refusals, self.refusal = FIRST_PAUSE_S, 0, ""

    # -- messages ------------------------------------------------------------------------------------------
    def receive(self) -> Iterator[wire.Message]:
        """All messages that are there; behind the last of them, the connection may be found lost.

        Raises ProtocolError for a message that makes no sense; the next call goes on behind it.
        """
        self._heed_monitor()  # first: what came before the end is there when the end is seen
        while self.link is not None:
            try:
                body = self.link.socket.recv(zmq.DONTWAIT)
            except zmq.Again:
                break
            yield wire.unpack(body)
        if self._why_lost:
            self.lose(self._why_lost)

    def _heed_monitor(self) -> None:
        while self.link is not None and self.link.monitor.poll(0):
            event = recv_monitor_message(self.link.monitor)["event"]
            if event & _LOST:
                self._why_lost = REFUSED if event & _REFUSED else self._why_lost or ENDED

    def send(self, message: wire.Message) -> None:
        """Send to the launcher; nothing is sent while none is connected."""
        if self.link is None:
            return
        try:
            self.link.socket.send(wire.pack(message), zmq.DONTWAIT)
        except zmq.Again:
            self.lose(ENDED)

    # -- connecting ----------------------------------------------------------------------------------------
    def _connect(self) -> None:
        self._checked = time.monotonic()
        before, self._identity = self._identity, identity(self._path)
        try:
            endpoint = wire.read_endpoint(self._path)
            if not self._addresses or self._identity != before:
                self._addresses = in_order(endpoint)
            if self._identity != before:
                self._refusals = 0
            self._open(endpoint, self._addresses.pop(0))
        except (LauncherGone, ProtocolError) as error:
            self._addresses.clear()
            self._postpone()
            if isinstance(error, ProtocolError):
                raise
            return
        self.send(self._first())

    def _open(self, endpoint: wire.Endpoint, address: str) -> None:
        socket = self._context.socket(zmq.DEALER)
        try:
            socket.curve_serverkey = endpoint.server_public.encode()
            socket.curve_publickey = endpoint.client_public.encode()
            socket.curve_secretkey = endpoint.client_secret.encode()
        except (zmq.ZMQError, ValueError) as error:
            socket.close(linger=0)
            raise ProtocolError(f"{self._path}: its keys are none: {error}") from error
        socket.linger = 0
        socket.sndhwm = socket.rcvhwm = 0  # a whole history may come at once
        # A new connection begins with the first message: it is made here, not by ZeroMQ, long before this.
        # With -1, which forbids it, ZeroMQ throws away what came before the end of a connection and was not
        # read yet.
        socket.reconnect_ivl = _NEVER_MS
        socket.connect_timeout = int(CONNECT_S * 1000)
        socket.handshake_ivl = int(HANDSHAKE_S * 1000)
        socket.heartbeat_ivl = int(HEARTBEAT_S * 1000)
        socket.heartbeat_timeout = int(SILENCE_S * 1000)
        monitor = socket.get_monitor_socket(_LOST)
        self.link = Link(socket, monitor, endpoint, address, time.monotonic())
        try:
            socket.connect(address)
        except zmq.ZMQError as error:
            self._close()
            raise ProtocolError(f"{self._path}: the address {address!r} is none: {error}") from error
        self._on_link(self.link)

    def _check_file(self, link: Link) -> None:
        self._checked = time.monotonic()
        found = identity(self._path)
        if found is None or found == self._identity:
            return
        try:
            changed = wire.read_endpoint(self._path) != link.endpoint
        except LauncherGone:  # removed since we looked
            return
        except ProtocolError:
            changed = True  # told by the attempt to connect
        self._identity = found
        if changed:
            self.lose("another launcher has taken over")
            self._next_try = 0.0

    def lose(self, why: str) -> None:
        """Give the connection up, and try the next address or, after a pause, the first again."""
        link = self.link
        if link is None:
            return
        self._close()
        if link.greeted:
            self.lost_since = time.monotonic()
            self._addresses.clear()
            self._on_loss(why)
        elif why == REFUSED and time.monotonic() - link.opened < HANDSHAKE_S / 2:  # else it is frozen
            self._refusals += 1
            if self._refusals >= _SURE:
                self.refusal = f"what listens at {link.address} does not accept the keys of {self._path}"
        if self._addresses:
            self._next_try = 0.0
        else:
            self._postpone()

    def _postpone(self) -> None:
        now = time.monotonic()
        self._next_try = now + self._pause_s
        longest = QUICK_PAUSE_S if now - self.lost_since < QUICK_S else LONGEST_PAUSE_S
        self._pause_s = min(self._pause_s * 1.5, longest)

    # -- the end -------------------------------------------------------------------------------------------
    def _close(self, linger_ms: int = 0) -> None:
        link, self.link, self._why_lost = self.link, None, ""
        if link is not None:
            self._on_link(None)
            link.socket.disable_monitor()
            link.monitor.close(linger=0)
            link.socket.close(linger=linger_ms)

    def close(self) -> None:
        """End the connection; what was sent before still leaves, for a moment."""
        self._close(LINGER_MS)
        self._context.destroy(linger=LINGER_MS)


def in_order(endpoint: wire.Endpoint) -> list[str]:
    """The addresses in the order in which they are worth trying: on the launcher's host its loopback first,
    elsewhere that last.
    """
    near = [address for address in endpoint.addresses if "//127." in address or "//[::1]" in address]
    far = [address for address in endpoint.addresses if address not in near]
    return near + far if endpoint.host == sockets.gethostname() else far + near


def identity(path: Path) -> tuple[int, int, int] | None:
    """Tells one endpoint file from its successor; None: there is none.

    The file is opened for that: NFS asks its server at every open, but remembers attributes for a while.
    """
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            status = os.fstat(descriptor)
        finally:
            os.close(descriptor)
        return status.st_ino, status.st_mtime_ns, status.st_size
    return None
