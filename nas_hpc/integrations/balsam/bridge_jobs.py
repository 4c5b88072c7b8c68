"""Rows of Balsam's jobs: their histories, directories, results; and new ones.

Python 3.8 or later, the standard library and psycopg2: it runs under Balsam's interpreter.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import math
import os
import re
import uuid

from nas_hpc.integrations.balsam.bridge_database import Failed
from nas_hpc.processes import jobdata, results

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any

STOP_FILE = "stop"
ENDED = frozenset({"RUN_DONE", "POSTPROCESSED", "JOB_FINISHED", "RUN_ERROR", "FAILED", "USER_KILLED"})
SUCCEEDED = frozenset({"RUN_DONE", "POSTPROCESSED", "JOB_FINISHED"})
TIME_FORMAT = "%m-%d-%Y %H:%M:%S.%f"
_STAMP = re.compile(r"^\[(\d+-\d+-\d{4}\s+\d+:\d+:\d+\.\d+)\s+(\w+)\s*\][ ]?", re.MULTILINE)
_MESSAGE_LIMIT = 4000
NOTHING = "nothing"
"""The source of a result where there is no trace of one."""
DEFAULTS: dict[str, Any] = {
    "workflow": "", "name": "", "description": "", "lock": "", "parents": "[]", "input_files": "",
    "stage_in_url": "", "stage_out_files": "", "stage_out_url": "", "wall_time_minutes": 1, "num_nodes": 1,
    "coschedule_num_nodes": 0, "ranks_per_node": 1, "cpu_affinity": "none", "threads_per_rank": 1,
    "threads_per_core": 1, "node_packing_count": 1, "environ_vars": "", "mpi_flags": "", "application": "",
    "args": "", "user_workdir": "", "wait_for_parents": True, "post_error_handler": False,
    "post_timeout_handler": False, "auto_timeout_retry": True, "state": "CREATED", "state_history": "",
    "queued_launch_id": None,
}  # fmt: skip
"""What a job of Balsam's has that says nothing else; ``job_id``, ``tick`` and ``data`` are always said."""


def identifier(search: str, seq: int) -> str:
    """The id of the evaluation ``seq`` of a search: a request that comes again makes the same job."""
    return str(uuid.uuid5(uuid.UUID(search), str(seq)))


def line(state: str, message: str = "") -> str:
    """A line of a history, now, as Balsam writes it."""
    now = datetime.datetime.now(datetime.timezone.utc).strftime(TIME_FORMAT)
    return f"\n[{now} {state}] ".rjust(46) + message


def history(text: str) -> list[list[Any]]:
    """The lines of a history: [UTC seconds, state, message] each."""
    found = list(_STAMP.finditer(text))
    ends = [match.start() for match in found[1:]] + [len(text)]
    lines = []
    for match, end in zip(found, ends):  # noqa: B905 - Python 3.8
        with contextlib.suppress(ValueError):
            moment = datetime.datetime.strptime(" ".join(match.group(1).split()), TIME_FORMAT)
            seconds = moment.replace(tzinfo=datetime.timezone.utc).timestamp()
            lines.append([seconds, match.group(2), text[match.end() : end].strip()[:_MESSAGE_LIMIT]])
    return lines


def directory(database: str, row: Mapping[str, Any]) -> str:
    """Where a job works, as Balsam has it."""
    given = row["user_workdir"]
    if given and os.path.isdir(given):
        return str(given)
    name = row["name"].strip().replace(" ", "_") + "_" + str(row["job_id"])[:8]
    return os.path.join(database, "data", row["workflow"], name)


def of_search(row: Mapping[str, Any]) -> dict[str, Any]:
    """What we keep in a job's data."""
    data = row["data"]
    own = data.get("nas_hpc") if isinstance(data, dict) else None
    return own if isinstance(own, dict) else {}


def child(database: str, row: Mapping[str, Any], *, again: bool = False) -> dict[str, Any]:
    """An evaluation as the search sees it; ended ones with their result.

    ``again``: its files were looked for before; see ``nas_hpc.processes.results.read``.
    """
    where = directory(database, row)
    return {
        "seq": of_search(row).get("seq"),
        "id": str(row["job_id"]),
        "name": row["name"],
        "state": row["state"],
        "history": history(row["state_history"]),
        "data": row["data"],
        "directory": where,
        "result": result(where, row, again=again) if row["state"] in ENDED else None,
    }


def result(where: str, row: Mapping[str, Any], *, again: bool = False) -> dict[str, Any]:
    """The result of an ended job: its result.json; else the objective that its program noted
    (``nas_hpc.jobs.update_data``), that in its data, or the first that it printed; else no objective, and the
    end of what it printed or Balsam noted.
    """
    if again:
        with contextlib.suppress(OSError):
            os.listdir(where)  # a client of a network file system then asks its server
    written, wrong = _written(where)
    if written is not None:
        return written
    _, own = jobdata.read(where, str(row["job_id"]))
    objective, _ = jobdata.objective_of(own)
    if row["state"] in SUCCEEDED and objective is not None:
        return {"objective": objective, "source": "data", "metadata": jobdata.without_objective(own)}
    data = row["data"] if isinstance(row["data"], dict) else {}
    objective = data.get("dh_objective")
    if row["state"] != "USER_KILLED" and _is_number(objective):
        return {"objective": objective, "source": "data"}
    output = os.path.join(where, row["name"] + ".out")
    printed, strange = results.printed_objective(output, row["name"])
    if row["state"] in SUCCEEDED and printed is not None:
        return {"objective": printed, "source": "output"}
    noted = history(row["state_history"])
    last = [message for _, state, message in noted if state in ("RUN_ERROR", "FAILED", "USER_KILLED")]
    tail = wrong or strange or results.tail(output) or next(filter(None, reversed(last)), "")
    found: dict[str, Any] = {"objective": None, "tail": tail[-results.TAIL_CHARACTERS :]}
    if not (wrong or strange):
        found["source"] = NOTHING
    return found


def is_late(row: Mapping[str, Any], found: Mapping[str, Any] | None) -> bool:
    """Whether a success left no trace of a result: a file system may show it later."""
    return row["state"] in SUCCEEDED and found is not None and found.get("source") == NOTHING


def _written(where: str) -> tuple[dict[str, Any] | None, str]:
    path = os.path.join(where, results.RESULT_FILE)
    try:
        with open(path, "rb") as file:
            content = json.loads(file.read())
    except FileNotFoundError:
        return None, ""
    except (OSError, ValueError, RecursionError) as error:
        return None, f"{path} cannot be read: {error}"
    if not isinstance(content, dict):
        return None, f"{path} holds no object"
    return content, ""


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def objective_to_note(row: Mapping[str, Any], found: Mapping[str, Any] | None) -> float | None:
    """The objective that belongs into the job's data and is not there: Balsam's and DeepHyper's own tools
    look for it there.
    """
    if row["state"] not in SUCCEEDED or found is None or not _is_number(found.get("objective")):
        return None
    value = found["objective"]
    data = row["data"] if isinstance(row["data"], dict) else {}
    return None if data.get("dh_objective") == value else value


def environ_text(environ: Mapping[str, str]) -> str:
    """Variables as Balsam keeps them. Raises Failed for what cannot be kept so."""
    for name, value in environ.items():
        if not name or "=" in name or ":" in f"{name}{value}" or "\n" in value:
            raise Failed(
                "refused",
                f"environment {name}={value}: Balsam keeps variables as A=1:B=2, so none can have a colon",
            )
    return ":".join(f"{name}={value}" for name, value in environ.items())


def new_row(job: Mapping[str, Any], search: Mapping[str, Any], prepared: bool) -> dict[str, Any]:
    """The row of a job that ``add`` asks for. ``prepared``: nothing is left to do before it runs."""
    state = job.get("state") or ("PREPROCESSED" if prepared else "CREATED")
    message = job.get("message") or "made by its search"
    lines = line("CREATED") + (line(state, message) if state != "CREATED" else "")
    row = {name: job.get(name, default) for name, default in DEFAULTS.items()}
    row.update(
        job_id=job["id"],
        environ_vars=environ_text(job.get("environ") or {}),
        data=job.get("data") or {},
        state=state,
        state_history=lines,
        queued_launch_id=search["queued_launch_id"],
    )
    return row


def write_files(where: str, files: Mapping[str, str]) -> None:
    """Make a job's directory with ``files``, each whole or not there. Raises Failed."""
    try:
        os.makedirs(where, exist_ok=True)
        for name, content in files.items():
            results.replace_file(where, name, content.encode(), True)
    except OSError as error:
        kind = "permission" if isinstance(error, PermissionError) else "refused"
        raise Failed(kind, f"the directory {where} cannot be written: {error.strerror}") from None


def remove_files(where: str, names: Iterable[str]) -> None:
    """Remove files of a job's directory, if they are there."""
    for name in names:
        with contextlib.suppress(OSError):
            os.unlink(os.path.join(where, name))
