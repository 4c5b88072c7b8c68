"""Whole searches by submit-launch on a real Slurm of four nodes, typed as a user does."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.failure import ledger
from tests.failure.scene import REPOSITORY, Scene
from tests.peers.mpi import MpiPeer
from tests.peers.slurm import Slurm
from tests.support import processes_of, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.needs_slurm, pytest.mark.timeout(600)]

POLYNOME = "nas_hpc.problems.hps.polynome2.run"
SUBMITTED = re.compile(r"submitted (\d+)")


@dataclass
class User:
    """Someone at the cluster's login node, with a search of 30 evaluations."""

    slurm: Slurm
    scene: Scene

    def search(
        self, run: str = "tests.failure.functions.gated", job_flags: str = "", work_s: float = 0.2
    ) -> None:
        """Add an AMBS search; its evaluations wait until the gate is there."""
        variables = {ledger.WORK_S: str(work_s)}
        self.scene.prepare("ambs", workers=2, run=run, flags=job_flags, environ=variables)

    def submit(self, *words: str, nodes: int = 4, mode: str = "serial") -> list[str]:
        """submit-launch; the ids."""
        said = self.scene.command(
            "submit-launch", "-n", str(nodes), "-t", "10", "--job-mode", mode, "--wf-filter", "TEST", *words
        )
        return SUBMITTED.findall(said)

    def seen(self, id_: str) -> dict[str, Any]:
        """What ``ls queues`` says of a batch job."""
        [found] = [one for one in self.listed() if one["id"] == id_]
        return found

    def listed(self) -> list[dict[str, Any]]:
        """What ``ls queues`` says of all batch jobs."""
        return list(json.loads(self.scene.command("ls", "queues", "--all", "--json"))["batch_jobs"])

    def until(
        self, id_: str, state: str, in_slurm: str = "COMPLETED", timeout_s: float = 200
    ) -> dict[str, Any]:
        """Wait until Slurm has it in a state; what ``ls queues`` calls that."""
        self.slurm.wait_job(int(id_), in_slurm, timeout_s=timeout_s)
        found = self.seen(id_)
        assert found["state"] == state, (found, self.log(id_)[-3000:])
        return found

    def log(self, id_: str) -> str:
        """What the batch job printed."""
        path = Path(self.seen(id_)["output"])
        return path.read_text() if path.exists() else ""

    def busy(self, id_: str, count: int) -> None:
        """Wait until so many evaluations have started."""
        wait_until(
            lambda: self.scene.started() >= count, 90, lambda: f"{count} starts: {self.log(id_)[-3000:]}"
        )

    def left(self, id_: str) -> None:
        """Wait until nothing of a batch job runs."""
        wait_until(lambda: not processes_of(self.scene.test_id), 60, "the end of all that ran in the job")


@pytest.fixture
def user(slurm: Slurm, tmp_path: Path, test_id: str, monkeypatch: pytest.MonkeyPatch) -> User:
    for name in ("SLURM_CONF", "PATH"):
        monkeypatch.setenv(name, slurm.environ[name])
    return User(slurm, Scene(tmp_path, test_id, 30, name="TEST"))


def test_a_search_runs_to_its_end_in_serial_mode(user: User) -> None:
    user.search(POLYNOME)
    [id_] = user.submit()
    assert user.until(id_, "ended")["exit_code"] == 0, user.log(id_)
    assert user.scene.over()
    ledger.judge_store(user.scene.site, "TEST", 30)
    with (user.scene.workflow / "results.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 30
    assert f"slurm job {id_}: 4 nodes node[1-4]" in user.log(id_)


@pytest.mark.needs_mpich
def test_evaluations_of_two_ranks_run_at_once_as_steps_and_a_chain_ends_with_its_workflow(
    user: User, mpich: MpiPeer
) -> None:
    user.search("tests.failure.functions.pair", "--ranks-per-node 2")
    first, second = user.submit("--chain", "2", mode="mpi")
    user.busy(first, 3)
    assert user.scene.ended() == 0, "three evaluations are to run at once"
    steps = user.slurm.run("squeue", "--steps", "--noheader", "--format=%i").stdout.split()
    assert len([step for step in steps if step.startswith(f"{first}.") and step.split(".")[1].isdigit()]) >= 3
    waiting = user.seen(second)
    assert (waiting["state"], waiting["dependencies"]) == ("held", [first])
    user.scene.gate.touch()
    assert user.until(first, "ended")["exit_code"] == 0, user.log(first)
    assert "MPI: Slurm's srun" in user.log(first)
    assert user.scene.judge() == 0
    user.slurm.wait_job(int(second), "CANCELLED", "COMPLETED")
    assert user.seen(second)["state"] in ("cancelled", "ended")
    assert user.scene.started() == 30, "the second of the chain runs nothing"


def test_a_walltime_that_ends_in_the_middle_costs_what_was_running_and_the_next_submission_finishes(
    user: User,
) -> None:
    user.search(work_s=1.0)
    user.scene.gate.touch()
    [first] = user.submit()
    user.busy(first, 10)
    user.scene.gate.unlink()  # Slurm takes its time to enforce an end
    user.slurm.run("scontrol", "update", f"jobid={first}", "EndTime=now+1")
    user.until(first, "timeout", "TIMEOUT")
    assert "timeout" in user.scene.command("why", first)
    user.left(first)
    user.scene.gate.touch()
    assert user.scene.ended() < 30
    [second] = user.submit()
    assert user.until(second, "ended")["exit_code"] == 0, user.log(second)
    assert user.scene.judge() <= 6, "what was running on three nodes runs again, and nothing else"


def test_scancel_is_seen_and_a_lost_node_costs_its_evaluations(user: User) -> None:
    user.search(work_s=0.5)
    [first] = user.submit()
    user.busy(first, 4)
    assert user.seen(first)["state"] == "running"
    user.slurm.cancel(int(first))
    user.until(first, "cancelled", "CANCELLED")
    assert "cancelled" in user.scene.command("why", first)
    user.left(first)
    user.scene.gate.touch()
    before = user.scene.started()
    [second] = user.submit()
    user.busy(second, before + 10)
    user.slurm.lose("node4")
    assert user.until(second, "ended")["exit_code"] == 0, user.log(second)
    assert user.scene.judge() <= before + 2


def test_what_slurm_never_starts_or_refuses_says_so(user: User) -> None:
    user.search(POLYNOME)
    [id_] = user.submit(nodes=9)
    wait_until(
        lambda: user.seen(id_)["reason"].startswith("PartitionNodeLimit"), 60, lambda: str(user.seen(id_))
    )
    assert user.seen(id_)["state"] == "queued"
    assert "does not start" in user.scene.command("why", id_)
    assert "does not start" in user.scene.command("why", "search")
    user.scene.command("kill", "--yes", id_)
    assert user.seen(id_)["state"] == "cancelled"
    words = ("submit-launch", "-n", "2", "-t", "5", "-q", "nix", "--wf-filter", "TEST")
    assert "nix" in user.scene.command(*words, code=2)
    said = user.scene.command(*words, "--no-check", code=1)
    assert "invalid partition specified: nix" in said
    assert "sbatch --parsable" in said
    assert [one["state"] for one in user.listed()] == ["cancelled", "refused"]


def test_a_launcher_typed_into_an_interactive_allocation_finds_its_nodes_and_its_end(user: User) -> None:
    user.search(POLYNOME)
    look = (
        "import time; from nas_hpc.resources.discover import discover; print(discover().ends - time.time())"
    )
    typed = (
        f"{sys.executable} -c '{look}'; "
        f"{sys.executable} -m nas_hpc.cli launcher --job-mode serial --wf-filter TEST\nexit 0\n"
    )
    words = ("-n", "3", "-t", "10", "--job-mode", "serial", "--wf-filter", "TEST", "--interactive")
    environ = {**os.environ, "PYTHONPATH": str(REPOSITORY), "SHELL": "/bin/bash"}
    done = subprocess.run(
        user.scene.argv("submit-launch", *words), env=environ, input=typed, check=False,
        capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert re.search(r"slurm job \d+: 3 nodes node\[1-3\] with 4 cores", said), said
    assert 300 < float(done.stdout.split()[0]) <= 600, "ten minutes after its start"
    assert user.scene.over(), said
