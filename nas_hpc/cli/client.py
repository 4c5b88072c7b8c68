"""Short requests to the running launchers of a site, over their endpoints."""

from __future__ import annotations

import os
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from nas_hpc.cli.context import note
from nas_hpc.errors import LauncherGone, NasHpcError, ProtocolError, WorkFailed
from nas_hpc.site import Site
from nas_hpc.store.owner import is_dead, is_shared, read_owner
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
    read_endpoint,
)
from nas_hpc.wire.line import Line

WAKE_S = 2.0
"""How long a command waits for the launcher to take notice."""
QUERY_S = 5.0
_REQUEST = 1
"""Number of the only request on a connection."""


def live_endpoint(site: Site) -> Endpoint | None:
    """The endpoint of the site's only launcher; None if there is none or its process on this host is gone.

    Where several launchers may run there is none: each has a file of its own, see ``live_endpoints``. Raises
    ProtocolError if the file cannot be read.
    """
    endpoint = _live(site.endpoint)
    if endpoint is None or _owns(site, endpoint):
        return endpoint
    return None


def _owns(site: Site, endpoint: Endpoint) -> bool:
    """Whether it is the endpoint of who owns the database, where that has an owner: else it is an old one."""
    if not is_shared(site):
        return True
    owner = read_owner(site)
    return (
        owner is not None and not is_dead(owner) and (owner.host, owner.pid) == (endpoint.host, endpoint.pid)
    )


def live_endpoints(site: Site) -> list[Endpoint]:
    """The endpoints of all launchers of the site whose processes are not known to be gone.

    Raises ProtocolError if a file cannot be read.
    """
    found = (_live(path) for path in endpoint_files(site.run))
    return [endpoint for endpoint in found if endpoint is not None and _owns(site, endpoint)]


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

    Says so on stderr when it cannot be reached. One that owns the database has made the change itself.
    """
    if is_shared(site):
        return
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
    end = time.monotonic() + deadline_s
    line = Line(endpoint, deadline_s)
    try:
        line.send(message)
        while True:
            answer = line.receive(max(0.0, end - time.monotonic()))
            if isinstance(answer, Refused):
                raise WorkFailed(answer.message)
            if isinstance(answer, Accepted | Status):
                return answer
    finally:
        line.close()


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
