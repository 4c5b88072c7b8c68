"""What tests of mpi mode have in common: a search, its run functions, and a program that tells its place."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import psutil

from nas_hpc.records import Job, Origin, new_id
from nas_hpc.site import Site
from nas_hpc.states import Actor
from nas_hpc.store import open_store
from tests.launcher.bench import REPOSITORY, Bench
from tests.support import TEST_ID, processes_of

RUNS = """
import glob, json, os, random, sys, time

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
    os.write(1, f"rank {comm.rank} prints\\n".encode())
    if not comm.rank:
        open("../met-" + os.environ["NAS_HPC_JOB_ID"], "w").close()
    while len(glob.glob("../met-*")) < config.get("meet", 0):
        time.sleep(0.02)
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


def running(bench: Bench, *words: str) -> list[int]:
    """Pids of the test's processes with one of the words in their command lines."""
    found = []
    for process in processes_of(bench.test_id):
        with contextlib.suppress(psutil.Error):
            line = " ".join(process.cmdline())
            found += [process.pid] if any(word in line for word in words) else []
    return found


PLACES = """
import os, sys
from mpi4py import MPI
world = MPI.COMM_WORLD
mine = [os.environ.get("FAKE_HOST", "here"), os.environ.get("NAS_HPC_RANK", "0"),
        os.environ.get("NAS_HPC_LOCAL_RANK", "0"), os.environ["MARK"], world.size]
everybody = world.gather(mine)
if world.rank == 0:
    for one in everybody:
        print("place", *one)
"""


def places(bench: Bench, name: str) -> list[str]:
    """What a job of PLACES printed of its ranks."""
    return [line for line in bench.output(name).splitlines() if line.startswith("place")]
