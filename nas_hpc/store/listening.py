"""Where a site's own PostgreSQL server listens: a socket in a private directory, one network interface."""

from __future__ import annotations

import hashlib
import ipaddress
import os
import re
import socket
import stat
import tempfile
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from nas_hpc.errors import WorkFailed, WrongCall
from nas_hpc.site import Site
from nas_hpc.store.cluster import Account, check_way
from nas_hpc.store.server import Record

LONGEST_SOCKET = 107
"""Bytes of a Unix socket's path; sites on parallel file systems have longer ones."""
PORT = 5432


@dataclass(frozen=True, slots=True)
class Network:
    """Where a server listens besides its socket; nowhere if empty."""

    address: str = ""
    subnet: str = ""


def network_of(interface: str) -> Network:
    """The address and subnet of a network interface. Raises WrongCall if there is no such."""
    if interface in ("", "none"):
        return Network()
    by_name = {
        name: [one for one in addresses if one.family == socket.AF_INET]
        for name, addresses in psutil.net_if_addrs().items()
    }
    found = by_name.get(interface)
    if not found:
        known = ", ".join(sorted(name for name, addresses in by_name.items() if addresses))
        raise WrongCall(f"--interface {interface!r} has no address on this host; there are {known}")
    address, mask = found[0].address, found[0].netmask or "255.255.255.255"
    return Network(address, str(ipaddress.ip_network(f"{address}/{mask}", strict=False)))


def port_of(network: Network, before: Record | None) -> int:
    """That of the last time, if it is free; a socket of its own directory collides with nobody."""
    wanted = before.port if before is not None else PORT
    if not network.address:
        return wanted
    for port in (wanted if before is not None and before.addresses else 0, 0):
        with closing(socket.socket(socket.AF_INET, socket.SOCK_STREAM)) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with suppress(OSError):
                probe.bind((network.address, port))
                return int(probe.getsockname()[1])
    raise WorkFailed(f"no port of {network.address} is free")


def socket_directory(site: Site, account: Account | None, before: Record | None, port: int) -> str:
    """A private directory for the socket, with a short path; the same at every start on this host.

    TMPDIR comes first: the directory of XDG_RUNTIME_DIR goes when its user logs out, and the server stays.
    """
    owner = account.uid if account is not None else os.geteuid()
    key = hashlib.sha256(f"{owner}:{os.path.realpath(site.path)}".encode()).hexdigest()[:12]
    for base in _bases(account):
        for name in (f"nas-hpc-{key}", ""):
            path = Path(base, name or f"nas-hpc-{key}-{os.urandom(3).hex()}")
            if len(os.fsencode(path)) + len(f"/.s.PGSQL.{port}") > LONGEST_SOCKET:
                break
            if _make_private(path, owner, account):
                return str(path)
    raise WorkFailed(
        "no directory for the server's socket can be made: have TMPDIR name a directory with a short path in "
        "which you may write"
    )


def _bases(account: Account | None) -> Iterator[str]:
    yield from (os.environ["TMPDIR"],) if os.environ.get("TMPDIR", "").startswith("/") else ()
    yield "/tmp"
    if account is None and os.environ.get("XDG_RUNTIME_DIR", "").startswith("/"):
        yield os.environ["XDG_RUNTIME_DIR"]
    yield tempfile.gettempdir()


def _make_private(path: Path, owner: int, account: Account | None) -> bool:
    """Make ``path``, or find it made, as a directory of ``owner`` alone; whether it is that."""
    try:
        with suppress(FileExistsError):
            path.mkdir(mode=0o700)
            if account is not None:
                os.chown(path, account.uid, account.gid)
        if account is not None:
            check_way(path, account)
        held = path.lstat()
        return stat.S_ISDIR(held.st_mode) and held.st_uid == owner and not held.st_mode & 0o077
    except (OSError, WrongCall):
        return False


_SOCKET = re.compile(r"^\.s\.PGSQL\.\d+(\.lock)?$")


def remove_socket(record: Record) -> None:
    """Remove what a server that was killed left of its socket."""
    for entry in Path(record.socket_directory).glob(".s.PGSQL.*"):
        if _SOCKET.match(entry.name):
            entry.unlink(missing_ok=True)
    with suppress(OSError):
        os.rmdir(record.socket_directory)
