"""The soak, for half a minute; and that it tells what it finds."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from tests.failure import soak
from tests.failure.scene import REPOSITORY
from tests.support import TEST_ID, end_processes, processes_of


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_half_a_minute_of_faults_finds_nothing_with_agents_and_without(tmp_path: Path) -> None:
    """Two soaks at once, which mostly wait. Each knows its processes by a mark of its own."""
    started = []
    for agents in ("0", "3"):
        (place := tmp_path / agents).mkdir()
        mark = uuid.uuid4().hex
        argv = ["--minutes", "0.5", "--seed", "1", "--agents", agents, "--directory", str(place)]
        one = subprocess.Popen(
            [sys.executable, "-m", "tests.failure.soak", *argv],
            cwd=REPOSITORY, env={**os.environ, TEST_ID: mark}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        started.append((one, place, mark))
    try:
        for one, place, _ in started:
            said, _ = one.communicate(timeout=500)
            print(said)
            assert one.returncode == 0, said
            assert "without a discrepancy" in said
            assert list(place.iterdir()) == [], "nothing is kept when all is well"
    finally:
        for one, _, mark in started:
            one.kill()
            one.wait()
            end_processes(processes_of(mark))


def test_a_seed_says_the_same_faults_everywhere() -> None:
    program = "import sys; from tests.failure import test_soak as t; print(t.first_fifty('7 1'))"
    environ = {**os.environ, "PYTHONHASHSEED": "77"}
    argv = [sys.executable, "-c", program]
    there = subprocess.check_output(argv, cwd=REPOSITORY, env=environ, text=True, timeout=60)
    assert there.strip() == str(first_fifty("7 1"))
    assert first_fifty("7 1") != first_fifty("8 1")


def first_fifty(seed: str) -> list[str]:
    """The first faults of a seed."""
    some = zip(soak.faults(seed, 2), range(50), strict=False)
    return [f"{fault} after {fault.after_ends}, {fault.after_s:.9f}" for fault, _ in some]


@pytest.mark.slow
def test_a_discrepancy_is_told_and_its_directory_is_kept(tmp_path: Path) -> None:
    """An evaluation writes a second start into the ledger: as one that ran twice would."""
    program = (
        "import sys\n"
        "from tests.failure import soak, scene\n"
        "ended = scene.Scene.judge\n"
        "def judge(self):\n"
        "    line = next(line for line in self.ledger.read_text().splitlines() if line.startswith('start'))\n"
        "    with self.ledger.open('a') as file: file.write(line + chr(10))\n"
        "    return ended(self)\n"
        "scene.Scene.judge = judge\n"
        "sys.exit(soak.main())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "--minutes", "0.05", "--directory", str(tmp_path)],
        cwd=REPOSITORY, capture_output=True, text=True, timeout=110, check=False,
    )  # fmt: skip
    assert done.returncode == 1, done.stdout + done.stderr
    assert "an attempt started twice" in done.stdout
    [kept] = tmp_path.iterdir()
    assert f"kept: {kept}" in done.stdout
    assert list(kept.glob("round1/site/data/*/attempts.jsonl"))
