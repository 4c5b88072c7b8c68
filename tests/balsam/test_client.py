"""A search's evaluations in a real Balsam database. The launcher is played: the real one mostly waits."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import uuid
from pathlib import Path
from typing import Any

import pytest

from nas_hpc import JobSpec, job_specification
from nas_hpc.errors import LauncherGone, NasHpcError, Superseded
from nas_hpc.evaluator import LauncherEvaluator, Settings, create
from nas_hpc.integrations.balsam import client
from nas_hpc.states import Outcome
from tests.balsam.scene import ROOT, RUN, Hold, Scene
from tests.evaluator.contract import EvaluatorContract
from tests.support import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.needs_balsam]


class TestBalsamEvaluator(EvaluatorContract):
    """The promises of all evaluators."""

    @pytest.fixture
    def evaluator(self, scene: Scene) -> LauncherEvaluator:
        scene.play()
        return scene.connect()

    @pytest.fixture
    def hold(self, scene: Scene) -> threading.Event:
        return Hold(scene.held)


def test_equal_configurations_run_once_and_hits_are_jobs_of_their_own(scene: Scene) -> None:
    played = scene.play()
    first = scene.connect(cache_key="to_dict")
    first.submit([{"x": 1}])
    first.gather("all", 60)
    first.submit([{"x": 1}, {"x": 2}])
    results = {result.id: result for result in first.gather("all", 60)}
    assert (results[2].objective, results[2].cached, results[3].objective) == (2.0, True, 4.0)
    assert played.ran == ["task1", "task3"]
    first.close()
    again = scene.connect(cache_key="to_dict")
    assert [(r.id, r.objective, r.cached) for r in again.history] == [
        (1, 2.0, False), (2, 2.0, True), (3, 4.0, False),
    ]  # fmt: skip


def test_a_search_that_is_started_again_has_its_past_and_what_runs(scene: Scene, tmp_path: Path) -> None:
    ledger = tmp_path / "ledger"
    played, hold = scene.play(), Hold(scene.held)
    first = scene.connect()
    first.submit([{"x": 1.5, "ledger": str(ledger)}, {"fail": True, "x": 2}], data={"told": 0})
    first.gather("all", 60)
    hold.clear()
    first.submit([{"x": x, "ledger": str(ledger)} for x in (3, 4, 5)], data={"told": 2})
    wait_until(lambda: len(played.processes) == 2, 60, "two evaluations to run")
    first.close()
    again = scene.connect()
    assert {r.id: (dict(r.config), r.objective, r.outcome, dict(r.data)) for r in again.history} == {
        1: ({"x": 1.5, "ledger": str(ledger)}, 3.0, Outcome.OK, {"told": 0}),
        2: ({"fail": True, "x": 2}, None, Outcome.ERROR, {"told": 0}),
    }
    assert [(p.seq, p.config["x"], p.data) for p in again.pending] == [(s, s, {"told": 2}) for s in (3, 4, 5)]
    assert (again.in_flight, again.next_id) == (3, 6)
    assert 0 < again.started <= min(result.start for result in again.history) + 60
    hold.set()
    assert sorted(r.id for r in again.gather("all", 60)) == [3, 4, 5]
    assert sorted(ledger.read_text().split()) == ["1.5", "3", "4", "5"], "nothing ran twice"


def test_an_earlier_attempt_of_a_search_is_told_to_end(scene: Scene) -> None:
    scene.play()
    first = scene.connect()
    second = scene.connect()
    first.submit([{"x": 1}])
    with pytest.raises(Superseded, match="superseded"):
        first.gather(1, 60)
    second.submit([{"x": 2}])
    assert [r.objective for r in second.gather("all", 60)] == [4.0]
    assert list(scene.states()) == ["task1"], "what a superseded one submits is not added"


def test_a_failed_evaluation_runs_again_while_retries_last(scene: Scene, tmp_path: Path) -> None:
    scene.play()
    run = "tests.balsam.trial_functions.fails_at_first"
    evaluator = scene.connect(run=run, retries=2)
    evaluator.submit([{"ledger": str(tmp_path / f"ledger{n}"), "times": n} for n in (1, 3)])
    results = {result.id: result for result in evaluator.gather("all", 60)}
    assert (results[1].objective, results[1].attempt) == (1.0, 2)
    assert (results[2].outcome, results[2].attempt) == (Outcome.ERROR, 3)
    assert results[2].reason == "RuntimeError: failure 3"


def test_evaluations_that_a_stopped_launcher_ended_are_no_failures(scene: Scene) -> None:
    hold = Hold(scene.held)
    hold.clear()
    played = scene.play()
    evaluator = scene.connect()
    evaluator.submit([{"x": 1}])
    process = wait_until(lambda: played.processes.get("task1"), 60, "the evaluation to run")
    process.terminate()
    wait_until(lambda: evaluator.gather(0) or played.ran == ["task1", "task1"], 60, "it to be started again")
    hold.set()
    (result,) = evaluator.gather("all", 60)
    assert (result.objective, result.attempt) == (2.0, 2)


def test_a_time_limit_ends_a_run_function(scene: Scene) -> None:
    scene.play()
    evaluator = scene.connect(run="tests.balsam.trial_functions.sleep", timeout_s=0.5)
    evaluator.submit([{"x": 1}])
    (result,) = evaluator.gather("all", 60)
    assert (result.outcome, result.reason) == (Outcome.TIMEOUT, "ran longer than 0.5 s")


@job_specification
def program(parameters: dict[str, Any]) -> JobSpec:
    """A program, an application, or something that cannot be."""
    match parameters["as"]:
        case "argv":
            return JobSpec(argv=["/bin/sh", "-c", "echo  'DH-OUTPUT: 5.5'"])
        case "silent":
            return JobSpec(argv=["/bin/true"])
        case "absent":
            return JobSpec(application="NOWHERE")
        case _:
            raise ValueError("no such kind")


def test_job_specifications_become_jobs_and_their_failures_results(scene: Scene) -> None:
    scene.play()
    evaluator = scene.connect(specify=program)
    evaluator.submit([{"as": kind} for kind in ("argv", "silent", "absent", "other")])
    results = {result.config["as"]: result for result in evaluator.gather("all", 60)}
    assert (results["argv"].objective, results["argv"].outcome) == (5.5, Outcome.OK)
    assert results["silent"].outcome is Outcome.INVALID_RESULT
    assert "no line with DH-OUTPUT" in results["silent"].reason
    assert "'NOWHERE' is not in the Balsam database" in results["absent"].reason
    assert results["other"].reason == "ValueError: no such kind"


def test_a_killed_search_ends_with_its_evaluations(scene: Scene) -> None:
    Hold(scene.held).clear()
    played = scene.play()
    evaluator = scene.connect()
    evaluator.submit([{"x": x} for x in range(3)])
    wait_until(lambda: len(played.processes) == 2, 60, "two evaluations to run")
    played.enter(scene.search, "USER_KILLED", within="'RUNNING'")
    with pytest.raises(LauncherGone, match="its job was killed"):
        evaluator.gather(1, 60)
    evaluator.close()
    assert set(scene.states().values()) == {"USER_KILLED"}


def test_an_evaluation_whose_job_was_removed_is_over(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "LOOK_S", 0.2)
    evaluator = scene.connect()
    evaluator.submit([{"x": 1}])
    wait_until(lambda: evaluator.gather(0) or scene.states(), 60, "its job")
    scene.balsam.do("DELETE FROM core_balsamjob WHERE name = 'task1'")
    (result,) = evaluator.gather("all", 60)
    assert (result.outcome, result.reason) == (Outcome.KILLED, client.REMOVED)


def test_a_database_that_is_away_for_a_while_loses_nothing(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    played = scene.play()
    evaluator = scene.connect()
    evaluator.submit([{"x": 1}])
    evaluator.gather("all", 60)
    played.stop()
    scene.balsam.stop_server()
    evaluator.submit([{"x": 2}, {"x": 3}])
    assert evaluator.gather(1, 1.0) == []
    scene.balsam.start_server()
    scene.play()
    assert sorted(r.objective or 0.0 for r in evaluator.gather("all", 60)) == [4.0, 6.0]
    assert any("asking again" in message for message in caplog.messages)


def test_a_database_that_stays_away_ends_the_search_in_one_line(scene: Scene) -> None:
    evaluator = scene.connect(reconnect_s=1.0)
    scene.balsam.stop_server()
    evaluator.submit([{"x": 2}])
    with pytest.raises(LauncherGone) as gone:
        evaluator.gather(1, 60)
    assert "\n" not in gone.value.message
    assert "NAS_HPC_RECONNECT_S" in gone.value.message


def test_a_bridge_that_is_killed_is_started_again_and_loses_nothing(scene: Scene) -> None:
    scene.play()
    evaluator = scene.connect()
    evaluator.submit([{"x": 0}])
    evaluator.gather("all", 60)
    for round_ in range(1, 4):
        link = evaluator._client._link  # type: ignore[attr-defined]
        os.kill(link.pid, signal.SIGKILL)
        evaluator.submit([{"x": 10 * round_ + x} for x in range(2)])
        done = evaluator.gather("all", 60)
        assert sorted(r.objective or 0 for r in done) == [20.0 * round_, 20.0 * round_ + 2]


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        ({"BALSAM_JOB_ID": str(uuid.UUID(int=5))}, "there is no job 00000000-0000-0000-0000-000000000005"),
        ({"BALSAM_JOB_ID": "x"}, "'x' is no id"),
        ({"BALSAM_LAUNCHER_NODES": ""}, "BALSAM_LAUNCHER_NODES=''"),
        ({"BALSAM_JOB_MODE": "mpi"}, "1 node in mpi mode"),
        ({"BALSAM_DB_PATH": "/nowhere"}, "/nowhere"),
        ({"BALSAM_JOB_MODE": "mpi", "PMI_RANK": "1", "PMI_SIZE": "2"}, "Balsam started 2"),
    ],
)
def test_a_search_that_cannot_be_is_refused_in_one_line(
    scene: Scene, environ: dict[str, str], said: str
) -> None:
    with pytest.raises(NasHpcError, match=said) as refused:
        create("balsam", Settings(run=RUN), environ=scene.environ(**environ), reconnect_s=0.5)
    assert "\n" not in refused.value.message


def test_a_search_that_is_refused_in_serial_mode_is_not_started_again(scene: Scene) -> None:
    problem = "nas_hpc.problems.hps.polynome2"
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "nas_hpc.apps.ambs",
            "--problem",
            f"{problem}.Problem",
            "--run",
            f"{problem}.run",
        ],
        env=scene.environ(DEEPHYPER_WORKERS_PER_NODE="1", PYTHONPATH=str(ROOT)),
        cwd=scene.place,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 3, "with 1 Balsam would start it three times more"
    assert "no evaluation could run" in done.stderr
    assert len(done.stderr.splitlines()) == 1
