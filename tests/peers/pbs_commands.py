"""qsub, qstat and qdel of the stand-in for PBS Professional: texts and exit codes are those of OpenPBS."""

from __future__ import annotations

import getopt
import json
import os
import pwd
import re
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.peers.pbs import SERVER, environment_of
from tests.peers.stand_in import Failed, answer, opened
from tests.support import TEST_ID

SHORT = "A:a:C:c:e:h:Ij:J:k:l:m:M:N:o:p:q:r:R:S:u:v:VW:Xz"


def main(program: str, directory: str, argv: Sequence[str]) -> int:
    """Run a command; its exit code."""
    try:
        return answer(program, Path(directory), argv, {"qsub": qsub, "qstat": qstat, "qdel": qdel})
    except Failed as failed:
        sys.stdout.write(failed.stdout)
        sys.stderr.write(f"{failed.stderr}\n")
        return failed.code


# qsub


def qsub(directory: Path, argv: list[str]) -> int:
    """Take a script, or open a shell."""
    pairs, rest = options(argv)
    interactive = any(option == "-I" for option, _ in pairs)
    text = ""
    if not interactive:
        if not rest:
            raise Failed("qsub: this stand-in reads no script from standard input", 1)
        try:
            text = Path(rest[0]).read_text()
        except OSError:
            raise Failed(f"qsub: script file:: {os.strerror(2)}", 1) from None
        pairs = [*directives(text), *pairs]
    with opened(directory) as state:
        number = str(state["next"])
        job = wanted(state, number, pairs, interactive)
        state["next"] += 1
        (directory / f"{number}.SC").write_text(text)
        (directory / f"{number}.SC").chmod(0o700)
        state["jobs"][number] = job
    if interactive:
        return shell(directory, number)
    print(f"{number}.{SERVER}")
    return 0


def options(argv: Sequence[str]) -> tuple[list[tuple[str, str]], list[str]]:
    """Options and what follows them."""
    try:
        return getopt.getopt(list(argv), SHORT)
    except getopt.GetoptError as error:
        raise Failed(
            f"qsub: invalid option -- '{error.opt}'\nusage: qsub [-a date_time] [-A account_string]", 2
        ) from None


def directives(text: str) -> list[tuple[str, str]]:
    """Options of the lines that begin with #PBS, up to the first line of the program itself."""
    found = []
    for line in text.splitlines():
        if line.startswith("#PBS"):
            pairs, rest = options(shlex.split(line[4:], comments=False))
            if rest:
                raise Failed(f"qsub: directive error: {line[4:].strip()} ", 2)
            found += pairs
        elif line.strip() and not line.startswith("#"):
            break
    return found


def wanted(
    state: dict[str, Any], number: str, pairs: list[tuple[str, str]], interactive: bool
) -> dict[str, Any]:
    """The batch job that is asked for."""
    given = dict(pairs)
    resources = {}
    for option, value in pairs:
        if option == "-l":
            name, _, one = value.partition("=")
            resources[name] = one
    queue = given.get("-q", "debug")
    if queue not in state["queues"]:
        raise Failed("qsub: Unknown queue", 170)
    limits = state["queues"][queue]
    if not limits["enabled"]:
        raise Failed("qsub: Queue is not enabled", 171)
    chunks = re.fullmatch(r"(\d+)(:[\w.]+=[\w.:]+)*", resources.get("select", "1"))
    if chunks is None:
        raise Failed(f"qsub: Illegal attribute or resource value {resources['select']}", 178)
    nodes, walltime_s = int(chunks[1]), seconds(resources.get("walltime", "01:00:00"))
    if nodes > limits["max_nodes"] or walltime_s > 60 * limits["max_minutes"]:
        raise Failed("qsub: Job violates queue and/or server resource limits", 188)
    name = given.get("-N", "STDIN")
    return {
        "name": name, "queue": queue, "account": given.get("-A", "_pbs_project_default"), "nodes": nodes,
        "walltime_s": walltime_s, "resources": resources, "keep": given.get("-k", ""), "cwd": os.getcwd(),
        "output": given.get("-o", f"{os.getcwd()}/{name}.o{number}"),
        "depend": depend(state, given.get("-W", "")),
        "variables": variables(given.get("-v", "")), "interactive": interactive, "state": "Q", "substate": 10,
        "comment": "", "exit_status": None, "held": "-h" in given, "deleted": False, "killed": 0.0,
        "over": False,
        "placed": [], "started": 0.0, "ends": 0.0, "ended": 0.0, "created": time.time(), "shell_code": None,
        "pid": 0, "node_file": "", "home": state["home"], "test_id": os.environ.get(TEST_ID, ""),
    }  # fmt: skip


def seconds(text: str) -> float:
    """Of HH:MM:SS, MM:SS or seconds."""
    parts = text.split(":")
    if not all(part.isdecimal() for part in parts) or len(parts) > 3:
        raise Failed("qsub: Illegal attribute or resource value Resource_List.walltime", 178)
    whole = 0
    for part in parts:
        whole = 60 * whole + int(part)
    return float(whole)


def depend(state: dict[str, Any], text: str) -> list[str]:
    """Numbers of the batch jobs that have to end before."""
    if not text:
        return []
    match = re.fullmatch(r"depend=afterany:(.+)", text)
    numbers = [id_.partition(".")[0] for id_ in match[1].split(":")] if match else []
    if not numbers or any(number not in state["jobs"] for number in numbers):
        raise Failed("qsub: Unknown Job Id", 153)
    return numbers


def variables(text: str) -> dict[str, str]:
    """``A=1,B="2,3"``."""
    found = {}
    for match in re.finditer(r'(\w+)(?:=("[^"]*"|(?:\\.|[^,\\])*))?(?:,|$)', text):
        value = os.environ.get(match[1], "") if match[2] is None else match[2]
        found[match[1]] = value[1:-1] if value.startswith('"') else re.sub(r"\\(.)", r"\1", value)
    return found


def shell(directory: Path, number: str) -> int:
    """qsub -I: wait for the nodes, then a login shell on the first of them."""
    print(f"qsub: waiting for job {number}.{SERVER} to start", flush=True)
    while True:
        with opened(directory) as state:
            job = dict(state["jobs"][number])
        if job["state"] == "R":
            break
        time.sleep(0.05)
    print(f"qsub: job {number}.{SERVER} ready\n", flush=True)
    environ = {**environment_of(number, job), "PBS_ENVIRONMENT": "PBS_INTERACTIVE"}
    process = subprocess.Popen(["/bin/bash", "--login"], cwd=job["home"], env=environ)
    with opened(directory) as state:
        state["jobs"][number]["pid"] = process.pid
    code = process.wait()
    with opened(directory) as state:
        state["jobs"][number]["shell_code"] = code
    print(f"\nqsub: job {number}.{SERVER} completed", flush=True)
    return 0


# qstat and qdel


def qstat(directory: Path, argv: list[str]) -> int:
    """Tell of batch jobs, or of queues."""
    pairs, ids = getopt.getopt(argv, "xfF:Qwt")
    given = dict(pairs)
    with opened(directory) as state:
        pass
    head = {"timestamp": int(time.time()), "pbs_version": "23.06.06", "pbs_server": SERVER}
    if "-Q" in given:
        print(
            json.dumps(
                {**head, "Queue": {name: queue(one) for name, one in state["queues"].items()}}, indent=4
            )
        )
        return 0
    code, found = 0, {}
    for id_ in ids:
        number = id_.partition(".")[0]
        job = state["jobs"].get(number)
        if job is None:
            sys.stderr.write(f"qstat: Unknown Job Id {number}.{SERVER}\n")
            code = 153
        elif job["state"] == "F" and "-x" not in given:
            said = "Job has finished, use -x or -H to obtain historical job information"
            sys.stderr.write(f"qstat: {number}.{SERVER} {said}\n")
            code = 35
        else:
            found[f"{number}.{SERVER}"] = attributes(job)
    if given.get("-F") == "json":
        body = {**head, "Jobs": found} if found else head
        text = json.dumps(body, indent=4, separators=(",", ":"))
        print(text.replace('"NUMBER":"007"', '"NUMBER":007') if state["invalid"] else text)
    else:
        for name, one in found.items():
            print(f"Job Id: {name}")
            print(
                "".join(
                    f"    {key} = {value}\n" for key, value in one.items() if isinstance(value, str | int)
                )
            )
    return code


def queue(one: dict[str, Any]) -> dict[str, Any]:
    """Attributes of a queue."""
    clock = f"{one['max_minutes'] // 60:02d}:{one['max_minutes'] % 60:02d}:00"
    return {
        "queue_type": "Execution", "resources_max": {"nodect": one["max_nodes"], "walltime": clock},
        "resources_min": {"nodect": 1}, "enabled": str(one["enabled"]), "started": "True",
    }  # fmt: skip


def attributes(job: dict[str, Any]) -> dict[str, Any]:
    """Attributes of a batch job, in qstat's order."""

    def clock(duration_s: float) -> str:
        whole = int(duration_s)
        return f"{whole // 3600:02d}:{whole // 60 % 60:02d}:{whole % 60:02d}"

    who = pwd.getpwuid(os.getuid()).pw_name
    found: dict[str, Any] = {"Job_Name": job["name"], "Job_Owner": f"{who}@{socket.gethostname()}"}
    if job["started"]:
        used = (job["ended"] or time.time()) - job["started"]
        found["resources_used"] = {"cpupercent": 0, "ncpus": job["nodes"], "walltime": clock(used)}
    found |= {
        "job_state": job["state"],
        "queue": job["queue"],
        "server": SERVER,
        "Account_Name": job["account"],
    }
    if job["depend"] and job["state"] == "H":
        found["depend"] = "afterany:" + ":".join(f"{one}.{SERVER}@{SERVER}" for one in job["depend"])
    if job["placed"]:
        found["exec_host"] = "+".join(f"{node}/0" for node in job["placed"])
    found["Resource_List"] = {
        **job["resources"],
        "nodect": job["nodes"],
        "walltime": clock(job["walltime_s"]),
    }
    if job["started"]:
        found["stime"] = time.strftime("%a %b %d %H:%M:%S %Y", time.localtime(job["started"]))
    found["substate"] = job["substate"]
    found["Variable_List"] = {"PBS_O_WORKDIR": job["cwd"], "NUMBER": "007", **job["variables"]}
    if job["comment"]:
        found["comment"] = job["comment"]
    if job["exit_status"] is not None:
        found["Exit_status"] = job["exit_status"]
    return found


def qdel(directory: Path, ids: list[str]) -> int:
    """End batch jobs."""
    code = 0
    with opened(directory) as state:
        for id_ in ids:
            number = id_.partition(".")[0]
            job = state["jobs"].get(number)
            if job is None:
                sys.stderr.write(f"qdel: Unknown Job Id {number}.{SERVER}\n")
                code = 153
            elif job["state"] == "F":
                sys.stderr.write(f"qdel: Job has finished {number}.{SERVER}\n")
                code = 35
            elif job.get("owner"):
                sys.stderr.write(f"qdel: Unauthorized Request  {number}.{SERVER}\n")
                code = 159
            else:
                job["deleted"] = True
    return code
