"""From submit-launch to the end of a search on a machine like Theta: the stand-ins of Cobalt and of aprun."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

import nas_hpc.batch
from nas_hpc.batch.following import refresh
from nas_hpc.batch.jobs import new_job, read_jobs, write_job
from nas_hpc.site import Site
from nas_hpc.states import BATCH_FINAL, BatchState
from tests.failure.scene import REPOSITORY, Scene
from tests.launcher.bench import Bench
from tests.peers.cobalt import Cobalt
from tests.peers.cobalt_state import user
from tests.peers.fronts import write_front
from tests.peers.mpi import MpiPeer
from tests.support import processes_of, wait_until

pytestmark = [pytest.mark.needs_mpich]

APRUN = "/opt/cray/alps/default/bin"
AT_ONCE = {"serial": 2, "mpi": 3}
"""Evaluations on four nodes: one is the search's, and in serial mode one the launcher's."""
LINE = ("-n", "4", "-q", "debug-cache-quad", "-t", "60", "-A", "datascience")


@dataclass(frozen=True, slots=True)
class Theta:
    """A site on a machine whose file is Theta's, and its batch system."""

    cobalt: Cobalt
    scene: Scene
    bench: Bench

    def launch(self, mode: str) -> str:
        """The line of Theta's users, as they type it; the id."""
        return only_id(
            self.scene.command("submit-launch", *LINE, "--job-mode", mode, "--wf-filter", "TEST", "--json")
        )

    def gone(self, number: str, timeout_s: float = 240) -> int:
        """Wait until Cobalt has it no more; its exit code."""
        wait_until(
            lambda: number in self.cobalt.ended() and not self.cobalt.state(number), timeout_s, self.log
        )
        return self.cobalt.ended()[number]

    def log(self) -> str:
        """What the batch jobs wrote."""
        paths = sorted((self.scene.site / "qsubmit").glob("*.[oec]*"))
        return "\n".join(f"{path.name}: {path.read_text()[-3000:]}" for path in paths)

    def listed(self, number: str) -> dict[str, Any]:
        """What ls queues says of a batch job."""
        out = self.bench.nas("ls", "queues", "--all", "--json")
        body = json.JSONDecoder().raw_decode(out, out.index("{"))[0]
        [found] = [one for one in body["batch_jobs"] if one["id"] == number]
        return {**found, "trouble": body["trouble"]}


def only_id(said: str) -> str:
    """The id in what ``submit-launch --json`` prints."""
    [number] = re.findall(r'"id": "([0-9]+)"', said)
    return str(number)


@pytest.fixture
def theta(tmp_path: Path, test_id: str, mpich: MpiPeer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Theta]:
    with Cobalt(tmp_path / "cobalt", grace_s=0.3) as cobalt:
        write_front(cobalt.bin, "aprun", mpich)
        monkeypatch.setenv("PATH", cobalt.path)
        monkeypatch.setenv("NAS_HPC_MACHINE", "theta")
        directory = tmp_path / "the user's files"  # a path that no directive could hold
        directory.mkdir()
        yield Theta(cobalt, Scene(directory, test_id, 12, name="TEST"), Bench(directory, test_id))


def prepare(theta: Theta, application: str = "random_search", run: str = "tests.failure.ledger.run") -> None:
    """The search's job; and Theta's own file, but for the place of aprun."""
    theta.scene.prepare(application, workers=1, run=run)
    text = (Path(nas_hpc.batch.__path__[0]) / "machines" / "theta.toml").read_text()
    assert APRUN in text
    (theta.scene.site / "machines").mkdir(exist_ok=True)
    (theta.scene.site / "machines" / "theta.toml").write_text(text.replace(APRUN, str(theta.cobalt.bin)))


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("mode", AT_ONCE)
def test_the_lines_of_thetas_users_run_a_search_to_its_end(theta: Theta, mode: str) -> None:
    prepare(theta, "ambs")
    number = theta.launch(mode)
    assert theta.gone(number) == 0, theta.log()
    assert theta.scene.judge() == 0
    job = theta.listed(number)
    assert (job["state"], job["exit_code"], job["project"], job["nodes"]) == ("ended", 0, "datascience", 4)
    lines = (theta.cobalt.bin / "lines").read_text().splitlines()
    if mode == "serial":
        assert [line.split(" -cc")[0] for line in lines] == ["-C -n 3 -N 1 -L 2,3,4"]
    else:
        assert {node for line in lines for node in re.findall(r" -L ([0-9]+) ", line)} == set("1234")
    assert "PATH" not in theta.cobalt.environment
    script = Path(job["script"]).read_text().splitlines()
    assert script[:4] == ["#!/bin/bash", "#COBALT -A datascience", "#COBALT -n 4", f"#COBALT -q {LINE[3]}"]
    assert script[4] == "#COBALT -t 60"
    assert script[-1].startswith("exec ")


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("mode", "end"), [("serial", "timeout"), ("mpi", "cancelled")])
def test_the_end_of_the_walltime_or_a_deletion_costs_what_was_running(
    theta: Theta, mode: str, end: str
) -> None:
    prepare(theta, run="tests.failure.functions.gated")
    theta.scene.gate.touch()
    first = theta.launch(mode)
    wait_until(lambda: theta.scene.started() >= 4, 120, theta.log)
    theta.scene.gate.unlink()
    wait_until(lambda: theta.scene.started() - theta.scene.ended() >= AT_ONCE[mode], 60, theta.log)
    if end == "timeout":
        theta.cobalt.expire(first)
    else:
        assert "Deleted" in theta.cobalt.run("qdel", first).stdout
    theta.gone(first)
    job = theta.listed(first)
    assert job["state"] == end
    said = {
        "timeout": "maximum execution time exceeded",
        "cancelled": "user delete requested with signal SIGTERM",
    }
    assert job["reason"].startswith(said[end])
    assert end in theta.bench.nas("why", f"batch:{first}")
    wait_until(lambda: not processes_of(theta.scene.test_id), 60, "the end of all that ran in the batch job")
    theta.scene.gate.touch()
    assert theta.gone(theta.launch(mode)) == 0, theta.log()
    assert theta.scene.judge() <= AT_ONCE[mode]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_an_interactive_shell_has_nodes_and_an_end_for_its_launcher(theta: Theta) -> None:
    prepare(theta)
    shell = theta.cobalt.directory / "shell"
    words = theta.scene.argv("launcher", "--job-mode", "mpi", "--wf-filter", "TEST")
    shell.write_text(f"#!/bin/sh\nexec {shlex.join(words)}\n")
    shell.chmod(0o755)
    done = subprocess.run(
        theta.scene.argv("submit-launch", *LINE, "--interactive"), cwd=theta.scene.directory,
        env={**os.environ, "SHELL": str(shell), "PYTHONPATH": str(REPOSITORY)},
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "cobalt job 1: 4 nodes nid[00001-00004]" in done.stdout
    assert "is unknown" not in done.stdout, "when it ends is known"
    assert theta.scene.judge() == 0
    assert theta.gone("1") == 0


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_chain_in_a_reservation_ends_when_its_workflow_is_done(theta: Theta) -> None:
    prepare(theta)
    theta.cobalt.queue("R.mine")  # of which the machine's file does not know
    words = [{LINE[3]: "R.mine"}.get(word, word) for word in LINE]
    theta.scene.command("submit-launch", *words, "--job-mode", "mpi", "--wf-filter", "TEST", "--chain", "3")
    wait_until(lambda: set(theta.cobalt.ended()) == {"1", "2", "3"}, 200, theta.log)
    assert theta.cobalt.ended()["1"] == 0
    assert theta.scene.judge() == 0
    wait_until(lambda: theta.cobalt.jobs() == {}, 60)


def queued(theta: Theta) -> str:
    """A batch job that does not start; its id."""
    theta.bench.nas("init", str(theta.scene.site))
    theta.bench.nas("app", "--name", "TASK", "--exec", "/bin/true")
    theta.bench.job("task", "TASK", workflow="TEST")
    theta.cobalt.queue(LINE[3], state="stopped")
    return only_id(theta.bench.nas("submit-launch", *LINE, "--wf-filter", "TEST", "--json"))


TROUBLES: dict[str, dict[str, Any]] = {
    "Failed to connect": {"stderr": "component error: Failed to connect to queue-manager\n"},
    "did not answer": {"hang": True},
    "no table of JobID, State: *** glibc": {"stdout": "*** glibc detected ***\n", "code": 0},
    "no table of JobID, State: nothing": {"code": 0},
}


@pytest.mark.slow
def test_a_status_command_that_fails_hangs_or_babbles_changes_no_state(theta: Theta) -> None:
    number = queued(theta)
    site = Site(theta.scene.site)
    for said, trouble in TROUBLES.items():
        theta.cobalt.trouble("qstat", **trouble)
        records = read_jobs(site)
        answer_s = 1.0 if "hang" in trouble else 60.0
        found = refresh(site, records, os.environ, patience_s=0, insist=True, answer_s=answer_s)
        assert [(job.id, job.state.value) for job in found.jobs] == [(number, records[0].state.value)]
        assert said in " ".join(found.trouble)
        theta.cobalt.mend("qstat")
    theta.cobalt.trouble("qstat", **TROUBLES["Failed to connect"])
    job = theta.listed(number)
    assert job["state"] == "queued"
    assert "glibc" in " ".join(job["trouble"]) or job["trouble"], (
        "it is left alone for a while, which is said"
    )
    assert "queue" in theta.bench.nas("why", f"batch:{number}")
    theta.cobalt.mend("qstat")
    assert number in theta.bench.nas("why", "task")


@pytest.mark.slow
def test_a_log_that_is_seen_late_tells_the_exit_code_in_the_end(theta: Theta) -> None:
    theta.bench.nas("init", str(theta.scene.site))
    theta.cobalt.log_delay_s = 3.0
    site = Site(theta.scene.site)
    job = new_job(site, system="cobalt", machine="theta", nodes=1, walltime_minutes=60, job_mode="mpi")
    Path(job.script).write_text("#!/bin/sh\n#COBALT -n 1\n#COBALT -t 60\nexit 3\n")
    done = theta.cobalt.run(
        "qsub", "--cwd", str(site.path), "-O", job.output.removesuffix(".output"), job.script
    )
    job = replace(job, id=done.stdout.strip(), submitted=time.time(), state=BatchState.QUEUED)
    write_job(site, job)
    assert theta.gone(job.id) == 3
    states = []

    def final() -> bool:
        [now] = refresh(site, read_jobs(site), os.environ, patience_s=0, answer_s=60.0).jobs
        states.append(now)
        return now.state in BATCH_FINAL

    wait_until(final, 25, "the log")
    assert (states[-1].state, states[-1].exit_code) == (BatchState.ENDED, 3)


def test_a_deletion_by_qdel_is_seen_and_one_by_kill_is_verified(theta: Theta) -> None:
    number = queued(theta)
    theta.cobalt.change(number, user="somebody")
    assert "Cobalt has it still (queued)" in theta.bench.nas("kill", f"batch:{number}", "--yes", code=1)
    assert theta.listed(number)["state"] == "queued"
    theta.cobalt.change(number, user=user())
    assert theta.cobalt.run("qdel", number).returncode == 0
    job = theta.listed(number)
    said = "user delete requested; removing job from the queue"
    assert (job["state"], job["reason"]) == ("cancelled", said)
    other = only_id(theta.bench.nas("submit-launch", *LINE, "--wf-filter", "TEST", "--json"))
    theta.bench.nas("kill", f"batch:{other}", "--yes")
    assert theta.cobalt.jobs() == {}
    assert theta.listed(other)["state"] == "cancelled"


def test_what_cobalt_refuses_is_told_in_its_words_with_what_was_sent(theta: Theta) -> None:
    theta.bench.nas("init", str(theta.scene.site))
    theta.cobalt.queue(LINE[3], state="draining")
    said = theta.bench.nas("submit-launch", *LINE, "--no-check", code=1)
    assert "Cobalt refused it: " in said
    assert "The 'debug-cache-quad' queue is draining" in said
    assert "qsub --cwd" in said
    assert "#COBALT -q debug-cache-quad" in said
    assert theta.cobalt.jobs() == {}
