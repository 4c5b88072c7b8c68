"""A real PostgreSQL server for tests: one per process of pytest, a database per test.

It runs as the user himself, or as an ordinary one where the tests run as root, which it refuses. It listens
on a socket in a directory of its own, without passwords, and on 127.0.0.1 with them. It ends with the process
that started it, however that ends.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import importlib.util
import itertools
import os
import pwd
import shutil
import signal
import socket
import subprocess
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from tests.support import TEST_ID, new_directory, wait_until

PLACES = ("/usr/lib/postgresql/*/bin", "/usr/pgsql-*/bin", "/usr/local/pgsql/bin", "/opt/postgresql*/bin")
"""Where distributions put the server's programs, which are in no PATH."""
USERS = ("postgres", "nobody")
"""As whom root runs it."""
PASSWORD = "correct horse"
PR_SET_PDEATHSIG = 1


def programs() -> Path | None:
    """The directory of initdb and postgres."""
    for program in filter(None, [shutil.which("postgres")]):
        if Path(program).with_name("initdb").exists():
            return Path(program).parent
    found = [
        directory
        for pattern in PLACES
        for directory in Path("/").glob(pattern.lstrip("/"))
        if (directory / "postgres").exists() and (directory / "initdb").exists()
    ]
    return max(found, default=None)


def missing_postgres() -> str:
    """What a server here lacks, or an empty string."""
    if importlib.util.find_spec("psycopg") is None:
        return "needs psycopg, which is in the test extra"
    if programs() is not None:
        return ""
    return "needs PostgreSQL's initdb and postgres; launch_scripts/run_tests.sh --install gets them"


def _account() -> pwd.struct_passwd | None:
    """The user of the server, if it is not to be this process's."""
    if os.geteuid() != 0:
        return None
    known = {entry.pw_name: entry for entry in pwd.getpwall()}
    return next((known[name] for name in USERS if name in known), None)


_libc = ctypes.CDLL(None)


@dataclass(slots=True)
class Postgres:
    """A server. ``url()`` makes a fresh database in it."""

    fsync: bool = False
    directory: Path = field(default_factory=lambda: new_directory("nhpg"))
    port: int = 0
    _process: subprocess.Popen[bytes] | None = None
    _numbers: Any = field(default_factory=itertools.count)

    @property
    def pid(self) -> int:
        """Of the postmaster."""
        assert self._process is not None
        return self._process.pid

    def make(self) -> None:
        """Make the cluster and start it."""
        account = _account()
        if account is not None:
            os.chown(self.directory, account.pw_uid, account.pw_gid)
        self.directory.chmod(0o755)
        word = self.directory / "password"
        word.write_text(f"{PASSWORD}\n")
        word.chmod(0o644)
        self._run(
            "initdb", "--no-sync", "--no-instructions", "-D", f"{self.directory}/data", "-U", "tester",
            "-E", "UTF8", "--locale=C", "--auth-local=trust", "--auth-host=scram-sha-256", f"--pwfile={word}",
        )  # fmt: skip
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.start()

    def _as_user(self) -> dict[str, Any]:
        account = _account()
        environ = {name: value for name, value in os.environ.items() if name != TEST_ID}
        options: dict[str, Any] = {"env": environ, "cwd": str(self.directory), "stdin": subprocess.DEVNULL}
        if account is not None:
            options |= {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
        return options

    def _run(self, program: str, *arguments: str) -> str:
        directory = programs()
        assert directory is not None
        done = subprocess.run(
            [str(directory / program), *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, timeout=60, check=False, **self._as_user(),
        )  # fmt: skip
        assert done.returncode == 0, f"{program}: {done.stdout}"
        return done.stdout

    def start(self, *, wait: bool = True) -> None:
        """Start it."""
        directory = programs()
        assert directory is not None
        durable = "on" if self.fsync else "off"
        settings = {
            "fsync": durable, "full_page_writes": durable, "listen_addresses": "127.0.0.1",
            "port": str(self.port), "unix_socket_directories": str(self.directory), "max_connections": "60",
            "shared_buffers": "64MB" if self.fsync else "16MB",  # as ours have, where it counts
            "max_wal_size": "256MB", "autovacuum_naptime": "10min",
            "deadlock_timeout": "200ms", "log_min_messages": "fatal",
        }  # fmt: skip
        flags = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        parent = os.getpid()

        def end_with_parent() -> None:
            _libc.prctl(PR_SET_PDEATHSIG, signal.SIGQUIT)
            if os.getppid() != parent:
                os._exit(1)

        with (self.directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [str(directory / "postgres"), "-D", f"{self.directory}/data", *flags], stdout=log, stderr=log,
                preexec_fn=end_with_parent, **self._as_user(),
            )  # fmt: skip
        if wait:
            self.wait()

    def wait(self) -> None:
        """Until it answers."""

        import psycopg

        def answers() -> bool:
            assert self._process is not None
            assert self._process.poll() is None, self.log()
            with contextlib.suppress(psycopg.OperationalError):
                psycopg.connect(self.conninfo("postgres"), connect_timeout=5).close()
                return True
            return False

        wait_until(answers, 60, lambda: f"PostgreSQL: {self.log()}")

    def log(self) -> str:
        """What the server said."""
        return (self.directory / "log").read_text(errors="replace")[-4000:]

    def stop(self, sign: signal.Signals = signal.SIGINT) -> None:
        """End it: SIGINT in order, SIGQUIT as a crash, SIGKILL the postmaster alone."""
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(sign)
            process.wait(60)

    def end(self) -> None:
        """End it and remove its files."""
        self.stop(signal.SIGQUIT)
        shutil.rmtree(self.directory, ignore_errors=True)

    def conninfo(self, name: str) -> str:
        """What the driver takes, by the socket."""
        return f"host={self.directory} port={self.port} user=tester dbname={name}"

    def url(self, name: str, *, tcp: bool = False) -> str:
        """Of the database ``name``."""
        if tcp:
            return f"postgresql://tester@127.0.0.1:{self.port}/{name}"
        return f"postgresql:///{name}?host={self.directory}&port={self.port}&user=tester"

    def do(self, *statements: str, database: str = "postgres") -> list[Any]:
        """Execute them; rows of the last."""
        import psycopg

        with psycopg.connect(self.conninfo(database), autocommit=True) as connection:
            cursor = connection.cursor()
            for statement in statements:
                cursor.execute(statement)  # type: ignore[arg-type]
            return cursor.fetchall() if cursor.description else []

    def fresh(self, template: str = "template0") -> str:
        """Make a database; its name."""
        name = f"test{next(self._numbers)}"
        self.do(f"CREATE DATABASE {name} TEMPLATE {template}")
        return name

    def drop(self, name: str) -> None:
        """Remove a database, whoever uses it."""
        self.do(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


@cache
def shared_server() -> Postgres:
    """The server of this process, made at first use."""
    server = Postgres()
    atexit.register(server.end)
    server.make()
    return server


@cache
def template() -> str:
    """A database with our tables, to be copied."""
    from nas_hpc.store import open_store

    server = shared_server()
    name = server.fresh()
    open_store(server.url(name), create=True).close()
    return name


_TABLES = ("edges", "attempts", "jobs", "events", "leases", "requests", "apps", "witness")
_ALONE = (
    "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
    " WHERE datname = current_database() AND pid <> pg_backend_pid()"
)
_EMPTY = (
    "SET session_replication_role = replica",  # no triggers
    "; ".join(f"DELETE FROM {table}" for table in _TABLES),
    "UPDATE counters SET value = 0; ALTER SEQUENCE leases_number_seq RESTART",
)
_SHAPE = (
    "SELECT (SELECT string_agg(column_name, ',' ORDER BY table_name, column_name)"
    " FROM information_schema.columns WHERE table_schema = 'public'),"
    " (SELECT string_agg(value, ',') FROM meta),"
    " (SELECT count(*) FROM pg_db_role_setting JOIN pg_database ON setdatabase = pg_database.oid"
    " WHERE datname = current_database())"
)
_unused: list[str] = []
"""Databases that are empty again."""


def new_database() -> str:
    """The URL of a fresh job database: a copy, which takes a while, or one that was used and emptied."""
    server = shared_server()
    return server.url(_unused.pop() if _unused else server.fresh(template()))


def drop_database(url: str) -> None:
    """What ``new_database`` made is not needed any more."""
    server, name = shared_server(), name_of(url)
    try:
        whole = server.do(_ALONE, *_EMPTY, _SHAPE, database=name) == _template_shape()
    except psycopg_error():
        whole = False
    if whole:
        _unused.append(name)
    else:
        server.drop(name)


@cache
def _template_shape() -> list[Any]:
    return shared_server().do(_SHAPE, database=template())


def psycopg_error() -> type[Exception]:
    """The driver's; it may be missing when this module is imported."""
    import psycopg

    return psycopg.Error


def name_of(url: str) -> str:
    """The database that a URL of ``new_database`` names."""
    return url.partition("///")[2].partition("?")[0]
