"""A disk that fills up, a site that becomes read-only, a database that others hold: nothing is lost."""

from __future__ import annotations

import contextlib
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.failure.scene import Scene
from tests.support import wait_until

EVALUATIONS = 60


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 megabytes, for the site alone."""
    path = tmp_path / "disk"
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "none", str(path)], check=True, timeout=60)
    yield path
    subprocess.run(["umount", "-l", str(path)], check=True, timeout=60)


def fill(disk: Path) -> None:
    """Leave no byte, as another program on the same disk may at any moment."""
    with contextlib.suppress(OSError), (disk / "filler").open("ab", buffering=0) as file:
        while True:
            file.write(b"x" * 4096)


@pytest.mark.slow
@pytest.mark.needs_root
@pytest.mark.needs_program("mount")
def test_a_disk_that_is_full_for_a_while_is_waited_for(tmp_path: Path, test_id: str, disk: Path) -> None:
    scene = Scene(tmp_path, test_id, EVALUATIONS, disk)
    scene.prepare(run="tests.failure.functions.gated")
    launcher = scene.launcher()
    wait_until(lambda: scene.started() >= 3, 60, "the first evaluations")
    fill(disk)
    scene.gate.touch()
    wait_until(lambda: "full" in scene.log() or launcher.poll() is not None, 60, "it to be felt")
    (disk / "filler").unlink()
    assert launcher.wait(60) == 0, scene.log()
    scene.judge(files=False)


@pytest.mark.slow
@pytest.mark.needs_root
@pytest.mark.needs_program("mount")
@pytest.mark.parametrize("when", [3, 17, 40])
def test_a_disk_that_stays_full_ends_the_launcher_and_costs_what_was_running(
    tmp_path: Path, test_id: str, disk: Path, when: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NAS_HPC_LEASE_S", "5")
    monkeypatch.setenv("NAS_HPC_HEARTBEAT_S", "1")
    scene = Scene(tmp_path, test_id, EVALUATIONS, disk)
    scene.prepare()
    launcher = scene.launcher()
    wait_until(lambda: scene.ended() >= when, 60, f"{when} ends")
    fill(disk)
    wait_until(lambda: launcher.poll() is not None or "full" in scene.log(), 60, "it to be felt")
    fill(disk)
    assert launcher.wait(60) == 1, "a launcher that can record nothing ends"
    assert "Traceback" not in scene.log()
    assert "--debug" not in scene.log()
    (disk / "filler").unlink()
    scene.finish()
    scene.judge(files=False)


@pytest.mark.slow
@pytest.mark.needs_root
@pytest.mark.needs_program("mount")
def test_a_site_that_becomes_read_only_during_a_run_is_told_and_goes_on_when_it_is_writable(
    tmp_path: Path, test_id: str, disk: Path
) -> None:
    scene = Scene(tmp_path, test_id, EVALUATIONS, disk)
    scene.prepare()
    launcher = scene.launcher()
    wait_until(lambda: scene.ended() >= 10, 60, "the first evaluations")
    with read_only(disk, tmp_path / "aside"):
        wait_until(lambda: launcher.poll() is not None, 120, scene.log)
        assert launcher.returncode == 1
        assert "read-only" in scene.log().lower()
        assert "Traceback" not in scene.log()
        assert "--debug" not in scene.log()
    scene.finish()
    scene.judge(files=False)


@contextlib.contextmanager
def read_only(disk: Path, aside: Path) -> Iterator[None]:
    """Whoever opens a file there from now on cannot write it; what is open stays as it was."""
    aside.mkdir()
    for argv in (["--bind", disk, aside], ["-o", "remount,bind,ro", aside], ["--move", aside, disk]):
        subprocess.run(["mount", *map(str, argv)], check=True, timeout=60)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True, timeout=60)


@pytest.mark.slow
def test_a_database_that_another_process_holds_for_a_while_is_waited_for(
    tmp_path: Path, test_id: str
) -> None:
    scene = Scene(tmp_path, test_id, EVALUATIONS)
    scene.prepare()
    launcher = scene.launcher()
    for number in range(3):
        wait_until(lambda: scene.ended() >= 10 + 10 * number, 60, "evaluations")  # noqa: B023
        with held(scene.site / "db.sqlite3"):
            begun = time.monotonic()
            wait_until(lambda: time.monotonic() - begun > 3, 60, "three seconds")  # noqa: B023
    assert launcher.wait(60) == 0, scene.log()
    assert scene.judge() == 0, "nothing was interrupted"


@contextlib.contextmanager
def held(database: Path) -> Iterator[None]:
    """The write lock, by this process."""
    connection = sqlite3.connect(database, timeout=10, isolation_level=None)
    try:
        connection.execute("BEGIN IMMEDIATE")
        yield
        connection.execute("ROLLBACK")
    finally:
        connection.close()
