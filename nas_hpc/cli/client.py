"""Short requests to the running launcher of a site, over its endpoint."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nas_hpc.cli.context import note
from nas_hpc.errors import LauncherGone, ProtocolError, WorkFailed
from nas_hpc.site import Site
from nas_hpc.wire import (
    PROTOCOL,
    Accepted,
    Endpoint,
    Message,
    Query,
    Refused,
    Status,
    Wake,
    pack,
    read_endpoint,
    unpack,
)

if TYPE_CHECKING:
    import zmq

WAKE_S = 2.0
"""How long a command waits for the launcher to take notice."""
QUERY_S = 5.0
CONNECT_S = 1.0
"""An address of the launcher that does not answer for so long is left for its next one."""
_REQUEST = 1
"""Number of the only request on a connection."""


def live_endpoint(site: Site) -> Endpoint | None:
    """The endpoint of the site's launcher; None if there is none or its process on this host is gone.

    Raises ProtocolError if the file cannot be read.
    """
    try:
        endpoint = read_endpoint(site.endpoint)
    except LauncherGone:
        return None
    if endpoint.host == socket.gethostname() and not _is_alive(endpoint.pid):
        return None
    return endpoint


def wake(site: Site) -> None:
    """Tell a running launcher that the database has changed. Says so on stderr when it cannot be reached."""
    try:
        endpoint = live_endpoint(site)
        if endpoint is not None:
            _exchange(endpoint, Wake(PROTOCOL, _REQUEST), WAKE_S)
    except (LauncherGone, ProtocolError, WorkFailed) as error:
        note(f"note: the change is recorded, but the launcher was not told: {error}")


def query(site: Site, job: str = "", deadline_s: float = QUERY_S) -> dict[str, Any]:
    """The view of the site's running launcher, for ``job`` with the reason why it waits. Raises
    LauncherGone.
    """
    endpoint = live_endpoint(site)
    if endpoint is None:
        raise LauncherGone(f"no launcher is running on {site.path}; start one with: nas-hpc launcher")
    answer = _exchange(endpoint, Query(PROTOCOL, _REQUEST, job), deadline_s)
    if not isinstance(answer, Status):
        raise ProtocolError(f"the launcher answered a query with {type(answer).__name__}")
    return dict(answer.view)


def _exchange(endpoint: Endpoint, message: Message, deadline_s: float) -> Message:
    """Send ``message`` and return its answer. Raises LauncherGone after ``deadline_s``, WorkFailed when
    refused.
    """
    import zmq

    end = time.monotonic() + deadline_s
    context = zmq.Context()
    try:
        for position, address in enumerate(endpoint.addresses):
            dealer = _connected(context, endpoint, address, end, last=position == len(endpoint.addresses) - 1)
            if dealer is None:
                continue
            dealer.send(pack(message))
            while dealer.poll(max(0, int(1000 * (end - time.monotonic())))):
                answer = unpack(dealer.recv_multipart()[-1])
                if isinstance(answer, Refused):
                    raise WorkFailed(answer.message)
                if isinstance(answer, Accepted | Status):
                    return answer
            break
    except (zmq.ZMQError, ValueError) as error:  # keys or addresses that are none
        raise ProtocolError(
            f"the endpoint of process {endpoint.pid} on {endpoint.host} is unusable: {error}"
        ) from error
    finally:
        context.destroy(linger=0)
    raise LauncherGone(
        f"the launcher (process {endpoint.pid} on {endpoint.host}) did not answer within {deadline_s:g} s; "
        "it may be "
        "busy, stopped, or gone"
    )


def _connected(
    context: zmq.Context[Any], endpoint: Endpoint, address: str, end: float, *, last: bool
) -> zmq.Socket[Any] | None:
    """A socket on which the launcher has accepted our keys; None if it is not to be reached at ``address``
    before ``end``. Unless it is the last one, an address that does not answer soon is given up."""
    import zmq
    from zmq.utils.monitor import recv_monitor_message

    dealer: zmq.Socket[Any] = context.socket(zmq.DEALER)
    dealer.linger = 0
    dealer.curve_serverkey = endpoint.server_public.encode()
    dealer.curve_publickey = endpoint.client_public.encode()
    dealer.curve_secretkey = endpoint.client_secret.encode()
    monitor = dealer.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED)
    dealer.connect(address)
    until = end if last else min(end, time.monotonic() + CONNECT_S)
    try:
        if monitor.poll(max(0, int(1000 * (until - time.monotonic())))):
            recv_monitor_message(monitor)
            return dealer
    finally:
        dealer.disable_monitor()
        monitor.close(linger=0)
    dealer.close()
    return None


def _is_alive(pid: int) -> bool:
    """Whether a process of that number runs (a zombie does not)."""
    try:
        os.kill(pid, 0)
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except PermissionError:
        return True
    except (OSError, OverflowError):
        return False
    return fields[0] not in ("Z", "X")
