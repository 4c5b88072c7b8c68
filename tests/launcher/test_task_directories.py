"""Searches whose evaluations leave lines instead of directories, under real launchers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from nas_hpc.analytics import summarize
from nas_hpc.launcher import LauncherOptions, ownership
from nas_hpc.processes import packed
from nas_hpc.records import Evaluation, Job, new_id
from nas_hpc.site import Site
from nas_hpc.states import Actor, State
from nas_hpc.store import open_store
from nas_hpc.store.base import Claim, JobFilter
from tests.launcher.bench import Bench
from tests.launcher.test_late_results import lease

RUN = """
from nas_hpc.trial import report
def run(config):
    report(1, config["e0"])
    print("a word")
    if config["e0"] > 0:
        raise ValueError("too large \u2014 much")
    return config["e0"]
"""


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["failed", "packed"])
def test_a_search_ends_with_the_same_records_and_fewer_directories(bench: Bench, mode: str) -> None:
    (bench.directory / "fickle.py").write_text(RUN)
    bench.searches()
    args = "--problem nas_hpc.problems.hps.polynome2.Problem --run fickle.run --max-evals 12 --seed 3"
    bench.job("search", "RAN", "--node-packing-count", "2", "--env", f"PYTHONPATH={os.environ['PYTHONPATH']}"
              f":{bench.directory}", args=args)  # fmt: skip
    bench.launch("--job-mode", "serial", "--task-directories", mode)
    assert bench.state("search") == "JOB_FINISHED"
    ends = {line["name"]: line for line in bench.attempts() if line["creator"]}
    assert len(ends) == 12
    failures = {name for name, line in ends.items() if line["outcome"] == "error"}
    successes = ends.keys() - failures
    assert failures
    assert successes
    workflow = bench.site / "data" / "W"
    directories = {path.name.partition("_")[0] for path in workflow.glob("task*_*")}
    assert directories == (failures if mode == "failed" else set())
    lines = {line["job"]["name"]: line for line in packed.read(workflow)}
    assert lines.keys() == (successes if mode == "failed" else ends.keys())
    assert all(line["metrics"][0]["value"] == line["job"]["config"]["e0"] for line in lines.values())

    summary = summarize(workflow)
    assert (summary.n_ok, summary.n_failed) == (len(successes), len(failures))
    assert summary.best is not None
    assert summary.best.config["e0"] == summary.best.objective
    assert not summary.notes

    failed, success = min(failures), min(successes)
    assert "ValueError: too large" in log(bench, failed)
    assert "ValueError: too large" in log(bench, failed, "-f")
    told = log(bench, success)
    assert "a success's output is not kept" in told
    assert "a word" not in told


def log(bench: Bench, name: str, *flags: str) -> str:
    """What ``nas-hpc log`` prints, where nothing but ASCII may be."""
    argv = [sys.executable, "-m", "nas_hpc.cli", "--site", str(bench.site), "log", f"W/{name}", *flags]
    environ = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(argv, env=environ, capture_output=True, text=True, check=True, timeout=60)
    return done.stdout + done.stderr


def test_a_line_of_the_current_attempt_is_adopted_and_an_older_one_is_not(tmp_path: Path) -> None:
    from nas_hpc.cli.sites import new_site

    site = new_site(str(tmp_path / "site"))
    with open_store(site.database) as store:
        search = Job(new_id(), "s", "W")
        jobs = [evaluation(search, seq) for seq in (1, 2, 3)]
        store.add_jobs([search, *jobs], Actor.COMMAND)
        dead = lease(proven_dead=True)
        store.open_lease(dead, ending=[], proven=False, exclusive=True)
        done, old, torn = store.claim(dead.id, [Claim(job.id, ("here",)) for job in jobs])
        write_lines(site, [line(done, 1, 7.0), line(old, 0, 8.0), line(torn, 1, 9.0)[:-40]])
        options = LauncherOptions(job_mode="serial")
        mine, _ = ownership.take_site(store, site, options)
        ownership.adopt(store, site, mine, options)
        states = {job.name: job.state for job in store.jobs(JobFilter(creator=search.id))}
        assert states == {
            "task1": State.JOB_FINISHED, "task2": State.RESTART_READY, "task3": State.RESTART_READY,
        }  # fmt: skip
        [attempt] = store.attempts([done.id])
        assert attempt.result is not None
        assert attempt.result.objective == 7.0


def evaluation(search: Job, seq: int) -> Job:
    return Job(new_id(), f"task{seq}", "W", creator=search.id, seq=seq, evaluation=Evaluation("m.run", {}, 1))


def line(job: Job, attempt: int, objective: float) -> bytes:
    result = {"job": job.id, "attempt": attempt, "outcome": "ok", "objective": objective, "metadata": {},
              "reason": "", "start": 1.0, "end": 2.0, "return_code": None}  # fmt: skip
    return packed.line_of({"id": job.id, "name": job.name}, result, "")


def write_lines(site: Site, lines: list[bytes]) -> None:
    path = site.workflow_directory("W") / packed.PACKED / "dead-launcher.jsonl"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"".join(lines))
