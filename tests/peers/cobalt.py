"""A stand-in for Cobalt on a Cray: qsub, qstat, qdel as executables, and the daemon that runs the scripts.

It behaves as Cobalt 1.0.33 does: exit codes, texts, silences, directives split at blanks, the bare
environment of a script, its logs. Compute nodes are names alone: what ``aprun`` starts runs on this machine.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import signal
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.peers.cobalt_state import SHORT_STATES, log, user
from tests.peers.stand_in import StandIn, opened, send_signal
from tests.support import TEST_ID

QUEUES = {
    "debug-cache-quad": {"min_minutes": 0, "max_minutes": 60, "max_queued": 1, "state": "running"},
    "default": {"min_minutes": 30, "max_minutes": 1440, "max_queued": 20, "state": "running"},
}
"""Of Theta. That a queue takes so many nodes is told by its filter, which is no part of Cobalt."""


@dataclass(slots=True)
class Cobalt(StandIn):
    """``with Cobalt(directory) as cobalt:``; ``cobalt.bin`` goes on PATH."""

    nodes: int = 16
    minute_s: float = 60.0
    """How long a minute of a walltime takes."""
    grace_s: float = 300.0
    """From SIGTERM to SIGKILL."""
    log_delay_s: float = 0.0
    """So much later than its end the end of a batch job's log is to be seen, as on a shared file system."""
    commodity: bool = False
    """A cluster that is no Cray: scripts get COBALT_NODEFILE, and COBALT_PARTNAME is the first host alone."""
    host: str = ""
    """Of a commodity cluster: all its nodes are this host, so that an MPI program finds them."""
    home: str = ""
    """Of its user, if it is not the real one."""
    _late: list[tuple[float, dict[str, Any], str]] = field(default_factory=list, init=False)

    @property
    def apruns(self) -> Path:
        """Where a stand-in of aprun leaves a file, its name JOBID.PID: those of a batch job end with it."""
        return self.bin / "apruns"

    def __enter__(self) -> Cobalt:
        self.apruns.mkdir(parents=True)
        state = {"next": 1, "nodes": self.nodes, "queues": dict(QUEUES), "jobs": {}, "ended": {}}
        self._begin("tests.peers.cobalt_commands", state)
        return self

    def __exit__(self, *_: object) -> None:
        self._end()
        for number in self._processes:
            self._end_apruns(number)

    # What tests do with it

    def jobs(self) -> dict[str, dict[str, Any]]:
        """Batch jobs that it has, by id."""
        with opened(self.directory) as state:
            return dict(state["jobs"])

    def state(self, number: str | int) -> str:
        """State of a batch job; empty when it is gone."""
        return str(self.jobs().get(str(number), {}).get("state", ""))

    def ended(self) -> dict[str, int]:
        """Exit codes of those that are gone, by id; -1 of one that was deleted before it started."""
        with opened(self.directory) as state:
            return dict(state["ended"])

    def change(self, number: str | int, **fields: Any) -> None:
        """Change fields of a batch job: its state, its user."""
        assert fields.get("state", "queued") in SHORT_STATES
        with opened(self.directory) as state:
            state["jobs"][str(number)].update(fields)

    def queue(self, name: str, **fields: Any) -> None:
        """Change a queue, or make one."""
        usual = {"min_minutes": 0, "max_minutes": 0, "max_queued": 0, "state": "running"}
        with opened(self.directory) as state:
            state["queues"][name] = {**usual, **state["queues"].get(name, {}), **fields}

    def release(self, number: str | int) -> None:
        """Let a held batch job go, as qrls does."""
        self.change(number, state="queued", held=False)

    def expire(self, number: str | int) -> None:
        """Its walltime is over now."""
        with opened(self.directory) as state:
            state["jobs"][str(number)]["ends"] = time.time()

    # The daemon

    def _look(self, state: dict[str, Any]) -> None:
        for number, job in list(state["jobs"].items()):
            self._step(state, number, job)
        for late in [one for one in self._late if one[0] <= time.time()]:
            self._late.remove(late)
            log(late[1], late[2])

    def _step(self, state: dict[str, Any], number: str, job: dict[str, Any]) -> None:
        if job["state"] == "exiting":
            del state["jobs"][number]
        elif job["state"] == "starting":
            self._start(number, job)
        elif job["started"]:
            self._watch(state, number, job)
        elif job["state"] in ("queued", "dep_hold"):
            codes = [state["ended"].get(one) for one in job["dependencies"]]
            if any(code not in (0, None) for code in codes):
                job["state"] = "dep_fail"
            elif None in codes:
                job["state"] = "dep_hold"
            elif state["queues"][job["queue"]]["state"] == "running":
                self._place(state, job)

    @staticmethod
    def _place(state: dict[str, Any], job: dict[str, Any]) -> None:
        taken = {node for one in state["jobs"].values() for node in one.get("placed", ())}
        free = [node for node in range(1, state["nodes"] + 1) if node not in taken]
        job["state"] = "queued"
        if len(free) >= job["nodes"]:
            job.update(placed=free[: job["nodes"]], state="starting")
            job["location"] = compact(job["placed"])

    def _start(self, number: str, job: dict[str, Any]) -> None:
        now = time.time()
        job.update(state="running", started=now, ends=now + job["minutes"] * self.minute_s)
        node_file = self.directory / f"nodefile.{number}"
        node_file.write_text("".join(f"{self._host(node)}\n" for node in job["placed"]))
        job["nodefile"] = str(node_file)
        log(job, f"{job['user']}/{number}: Initiating boot at location {job['location']}.")
        if job["script"] is None:
            return  # qsub -I runs the shell
        self.environment = self.environment_of(number, job)
        try:
            with (
                open(job["output"], "wb") as out,
                open(job["error"], "wb") as err,
                open(job["stdin"], "rb") as stdin,
            ):
                self._processes[number] = subprocess.Popen(
                    [job["script"], *job["args"]], cwd=job["cwd"], env=self.environment, stdin=stdin,
                    stdout=out, stderr=err, start_new_session=True, umask=int(job["umask"] or "022", 8),
                )  # fmt: skip
        except OSError as error:
            log(job, f"Info: {error}")
            job["shell_code"] = 127

    def _host(self, node: int) -> str:
        return self.host or f"nid{node:05d}"

    def environment_of(self, number: str, job: dict[str, Any]) -> dict[str, str]:
        """All that a script gets. Beside it the tests' mark, by which they find what is left of it."""
        who = pwd.getpwuid(os.getuid())
        environ = {
            "COBALT_JOBID": number, "COBALT_STARTTIME": str(int(job["started"])),
            "COBALT_ENDTIME": str(int(job["ends"])), "COBALT_PARTNAME": job["location"],
            "COBALT_PARTSIZE": str(job["nodes"]), "COBALT_JOBSIZE": str(job["nodes"]),
            "COBALT_PARTCORES": "64", "COBALT_PROJECT": job["project"], "COBALT_QUEUE": job["queue"],
            "HOME": self.home or who.pw_dir, "USER": who.pw_name, "LOGNAME": who.pw_name,
            "SHELL": who.pw_shell or "/bin/sh", TEST_ID: os.environ[TEST_ID],
        }  # fmt: skip
        if self.commodity:
            environ |= {"COBALT_NODEFILE": job["nodefile"], "COBALT_PARTNAME": self._host(job["placed"][0])}
        return {**environ, **job["env"]}

    def _watch(self, state: dict[str, Any], number: str, job: dict[str, Any]) -> None:
        process = self._processes.get(number)
        code = job.get("shell_code") if process is None else process.poll()
        now = time.time()
        if code is not None:
            code = code if code >= 0 else 128 - code
            self._processes.pop(number, None)
            self._end_apruns(number)
            if not job["killed"]:
                end = (
                    f"task completed normally with an exit code of {code}; initiating job cleanup and removal"
                )
                self._log(job, f"Info: {end}")
            state["ended"][number] = code
            job["state"] = "exiting"
        elif job["killed"]:
            if now >= job["killed"] + self.grace_s:
                send_signal(process.pid if process else job["pid"], signal.SIGKILL)
        elif job["kill"] or now >= job["ends"]:
            said = job["kill"] or "maximum execution time exceeded; initiating job terminiation"
            self._log(job, f"Info: {said}")
            job.update(killed=now, state="killing")
            send_signal(process.pid if process else job["pid"], signal.SIGTERM)

    def _log(self, job: dict[str, Any], line: str) -> None:
        if self.log_delay_s:
            self._late.append((time.time() + self.log_delay_s, job, line))
        else:
            log(job, line)

    def _end_apruns(self, number: str) -> None:
        """The reservation of nodes ends: what apruns started there is killed."""
        for path in self.apruns.glob(f"{number}.*"):
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(path.suffix[1:]), signal.SIGTERM)
            path.unlink()


def compact(nodes: list[int]) -> str:
    """``1-5,7,10``: node ids as Cobalt writes them."""
    runs: list[list[int]] = []
    for node in sorted(nodes):
        if runs and runs[-1][1] == node - 1:
            runs[-1][1] = node
        else:
            runs.append([node, node])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


__all__ = ["QUEUES", "Cobalt", "compact", "user"]
