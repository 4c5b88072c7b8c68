"""A launcher that was stopped beyond its lease and goes on after another took over writes nothing."""

from __future__ import annotations

import hashlib
import os
import signal
import time
from pathlib import Path

import pytest

from tests.failure import ledger
from tests.failure.scene import Scene
from tests.support import wait_until

LEASE_S = 2.0
EVALUATIONS = 40


def fingerprint(site: Path) -> dict[str, str]:
    """What a late writer could touch: files of the workflow, and the database's content."""
    files = [path for path in sorted(site.rglob("*")) if path.is_file() and "db.sqlite3" not in path.name]
    prints = {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in files if "/run/" not in str(p)}
    return prints


@pytest.mark.slow
def test_a_launcher_stopped_beyond_its_lease_writes_nothing_afterwards(
    tmp_path: Path, test_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NAS_HPC_LEASE_S", str(LEASE_S))
    monkeypatch.setenv("NAS_HPC_HEARTBEAT_S", "0.5")
    scene = Scene(tmp_path, test_id, EVALUATIONS)
    scene.prepare()
    first = scene.launcher()
    wait_until(lambda: scene.ended() >= 5, 30, "the first evaluations")
    first.send_signal(signal.SIGSTOP)
    stopped = time.monotonic()
    try:
        refused = scene.launcher()
        assert refused.wait(20) == 2, "before the lease has run out a second launcher is refused"
        assert "already run by a launcher" in scene.log()
        wait_until(lambda: time.monotonic() - stopped > LEASE_S + 0.5, 10, "the lease to run out")
        scene.finish()
        before, events = fingerprint(scene.site), scene.command("ls", "jobs", "--history", "--json")
    finally:
        os.kill(first.pid, signal.SIGCONT)
    assert first.wait(20) == 1, "the superseded launcher says so and fails"
    assert fingerprint(scene.site) == before
    assert scene.command("ls", "jobs", "--history", "--json") == events
    assert "taken over" in scene.log() or "lease" in scene.log()
    ledger.judge(scene.ledger, scene.workflow, EVALUATIONS)
