"""Searches whose evaluations are programs: what job specifications say is what a real launcher runs."""

from __future__ import annotations

import csv
import json
import signal
import sys
from typing import Any

import pytest

from nas_hpc.records import App
from nas_hpc.states import State
from nas_hpc.wire import Ask, Done, Message, Refused, Results, Shape, Submit
from tests.launcher.bench import POLYNOME, REPOSITORY, Bench
from tests.launcher.stage import Stage, on_stage
from tests.support import wait_until

MINE = """
import sys
from nas_hpc import JobSpec, job_specification
from nas_hpc.problem import HpProblem

Problem = HpProblem()
Problem.add_dim("x", (0, 1000))
Problem.add_dim("way", ["application", "printed", "data", "own", "all", "raises", "unknown", "fails"])
for i, way in enumerate(["application", "printed", "data", "own", "all", "raises", "unknown", "fails"]):
    Problem.add_starting_point(x=i, way=way)

@job_specification
def run(parameters):
    x, way = parameters["x"], parameters["way"]
    if way == "raises":
        raise OSError("no licence for\\nthis")
    if way in ("application", "unknown"):
        name = "TRAIN" if way == "application" else "TRIAN"
        return JobSpec(application=name, args=["--way", "printed", "--value", f"{x} "])
    return JobSpec(argv=[sys.executable, "TRAINER", "--way", way, "--value", str(x)], data={"told": "mine"})
"""
TRAINER = """
import argparse, json, os, sys, time
parser = argparse.ArgumentParser()
parser.add_argument("--way")
parser.add_argument("--value", type=float)
flags = parser.parse_args()
value = flags.value
with open(LEDGER, "a") as file:
    file.write(os.environ["NAS_HPC_JOB_ID"] + "\\n")
time.sleep(PAUSE)
if flags.way == "fails":
    print("DH-OUTPUT:", value)
    sys.exit(4)
if flags.way in ("data", "all"):
    from nas_hpc import jobs
    jobs.update_data(dh_objective=value + 0.25, epochs=12)
if flags.way in ("own", "all"):
    with open("result.json", "w") as file:
        json.dump({"job": os.environ["NAS_HPC_JOB_ID"], "attempt": int(os.environ["NAS_HPC_ATTEMPT"]),
                   "outcome": "ok", "objective": value + 0.5}, file)
print("DH-OUTPUT:", value, flush=True)
"""


def prepare(bench: Bench, pause_s: float = 0.0) -> None:
    """A problem with a specification, its trainer, and the application TRAIN."""
    trainer = bench.directory / "trainer.py"
    code = TRAINER.replace("LEDGER", repr(str(bench.directory / "ledger"))).replace("PAUSE", str(pause_s))
    trainer.write_text(f"import sys; sys.path.insert(0, {str(REPOSITORY)!r})\n{code}")
    (bench.directory / "mine.py").write_text(MINE.replace("TRAINER", str(trainer)))
    bench.nas("app", "--name", "TRAIN", "--exec", f"{sys.executable} {trainer}")
    bench.searches()


def rows(bench: Bench, workflow: str = "W") -> list[dict[str, str]]:
    """results.csv, by number."""
    with (bench.site / "data" / workflow / "results.csv").open(newline="") as file:
        return sorted(csv.DictReader(file), key=lambda row: int(row["seq"]))


def told(bench: Bench, name: str, file: str, workflow: str = "W") -> dict[str, Any]:
    """A file of an evaluation's directory."""
    content: dict[str, Any] = json.loads((bench.directory_of(name, workflow) / file).read_text())
    return content


@pytest.mark.slow
@pytest.mark.gentle("what a program prints counts at once: a result.json of its own must be there by its end")
def test_a_search_runs_the_programs_that_its_job_specification_names(bench: Bench) -> None:
    prepare(bench)
    bench.job("s", "RAN", args="--problem mine.Problem --run mine.run --max-evals 8 --seed 1")
    log = bench.launch("--job-mode", "serial")
    assert bench.state("s") == "JOB_FINISHED", log
    found = {row["way"]: row for row in rows(bench)}
    assert {way: row["objective"] for way, row in found.items()} == {
        "application": "0.0",
        "printed": "1.0",
        "data": "2.25",
        "own": "3.5",
        "all": "4.5",
        "raises": "",
        "unknown": "",
        "fails": "",
    }
    assert (found["raises"]["outcome"], found["raises"]["reason"]) == (
        "error",
        "OSError: no licence for this",
    )
    assert "'TRIAN' is not registered; known: AMBS, RAN, TRAIN" in found["unknown"]["reason"]
    assert found["fails"]["reason"] == "exit code 4"
    assert bench.states("task6") == bench.states("task7") == ["CREATED", "FAILED"]
    assert bench.states("task1") == ["CREATED", "READY", "RUNNING", "RUN_DONE", "JOB_FINISHED"]
    assert "it was not run: OSError: no licence for this" in bench.nas("why", "W/task6")
    said = bench.output("s")
    assert "cannot be specified by mine.run: OSError" in said
    assert 'mine.py", line ' in said
    assert 'specification.py", line ' not in said, "the traceback is of the user's frames"
    assert len((bench.directory / "ledger").read_text().split()) == 6, "two never ran"
    record = told(bench, "task2", "job.json")
    assert (record["run"], record["config"]) == ("mine.run", {"x": 1, "way": "printed"})
    assert (record["argv"][2:], record["data"]) == (["--way", "printed", "--value", "1"], {"told": "mine"})
    assert told(bench, "task3", "result.json")["metadata"] == {"epochs": 12}
    lines = {line["name"]: line for line in bench.attempts()}
    assert {name: line["cached"] for name, line in lines.items()} == dict.fromkeys(lines, False)
    assert lines["task6"]["outcome"] == "error"


@pytest.mark.slow
@pytest.mark.parametrize("seed", [3, 4])
def test_a_search_of_programs_that_is_killed_goes_on_with_the_same_history(bench: Bench, seed: int) -> None:
    prepare(bench, pause_s=0.02)
    args = f"--problem mine.Problem --run mine.run --max-evals 30 --seed {seed}"
    one = ("--env", "DEEPHYPER_WORKERS_PER_NODE=1")
    for workflow in ("A", "B"):
        bench.job("s", "RAN", *one, args=args, workflow=workflow)
    bench.launch("--job-mode", "serial", "--wf-filter", "A")
    ledger = bench.directory / "ledger"
    alone = ledger.read_text().split()
    ledger.unlink()
    for count in (7, 19):
        launcher = bench.start("--job-mode", "serial", "--wf-filter", "B")
        lines = bench.site / "data" / "B" / "attempts.jsonl"
        wait_until(
            lambda lines=lines, n=count: lines.exists() and lines.read_text().count("\n") >= n, 60, "runs"
        )
        launcher.send_signal(signal.SIGTERM)
        launcher.communicate(timeout=60)
    bench.launch("--job-mode", "serial", "--wf-filter", "B")
    columns = ("x", "way", "objective", "outcome", "reason", "seq")
    first, second = ([[row[c] for c in columns] for row in rows(bench, w)] for w in ("A", "B"))
    assert first == second, f"seed {seed}"
    assert len(first) == 30
    finished = {line["job"] for line in bench.attempts("B") if line["outcome"] == "ok" and line["creator"]}
    ran = ledger.read_text().split()
    assert len(set(ran)) == len(alone), "each of them, and nothing else"
    assert all(ran.count(job) == 1 for job in finished if _attempts(bench, job) == 1)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["printed", "noted", "registered"])
def test_the_ready_made_problem_with_a_program_of_its_own(bench: Bench, way: str) -> None:
    example = "nas_hpc.problems.hps.external"
    bench.nas("app", "--name", "EXTERNAL", "--exec", f"{sys.executable} -m {example}_program")
    bench.searches()
    bench.job("s", "RAN", args=f"--problem {example}.Problem --run {example}.{way} --max-evals 4 --seed 5")
    bench.launch("--job-mode", "serial")
    found = rows(bench)
    for row in found:
        assert float(row["objective"]) == pytest.approx(-(float(row["x"]) ** 2) - float(row["y"]) ** 2)
    assert len(found) == 4
    assert set(told(bench, "task1", "result.json")["metadata"]) == ({"distance"} if way == "noted" else set())


@pytest.mark.slow
def test_a_search_whose_evaluations_need_mpi_is_told_so_at_once_in_serial_mode(bench: Bench) -> None:
    bench.searches()
    bench.job("s", "RAN", args=f"{POLYNOME} --max-evals 4 --nodes-per-eval 2")
    log = bench.launch("--job-mode", "serial", code=1)
    assert "its evaluations are to have 2 nodes x 1 rank" in log
    assert "use --job-mode mpi on 3 nodes or more" in log
    assert not list(bench.site.glob("data/W/*")), "not even the search was started"


def _attempts(bench: Bench, job: str) -> int:
    return sum(line["job"] == job for line in bench.attempts("B"))


SHAPE = Shape(node_packing_count=4)


def ask(seq: int, **fields: Any) -> Ask:
    """An evaluation by a specification."""
    return Ask(seq, "m.spec", {"x": seq}, 1, fields.pop("shape", SHAPE), data={"told": 0}, **fields)


def done_by(stage: Stage) -> dict[int, Done]:
    """What the search was told, by number."""
    told = [message for _, message in stage.sent if isinstance(message, Results)]
    return {done.seq: done for results in told for done in results.done}


async def finished(stage: Stage, count: int) -> dict[int, Done]:
    await stage.until(lambda: len(done_by(stage)) >= count, f"{count} results")
    return done_by(stage)


def answers(stage: Stage, kind: type[Message]) -> list[Any]:
    return [message for _, message in stage.sent if isinstance(message, kind)]


@on_stage()
async def test_an_application_or_a_shape_that_is_not_there_fails_its_evaluation_alone(stage: Stage) -> None:
    job = await stage.search()
    asks = (
        ask(1, application="PLAIN", args="a 'b c'", job_data={"told": "mine"}, environ={"A": "1"}),
        ask(2, application="NOBODY"),
        ask(3, argv=("x", "y"), shape=Shape(num_nodes=3)),
        ask(4, argv=("x", "y")),
        ask(5, failure="ValueError: no"),
    )
    stage.says(Submit(1, asks))
    told = await finished(stage, 3)
    assert sorted(told) == [2, 3, 5]
    assert {done.outcome for done in told.values()} == {"error"}
    assert "'NOBODY' is not registered; known: PLAIN, SEARCH" in told[2].reason
    assert told[3].reason.startswith("it cannot run here: ")
    assert (told[5].reason, dict(told[5].data), told[5].cached) == ("ValueError: no", {"told": 0}, False)
    await stage.until(lambda: len(stage.agent.orders) == 3, "two programs beside the search")
    orders = {order.name: order for order in stage.agent.orders.values()}
    assert orders["task1"].argv == ("plain", "a", "b c")
    assert orders["task4"].argv == ("x", "y")
    assert orders["task1"].environ["A"] == "1"
    assert all(order.expects_result for name, order in orders.items() if name.startswith("task"))
    (known,) = stage.jobs(name="task1")
    assert (known.data, known.evaluation.notes, known.creator) == ({"told": "mine"}, {"told": 0}, job.id)  # type: ignore[union-attr]
    assert {one.state for one in stage.jobs(name="task2")} == {State.FAILED}
    stage.says(Submit(1, asks))  # the answer was lost: nothing is done twice
    await stage.settled()
    assert len(stage.jobs(creator=job.id)) == 5
    assert len(stage.agent.orders) == 3


@on_stage()
async def test_an_application_that_is_registered_while_the_launcher_runs_is_known(stage: Stage) -> None:
    await stage.search()
    stage.store.put_app(App("LATE", "late --flag"))
    stage.says(Submit(1, (ask(1, application="LATE", args="x"),)))
    await stage.until(lambda: len(stage.agent.orders) == 2, "the program")
    orders = {order.name: order for order in stage.agent.orders.values()}
    assert orders["task1"].argv == ("late", "--flag", "x")


@on_stage()
async def test_a_failure_that_is_sent_again_after_it_could_run_changes_nothing(stage: Stage) -> None:
    job = await stage.search()
    stage.says(Submit(1, (ask(1, application="PLAIN"),)))
    await stage.until(lambda: len(stage.agent.orders) == 2, "the program")
    stage.says(Submit(1, (ask(1, application="GONE"),)))
    await stage.settled()
    assert done_by(stage) == {}, "it runs"
    (key,) = [key for key in stage.agent.orders if key[0] != job.id]
    stage.agent.end(key, objective=3.0)
    told = await finished(stage, 1)
    assert (told[1].objective, told[1].outcome) == (3.0, "ok")


@on_stage()
async def test_run_functions_of_a_shape_that_cannot_be_are_refused_together(stage: Stage) -> None:
    await stage.search()
    stage.says(Submit(1, (ask(1, shape=Shape(num_nodes=3)), ask(2))))
    await stage.until(lambda: answers(stage, Refused), "the refusal")
    assert "an evaluation that cannot run here" in answers(stage, Refused)[0].message
    assert len(stage.agent.orders) == 1
