"""The socket on which searches, agents and commands reach the launcher.

A ZeroMQ ROUTER with CURVE: only who reads the endpoint file (mode 0600) has the keys. Every launcher makes
new ones. It listens on the loopback interface, and on others only where other hosts belong to the allocation.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil
import zmq
from zmq.auth.thread import ThreadAuthenticator

from nas_hpc.errors import ProtocolError, WorkFailed, WrongCall
from nas_hpc.wire import End, Endpoint, Message, pack, unpack, write_endpoint

HEARTBEAT_MS = 5_000
LOOPBACK = "127.0.0.1"


def listen_on(others: Sequence[str], interface: str = "", *, anyone: bool = False) -> list[str]:
    """The IPv4 addresses on which ``others``, the other hosts of the allocation, may reach this one; with
    ``anyone``, who is not known yet (commands on other hosts), too.

    Those of ``interface``, else all; the one that the way to them starts from comes first, and without others
    loopback. Blocking (names are looked up). Raises WrongCall for an interface that there is not.
    """
    if not others and not anyone:
        return [LOOPBACK]
    by_name = {
        name: [one.address for one in addresses if one.family == socket.AF_INET]
        for name, addresses in psutil.net_if_addrs().items()
    }
    if interface and not by_name.get(interface):
        known = ", ".join(sorted(name for name, found in by_name.items() if found))
        raise WrongCall(f"interface {interface!r} has no address on this host; there are {known}")
    chosen = [interface] if interface else [name for name in by_name if not _is_loopback(by_name[name])]
    found = [address for name in chosen for address in by_name[name]]
    if not others:
        return [LOOPBACK, *dict.fromkeys(found)]
    if not found:
        raise WorkFailed(
            f"this host has no network address on which {len(others)} other nodes could reach the launcher"
        )
    first = _source_towards(others[0])
    return sorted(dict.fromkeys(found), key=lambda address: address != first)


def _is_loopback(addresses: Sequence[str]) -> bool:
    return all(address.startswith("127.") for address in addresses)


def _source_towards(host: str) -> str:
    """The address from which this host would speak to ``host``; empty if that is unknown. Nothing is sent."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((host, 9))
        return str(probe.getsockname()[0])
    return ""


class _OnlyThisClient:
    """Accepts one CURVE public key."""

    def __init__(self, public: bytes) -> None:
        self._public = public

    def callback(self, domain: str, key: bytes) -> bool:
        """Whether the client with this key (Z85) may connect."""
        return key == self._public


class EndpointServer:
    """Receives messages in the running asyncio loop and sends to any peer that has spoken.

    ``on_message(peer, message)`` is called for each; what cannot be read is noted, and its sender sent away.
    ``listen`` are IPv4 addresses.
    """

    def __init__(
        self,
        path: Path,
        epoch: str,
        on_message: Callable[[bytes, Message], None],
        on_note: Callable[[str], None],
        listen: Sequence[str] = (LOOPBACK,),
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._path, self._epoch = path, epoch
        self._on_message, self._on_note = on_message, on_note
        self._context = zmq.Context(io_threads=1)
        server_public, server_secret = zmq.curve_keypair()
        client_public, client_secret = zmq.curve_keypair()
        self._authenticator = ThreadAuthenticator(self._context)
        self._authenticator.start()
        self._authenticator.configure_curve_callback(credentials_provider=_OnlyThisClient(client_public))
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.curve_server = True
        self._socket.curve_secretkey = server_secret
        self._socket.curve_publickey = server_public
        self._socket.setsockopt(zmq.LINGER, 500)
        self._socket.setsockopt(zmq.SNDHWM, 0)
        self._socket.setsockopt(zmq.RCVHWM, 0)
        self._socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self._socket.setsockopt(zmq.HEARTBEAT_IVL, HEARTBEAT_MS)
        self._socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, 6 * HEARTBEAT_MS)
        ports = [(address, self._socket.bind_to_random_port(f"tcp://{address}")) for address in listen]
        self.endpoint = Endpoint(
            addresses=tuple(f"tcp://{address}:{port}" for address, port in ports),
            server_public=server_public.decode(),
            client_public=client_public.decode(),
            client_secret=client_secret.decode(),
            epoch=epoch,
            host=socket.gethostname(),
            pid=os.getpid(),
        )
        self._loop.add_reader(self._socket.FD, self._drain)
        write_endpoint(path, self.endpoint)
        self._loop.call_soon(self._drain)

    def send(self, peer: bytes, message: Message) -> bool:
        """Queue ``message``; False if the peer is gone."""
        if self._socket.closed:
            return False
        try:
            self._socket.send_multipart([peer, pack(message)], zmq.NOBLOCK)
        except zmq.ZMQError:
            return False
        # The socket's descriptor is edge-triggered: sending may swallow the edge of a message that came in.
        if int(self._socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
            self._loop.call_soon(self._drain)
        return True

    def _drain(self) -> None:
        while not self._socket.closed and int(self._socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
            peer, *rest = self._socket.recv_multipart(zmq.NOBLOCK)
            try:
                message = unpack(rest[-1] if rest else b"")
            except ProtocolError as error:
                self._on_note(f"a message was not understood: {error}")
                self.send(peer, End(f"not understood: {error}"))
                continue
            self._take(peer, message)

    def _take(self, peer: bytes, message: Message) -> None:
        try:
            self._on_message(peer, message)
        except Exception as error:  # a peer's nonsense must not silence the others
            what = f"{type(message).__name__} makes no sense: {type(error).__name__}: {error}"
            self._on_note(f"a message was not understood: {what}")
            self.send(peer, End(what))

    def restore(self) -> None:
        """Write the endpoint file again if somebody has removed or replaced it."""
        with contextlib.suppress(OSError, ValueError):
            if not self._socket.closed and not self._is_in_place():
                write_endpoint(self._path, self.endpoint)

    def _is_in_place(self) -> bool:
        try:
            return self._epoch in self._path.read_text()
        except FileNotFoundError:
            return False

    def close(self) -> None:
        """Stop listening; the endpoint file is removed if it is still this launcher's."""
        self._loop.remove_reader(self._socket.FD)
        with contextlib.suppress(OSError, ValueError):
            if self._is_in_place():
                self._path.unlink()
        self._socket.close()
        self._authenticator.stop()
        self._context.term()
