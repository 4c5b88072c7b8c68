"""Evaluations of several ranks: programs of job specifications and run functions, in mpi mode."""

from __future__ import annotations

import json
import sys

import pytest

from tests.launcher.bench import REPOSITORY, Bench
from tests.launcher.test_specifications import rows, told
from tests.peers.mpi import MpiPeer

MIXED = """
import sys
from nas_hpc import JobSpec, job_specification
from nas_hpc.problem import HpProblem

Problem = HpProblem()
Problem.add_dim("x", (1, 9))
Problem.add_dim("ranks", (1, 2))
Problem.add_starting_point(x=3, ranks=1)
Problem.add_starting_point(x=4, ranks=2)

@job_specification
def spec(parameters):
    argv = ["PYTHON", "TRAINER", str(parameters["x"])]
    return JobSpec(argv=argv, ranks_per_node=parameters["ranks"], environ={"NAS_HPC_TEST_ID": "MARK"})

def together(config):
    from mpi4py import MPI
    return float(MPI.COMM_WORLD.allreduce(config["x"]))
"""
TRAINER = """
import os, sys
sys.path.insert(0, ROOT)
from mpi4py import MPI
from nas_hpc import jobs
comm = MPI.COMM_WORLD
total = comm.allreduce(float(sys.argv[1]))
if comm.size > 1 and comm.rank == 0:
    comm.barrier()  # the others write first, if they do
jobs.update_data(objective=total + 1000 * comm.rank, size=comm.size)
if comm.size > 1 and comm.rank:
    comm.barrier()
jobs.add(name="after", application="LEAF", environ={"NAS_HPC_TEST_ID": os.environ["NAS_HPC_TEST_ID"]})
"""


def prepare(bench: Bench, python: str) -> None:
    """The problem, its trainer for ``python``, and what the trainer adds."""
    trainer = bench.directory / "trainer.py"
    trainer.write_text(TRAINER.replace("ROOT", repr(str(REPOSITORY))))
    text = MIXED.replace("PYTHON", python).replace("TRAINER", str(trainer)).replace("MARK", bench.test_id)
    (bench.directory / "mixed.py").write_text(text)
    bench.script("LEAF", "")
    bench.searches()


@pytest.mark.needs_mpich
@pytest.mark.slow
def test_a_specification_runs_a_program_on_several_ranks_of_which_the_first_writes(
    bench: Bench, mpich: MpiPeer
) -> None:
    prepare(bench, str(mpich.python))
    bench.job("s", "RAN", args="--problem mixed.Problem --run mixed.spec --max-evals 2 --seed 1")
    log = bench.launch("--nodes", "4", "--mpi", str(mpich.mpiexec), timeout_s=110)
    found = {row["ranks"]: row for row in rows(bench)}
    assert {ranks: row["objective"] for ranks, row in found.items()} == {"1": "3.0", "2": "8.0"}, log
    metadata = [told(bench, name, "result.json")["metadata"] for name in ("task1", "task2")]
    assert metadata == [{"size": 1}, {"size": 2}]
    added = [job for job in json.loads(bench.nas("ls", "jobs", "--json")) if job["name"] == "after"]
    assert [job["state"] for job in added] == ["JOB_FINISHED"] * 2, "one of each evaluation, not of each rank"


@pytest.mark.needs_mpich
@pytest.mark.slow
def test_the_flags_of_a_search_give_its_run_functions_several_ranks(bench: Bench, mpich: MpiPeer) -> None:
    prepare(bench, str(mpich.python))
    flags = "--problem mixed.Problem --run mixed.together --max-evals 2 --ranks-per-node 2 --seed 1"
    bench.job("s", "RAN", args=flags)
    log = bench.launch("--nodes", "3", "--mpi", str(mpich.mpiexec), timeout_s=110)
    assert [row["objective"] for row in rows(bench)] == ["6.0", "8.0"], log
    job = told(bench, "task1", "job.json")
    assert (job["num_nodes"], job["ranks_per_node"], job["node_packing_count"]) == (1, 2, 1)


@pytest.mark.slow
def test_without_an_mpi_program_the_evaluations_that_need_one_fail_and_the_others_run(bench: Bench) -> None:
    prepare(bench, sys.executable)
    (bench.directory / "trainer.py").write_text("print('DH-OUTPUT: 1')")
    bench.job("s", "RAN", args="--problem mixed.Problem --run mixed.spec --max-evals 2 --seed 1")
    bench.launch("--nodes", "3", "--mpi", "none")
    found = {row["ranks"]: row for row in rows(bench)}
    assert (found["1"]["objective"], found["2"]["outcome"]) == ("1.0", "error")
    assert found["2"]["reason"].startswith("it cannot run here: it has 1 node x 2 ranks")
    assert bench.states("task2")[-2:] == ["RUN_ERROR", "FAILED"]


@pytest.mark.slow
def test_without_an_mpi_program_a_search_of_which_all_evaluations_need_one_is_ended(bench: Bench) -> None:
    prepare(bench, sys.executable)
    flags = "--problem mixed.Problem --run mixed.together --max-evals 2 --ranks-per-node 2"
    bench.job("s", "RAN", args=flags)
    bench.launch("--nodes", "3", "--mpi", "none", code=1)
    assert "none of its evaluations can run here: it has 1 node x 2 ranks" in bench.output("s")
    assert bench.state("s") == "FAILED"
