"""The bridge: a program under Balsam's interpreter that does what a search asks of Balsam's database.

    PYTHON -E bridge.py DATABASE PARENT

Lines of JSON come in on its standard input and go out on its standard output (``protocol``); it ends when its
input does, and with the process PARENT. Changes of the jobs of a watched search are pushed as the database
announces them, by a trigger and LISTEN; nothing is asked again and again, but once a second where this user
may not make the trigger.

Python 3.8 or later, the standard library and psycopg2.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import sys
import time

if __name__ == "__main__":  # what stands beside this file is no top-level module, and what it imports is
    sys.path[0] = os.path.dirname(os.path.abspath(__file__)).rsplit(os.sep, 3)[0]
    sys.path.append(sys.path.pop(0))  # behind Balsam's own

from nas_hpc.integrations.balsam import bridge_jobs as jobs  # noqa: E402
from nas_hpc.integrations.balsam.bridge_database import Database, Failed, close  # noqa: E402
from nas_hpc.integrations.balsam.bridge_requests import Requests  # noqa: E402

if __name__ == "__main__":
    sys.path.pop()

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

FULL_LOOK_S = 60.0
"""A watched search is looked at as a whole so often: a connection may break without a sign."""
UNANNOUNCED_S = 1.0
LATE_LOOK_S = 0.25
RECONNECT_S = (0.2, 0.5, 1.0, 2.0, 5.0)
_PR_SET_PDEATHSIG = 1


class Bridge:
    """The loop: requests from one side, changes from the other."""

    def __init__(self, database: Database, incoming: int, outgoing: int) -> None:
        self._database = database
        self._requests = Requests(database)
        self._incoming, self._outgoing = incoming, outgoing
        self._rest = b""
        self._watched = ""
        self._announced = True
        self._known: dict[str, tuple[str, int]] = {}
        self._search: tuple[str, Any] | None = None
        self._late: dict[str, float] = {}
        self._listener: Any = None
        self._failures = 0
        self._next_look = 0.0
        try:
            self._grace_s = float(os.environ.get("NAS_HPC_RESULT_GRACE_S") or 10.0)
        except ValueError:
            self._grace_s = 10.0

    def run(self) -> None:
        """Until the input ends."""
        while True:
            sources = [self._incoming] + ([self._listener] if self._listener is not None else [])
            ready, _, _ = select.select(sources, [], [], self._wait_s())
            if self._listener is not None and self._listener in ready:
                self._hear()
            if self._watched and time.monotonic() >= self._next_look:
                self._look()
            if self._late:
                self._look_late()
            if self._incoming in ready and not self._take():
                return

    def _wait_s(self) -> float | None:
        if not self._watched:
            return None
        wait_s = max(0.0, self._next_look - time.monotonic())
        return min(wait_s, LATE_LOOK_S) if self._late else wait_s

    # -- requests ----------------------------------------------------------------------------------
    def _take(self) -> bool:
        """Do what came in; False at the end of the input."""
        data = os.read(self._incoming, 1 << 20)
        if not data:
            return False
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            if line.strip():
                self._answer(line)
        return True

    def _answer(self, line: bytes) -> None:
        number = None
        try:
            request = json.loads(line)
            number = request["id"]
            done = self._do(request)
        except Failed as failure:
            self._send({"id": number, "error": {"kind": failure.kind, "message": str(failure)}})
        except Exception as error:
            self._send({"id": number, "error": {"kind": "bug", "message": _where(error)}})
        else:
            self._send({"id": number, "ok": done})
            self._after(request, done)

    def _do(self, request: dict[str, Any]) -> dict[str, Any]:
        name = request["do"]
        handler: Callable[[Any, dict[str, Any]], dict[str, Any]] | None
        handler = None if name.startswith("_") else getattr(self._requests, name, None)
        if name in ("row", "rows_of", "note_objectives") or handler is None:
            raise Failed("bug", f"the bridge knows no request {name!r}")
        done: dict[str, Any] = self._transaction(lambda cursor: handler(cursor, request))
        return done

    def _transaction(self, work: Callable[[Any], Any], *, again: bool = True) -> Any:
        """``work`` in one transaction; once more on a new connection if the old one has broken.

        Raises Failed.
        """
        fresh = self._database.idle
        connection = self._database.work()
        import psycopg2

        try:
            with connection, connection.cursor() as cursor:
                return work(cursor)
        except psycopg2.Error as error:
            broken = isinstance(error, (psycopg2.OperationalError, psycopg2.InterfaceError))
            failure = self._database.failure(error)
            if broken:
                self._database.drop()
                if again and not fresh:
                    return self._transaction(work, again=False)
            raise failure from None

    def _after(self, request: dict[str, Any], done: dict[str, Any]) -> None:
        """What a request that was done changes here."""
        if request["do"] == "children":
            if request["job"] != self._watched:
                self._known.clear()
            for job in done["jobs"]:
                if job["state"] not in jobs.ENDED or job["result"] is not None:  # else it is looked at again
                    self._known[job["id"]] = (job["state"], len(job["history"]))
        elif request["do"] == "watch":
            self._watched, self._announced, self._search = request["job"], done["announced"], None
            if not self._announced:
                self._log(f"changes are not announced ({done['why']}): the database is asked once a second")
            self._look()

    # -- changes -----------------------------------------------------------------------------------
    def _hear(self) -> None:
        """Look at what the database announced."""
        import psycopg2

        try:
            self._listener.poll()
        except psycopg2.Error as error:
            self._lost(self._database.failure(error))
            return
        heard = {notice.payload for notice in self._listener.notifies}
        del self._listener.notifies[:]
        if heard and self._watched:
            self._push(sorted(heard))

    def _look(self) -> None:
        """Listen, and look at the whole search."""
        try:
            if self._announced and self._listener is None:
                self._listener = self._database.listen()
            if self._failures:
                self._log(f"the Balsam database {self._database.path} is back")
                self._failures = 0
            self._next_look = time.monotonic() + (FULL_LOOK_S if self._announced else UNANNOUNCED_S)
            self._push(None)
        except Failed as failure:
            self._lost(failure)

    def _lost(self, failure: Failed) -> None:
        """The listening connection has gone, or cannot be made: later again, and then look at all."""
        close(self._listener)
        self._listener = None
        if not self._failures:
            self._log(str(failure))
        self._next_look = time.monotonic() + RECONNECT_S[min(self._failures, len(RECONNECT_S) - 1)]
        self._failures += 1

    def _push(self, among: list[str] | None) -> None:
        """Tell of the evaluations (``among``, or all) whose state changed."""
        try:
            changed, search = self._transaction(lambda cursor: self._changed(cursor, among))
        except Failed as failure:
            self._lost(failure)
            return
        if search is not None and search != self._search:
            before, self._search = self._search, search
            if before is not None or among is not None:
                self._send({"event": "search", "state": search[0], "attempt": search[1]})
        self._tell(changed, again=False)

    def _changed(
        self, cursor: Any, among: list[str] | None
    ) -> tuple[list[dict[str, Any]], tuple[str, Any] | None]:
        search = None
        if among is None or self._watched in among:
            row = self._requests.row(cursor, self._watched)
            search = ("REMOVED", None) if row is None else (row["state"], jobs.of_search(row).get("attempt"))
        changed = []
        for row in self._requests.rows_of(cursor, self._watched, among):
            # A state that comes again after others has a longer history.
            version = (row["state"], len(jobs.history(row["state_history"])))
            if self._known.get(row["job_id"]) != version:
                self._known[row["job_id"]] = version
                changed.append(row)
        return changed, search

    def _tell(self, rows: list[dict[str, Any]], *, again: bool) -> None:
        """Push rows. An end without a result waits a while: a file system may show it late."""
        told, objectives = [], []
        for row in rows:
            seen = jobs.child(self._database.path, row, again=again)
            result = seen["result"]
            if jobs.is_late(row, result):
                deadline = self._late.setdefault(row["job_id"], time.monotonic() + self._grace_s)
                if time.monotonic() < deadline:
                    continue
            self._late.pop(row["job_id"], None)
            told.append(seen)
            value = jobs.objective_to_note(row, result)
            if value is not None:
                objectives.append((row["job_id"], value))
        if told:
            self._send({"event": "jobs", "jobs": told})
        if objectives:
            try:
                self._transaction(lambda cursor: self._requests.note_objectives(cursor, objectives))
            except Failed as failure:
                self._log(f"objectives are not noted in the jobs' data: {failure}")

    def _look_late(self) -> None:
        """Look again for results that were not there."""
        among = list(self._late)
        try:
            rows = self._transaction(lambda cursor: self._requests.rows_of(cursor, self._watched, among))
        except Failed as failure:
            self._lost(failure)
            return
        for job in set(among) - {row["job_id"] for row in rows}:
            del self._late[job]
        self._tell(rows, again=True)

    # -- output ------------------------------------------------------------------------------------
    def _log(self, text: str) -> None:
        self._send({"event": "log", "text": text})

    def _send(self, message: dict[str, Any]) -> None:
        data = json.dumps(message, separators=(",", ":")).encode() + b"\n"
        while data:
            data = data[os.write(self._outgoing, data) :]


def _where(error: Exception) -> str:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    place = f" ({os.path.basename(trace.tb_frame.f_code.co_filename)}:{trace.tb_lineno})" if trace else ""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:500]}{place}"


def main() -> int:
    """Run the bridge."""
    path, parent = sys.argv[1:3]
    # Standard output is the search's: what a library prints goes where errors go.
    outgoing, incoming = os.dup(1), os.dup(0)
    os.dup2(2, 1)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != int(parent):
        return 1
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the search's Ctrl-C: it ends us
    try:
        Bridge(Database(path), incoming, outgoing).run()
    except BrokenPipeError:
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
