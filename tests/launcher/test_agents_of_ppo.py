"""A search by agents under a real launcher in mpi mode, killed and stopped on its way."""

from __future__ import annotations

import csv
import os
import signal
import sys
from collections import Counter
from pathlib import Path

import psutil
import pytest

from nas_hpc.files import replace_file
from tests.launcher.bench import REPOSITORY, Bench
from tests.launcher.ranks import running
from tests.peers.mpi import MpiPeer
from tests.support import wait_until

ARGS = (
    "--evaluator balsam --run light.run --problem tests.apps.sequences.Problem "
    "--ent-coef 0.01 --noptepochs 2 --network ppo_lstm_32 --gamma 1.0 --lam 0.95 --max-evals 16"
)
RUN = """
import os
import time
from pathlib import Path

HERE = Path(__file__).parent

def run(config):
    number = int(Path(os.environ["NAS_HPC_JOB_DIR"]).name.partition("_")[0].removeprefix("task"))
    while number > int((HERE / "limit").read_text()):
        time.sleep(0.05)
    return float(sum(config["arch_seq"]))
"""
"""Those up to the number that the file says end; the others wait until it says more."""


def rows(bench: Bench) -> list[dict[str, str]]:
    """Of the search's results.csv."""
    for path in bench.site.glob("data/W/ppo_test_*/results.csv"):
        with path.open(newline="") as file:
            return list(csv.DictReader(file))
    return []


def agents(bench: Bench) -> dict[int, psutil.Process]:
    """The search's ranks that run."""
    found = {}
    for pid in running(bench, "nas_hpc.apps.ppo"):
        try:
            process = psutil.Process(pid)
            found[int(process.environ()["NAS_HPC_RANK"])] = process
        except (psutil.Error, KeyError):
            continue
    return found


@pytest.mark.needs_mpich
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_agents_on_four_nodes_go_on_after_a_kill_and_in_the_next_allocation(
    bench: Bench, mpich: MpiPeer
) -> None:
    (bench.directory / "light.py").write_text(RUN)
    (bench.directory / "limit").write_text("6")
    bench.nas("app", "--name", "PPO", "--exec", f"{sys.executable} -m nas_hpc.apps.ppo")
    bench.job("ppo_test", "PPO", "--num-nodes", "2", args=ARGS)
    environ = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    flags = ("--nodes", "4", "--mpi", str(mpich.mpiexec), "--job-mode", "mpi")

    launcher = bench.start(*flags, environ=environ)
    wait_until(lambda: len(rows(bench)) >= 6, 200, "the first evaluations")
    wait_until(lambda: len(agents(bench)) == 2, 200, "both agents")
    agents(bench)[1].kill()
    wait_until(lambda: bench.states("ppo_test").count("RUNNING") == 2, 200, "the search's next attempt")
    replace_file(bench.directory / "limit", "10")
    wait_until(lambda: len(rows(bench)) >= 8, 200, "more evaluations")
    launcher.send_signal(signal.SIGTERM)
    log, _ = launcher.communicate(timeout=200)
    assert "RUN_TIMEOUT" in bench.states("ppo_test"), log
    wait_until(lambda: not agents(bench), 200, "the end of both agents")

    replace_file(bench.directory / "limit", "1000")
    log = bench.launch(*flags, timeout_s=300)
    assert bench.state("ppo_test") == "JOB_FINISHED", log
    out = bench.output("ppo_test")
    assert "2 agents, 2 evaluators: 1 each, 0 unused" in out
    assert out.count("going on from the checkpoint of step") == 2, out
    found = rows(bench)
    assert sorted(int(row["seq"]) for row in found) == list(range(1, 17))
    assert {row["outcome"] for row in found} == {"ok"}
    succeeded = Counter(one["name"] for one in bench.attempts() if one["creator"] and one["outcome"] == "ok")
    assert succeeded == Counter({f"task{seq}": 1 for seq in range(1, 17)}), "none was evaluated twice"
    assert [one["outcome"] for one in bench.attempts() if not one["creator"]] == ["lost", "walltime", "ok"]
    assert Path(bench.directory_of("ppo_test"), "ppo.checkpoint").is_file()


@pytest.mark.needs_mpich
@pytest.mark.needs_openmpi
@pytest.mark.slow
@pytest.mark.parametrize("crossed", [False, True])
def test_agents_whose_mpi4py_belongs_to_another_mpi_are_not_started(
    bench: Bench, mpich: MpiPeer, openmpi: MpiPeer, crossed: bool
) -> None:
    python, mpiexec = (openmpi.python, mpich.mpiexec) if crossed else (mpich.python, openmpi.mpiexec)
    (bench.directory / "light.py").write_text(RUN)
    bench.nas("app", "--name", "PPO", "--exec", f"{python} -m nas_hpc.apps.ppo")
    bench.job("ppo_test", "PPO", "--num-nodes", "2", args=ARGS)
    launcher = bench.start("--nodes", "4", "--mpi", str(mpiexec), "--job-mode", "mpi")
    log, _ = launcher.communicate(timeout=200)
    assert launcher.returncode == 1, log
    assert "another MPI" in log
    assert "cannot run here: its ranks would not find each other (see above)" in log
    assert bench.states("ppo_test").count("RUNNING") == 0
