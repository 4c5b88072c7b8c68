"""mpi mode under a real launcher with real MPI programs: who runs where, with what, and how it ends."""

from __future__ import annotations

import json
import os
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from nas_hpc.records import Job, Origin, new_id
from nas_hpc.site import Site
from nas_hpc.states import Actor
from nas_hpc.store import open_store
from tests.launcher.bench import REPOSITORY, Bench
from tests.peers.mpi import MpiPeer
from tests.support import TEST_ID

RUNS = """
import json, os, random, sys, time

def _comm():
    from mpi4py import MPI
    return MPI.COMM_WORLD

def together(config):
    comm = _comm()
    begin = time.time()
    total = comm.allreduce(config["x"] * (comm.rank + 1))
    drawn = comm.gather(random.random())
    told = comm.gather([os.environ[name] for name in
                        ("NAS_HPC_RANK", "NAS_HPC_LOCAL_RANK", "NAS_HPC_RANKS", "BALSAM_JOB_MODE",
                         "BALSAM_LAUNCHER_NODES", "BALSAM_JOB_ID", "OMP_NUM_THREADS")])
    print("rank", comm.rank, "prints")
    time.sleep(config.get("sleep", 0))
    if comm.rank:
        return "ignored"
    return {"objective": total, "size": comm.size, "drawn": drawn, "told": told,
            "begin": begin, "end": time.time(), "alone": "mpi4py" in sys.modules}

def one_raises(config):
    comm = _comm()
    if comm.rank == config["who"]:
        raise ValueError(f"rank {comm.rank} does not like {config['x']}")
    comm.barrier()
    return 1.0

def one_raises_without_mpi(config):
    if os.environ["NAS_HPC_RANK"] == "1":
        raise KeyError("of a rank that knows no MPI")
    time.sleep(600)

def one_dies(config):
    comm = _comm()
    if comm.rank == 1:
        os.kill(os.getpid(), 9)
    comm.barrier()

def waits(config):
    comm = _comm()
    comm.barrier()
    open(f"rank{comm.rank}", "w").write(str(os.getpid()))
    time.sleep(600)

def alone(config):
    return _comm().size
"""
SEARCH = """
import json, sys
from nas_hpc.evaluator import Settings, create
from nas_hpc.wire import Shape
run, shape, configs = sys.argv[1], Shape(**json.loads(sys.argv[2])), json.loads(sys.argv[3])
with create(settings=Settings(run=run, shape=shape)) as evaluator:
    evaluator.submit(configs)
    results = evaluator.gather("all")
    json.dump([[r.outcome, r.objective, r.metadata, r.reason] for r in results], open("results.json", "w"))
    print("capacity", evaluator.capacity())
"""


def add_search(
    bench: Bench,
    run: str,
    shape: dict[str, int],
    configs: list[dict[str, Any]],
    python: Path | str = sys.executable,
) -> Job:
    """A search of which all evaluations are known at once; ``python`` runs them."""
    (bench.directory / "runs.py").write_text(RUNS)
    bench.script("SEARCH", SEARCH)
    bench.nas("app", "--name", "SEARCH", "--restartable", "--replace",
              "--exec", f"{sys.executable} {bench.directory}/search.py")  # fmt: skip
    words = " ".join(f"'{json.dumps(one)}'" for one in (shape, configs))
    environ = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    origin = Origin(str(bench.directory), (str(bench.directory), str(REPOSITORY)), str(python), environ)
    job = Job(
        id=new_id(), name="search", workflow="W", application="SEARCH", args=f"runs.{run} {words}",
        origin=origin, environ={TEST_ID: bench.test_id}, created=time.time(),
    )  # fmt: skip
    store = open_store(Site(bench.site).database)
    store.add_jobs([job], Actor.COMMAND)
    store.close()
    return job


def results(bench: Bench) -> list[Any]:
    found: list[Any] = json.loads((bench.directory_of("search") / "results.json").read_text())
    return found


def two_ranks_several_at_once(bench: Bench, peer: MpiPeer) -> None:
    configs = [{"x": float(number), "sleep": 0.5} for number in range(6)]
    add_search(bench, "together", {"ranks_per_node": 2}, configs, peer.python)
    log = bench.launch("--nodes", "4", "--mpi", str(peer.mpiexec), timeout_s=110)
    assert "two ranks with the mpi4py of" in log
    found = results(bench)
    assert sorted(one[1] for one in found) == [0.0, 3.0, 6.0, 9.0, 12.0, 15.0], (found, log)
    for outcome, _, metadata, _ in found:
        assert outcome == "ok"
        assert metadata["size"] == 2
        assert metadata["told"][0][:5] == ["0", "0", "2", "mpi", "4"]
        assert metadata["told"][1][:5] == ["1", "1", "2", "mpi", "4"]
        assert metadata["told"][0][5] == metadata["told"][1][5]
        assert len(set(metadata["drawn"])) == 2
    assert len({tuple(one[2]["drawn"]) for one in found}) == 6
    spans = [(one[2]["begin"], one[2]["end"]) for one in found]
    most = max(sum(begin <= moment < end for begin, end in spans) for moment, _ in spans)
    assert most == 3  # the search has the fourth node
    assert Counter(bench.output("task1").split()).items() >= {"rank": 2, "0": 1, "1": 1, "prints": 2}.items()
    assert not list(bench.directory_of("task1").glob("*rank*"))


@pytest.mark.needs_mpich
@pytest.mark.slow
def test_two_rank_evaluations_run_several_at_once_under_mpich(bench: Bench, mpich: MpiPeer) -> None:
    two_ranks_several_at_once(bench, mpich)


@pytest.mark.needs_openmpi
@pytest.mark.slow
def test_two_rank_evaluations_run_several_at_once_under_openmpi(bench: Bench, openmpi: MpiPeer) -> None:
    two_ranks_several_at_once(bench, openmpi)


@pytest.mark.needs_mpich
@pytest.mark.slow
def test_an_evaluation_in_serial_mode_that_imports_mpi4py_is_alone(bench: Bench, mpich: MpiPeer) -> None:
    add_search(bench, "alone", {"node_packing_count": 2}, [{"x": 1}, {"x": 2}])
    bench.launch("--job-mode", "serial", "--mpi", str(mpich.mpiexec))
    assert [one[:2] for one in results(bench)] == [["ok", 1.0], ["ok", 1.0]]
