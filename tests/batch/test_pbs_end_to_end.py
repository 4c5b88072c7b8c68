"""From submit-launch to the end of a search on a machine like Polaris: the stand-ins of PBS and of PALS."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import nas_hpc.batch
from tests.failure import ledger
from tests.failure.scene import REPOSITORY, Scene
from tests.peers.fronts import write_front
from tests.peers.mpi import MpiPeer
from tests.peers.pbs import PbsPro
from tests.support import processes_of, wait_until

pytestmark = [pytest.mark.needs_mpich, pytest.mark.timeout(600)]

LINE = ("-n", "4", "-q", "preemptable", "-t", "30", "-A", "datascience", "--wf-filter", "TEST")
AT_ONCE = 2
"""Evaluations on four nodes in serial mode: one node is the launcher's, and one the search's."""


@dataclass(frozen=True, slots=True)
class Polaris:
    """A site on a machine whose file is Polaris's, and its batch system."""

    pbs: PbsPro
    scene: Scene

    def search(self, application: str = "random_search", work_s: float = 0.03) -> None:
        """The search's job; and Polaris's own file, but for the sizes of nodes and the places of programs."""
        self.scene.prepare(
            application, workers=1, run="tests.failure.functions.gated", environ={ledger.WORK_S: str(work_s)}
        )
        text = (Path(nas_hpc.batch.__path__[0]) / "machines" / "polaris.toml").read_text()
        for ours, here in (("cores = 32", "cores = 2"), ("threads_per_core = 2", ""), ("gpus = 4", "")):
            assert f"\n{ours}\n" in text
            text = text.replace(f"\n{ours}\n", f"\n{here}\n")
        (self.scene.site / "machines").mkdir()
        path = f'environment = "export PATH={self.pbs.bin}:$PATH"\n'
        (self.scene.site / "machines" / "polaris.toml").write_text(path + text)

    def submit(self, *words: str) -> list[str]:
        """submit-launch; the ids."""
        return re.findall(r"submitted (\S+)", self.scene.command("submit-launch", *LINE, *words))

    def over(self, id_: str) -> None:
        """Wait until PBS has ended it."""
        wait_until(lambda: self.pbs.letter(id_) == "F", 200, lambda: f"{self.pbs.job(id_)}: {self.log()}")

    def log(self) -> str:
        """What the batch jobs wrote, while they run in PBS's own directory."""
        paths = [*(self.scene.site / "qsubmit").glob("*.output"), *self.pbs.directory.glob("*.OU")]
        return "\n".join(f"{path.name}: {path.read_text()[-3000:]}" for path in sorted(paths))

    def seen(self, id_: str) -> dict[str, Any]:
        """What ls queues says of a batch job."""
        body = json.loads(self.scene.command("ls", "queues", "--all", "--json"))
        [found] = [one for one in body["batch_jobs"] if one["id"] == id_]
        return {**found, "trouble": body["trouble"]}

    def busy(self, count: int) -> None:
        """Wait until so many evaluations have started."""
        wait_until(lambda: self.scene.started() >= count, 90, lambda: f"{count} starts: {self.log()}")


@pytest.fixture
def polaris(
    tmp_path: Path, test_id: str, mpich: MpiPeer, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Polaris]:
    with PbsPro(tmp_path / "pbs", grace_s=60.0) as pbs:
        write_front(pbs.bin, "pals", mpich)
        monkeypatch.setenv("PATH", pbs.path)
        monkeypatch.setenv("NAS_HPC_MACHINE", "polaris")
        yield Polaris(pbs, Scene(tmp_path, test_id, 12, name="TEST"))


@pytest.mark.slow
def test_a_search_runs_to_its_end_in_serial_mode_and_a_chain_ends_with_it(polaris: Polaris) -> None:
    polaris.search("ambs")
    first, second = polaris.submit("--job-mode", "serial", "--chain", "2")
    polaris.busy(1)
    waiting = polaris.seen(second)
    assert (waiting["state"], waiting["dependencies"]) == ("held", [first])
    polaris.scene.gate.touch()
    polaris.over(first)
    assert polaris.scene.judge() == 0
    job = polaris.seen(first)
    assert (job["state"], job["exit_code"], job["project"], job["nodes"]) == ("ended", 0, "datascience", 4)
    polaris.over(second)
    assert polaris.seen(second)["state"] in ("cancelled", "ended")
    assert polaris.scene.started() == 12, "the second of the chain runs nothing"
    assert "PYTHONPATH" not in polaris.pbs.environment
    script = Path(job["script"]).read_text().splitlines()
    assert script[1:5] == [
        "#PBS -N TEST", "#PBS -A datascience", "#PBS -q preemptable", "#PBS -l select=4"
    ]  # fmt: skip
    resources = {"#PBS -l walltime=00:30:00", "#PBS -l filesystems=home:eagle", "#PBS -l place=scatter"}
    assert resources <= set(script)
    assert script[-1].startswith("exec ")
    calls = (polaris.pbs.bin / "lines").read_text().splitlines()
    others = ",".join(polaris.pbs.nodes[1:])
    assert calls[0].startswith(f"--no-abort-on-failure -n 3 --ppn 1 --hosts {others} "), calls
    assert f"pbs job {first}: 4 nodes" in Path(job["output"]).read_text()


@pytest.mark.slow
def test_a_kill_at_the_end_of_the_walltime_costs_what_was_running(polaris: Polaris) -> None:
    polaris.search(work_s=1.0)
    polaris.scene.gate.touch()
    [first] = polaris.submit("--job-mode", "serial")
    polaris.busy(4)
    polaris.scene.gate.unlink()
    assert polaris.scene.ended() < polaris.scene.max_evals
    polaris.pbs.expire(first)
    polaris.over(first)
    assert polaris.seen(first)["state"] == "timeout"
    assert "exceeded resource walltime" in polaris.scene.command("why", first)
    wait_until(lambda: not processes_of(polaris.scene.test_id), 60, "the end of all that ran there")
    polaris.scene.gate.touch()
    [second] = polaris.submit("--job-mode", "serial")
    polaris.over(second)
    assert polaris.seen(second)["exit_code"] == 0, polaris.log()
    assert polaris.scene.judge() <= AT_ONCE


@pytest.mark.slow
def test_a_job_that_waits_says_why_and_a_qstat_without_sense_changes_nothing(polaris: Polaris) -> None:
    polaris.search()
    [id_] = polaris.submit("-n", "9")
    wait_until(lambda: polaris.pbs.job(id_)["comment"], 60, "a comment")
    assert polaris.seen(id_)["state"] == "queued"
    assert "Insufficient amount of resource" in polaris.scene.command("why", id_)
    polaris.pbs.trouble("qstat", stdout="<html>", code=0)
    seen = polaris.seen(id_)
    assert seen["state"] == "queued"
    assert "no JSON" in seen["trouble"][0]
    polaris.pbs.mend("qstat")
    polaris.scene.command("kill", "--yes", id_)
    assert polaris.seen(id_)["state"] == "cancelled"
    assert "takes 2 at most" in polaris.scene.command("submit-launch", *LINE, "-q", "debug", code=2)
    said = polaris.scene.command("submit-launch", *LINE, "-q", "debug", "--no-check", code=1)
    assert "qsub: Job violates queue and/or server resource limits" in said
    assert "sent: qsub " in said


@pytest.mark.slow
def test_an_interactive_allocation_is_found_with_its_nodes_and_its_end(polaris: Polaris) -> None:
    polaris.search()
    look = (
        "import time; from nas_hpc.resources.discover import discover; found = discover(); "
        "print([node.name for node in found.nodes], found.source, 1200 < found.ends - time.time() <= 1800)"
    )
    typed = f"export PATH={polaris.pbs.bin}:$PATH PYTHONPATH={REPOSITORY}\n{sys.executable} -c '{look}'\n"
    done = subprocess.run(
        polaris.scene.argv("submit-launch", *LINE, "--interactive"), input=typed, capture_output=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)}, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert f"{[*polaris.pbs.nodes]} pbs True" in done.stdout, done.stdout + done.stderr
