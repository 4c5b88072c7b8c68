"""mpi mode on several hosts: hydra over a stand-in for ssh, a real Slurm, and fronts of aprun and PALS."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time

import psutil
import pytest

from tests.launcher.bench import REPOSITORY, Bench
from tests.launcher.ranks import PLACES, add_search, places, results, running
from tests.peers.fronts import write_front
from tests.peers.mpi import MpiPeer
from tests.peers.slurm import Slurm
from tests.support import TEST_ID, stays, wait_until

HOSTS = """#!/bin/sh
# Stands in for ssh: runs the command here, with the host's name in its environment.
while [ "${1#-}" != "$1" ]; do shift; done
host=$1; shift
echo "$host" >> "$(dirname "$0")/hosts"
FAKE_HOST=$host exec sh -c "$*"
"""


@pytest.mark.needs_mpich
@pytest.mark.slow
def test_jobs_reach_other_hosts_by_the_mpi_program_with_their_ranks_on_each(
    bench: Bench, mpich: MpiPeer
) -> None:
    """hydra starts its proxies by a stand-in for ssh that runs them on this machine."""
    ssh = bench.directory / "ssh"
    ssh.write_text(HOSTS)
    ssh.chmod(0o755)
    nodes = bench.directory / "nodes"
    nodes.write_text("".join(f"{name}\n" for name in (os.uname().nodename, "far1", "far2")))
    show = bench.script("PLACES", PLACES)
    bench.job("big", show, "--num-nodes", "3", "--ranks-per-node", "2", "--env", "MARK=1")
    bench.job("pair", show, "--num-nodes", "2", "--env", "MARK=2")
    for number in range(3):
        bench.job(f"single{number}", show, "--env", f"MARK={number}")
    environ = {
        **os.environ, "PYTHONPATH": str(REPOSITORY), "COBALT_JOBID": "7", "COBALT_NODEFILE": str(nodes),
        "COBALT_ENDTIME": str(time.time() + 3600), "COBALT_PARTNAME": "x",
        "NAS_HPC_MPI": str(mpich.mpiexec), "NAS_HPC_MPI_FLAGS": f"-launcher ssh -launcher-exec {ssh}",
    }  # fmt: skip
    launcher = bench.start(environ=environ)
    log, _ = launcher.communicate(timeout=100)
    assert launcher.returncode == 0, log
    tried = (bench.directory / "hosts").read_text().split()[:2]
    assert sorted(tried) == ["far1", "far2"], log
    words = [line.split()[1:] for line in places(bench, "big")]
    hosts = [word[0] for word in words]
    assert hosts[::2] == hosts[1::2]
    assert {*hosts} in ({"here", "far1", "far2"}, {os.uname().nodename, "far1", "far2"})
    assert [word[1:] for word in words] == [[str(n), str(n % 2), "1", "6"] for n in range(6)]
    assert len(places(bench, "pair")) == 2
    singles = {places(bench, f"single{number}")[0].split()[1] for number in range(3)}
    assert singles <= {"here", "far1", "far2"}
    assert all(
        places(bench, f"single{number}")[0].split()[2:] == ["0", "0", str(number), "1"] for number in range(3)
    )


MEET = """
import glob, time
if world.size == 1:
    open("../met" + os.environ["MARK"], "w").close()
    while len(glob.glob("../met*")) < 2:
        time.sleep(0.05)
"""
"""Of two that run on one rank each the first waits for the other."""


@pytest.mark.needs_slurm
@pytest.mark.needs_mpich
@pytest.mark.slow
def test_in_a_slurm_allocation_srun_starts_jobs_on_their_nodes_beside_each_other(
    bench: Bench, slurm: Slurm, mpich: MpiPeer
) -> None:
    code = PLACES.replace('"FAKE_HOST", "here"', '"SLURMD_NODENAME", "node1"') + MEET
    show = bench.script("PLACES", code)
    bench.job("big", show, "--num-nodes", "2", "--ranks-per-node", "2", "--env", "MARK=1")
    for number in range(4):
        bench.job(f"single{number}", show, "--env", f"MARK={number}")
    line = f"exec {sys.executable} -m nas_hpc.cli --site {bench.site} launcher"
    script = f"export PYTHONPATH={REPOSITORY} {TEST_ID}={bench.test_id}\ncd {REPOSITORY}\n{line}"
    job = slurm.sbatch(script, "--nodes=4", "--exclusive", "--time=5")
    slurm.wait_job(job, timeout_s=100)
    log = slurm.output(job)
    assert "MPI: Slurm's srun" in log
    assert "find each other" in log
    big = places(bench, "big")
    assert [one.split()[2:4] for one in big] == [["0", "0"], ["1", "1"], ["2", "0"], ["3", "1"]]
    assert len({one.split()[1] for one in big}) == 2
    lines = {one["name"]: one for one in bench.attempts()}
    for name in ("big", *(f"single{number}" for number in range(4))):
        assert lines[name]["outcome"] == "ok", (name, log)
        assert {one.split()[1] for one in places(bench, name)} == set(lines[name]["nodes"])
    spans = [(lines[f"single{n}"]["start"], lines[f"single{n}"]["end"]) for n in range(4)]
    assert max(sum(begin < one[1] and one[0] < end for one in spans) for begin, end in spans) >= 2
    assert not [line for line in log.splitlines() if "cannot run" in line]


@pytest.mark.needs_slurm
@pytest.mark.slow
def test_steps_of_srun_end_with_a_killed_launcher_while_the_allocation_goes_on(
    bench: Bench, slurm: Slurm
) -> None:
    code = "import os, time; open('at' + os.environ['NAS_HPC_RANK'], 'w').close(); time.sleep(600)"
    bench.job("big", bench.script("WAITS", code), "--num-nodes", "2", "--ranks-per-node", "2")
    line = f"{sys.executable} -m nas_hpc.cli --site {bench.site} launcher --mpi $(command -v srun)"
    script = (
        f"export PYTHONPATH={REPOSITORY} {TEST_ID}={bench.test_id}\ncd {REPOSITORY}\n{line}\nexec sleep 600"
    )
    job = slurm.sbatch(script, "--nodes=2", "--exclusive", "--time=5")
    try:
        wait_until(lambda: len(list(bench.site.glob("data/W/big_*/at*"))) == 4, 60, lambda: slurm.output(job))
        owner = json.loads((bench.site / "run" / "owner.json").read_text())
        os.kill(owner["pid"], signal.SIGKILL)

        wait_until(lambda: not running(bench, "waits.py"), 60, "the end of the ranks")

        def steps() -> list[str]:
            listed = slurm.run("squeue", "-h", "-s", "-j", str(job), "-o", "%i").stdout.split()
            return [step for step in listed if not step.endswith((".batch", ".extern"))]

        wait_until(lambda: not steps(), 60, "the end of the steps")
        assert slurm.job(job)["JobState"] == "RUNNING"
    finally:
        slurm.cancel(job)


@pytest.mark.needs_slurm
@pytest.mark.slow
def test_steps_that_outlived_launcher_guardian_and_srun_are_ended_before_anything_runs_again(
    bench: Bench, slurm: Slurm
) -> None:
    code = (
        "import os, time; open(f'at{os.getpid()}', 'w').close()\n"
        "time.sleep(0 if os.environ['NAS_HPC_ATTEMPT'] == '2' else 600)\n"
    )
    bench.job("big", bench.script("WAITS", code), "--num-nodes", "2")
    line = f"{sys.executable} -m nas_hpc.cli --site {bench.site} launcher --mpi $(command -v srun)"
    go = bench.directory / "go"
    script = (
        f"export PYTHONPATH={REPOSITORY} {TEST_ID}={bench.test_id}\ncd {REPOSITORY}\n{line}\n"
        f"while [ ! -e {go} ]; do sleep 0.1; done\n{line}\n"
    )
    job = slurm.sbatch(script, "--nodes=2", "--exclusive", "--time=5")

    def ranks() -> list[int]:
        return [int(path.name[2:]) for path in bench.site.glob("data/W/big_*/at*")]

    wait_until(lambda: len(ranks()) == 2, 60, lambda: slurm.output(job))
    first = ranks()
    victims = [pid for pid in running(bench, "nas_hpc", "srun") if pid not in first]
    for number in (
        signal.SIGSTOP,
        signal.SIGKILL,
    ):  # the launcher's host dies; nobody reacts to another's end
        for pid in victims:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
    stays(lambda: all(psutil.pid_exists(pid) for pid in first), 2.0, "the ranks' life")
    go.touch()
    slurm.wait_job(job, timeout_s=100)
    log = slurm.output(job)
    assert bench.state("big") == "JOB_FINISHED", log
    assert not [pid for pid in first if psutil.pid_exists(pid)]
    assert [one["outcome"] for one in bench.attempts()] == ["lost", "ok"]


LINES = {
    "aprun": "-n 6 -N 2 -L 3,4,12 -cc depth -d 1 -j 1",
    "pals": "-n 6 --ppn 2 --hosts nid00003,nid00004,nid00012 --depth 1 --cpu-bind depth",
}


@pytest.mark.needs_mpich
@pytest.mark.slow
@pytest.mark.parametrize("name", LINES)
def test_where_no_node_is_the_launchers_own_the_machines_program_starts_everything(
    bench: Bench, mpich: MpiPeer, name: str
) -> None:
    """As on a head node: jobs, a search and its evaluations, of one rank and of several."""
    front = write_front(bench.directory / "bin", name, mpich)
    show = bench.script("PLACES", PLACES.replace('"FAKE_HOST", "here"', '"AT", "?"'))
    bench.job("big", show, "--num-nodes", "3", "--ranks-per-node", "2", "--env", "MARK=1")
    bench.job("one", show, "--env", "MARK=2")
    add_search(bench, "together", {}, [{"x": 1.0}, {"x": 2.0}, {"y": 0.0}])
    environ = {
        **os.environ, "PYTHONPATH": str(REPOSITORY), "PATH": f"{front.parent}:{os.environ['PATH']}",
        "COBALT_JOBID": "7", "COBALT_PARTNAME": "3-4,12", "COBALT_JOBSIZE": "3",
        "COBALT_ENDTIME": str(time.time() + 3600), "NAS_HPC_CORES_PER_NODE": "2",
    }  # fmt: skip
    launcher = bench.start("--wf-filter", "W", environ=environ)
    log, _ = launcher.communicate(timeout=110)
    assert launcher.returncode == 0, log
    assert f"MPI: {'ALPS aprun' if name == 'aprun' else 'PALS mpiexec'}" in log
    assert any(said.startswith(LINES[name]) for said in (front.parent / "lines").read_text().splitlines()), (
        log
    )
    words = [said.split()[1:] for said in places(bench, "big")]
    ids = ["3", "3", "4", "4", "12", "12"] if name == "aprun" else [
        "nid00003", "nid00003", "nid00004", "nid00004", "nid00012", "nid00012"
    ]  # fmt: skip
    assert words == [[ids[n], str(n), str(n % 2), "1", "6"] for n in range(6)]
    assert len(places(bench, "one")) == 1
    found = sorted(results(bench), key=str)
    assert [one[0] for one in found] == ["error", "ok", "ok"]
    assert sorted(one[1] for one in found[1:]) == [1.0, 2.0]
    assert found[0][3] == "KeyError: 'x'"
