"""The socket on which searches and commands reach the launcher.

A ZeroMQ ROUTER on the loopback interface with CURVE: only who reads the endpoint file (mode 0600) has the
keys. Every launcher makes new ones.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable
from pathlib import Path

import zmq
from zmq.auth.thread import ThreadAuthenticator

from nas_hpc.errors import ProtocolError
from nas_hpc.wire import End, Endpoint, Message, pack, unpack, write_endpoint

HEARTBEAT_MS = 5_000


class _OnlyThisClient:
    """Accepts one CURVE public key."""

    def __init__(self, public: bytes) -> None:
        self._public = public

    def callback(self, domain: str, key: bytes) -> bool:
        """Whether the client with this key (Z85) may connect."""
        return key == self._public


class EndpointServer:
    """Receives messages in the running asyncio loop and sends to any peer that has spoken.

    ``on_message(peer, message)`` is called for each; what cannot be read is answered by nothing and noted.
    """

    def __init__(
        self,
        path: Path,
        epoch: str,
        on_message: Callable[[bytes, Message], None],
        on_note: Callable[[str], None],
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
        port = self._socket.bind_to_random_port("tcp://127.0.0.1")
        self.endpoint = Endpoint(
            addresses=(f"tcp://127.0.0.1:{port}",),
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
