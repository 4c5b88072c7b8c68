"""What the bridge does for a request: each is one transaction, and doing it again does no more.

Python 3.8 or later, the standard library and psycopg2: it runs under Balsam's interpreter.
"""

from __future__ import annotations

import datetime
import json
import sys
import uuid

from nas_hpc.integrations.balsam import bridge_jobs as jobs
from nas_hpc.integrations.balsam.bridge_database import APPLICATIONS, CHANNEL, JOBS, Database, Failed
from nas_hpc.integrations.balsam.bridge_protect import protect

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

COLUMNS = (
    "job_id", "workflow", "name", "application", "args", "num_nodes", "ranks_per_node", "threads_per_rank",
    "node_packing_count", "wall_time_minutes", "user_workdir", "state", "state_history", "data", "lock",
    "tick", "parents", "queued_launch_id",
)  # fmt: skip
_SELECT = f"SELECT {', '.join(COLUMNS)} FROM {JOBS}"
_CREATED_BY = "data -> 'nas_hpc' ->> 'creator' = %s"
PAGE = 1000


class Requests:
    """The requests by name, each a method with a cursor in a transaction. They raise Failed."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._path = database.path

    # -- of a database -----------------------------------------------------------------------------
    def hello(self, cursor: Any, request: Mapping[str, Any]) -> dict[str, Any]:
        """What this database is."""
        cursor.execute(f"SELECT name, executable FROM {APPLICATIONS}")
        applications = dict(cursor.fetchall())
        info = self._database.info
        return {
            "version": _version(),
            "python": sys.executable,
            "database": self._path,
            "user": self._database.user,
            "owner": self._database.owner,
            "host": info["host"],
            "port": int(info["port"]),
            "applications": applications,
            "trust": self._database.trusts_strangers(cursor),
            "trigger": self._database.has_trigger(cursor),
        }

    def register(self, cursor: Any, request: Mapping[str, Any]) -> dict[str, Any]:
        """Enter applications; one that is there with another executable is changed with ``replace`` alone."""
        answer: dict[str, Any] = {"added": [], "changed": [], "same": [], "different": {}}
        for wanted in request["applications"]:
            name, executable = wanted["name"], wanted["executable"]
            cursor.execute(
                f"INSERT INTO {APPLICATIONS}"
                " (name, description, executable, preprocess, envscript, postprocess)"
                " VALUES (%s, %s, %s, '', '', '') ON CONFLICT (name) DO NOTHING",
                (name, wanted.get("description", ""), executable),
            )
            if cursor.rowcount:
                answer["added"].append(name)
                continue
            cursor.execute(f"SELECT executable FROM {APPLICATIONS} WHERE name = %s FOR UPDATE", (name,))
            (there,) = cursor.fetchone()
            if there.split() == executable.split():
                answer["same"].append(name)
            elif request.get("replace"):
                cursor.execute(
                    f"UPDATE {APPLICATIONS} SET executable = %s, description = %s WHERE name = %s",
                    (executable, wanted.get("description", ""), name),
                )
                answer["changed"].append(name)
            else:
                answer["different"][name] = there
        why = self._database.make_trigger(cursor)
        return {**answer, "trigger": not why, "why": why}

    def protect(self, cursor: Any, request: Mapping[str, Any]) -> dict[str, Any]:
        """Shut strangers out: see ``bridge_protect``."""
        return protect(self._database, cursor)

    def jobs(self, cursor: Any, request: Mapping[str, Any]) -> dict[str, Any]:
        """A page of jobs in the order of their ids, from behind ``after`` on; ``next`` is the next one."""
        limit = int(request.get("limit") or PAGE)
        cursor.execute(
            f"{_SELECT} WHERE job_id > %s AND (%s = '' OR workflow = %s) ORDER BY job_id LIMIT %s",
            (
                request.get("after") or str(uuid.UUID(int=0)),
                request.get("workflow") or "",
                request.get("workflow") or "",
                limit,
            ),
        )
        rows = _rows(cursor)
        plain = (
            "workflow", "name", "application", "args", "num_nodes", "ranks_per_node", "threads_per_rank",
            "node_packing_count", "wall_time_minutes", "state", "data",
        )  # fmt: skip
        found = [
            {
                "id": str(row["job_id"]),
                **{name: row[name] for name in plain},
                "history": jobs.history(row["state_history"]),
                "directory": jobs.directory(self._path, row),
                "locked": bool(row["lock"]),
            }
            for row in rows
        ]
        return {"jobs": found, "next": found[-1]["id"] if len(found) == limit else None}

    # -- of a search -------------------------------------------------------------------------------
    def search(self, cursor: Any, request: Mapping[str, Any]) -> dict[str, Any]:
        """The search's own job, with a new number for this attempt of it: older ones are refused from now."""
        job = _identifier(request["job"])
        cursor.execute(f"{_SELECT} WHERE job_id = %s FOR UPDATE", (job,))
        row = self._only(cursor, job)
        attempt = int(jobs.of_search(row).get("attempt") or 0) + 1
        cursor.execute(
            f"UPDATE {JOBS} SET data = CASE jsonb_typeof(data) WHEN 'object' THEN data ELSE '{{}}' END"
            " || jsonb_build_object('nas_hpc', coalesce(data -> 'nas_hpc', '{}') || %s::jsonb)"
            " WHERE job_id = %s",
            (json.dumps({"attempt": attempt}), job),
        )
        cursor.execute("SELECT pg_notify(%s, %s)", (CHANNEL, job))
        cursor.execute(
            f"SELECT count(*) FILTER (WHERE {_CREATED_BY}), count(*) FROM {JOBS} WHERE workflow = %s",
            (job, row["workflow"]),
        )
        children, of_all = cursor.fetchone()
        history = jobs.history(row["state_history"])
        plain = (
            "workflow", "name", "application", "args", "num_nodes", "ranks_per_node", "threads_per_rank",
            "node_packing_count", "state", "data",
        )  # fmt: skip
        return {
            "job": job,
            **{name: row[name] for name in plain},
            "packing": row["node_packing_count"],
            "directory": jobs.directory(self._path, row),
            "history": history,
            "started": next((moment for moment, state, _ in history if state == "RUNNING"), None),
            "attempt": attempt,
            "children": children,
            "others": of_all - children - 1,
        }

    def add(self, cursor: Any, request: Mapping[str, Any]) -> dict[str, Any]:
        """Make evaluations, with their directories; those that are there already stay as they are."""
        from psycopg2.extras import Json, execute_values

        search = self._newest(cursor, request)
        wanted = [
            dict(job, id=job.get("id") or jobs.identifier(search["job_id"], job["seq"]))
            for job in request["jobs"]
        ]
        prepared = self._applications(cursor, {job["application"] for job in wanted})
        cursor.execute(
            f"SELECT job_id FROM {JOBS} WHERE job_id = ANY(%s::uuid[])", ([job["id"] for job in wanted],)
        )
        there = {str(job) for (job,) in cursor.fetchall()}
        rows = []
        for job in wanted:
            if job["id"] in there:
                continue
            rows.append(jobs.new_row(job, search, prepared[job["application"]]))
            jobs.write_files(jobs.directory(self._path, rows[-1]), job.get("files") or {})
        # Writing files takes a while: only now is the search's row held.
        self._newest(cursor, request, hold=True)
        names = [*jobs.DEFAULTS, "job_id", "data", "tick"]
        now = datetime.datetime.now(datetime.timezone.utc)
        values = [[{**row, "data": Json(row["data"]), "tick": now}[name] for name in names] for row in rows]
        if values:
            execute_values(
                cursor,
                f"INSERT INTO {JOBS} ({', '.join(names)}) VALUES %s ON CONFLICT (job_id) DO NOTHING",
                values,
            )
        return {"added": len(values)}

    def children(self, cursor: Any, request: Mapping[str, Any]) -> dict[str, Any]:
        """All evaluations of a search. An ended one without a result may have one that is seen later: it is
        pushed to who watches.
        """
        found = []
        for row in self.rows_of(cursor, _identifier(request["job"])):
            seen = jobs.child(self._path, row)
            if jobs.is_late(row, seen["result"]):
                seen["result"] = None
            found.append(seen)
        return {"jobs": found}

    def kill(self, cursor: Any, request: Mapping[str, Any]) -> dict[str, Any]:
        """End evaluations that have not ended: Balsam does in mpi mode; in serial mode, where it lets them
        run, the file ``stop`` says it to the trial.
        """
        search = self._newest(cursor, request)
        rows = self._locked(cursor, search, request["seqs"])
        killed = [row for row in rows if row["state"] not in jobs.ENDED]
        self._enter(cursor, killed, "USER_KILLED", request.get("message") or "by its search")
        stopped = [*killed, *(row for row in rows if row["state"] == "USER_KILLED")]
        for row in stopped:
            jobs.write_files(jobs.directory(self._path, row), {jobs.STOP_FILE: ""})
        return {"killed": [jobs.of_search(row).get("seq") for row in stopped]}

    def retry(self, cursor: Any, request: Mapping[str, Any]) -> dict[str, Any]:
        """Have failed evaluations run again; those that wait for it already are named, too."""
        search = self._newest(cursor, request)
        rows = self._locked(cursor, search, request["seqs"])
        failed = [
            row
            for row in rows
            if row["state"] == "FAILED" or (row["state"] == "RUN_ERROR" and not row["lock"])
        ]
        for row in failed:
            jobs.remove_files(jobs.directory(self._path, row), ("result.json", jobs.STOP_FILE))
        self._enter(cursor, failed, "RESTART_READY", request.get("message") or "retried by its search")
        ready = [*failed, *(row for row in rows if row["state"] == "RESTART_READY")]
        return {"retried": [jobs.of_search(row).get("seq") for row in ready]}

    def watch(self, cursor: Any, request: Mapping[str, Any]) -> dict[str, Any]:
        """Have changes announced by the database; ``announced`` is False where this user may not have it."""
        job = _identifier(request["job"])
        cursor.execute(f"SELECT 1 FROM {JOBS} WHERE job_id = %s", (job,))
        if cursor.fetchone() is None:
            raise self._no_job(job)
        why = self._database.make_trigger(cursor)
        return {"announced": not why, "why": why}

    # -- rows --------------------------------------------------------------------------------------
    def rows_of(self, cursor: Any, search: str, among: list[str] | None = None) -> list[dict[str, Any]]:
        """The evaluations of a search, all or those whose ids are ``among``."""
        if among is None:
            cursor.execute(f"{_SELECT} WHERE {_CREATED_BY}", (search,))
        else:
            cursor.execute(f"{_SELECT} WHERE job_id = ANY(%s::uuid[]) AND {_CREATED_BY}", (among, search))
        return _rows(cursor)

    def row(self, cursor: Any, job: str) -> dict[str, Any] | None:
        """One job."""
        cursor.execute(f"{_SELECT} WHERE job_id = %s", (job,))
        found = _rows(cursor)
        return found[0] if found else None

    def note_objectives(self, cursor: Any, objectives: list[tuple[str, float]]) -> None:
        """Put objectives into the jobs' data: in the order of their ids, in which Balsam holds jobs, too. In
        another one the two would wait for each other, and Balsam's launcher does not survive that.
        """
        for job, value in sorted(objectives):
            cursor.execute(
                f"UPDATE {JOBS} SET data = data || %s::jsonb"
                " WHERE job_id = %s AND jsonb_typeof(data) = 'object'",
                (json.dumps({"dh_objective": value}), job),
            )

    def _newest(self, cursor: Any, request: Mapping[str, Any], *, hold: bool = False) -> dict[str, Any]:
        """The search's row. Raises Failed if a later attempt of it runs."""
        job = _identifier(request["job"])
        cursor.execute(f"{_SELECT} WHERE job_id = %s" + (" FOR SHARE" if hold else ""), (job,))
        row = self._only(cursor, job)
        newest = jobs.of_search(row).get("attempt")
        if newest != request["attempt"]:
            raise Failed(
                "refused",
                f"superseded: attempt {newest} of the search {job[:8]} runs, "
                f"this is attempt {request['attempt']}",
            )
        return row

    def _only(self, cursor: Any, job: str) -> dict[str, Any]:
        rows = _rows(cursor)
        if not rows:
            raise self._no_job(job)
        return rows[0]

    def _no_job(self, job: str) -> Failed:
        return Failed("missing", f"there is no job {job} in the Balsam database {self._path}")

    def _applications(self, cursor: Any, names: set[str]) -> dict[str, bool]:
        """Name -> whether a job of it has nothing to prepare. Raises Failed for one that is unknown."""
        cursor.execute(f"SELECT name, preprocess FROM {APPLICATIONS} WHERE name = ANY(%s)", (list(names),))
        found = {name: not script for name, script in cursor.fetchall()}
        for name in sorted(names - set(found)):
            raise Failed(
                "missing",
                f"the Balsam database {self._path} has no application {name}: "
                f"nas-hpc balsam register {self._path}",
            )
        return found

    def _locked(self, cursor: Any, search: Mapping[str, Any], seqs: list[int]) -> list[dict[str, Any]]:
        """Evaluations, held until the transaction ends; in the order in which Balsam holds them, too."""
        cursor.execute(
            f"{_SELECT} WHERE job_id = ANY(%s::uuid[]) AND {_CREATED_BY} ORDER BY job_id FOR UPDATE",
            ([jobs.identifier(search["job_id"], seq) for seq in seqs], search["job_id"]),
        )
        return _rows(cursor)

    def _enter(self, cursor: Any, rows: list[dict[str, Any]], state: str, message: str) -> None:
        cursor.execute(
            f"UPDATE {JOBS} SET state = %s, state_history = state_history || %s"
            + (", data = data - 'dh_objective'" if state == "RESTART_READY" else "")
            + " WHERE job_id = ANY(%s::uuid[])",
            (state, jobs.line(state, message), [row["job_id"] for row in rows]),
        )


def _rows(cursor: Any) -> list[dict[str, Any]]:
    return [dict(zip(COLUMNS, row)) for row in cursor.fetchall()]  # noqa: B905 - Python 3.8


def _identifier(text: Any) -> str:
    try:
        return str(uuid.UUID(str(text)))
    except ValueError:
        raise Failed("missing", f"{text!r} is no id of a Balsam job (BALSAM_JOB_ID)") from None


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("balsam-flow")
    except PackageNotFoundError:
        return ""
