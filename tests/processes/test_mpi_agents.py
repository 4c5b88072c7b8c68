"""A start of agents with the real MPI programs: the end of one process does not end the others."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from nas_hpc.processes.mpi import MpiProgram, agents_command
from tests.peers.mpi import MpiPeer
from tests.peers.slurm import Slurm
from tests.support import stays, wait_until

AGENT = """
import os, sys, time
sys.path.insert(0, sys.argv[1])
from nas_hpc.processes import ranks
here = ranks.find()
name = f"{sys.argv[2]}/{here.rank}"
with open(name + ".part", "w") as file:
    file.write(f"{os.getpid()} {here.size} {os.environ.get('SLURMD_NODENAME', '')}")
os.rename(name + ".part", name)
while not os.path.exists(name + ".exit"):
    time.sleep(0.02)
sys.exit(3)
"""
REPOSITORY = Path(__file__).resolve().parents[2]


class Agents:
    """Three of them; each writes its pid and how many it was told there are."""

    def __init__(self, directory: Path, argv: list[str], environ: dict[str, str] | None = None) -> None:
        self.directory = directory
        self.log = (directory / "log").open("w+b")
        self.start = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=self.log, stderr=subprocess.STDOUT, env=environ,
            start_new_session=True,
        )  # fmt: skip
        self.pids = [self._pid(number) for number in range(3)]

    def _pid(self, number: int) -> int:
        path = self.directory / str(number)

        def read() -> list[str]:
            assert self.start.poll() is None, (self.directory / "log").read_text()
            return path.read_text().split() if path.exists() else []

        words = wait_until(read, 60, f"agent {number}")
        assert words[1] == "3"
        return int(words[0])

    def alive(self) -> list[int]:
        """Numbers of those that run."""

        def runs(pid: int) -> bool:
            try:
                return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
            except psutil.NoSuchProcess:
                return False

        return [number for number, pid in enumerate(self.pids) if runs(pid)]

    def end(self) -> None:
        """As their launcher does: each of them, then the start."""
        for number in range(3):
            (self.directory / f"{number}.exit").touch()
        try:
            self.start.wait(60)
        except subprocess.TimeoutExpired:
            self.start.terminate()
            self.start.wait(60)
        self.log.close()


def command(directory: Path, program: MpiProgram, hosts: list[str], local: bool) -> list[str]:
    script = directory / "agent.py"
    script.write_text(AGENT)
    argv = [sys.executable, str(script), str(REPOSITORY), str(directory)]
    return agents_command(program, hosts, argv, local=local, as_root=os.geteuid() == 0)


def one_dies_by_a_signal_then_one_by_its_exit_code(agents: Agents) -> None:
    try:
        os.kill(agents.pids[1], signal.SIGKILL)
        wait_until(lambda: agents.alive() == [0, 2], 60, "the death of one")
        stays(lambda: agents.alive() == [0, 2] and agents.start.poll() is None, 1.0, "the life of the others")
        (agents.directory / "0.exit").touch()
        wait_until(lambda: agents.alive() == [2], 60, "the end of another")
        stays(lambda: agents.alive() == [2] and agents.start.poll() is None, 1.0, "the life of the last")
    finally:
        agents.end()


@pytest.mark.needs_mpich
@pytest.mark.slow
def test_with_mpich_agents_outlive_each_other(tmp_path: Path, mpich: MpiPeer) -> None:
    argv = command(tmp_path, MpiProgram(str(mpich.mpiexec), "mpich"), ["me"] * 3, local=True)
    one_dies_by_a_signal_then_one_by_its_exit_code(Agents(tmp_path, argv))


@pytest.mark.needs_openmpi
@pytest.mark.slow
def test_with_openmpi_agents_outlive_each_other(tmp_path: Path, openmpi: MpiPeer) -> None:
    argv = command(tmp_path, MpiProgram(str(openmpi.mpiexec), "openmpi"), ["me"] * 3, local=True)
    one_dies_by_a_signal_then_one_by_its_exit_code(Agents(tmp_path, argv))


@pytest.mark.needs_slurm
@pytest.mark.slow
def test_with_srun_agents_outlive_each_other_and_run_on_their_nodes(tmp_path: Path, slurm: Slurm) -> None:
    hosts = ["node3", "node1", "node4"]
    srun = slurm.run("sh", "-c", "command -v srun").stdout.strip()
    argv = command(tmp_path, MpiProgram(srun, "slurm"), hosts, local=False)
    agents = Agents(tmp_path, ["salloc", "--nodelist=node[1-4]", "--quiet", *argv], slurm.environ)
    where = {(tmp_path / str(number)).read_text().split()[2] for number in range(3)}
    assert where == set(hosts)
    one_dies_by_a_signal_then_one_by_its_exit_code(agents)
