"""qstat of the stand-in for Cobalt."""

from __future__ import annotations

import getopt
import os
import time
from pathlib import Path
from typing import Any

from tests.peers.cobalt_state import SHORT_STATES, clock, print_table, stamp
from tests.peers.stand_in import Failed, opened

DEFAULT = ["JobID", "User", "WallTime", "Nodes", "State", "Location"]
FULL = [
    "JobID", "JobName", "User", "WallTime", "QueuedTime", "RunTime", "TimeRemaining", "Nodes", "State",
    "Location", "Mode", "Procs", "Preemptable", "Queue", "StartTime", "Index",
]  # fmt: skip
ALL = [
    *FULL, "User_Hold", "Admin_Hold", "SubmitTime", "Path", "OutputDir", "ErrorPath", "OutputPath", "Envs",
    "Command", "Args", "Project", "Dependencies", "short_state", "Notify", "Score", "attrs", "user_list",
    "Kernel", "KernelOptions", "Maxtasktime", "dep_frac", "Geometry",
]  # fmt: skip
QUEUE = [
    "Name", "Users", "MinTime", "MaxTime", "MaxRunning", "MaxQueued", "MaxUserNodes", "MaxNodeHours",
    "TotalNodes", "State",
]  # fmt: skip


def qstat(directory: Path, argv: list[str]) -> int:
    """Tell of batch jobs, or of queues."""
    try:
        given, names = getopt.gnu_getopt(
            argv, "dflQu:", ["full", "long", "header=", "sort=", "user=", "reverse"]
        )
    except getopt.GetoptError as error:
        raise Failed(f"Usage: qstat [options] <jobids1> ... <jobidsN>\n\nqstat: error: {error}", 2) from None
    options = dict(given)
    with opened(directory) as state:
        pass
    if "-Q" in options:
        return _queues(state, names)
    for name in names:
        if not name.isdigit() and name not in state["queues"]:
            raise Failed(f"{name} is not a valid jobid or queue name")
    whose = options.get("-u", options.get("--user"))
    jobs = [
        job
        for job in state["jobs"].values()
        if (not names or str(job["id"]) in names or job["queue"] in names) and whose in (None, job["user"])
    ]
    if names and not jobs:
        return 1
    full, long = "-f" in options or "--full" in options, "-l" in options or "--long" in options
    custom = options.get("--header") or os.environ.get("CQSTAT_HEADER") or os.environ.get("QSTAT_HEADER")
    header = ALL if full and long else FULL if full else custom.split(":") if custom else DEFAULT
    width = max((len(str(job["id"])) for job in jobs), default=0)
    rows = [
        [fields.get(name.lower(), "-") for name in header] for fields in (_fields(j, width) for j in jobs)
    ]
    print_table(header, rows, vertical=long)
    return 0


def _fields(job: dict[str, Any], width: int) -> dict[str, str]:
    now, started = time.time(), job["started"]
    return {
        "jobid": str(job["id"]).rjust(width), "jobname": job["name"], "user": job["user"],
        "walltime": clock(job["minutes"] * 60), "queuedtime": clock((started or now) - job["submitted"]),
        "runtime": clock(now - started) if started else "N/A",
        "timeremaining": clock(max(0.0, job["ends"] - now)) if started else "N/A",
        "nodes": str(job["nodes"]), "state": job["state"], "location": str(job["location"]),
        "mode": "script" if job["script"] else "interactive", "procs": str(job["nodes"]),
        "preemptable": "False", "queue": job["queue"], "index": "None",
        "starttime": stamp(started) if started else "N/A",
        "user_hold": str(job["held"]), "admin_hold": "False", "submittime": stamp(job["submitted"]),
        "path": "-", "outputdir": job["cwd"], "errorpath": job["error"], "outputpath": job["output"],
        "envs": " ".join(f"{name}={value}" for name, value in job["env"].items()),
        "command": str(job["script"]), "args": " ".join(job["args"]), "project": job["project"] or "None",
        "dependencies": ":".join(job["dependencies"]), "short_state": SHORT_STATES[job["state"]],
        "notify": "None", "score": "  1.0  ", "attrs": str(job["attrs"]), "user_list": job["user"],
    }  # fmt: skip


def _queues(state: dict[str, Any], names: list[str]) -> int:
    queues = {name: queue for name, queue in state["queues"].items() if not names or name in names}
    if names and not queues:
        return 1

    def time_of(whole: int) -> str:
        return f"{whole // 60:02d}:{whole % 60:02d}:00" if whole else "None"

    rows = [
        [
            name, "None", time_of(queue["min_minutes"]), time_of(queue["max_minutes"]), "None",
            str(queue["max_queued"] or None), "None", "None", "None", queue["state"],
        ]
        for name, queue in queues.items()
    ]  # fmt: skip
    print_table(QUEUE, rows)
    return 0
