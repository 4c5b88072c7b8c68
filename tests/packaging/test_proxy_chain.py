"""The chain that designs a proxy task and searches with it, by the script that users run, on real data."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib import image
from scipy import stats

from nas_hpc.apps.proxy.best import BEST_FILE, read_best
from tests.support import assert_no_processes, wait_until

PATIENCE_S = 600
# Fewer steps and models than users have, and asks that these can meet: latencies under load say nothing.
SMALL = ("--epochs", "6", "--start", "9", "--trials", "7", "--check", "5",
         "--accuracy-correlation", "0.3", "--latency-correlation", "-1")  # fmt: skip


@dataclass(frozen=True, slots=True)
class Chain:
    """The script in a directory of its own."""

    directory: Path
    script: Path
    environ: dict[str, str]

    def start(self, log: str) -> subprocess.Popen[bytes]:
        with (self.directory / log).open("wb") as out:
            words = [str(self.script), "my out", *SMALL]
            return subprocess.Popen(
                words, cwd=self.directory, env=self.environ, stdin=subprocess.DEVNULL,
                stdout=out, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip

    def said(self, log: str) -> str:
        return (self.directory / log).read_text(errors="replace")

    def place(self, job: str) -> Path:
        """The directory of a job; there is one."""
        [found] = (self.directory / "my out").glob(f"{job}_[0-9]*_[0-9]*")
        return found


@pytest.fixture
def chain(tmp_path: Path, checkout: Path, test_id: str) -> Iterator[Chain]:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environ = {**os.environ, "PATH": path, "PYTHONPATH": str(checkout), "NAS_HPC_GRACE_S": "5"}
    yield Chain(tmp_path, checkout / "launch_scripts" / "proxy_chain.sh", environ)
    assert_no_processes(test_id)


def trials(place: Path) -> list[dict[str, str]]:
    with (place / "trials.csv").open(newline="") as lines:
        return list(csv.DictReader(lines))


def state(place: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((place / name).read_text())
    return found


def interrupted(chain: Chain) -> None:
    """Ctrl-C when the selection is in its second round."""
    process = chain.start("first.log")
    later = "my out/Model_Selection_digits_*/digits_iter_1/nas/search/*/checkpoint"
    try:
        wait_until(
            lambda: process.poll() is not None or any(chain.directory.glob(later)),
            PATIENCE_S,
            lambda: chain.said("first.log"),
        )
    finally:
        os.killpg(process.pid, signal.SIGINT)
    assert process.wait(PATIENCE_S) == 130, chain.said("first.log")


@pytest.mark.slow
@pytest.mark.timeout(3 * PATIENCE_S)
def test_each_stage_uses_what_the_one_before_found_also_after_an_interruption(chain: Chain) -> None:
    interrupted(chain)
    variance = chain.place("Variance_Measurement_digits") / "variance_and_smoothness.json"
    before = variance.read_bytes()
    process = chain.start("second.log")
    assert process.wait(PATIENCE_S) == 0, chain.said("first.log") + chain.said("second.log")
    assert variance.read_bytes() == before
    assert json.loads(before)["variance_info"] == "Model variance is good."

    selection = chain.place("Model_Selection_digits")
    chosen = state(selection, "MODEL_SELECTION_STATE.json")
    assert [len(one["trials"]) for one in chosen["iterations"]] == [9, 5]
    controller = chain.place("Search_controller_digits")
    found = state(controller, "SEARCH_CONTROLLER_STATE.json")
    assert found["reference"]["directory"] == str(selection / "digits_iter_1" / "nas" / "search")
    shares = [one["docker_args_map"]["share"] for one in found["proxy_tasks_map"].values()]
    assert shares == ["0.25", "0.5", "0.75"]
    best = found["proxy_tasks_map"][found["best_proxy_task_name"]]
    assert best["proxy_task_stats"]["accuracy_correlation_over_step"][-1] >= 0.3

    _, flags = read_best(controller / BEST_FILE)
    assert flags["share"] == best["docker_args_map"]["share"]
    assert int(flags["steps"]) == best["proxy_task_stats"]["final_training_steps"] + 1
    search = chain.place("digits-search")
    assert state(search, "search_job_spec.json")["search_flags"] == flags
    tried = trials(search)
    assert [row["state"] for row in tried] == ["SUCCEEDED"] * 7
    assert {row["step"] for row in tried} == {flags["steps"]}

    ranked = sorted(tried, key=lambda row: (-float(row["reward"]), int(row["trial"])))
    full = trials(chain.place("search_*_best"))
    assert [row["nas_trial_id"] for row in full] == [row["trial"] for row in ranked[:2]]
    for row, of in zip(full, ranked, strict=False):
        assert row["parameters"] == of["parameters"]
        assert int(row["step"]) > int(of["step"])
    check_figure(chain, search)


def check_figure(chain: Chain, search: Path) -> None:
    """Its tau is that of the recorded scores, and it shows something."""
    check = chain.place("search_*_check")
    command = [
        sys.executable,
        "-m",
        "nas_hpc.analytics.cli",
        "correlation",
        str(search),
        str(check),
        "--json",
    ]
    done = subprocess.run(command, env=chain.environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    cheap = {row["trial"]: float(row["reward"]) for row in trials(search)}
    whole = {row["nas_trial_id"]: float(row["reward"]) for row in trials(check)}
    assert len(whole) == 5
    assert {one["model"]: one["full"] for one in found["models"]} == pytest.approx(whole)
    assert {one["model"]: one["proxy"] for one in found["models"]} == pytest.approx(
        {k: cheap[k] for k in whole}
    )
    expected = stats.kendalltau([cheap[one] for one in whole], list(whole.values())).statistic
    assert found["tau"] == pytest.approx(expected)
    assert f"last scores of 5 models: tau {expected:.3f}" in chain.said("second.log")

    listed = chain.said("second.log").partition("== figures")[2].splitlines()[1:]
    figures = [Path(line) for line in listed]
    assert len(figures) == 1 + 2 + 3 + 1 + 1  # copies, rounds, tasks, search, and the last
    assert figures[-1] == Path("my out/proxy_against_full.png")
    for path in figures:
        assert image.imread(chain.directory / path).std() > 0.01
    picture = image.imread(chain.directory / figures[-1])[..., :3]
    blue = (picture[..., 2] - picture[..., 0] > 0.3).sum()  # the points
    assert blue > 5 * 20
    assert np.ptp(picture) == pytest.approx(1.0, abs=0.2)
