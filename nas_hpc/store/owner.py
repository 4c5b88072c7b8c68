"""Which process owns the job database of a site on a file system that several hosts share.

SQLite's files bear one process at a time there: shared memory does not reach other hosts. The owner holds a
lock on ``run/owner.lock`` and says in ``run/owner.json`` who it is and until when it counts as alive; it
renews that while it works. The lock alone would do where locks hold between hosts, which nobody can be sure
of: so both count. Whoever finds an owner that is dead takes the database: on the owner's host its process
tells that, elsewhere the time in owner.json or the end of its batch job.

No SQL here: commands that reach the owner over its endpoint load none.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nas_hpc.config import Settings, load_settings
from nas_hpc.errors import LeaseLost, NasHpcError, SiteError, StoreError
from nas_hpc.files import replace_file
from nas_hpc.records import new_id
from nas_hpc.site import Site, filesystem_type, is_local, read_site_file
from nas_hpc.store.place import place_of
from nas_hpc.store.who import boot_id, is_alive, start_ticks, this_host

LAUNCHER, COMMAND = "launcher", "command"
"""Kinds of owners."""
WAIT_S = 20.0
"""So long a command waits for another command to be done with the database."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.02, 0.25
_RENEWALS = 12
"""Times that an owner may renew its word before that runs out."""

BatchEnded = Callable[[str, str], bool]
"""Whether the batch job (system, id) has surely ended."""
_NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOTTY})
_TEXT = {"id": str, "kind": str, "host": str, "boot_id": str, "batch_system": str, "batch_job": str}
_NUMBERS = {"pid": int, "start_time": int, "expires": float}


@dataclass(frozen=True, slots=True)
class Owner:
    """What owner.json says."""

    id: str
    kind: str
    host: str
    boot_id: str
    pid: int
    start_time: int
    """In clock ticks since boot: with pid and boot id the name of the process for ever."""
    batch_system: str = ""
    batch_job: str = ""
    """The batch job in which it runs; empty: none."""
    expires: float = 0.0
    """Until when it is alive for other hosts, UTC."""

    @property
    def here(self) -> bool:
        """Whether it is a process of this host."""
        return self.host == this_host()

    def __str__(self) -> str:
        what = "a launcher" if self.kind == LAUNCHER else "a command"
        where = "this host" if self.here else self.host
        return f"{what} (process {self.pid} on {where})"


class Occupied(SiteError):
    """Somebody else owns the database."""

    def __init__(self, site: Site, owner: Owner | None, text: str = "") -> None:
        super().__init__(text or _occupied(site, owner))
        self.owner = owner


def is_shared(site: Site) -> bool:
    """Whether the job database of ``site`` is SQLite on a file system of several hosts, by the setting
    ``shared_filesystem`` and the mount. Raises ConfigError, SiteError."""
    body = read_site_file(site)
    if place_of(site).kind != "sqlite":
        return False
    return not is_local(site.path, _settings(site, body).shared_filesystem.value)


def _settings(site: Site, body: dict[str, Any] | None = None) -> Settings:
    values = read_site_file(site) if body is None else body
    return load_settings(os.environ, site_values=values, site_file=str(site.file))


# -- the record --------------------------------------------------------------------------------------
def read_owner(site: Site) -> Owner | None:
    """The owner that owner.json names; None if there is none."""
    for _ in range(3):
        try:
            body = json.loads(site.owner.read_text())
            fields = {name: kind(body.get(name) or kind()) for name, kind in {**_TEXT, **_NUMBERS}.items()}
            return Owner(**fields)
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno != errno.ESTALE:  # NFS: it was replaced between two steps of the reading
                raise SiteError(f"{site.owner} cannot be read: {error.strerror or error}") from error
        except (ValueError, TypeError, AttributeError) as error:
            raise SiteError(
                f"{site.owner} is no record of an owner ({error}); remove it if no launcher runs on the site"
            ) from error
    return None


def is_dead(owner: Owner, batch_ended: BatchEnded | None = None) -> bool:
    """Whether the death of ``owner`` is sure: by its process here, elsewhere by time or its batch job."""
    if owner.here:
        return owner.boot_id != boot_id() or not is_alive(owner.pid, owner.start_time)
    if owner.expires <= time.time():
        return True
    return bool(batch_ended and owner.batch_job and batch_ended(owner.batch_system, owner.batch_job))


def _write_owner(site: Site, owner: Owner) -> None:
    replace_file(site.owner, json.dumps({name: getattr(owner, name) for name in Owner.__slots__}))


# -- owning ------------------------------------------------------------------------------------------
class Ownership:
    """This process owns the database of ``site``. Several parts of it may say so (``own``); the last one
    that releases gives it up."""

    def __init__(self, site: Site, descriptor: int, owner: Owner, lease_s: float) -> None:
        self.site, self.owner = site, owner
        self._descriptor, self._lease_s = descriptor, lease_s
        self._renewed = time.monotonic()
        self.holders = 1

    def check(self) -> None:
        """Before each transaction that writes: renew what owner.json says when it is time.

        Raises LeaseLost if somebody else owns the database by now: this process was stopped for long, on a
        file system whose locks do not hold between hosts.
        """
        silent_s = time.monotonic() - self._renewed
        if silent_s < self._lease_s / _RENEWALS:
            return
        try:
            self._renew(silent_s)
        except (OSError, SiteError) as error:  # trouble that may pass
            if silent_s >= self._lease_s:
                said = getattr(error, "strerror", None) or error
                told = StoreError(f"{self.site.owner} cannot be renewed: {said}")
                told.transient = True
                raise told from error
            return
        self._renewed = time.monotonic()

    def _renew(self, silent_s: float) -> None:
        found = read_owner(self.site)
        if (found is None and silent_s >= self._lease_s) or (found and found.id != self.owner.id):
            who = str(found) if found else "another process"
            raise LeaseLost(
                f"{self.site.path} was silent for {silent_s:.0f} s and is owned by {who} now: nothing more "
                "may be written here"
            )
        self.owner = replace(self.owner, expires=time.time() + self._lease_s)
        _write_owner(self.site, self.owner)

    def _give_up(self) -> None:
        with contextlib.suppress(OSError, NasHpcError):
            found = read_owner(self.site)
            if found is not None and found.id == self.owner.id:
                self.site.owner.unlink()
        os.close(self._descriptor)  # and with it the lock

    def release(self) -> None:
        """One holder less."""
        with _guard:
            self.holders -= 1
            if self.holders == 0:
                _mine.pop(self.site.path, None)
                self._give_up()


_guard = threading.Lock()
_mine: dict[Path, Ownership] = {}
"""What this process owns, by the site's path. A second descriptor of the lock's file must not be opened: to
close any of them gives a process's locks up."""


def own(
    site: Site,
    kind: str = COMMAND,
    *,
    wait_s: float = WAIT_S,
    batch: tuple[str, str] = ("", ""),
    batch_ended: BatchEnded | None = None,
    end_stopped: Callable[[Owner], object] | None = None,
) -> Ownership:
    """Make this process the owner of the site's database; it is for the caller to ``release`` it.

    Other commands are waited for, at most ``wait_s``. ``batch`` is the batch job (system, id) in which this
    process runs; ``end_stopped`` ends a process of this host that holds the lock beyond its time.

    Raises Occupied, naming who owns it, and SiteError where the file system has no locks or cannot be
    written.
    """
    deadline, pause_s = time.monotonic() + wait_s, FIRST_PAUSE_S
    while True:
        with _guard:
            mine = _mine.get(site.path)
            if mine is not None and mine.owner.pid == os.getpid():
                mine.holders += 1
                return mine
            got = _try(site, kind, batch, batch_ended)
            if isinstance(got, Ownership):
                _mine[site.path] = got
                return got
        other = got
        if end_stopped and other and other.here and other.expires <= time.time() and not is_dead(other):
            end_stopped(other)
            end_stopped = None
            continue
        launcher = other is not None and other.kind == LAUNCHER and not is_dead(other, batch_ended)
        if launcher or time.monotonic() >= deadline:
            raise Occupied(site, other)
        time.sleep(pause_s)
        pause_s = min(pause_s * 1.5, LONGEST_PAUSE_S)


def is_owner(site: Site) -> bool:
    """Whether this process owns the database."""
    with _guard:
        mine = _mine.get(site.path)
        return mine is not None and mine.owner.pid == os.getpid()


@contextmanager
def holding(site: Site, kind: str, **options: Any) -> Iterator[Ownership | None]:
    """``own`` the database in the meantime, where it has owners: else there is nothing to hold."""
    if not is_shared(site):
        yield None
        return
    ownership = own(site, kind, **options)
    try:
        yield ownership
    finally:
        ownership.release()


def _try(
    site: Site, kind: str, batch: tuple[str, str], batch_ended: BatchEnded | None
) -> Ownership | Owner | None:
    """The ownership, or who has it (None: somebody who has not said yet)."""
    descriptor = open_lock(site)
    try:
        if not lock(site, descriptor):
            found = read_owner(site)
            os.close(descriptor)
            return found
        found = read_owner(site)
        if found is not None and not is_dead(found, batch_ended):
            os.close(descriptor)  # alive, and yet without the lock: locks do not hold here
            return found
        lease_s = _settings(site).lease_s.value
        owner = Owner(
            new_id(), kind, this_host(), boot_id(), os.getpid(), start_ticks(os.getpid()), *batch,
            expires=time.time() + lease_s,
        )  # fmt: skip
        try:
            _write_owner(site, owner)
        except OSError as error:
            raise SiteError(f"{site.owner} cannot be written: {_advice(error)}") from error
        return Ownership(site, descriptor, owner, lease_s)
    except BaseException:
        with contextlib.suppress(OSError):
            os.close(descriptor)
        raise


def open_lock(site: Site) -> int:
    """A descriptor of the lock's file. Raises SiteError."""
    path = site.run / "owner.lock"
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise SiteError(f"{path} cannot be opened: {_advice(error)}") from error


def lock(site: Site, descriptor: int) -> bool:
    """Take the lock, as SQLite takes its own (fcntl); whether it was free. Raises SiteError where the file
    system has none."""
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        if error.errno in _NO_LOCKS:
            kind = filesystem_type(site.path) or "unknown"
            raise SiteError(
                f"the file system of {site.path} ({kind}) has no locks ({error.strerror}), without which "
                "SQLite is not safe: use PostgreSQL (nas-hpc init SITE --postgres), or a site elsewhere"
            ) from error
        raise SiteError(f"{site.run}/owner.lock cannot be locked: {error.strerror or error}") from error
    return True


def _advice(error: OSError) -> str:
    advice = {
        errno.EROFS: "the file system is mounted read-only; only commands that read work",
        errno.EACCES: "no permission; only its user may write to a site",
        errno.ENOSPC: "the disk is full; free some space",
        errno.EDQUOT: "your disk quota is used up; free some space",
    }
    return advice.get(error.errno or 0, str(error.strerror or error))


def _occupied(site: Site, owner: Owner | None) -> str:
    if owner is None:
        return f"{site.path} is being used by another process, which has not said who it is; try again"
    if owner.here and owner.kind == LAUNCHER:
        return f"{site.path} is already run by {owner}; stop it, or let it do the work"
    left_s = owner.expires - time.time()
    if owner.here or left_s <= 0:
        late = "" if owner.here else ", though its time has run out: it is stopped, or cut off"
        return f"{site.path} is held by {owner}{late}; end it there, or try again"
    return (
        f"{site.path} is run by {owner}, another host; if that is gone, its time ends in {left_s:.0f} s: try "
        "again then"
    )
