"""Making the data directory of a site's own PostgreSQL server: initdb, its settings, our role and database.

Nothing is trusted: roles log in by SCRAM, over the socket too. The superuser may not come over the network.
"""

from __future__ import annotations

import os
import pwd
import re
import secrets
import shutil
import signal
import stat
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nas_hpc.errors import SiteError, WorkFailed, WrongCall
from nas_hpc.files import replace_file
from nas_hpc.site import Site
from nas_hpc.store.place import OWN_DATABASE, OWN_USER, PASSWORD_FILE, write_secret
from nas_hpc.store.programs import Programs

SUPERUSER = "postgres"
INITDB_S = 600.0
"""A data directory has a thousand files; on a busy parallel file system that takes minutes."""

_SETTINGS = """
# Of nas-hpc. Addresses, port and socket directory are given when the server is started.
fsync = on
synchronous_commit = on
full_page_writes = on
shared_buffers = 64MB
max_connections = 250
max_wal_size = 512MB
jit = off
password_encryption = 'scram-sha-256'
unix_socket_permissions = 0700
tcp_keepalives_idle = 30
tcp_keepalives_interval = 10
tcp_keepalives_count = 3
idle_in_transaction_session_timeout = 60s
timezone = 'UTC'
log_timezone = 'UTC'
logging_collector = off
log_line_prefix = '%m [%p] '
log_checkpoints = off
log_min_error_statement = panic
"""


@dataclass(frozen=True, slots=True)
class Account:
    """The user who runs the server, where that is not the one who runs this process."""

    name: str
    uid: int
    gid: int

    def start(self) -> dict[str, Any]:
        """What ``subprocess`` has to be told."""
        return {"user": self.uid, "group": self.gid, "extra_groups": []}


def account_of(server_user: str) -> Account | None:
    """Who has to run the server; None: the present user. Raises WrongCall where that cannot be."""
    mine = os.geteuid()
    if not server_user:
        if mine == 0:
            raise WrongCall(
                "PostgreSQL does not run as root: call this as an ordinary user, or name one who is to run "
                "the server with --server-user NAME (postgres, for instance)"
            )
        return None
    try:
        found = pwd.getpwnam(server_user)
    except KeyError:
        raise WrongCall(f"--server-user {server_user}: there is no such user on this host") from None
    if found.pw_uid == 0:
        raise WrongCall(
            f"--server-user {server_user}: PostgreSQL does not run as root; name an ordinary user"
        )
    if found.pw_uid == mine:
        return None
    if mine != 0:
        raise WrongCall(
            f"--server-user {server_user}: only root can start a server as another user; leave it out"
        )
    return Account(found.pw_name, found.pw_uid, found.pw_gid)


def check_way(path: Path, account: Account) -> None:
    """Raise WrongCall if ``account`` cannot pass through the directories above ``path``."""
    for directory in reversed(Path(os.path.realpath(path)).parents):
        held = directory.stat()
        if held.st_uid == account.uid:
            bit = stat.S_IXUSR
        elif held.st_gid == account.gid:
            bit = stat.S_IXGRP
        else:
            bit = stat.S_IXOTH
        if not held.st_mode & bit:
            raise WrongCall(
                f"the user {account.name} cannot enter {directory} (mode {held.st_mode & 0o7777:04o}) and "
                f"so not run the server of {path}: chmod o+x {directory}, or name a site elsewhere"
            )


def environment() -> dict[str, str]:
    """For PostgreSQL's programs: what they need of this process's, which may hold secrets that are not for
    the server's user; messages in English."""
    kept = {name: value for name, value in os.environ.items() if name in _KEPT or name.startswith("NAS_HPC_")}
    return kept | {"LC_ALL": "C", "TZ": "UTC"}


def make(site: Site, programs: Programs, account: Account | None) -> Path:
    """Make SITE/postgres with our role and database; returns the file with their password.

    Raises WrongCall, SiteError, WorkFailed, leaving nothing behind.
    """
    secret = site.path / PASSWORD_FILE
    if account is not None:
        check_way(site.path, account)
    try:
        password = secrets.token_urlsafe(32)
        write_secret(secret, password)
        site.postgres.mkdir(mode=0o700)
        if account is not None:
            site.path.chmod(0o711)
            os.chown(site.postgres, account.uid, account.gid)
        with _readable(secret, site, account) as file:
            _initdb(site, programs, account, file)
        with (site.postgres / "postgresql.conf").open("a") as conf:
            conf.write(_SETTINGS)
        write_hba(site, account, "")
        _make_role(site, programs, account, password)
    except BaseException as error:
        remove(site)
        if isinstance(error, OSError):
            raise SiteError(f"{site.postgres} cannot be made: {why(str(error.strerror or error))}") from error
        raise
    return secret


def remove(site: Site) -> None:
    """Remove what ``make`` has made."""
    with uninterrupted():
        shutil.rmtree(site.postgres, ignore_errors=True)
        (site.path / PASSWORD_FILE).unlink(missing_ok=True)


def write_hba(site: Site, account: Account | None, subnet: str) -> None:
    """Who may connect: our role over the socket, and from ``subnet`` if there is one; the superuser here."""
    lines = [
        "# Of nas-hpc, written at each start. Nothing is trusted.",
        f"local  {OWN_DATABASE}  {OWN_USER}  scram-sha-256",
        f"local  all  {SUPERUSER}  scram-sha-256",
    ]
    if subnet:
        lines.append(f"host  {OWN_DATABASE}  {OWN_USER}  {subnet}  scram-sha-256")
    owner = None if account is None else (account.uid, account.gid)
    replace_file(site.postgres / "pg_hba.conf", "\n".join(lines) + "\n", owner=owner)


_KEPT = frozenset({"PATH", "LD_LIBRARY_PATH", "HOME", "TMPDIR"})
_CAUSE = re.compile(r"LOG:\s*((?:invalid|syntax error|unrecognized|could not|parameter) .*)")
"""What PostgreSQL says before it gives up."""
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def interrupted_later(again: bool = True) -> Iterator[None]:
    """A Ctrl-C inside is heeded at the end: it may not come between a process's start and our knowing it."""
    came: list[int] = []
    before: dict[int, Any] = {}
    try:
        for number in _ENDING:
            if signal.getsignal(number) is not signal.SIG_IGN:
                before[number] = signal.signal(number, lambda number, frame: came.append(number))
    except ValueError:  # not the main thread, which alone is interrupted
        pass
    try:
        yield
    finally:
        for ending, handler in before.items():
            signal.signal(ending, handler)
        if came and again:
            signal.raise_signal(came[0])


def uninterrupted() -> AbstractContextManager[None]:
    """A second Ctrl-C does not end the cleaning up after the first."""
    return interrupted_later(again=False)


@contextmanager
def _readable(secret: Path, site: Site, account: Account | None) -> Iterator[Path]:
    """The password in a file that initdb can read."""
    if account is None:
        yield secret
        return
    descriptor, name = tempfile.mkstemp(dir=site.path, prefix=".initdb-")
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(secret.read_text())
        os.chown(name, account.uid, account.gid)
        yield Path(name)
    finally:
        os.unlink(name)


def _initdb(site: Site, programs: Programs, account: Account | None, secret: Path) -> None:
    argv = [
        programs.path("initdb"),
        f"--pgdata={site.postgres}",
        f"--username={SUPERUSER}",
        f"--pwfile={secret}",
        "--auth-local=scram-sha-256",
        "--auth-host=scram-sha-256",
        "--data-checksums",
        "--encoding=UTF8",
        "--locale=C",
    ]
    _call(argv, account, "", f"initdb could not make {site.postgres}")


def _make_role(site: Site, programs: Programs, account: Account | None, password: str) -> None:
    """In single-user mode, for which no server has to listen. The password passes through a pipe."""
    argv = [
        programs.path("postgres"),
        "--single",
        "-D",
        str(site.postgres),
        "-c",
        "exit_on_error=on",
        SUPERUSER,
    ]
    statements = [
        f"CREATE ROLE {OWN_USER} LOGIN PASSWORD '{password}'",
        f"CREATE DATABASE {OWN_DATABASE} OWNER {OWN_USER}",
        f"REVOKE ALL ON DATABASE {OWN_DATABASE} FROM PUBLIC",
    ]
    sql = "".join(f"{statement};\n" for statement in statements)
    _call(argv, account, sql, f"the database of {site.path} could not be made")


def _call(argv: list[str], account: Account | None, given: str, what: str) -> None:
    """Run a program to its end. It, and all that it started, ends with an interruption of ours."""
    as_user: Mapping[str, Any] = account.start() if account is not None else {}
    process: subprocess.Popen[str] | None = None
    try:
        with interrupted_later():
            process = subprocess.Popen(
                argv,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                cwd="/",
                env=environment(),
                umask=0o077,
                start_new_session=True,
                **as_user,
            )
        said, _ = process.communicate(given, INITDB_S)
    except BaseException as error:
        if process is not None:
            with uninterrupted():
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.communicate()
        if isinstance(error, subprocess.TimeoutExpired):
            raise WorkFailed(f"{what}: {argv[0]} did not end within {INITDB_S:g} s") from None
        if isinstance(error, OSError):
            raise WorkFailed(f"{what}: {argv[0]} cannot be run: {error.strerror or error}") from error
        raise
    if process.returncode != 0:
        raise WorkFailed(f"{what}: {why(said)}")


def why(said: str) -> str:
    """What a program of PostgreSQL complained of, in a line."""
    for text, told in (
        ("No space left", "the disk is full; it needs about 80 MB"),
        ("quota", "your disk quota is used up; it needs about 80 MB"),
        ("Read-only file system", "the file system is mounted read-only"),
    ):
        if text.lower() in said.lower():
            return told
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    for pattern in (r"(?:FATAL|PANIC):\s*(.*)", r"(?:ERROR|error):\s*(.*)"):
        for line in lines:
            found = re.search(pattern, line)
            if found:
                cause = next(filter(None, (_CAUSE.search(line) for line in lines)), None)
                return f"{found[1]} ({cause[1]})"[:300] if cause is not None else found[1][:300]
    return lines[-1][:300] if lines else "it says nothing"
