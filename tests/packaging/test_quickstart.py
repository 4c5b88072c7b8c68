"""The first of the README's two commands, in a copy of the source tree."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.packaging.test_distribution import NOT_SOURCE
from tests.support import DISK

PATIENCE_S = 600


def quickstart(tree: Path, *arguments: str) -> tuple[subprocess.CompletedProcess[str], float]:
    began = time.monotonic()
    command = [str(tree / "launch_scripts" / "quickstart.sh"), *arguments]
    done = subprocess.run(command, cwd="/", capture_output=True, text=True, check=False, timeout=PATIENCE_S)
    return done, time.monotonic() - began


def result(output: str) -> dict[str, str]:
    """The lines at a search's end."""
    return dict(re.findall(r"^(\w+(?: \w+)?) {2,}(.+)$", output, re.MULTILINE))


@pytest.fixture
def disk() -> Iterator[Path]:
    """A directory that takes no memory: TensorFlow has 2 GB."""
    with tempfile.TemporaryDirectory(dir=DISK, ignore_cleanup_errors=True) as path:
        yield Path(path)


@pytest.mark.slow
@pytest.mark.timeout(3 * PATIENCE_S)
def test_quickstart_installs_searches_and_reports_and_says_so_when_run_again(
    disk: Path, checkout: Path
) -> None:
    tree = disk / "a clone"
    shutil.copytree(checkout, tree, symlinks=True, ignore=NOT_SOURCE)
    first, first_s = quickstart(tree)
    assert first.returncode == 0, first.stdout + first.stderr
    assert "40/40 done" in first.stdout + first.stderr
    said = result(first.stdout)
    assert float(said["best objective"]) > 0.8
    assert float(said["test accuracy"]) > 0.8
    assert "learning_rate=" in said["configuration"]
    assert said["evaluations"] == "40"
    assert said["utilization"].endswith("%")
    assert Path(said["report"]).read_text().count("<svg ") == 2
    assert len(Path(said["results"]).read_text().splitlines()) == 41

    again, again_s = quickstart(tree)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "Installing" not in again.stderr
    assert "finished already" in again.stdout + again.stderr
    assert f"best objective  {said['best objective']}" in again.stdout
    print(f"first run {first_s:.0f} s, again {again_s:.0f} s")
    chain, _ = quickstart(tree, "trials", "--epochs", "none")  # tests/packaging/test_proxy_chain.py runs it
    assert (chain.returncode, chain.stderr) == (2, "--epochs none: give a whole number, 1 or more\n")
    if importlib.util.find_spec("tensorflow") is not None:  # else it may not be had here at all
        check_architectures(tree)


def check_architectures(tree: Path) -> None:
    """The same for architectures, in the same environment, to which TensorFlow is added."""
    done, seconds = quickstart(tree, "nas", "--max-evals", "3", "--seed", "1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Installing TensorFlow" in done.stderr
    assert "Installing nas-hpc" not in done.stderr
    said = result(done.stdout)
    assert re.fullmatch(r"0\.[5-9]\d* \(val_accuracy__max\)", said["best objective"])
    assert float(said["test accuracy"]) > 0.5
    report = Path(said["report"]).read_text()
    assert "The best architecture" in report
    assert report.count("<svg ") == 4
    print(f"architectures {seconds:.0f} s")
