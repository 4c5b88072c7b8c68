"""The tests' own means: waiting, finding leftover processes, and no skip in continuous integration."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import assert_no_processes, processes_of, wait_until


def test_wait_until_says_what_it_waited_for() -> None:
    with pytest.raises(AssertionError, match=r"waited 0\.01 s for rain; the last value was False"):
        wait_until(lambda: False, 0.01, "rain")


def test_a_process_left_by_a_test_is_found_named_and_ended(test_id: str) -> None:
    child = subprocess.Popen(["sleep", "60"], start_new_session=True)
    # The kernel shows a process before it has laid out the environment of its program.
    wait_until(lambda: [process.pid for process in processes_of(test_id)] == [child.pid], 60, "the child")
    with pytest.raises(AssertionError, match="processes are left: .*sleep 60"):
        assert_no_processes(test_id, timeout_s=0.05)
    assert child.wait(timeout=60) == -9


@pytest.mark.parametrize(("ci", "code"), [("true", 1), ("", 0)])
def test_a_skip_fails_in_continuous_integration_only(
    tmp_path: Path, checkout: Path, ci: str, code: int
) -> None:
    (tmp_path / "test_skips.py").write_text("import pytest\ndef test_it():\n    pytest.skip('no reason')\n")
    (tmp_path / "conftest.py").write_text("from tests.conftest import *\n")
    command = [sys.executable, "-m", "pytest", "-q", "-ra", "-p", "no:cacheprovider", str(tmp_path)]
    environ = {**os.environ, "CI": ci, "PYTHONPATH": str(checkout)}
    done = subprocess.run(command, env=environ, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    assert "no reason" in done.stdout
