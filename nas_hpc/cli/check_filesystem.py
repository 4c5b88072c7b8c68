"""What ``nas-hpc doctor`` says of a site's file system: whose it is, clocks, locks, how long things take."""

from __future__ import annotations

import errno
import fcntl
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator

from nas_hpc.cli.checks import BAD, OK, WARN, Finding
from nas_hpc.config import Settings
from nas_hpc.errors import NasHpcError
from nas_hpc.site import Site, filesystem_type, is_local, locks_reach_others
from nas_hpc.store.owner import Owner, is_dead, is_shared, lock, open_lock, read_owner
from nas_hpc.store.place import place_of

CLOCK_WARN_S = 2.0
FILE_WARN_S, LOCK_WARN_S = 0.1, 0.05
TRIES = 9
POSTGRES = "use PostgreSQL (nas-hpc db move --postgres): SQLite needs locks that hold"


def check_filesystem(site: Site, settings: Settings) -> Iterator[Finding]:
    """Whether it is shared, and how it serves the job database."""
    kind = filesystem_type(site.path) or "unknown"
    said = settings.shared_filesystem
    local = is_local(site.path, said.value)
    by = "" if said.value == "auto" else f" (shared_filesystem = {said.value!r}, {said.origin})"
    yield Finding("file system", OK, f"{kind}, {'of this host' if local else 'shared with other hosts'}{by}")
    try:
        site.check_writable()
    except NasHpcError as error:
        yield Finding("writing", BAD, error.message, "commands that only read still work")
        return
    other = _elsewhere(site)
    yield _check_clock(site, other, settings.lease_s.value)
    yield from _check_locks(site, other, local)
    yield _check_latency(site)


def _elsewhere(site: Site) -> Owner | None:
    """A process of another host that owns the database now."""
    try:
        owner = read_owner(site) if is_shared(site) else None
    except NasHpcError:
        return None
    return owner if owner is not None and not owner.here and not is_dead(owner) else None


def _check_clock(site: Site, other: Owner | None, lease_s: float) -> Finding:
    """A file server with another time of day makes files look older or newer than they are; a host with
    another one makes its owner of the database look dead, or alive."""
    with tempfile.NamedTemporaryFile(dir=site.run, prefix=".doctor-") as file:
        before = time.time()
        file.write(b"x")
        file.flush()
        skew_s = os.fstat(file.fileno()).st_mtime - before
    if other is not None:  # by the file server's clock, which saw both write
        written = site.owner.stat().st_mtime
        apart_s = (other.expires - lease_s - written) + skew_s
        if abs(apart_s) > CLOCK_WARN_S:
            level = BAD if abs(apart_s) > lease_s / 2 else WARN
            advice = f"have the clocks set (NTP): an owner counts as dead after {lease_s:g} s (lease_s)"
            return Finding("clock", level, f"that of {other.host} differs by {apart_s:.0f} s", advice)
    if abs(skew_s) > CLOCK_WARN_S:
        advice = "have the clocks set (NTP); times in reports may be wrong"
        return Finding("clock", WARN, f"the file system's clock differs by {skew_s:.1f} s", advice)
    return Finding("clock", OK, time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(before)))


def _check_locks(site: Site, other: Owner | None, local: bool) -> Iterator[Finding]:
    advice = POSTGRES if place_of(site).kind == "sqlite" else ""
    for name, take in (("flock", fcntl.flock), ("fcntl", fcntl.lockf)):
        problem = lock_problem(site, take)
        if problem:
            yield Finding("locks", BAD if advice else WARN, f"{name}: {problem}", advice)
            return
    if local:
        yield Finding("locks", OK, "flock and fcntl hold")
    elif other is not None:
        yield _check_between(site, other)
    elif locks_reach_others(site.path):
        yield Finding("locks", OK, "flock and fcntl hold; by the mount's options between hosts, too")
    else:
        text = "hold on this host; whether they do between hosts cannot be tested by one alone"
        yield Finding("locks", OK, text, "run doctor here while a launcher runs on another host")


def _check_between(site: Site, other: Owner) -> Finding:
    """The owner holds its lock as long as it lives: here it must not be to be had."""
    descriptor = open_lock(site)
    try:
        free = lock(site, descriptor)
    finally:
        os.close(descriptor)
    if free and not is_dead(other) and read_owner(site) == other:
        text = f"the lock that {other} holds could be had here, too: locks do not hold between hosts"
        return Finding("locks", BAD, text, POSTGRES)
    return Finding("locks", OK, f"flock and fcntl hold, also between this host and {other.host}")


def lock_problem(site: Site, take: Callable[[int, int], object]) -> str:
    """What is wrong with the lock that ``take`` takes, "" if a second process is kept out."""
    with tempfile.NamedTemporaryFile(dir=site.run, prefix=".doctor-") as file:
        try:
            take(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            return f"refused: {error.strerror}"
        child = os.fork()
        if child == 0:  # a lock is of the open file or of the process: the child opens it anew
            code = 2
            try:
                descriptor = os.open(file.name, os.O_RDWR)
                take(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                code = 1
            except OSError as error:
                code = 0 if error.errno in (errno.EAGAIN, errno.EACCES) else 2
            finally:
                os._exit(code)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return {0: "", 1: "a second process got the lock too"}.get(code, "cannot be tested from a second process")


def _check_latency(site: Site) -> Finding:
    """Medians of what every change of a small file, and every taking of the database, costs."""
    with tempfile.TemporaryDirectory(dir=site.run, prefix=".doctor-") as directory:
        made = statistics.median(_make_file(f"{directory}/file") for _ in range(TRIES))
        locked = statistics.median(_lock_file(f"{directory}/file") for _ in range(TRIES))
    text = f"a file made safely (written, synced, renamed) {made * 1e3:.1f} ms, a lock {locked * 1e3:.2f} ms"
    if made > FILE_WARN_S or locked > LOCK_WARN_S:
        advice = "slow: have the site on a faster file system, or its jobs in PostgreSQL on a local disk"
        return Finding("latency", WARN, text, advice)
    return Finding("latency", OK, text)


def _make_file(path: str) -> float:
    begin = time.perf_counter()
    descriptor = os.open(f"{path}.new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        os.write(descriptor, b"x" * 1024)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    os.replace(f"{path}.new", path)
    return time.perf_counter() - begin


def _lock_file(path: str) -> float:
    descriptor = os.open(path, os.O_RDWR)
    try:
        begin = time.perf_counter()
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.lockf(descriptor, fcntl.LOCK_UN)
        return time.perf_counter() - begin
    finally:
        os.close(descriptor)
