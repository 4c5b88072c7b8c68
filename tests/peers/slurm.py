"""A real Slurm with several nodes on this machine: one slurmctld, one slurmd a node, for the time of a test.

It needs neither systemd nor munge nor root. All nodes have the machine's host name: what tells them apart is
SLURMD_NODENAME in the environment of a step's tasks.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import random
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.support import TEST_ID, describe, end_processes, new_directory, wait_until

PROGRAMS = ("slurmctld-wlm", "slurmd-wlm", "srun", "sbatch", "salloc", "scontrol", "sinfo", "setpriv")
SEARCH = os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin"
NODE = "NAS_HPC_TEST_SLURM_NODE"
"""In the environment of a node's daemons."""
CALL_S = 30.0
"""Deadline of a call of Slurm's commands: one that asks for too much waits for ever."""


_ENDS = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")


def missing_slurm() -> str:
    """What a Slurm here lacks, or an empty string."""
    absent = [program for program in PROGRAMS if shutil.which(program, path=SEARCH) is None]
    if not absent:
        return ""
    return f"needs Slurm, without {', '.join(absent)} here; launch_scripts/run_tests.sh --install gets it"


CONFIGURATION = """\
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/none
CredType=cred/none
SlurmctldPort={port}
StateSaveLocation={directory}/state
SlurmdSpoolDir={spool}/%n
SlurmctldPidFile={directory}/slurmctld.pid
SlurmdPidFile={directory}/%n.pid
SlurmctldLogFile={directory}/slurmctld.log
SlurmdLogFile={directory}/%n.log
MailProg=/bin/true
TmpFS={directory}/tmp/%n
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=bf_interval=1,sched_min_interval=0,batch_sched_delay=0
SlurmdParameters=config_overrides
SwitchType=switch/none
MpiDefault=pmi2
ReturnToService=2
KillWait=3
MinJobAge=3600
FirstJobId={first}
"""


@dataclass(slots=True)
class Slurm:
    """A cluster. ``with Slurm(directory, nodes=4) as slurm: ...``; its commands run under ``environ``."""

    directory: Path
    nodes: int = 4
    cpus: int = 4
    environ: dict[str, str] = field(default_factory=dict)
    """This process's at the start, and SLURM_CONF."""
    _daemons: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    _spool: str = ""
    """A short path: the daemons make sockets in it, and a socket's path has at most 108 characters."""

    @property
    def names(self) -> list[str]:
        """The nodes' names."""
        return [f"node{number}" for number in range(1, self.nodes + 1)]

    def __enter__(self) -> Slurm:
        self._spool = str(new_directory("nhpc"))
        for name in ("state", "tmp"):
            (self.directory / name).mkdir(parents=True, exist_ok=True)
        self.environ = {**os.environ, "SLURM_CONF": str(self.directory / "slurm.conf"), "PATH": SEARCH}
        for attempt in range(3):
            try:
                self._start()
                return self
            except AssertionError:
                self._stop()
                if attempt == 2:
                    raise AssertionError(f"Slurm does not start: {self.logs()}") from None
        raise AssertionError("unreachable")

    def __exit__(self, *_: object) -> None:
        self._stop()
        shutil.rmtree(self._spool, ignore_errors=True)

    # Commands

    def run(
        self, *argv: str, timeout_s: float = CALL_S, code: int | None = 0, cwd: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command of Slurm to its end; ``code`` None: however it ends."""
        done = subprocess.run(
            argv, env=self.environ, cwd=cwd or self.directory, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, timeout=timeout_s, check=False,
        )  # fmt: skip
        assert code is None or done.returncode == code, f"{' '.join(argv)}: {done.stdout}{done.stderr}"
        return done

    def start(self, *argv: str, cwd: Path | None = None, **environ: str) -> subprocess.Popen[str]:
        """Start a command (salloc, srun, a launcher) without waiting for it."""
        return subprocess.Popen(
            argv, env={**self.environ, **environ}, cwd=cwd or self.directory, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    def sbatch(self, script: str, *flags: str, cwd: Path | None = None) -> int:
        """Submit a script; its job id. Output goes to ``{directory}/{id}.out``."""
        path = self.directory / f"script{len(list(self.directory.glob('script*')))}.sh"
        path.write_text(script if script.startswith("#!") else f"#!/bin/bash\n{script}\n")
        output = str(self.directory / "%j.out")
        done = self.run("sbatch", "--parsable", f"--output={output}", *flags, str(path), cwd=cwd)
        return int(done.stdout.strip().partition(";")[0])

    def output(self, job: int) -> str:
        """What a batch job printed so far."""
        path = self.directory / f"{job}.out"
        return path.read_text(errors="replace") if path.exists() else ""

    def job(self, job: int) -> dict[str, str]:
        """What ``scontrol show job`` says. Values with blanks in them are cut at the first."""
        text = self.run("scontrol", "show", "job", str(job)).stdout
        return dict(re.findall(r"(\S+?)=(\S*)", text))

    def wait_job(self, job: int, *states: str, timeout_s: float = 60) -> str:
        """Wait until a job is in one of ``states`` (COMPLETED unless given); the state."""
        wanted = states or ("COMPLETED",)

        def ended() -> str:
            state = self.job(job)["JobState"]
            return state if state in (*wanted, *_ENDS) else ""

        try:
            state = wait_until(ended, timeout_s, f"job {job} to be {' or '.join(wanted)}")
            assert state in wanted, f"job {job} is {state}, not {' or '.join(wanted)}"
            return state
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.job(job)}\n{self.output(job)[-3000:]}") from None

    def cancel(self, job: int) -> None:
        """scancel."""
        self.run("scancel", str(job))

    # Nodes

    def processes(self, node: str) -> list[psutil.Process]:
        """All that runs on a node: its daemons, and everything below a task of its."""
        found: dict[int, psutil.Process] = {}
        daemons = {f"{NODE}={self._mark(node)}"}
        tasks = {f"SLURMD_NODENAME={node}", f"SLURM_CONF={self.environ['SLURM_CONF']}"}
        for process in _marked(daemons, tasks):
            found[process.pid] = process
            with contextlib.suppress(psutil.Error):
                found |= {child.pid: child for child in process.children(recursive=True)}
        return list(found.values())

    def _mark(self, node: str) -> str:
        return f"{self.directory}:{node}"

    def lose(self, node: str) -> None:
        """A node goes: everything on it is killed at once, and Slurm hears of it."""
        victims = self.processes(node)
        for process in victims:  # none of them gets to react to the end of another
            with contextlib.suppress(psutil.Error):
                process.send_signal(signal.SIGSTOP)
        end_processes([*victims, *self.processes(node)])
        self._daemons.pop(node).wait(60)
        self.run("scontrol", "update", f"nodename={node}", "state=down", "reason=lost")

    def bring_back(self, node: str) -> None:
        """Start a lost node again."""
        self._daemons[node] = self._daemon(node, "slurmd-wlm", "-D", "-N", node)
        self.run("scontrol", "update", f"nodename={node}", "state=resume", code=None)  # or it did by itself
        self._wait_idle([node])

    def idle(self) -> list[str]:
        """The nodes on which nothing runs."""
        return self.run("sinfo", "-h", "-N", "-t", "idle", "-o", "%N", code=None).stdout.split()

    # Start and stop

    def _start(self) -> None:
        ports = list(_free_ports(1 + self.nodes))
        text = CONFIGURATION.format(
            host=socket.gethostname(),
            user=pwd.getpwuid(os.geteuid()).pw_name,
            port=ports[0],
            directory=self.directory,
            spool=self._spool,
            # MPICH calls its shared memory after job and step: two clusters on one machine must not share it.
            first=random.SystemRandom().randrange(1, 60_000_000),
        )
        for name, port in zip(self.names, ports[1:], strict=True):
            text += (
                f"NodeName={name} NodeHostname={socket.gethostname()} NodeAddr=127.0.0.1 Port={port} "
                f"CPUs={self.cpus} RealMemory=2000 State=UNKNOWN\n"
            )
        text += "PartitionName=debug Nodes=ALL Default=YES MaxTime=INFINITE State=UP\n"
        (self.directory / "slurm.conf").write_text(text)
        self._daemons["slurmctld"] = self._daemon("slurmctld", "slurmctld-wlm", "-D", "-c")
        for name in self.names:
            self._daemons[name] = self._daemon(name, "slurmd-wlm", "-D", "-N", name)
        self._wait_idle(self.names)

    def _daemon(self, node: str, *argv: str) -> subprocess.Popen[bytes]:
        """Start a daemon that dies with this process. It is no part of what the test starts in its jobs."""
        environ = {name: value for name, value in self.environ.items() if name != TEST_ID}
        with (self.directory / f"{node}.out").open("ab") as output:
            return subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *argv, "-f", self.environ["SLURM_CONF"]],
                env={**environ, NODE: self._mark(node)}, stdin=subprocess.DEVNULL, stdout=output,
                stderr=subprocess.STDOUT, start_new_session=True, cwd=self.directory,
            )  # fmt: skip

    def _wait_idle(self, names: Sequence[str]) -> None:
        def ready() -> bool:
            dead = [name for name, daemon in self._daemons.items() if daemon.poll() is not None]
            assert not dead, f"ended at once: {', '.join(dead)}"
            return set(names) <= set(self.idle())

        wait_until(ready, 60, f"idle nodes {', '.join(names)}")

    def _stop(self) -> None:
        """End jobs and daemons, by force what does not go."""
        controller = self._daemons.get("slurmctld")
        if controller is not None and controller.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._end_jobs()
                self.run("scontrol", "shutdown", timeout_s=10, code=None)
        deadline = time.monotonic() + 60
        for daemon in self._daemons.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                daemon.wait(max(0.0, deadline - time.monotonic()))
        left = [process for name in ["slurmctld", *self.names] for process in self.processes(name)]
        if left:
            print(f"Slurm's end by force of: {describe(left)}")
        end_processes(left)
        for daemon in self._daemons.values():
            daemon.wait(60)
        self._daemons.clear()

    def _end_jobs(self) -> None:
        def listed() -> list[str]:
            return self.run("squeue", "-h", "-o", "%A", code=None).stdout.split()

        jobs = listed()
        if jobs:
            self.run("scancel", "--signal=KILL", "--full", *jobs, code=None)
            self.run("scancel", *jobs, code=None)
            with contextlib.suppress(AssertionError):
                wait_until(lambda: not listed(), 60, "the jobs' end")

    def logs(self) -> str:
        """The ends of the daemons' logs."""
        texts = []
        for path in sorted([*self.directory.glob("*.log"), *self.directory.glob("*.out")]):
            texts.append(f"--- {path.name}\n{path.read_text(errors='replace')[-600:]}")
        return "\n".join(texts)


def _marked(*marks: set[str]) -> Iterator[psutil.Process]:
    """Live processes with all of one of the sets of ``marks`` (``NAME=value``) in their environment."""
    wanted = [{mark.encode() for mark in some} for some in marks]
    for entry in os.scandir("/proc"):
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError, psutil.Error):
                environ = set(Path(entry.path, "environ").read_bytes().split(b"\0"))
                if any(some <= environ for some in wanted):
                    yield psutil.Process(int(entry.name))


def _free_ports(count: int) -> Iterator[int]:
    """Ports below those that the kernel gives to outgoing connections."""
    chance = random.SystemRandom()
    taken: set[int] = set()
    while len(taken) < count:
        port = chance.randrange(15000, 30000)
        if port in taken:
            continue
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        taken.add(port)
        yield port
