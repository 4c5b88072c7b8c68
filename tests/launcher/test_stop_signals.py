"""How a launcher ends that is told to stop: the exit code, and what ignored signals do."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from nas_hpc.cli.client import live_endpoint
from nas_hpc.site import Site
from tests.launcher.bench import Bench
from tests.support import wait_until

CODES = {signal.SIGINT: 130, signal.SIGTERM: 0, signal.SIGHUP: 0}


@pytest.fixture
def sleeping(bench: Bench) -> Iterator[subprocess.Popen[str]]:
    """A launcher at work."""
    bench.job("long", bench.script("SLEEP", "import time; time.sleep(600)"))
    launcher = bench.start("--job-mode", "serial")
    wait_until(lambda: live_endpoint(Site(bench.site)) is not None, 60, "the launcher's endpoint")
    wait_until(lambda: bench.state("long") == "RUNNING", 60, "the job's start")
    yield launcher
    launcher.kill()
    launcher.communicate(timeout=60)


@pytest.mark.parametrize(
    "number",
    [
        signal.SIGINT,
        pytest.param(signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param(signal.SIGHUP, marks=pytest.mark.slow),
    ],
    ids=lambda number: number.name,
)
def test_at_work_ctrl_c_means_130_and_what_batch_systems_send_0(
    bench: Bench, sleeping: subprocess.Popen[str], number: signal.Signals
) -> None:
    sleeping.send_signal(number)
    log, _ = sleeping.communicate(timeout=60)
    assert sleeping.returncode == CODES[number], log
    assert f"stopping: {number.name} received" in log
    assert bench.state("long") == "RESTART_READY"


@pytest.mark.slow
@pytest.mark.parametrize("number", CODES, ids=lambda number: number.name)
def test_before_it_is_at_work_the_same(
    bench: Bench, number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    handlers = {one: signal.getsignal(one) for one in CODES}

    def never_begins(*_: object) -> int:
        signal.raise_signal(number)
        raise AssertionError("it goes on")

    monkeypatch.setattr("nas_hpc.launcher.start.run_launcher", never_begins)
    log = bench.nas("launcher", code=CODES[number])
    assert ("interrupted" if number is signal.SIGINT else f"stopping: {number.name} received") in log
    assert {one: signal.getsignal(one) for one in CODES} == handlers


@pytest.mark.slow
def test_under_nohup_it_does_not_end_with_the_terminal(bench: Bench, tmp_path: Path) -> None:
    code = "import os, time\nwhile not os.path.exists(os.environ['GO']): time.sleep(0.01)"
    go = tmp_path / "go"
    bench.job("waits", bench.script("WAITS", code), "--env", f"GO={go}")
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        launcher = bench.start("--job-mode", "serial")
    finally:
        signal.signal(signal.SIGHUP, before)
    wait_until(lambda: live_endpoint(Site(bench.site)) is not None, 60, "the launcher's endpoint")
    wait_until(lambda: bench.state("waits") == "RUNNING", 60, "the job's start")
    os.kill(launcher.pid, signal.SIGHUP)
    go.touch()
    log, _ = launcher.communicate(timeout=60)
    assert (launcher.returncode, bench.state("waits")) == (0, "JOB_FINISHED"), log
    assert "stopping" not in log
