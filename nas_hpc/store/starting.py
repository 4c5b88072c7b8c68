"""Starting a site's own PostgreSQL server, once, and where nothing of an earlier one can be alive."""

from __future__ import annotations

import os
import pwd
import signal
import subprocess
import sys
import time
from contextlib import suppress

from nas_hpc.errors import SiteError, StoreError, WorkFailed, WrongCall
from nas_hpc.site import Site, locks_reach_others
from nas_hpc.store import who
from nas_hpc.store.cluster import (
    Account,
    account_of,
    check_way,
    environment,
    interrupted_later,
    remove,
    uninterrupted,
    why,
    write_hba,
)
from nas_hpc.store.listening import Network, network_of, port_of, remove_socket, socket_directory
from nas_hpc.store.place import Place
from nas_hpc.store.programs import Programs, find_postgres
from nas_hpc.store.server import (
    LOCK,
    LOG,
    Life,
    Record,
    State,
    await_end,
    look,
    read_record,
    take_lock,
    write_record,
)
from nas_hpc.store.server import stop as stop_server

START_S = 300.0
"""After a crash it goes through its log before it is ready."""
LOCK_S = 3.0
"""Somebody who only looks holds the lock for an instant, the processes of a dead server for some more."""
_TRIES = 3
_LOOK_S = 0.03

_DETACH = """
import os, subprocess, sys
uid, gid, log, lock, *argv = sys.argv[1:]
account = dict(user=int(uid), group=int(gid), extra_groups=[]) if uid else {}
held = (int(lock),)
server = subprocess.Popen(argv, stdin=0, stdout=int(log), stderr=int(log), cwd="/", umask=0o077,
                          pass_fds=held, start_new_session=True, **account)
print(server.pid, flush=True)
os._exit(0)
"""
"""Nobody's child: the server outlives the command, and is no zombie of a launcher's."""


def start(site: Site, place: Place, *, interface: str = "", gone: str = "") -> Record:
    """Start the own server of ``site`` and wait until it can be used; returns where it listens.

    ``interface`` (else that of site.toml) has it listen there, too. ``gone`` names a host whose death the
    user vouches for. Raises WrongCall, SiteError, StoreError, WorkFailed; then none was started.
    """
    site.check_writable()
    account = account_of(place.server_user)
    if account is not None:
        check_way(site.path, account)
    if not (site.postgres / "PG_VERSION").is_file():
        raise SiteError(
            f"the site {site.path} has lost its database {site.postgres.name}/; restore it from a copy, or "
            "make a new site with: nas-hpc init NAME --postgres"
        )
    network = network_of(interface or place.interface)
    programs = find_postgres(int((site.postgres / "PG_VERSION").read_text()))
    lock = _lock(site)
    try:
        before = _check_dead(site, gone)
        _remove_left(site, before)
        for last in (False,) * (_TRIES - 1) + (True,):
            record = _try(site, programs, account, network, lock, before, last)
            if record is not None:
                return record
        raise AssertionError  # the last try returns or raises
    finally:
        os.close(lock)


def destroy(site: Site) -> None:
    """End the server that was just made, whatever it does, and remove all of it."""
    with uninterrupted():
        with suppress(StoreError, SiteError, WorkFailed):
            stop_server(site, at_once=True)
        with suppress(SiteError):
            record = read_record(site)
            if record is not None:
                remove_socket(record)
        remove(site)
        for path in (site.server, site.run / LOCK, site.log / LOG):
            path.unlink(missing_ok=True)


def _lock(site: Site) -> int:
    deadline = time.monotonic() + LOCK_S
    while (lock := take_lock(site)) < 0:
        life = look(site)
        if life.state in (State.RUNNING, State.ELSEWHERE) or time.monotonic() > deadline:
            raise _already(site, life)
        time.sleep(_LOOK_S)
    return lock


def _already(site: Site, life: Life) -> StoreError:
    name = f"the database server of {site.path}"
    if life.record is None or life.record.stopped:
        return StoreError(f"{name} is being started by another command; see: nas-hpc db status")
    if life.record.here:
        if life.state is State.RUNNING:
            return StoreError(f"{name} is running already ({life.record.where}); nothing was changed")
        return StoreError(f"{name} ({life.record.where}) has died, its processes still end; try again")
    return StoreError(
        f"{name} runs on another host ({life.record.where}); stop it there first: nas-hpc db stop   (of a "
        "host that has just gone the file system gives the lock back within minutes: try again then)"
    )


def _check_dead(site: Site, gone: str) -> Record | None:
    """The record of the server that ran last. Raises StoreError unless that is surely dead."""
    life = look_unlocked(site)
    record = life.record
    if record is None or life.state in (State.STOPPED, State.DIED):
        return record
    if life.state is State.RUNNING:
        raise _already(site, life)
    if gone and gone == record.host and not record.here:
        return record
    if gone and gone != record.host:
        raise WrongCall(f"--gone {gone}: the server of {site.path} was started on {record.host}")
    since = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(record.started))
    raise StoreError(
        f"the database server of {site.path} was started on another host ({record.where}, {since}) and "
        f"cannot be looked at from here: stop it there (nas-hpc db stop), or, if {record.host} is gone or "
        f"was rebooted since: nas-hpc db start --gone {record.host}"
    )


def look_unlocked(site: Site) -> Life:
    """``look`` of one who holds the lock himself."""
    record = read_record(site)
    if record is None or record.stopped:
        return Life(State.STOPPED, record)
    if record.here and who.is_alive(record.pid, record.start_time):
        return Life(State.RUNNING, record)  # a file system without locks
    if record.host == who.this_host() or locks_reach_others(site.run):
        return Life(State.DIED, record)
    return Life(State.UNKNOWN, record)


def _remove_left(site: Site, before: Record | None) -> None:
    """Remove what a server that died left behind: its pid may be anybody's by now, which PostgreSQL would
    take for a living server. Not while processes of it end: PostgreSQL itself looks out for those."""
    if before is None or before.stopped or who.working_in(site.postgres):
        return
    (site.postgres / "postmaster.pid").unlink(missing_ok=True)
    if before.boot_id == who.boot_id() or before.host == who.this_host():
        remove_socket(before)


def _try(
    site: Site, programs: Programs, account: Account | None, network: Network, lock: int,
    before: Record | None, last: bool,
) -> Record | None:  # fmt: skip
    """One start; None if another program took the port meanwhile and this was not the ``last`` try."""
    port = port_of(network, before)
    directory = socket_directory(site, account, before, port)
    write_hba(site, account, network.subnet)
    log = os.open(site.log / LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    record: Record | None = None
    try:
        offset = os.fstat(log).st_size
        with interrupted_later():
            pid = _spawn(site, programs, account, network, directory, port, log, lock)
            record = _record(pid, directory, port, network, account, programs)
            if record is not None:
                write_record(site, record)
        if record is not None and _is_ready(site, record):
            return record
        said = _said(site, offset)
        if "Address already in use" in said and network.address and not last:
            return None
        raise WorkFailed(
            f"the database server of {site.path} did not start: {why(said)}; see {site.log / LOG}"
        )
    except BaseException:
        with uninterrupted():
            _end(site, record, before)
            with suppress(OSError):
                os.rmdir(directory)
        raise
    finally:
        os.close(log)


def _spawn(
    site: Site, programs: Programs, account: Account | None, network: Network, directory: str, port: int,
    log: int, lock: int,
) -> int:  # fmt: skip
    user = (str(account.uid), str(account.gid)) if account is not None else ("", "")
    argv = [sys.executable, "-I", "-S", "-c", _DETACH, *user, str(log), str(lock), programs.path("postgres")]
    argv += ["-D", str(site.postgres)]
    for name, value in (
        ("listen_addresses", network.address),
        ("port", str(port)),
        ("unix_socket_directories", directory),
    ):
        argv += ["-c", f"{name}={value}"]
    started = subprocess.run(
        argv,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env=environment(),
        pass_fds=(log, lock),
        check=False,
    )
    if not started.stdout.strip().isdigit():
        words = started.stderr.strip().splitlines() or ["it says nothing"]
        raise WorkFailed(f"{programs.path('postgres')} cannot be started: {words[-1]}")
    return int(started.stdout)


def _record(
    pid: int, directory: str, port: int, network: Network, account: Account | None, programs: Programs
) -> Record | None:
    """None if the process has ended already."""
    try:
        ticks = who.start_ticks(pid)
    except OSError:
        return None
    return Record(
        host=who.this_host(),
        boot_id=who.boot_id(),
        pid=pid,
        start_time=ticks,
        started=time.time(),
        socket_directory=directory,
        port=port,
        addresses=(network.address,) if network.address else (),
        user=account.name if account is not None else _my_name(),
        version=programs.version,
    )


def _my_name() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:  # a container that knows no names
        return ""


def _is_ready(site: Site, record: Record) -> bool:
    """Wait until the server says so, or has ended; whether it is. Raises WorkFailed after a long time."""
    deadline = time.monotonic() + START_S
    while who.is_alive(record.pid, record.start_time):
        with suppress(OSError):
            lines = (site.postgres / "postmaster.pid").read_text().split("\n")
            if lines[0].strip() == str(record.pid) and len(lines) > 7 and lines[7].strip() == "ready":
                return True
        if time.monotonic() > deadline:
            raise WorkFailed(
                f"the database server of {site.path} was not ready within {START_S:g} s; see {site.log / LOG}"
            )
        time.sleep(_LOOK_S)
    return False


def _end(site: Site, record: Record | None, before: Record | None) -> None:
    """End a server that could not be used, and have the record say what it said before."""
    if record is not None and who.is_alive(record.pid, record.start_time):
        with suppress(OSError):
            os.kill(record.pid, signal.SIGQUIT)
        if not await_end(record, 10.0):
            with suppress(OSError):
                os.killpg(record.pid, signal.SIGKILL)
            await_end(record, 10.0)
    with suppress(OSError):
        if before is None:
            site.server.unlink(missing_ok=True)
        else:
            write_record(site, before)


def _said(site: Site, offset: int) -> str:
    with (site.log / LOG).open("rb") as file:
        file.seek(offset)
        return file.read(1 << 20).decode("utf-8", "replace")
