"""Searches of architectures under a real launcher, typed as users of Theta type them."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import pytest

from tests.apps.sequences import BEST, run
from tests.launcher.bench import Bench
from tests.support import wait_until

OBJECTS = "--evaluator balsam --run tests.apps.sequences.run --problem tests.apps.sequences.Problem"
ONE = ("--env", "DEEPHYPER_WORKERS_PER_NODE=1")
EVALUATIONS = 40


def rows(bench: Bench, workflow: str) -> list[dict[str, str]]:
    """results.csv, in the order in which the evaluations were asked for."""
    with (bench.site / "data" / workflow / "results.csv").open(newline="") as file:
        return sorted(csv.DictReader(file), key=lambda row: int(row["seq"]))


def sequence(row: dict[str, str]) -> list[int]:
    """The architecture of a row."""
    return [int(row[str(place)]) for place in range(len(BEST))]


def finished(bench: Bench, workflow: str) -> int:
    path = bench.site / "data" / workflow / "attempts.jsonl"
    return path.read_text().count('"ok"') if path.exists() else 0


@pytest.mark.slow
def test_evolution_killed_and_started_again_has_the_same_future(bench: Bench) -> None:
    bench.nas("app", "--name", "EVO", "--exec", f"{sys.executable} -m nas_hpc.apps.regevo")
    args = f"{OBJECTS} --max-evals {EVALUATIONS} --seed 5 --population-size 8 --sample-size 4 --initial 6"
    args += " --eval-env WORK_S=0.05"
    for workflow in ("whole", "killed"):
        bench.job("evo_test", "EVO", "--num-nodes", "1", *ONE, args=args, workflow=workflow)
    bench.launch("--job-mode", "serial", "--wf-filter", "whole", timeout_s=150)
    for count in (4, 15):
        launcher = bench.start("--job-mode", "serial", "--wf-filter", "killed")
        wait_until(lambda: finished(bench, "killed") >= count, 150, f"{count} evaluations")  # noqa: B023
        launcher.kill()
        launcher.communicate(timeout=60)
    bench.launch("--job-mode", "serial", "--wf-filter", "killed", timeout_s=150)
    first, again = ([sequence(row) for row in rows(bench, name)] for name in ("whole", "killed"))
    assert len({tuple(one) for one in first}) == EVALUATIONS
    assert again == first
    for row in rows(bench, "killed"):
        assert float(row["objective"]) == run({"arch_seq": sequence(row)})


@pytest.mark.slow
def test_what_is_said_of_an_architecture_reads_well(bench: Bench) -> None:
    bench.nas("app", "--sync")
    args = f"{OBJECTS.replace('sequences.run', 'sequences.fickle')} --max-evals 30 --seed 2"
    bench.job("evo_test", "EVO", args=args, workflow="evo_test")
    bench.launch("--job-mode", "serial", "--wf-filter", "evo_test", timeout_s=150)
    found = rows(bench, "evo_test")
    good = [sequence(row) for row in found if row["objective"]]
    best = max(good, key=lambda one: run({"arch_seq": one}))
    said = bench.output("evo_test", "evo_test")
    assert f"30 of 30 done, {30 - len(good)} failed, best " in said
    assert f'{{"arch_seq":{json.dumps(best, separators=(",", ":"))}}}' in said
    page = Path(bench.nas("report", "evo_test").strip().splitlines()[-1]).read_text()
    assert "arch_seq" in page
    assert str(best) in page
    failed = next(row for row in found if row["outcome"] == "error")
    assert "ValueError: no network" in bench.nas("why", f"evo_test/task{failed['seq']}")
    job = json.loads(next((bench.site / "data" / "evo_test").glob("task1_*/job.json")).read_text())
    assert job["config"] == {"arch_seq": sequence(found[0])}


@pytest.mark.slow
def test_in_serial_mode_a_problem_that_asks_for_several_ranks_is_told_of_mpi_mode(bench: Bench) -> None:
    bench.searches()
    objects = OBJECTS.replace("sequences.Problem", "sequences.Parallel")
    bench.job("two", "RAN", args=f"{objects} --max-evals 2", workflow="two")
    bench.job("one", "RAN", args=f"{objects} --max-evals 2 --ranks-per-node 1", workflow="one")
    bench.launch("--job-mode", "serial", code=1, timeout_s=120)
    assert (bench.state("two"), bench.state("one")) == ("FAILED", "JOB_FINISHED")
    said = "none of its evaluations can run here: it has 1 node x 2 ranks, and serial mode runs one"
    assert said in bench.output("two", "two")
    assert not list((bench.site / "data" / "two").glob("task*"))
