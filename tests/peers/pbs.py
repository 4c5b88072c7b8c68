"""A stand-in for PBS Professional: qsub, qstat, qdel as executables, and the daemon that runs the scripts.

A script runs on its first node, which is this machine, in a login shell with a bare environment, and its
output goes to its place when the batch job ends, unless ``-k doe`` has it written there at once. Finished
batch jobs are remembered. The home directory is an empty one: what a profile of the user's does takes time,
and a shell that is killed in it may leave that half done. The other nodes are names alone.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.peers.stand_in import StandIn, opened, send_signal
from tests.support import TEST_ID

SERVER = "tests-pbs-01"
QUEUES: dict[str, dict[str, Any]] = {
    "debug": {"max_nodes": 2, "max_minutes": 60, "enabled": True},
    "prod": {"max_nodes": 8, "max_minutes": 1440, "enabled": True},
    "preemptable": {"max_nodes": 10, "max_minutes": 4320, "enabled": True},
    "closed": {"max_nodes": 8, "max_minutes": 60, "enabled": False},
}
PATH = "/usr/local/bin:/usr/bin:/bin"
"""Of scripts."""


@dataclass(slots=True)
class PbsPro(StandIn):
    """``with PbsPro(directory) as pbs:``; ``pbs.bin`` goes on PATH."""

    nodes: tuple[str, ...] = (socket.gethostname(), "x3006c0s2b0n0", "x3006c0s3b0n0", "x3006c0s4b0n0")
    grace_s: float = 10.0
    """From SIGTERM to SIGKILL."""
    on_path: tuple[str, ...] = ()
    """Directories that a login shell has on its PATH beside the usual."""

    def __enter__(self) -> PbsPro:
        home = self.directory / "home"
        home.mkdir(parents=True)
        state = {
            "next": 101, "nodes": list(self.nodes), "queues": QUEUES, "jobs": {}, "invalid": False,
            "home": str(home),
        }  # fmt: skip
        self._begin("tests.peers.pbs_commands", state)
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    # What tests do with it

    def job(self, id_: str) -> dict[str, Any]:
        """What it knows of a batch job."""
        with opened(self.directory) as state:
            return dict(state["jobs"][id_.partition(".")[0]])

    def letter(self, id_: str) -> str:
        """Its job_state."""
        return str(self.job(id_)["state"])

    def change(self, id_: str, **fields: Any) -> None:
        """Change fields of a batch job."""
        with opened(self.directory) as state:
            state["jobs"][id_.partition(".")[0]].update(fields)

    def expire(self, id_: str) -> None:
        """Its walltime is over now."""
        self.change(id_, ends=time.time())

    def forget(self, id_: str) -> None:
        """It falls out of the history."""
        with opened(self.directory) as state:
            del state["jobs"][id_.partition(".")[0]]

    def invalid_json(self) -> None:
        """From now on variables of batch jobs hold what makes qstat's JSON invalid."""
        with opened(self.directory) as state:
            state["invalid"] = True

    # The daemon

    def _look(self, state: dict[str, Any]) -> None:
        for number, job in state["jobs"].items():
            self._step(state, number, job)

    def _step(self, state: dict[str, Any], number: str, job: dict[str, Any]) -> None:
        jobs = state["jobs"]
        if job["state"] in ("Q", "H") and job["deleted"]:
            job.update(state="F", substate=91, comment=f"{job['comment']} and terminated".strip())
        elif job["state"] in ("Q", "H") and not job["held"]:
            waits = [one for one in job["depend"] if one in jobs and jobs[one]["state"] != "F"]
            job["state"] = "H" if waits else "Q"
            taken = {node for one in jobs.values() if one["state"] in "RE" for node in one["placed"]}
            free = [node for node in state["nodes"] if node not in taken]
            if not waits and len(free) >= job["nodes"]:
                self._start(number, job, free[: job["nodes"]])
            elif not waits:
                job["comment"] = "Not Running: Insufficient amount of resource: nodes"
        elif job["state"] in ("R", "E"):
            self._watch(number, job)

    def _start(self, number: str, job: dict[str, Any], placed: list[str]) -> None:
        now = time.time()
        host = f"{placed[0]}:ncpus=1"
        job.update(state="R", substate=42, placed=placed, started=now, ends=now + job["walltime_s"])
        job["comment"] = f"Job run at {time.strftime('%a %b %d at %H:%M', time.localtime(now))} on ({host})"
        node_file = self.directory / f"{number}.{SERVER}.nodes"
        node_file.write_text("".join(f"{node}\n" for node in placed))
        job["node_file"] = str(node_file)
        if job["interactive"]:
            return  # qsub -I runs the shell
        self.environment = environment_of(number, job, self.on_path)
        spool = self.directory / f"{number}.OU"
        out = Path(job["output"]) if "d" in job["keep"] else spool
        out.parent.mkdir(parents=True, exist_ok=True)
        name = f"{self.directory}/{number}.SC\n".encode()
        with out.open("ab") as stdout:  # the login shell is told the script's name on its standard input
            process = subprocess.Popen(
                ["/bin/bash", "--login"], cwd=job["home"], env=self.environment,
                stdin=subprocess.PIPE, stdout=stdout, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(name)
            process.stdin.close()
        self._processes[number] = process

    def _watch(self, number: str, job: dict[str, Any]) -> None:
        process = self._processes.get(number)
        code = job["shell_code"] if process is None else process.poll()
        now = time.time()
        if code is not None:
            if process is not None and _lives(process.pid):  # others of its session, when it has ended
                if now < job["killed"] + self.grace_s:
                    return
                os.killpg(process.pid, signal.SIGKILL)
            self._finish(number, job, 256 - code if code < 0 else 256 + code - 128 if code > 128 else code)
        elif job["killed"]:
            if now >= job["killed"] + self.grace_s:
                send_signal(process.pid if process else job["pid"], signal.SIGKILL)
        elif job["deleted"] or now >= job["ends"]:
            job.update(killed=now, state="E", over=not job["deleted"])
            send_signal(process.pid if process else job["pid"], signal.SIGTERM)

    def _finish(self, number: str, job: dict[str, Any], code: int) -> None:
        self._processes.pop(number, None)
        said = {"substate": 93 if code else 92, "comment": "failed" if code else "finished"}
        if job["over"]:
            code, said = -29, {"substate": 93, "comment": "exceeded resource walltime"}
        elif job["deleted"]:
            said = {"substate": 91, "comment": "terminated"}
        comment = f"{job['comment']} and {said['comment']}"
        job.update(state="F", exit_status=code, substate=said["substate"], comment=comment, ended=time.time())
        spool = self.directory / f"{number}.OU"
        if spool.exists():
            with contextlib.suppress(OSError):
                shutil.move(spool, job["output"])


def environment_of(number: str, job: dict[str, Any], on_path: tuple[str, ...] = ()) -> dict[str, str]:
    """All that a script gets. Beside it the tests' mark, by which they find what is left of it."""
    who = pwd.getpwuid(os.getuid())
    return {
        "HOME": job["home"], "LOGNAME": who.pw_name, "USER": who.pw_name, "SHELL": "/bin/bash",
        "LANG": "C", "PATH": ":".join([*on_path, PATH]), "TMPDIR": "/tmp", "NCPUS": "1",
        "OMP_NUM_THREADS": "1",
        "PBS_JOBID": f"{number}.{SERVER}", "PBS_JOBNAME": job["name"], "PBS_QUEUE": job["queue"],
        "PBS_NODEFILE": job["node_file"], "PBS_ENVIRONMENT": "PBS_BATCH", "PBS_NODENUM": "0",
        "PBS_TASKNUM": "1", "PBS_MOMPORT": "15003", "PBS_JOBDIR": job["home"],
        "PBS_O_WORKDIR": job["cwd"], "PBS_O_HOST": socket.gethostname(), "PBS_O_HOME": job["home"],
        "PBS_O_PATH": PATH, "PBS_O_LOGNAME": who.pw_name, "PBS_O_SHELL": "/bin/bash",
        "PBS_O_QUEUE": job["queue"], "PBS_O_SYSTEM": "Linux", **job["variables"],
        TEST_ID: job["test_id"],
    }  # fmt: skip


def _lives(group: int) -> bool:
    """Whether there is a process in the group."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True
