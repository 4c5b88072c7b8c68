"""A launcher that was stopped beyond its lease and goes on after another took over writes nothing."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import sqlite3
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.failure.scene import Scene
from tests.support import DISK, wait_until

LEASE_S = 6.0
EVALUATIONS = 60


@pytest.fixture
def on_disk() -> Iterator[Path]:
    """A directory on a disk, where a commit takes a while: a stop is to come upon a launcher within one."""
    path = Path(tempfile.mkdtemp(prefix="nhfence", dir=DISK))
    yield path
    shutil.rmtree(path)


def begun(
    directory: Path, test_id: str, monkeypatch: pytest.MonkeyPatch, flags: tuple[str, ...] = ()
) -> tuple[Scene, subprocess.Popen[bytes]]:
    """A search whose first evaluations are done, and its launcher, which has a short lease."""
    monkeypatch.setenv("NAS_HPC_LEASE_S", str(LEASE_S))
    monkeypatch.setenv("NAS_HPC_HEARTBEAT_S", "0.5")
    scene = Scene(directory, test_id, EVALUATIONS)
    scene.prepare()
    first = scene.launcher(*flags)
    wait_until(lambda: scene.ended() >= 5, 60, "the first evaluations")
    return scene, first


def fingerprint(site: Path) -> dict[str, str]:
    """What a late writer could touch: files of the workflow, and the database's content."""
    files = [path for path in sorted(site.rglob("*")) if path.is_file() and "db.sqlite3" not in path.name]
    prints = {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in files if "/run/" not in str(p)}
    return prints


@pytest.mark.slow
@pytest.mark.parametrize("flags", [(), ("--nodes", "3", "--agents", "2")], ids=["alone", "with agents"])
def test_a_launcher_stopped_beyond_its_lease_writes_nothing_afterwards(
    tmp_path: Path, test_id: str, monkeypatch: pytest.MonkeyPatch, flags: tuple[str, ...]
) -> None:
    scene, first = begun(tmp_path, test_id, monkeypatch, flags)
    stop(first, scene.site / "db.sqlite3", inside=False)
    stopped = time.monotonic()
    try:
        refused = scene.launcher(*flags)
        assert refused.wait(60) == 2, "before the lease has run out a second launcher is refused"
        assert "already run by a launcher" in scene.log()
        wait_until(lambda: time.monotonic() - stopped > LEASE_S + 0.5, 60, "the lease to run out")
        scene.finish(*flags)
        before, events = fingerprint(scene.site), scene.command("ls", "jobs", "--history", "--json")
    finally:
        os.kill(first.pid, signal.SIGCONT)
    assert first.wait(60) == 1, "the superseded launcher says so and fails"
    assert fingerprint(scene.site) == before
    assert scene.command("ls", "jobs", "--history", "--json") == events
    assert "lease" in scene.log()
    scene.judge()


@pytest.mark.slow
@pytest.mark.parametrize("unreadable", [False, True], ids=["in a transaction", "in the index of the log"])
def test_a_launcher_stopped_while_it_holds_the_database_is_ended_once_its_lease_is_over(
    on_disk: Path, test_id: str, monkeypatch: pytest.MonkeyPatch, unreadable: bool
) -> None:
    scene, first = begun(on_disk, test_id, monkeypatch)
    stop(first, scene.site / "db.sqlite3", inside=True)
    if unreadable:
        tear_index(scene.site / "db.sqlite3-shm")
    stopped = time.monotonic()
    wait_until(lambda: time.monotonic() - stopped > LEASE_S + 0.5, 60, "the lease to run out")
    scene.finish(timeout_s=90)
    assert first.wait(60) == -signal.SIGKILL
    assert ("keeps the job database locked" in scene.log()) is unreadable
    scene.judge()


def tear_index(index: Path) -> None:
    """As it is between the two copies of its head that SQLite writes: who finds them different may not read
    before the writer is done, or gone.
    """
    with index.open("r+b") as file:
        head = file.read(48)
        file.seek(0)
        file.write(bytes(byte ^ 0xFF for byte in head))


def stop(launcher: subprocess.Popen[bytes], database: Path, *, inside: bool) -> None:
    """SIGSTOP while the process holds (``inside``) or does not hold the database's write lock."""

    def caught() -> bool:
        launcher.send_signal(signal.SIGSTOP)
        wait_until(lambda: psutil.Process(launcher.pid).status() == psutil.STATUS_STOPPED, 60, "the stop")
        connection = sqlite3.connect(database, timeout=0, isolation_level=None)
        try:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("ROLLBACK")
            held = False
        except sqlite3.OperationalError:
            held = True
        finally:
            connection.close()
        if held is not inside:
            launcher.send_signal(signal.SIGCONT)
        return held is inside

    wait_until(caught, 60, "a stop at the right moment")
