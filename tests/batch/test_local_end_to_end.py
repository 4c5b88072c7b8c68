"""A batch job of this machine that is ended in the middle of a search, judged by the ledger."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from nas_hpc.batch.following import refresh
from nas_hpc.batch.jobs import read_jobs
from nas_hpc.batch.local import parse_id
from nas_hpc.records import BatchJob
from nas_hpc.site import Site
from nas_hpc.states import BATCH_FINAL, BatchState
from tests.failure import ledger
from tests.failure.scene import Scene
from tests.support import processes_of, wait_until

pytestmark = pytest.mark.slow


@pytest.fixture
def scene(tmp_path: Path, test_id: str) -> Scene:
    scene = Scene(tmp_path, test_id, 10, name="TEST")
    scene.prepare("ambs", workers=3, run="tests.failure.functions.gated", environ={ledger.WORK_S: "0.2"})
    return scene


def submit(scene: Scene) -> BatchJob:
    words = ("-n", "1", "-t", "10", "--job-mode", "serial", "--wf-filter", "TEST")
    scene.command("submit-launch", "--machine", "local", *words)
    return jobs(scene)[-1]


def jobs(scene: Scene) -> list[BatchJob]:
    site = Site(scene.site)
    return refresh(site, read_jobs(site), os.environ, patience_s=0).jobs


def printed(scene: Scene) -> str:
    return "\n".join(Path(job.output).read_text()[-2000:] for job in jobs(scene))


def until(scene: Scene, job: BatchJob) -> BatchJob:
    """Wait until it is at its end."""

    def look() -> BatchJob | None:
        [now] = [one for one in jobs(scene) if one.key == job.key]
        return now if now.state in BATCH_FINAL else None

    found = wait_until(look, 120, lambda: f"the end of {job.id}: {printed(scene)}")
    assert found is not None
    return found


def busy(scene: Scene, count: int) -> None:
    wait_until(lambda: scene.started() >= count, 90, lambda: f"{count} starts: {printed(scene)}")


def test_what_a_killed_runner_interrupted_is_finished_by_the_next_submission_and_nothing_runs_twice(
    scene: Scene,
) -> None:
    first = submit(scene)
    busy(scene, 2)
    os.kill(parse_id(first.id)[0], signal.SIGKILL)
    ended = until(scene, first)  # nobody but the launcher tells
    assert (ended.state, ended.exit_code) == (BatchState.ENDED, 0)
    wait_until(lambda: not processes_of(scene.test_id), 60, "the end of everything")
    scene.gate.touch()
    second = submit(scene)
    assert until(scene, second).exit_code == 0, printed(scene)
    assert scene.over()
    assert scene.judge() <= 3


def test_a_second_batch_job_of_a_site_with_sqlite_waits_for_its_turn_instead_of_failing(scene: Scene) -> None:
    first = submit(scene)
    busy(scene, 2)
    second = submit(scene)
    assert (second.state, second.dependencies) == (BatchState.HELD, (first.id,))
    scene.gate.touch()
    assert until(scene, first).exit_code == 0, printed(scene)
    assert until(scene, second).exit_code == 0, printed(scene)
    assert scene.judge() == 0
