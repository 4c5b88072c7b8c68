"""The life of a site's own PostgreSQL server: started, looked at, stopped, recognised as dead.

run/postgres.json says where it listens, or listened last. The server and all of its processes hold
run/postgres.lock open and locked while one of them lives: who cannot have that lock has a living server
before him, on whatever host; who can have it on a file system whose locks reach all hosts, a dead one.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from enum import Enum
from pathlib import Path
from urllib.parse import quote, urlencode

from nas_hpc.errors import SiteError, StoreError, WorkFailed
from nas_hpc.files import replace_file
from nas_hpc.site import Site, locks_reach_others
from nas_hpc.store import who
from nas_hpc.store.place import OWN_DATABASE, OWN_USER

LOCK = "postgres.lock"
LOG = "postgres.log"
STOP_S = 120.0
_LOOK_S = 0.05


class State(Enum):
    """What is known of a server."""

    RUNNING = "running"
    STOPPED = "stopped"
    DIED = "died"
    ELSEWHERE = "running on another host"
    UNKNOWN = "unknown, its host cannot be looked at from here"


@dataclass(frozen=True, slots=True)
class Record:
    """run/postgres.json."""

    host: str
    boot_id: str
    pid: int
    start_time: int
    """The process's start in clock ticks since boot."""
    started: float
    socket_directory: str
    port: int
    addresses: tuple[str, ...]
    """On which it listens besides its socket."""
    user: str
    """Of the operating system, who runs it."""
    version: str
    stopped: float = 0.0
    """When it was stopped in order; 0 while it was not."""

    @property
    def where(self) -> str:
        """For messages."""
        return f"process {self.pid} on {self.host}"

    @property
    def here(self) -> bool:
        """Whether it was started under this boot of this host."""
        return self.boot_id == who.boot_id() and self.host == who.this_host()


@dataclass(frozen=True, slots=True)
class Life:
    """A server's state, and the record that tells it."""

    state: State
    record: Record | None = None


def read_record(site: Site) -> Record | None:
    """The record; None if there is none. Raises SiteError for one that cannot be read."""
    try:
        body = json.loads(site.server.read_text())
        return Record(**{**body, "addresses": tuple(body["addresses"])})
    except FileNotFoundError:
        return None
    except OSError as error:
        raise SiteError(f"{site.server} cannot be read: {error.strerror or error}") from None
    except (ValueError, TypeError, KeyError):
        raise SiteError(
            f"{site.server} is damaged: end the server by hand if it runs (kill -INT its process), remove "
            "the file, then: nas-hpc db start"
        ) from None


def write_record(site: Site, record: Record) -> None:
    """Replace the record."""
    replace_file(site.server, json.dumps(asdict(record)))


def look(site: Site) -> Life:
    """What is known of the server of ``site``."""
    record = read_record(site)
    if record is None or record.stopped:
        return Life(State.UNKNOWN if is_locked(site) else State.STOPPED, record)
    if record.here and who.is_alive(record.pid, record.start_time):
        return Life(State.RUNNING, record)
    if is_locked(site):  # of another host, or of its processes that have yet to end
        return Life(State.UNKNOWN if record.here else State.ELSEWHERE, record)
    if record.host == who.this_host() or locks_reach_others(site.run):
        return Life(State.DIED, record)
    return Life(State.UNKNOWN, record)


def take_lock(site: Site) -> int:
    """The server's lock, as a descriptor to be inherited; -1 where somebody has it."""
    descriptor = os.open(site.run / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return -1
    except OSError:  # a file system without locks: the record has to do
        pass
    return descriptor


def is_locked(site: Site) -> bool:
    """Whether a server, or one that is being started, holds the lock."""
    try:
        descriptor = os.open(site.run / LOCK, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return False


def url_of(site: Site) -> str:
    """Where the own server of ``site`` is reached from here, without the password.

    Raises StoreError, which is transient, if it does not run, or not where it could be reached.
    """
    record = read_record(site)
    if record is not None and not record.stopped:
        alive = record.here and who.is_alive(record.pid, record.start_time)
        beside = record.boot_id == who.boot_id() and record.host != who.this_host()  # another container
        reachable = socket_of(record).exists() or not record.addresses  # a batch job may have its own /tmp
        if (alive and reachable) or (beside and socket_of(record).exists()):
            return _url(record, record.socket_directory)
        if (alive or not record.here) and record.addresses:
            return _url(record, record.addresses[0])
    error = StoreError(_unreachable(site))
    error.transient = True
    raise error


def not_answering(site: Site, error: StoreError) -> StoreError:
    """What to say instead of ``error`` of a server that should run and could not be reached."""
    life = look(site)
    if life.record is None or life.state is State.RUNNING:
        return error
    told = _unreachable(site)
    if life.state in (State.ELSEWHERE, State.UNKNOWN) and life.record.addresses:
        host = life.record.host
        told = f"{error}; if {host} is gone: nas-hpc db start --gone {host}"
    better = StoreError(told)
    better.transient = True
    return better


def _unreachable(site: Site) -> str:
    life = look(site)
    name = f"the database server of {site.path}"
    if life.record is None or life.state is State.STOPPED:
        return f"{name} is not running; start it, on the host where it is to run, with: nas-hpc db start"
    where = life.record.where
    if life.state is State.DIED:
        return f"{name} ({where}) has died; nothing is lost, start it with: nas-hpc db start"
    if life.record.here:
        return f"{name} ({where}) is ending, or being started; try again, or see: nas-hpc db status"
    return (
        f"{name} runs on {life.record.host} and has only a socket there: call this on {life.record.host}, or "
        f"restart it there with: nas-hpc db stop; nas-hpc db start --interface NAME   (if {life.record.host} "
        f"is gone: nas-hpc db start --gone {life.record.host})"
    )


def _url(record: Record, host: str) -> str:
    options = {"host": host, "port": str(record.port)}
    with suppress(ImportError):
        from psycopg import pq

        if pq.version() >= 160000:  # a false server gets no password in the clear
            options["require_auth"] = "scram-sha-256"
        if host == record.socket_directory and record.user:
            options["requirepeer"] = record.user
    return f"postgresql://{OWN_USER}@/{OWN_DATABASE}?{urlencode(options, quote_via=quote, safe='/')}"


def socket_of(record: Record) -> Path:
    """The Unix socket."""
    return Path(record.socket_directory, f".s.PGSQL.{record.port}")


def stop(site: Site, *, at_once: bool = False) -> Record:
    """End the server in order (its clients are sent away) and wait for that; returns what ran.

    ``at_once`` leaves it without a last checkpoint. Raises StoreError where it does not run here.
    """
    life = look(site)
    if life.record is None or life.state in (State.STOPPED, State.DIED):
        raise StoreError(f"the database server of {site.path} is not running")
    record = life.record
    if life.state is not State.RUNNING:
        raise StoreError(
            f"the database server of {site.path} ({record.where}) cannot be stopped from here: call  nas-hpc "
            f"db stop  on {record.host}"
        )
    try:
        os.kill(record.pid, signal.SIGQUIT if at_once else signal.SIGINT)
    except ProcessLookupError:
        pass
    except PermissionError:
        raise StoreError(
            f"the database server of {site.path} ({record.where}) is run by {record.user}: stop it as that "
            "user or as root"
        ) from None
    if not await_end(record, STOP_S):
        raise WorkFailed(
            f"the database server of {site.path} ({record.where}) has not ended within {STOP_S:g} s; see "
            f"{site.log / LOG}"
        )
    record = replace(record, stopped=time.time())
    write_record(site, record)
    with suppress(OSError):
        os.rmdir(record.socket_directory)  # its socket is gone; the next start makes it again
    return record


def await_end(record: Record, timeout_s: float) -> bool:
    """Wait until the server of this host is gone; whether it is."""
    deadline = time.monotonic() + timeout_s
    while who.is_alive(record.pid, record.start_time):
        if time.monotonic() > deadline:
            return False
        time.sleep(_LOOK_S)
    return True
