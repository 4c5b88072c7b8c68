"""The Slurm of the tests is one: allocations, steps on nodes of their own, lost nodes, nothing left."""

from __future__ import annotations

import contextlib
from pathlib import Path

import psutil
import pytest

from tests.peers.mpi import MpiPeer
from tests.peers.slurm import Slurm
from tests.support import assert_no_processes, processes_of, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.needs_slurm]


def test_an_allocation_runs_steps_on_its_nodes(slurm: Slurm) -> None:
    step = ("srun", "-N3", "-n3", "bash", "-c", "echo $SLURM_JOB_NODELIST $SLURMD_NODENAME")
    done = slurm.run("salloc", "-N3", *step)
    lines = sorted(done.stdout.splitlines())
    assert lines == [f"node[1-3] node{number}" for number in (1, 2, 3)]


def test_ranks_of_a_step_find_each_other(slurm: Slurm, mpich: MpiPeer) -> None:
    program = "from mpi4py import MPI; print(MPI.COMM_WORLD.allreduce(1))"
    done = slurm.run("srun", "-N2", "-n2", "--mpi=pmi2", str(mpich.python), "-c", program)
    assert done.stdout.split() == ["2", "2"]


def test_a_node_that_is_lost_takes_all_its_processes_with_it_and_no_others(slurm: Slurm) -> None:
    # The shell of a task starts a process in a session of its own, with an environment of its own.
    task = "setsid env -i sleep 300 & sleep 300"
    job = slurm.sbatch(f"srun --no-kill -N3 -n3 bash -c '{task}'", "-N3", "--no-kill")
    wait_until(lambda: len(sleeping(slurm, "node3")) == len(sleeping(slurm, "node2")) == 2, 60, "the tasks")
    theirs, others = sleeping(slurm, "node3"), sleeping(slurm, "node2")
    slurm.lose("node3")
    wait_until(lambda: not any(map(alive, theirs)), 60, "the end of the node's processes")
    assert all(map(alive, others))
    assert slurm.job(job)["JobState"] == "RUNNING"


def test_a_lost_node_comes_back(slurm: Slurm) -> None:
    slurm.lose("node3")
    assert "node3" not in slurm.idle()
    slurm.bring_back("node3")
    done = slurm.run("srun", "-w", "node3", "bash", "-c", "echo $SLURMD_NODENAME")
    assert done.stdout == "node3\n"


def test_nothing_is_left_of_it(test_id: str, tmp_path: Path) -> None:
    with Slurm(tmp_path / "slurm", nodes=2) as cluster:
        cluster.sbatch("sleep 300", "-N2")
        wait_until(lambda: len(cluster.idle()) == 0 and processes_of(test_id), 60, "the job")
        daemons = [cluster.processes(name) for name in ("slurmctld", *cluster.names)]
        assert all(daemons)
    assert_no_processes(test_id, timeout_s=0.5)
    assert not any(alive(process.pid) for some in daemons for process in some)


def sleeping(slurm: Slurm, node: str) -> set[int]:
    found = set()
    for process in slurm.processes(node):
        with contextlib.suppress(psutil.Error):
            if process.name() == "sleep":
                found.add(process.pid)
    return found


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
