"""The bridge's connections with the PostgreSQL of a Balsam database, and what is wrong when there is none.

Python 3.8 or later, the standard library and psycopg2: it runs under Balsam's interpreter. Balsam's own
modules are not imported: they would bind this process to one database, set up Django in seconds, and write
into the user's home. The tables are those of balsam-flow 0.5.0.
"""

from __future__ import annotations

import getpass
import json
import os
import pwd
import re
import socket
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

CHANNEL = "nas_hpc_balsam"
JOBS, APPLICATIONS = "core_balsamjob", "core_applicationdefinition"
CONNECT_S = 10
_ALIVE = {"keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3}
_LIMITS = "-c statement_timeout=120000 -c lock_timeout=30000 -c search_path=public"
_TRIGGER = (
    f"CREATE OR REPLACE FUNCTION {CHANNEL}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
    f" PERFORM pg_catalog.pg_notify('{CHANNEL}', NEW.job_id::text); RETURN NULL; END $$",
    f"CREATE OR REPLACE TRIGGER {CHANNEL} AFTER UPDATE OF state ON {JOBS} FOR EACH ROW"
    f" WHEN (OLD.state IS DISTINCT FROM NEW.state) EXECUTE FUNCTION {CHANNEL}()",
)
_HAS_TRIGGER = f"SELECT 1 FROM pg_trigger WHERE tgname = '{CHANNEL}' AND tgrelid = '{JOBS}'::regclass"
_STRANGERS = (
    "SELECT 1 FROM pg_hba_file_rules WHERE type LIKE 'host%' AND auth_method = 'trust'"
    " AND coalesce(address, '') NOT IN ('127.0.0.1', '::1', 'localhost', 'samehost')"
)
_SHUT_OUT = re.compile(
    "authentication failed|no password supplied|no pg_hba.conf entry"
    "|role .* does not exist|not permitted to log in"
)
_PASSES = re.compile("too many|starting up|recovery mode|canceling statement")
"""A server that is there."""
_LOCAL = re.compile(r"^\s*(localhost|127\.[0-9.]+|::1)?\s*$")


class Failed(Exception):
    """A request was not done: ``kind`` is down, permission, missing, refused or bug."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class Database:
    """The database of the directory ``path`` (BALSAM_DB_PATH): connections, made when they are needed.

    Where its server is stands in server-info, which is read at every connect: a server that is started again
    has another port.
    """

    def __init__(self, path: str) -> None:
        self.path = os.path.abspath(os.path.expanduser(path))
        self.info: dict[str, Any] = {}
        self.user = os.environ.get("BALSAM_USER") or getpass.getuser()
        self._connection: Any = None

    @property
    def owner(self) -> str:
        """Whose the directory is."""
        try:
            uid = os.stat(os.path.join(self.path, "server-info")).st_uid
            return pwd.getpwuid(uid).pw_name
        except (OSError, KeyError):
            return "its owner"

    def connect(self) -> Any:
        """A new connection. Raises Failed."""
        try:
            import psycopg2
            import psycopg2.extensions
        except ImportError as error:
            raise Failed(
                "missing",
                f"{sys.executable} is no interpreter of Balsam's ({error}); "
                "launch_scripts/setup_balsam.sh makes one",
            ) from None
        self._read_info()
        alive = dict(_ALIVE)
        if psycopg2.extensions.libpq_version() >= 120000:
            alive["tcp_user_timeout"] = (
                60_000  # ms; what was sent to a host that is gone is not waited for longer
            )
        try:
            return psycopg2.connect(
                dbname="balsam", user=self.user, password=self.info.get("password") or None,
                host=self.info["host"], port=self.info["port"], connect_timeout=CONNECT_S, options=_LIMITS,
                application_name="nas_hpc", **alive,
            )  # fmt: skip
        except psycopg2.Error as error:
            raise self.failure(error) from None

    def _read_info(self) -> None:
        path = os.path.join(self.path, "server-info")
        try:
            with open(path, encoding="utf-8") as file:
                info = json.load(file)
        except PermissionError as error:
            raise Failed(
                "permission", f"{error.filename} of {self.owner} cannot be read: {self._ask()}"
            ) from None
        except OSError:
            raise Failed(
                "missing",
                f"{self.path} is no Balsam database (no file server-info in it): balsam init makes one",
            ) from None
        except ValueError:
            raise Failed("missing", f"{path} is no JSON: make it anew with balsam server --reset") from None
        if not isinstance(info, dict) or not info.get("host") or not info.get("port"):
            raise Failed("down", f"the server of the Balsam database {self.path} is stopped: {self._start()}")
        self.info = info

    def work(self) -> Any:
        """The connection for requests; each is one transaction of it. Raises Failed."""
        if self.idle:
            connection = self.connect()
            self._check(connection)
            self._connection = connection
        return self._connection

    @property
    def idle(self) -> bool:
        """Whether there is no connection for requests yet."""
        return self._connection is None or bool(self._connection.closed)

    def drop(self) -> None:
        """Forget the connection for requests: it failed."""
        connection, self._connection = self._connection, None
        close(connection)

    def _check(self, connection: Any) -> None:
        with connection, connection.cursor() as cursor:
            cursor.execute(
                "SELECT column_name FROM information_schema.columns WHERE table_name = %s", (JOBS,)
            )
            names = {row[0] for row in cursor.fetchall()}
            missing = sorted({"job_id", "state_history", "node_packing_count", "data", "tick"} - names)
            if missing:
                close(connection)
                what = "no table of jobs that you may see" if not names else f"no {', '.join(missing)}"
                raise Failed(
                    "missing",
                    f"{self.path} has {what}: it is no database of Balsam 0.5.0, or is not yours; "
                    f"{self._ask()}",
                )

    def failure(self, error: Exception) -> Failed:
        """What an error of psycopg2's means, in one line."""
        import psycopg2

        text = " ".join(str(error).split())
        code = getattr(error, "pgcode", None) or ""
        if _SHUT_OUT.search(text):
            return Failed(
                "permission", f"the Balsam database {self.path} does not let {self.user} in: {self._ask()}"
            )
        if code == "42501" or isinstance(error, psycopg2.errors.InsufficientPrivilege):
            return Failed(
                "permission",
                f"{self.user} may not do that in the Balsam database {self.path} ({text}): {self._ask()}",
            )
        if 'database "balsam" does not exist' in text:
            return Failed(
                "missing", f"the server of {self.path} has no database balsam: balsam init did not end well"
            )
        if isinstance(error, (psycopg2.OperationalError, psycopg2.InterfaceError)):
            where = f"{self.info.get('host')}:{self.info.get('port')}"
            if _PASSES.search(text):
                return Failed(
                    "down", f"the Balsam database {self.path} at {where} is not ready: {_first(text)}"
                )
            return Failed(
                "down",
                f"the Balsam database {self.path} does not answer at {where} ({_first(text)}): "
                f"{self._start()}",
            )
        if isinstance(error, psycopg2.DataError):
            return Failed("refused", f"the Balsam database {self.path} cannot keep that: {text[:300]}")
        return Failed("bug", f"{type(error).__name__}: {text[:500]}")

    def _start(self) -> str:
        if self.owner in (_me(), "its owner"):
            return "source balsamactivate starts it"
        return f"{self.owner}, whose it is, starts it with balsamactivate"

    def _ask(self) -> str:
        if self.owner == _me() == self.user:
            return "it is yours: who may do what stands in its server-info and balsamdb/pg_hba.conf"
        return f"{self.owner}, whose it is, lets you in with balsam server --add-user {self.user}"

    # -- being told of changes ---------------------------------------------------------------------
    def has_trigger(self, cursor: Any) -> bool:
        """Whether changes of state are announced."""
        cursor.execute(_HAS_TRIGGER)
        return bool(cursor.fetchone())

    def make_trigger(self, cursor: Any) -> str:
        """Have changes of state announced; why not, if this user may not."""
        import psycopg2

        if self.has_trigger(cursor):
            return ""
        cursor.execute("SAVEPOINT before_trigger")
        try:
            cursor.execute("SELECT pg_advisory_xact_lock(hashtext(%s))", (CHANNEL,))
            for statement in _TRIGGER if cursor.connection.server_version >= 140000 else _old_trigger():
                cursor.execute(statement)
        except psycopg2.Error as error:
            cursor.execute("ROLLBACK TO SAVEPOINT before_trigger")
            return " ".join(str(error).split())
        return ""

    def listen(self) -> Any:
        """A connection that hears of changes. Raises Failed."""
        import psycopg2

        connection = self.connect()
        try:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute(f"LISTEN {CHANNEL}")
        except psycopg2.Error as error:
            close(connection)
            raise self.failure(error) from None
        return connection

    def trusts_strangers(self, cursor: Any) -> bool | None:
        """Whether others than this host's users get in without a password; None: it cannot be seen."""
        import psycopg2

        cursor.execute("SHOW listen_addresses")
        if all(_LOCAL.match(one) or _is_loopback(one) for one in cursor.fetchone()[0].split(",")):
            return False
        cursor.execute("SAVEPOINT before_rules")
        try:
            cursor.execute(_STRANGERS)
            return cursor.fetchone() is not None
        except psycopg2.Error:
            cursor.execute("ROLLBACK TO SAVEPOINT before_rules")
            return None


def close(connection: Any) -> None:
    """End a connection, whatever became of it."""
    try:
        if connection is not None:
            connection.close()
    except Exception:  # noqa: S110 - of a connection that is broken anyway
        pass


def _me() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return getpass.getuser()


def _old_trigger() -> tuple[str, ...]:
    """Before PostgreSQL 14 a trigger cannot be replaced."""
    function, trigger = _TRIGGER
    return (
        function,
        f"DROP TRIGGER IF EXISTS {CHANNEL} ON {JOBS}",
        trigger.replace("OR REPLACE ", "").replace("EXECUTE FUNCTION", "EXECUTE PROCEDURE"),
    )


def _is_loopback(name: str) -> bool:
    try:
        found = {entry[4][0] for entry in socket.getaddrinfo(name.strip(), None)}
    except OSError:
        return False
    return all(str(address).startswith("127.") or address == "::1" for address in found)


def _first(text: str) -> str:
    """The part of psycopg2's words that says why."""
    text = re.sub(r"(Is the server running|This probably means).*", "", text).strip()
    match = re.search(r"(FATAL: .*|failed: .*)", text)
    return (match.group(1) if match else text).replace("failed: ", "")[:200]
