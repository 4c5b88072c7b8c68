"""Short requests to the running launchers of a site, over their endpoints."""

from __future__ import annotations

import os
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nas_hpc.cli.context import note
from nas_hpc.errors import LauncherGone, NasHpcError, ProtocolError, WorkFailed
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
    endpoint_files,
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
    """The endpoint of the site's only launcher; None if there is none or its process on this host is gone.

    Where several launchers may run there is none: each has a file of its own, see ``live_endpoints``. Raises
    ProtocolError if the file cannot be read.
    """
    return _live(site.endpoint)


def live_endpoints(site: Site) -> list[Endpoint]:
    """The endpoints of all launchers of the site whose processes are not known to be gone.

    Raises ProtocolError if a file cannot be read.
    """
    found = (_live(path) for path in endpoint_files(site.run))
    return [endpoint for endpoint in found if endpoint is not None]


def several(site: Site) -> bool:
    """Whether the launchers of the site have files of their own: several may run."""
    return any(path != site.endpoint for path in endpoint_files(site.run))


def _live(path: Path) -> Endpoint | None:
    try:
        endpoint = read_endpoint(path)
    except LauncherGone:
        return None
    if endpoint.host == socket.gethostname() and not _is_alive(endpoint.pid):
        return None
    return endpoint


def wake(site: Site) -> None:
    """Tell a site's only launcher that the database has changed; several are told by the database itself.

    Says so on stderr when it cannot be reached.
    """
    try:
        endpoint = live_endpoint(site)
        if endpoint is not None:
            _exchange(endpoint, Wake(PROTOCOL, _REQUEST), WAKE_S)
    except (LauncherGone, ProtocolError, WorkFailed) as error:
        note(f"note: the change is recorded, but the launcher was not told: {error}")


def query(site: Site, job: str = "", deadline_s: float = QUERY_S) -> list[dict[str, Any]]:
    """The views of the site's running launchers, for ``job`` with the reason why it waits; the oldest first.

    Names on stderr those that do not answer. Raises LauncherGone if none runs, the first one's error if none
    answers.
    """
    endpoints = live_endpoints(site)
    if not endpoints:
        raise LauncherGone(f"no launcher is running on {site.path}; start one with: nas-hpc launcher")
    with ThreadPoolExecutor(len(endpoints)) as threads:
        answers = list(threads.map(partial(_view, job=job, deadline_s=deadline_s), endpoints))
    views = [one for one in answers if not isinstance(one, NasHpcError)]
    errors = [one for one in answers if isinstance(one, NasHpcError)]
    if not views:
        raise errors[0]
    for error in errors:
        note(f"note: {error}")
    return sorted(views, key=lambda view: float(view.get("started") or 0.0))


def _view(endpoint: Endpoint, job: str, deadline_s: float) -> dict[str, Any] | NasHpcError:
    try:
        answer = _exchange(endpoint, Query(PROTOCOL, _REQUEST, job), deadline_s)
    except (LauncherGone, ProtocolError, WorkFailed) as error:
        return error
    if not isinstance(answer, Status):
        return ProtocolError(f"the launcher answered a query with {type(answer).__name__}")
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
