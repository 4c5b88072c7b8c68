"""Nodes on which nothing can be started are set aside; a job that cannot be started is not their fault."""

from __future__ import annotations

import asyncio

from nas_hpc.launcher.policy import follow
from nas_hpc.launcher.strikes import Strikes, blames_machine, blames_place
from nas_hpc.processes.start_failures import CANNOT_START
from nas_hpc.records import Attempt, Result
from nas_hpc.states import Outcome, State
from tests.launcher.stage import Stage, on_stage, program

PLACE = "cannot make the directory /site/data/W/task1_0: Read-only file system"
JOB = "cannot start /no/such/program: no such file"


def test_three_failed_starts_of_different_jobs_blame_the_node_once() -> None:
    strikes = Strikes()
    assert [strikes.failed(["n"], PLACE, job) for job in "aabbc"] == [[], [], ["n"], [], []]
    assert strikes.covers(["n"])
    assert not strikes.covers(["n", "m"])


def test_failures_of_one_job_alone_blame_no_node() -> None:
    strikes = Strikes()
    assert [strikes.failed(["n"], PLACE, "a") for _ in range(5)] == [[]] * 5


def test_a_start_that_works_clears_its_nodes() -> None:
    strikes = Strikes()
    for job in "ab":
        strikes.failed(["n"], PLACE, job)
    strikes.worked(["n"])
    assert strikes.failed(["n"], PLACE, "c") == []


def test_what_ends_on_a_node_that_is_given_up_was_started_before() -> None:
    strikes = Strikes()
    for job in "abc":
        strikes.failed(["n"], PLACE, job)
    strikes.worked(["n"])
    assert strikes.covers(["n"])
    strikes.forgive(["n"])
    assert not strikes.covers(["n"])
    assert strikes.failed(["n"], PLACE, "d") == []


def test_a_node_that_the_reason_names_is_blamed_alone() -> None:
    strikes = Strikes()
    over = [strikes.failed(["n", "m"], 'no answer from "m"', job) for job in "abc"]
    assert over == [[], [], ["m"]]


def test_reasons_of_the_place_are_told_from_those_of_the_job() -> None:
    assert blames_place(PLACE)
    assert blames_place("cannot fork: Resource temporarily unavailable")
    assert not blames_place(JOB)


def test_a_file_system_at_its_end_is_nothing_that_a_job_has_caused() -> None:
    assert blames_machine(PLACE)
    assert not blames_machine("cannot make the directory /site/data/W/task1_0: Not a directory")
    assert not blames_machine("cannot start ./x: Input/output error")


def test_failed_starts_that_are_not_a_jobs_own_fault_do_not_fail_it() -> None:
    node = f"{CANNOT_START}: srun: error: Unable to create step for job 7: Job/step already completing"
    assert after(PLACE, earlier=[PLACE, node] * 4) is State.RESTART_READY
    assert after(node, earlier=[node] * 8) is State.RESTART_READY
    assert after(JOB, earlier=[PLACE, node, JOB]) is State.RESTART_READY
    assert after(JOB, earlier=[JOB, node, JOB]) is State.FAILED
    assert after(node, earlier=[node] * 99) is State.FAILED, "not for ever"


def after(reason: str, earlier: list[str]) -> State:
    """The state of a job whose attempts all failed to start for these reasons."""
    attempts = [
        Attempt("a", number, "l", result=Result(Outcome.START_FAILED, reason=one))
        for number, one in enumerate(earlier, 1)
    ]
    [state] = follow(Outcome.START_FAILED, attempts, retries=0, lost_limit=3, reason=reason)
    return state


@on_stage()
async def test_one_job_alone_that_meets_a_read_only_site_is_not_burnt(stage: Stage) -> None:
    [job] = stage.add(program())
    stage.wake()
    for number in (1, 2, 3):
        await stage.until(lambda: (job.id, number) in stage.agent.orders, "its start")  # noqa: B023
        stage.agent.end((job.id, number), Outcome.START_FAILED, reason=PLACE)
    await asyncio.wait([stage.task], timeout=60)
    assert "nothing can be started on any node" in str(stage.task.exception())
    [now] = stage.jobs(ids=(job.id,))
    assert now.state is State.RESTART_READY


@on_stage()
async def test_a_launcher_whose_nodes_start_nothing_says_so_and_burns_nothing(stage: Stage) -> None:
    await stage.search()
    keys = await stage.evaluations(1, 2, 3)
    for key in keys:
        stage.agent.end(key, Outcome.START_FAILED, reason=PLACE)
    await asyncio.wait([stage.task], timeout=60)
    assert "nothing can be started on any node: cannot make the directory" in str(stage.task.exception())
    evaluations = [job for job in stage.jobs() if job.creator]
    assert {job.state for job in evaluations} == {State.RESTART_READY}


@on_stage()
async def test_an_evaluation_that_ends_well_after_that_keeps_no_launcher_waiting(stage: Stage) -> None:
    await stage.search()
    keys = await stage.evaluations(1, 2, 3, 4)
    for key in keys[:3]:
        stage.agent.end(key, Outcome.START_FAILED, reason=PLACE)
    await stage.until(lambda: stage.launcher.pool.aside, "the node to be set aside")
    stage.agent.end(keys[3], Outcome.OK, 1.0)
    await asyncio.wait([stage.task], timeout=60)
    assert "nothing can be started on any node" in str(stage.task.exception())
