"""A short connection of a command with the process that an endpoint file names."""

from __future__ import annotations

import socket as sockets
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from nas_hpc.errors import LauncherGone, ProtocolError
from nas_hpc.wire.codec import pack, unpack
from nas_hpc.wire.endpoint import Endpoint
from nas_hpc.wire.kinds import Message

if TYPE_CHECKING:
    import zmq

_NEVER_MS = 86_400_000
_LOOK_MS = 500


def in_order(endpoint: Endpoint) -> list[str]:
    """The addresses in the order in which they are worth trying: on the launcher's host its loopback first,
    elsewhere that last.
    """
    near = [address for address in endpoint.addresses if "//127." in address or "//[::1]" in address]
    far = [address for address in endpoint.addresses if address not in near]
    return near + far if endpoint.host == sockets.gethostname() else far + near


class Line:
    """Connected: who listens there has accepted our keys. All addresses are tried at once.

    Raises LauncherGone if nobody has within ``deadline_s``, ProtocolError for keys or addresses that are
    none.
    """

    def __init__(self, endpoint: Endpoint, deadline_s: float) -> None:
        import zmq

        self.endpoint = endpoint
        self._zmq = zmq
        self._context: zmq.Context[Any] = zmq.Context()
        self._socket: zmq.Socket[Any] | None = None
        self._monitor: zmq.Socket[Any] | None = None
        self._dealers: dict[Any, Any] = {}
        """By their monitors."""
        try:
            self._connect(time.monotonic() + deadline_s)
        except (zmq.ZMQError, ValueError) as error:
            self.close()
            raise ProtocolError(
                f"the endpoint of process {endpoint.pid} on {endpoint.host} is unusable: {error}"
            ) from error
        except BaseException:
            self.close()
            raise
        if self._socket is None:
            self.close()
            raise LauncherGone(
                f"the launcher (process {endpoint.pid} on {endpoint.host}) did not answer within "
                f"{deadline_s:g} s; it may be busy, stopped, or gone"
            )

    def _connect(self, deadline: float) -> None:
        zmq = self._zmq
        from zmq.utils.monitor import recv_monitor_message

        wanted = zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED | zmq.EVENT_CLOSED
        poller = zmq.Poller()
        for address in in_order(self.endpoint):
            dealer = self._dealer()
            monitor = dealer.get_monitor_socket(wanted)
            self._dealers[monitor] = dealer
            poller.register(monitor, zmq.POLLIN)
            dealer.connect(address)
        while self._socket is None and (left_ms := int(1000 * (deadline - time.monotonic()))) > 0:
            for monitor, _ in poller.poll(left_ms):
                event = recv_monitor_message(monitor)["event"]
                if event == zmq.EVENT_HANDSHAKE_SUCCEEDED and self._socket is None:
                    self._monitor, self._socket = monitor, self._dealers[monitor]
        for monitor in list(self._dealers):
            if monitor is not self._monitor:
                self._drop(monitor)

    def _drop(self, monitor: Any) -> None:
        """In this order: ZeroMQ's thread waits for ever to tell an event to a monitor that nobody reads."""
        dealer = self._dealers.pop(monitor)
        dealer.disable_monitor()
        monitor.close(linger=0)
        dealer.close(linger=0)

    def _dealer(self) -> Any:
        dealer = self._context.socket(self._zmq.DEALER)
        dealer.linger = 0
        dealer.sndhwm = dealer.rcvhwm = 0
        dealer.reconnect_ivl = 100  # until the deadline: it may be about to listen
        dealer.reconnect_ivl_max = 400
        dealer.heartbeat_ivl, dealer.heartbeat_timeout = 5_000, 20_000
        dealer.curve_serverkey = self.endpoint.server_public.encode()
        dealer.curve_publickey = self.endpoint.client_public.encode()
        dealer.curve_secretkey = self.endpoint.client_secret.encode()
        return dealer

    def send(self, message: Message) -> None:
        """Send ``message``."""
        assert self._socket is not None
        self._socket.send(pack(message))

    def receive(self, deadline_s: float, alive: Callable[[], bool] = lambda: True) -> Message:
        """The next message. Raises LauncherGone when the connection ends, when ``alive`` is false, or after
        ``deadline_s``; ProtocolError for a message that makes no sense."""
        zmq = self._zmq
        assert self._socket is not None
        end = time.monotonic() + deadline_s
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN)
        poller.register(self._monitor, zmq.POLLIN)
        while (left_ms := int(1000 * (end - time.monotonic()))) > 0:
            ready = dict(poller.poll(min(left_ms, _LOOK_MS)))
            if self._socket in ready:
                return unpack(self._socket.recv_multipart()[-1])
            if self._monitor in ready or not alive():
                raise LauncherGone(f"the connection to {self._who()} ended")
        raise LauncherGone(
            f"{self._who()} did not answer within {deadline_s:g} s; it may be busy, stopped, or gone"
        )

    def _who(self) -> str:
        return f"the launcher (process {self.endpoint.pid} on {self.endpoint.host})"

    def close(self) -> None:
        """End the connection."""
        for monitor in list(self._dealers):
            self._drop(monitor)
        self._socket = self._monitor = None
        self._context.destroy(linger=0)
