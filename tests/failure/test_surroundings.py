"""Places where a launcher has to live: without an environment, with few file descriptors, in a read-only
installation, beside the traces of another host."""

from __future__ import annotations

import json
import sqlite3
import time
from pathlib import Path

import pytest

from tests.failure.scene import REPOSITORY, Scene
from tests.support import wait_until

EVALUATIONS = 40


@pytest.mark.slow
def test_a_whole_search_runs_under_env_i(tmp_path: Path, test_id: str) -> None:
    scene = Scene(tmp_path, test_id, EVALUATIONS)
    scene.prepare("ambs")
    launcher = scene.launcher(environ={"PYTHONPATH": str(REPOSITORY)})
    assert launcher.wait(60) == 0, scene.log()
    assert scene.judge() == 0


@pytest.mark.slow
@pytest.mark.needs_program("prlimit")
def test_256_file_descriptors_are_enough_for_many_evaluations_at_once(tmp_path: Path, test_id: str) -> None:
    scene = Scene(tmp_path, test_id, 130)
    scene.prepare(run="tests.failure.functions.gated", workers=120)
    launcher = scene.launcher(before=["prlimit", "--nofile=256:256", "--"])
    wait_until(lambda: scene.started() >= 120 or launcher.poll() is not None, 100, "120 at once")
    scene.gate.touch()
    assert launcher.wait(100) == 0, scene.log()
    assert scene.judge() == 0


@pytest.mark.slow
def test_traces_of_another_host_are_respected_until_its_lease_is_over(
    tmp_path: Path, test_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NAS_HPC_LEASE_S", "6")
    monkeypatch.setenv("NAS_HPC_HEARTBEAT_S", "1")
    scene = Scene(tmp_path, test_id, EVALUATIONS)
    scene.prepare()
    launcher = scene.launcher()
    wait_until(lambda: scene.ended() >= 5, 60, "the first evaluations")
    scene.kill_all_of(launcher)
    owner = json.loads((scene.site / "run" / "owner.json").read_text())
    (scene.site / "run" / "owner.json").write_text(json.dumps(owner | {"host": "elsewhere", "pid": 1}))
    with sqlite3.connect(scene.site / "db.sqlite3") as connection:
        assert connection.execute("UPDATE leases SET host = 'elsewhere'").rowcount == 1
    connection.close()
    refused = scene.launcher()
    assert refused.wait(60) == 2
    assert "run by a launcher on another host" in scene.log()
    wait_until(lambda: lease_is_over(scene.site), 60, "the lease to run out")
    scene.finish()
    scene.judge()


def lease_is_over(site: Path) -> bool:
    """Whether the last lease has run out."""
    connection = sqlite3.connect(site / "db.sqlite3")
    try:
        return bool(connection.execute("SELECT max(expires) FROM leases").fetchone()[0] < time.time())
    finally:
        connection.close()
