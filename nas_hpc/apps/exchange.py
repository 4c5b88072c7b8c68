"""How the agents of a search speak with each other.

Two ways. Gradients go by MPI, whose waiting is fast and takes a whole core: it is used only when all agents
have something to give at once. While evaluations run, maybe for hours on cores that the agents share with
them, agents wait on a ZeroMQ socket: the first agent listens (CURVE keys of its own, which MPI has given to
the others, and to no file), and all others are connected with it. Messages are msgpack of plain values and
arrays.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import socket
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, NoReturn

import msgpack
import numpy as np
import zmq
from numpy.typing import NDArray
from zmq.auth.thread import ThreadAuthenticator
from zmq.utils.monitor import recv_monitor_message

from nas_hpc.errors import NasHpcError, ProtocolError, WorkFailed
from nas_hpc.launcher.endpoint import LOOPBACK, listen_on

Array = NDArray[Any]
CONNECT_S = 60.0
"""So long an agent tries to reach the first one, and that waits for the next of them."""
ANSWER_S = 300.0
"""An agent answers at once; one that dies is noticed by the MPI program, which ends all."""
LINGER_MS = 1_000
_HEARTBEAT_MS, _SILENCE_MS = 5_000, 30_000
_NEVER_MS = 86_400_000


class Said(NamedTuple):
    """A message."""

    agent: int
    """Who said it."""
    kind: str
    plain: Mapping[str, Any]
    arrays: Mapping[str, Array]


def pack(kind: str, plain: Mapping[str, Any], arrays: Mapping[str, Array]) -> bytes:
    """A message as bytes."""
    rows = {
        name: [one.dtype.str, one.shape, np.ascontiguousarray(one).tobytes()] for name, one in arrays.items()
    }
    body: bytes = msgpack.packb([kind, dict(plain), rows])
    return body


def unpack(agent: int, body: bytes) -> Said:
    """The message of ``body``. Raises ProtocolError for anything else."""
    try:
        kind, plain, rows = msgpack.unpackb(body)
        arrays = {
            name: np.frombuffer(data, np.dtype(kind_of)).reshape(shape)
            for name, (kind_of, shape, data) in rows.items()
        }
    except (ValueError, TypeError, msgpack.exceptions.UnpackException) as error:
        raise ProtocolError(f"a message of agent {agent} cannot be read: {error}") from error
    return Said(agent, kind, plain, arrays)


class Hub:
    """The first agent's end: it listens on ``addresses`` (IPv4) for ``others`` agents, numbered from 1."""

    def __init__(self, others: int, addresses: Sequence[str]) -> None:
        self._others = others
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        server_public, server_secret = zmq.curve_keypair()
        client_public, client_secret = zmq.curve_keypair()
        self._authenticator = ThreadAuthenticator(self._context)
        self._authenticator.start()
        self._authenticator.configure_curve_callback(credentials_provider=_Only(client_public))
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.curve_server = True
        self._socket.curve_secretkey, self._socket.curve_publickey = server_secret, server_public
        self._socket.linger = LINGER_MS
        self._socket.sndhwm = self._socket.rcvhwm = 0
        self._socket.router_mandatory = True
        _beat(self._socket)
        ports = [(one, self._socket.bind_to_random_port(f"tcp://{one}")) for one in addresses]
        self.card = json.dumps(
            {
                "addresses": [f"tcp://{address}:{port}" for address, port in ports],
                "keys": [key.decode() for key in (server_public, client_public, client_secret)],
            }
        )
        """By which the others find it and are let in."""
        self._peers: dict[int, bytes] = {}
        """By agent."""

    def assemble(self) -> None:
        """Wait until all are connected. Raises WorkFailed if they are not after a while."""
        while len(self._peers) < self._others:
            if not self._socket.poll(int(CONNECT_S * 1000)):
                missing = sorted(set(range(1, self._others + 1)) - self._peers.keys())
                raise WorkFailed(f"agent {missing[0]} cannot reach the first one on {socket.gethostname()}")
            peer, body = self._socket.recv_multipart()
            self._peers[int(unpack(-1, body).plain["agent"])] = peer

    def send(self, agent: int, kind: str, plain: Mapping[str, Any], arrays: Mapping[str, Array]) -> None:
        """Say something to an agent. One that is gone ends this process (see ``lost``)."""
        try:
            self._socket.send_multipart([self._peers[agent], pack(kind, plain, arrays)])
        except zmq.ZMQError:
            lost(f"agent {agent} is gone")

    def gather(self) -> dict[int, Said]:
        """The next message of each of the others. One that says nothing for long is taken for lost."""
        by_peer = {peer: agent for agent, peer in self._peers.items()}
        found: dict[int, Said] = {}
        while len(found) < self._others:
            if not self._socket.poll(int(ANSWER_S * 1000)):
                silent = min(self._peers.keys() - found.keys())
                lost(f"agent {silent} did not answer for {ANSWER_S:g} s")
            peer, body = self._socket.recv_multipart()
            said = unpack(by_peer[peer], body)
            found[said.agent] = said
        return found

    def close(self) -> None:
        """Tell all to end."""
        for peer in self._peers.values():
            with contextlib.suppress(zmq.ZMQError):
                self._socket.send_multipart([peer, pack("end", {}, {})])
        self._socket.close()
        self._authenticator.stop()
        self._context.term()


class Spoke:
    """The other agents' end: connected with the first one. Raises WorkFailed if that cannot be reached."""

    def __init__(self, agent: int, card: str) -> None:
        told = json.loads(card)
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        wanted = zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED | zmq.EVENT_CLOSED
        tried = {}
        for address in told["addresses"]:
            dealer = self._dealer(*(key.encode() for key in told["keys"]))
            tried[dealer.get_monitor_socket(wanted)] = dealer
            dealer.connect(address)
        self._monitor = self._first(list(tried))
        self._socket = tried.pop(self._monitor)
        for monitor, dealer in tried.items():
            dealer.disable_monitor()
            monitor.close(linger=0)
            dealer.close(linger=0)
        self.send("here", {"agent": agent}, {})

    def _dealer(self, server: bytes, public: bytes, secret: bytes) -> zmq.Socket[bytes]:
        dealer = self._context.socket(zmq.DEALER)
        dealer.curve_serverkey, dealer.curve_publickey, dealer.curve_secretkey = server, public, secret
        dealer.linger = LINGER_MS
        dealer.sndhwm = dealer.rcvhwm = 0
        dealer.reconnect_ivl = _NEVER_MS  # who loses the first agent ends
        _beat(dealer)
        return dealer

    def _first(self, monitors: list[zmq.Socket[bytes]]) -> zmq.Socket[bytes]:
        """The monitor of the connection that was accepted first."""
        poller = zmq.Poller()
        for monitor in monitors:
            poller.register(monitor, zmq.POLLIN)
        while ready := poller.poll(int(CONNECT_S * 1000)):
            for monitor, _ in ready:
                if recv_monitor_message(monitor)["event"] == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                    return next(one for one in monitors if one is monitor)
        raise WorkFailed("the first agent of this search cannot be reached")

    def send(self, kind: str, plain: Mapping[str, Any], arrays: Mapping[str, Array]) -> None:
        """Say something to the first agent."""
        self._socket.send(pack(kind, plain, arrays))

    def receive(self) -> Said:
        """What the first agent says next. If that is gone this process ends (see ``lost``)."""
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN)
        poller.register(self._monitor, zmq.POLLIN)
        while True:
            ready = dict(poller.poll())
            if self._socket in ready:
                return unpack(0, self._socket.recv())
            if (
                self._monitor in ready
                and recv_monitor_message(self._monitor)["event"] != zmq.EVENT_HANDSHAKE_SUCCEEDED
            ):
                if self._socket.poll(0):  # its last words came before its end
                    return unpack(0, self._socket.recv())
                lost("the first agent is gone")

    def close(self) -> None:
        """End the connection."""
        self._socket.disable_monitor()
        self._monitor.close(linger=0)
        self._socket.close()
        self._context.term()


class _Only:
    """Accepts one CURVE public key."""

    def __init__(self, public: bytes) -> None:
        self._public = public

    def callback(self, domain: str, key: bytes) -> bool:
        """Whether the client with this key (Z85) may connect."""
        return secrets.compare_digest(key, self._public)


def _beat(one: zmq.Socket[bytes]) -> None:
    one.heartbeat_ivl, one.heartbeat_timeout = _HEARTBEAT_MS, _SILENCE_MS


def lost(why: str) -> NoReturn:
    """End this agent, and so all: by a signal, as the launcher knows of searches that were lost, which it
    starts again. No agent can do without another."""
    os.write(2, f"error: {why}; the search goes on from its checkpoint when it is started again\n".encode())
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("unreachable")


class Alone:
    """One agent: nothing is averaged."""

    rank, size = 0, 1

    def add(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """The sum over all agents."""
        return values

    def mean(self, gradient: NDArray[np.float32], weight: int) -> tuple[NDArray[np.float32], int]:
        """The mean over all agents by weight, and the weights' sum; the same bits on all of them."""
        return gradient, weight


class Together(Alone):
    """All ranks of an MPI start. Sums are made by the first and given to all, so that all have the same
    bits."""

    met = False
    """Whether the agents of this process's start were connected, or were to be."""

    def __init__(self, communicator: Any) -> None:
        self._comm = communicator
        self.rank, self.size = communicator.rank, communicator.size

    def add(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """See ``Alone``."""
        mine = np.ascontiguousarray(values, np.float64)
        total = np.zeros_like(mine)
        self._comm.Reduce(mine, total, root=0)
        self._comm.Bcast(total, root=0)
        return total

    def mean(self, gradient: NDArray[np.float32], weight: int) -> tuple[NDArray[np.float32], int]:
        """See ``Alone``."""
        mine = np.append(gradient.astype(np.float64) * weight, weight)
        total = self.add(mine)
        whole = round(float(total[-1]))
        return (total[:-1] / max(1, whole)).astype(np.float32), whole

    def hosts(self) -> list[str]:
        """On which host each agent is; hosts of one name are told apart by their boots."""
        boot = ""
        with contextlib.suppress(OSError), open("/proc/sys/kernel/random/boot_id") as file:
            boot = file.read().strip()
        mine = np.zeros(320, np.uint8)
        text = f"{socket.gethostname()[:256]} {boot}".encode()
        mine[: len(text)] = np.frombuffer(text, np.uint8)
        found = np.zeros((self.size, len(mine)), np.uint8)
        self._comm.Allgather(mine, found)
        return [bytes(row).rstrip(b"\0").decode() for row in found]

    def tell(self, text: str) -> str:
        """What the first agent says, on all of them."""
        body = np.zeros(16_384, np.uint8)
        data = text.encode()
        body[: len(data)] = np.frombuffer(data, np.uint8)
        self._comm.Bcast(body, root=0)
        return bytes(body).rstrip(b"\0").decode()


def listen(together: Together) -> Hub | Spoke:
    """Connect all agents; the first one gets its hub, all others their spokes.

    Raises WorkFailed, on all agents, where they cannot be.
    """
    Together.met = True
    hosts = together.hosts()
    if together.rank:
        card = together.tell("")
        if not card:
            raise WorkFailed("the first agent cannot listen")
        return Spoke(together.rank, card)
    others = [host.split()[0] for host in hosts if host != hosts[0]]
    try:
        addresses = listen_on(others, os.environ.get("NAS_HPC_INTERFACE", "")) if others else [LOOPBACK]
        hub = Hub(together.size - 1, addresses)
    except (NasHpcError, OSError, zmq.ZMQError) as error:
        together.tell("")
        raise WorkFailed(f"the first agent cannot listen for the others: {error}") from error
    together.tell(hub.card)
    hub.assemble()
    return hub
