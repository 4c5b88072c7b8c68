"""A real Balsam classic for tests: its environment, a job database and home of its own per process of pytest.

The environment is that of ``launch_scripts/setup_balsam.sh``: NAS_HPC_TEST_BALSAM names its directory for the
path; without it the script is called, which makes it once. The database's PostgreSQL listens on localhost
alone, and ends with the process that started it. A test begins with an empty database and leaves none of
Balsam's processes.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import json
import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import cache
from pathlib import Path
from typing import Any

import psutil

from nas_hpc.integrations.balsam.bridge_jobs import DEFAULTS, line
from tests.peers.postgres import _account, _libc, missing_postgres, programs
from tests.support import TEST_ID, directory_of_tests, new_directory, wait_until

ROOT = Path(__file__).resolve().parents[2]
PR_SET_PDEATHSIG = 1
SERIAL_PORT = 19876
"""Of every launcher in serial mode."""
MAKING_S = 250
"""What is made once may take so long on a machine with much else to do."""
TABLES = ("core_balsamjob", "core_applicationdefinition", "core_queuedlaunch")
SETTINGS = {
    "MPI_RUN_TEMPLATE": "MPICHCommand",
    "WORKER_DETECTION_TYPE": "DEFAULT",
    "SCHEDULER_CLASS": "CobaltScheduler",
    "SCHEDULER_SUBMIT_EXE": "/bin/false",
    "SCHEDULER_STATUS_EXE": "/bin/false",
    "JOB_TEMPLATE": "job-templates/nas-hpc.tmpl",
    "SERVICE_PERIOD": 0.1,  # seconds between two looks of a launcher
    "NUM_TRANSITION_THREADS": 1,
    "SERIAL_CORES_PER_NODE": os.cpu_count() or 1,
}
TEMPLATE = """#!/bin/bash
#COBALT -A {{ project }}
#COBALT -n {{ nodes }}
#COBALT -q {{ queue }}
#COBALT -t {{ time_minutes }}
export PATH={{ balsam_bin }}:{{ pg_bin }}:$PATH
source balsamactivate {{ balsam_db_path }}
balsam launcher --{{ wf_filter }} --job-mode={{ job_mode }} --time-limit-minutes={{ time_minutes-2 }}
source balsamdeactivate
"""


@cache
def directory() -> Path | str:
    """What comes on the path; or, as text, why there is none."""
    given = os.environ.get("NAS_HPC_TEST_BALSAM")
    if given:
        return Path(given)
    if missing_postgres():
        return missing_postgres()
    home = os.environ.get("HOME") or tempfile.gettempdir()
    caches = os.environ.get("XDG_CACHE_HOME", f"{home}/.cache")
    with tempfile.TemporaryDirectory() as own:
        done = subprocess.run(
            [str(ROOT / "launch_scripts" / "setup_balsam.sh"), "--quiet"],
            env={**os.environ, "HOME": own, "XDG_CACHE_HOME": caches},
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=280, check=False,
        )  # fmt: skip
    lines = done.stdout.split() if done.returncode == 0 else []
    return Path(lines[-1]) if lines else f"needs Balsam: {' '.join(done.stderr.split())[-200:]}"


def missing_balsam() -> str:
    """What a Balsam here lacks, or an empty string."""
    if missing_postgres():
        return missing_postgres()
    found = directory()
    return found if isinstance(found, str) else ""


@dataclass(slots=True)
class Balsam:
    """A job database ``database``, its server, and the home directory with Balsam's settings.

    ``environ()`` is that of a user who has activated it; ``balsam()`` calls the program, ``launcher()``
    starts a real launcher, ``do()`` executes SQL, ``jobs()`` are the rows of its jobs.
    """

    bin: Path
    top: Path = field(default_factory=lambda: new_directory("nhbal"))
    port: int = 0
    _server: subprocess.Popen[bytes] | None = None
    _launchers: list[subprocess.Popen[bytes]] = field(default_factory=list)
    _lock: Any = None

    @property
    def home(self) -> Path:
        """With .balsam in it."""
        return self.top / "home"

    @property
    def database(self) -> Path:
        """The directory of the job database: BALSAM_DB_PATH."""
        return self.top / "db"

    @property
    def python(self) -> Path:
        """Balsam's interpreter."""
        return self.bin.parent / "bin" / "python"

    @property
    def url(self) -> str:
        """For psycopg."""
        return f"host=localhost port={self.port} dbname=balsam user={pwd.getpwuid(os.geteuid()).pw_name}"

    def environ(self, **added: str) -> dict[str, str]:
        """The environment after ``source balsamactivate``."""
        return {
            **os.environ,
            "HOME": str(self.home),
            "USER": pwd.getpwuid(os.geteuid()).pw_name,
            "PATH": f"{self.bin}:{os.environ['PATH']}",
            "BALSAM_DB_PATH": str(self.database),
            "SPT_NOENV": "1",  # else Balsam's processes overwrite the environment by which tests find them
            **added,
        }

    def make(self) -> None:
        """Make the database and start its server."""
        self.top.chmod(0o755)  # another user runs the server where this one is root
        self.home.mkdir()
        self.settings()
        self._make_database()
        with (self.database / "balsamdb" / "postgresql.auto.conf").open("a") as conf:
            conf.write("listen_addresses = 'localhost'\nshared_buffers = '16MB'\nfsync = off\n")
            conf.write(f"full_page_writes = off\nunix_socket_directories = '{self.database / 'balsamdb'}'\n")
            conf.write("log_min_duration_statement = -1\nlog_duration = off\nlog_connections = off\n")
            conf.write("logging_collector = off\nlog_min_messages = fatal\nautovacuum_naptime = 600\n")
        self.start_server()

    def _make_database(self) -> None:
        """By ``balsam init``, or, in one of several processes of pytest, as a copy of the first one's."""
        run = os.environ.get("PYTEST_XDIST_TESTRUNUID")
        environ = {name: value for name, value in self.environ().items() if name != TEST_ID}
        command = [str(self.bin / "balsam"), "init", str(self.database)]
        if run is None:
            self._run(command, environ, timeout_s=MAKING_S)
            return
        template = Path(directory_of_tests()) / f"nhbal-template-{run}"
        with _template_lock():
            if template.exists():
                _copy(template, self.database)
                return
            self._run(command, environ, timeout_s=MAKING_S)
            _copy(self.database, template.with_suffix(".new"))
            template.with_suffix(".new").rename(template)
        atexit.register(_remove, template)

    def settings(self, **changed: Any) -> None:
        """Write ~/.balsam/settings.json: the tests' own, with ``changed``."""
        places = list(self.bin.parent.glob("lib/python*/site-packages/balsam/django_config"))
        assert len(places) == 1, places
        defaults = json.loads((places[0] / "default_settings.json").read_text())
        home = self.home / ".balsam"
        if not home.exists():
            shutil.copytree(places[0] / "job-templates", home / "job-templates")
        (home / "job-templates" / "nas-hpc.tmpl").write_text(TEMPLATE)
        (home / "settings.json").write_text(json.dumps({**defaults, **SETTINGS, **changed}))

    def start_server(self) -> None:
        """Start PostgreSQL, and say in server-info where it is."""
        postgres, account, parent = programs(), _account(), os.getpid()
        assert postgres is not None
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = self.port or free.getsockname()[1]

        def end_with_parent() -> None:
            _libc.prctl(PR_SET_PDEATHSIG, signal.SIGQUIT)
            if os.getppid() != parent:
                os._exit(1)

        options: dict[str, Any] = {}
        if account is not None:
            options = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
        environ = {name: value for name, value in os.environ.items() if name != TEST_ID}
        with (self.top / "server.log").open("ab") as log:
            self._server = subprocess.Popen(
                [str(postgres / "postgres"), "-D", f"{self.database}/balsamdb", "-c", f"port={self.port}"],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environ, cwd="/",
                preexec_fn=end_with_parent, **options,
            )  # fmt: skip
        info = {"host": "localhost", "port": self.port}
        (self.database / "server-info").write_text(json.dumps(info))

        def answers() -> bool:
            assert self._server is not None
            assert self._server.poll() is None, (self.top / "server.log").read_text()[-2000:]
            with contextlib.suppress(self._error()):
                self.do("SELECT 1")
                return True
            return False

        wait_until(answers, 60, "Balsam's PostgreSQL")

    def stop_server(self, sign: signal.Signals = signal.SIGINT) -> None:
        """End PostgreSQL: SIGINT in order, SIGQUIT as a crash. ``server-info`` still names it."""
        server, self._server = self._server, None
        if server is not None:
            server.send_signal(sign)
            server.wait(60)

    def listen(self, addresses: str) -> None:
        """Start the server again, as ``balsam init`` leaves it: without passwords, on ``addresses``."""
        self.stop_server()
        data = self.database / "balsamdb"
        rules = re.sub(
            r"(peer|scram-sha-256)$", "trust", (data / "pg_hba.conf").read_text(), flags=re.MULTILINE
        )
        (data / "pg_hba.conf").write_text(rules)
        with (data / "postgresql.auto.conf").open("a") as conf:
            conf.write(f"listen_addresses = '{addresses}'\n")
        self.start_server()

    def balsam(self, *words: str, check: bool = True, timeout_s: float = 120) -> str:
        """Call the program ``balsam``; what it said."""
        return self._run([str(self.bin / "balsam"), *words], self.environ(), check=check, timeout_s=timeout_s)

    def _run(
        self, command: list[str], environ: dict[str, str], *, check: bool = True, timeout_s: float = 120
    ) -> str:
        done = subprocess.run(
            command, env=environ, cwd=self.top, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, errors="replace", timeout=timeout_s, check=False,
        )  # fmt: skip
        assert done.returncode == 0 or not check, f"{command}: {done.stdout[-4000:]}"
        return done.stdout

    def launcher(self, *words: str, **environ: str) -> subprocess.Popen[bytes]:
        """Start ``balsam launcher WORDS``, in a session of its own; ended with the test at the latest.

        One in serial mode, whose port is fixed, waits for another's of this machine to end: see ``serial``.
        """
        if any("serial" in word for word in words):
            self._hold_serial()
        with (self.top / "launcher.out").open("ab") as out:
            started = subprocess.Popen(
                [str(self.bin / "balsam"), "launcher", *words], env=self.environ(**environ), cwd=self.top,
                stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True,
            )  # fmt: skip
        self._launchers.append(started)
        return started

    @contextlib.contextmanager
    def serial(self) -> Iterator[None]:
        """Hold the lock of serial mode, for launchers that a test starts by other ways."""
        self._hold_serial()
        yield
        self._release_serial()

    def _hold_serial(self) -> None:
        if self._lock is None:
            path = Path("/tmp", f"nas-hpc-balsam-serial-{os.geteuid()}.lock")
            self._lock = path.open("w")
            fcntl.flock(self._lock, fcntl.LOCK_EX)
            wait_until(_port_is_free, 120, f"port {SERIAL_PORT} to be free of launchers by hand")

    def _release_serial(self) -> None:
        lock, self._lock = self._lock, None
        if lock is not None:
            lock.close()

    def end_launcher(self, launcher: subprocess.Popen[bytes], sign: signal.Signals = signal.SIGTERM) -> None:
        """Ask a launcher to end, and all of its session with it; returns when it has gone."""
        if launcher in self._launchers:
            self._launchers.remove(launcher)
        if launcher.poll() is None:
            launcher.send_signal(sign)
            with contextlib.suppress(subprocess.TimeoutExpired):
                launcher.wait(30)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(launcher.pid, signal.SIGKILL)
        launcher.wait(30)
        if not self._launchers:
            self._end_rest()
            self._release_serial()

    def _end_rest(self) -> None:
        """End what launchers left: those of serial mode have processes that no signal of theirs reaches."""
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.name() != "postgres" and Path(process.cwd()).is_relative_to(self.top):
                    process.kill()

    def do(self, *statements: str) -> list[Any]:
        """Execute them; rows of the last."""
        import psycopg

        with psycopg.connect(self.url, autocommit=True, connect_timeout=10) as connection:
            cursor = connection.cursor()
            for statement in statements:
                cursor.execute(statement)  # type: ignore[arg-type]
            return cursor.fetchall() if cursor.description else []

    @staticmethod
    def _error() -> type[Exception]:
        import psycopg

        return psycopg.OperationalError

    def jobs(self, workflow: str = "") -> list[dict[str, Any]]:
        """Rows of the jobs whose workflow is ``workflow`` (empty: all), in the order of their names."""
        import psycopg
        from psycopg.rows import dict_row

        with psycopg.connect(self.url, connect_timeout=10, row_factory=dict_row) as connection:
            rows = connection.execute("SELECT * FROM core_balsamjob ORDER BY length(name), name").fetchall()
        return [row for row in rows if workflow in ("", row["workflow"])]

    def add_app(self, name: str, executable: str) -> None:
        """As ``balsam app`` does, in a hundredth of the time."""
        self.do(
            "INSERT INTO core_applicationdefinition"
            " (name, description, executable, preprocess, envscript, postprocess)"
            f" VALUES ({_quoted(name)}, '', {_quoted(executable)}, '', '', '')"
        )

    def add_job(self, name: str, workflow: str, application: str, state: str = "CREATED", **more: Any) -> str:
        """As ``balsam job`` does; ``more`` are other columns. Returns its id."""
        job = str(uuid.uuid4())
        row = {
            **DEFAULTS, "job_id": job, "name": name, "workflow": workflow, "application": application,
            "state": state, "state_history": line(state), "tick": datetime.now(timezone.utc).isoformat(),
            "data": "{}", **more,
        }  # fmt: skip
        names = [column for column, value in row.items() if value is not None]
        values = ", ".join(_quoted(str(row[column])) for column in names)
        self.do(f"INSERT INTO core_balsamjob ({', '.join(names)}) VALUES ({values})")
        return job

    def job_directory(self, row: dict[str, Any]) -> Path:
        """Where a job of ``jobs()`` works."""
        return self.database / "data" / row["workflow"] / f"{row['name']}_{str(row['job_id'])[:8]}"

    def begin(self) -> None:
        """At a test's start: the server runs, the settings are the tests' own."""
        if self._server is None or self._server.poll() is not None:
            self.start_server()
        self.settings()

    def clear(self) -> None:
        """At a test's end: no launcher, no job, no application, no file of a job."""
        for launcher in list(self._launchers):
            self.end_launcher(launcher)
        self._release_serial()
        if self._server is None or self._server.poll() is not None:
            self.start_server()
        self.do(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = 'balsam' AND pid <> pg_backend_pid()",
            f"TRUNCATE {', '.join(TABLES)} CASCADE",
            "DROP FUNCTION IF EXISTS nas_hpc_balsam() CASCADE",
        )
        for name in ("data", "log", "qsubmit"):
            shutil.rmtree(self.database / name, ignore_errors=True)
            (self.database / name).mkdir()

    def end(self) -> None:
        """End the server and remove all files."""
        for launcher in list(self._launchers):
            self.end_launcher(launcher, signal.SIGKILL)
        self.stop_server(signal.SIGQUIT)
        shutil.rmtree(self.top, ignore_errors=True)


@contextlib.contextmanager
def _template_lock() -> Iterator[None]:
    path = Path("/tmp", f"nhbal-template-{os.geteuid()}.lock")
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _remove(template: Path) -> None:
    """Not while another process copies it; the next one then makes one of its own."""
    with _template_lock():
        shutil.rmtree(template, ignore_errors=True)


def _copy(source: Path, target: Path) -> None:
    """With owners: the server's may be another user."""
    subprocess.run(["cp", "-a", str(source), str(target)], check=True, timeout=MAKING_S)


def _port_is_free() -> bool:
    with socket.socket() as tried, contextlib.suppress(OSError):
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        tried.bind(("0.0.0.0", SERIAL_PORT))  # noqa: S104 - as Balsam does
        return True
    return False


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


@cache
def shared_balsam() -> Balsam:
    """The one of this process, made at first use."""
    found = directory()
    assert isinstance(found, Path), found
    peer = Balsam(found)
    atexit.register(peer.end)
    peer.make()
    return peer
