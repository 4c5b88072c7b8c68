"""Evaluations that Balsam's own launcher runs: on several ranks, ended, and over the launcher's own end."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from nas_hpc import JobSpec, job_specification
from nas_hpc.evaluator import LauncherEvaluator
from nas_hpc.states import Outcome
from nas_hpc.wire import Shape
from tests.balsam.scene import ROOT, Hold, Scene
from tests.balsam.trial_functions import HOLD
from tests.support import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.needs_balsam]


def begin(scene: Scene, nodes: int = 4) -> None:
    """A launcher in mpi mode on so many nodes, all of them this host; the search has one more."""
    names = scene.place / "nodes"
    names.write_text("localhost\n" * nodes)
    scene.balsam.settings(WORKER_DETECTION_TYPE="COOLEY")
    scene.given.update(BALSAM_JOB_MODE="mpi", BALSAM_LAUNCHER_NODES=str(nodes + 1))
    environ = {HOLD: str(scene.held), "PYTHONPATH": str(ROOT), "COBALT_NODEFILE": str(names)}
    words = ("--wf-filter", "WF", "--job-mode=mpi", "--time-limit-minutes", "10")
    scene.launcher = scene.balsam.launcher(*words, **environ)


@pytest.mark.extra("mpi4py")
@pytest.mark.needs_mpich
def test_in_mpi_mode_ranks_work_together_fail_together_and_are_ended(scene: Scene) -> None:
    begin(scene)
    evaluator = scene.connect(run="tests.balsam.trial_functions.together", timeout_s=600.0)
    assert evaluator.capacity() == 4
    began = scene.place / "began"
    ids = evaluator.submit([{"sum": 1}, {"fail": 1}, {"wait": str(began)}], resources=Shape(ranks_per_node=2))
    first = {result.id: result for result in evaluator.gather(2, 120)}
    assert (first[1].objective, first[1].outcome) == (3.0, Outcome.OK)
    assert (first[2].outcome, first[2].reason) == (Outcome.ERROR, "ValueError: rank 1 has no value")
    wait_until(began.exists, 60, "the ranks that wait")
    evaluator.cancel(ids)
    (killed,) = evaluator.gather("all", 60)
    assert (killed.id, killed.outcome) == (3, Outcome.KILLED)
    evaluator.submit([{}], resources=Shape(num_nodes=4))
    assert {r.objective for r in evaluator.gather(1, 120)} == {10.0}, "its nodes are free again"


@job_specification
def program(parameters: dict[str, Any]) -> JobSpec:
    """A registered application with these arguments."""
    return JobSpec(environ={"GIVEN": "5.5"}, **parameters)


def test_job_specifications_are_jobs_of_their_applications(scene: Scene) -> None:
    script = scene.place / "train.sh"
    script.write_text('#!/bin/sh\necho "$1"\necho "DH-OUTPUT: $GIVEN"\nexit "$2"\n')
    script.chmod(0o755)
    scene.balsam.add_app("TRAIN", str(script))
    noting = scene.place / "note.py"
    noting.write_text(
        "import nas_hpc.jobs as j; j.update_data(dh_objective=7.5, epochs=j.current().data['n'])"
    )
    scene.balsam.add_app("NOTE", f"{sys.executable} {noting}")
    scene.balsam.add_app("SLEEP", "/bin/sleep")
    begin(scene)
    evaluator = scene.connect(specify=program)
    evaluator.submit(
        [
            {"application": "TRAIN", "args": "'a b' 0"},
            {"application": "TRAIN", "args": "x 4"},
            {"application": "SLEEP", "args": "600", "timeout_s": 1.0},
            {"application": "NOTE", "data": {"n": 12}},
        ]
    )
    results = {result.id: result for result in evaluator.gather("all", 120)}
    assert (results[1].objective, results[1].outcome) == (5.5, Outcome.OK)
    assert (results[2].objective, results[2].outcome) == (None, Outcome.ERROR)
    assert (results[3].outcome, results[3].reason) == (Outcome.TIMEOUT, "ran longer than 1 s")
    assert (results[4].objective, dict(results[4].metadata)) == (7.5, {"epochs": 12})
    rows = {row["name"]: row for row in scene.balsam.jobs("WF")}
    assert [rows[f"task{n}"]["application"] for n in (1, 2, 3)] == ["TRAIN", "TRAIN", "SLEEP"]
    assert "a b" in (scene.balsam.job_directory(rows["task1"]) / "task1.out").read_text()
    assert rows["task1"]["data"]["dh_objective"] == 5.5


def test_the_end_of_a_launcher_costs_nothing(scene: Scene, tmp_path: Path) -> None:
    hold, ledger = Hold(scene.held), tmp_path / "ledger"
    hold.clear()
    begin(scene)
    evaluator: LauncherEvaluator = scene.connect()
    evaluator.submit([{"x": x, "ledger": str(ledger)} for x in (1, 2)])
    wait_until(lambda: evaluator.gather(0) or set(scene.states().values()) == {"RUNNING"}, 120, "both to run")
    scene.balsam.end_launcher(scene.launcher, signal.SIGTERM)
    hold.set()
    assert evaluator.gather("all", 1.0) == []
    begin(scene)
    results = evaluator.gather("all", 120)
    assert sorted(r.objective or 0 for r in results) == [2.0, 4.0]
    assert {r.attempt for r in results} == {2}
    assert sorted(ledger.read_text().split()) == ["1", "2"]
