"""Searches of trials by real launchers: what the event table and the trials themselves say of them."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.launcher.bench import Bench

TRAINER = """
import argparse, json, os
from pathlib import Path
from nas_hpc.trial import report
parser = argparse.ArgumentParser()
for flag in ("--nas-params-str", "--job-dir", "--ledger", "--fail"):
    parser.add_argument(flag, default="")
given, _ = parser.parse_known_args()
parameters = json.loads(Path(given.nas_params_str).read_text())
def note(what):
    fd = os.open(given.ledger, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(fd, f"{what} {given.job_dir}\\n".encode())
    os.close(fd)
note("start")
if parameters["x"] >= float(given.fail or 99):
    raise MemoryError("no memory left")
report("accuracy", 1.0 - parameters["x"] / 10, 3, other_metrics={"width": parameters["y"]})
note("end")
"""


def make(bench: Bench, name: str, *flags: str, trainer: str = "") -> Path:
    """Make a search of trials; its directory."""
    here = bench.directory
    (here / "space.py").write_text("def space():\n    return {'x': list(range(10)), 'y': [1, 2, 3]}\n")
    (here / "trainer.py").write_text(TRAINER)
    bench.nas(
        "search", "--job-name", name, "--search-space-module", f"{here}/space.py:space",
        "--trainer", trainer or "python trainer.py", "--nas-target-reward-metric", "accuracy",
        "--root-output-dir", "out", "--max-nas-trial", "10", "--max-parallel-nas-trial", "2", "--seed", "3",
        "--no-launch", *flags, "--env", f"NAS_HPC_TEST_ID={bench.test_id}",
    )  # fmt: skip
    [found] = (here / "out").glob(f"{name}_*")
    return found


def evaluations(bench: Bench, workflow: str) -> list[dict[str, Any]]:
    """What the event table says of the trials."""
    jobs = json.loads(bench.nas("ls", "jobs", "--workflow", workflow, "--history", "--json"))
    return [job for job in jobs if job["creator"]]


def most_at_once(jobs: list[dict[str, Any]]) -> int:
    """How many were running at once at most, by their events."""
    steps = []
    for job in jobs:
        for event in job["history"]:
            steps += [(event["time"], 1)] * (event["new"] == "RUNNING")
            steps += [(event["time"], -1)] * (event["old"] == "RUNNING")
    now = most = 0
    for _, step in sorted(steps):
        now += step
        most = max(most, now)
    return most


def begun(jobs: list[dict[str, Any]]) -> int:
    """How many attempts began."""
    return sum(event["new"] == "RUNNING" for job in jobs for event in job["history"])


def entered(job: dict[str, Any], state: str) -> float:
    """When it entered that state last; 0: never."""
    return max((float(event["time"]) for event in job["history"] if event["new"] == state), default=0.0)


def rows(bench: Bench, name: str) -> list[dict[str, Any]]:
    """The trials as they are listed."""
    found: list[dict[str, Any]] = json.loads(bench.nas("list-trials", name, "--json"))
    return found


@pytest.mark.slow
def test_ten_trials_run_two_at_a_time_and_the_best_are_trained_in_full(bench: Bench) -> None:
    ledger = bench.directory / "ledger"
    place = make(bench, "first", "--max-failed-nas-trial", "3", "--search-flags", f"ledger={ledger}")
    bench.launch("--job-mode", "serial", "--wf-filter", "first", timeout_s=300)
    jobs = evaluations(bench, "first")
    assert [job["state"] for job in jobs] == ["JOB_FINISHED"] * 10
    assert begun(jobs) == 10
    assert most_at_once(jobs) <= 2
    found = rows(bench, "first")
    assert [(row["trial"], row["state"]) for row in found] == [(n, "SUCCEEDED") for n in range(1, 11)]
    for row in found:
        trial = place / "nas" / "search" / str(row["trial"])
        parameters = json.loads((trial / "nas_params_str.json").read_text())
        assert row["reward"] == pytest.approx(1 - parameters["x"] / 10)
        assert row["width"] == parameters["y"]
        assert json.loads((trial / "job_status.json").read_text())["job_status"] == "success"
    assert (bench.directory_of("task1", "first") / "trial").resolve() == place / "nas" / "search" / "1"
    assert {path.name for path in place.iterdir()} >= {"trials.csv", "search_state.json", "rewards.png"}
    _train_two(bench, found, ledger)


def _train_two(bench: Bench, found: list[dict[str, Any]], ledger: Path) -> None:
    assert "is finished" in bench.nas("search-resume", "first", "--no-launch")
    assert "no trial of first has failed" in bench.nas("rerun", "first", "--failed", "--no-launch", code=2)
    best = sorted(found, key=lambda row: -row["reward"])[:2]
    numbers = [row["trial"] for row in best]
    out = bench.nas(
        "train", "--search-job", "first", "--train-nas-trial-numbers", ",".join(map(str, numbers)),
        "--train-job-suffix", "full", "--train-flags", f"ledger={ledger}", "--no-launch",
    )  # fmt: skip
    name = out.split("/")[0].removeprefix("job ")
    assert name.startswith("search_")
    assert name.endswith("_full")
    bench.launch("--job-mode", "serial", "--wf-filter", name, timeout_s=300)
    trained = rows(bench, name)
    assert [(row["stage"], row["trial"], row["nas_trial_id"]) for row in trained] == [
        ("train", 1, numbers[0]),
        ("train", 2, numbers[1]),
    ]
    assert [row["parameters"] for row in trained] == [row["parameters"] for row in best]
    assert [Path(row["directory"]).parts[-3:] for row in trained] == [
        ("nas", "train", "1"),
        ("nas", "train", "2"),
    ]
    assert "trains 2 chosen trials" in bench.nas("search-resume", name, "--max-nas-trial", "3", code=2)
    assert f"{name} is finished\n" in bench.nas("search-resume", name, "--no-launch")


@pytest.mark.slow
def test_the_third_failure_ends_the_search_and_what_was_corrected_runs_again(bench: Bench) -> None:
    ledger = bench.directory / "ledger"
    place = make(bench, "cap", "--max-failed-nas-trial", "3", "--search-flags", f"ledger={ledger}", "fail=2")
    output = bench.launch("--job-mode", "serial", "--wf-filter", "cap", code=1, timeout_s=300)
    assert "--max-failed-nas-trial is 3" in output
    assert bench.state("cap") == "FAILED"
    failed = [row for row in rows(bench, "cap") if row["state"] == "FAILED"]
    assert 3 <= len(failed) <= 4, "the third one ends it; another may end with it"
    assert {row["reason_class"] for row in failed} == {"oom"}
    jobs = evaluations(bench, "cap")
    assert most_at_once(jobs) <= 2
    states = Counter(job["state"] for job in jobs)
    assert states["FAILED"] == len(failed)
    assert states["USER_KILLED"] <= 1, "what ran beside the third failure was ended"
    assert states.total() == states["FAILED"] + states["USER_KILLED"] + states["JOB_FINISHED"]
    third = sorted(entered(job, "FAILED") for job in jobs if job["state"] == "FAILED")[2]
    assert sum(entered(job, "RUNNING") > third for job in jobs) <= 1, "one may have been on its way"
    state = json.loads((place / "search_state.json").read_text())
    assert state["state"] == "FAILED"
    (bench.directory / "trainer.py").write_text(TRAINER.replace("raise MemoryError", "print"))
    bench.nas("rerun", "cap", "--failed", "--no-launch")  # what was ended with it runs again, too
    bench.launch("--job-mode", "serial", "--wf-filter", "cap", timeout_s=300)
    assert [row["state"] for row in rows(bench, "cap")] == ["SUCCEEDED"] * 10
    assert most_at_once(evaluations(bench, "cap")) <= 2
    again = {row["trial"]: row["parameters"] for row in rows(bench, "cap")}
    assert all(again[row["trial"]] == row["parameters"] for row in failed)


@pytest.mark.slow
def test_one_random_trial_runs_here_without_a_site(bench: Bench, capfd: pytest.CaptureFixture[str]) -> None:
    here = bench.directory
    (here / "space.py").write_text("space = {'x': list(range(10)), 'y': [1, 2, 3]}\n")
    (here / "trainer.py").write_text(TRAINER)
    bench.nas(
        "search-local", "--job-name", "one", "--search-space-module", "space.py:space", "--trainer",
        "python trainer.py", "--nas-target-reward-metric", "accuracy", "--seed", "4", "--search-flags",
        f"ledger={here / 'ledger'}",
    )  # fmt: skip
    assert "accuracy " in capfd.readouterr().out
    [trial] = here.glob("one_*/nas/search/1")
    assert json.loads((trial / "job_status.json").read_text())["job_status"] == "success"
