"""qsub and qdel of the stand-in for Cobalt, as 1.0.33 behaves on a Cray; the start of all its commands."""

from __future__ import annotations

import getopt
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.peers.cobalt_qstat import qstat
from tests.peers.cobalt_state import log, print_table, user
from tests.peers.stand_in import Failed, answer, opened

SHORT = "A:q:n:t:IO:o:e:i:hu:M:d"
LONG = [
    "help", "project=", "queue=", "nodecount=", "time=", "mode=", "interactive", "outputprefix=", "output=",
    "error=", "debuglog=", "inputfile=", "cwd=", "env=", "attrs=", "dependencies=", "jobname=", "held",
    "umask=", "notify=", "run_users=", "run_project", "preemptable", "proccount=", "debug",
]  # fmt: skip
SAME = {
    "-A": "--project", "-q": "--queue", "-n": "--nodecount", "-t": "--time", "-I": "--interactive",
    "-O": "--outputprefix", "-o": "--output", "-e": "--error", "-i": "--inputfile", "-h": "--held",
    "-u": "--umask", "-M": "--notify", "-d": "--debug",
}  # fmt: skip
MCDRAM = {"flat", "cache", "split", "equal", "0", "25", "50", "100"}
NUMA = {"a2a", "hemi", "quad", "snc2", "snc4"}
USAGE = "Usage: qsub [options] <executable> [<executable options>]\n"


def main(program: str, directory: str, argv: Sequence[str]) -> int:
    """Run a command; its exit code."""
    try:
        return answer(program, Path(directory), argv, {"qsub": qsub, "qstat": qstat, "qdel": qdel})
    except Failed as failed:
        sys.stdout.write(failed.stdout)
        if "Fault" in failed.stderr:
            sys.stderr.write('No handlers could be found for logger "Proxy"\n')
        sys.stderr.write(f"{failed.stderr}\n")
        return failed.code


# qsub


def qsub(directory: Path, argv: list[str]) -> int:
    """Take a batch job; -I: wait for it, and run the shell."""
    options, rest, order = _parsed(argv)
    if "--help" in options:
        sys.stdout.write(USAGE)
        return 0
    interactive = "--interactive" in options or options.get("--mode") == "interactive"
    if not rest and not interactive:
        raise Failed("No executable or script specified", stdout=USAGE)
    cwd = Path(options.get("--cwd", os.getcwd()))
    script = None if interactive else cwd / rest[0]
    if script is not None and script.is_file():
        inner, _, inner_order = _parsed(_directives(script))
        options = {**inner, **options}
        order = order if "--attrs" in order else inner_order + order
    if order.count("--attrs") > 1:
        raise Failed("Multiple --attrs options not supported.  Specify all attributes in one option.")
    for name in ("time", "nodecount"):
        if f"--{name}" not in options:
            raise Failed(f"'{name}' not provided")
    if script is not None and not script.is_file():
        raise Failed(f"command {script} not found, or is not a file")
    if script is not None and not os.access(script, os.X_OK):
        raise Failed(f"command {script} is not executable")
    wanted = minutes(options["--time"])
    attrs = _attributes(options.get("--attrs", ""))
    with opened(directory) as state:
        job = _accept(state, options, wanted, attrs, cwd, script, rest[1:])
    if interactive:
        return _interactive(directory, str(job["id"]), options)
    print(job["id"])
    return 0


def _parsed(argv: Sequence[str]) -> tuple[dict[str, str], list[str], list[str]]:
    try:
        given, rest = getopt.getopt(list(argv), SHORT, LONG)
    except getopt.GetoptError as error:
        raise Failed(f"{USAGE}\nqsub: error: {error}", 2) from None
    options: dict[str, str] = {}
    for name, value in given:
        name = SAME.get(name, name)
        if name == "--env" and name in options:
            value = f"{options[name]}:{value}"
        if name in ("--nodecount", "--proccount") and not re.fullmatch(r"-?[0-9]+", value):
            raise Failed(f"{USAGE}\nqsub: error: option -n: invalid integer value: '{value}'", 2)
        options[name] = value
    return options, rest, [SAME.get(name, name) for name, _ in given]


def _directives(script: Path) -> list[str]:
    """Words of the directives: from line 2 on, until the first line that is none, split at blanks."""
    lines = script.read_text(errors="replace").splitlines()
    if not lines or not lines[0].startswith("#!"):
        return []
    words = []
    for line in lines[1:]:
        if not line.startswith("#COBALT "):
            break
        words += line.split()[1:]
    return words


def minutes(text: str) -> int:
    """-t: minutes, HH:MM, HH:MM:SS or DD:HH:MM:SS; the seconds are dropped."""
    parts = text.split(":")
    names = {1: ["minutes"], 2: ["hours", "minutes"], 3: ["hours", "minutes", "seconds"]}.get(
        len(parts), ["days", "hours", "minutes", "seconds"]
    )
    if len(parts) > 4:
        raise Failed(f"invalid time specification: {text}")
    total = 0
    for name, part in zip(names, parts, strict=True):
        if not part.isdigit():
            raise Failed(f"invalid time specification: illegal value '{part}' for {name}")
        total += int(part) * {"days": 1440, "hours": 60, "minutes": 1, "seconds": 0}[name]
    return total


def _attributes(text: str) -> dict[str, str]:
    """--attrs; keys that nobody knows are taken."""
    attrs = dict(part.partition("=")[::2] for part in text.split(":") if part)
    for key, known in (("mcdram", MCDRAM), ("numa", NUMA)):
        if key in attrs and attrs[key] not in known:
            raise Failed(
                f"component error: XMLRPC failure <Fault 1004: '{attrs[key]} not valid {key} setting.'> "
                "in system.validate_job"
            )
    return attrs


def unescaped(text: str) -> dict[str, str]:
    r"""--env: ``A=1:B=2`` with ``\:`` and ``\=``."""
    pairs = (re.split(r"(?<!\\)=", part, maxsplit=1) for part in re.split(r"(?<!\\):", text) if part)
    return {one[0]: re.sub(r"\\([:=])", r"\1", one[1] if len(one) > 1 else "") for one in pairs}


def _accept(
    state: dict[str, Any], options: dict[str, str], wanted: int, attrs: dict[str, str], cwd: Path,
    script: Path | None, args: list[str],
) -> dict[str, Any]:  # fmt: skip
    nodes = int(options["--nodecount"])
    if not 1 <= nodes <= state["nodes"]:
        raise Failed("node count out of realistic range")
    name = options.get("--queue", "default")
    queue = state["queues"].get(name)
    if queue is None:
        raise Failed(f"""<Fault 1001: "trying to add job to non-existent queue '{name}'">""")
    said = _refusal(state, name, queue, wanted)
    if said:
        raise Failed(f'<Fault 1001: "The following jobs failed:  {said}">')
    dependencies = [part for part in options.get("--dependencies", "").split(":") if part]
    unknown = [one for one in dependencies if one not in state["jobs"] and one not in state["ended"]]
    if unknown:
        sys.stderr.write(
            f"WARNING: dependencies {':'.join(unknown)} do not match jobs currently in the queue\n"
        )
    if queue["state"] == "stopped":
        sys.stderr.write(f"WARNING: queue '{name}' is stopped\n")
    number = state["next"]
    state["next"] = number + 1

    def path(option: str, ending: str) -> str:
        given = options.get(option) or options.get("--outputprefix", "$jobid") + ending
        given = given.replace("$jobid", str(number)).replace("$COBALT_JOBID", str(number))
        return str(cwd / given)

    env = options.get("--env", "").replace("$jobid", str(number)).replace("$COBALT_JOBID", str(number))
    job = {
        "id": number, "user": user(), "queue": name, "nodes": nodes,
        "minutes": wanted or queue["max_minutes"], "script": script and str(script),
        "args": args, "cwd": str(cwd),
        "output": path("--output", ".output"), "error": path("--error", ".error"),
        "log": path("--debuglog", ".cobaltlog"), "stdin": options.get("--inputfile", "/dev/null"),
        "project": options.get("--project", ""), "env": unescaped(env), "attrs": attrs, "location": None,
        "dependencies": dependencies, "submitted": time.time(), "started": 0.0, "ends": 0.0,
        "state": "user_hold" if "--held" in options else "queued", "held": "--held" in options,
        "name": options.get("--jobname") or _basename(options), "kill": "", "killed": 0.0, "pid": 0,
        "umask": options.get("--umask", ""),
    }  # fmt: skip
    state["jobs"][str(number)] = job
    log(job, f"submitted with cwd set to: {cwd}")
    return job


def _basename(options: dict[str, str]) -> str:
    given = options.get("--output") or options.get("--outputprefix")
    return os.path.basename(given) if given else "N/A"


def _refusal(state: dict[str, Any], name: str, queue: dict[str, Any], wanted: int) -> str:
    def clock(whole: int) -> str:
        return f"{whole // 60:02d}:{whole % 60:02d}:00"

    if queue["state"] in ("draining", "dead"):
        return f"The '{name}' queue is {queue['state']}"
    if queue["max_minutes"] and wanted > queue["max_minutes"]:
        return f"Walltime greater than the '{name}' queue max walltime of {clock(queue['max_minutes'])}\\n"
    if wanted and wanted < queue["min_minutes"]:
        return f"Walltime less than the '{name}' queue min walltime of {clock(queue['min_minutes'])}\\n"
    own = [job for job in state["jobs"].values() if job["queue"] == name and job["user"] == user()]
    if queue["max_queued"] and len(own) >= queue["max_queued"]:
        return f"The limit of {queue['max_queued']} jobs per user in the '{name}' queue has been reached\\n"
    return ""


def _interactive(directory: Path, number: str, options: dict[str, str]) -> int:
    """Wait until the nodes are there, then run the shell beside the daemon."""
    while True:
        with opened(directory) as state:
            job = state["jobs"].get(number)
            if job is None:
                raise Failed(f"job {number} is gone")
            if job["state"] == "running":
                break
        time.sleep(0.03)
    environ = {
        **os.environ, **job["env"], "COBALT_JOBID": number, "COBALT_PARTNAME": job["location"],
        "COBALT_JOBSIZE": str(job["nodes"]), "COBALT_NODEFILE": job["nodefile"],
    }  # fmt: skip
    process = subprocess.Popen([os.environ.get("SHELL", "/bin/sh")], env=environ)
    with opened(directory) as state:
        if number in state["jobs"]:
            state["jobs"][number]["pid"] = process.pid
    code = process.wait()
    with opened(directory) as state:
        if number in state["jobs"]:
            state["jobs"][number]["shell_code"] = code if code >= 0 else 128 - code
    return code if code >= 0 else 128 - code


# qdel


def qdel(directory: Path, argv: list[str]) -> int:
    """Delete the caller's batch jobs; of others, and of those that are not there, it says nothing."""
    for word in argv:
        if not re.fullmatch(r"-?[0-9]+", word):
            raise Failed(f"jobid must be an integer: {word}")
    deleted = []
    with opened(directory) as state:
        for word in argv:
            job = state["jobs"].get(word)
            if job is None or job["user"] != user() or job["state"] in ("killing", "exiting", "done"):
                continue
            deleted.append([word, job["user"]])
            if job["started"]:
                job["kill"], job["state"] = (
                    f"user delete requested with signal SIGTERM by user {user()}",
                    "killing",
                )
            else:
                log(job, "Info: user delete requested; removing job from the queue")
                state["ended"][word] = -1
                del state["jobs"][word]
    if deleted:
        print("      Deleted Jobs")
        print_table(["JobID", "User"], deleted)
    return 0
