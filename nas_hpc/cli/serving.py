"""A site's own database server, for as long as a launcher needs it."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager

from nas_hpc.cli.context import note, open_database
from nas_hpc.errors import NasHpcError, StoreError
from nas_hpc.records import Lease
from nas_hpc.site import Site


@contextmanager
def serving(site: Site) -> Iterator[None]:
    """Start the own server of ``site`` if it is down and surely runs nowhere; end it after, unless another
    launcher uses it by then. Does nothing for a site without one, or whose server runs."""
    started = _start_if_down(site)
    try:
        yield
    finally:
        if started:
            _stop(site)


def _start_if_down(site: Site) -> bool:
    from nas_hpc.store.place import place_of

    place = place_of(site)
    if not place.owned:
        return False
    from nas_hpc.store.server import State, look
    from nas_hpc.store.starting import start

    if look(site).state not in (State.STOPPED, State.DIED):
        return False
    try:
        record = start(site, place)
    except StoreError:
        if look(site).state is State.RUNNING:  # another launcher was faster
            return False
        raise
    note(f"started the site's PostgreSQL server ({record.where}); it ends with this launcher")
    return True


def _is_of_another(lease: Lease) -> bool:
    mine = lease.host == socket.gethostname() and lease.pid == os.getpid()
    return not mine and lease.expires > time.time()


def _stop(site: Site) -> None:
    from nas_hpc.store.server import State, look, stop

    try:
        if look(site).state is not State.RUNNING:  # somebody ended it
            return
        with open_database(site, read_only=True) as store:
            others = [lease for lease in store.leases(live_only=True) if _is_of_another(lease)]
        if others:
            users = ", ".join(f"process {lease.pid} on {lease.host}" for lease in others)
            note(f"the site's PostgreSQL server stays: {users} uses it; end it with: nas-hpc db stop")
            return
        stop(site)
    except NasHpcError as error:
        note(f"note: the site's PostgreSQL server was not ended: {error}")
