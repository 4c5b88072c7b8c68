"""In the jobs of a real Slurm: what its ends, its cancels and the loss of its nodes and steps cost."""

from __future__ import annotations

import shlex
import signal
from pathlib import Path

import pytest

from tests.failure import ledger
from tests.failure.scene import REPOSITORY, Scene
from tests.peers.slurm import Slurm
from tests.support import processes_of, stays, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.needs_slurm, pytest.mark.needs_mpich, pytest.mark.timeout(300)]

MODES = {
    "serial": {"run": "tests.failure.functions.gated", "workers": 2, "flags": ""},
    "mpi": {"run": "tests.failure.functions.pair", "workers": 1, "flags": "--ranks-per-node 2"},
}
AT_ONCE = {"serial": 5, "mpi": 3}
"""Evaluations on four nodes: one is the launcher's, and half of one the search's; or one the search's."""


def prepared(tmp_path: Path, test_id: str, mode: str, max_evals: int, work_s: float, *flags: str) -> Scene:
    """A search whose evaluations are one process each, or two ranks; ``flags`` are of its job."""
    scene = Scene(tmp_path, test_id, max_evals)
    scene.prepare(**MODES[mode], environ={ledger.WORK_S: str(work_s)}, job_flags=flags)  # type: ignore[arg-type]
    scene.gate.touch()
    return scene


def submitted(slurm: Slurm, scene: Scene, mode: str, *flags: str, nodes: int = 4, again: bool = False) -> int:
    """A batch job with a launcher; ``again``: the same command as long as it fails."""
    words = scene.argv("launcher", "--job-mode", mode, "--wf-filter", scene.name)
    line = f"{shlex.join(words)} >> {scene.directory}/launcher.log 2>&1"
    script = f"export PYTHONPATH={REPOSITORY}\n" + (f"until {line}; do :; done" if again else f"exec {line}")
    return slurm.sbatch(script, f"--nodes={nodes}", "--exclusive", "--no-kill", "--time=10", *flags)


def busy(scene: Scene, count: int) -> None:
    """Wait until so many evaluations have started."""
    wait_until(lambda: scene.started() >= count, 90, lambda: f"{count} starts: {scene.log()[-3000:]}")


def test_two_rank_evaluations_run_at_once_as_steps(slurm: Slurm, tmp_path: Path, test_id: str) -> None:
    scene = prepared(tmp_path, test_id, "mpi", 9, 1.0)
    scene.gate.unlink()
    job = submitted(slurm, scene, "mpi")
    busy(scene, AT_ONCE["mpi"])
    assert scene.ended() == 0
    stays(lambda: scene.started() == AT_ONCE["mpi"], 1.0, "as many as there are nodes for")
    scene.gate.touch()
    slurm.wait_job(job, "COMPLETED", timeout_s=120)
    assert scene.judge() == 0


@pytest.mark.parametrize("mode", MODES)
def test_scancel_leaves_no_process_and_costs_what_was_running(
    slurm: Slurm, tmp_path: Path, test_id: str, mode: str
) -> None:
    scene = prepared(tmp_path, test_id, mode, 20, 1.0)
    job = submitted(slurm, scene, mode)
    busy(scene, 2 * AT_ONCE[mode])
    slurm.cancel(job)
    slurm.wait_job(job, "CANCELLED")
    wait_until(lambda: not processes_of(test_id), 60, "the end of all that ran in the job")
    slurm.wait_job(submitted(slurm, scene, mode), timeout_s=120)
    assert scene.judge() <= AT_ONCE[mode]


@pytest.mark.parametrize("mode", MODES)
def test_the_end_of_the_time_is_seen_coming_and_the_next_job_goes_on(
    slurm: Slurm, tmp_path: Path, test_id: str, mode: str
) -> None:
    slurm.environ.update({"NAS_HPC_STOP_MARGIN_S": "30", "NAS_HPC_GRACE_S": "2"})
    limit = ("--wall-time-minutes", "0.2")  # or the search would not start with less than two minutes left
    scene = prepared(tmp_path, test_id, mode, {"serial": 80, "mpi": 50}[mode], 2.0, *limit)
    first = submitted(slurm, scene, mode, "--time=1")
    slurm.wait_job(first, timeout_s=100)
    assert "the allocation ends" in scene.log()
    assert 0 < scene.ended() < scene.max_evals
    before, ended = scene.started(), scene.ended()
    slurm.wait_job(submitted(slurm, scene, mode), timeout_s=150)
    assert scene.judge() == before - ended, "what was told to stop runs again, and nothing else"


@pytest.mark.parametrize("mode", MODES)
def test_a_sudden_end_of_the_time_costs_what_was_running(
    slurm: Slurm, tmp_path: Path, test_id: str, mode: str
) -> None:
    scene = prepared(tmp_path, test_id, mode, 24, 0.5)
    job = submitted(slurm, scene, mode)
    busy(scene, 2 * AT_ONCE[mode])
    scene.gate.unlink()  # Slurm takes its time to enforce an end
    slurm.run("scontrol", "update", f"jobid={job}", "EndTime=now+1")
    slurm.wait_job(job, "TIMEOUT", "CANCELLED", "FAILED", "COMPLETED", timeout_s=90)
    wait_until(lambda: not processes_of(test_id), 60, "the end of all that ran in the job")
    scene.gate.touch()
    assert scene.ended() < scene.max_evals
    slurm.wait_job(submitted(slurm, scene, mode), timeout_s=120)
    assert scene.judge() <= AT_ONCE[mode]


@pytest.mark.parametrize("mode", MODES)
def test_a_lost_node_costs_what_ran_there(slurm: Slurm, tmp_path: Path, test_id: str, mode: str) -> None:
    scene = prepared(tmp_path, test_id, mode, 24, 1.0)
    job = submitted(slurm, scene, mode)
    busy(scene, 2 * AT_ONCE[mode])
    slurm.lose("node4")
    slurm.wait_job(job, timeout_s=150)
    assert scene.judge() <= (2 if mode == "serial" else 1), scene.log()


def test_a_killed_start_of_the_agents_costs_at_most_what_they_ran(
    slurm: Slurm, tmp_path: Path, test_id: str
) -> None:
    scene = prepared(tmp_path, test_id, "serial", 40, 1.0)
    job = submitted(slurm, scene, "serial")
    busy(scene, 10)
    starts = [one for one in processes_of(test_id) if one.name() == "srun"]
    assert starts, "the agents are started by srun"
    for process in starts:
        process.send_signal(signal.SIGKILL)
    slurm.wait_job(job, timeout_s=150)
    assert scene.judge() <= AT_ONCE["serial"]


@pytest.mark.parametrize("mode", MODES)
def test_a_launcher_killed_in_its_job_is_succeeded_there(
    slurm: Slurm, tmp_path: Path, test_id: str, mode: str
) -> None:
    scene = prepared(tmp_path, test_id, mode, 30, 1.0)
    job = submitted(slurm, scene, mode, again=True)
    for number in (1, 2, 3):
        busy(scene, 7 * number)
        for process in scene.victims("launcher"):
            process.send_signal(signal.SIGKILL)
    slurm.wait_job(job, timeout_s=150)
    cut_short = scene.judge()
    assert cut_short == 0 if mode == "serial" else cut_short <= 3 * AT_ONCE["mpi"]
