"""Whole searches under a real launcher, typed as a user types them."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from nas_hpc.analytics import summarize
from tests.launcher.bench import POLYNOME, REPOSITORY, Bench
from tests.support import wait_until

FICKLE = """
import os, time
def run(config):
    x = config["e0"]
    if x > 5: raise ValueError("too large")
    if x > 0: return None
    return x
def slow(config):
    time.sleep(60)
def together(config):
    here = os.environ["TOGETHER"]
    open(os.path.join(here, os.environ["NAS_HPC_JOB_ID"]), "w").close()
    while len(os.listdir(here)) < int(os.environ["MOST"]): time.sleep(0.02)
    time.sleep(0.3)
    return config["e0"]
"""


def rows(bench: Bench, workflow: str = "W") -> list[dict[str, str]]:
    """results.csv of a workflow."""
    with (bench.site / "data" / workflow / "results.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def configurations(bench: Bench, workflow: str) -> list[str]:
    """What was asked for, in its order."""
    ordered = sorted(rows(bench, workflow), key=lambda row: int(row["seq"]))
    return [json.dumps([row[f"e{i}"] for i in range(10)]) for row in ordered]


def fickle(bench: Bench) -> str:
    """Flags of a search whose run functions fail, are slow, or take a moment."""
    (bench.directory / "fickle.py").write_text(FICKLE)
    return "--problem nas_hpc.problems.hps.polynome2.Problem --run fickle.{}"


@pytest.mark.slow
def test_the_session_that_users_know(tmp_path: Path, test_id: str) -> None:
    """The seed's lines, in a directory with a problems/ folder of its own."""
    (tmp_path / "problems").mkdir()
    (tmp_path / "problems" / "mine.py").write_text("raise RuntimeError('nobody asked for this module')\n")
    activate = REPOSITORY / "launch_scripts" / "nas-hpc-activate"
    lines = f"""
set -e
export PYTHONPATH={REPOSITORY}
nas-hpc() {{ "{sys.executable}" -m nas_hpc.cli "$@"; }}
python() {{ "{sys.executable}" "$@"; }}
nas-hpc init testdb
source {activate} testdb
nas-hpc app --name AMBS --exec "{sys.executable} -m nas_hpc.apps.ambs"
nas-hpc job --name test --workflow TEST --application AMBS --env NAS_HPC_TEST_ID={test_id} \
    --args '{POLYNOME} --max-evals 50'
nas-hpc ls jobs
nas-hpc launcher --job-mode serial --wf-filter TEST
"""
    done = subprocess.run(["bash", "-c", lines], cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr
    data = tmp_path / "testdb" / "data" / "TEST"
    assert len([p for p in data.iterdir() if p.name.startswith("test_")]) == 1
    assert len([p for p in data.iterdir() if p.name.startswith("task")]) == 50
    assert len((data / "results.csv").read_text().splitlines()) == 51
    task = next(data.glob("task7_*"))
    assert sorted(path.name for path in task.iterdir()) == ["job.json", "result.json"]


@pytest.mark.slow
@pytest.mark.parametrize("app", ["AMBS", "RAN"])
def test_one_seed_on_one_worker_gives_the_same_configurations_interrupted_or_not(
    bench: Bench, app: str
) -> None:
    bench.searches()
    one = ("--env", "DEEPHYPER_WORKERS_PER_NODE=1")
    args = f"{POLYNOME} --max-evals 30 --seed 7"
    for workflow in ("A", "B"):
        bench.job("s", app, *one, args=args, workflow=workflow)
    bench.launch("--job-mode", "serial", "--wf-filter", "A")
    for count in (6, 15, 30):
        launcher = bench.start("--job-mode", "serial", "--wf-filter", "B")
        done = bench.site / "data" / "B" / "attempts.jsonl"
        wait_until(
            lambda: launcher.poll() is not None or done.exists() and done.read_text().count('"ok"') >= count,  # noqa: B023
            60, f"{count} evaluations",
        )  # fmt: skip
        if count < 30:
            launcher.terminate()
        assert launcher.wait(60) == 0
    bench.launch("--job-mode", "serial", "--wf-filter", "B")
    assert bench.listing("s")["state"] == "JOB_FINISHED"
    assert configurations(bench, "A") == configurations(bench, "B")


@pytest.mark.slow
def test_failures_are_rows_with_their_reason_and_count_to_the_limit(bench: Bench) -> None:
    bench.searches()
    bench.job("s", "RAN", args=fickle(bench).format("run") + " --max-evals 30 --seed 3")
    bench.launch("--job-mode", "serial")
    found = rows(bench)
    assert len(found) == 30
    for row in found:
        x = float(row["e0"])
        expected = "error" if x > 5 else "invalid_result" if x > 0 else "ok"
        assert row["outcome"] == expected
        assert (row["objective"] != "") == (expected == "ok")
    reasons = {row["reason"] for row in found if row["outcome"] == "error"}
    assert reasons == {"ValueError: too large"}
    summary = summarize(bench.site / "data" / "W")
    assert summary.n_evaluations == 30
    assert summary.n_failed == sum(row["outcome"] != "ok" for row in found)
    assert 0 < summary.utilization <= 1


@pytest.mark.slow
def test_an_evaluation_that_takes_too_long_is_a_timeout(bench: Bench) -> None:
    bench.searches()
    args = fickle(bench).format("slow") + " --max-evals 2 --eval-timeout 1s"
    bench.job("s", "RAN", args=args)
    bench.launch("--job-mode", "serial", code=1)
    assert [row["outcome"] for row in rows(bench)] == ["timeout", "timeout"]


@pytest.mark.slow
def test_killing_a_search_ends_its_evaluations(bench: Bench) -> None:
    bench.searches()
    search = bench.job("s", "RAN", args=fickle(bench).format("slow") + " --max-evals 5")
    launcher = bench.start("--job-mode", "serial")
    wait_until(lambda: len(list(bench.site.glob("data/W/task*/job.json"))) == 2, 60, "two evaluations")
    bench.nas("kill", search, "--yes")
    assert launcher.wait(60) == 0
    listed = json.loads(bench.nas("ls", "jobs", "--json"))
    assert {job["state"] for job in listed} == {"USER_KILLED"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "workers", "most"),
    [
        (("--job-mode", "mpi", "--nodes", "3"), None, 2),
        (("--job-mode", "serial", "--nodes", "3"), 2, 3),
        (("--job-mode", "serial"), 3, 3),
        (("--job-mode", "mpi"), None, 1),
    ],
    ids=["mpi: N-1", "serial: (N-1)W-1", "one node: the search shares it", "mpi, one node: one evaluator"],
)
def test_as_many_evaluations_run_at_once_as_the_mode_allows(
    bench: Bench, flags: tuple[str, ...], workers: int | None, most: int
) -> None:
    bench.searches()
    packing = ("--env", f"DEEPHYPER_WORKERS_PER_NODE={workers}", "--node-packing-count", str(workers))
    (bench.directory / "together").mkdir()
    meet = ("--env", f"TOGETHER={bench.directory}/together", "--env", f"MOST={most}")
    args = fickle(bench).format("together") + " --max-evals 8"
    bench.job("s", "RAN", *meet, *(packing if workers else ()), args=args)
    bench.launch(*flags)
    evaluations = [a for a in bench.attempts() if a["creator"]]
    assert busiest(evaluations) == most
    capacities = [
        json.loads(line)["slots"]
        for line in (bench.site / "data" / "W" / "launchers.jsonl").read_text().splitlines()
        if '"capacity"' in line
    ]
    assert max(capacities) == most


def busiest(attempts: list[Mapping[str, float]]) -> int:
    """The largest number of attempts that ran at once."""
    edges = sorted([(a["start"], 1) for a in attempts] + [(a["end"], -1) for a in attempts])
    running = most = 0
    for _, change in edges:
        running += change
        most = max(most, running)
    return most


@pytest.mark.slow
def test_a_search_that_could_get_no_evaluator_is_refused_with_the_numbers(bench: Bench) -> None:
    bench.searches()
    bench.job("s", "RAN", args=f"{POLYNOME} --max-evals 5")
    log = bench.launch("--job-mode", "serial", "--nodes", "2", code=1)
    assert "leaves no evaluator on 2 nodes in serial mode" in log
    assert bench.state("s") == "READY"


@pytest.mark.slow
def test_equal_configurations_run_once_when_a_cache_is_asked_for(bench: Bench) -> None:
    bench.searches()
    (bench.directory / "tiny.py").write_text(
        "from nas_hpc.problem import HpProblem\nProblem = HpProblem()\nProblem.add_dim('x', (0, 3))\n"
        "def run(config): return config['x']\n"
    )
    args = "--problem tiny.Problem --run tiny.run --max-evals 12 --cache-key to_dict"
    bench.job("s", "RAN", args=args)
    bench.launch("--job-mode", "serial")
    found = rows(bench)
    assert len(found) == 12
    ran = [row for row in found if row["cached"].lower() in ("", "false", "0")]
    assert len({row["x"] for row in ran}) == len(ran)
    assert len(list(bench.site.glob("data/W/task*"))) == len(ran)
    assert all(float(row["objective"]) == float(row["x"]) for row in found)
