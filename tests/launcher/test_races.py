"""Commands, searches and ends that meet in the same milliseconds: nothing is lost, doubled or waited for."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from nas_hpc.errors import WrongCall
from nas_hpc.launcher import LauncherOptions
from nas_hpc.processes.orders import Order
from nas_hpc.records import Evaluation, Resources
from nas_hpc.states import Actor, Outcome, State
from nas_hpc.wire import PROTOCOL, Ask, Cancel, End, Hello, Refused, Report, Shape, Submit
from tests.launcher.bench import Bench
from tests.launcher.stage import PEER, SHAPE, Stage, on_stage, program, search


# -- what a search is told -------------------------------------------------------------------------------
@on_stage()
async def test_a_killed_evaluation_is_told_although_a_later_end_was_told_before(stage: Stage) -> None:
    await stage.search()
    first, second, *_ = await stage.evaluations(1, 2, 3)
    stage.set(State.USER_KILLED, first[0])
    stage.agent.end(second)
    await stage.until(lambda: 2 in stage.results(), "the end of the second")
    stage.wake()
    await stage.until(lambda: stage.results().get(1) == "killed", "the kill of the first")


@on_stage()
async def test_a_cancelled_evaluation_is_told_although_another_ends_at_that_moment(stage: Stage) -> None:
    await stage.search()
    _, second, *_ = await stage.evaluations(1, 2, 3)
    stage.says(Cancel(9, (1,)))
    stage.agent.end(second)
    await stage.until(lambda: {1, 2} <= set(stage.results()), "both ends")


@on_stage()
async def test_an_evaluation_killed_at_the_moment_of_its_end_is_told(stage: Stage) -> None:
    await stage.search()
    [only] = await stage.evaluations(1)
    stage.set(State.USER_KILLED, only[0])
    stage.agent.end(only)
    await stage.settled()
    stage.wake()
    await stage.until(lambda: stage.results().get(1) == "killed", "the kill")


@on_stage()
async def test_a_search_that_connects_again_is_told_of_a_kill_before_its_cursor(stage: Stage) -> None:
    job = await stage.search()
    first, second = await stage.evaluations(1, 2)
    stage.set(State.USER_KILLED, first[0])
    stage.agent.end(second)
    await stage.until(lambda: 2 in stage.results(), "the end of the second")
    [newest] = stage.store.finished(job.id, after=stage.store.finished(job.id)[0].order)
    stage.says(Hello(PROTOCOL, job.id, 1, newest.order, SHAPE), b"again")
    await stage.until(lambda: stage.results().get(1) == "killed", "the kill of the first")


@on_stage()
async def test_an_evaluation_killed_while_it_waits_to_run_again_is_told_as_killed(stage: Stage) -> None:
    await stage.search()
    [only] = await stage.evaluations(1)
    stage.launcher.dispatcher.stopping = True  # so that it waits
    stage.agent.end(only, Outcome.LOST)
    await stage.settled()
    stage.set(State.USER_KILLED, only[0])
    stage.wake()
    await stage.until(lambda: stage.results().get(1) == "killed", "the kill")


# -- jobs between two states -----------------------------------------------------------------------------
@on_stage()
async def test_a_job_retried_while_it_is_being_ended_runs_again(stage: Stage) -> None:
    [job] = stage.add(program())
    stage.wake()
    await stage.until(lambda: (job.id, 1) in stage.agent.orders, "its start")
    stage.set(State.USER_KILLED, job.id)
    stage.set(State.RESTART_READY, job.id)
    stage.wake()
    await stage.until(lambda: (job.id, 1) in stage.agent.stops, "the first attempt to be told to end")
    await stage.settled()
    assert (job.id, 2) not in stage.agent.orders, "two attempts at once"
    stage.agent.end((job.id, 1), Outcome.KILLED)
    await stage.until(lambda: (job.id, 2) in stage.agent.orders, "the second attempt")


@on_stage()
async def test_what_was_being_claimed_when_the_launcher_stopped_does_not_run(stage: Stage) -> None:
    [job] = stage.add(program())
    dispatcher = stage.launcher.dispatcher
    write = dispatcher.write

    def stop_at_the_claim(*request: Any) -> None:
        write(*request)
        if stage.launcher.pool.placements:
            stage.launcher.stop("the allocation ends")

    dispatcher.write = stop_at_the_claim  # type: ignore[method-assign]
    stage.wake()
    await stage.until(stage.task.done, "the launcher to end")
    assert not stage.agent.orders
    [after] = stage.jobs(ids=(job.id,))
    assert (after.state, after.attempt) == (State.RESTART_READY, 1)
    assert stage.store.leases() == [], "the lease was given up"


@on_stage()
async def test_a_job_that_is_changed_while_it_waits_is_placed_as_it_is_now(stage: Stage) -> None:
    [big, waiting] = stage.add(program(), program(resources=Resources(node_packing_count=1)))
    stage.wake()
    await stage.until(lambda: (big.id, 1) in stage.agent.orders, "the first")
    stage.store.modify([replace(waiting, resources=Resources(ranks_per_node=2))])
    stage.wake()
    await stage.until(lambda: waiting.id in stage.launcher.dispatcher.never, "its refusal")
    stage.agent.end((big.id, 1))
    await stage.settled()
    assert not stage.agent.orders
    stage.set(State.USER_KILLED, waiting.id)
    stage.wake()
    await stage.until(lambda: not stage.launcher.dispatcher.never, "it to be forgotten")


@on_stage()
async def test_a_search_that_has_to_wait_for_parents_keeps_its_evaluations(stage: Stage) -> None:
    [parent, job] = stage.add(program(), search())
    stage.wake()
    await stage.until(lambda: (job.id, 1) in stage.agent.orders, "the search's start")
    stage.says(Hello(PROTOCOL, job.id, 1, 0, SHAPE))
    stage.says(Submit(1, (Ask(1, "m.f", {}, 1, SHAPE),)))
    await stage.settled()
    stage.launcher.dispatcher.stopping = True  # so that it waits
    stage.agent.end((job.id, 1), Outcome.LOST)
    await stage.settled()
    [now] = stage.jobs(ids=(job.id,))
    stage.store.modify([replace(now, parents=(parent.id,))])
    stage.wake()
    await stage.settled()
    [evaluation] = stage.jobs(creator=job.id)
    assert evaluation.state is not State.USER_KILLED


@on_stage()
async def test_jobs_of_one_application_are_held_to_their_own_estimates(stage: Stage) -> None:
    stage.launcher.dispatcher.foresight.deadline = asyncio.get_running_loop().time() + 600
    long, short = (program(resources=Resources(wall_time_minutes=m)) for m in (60.0, 5.0))
    stage.add(long, short)
    stage.wake()
    await stage.until(lambda: (short.id, 1) in stage.agent.orders, "the short one")
    assert (long.id, 1) not in stage.agent.orders


# -- a search's end --------------------------------------------------------------------------------------
@on_stage()
async def test_a_search_ends_together_with_its_evaluations_in_one_commit(stage: Stage) -> None:
    job = await stage.search()
    [key] = await stage.evaluations(1)
    stage.agent.end((job.id, 1), Outcome.ERROR)
    await stage.until(lambda: stage.jobs(ids=(job.id,))[0].state is State.FAILED, "the search's end")
    assert stage.jobs(ids=(key[0],))[0].state is State.USER_KILLED
    await stage.until(lambda: stage.agent.stops.get(key) is Outcome.KILLED, "the evaluation to be ended")


@on_stage()
async def test_what_a_search_asks_for_after_its_kill_ends_with_it(stage: Stage) -> None:
    job = await stage.search()
    stage.set(State.USER_KILLED, job.id)
    stage.says(Submit(1, (Ask(1, "m.f", {}, 1, SHAPE),)))
    stage.wake()
    await stage.until(lambda: [one.state for one in stage.jobs(creator=job.id)] == [State.USER_KILLED], "it")


@on_stage()
async def test_evaluations_that_wait_for_a_search_that_is_over_do_not_run(stage: Stage) -> None:
    [job] = stage.add(search())
    stage.set(State.USER_KILLED, job.id)
    wanted = replace(program(), application="", evaluation=Evaluation("m.f", {}, 1), creator=job.id, seq=1)
    stage.store.add_jobs([wanted], Actor.SEARCH)
    stage.wake()
    await stage.until(lambda: [one.state for one in stage.jobs(creator=job.id)] == [State.USER_KILLED], "it")
    await stage.settled()
    assert not stage.agent.orders


@on_stage()
async def test_what_was_killed_with_its_search_runs_again_when_that_is_retried(stage: Stage) -> None:
    job = await stage.search()
    [alone, own, *others] = await stage.evaluations(1, 2, 3, 4)
    stage.set(State.USER_KILLED, alone[0])
    stage.says(Cancel(5, (2,)))
    await stage.until(lambda: stage.agent.stops.get(own), "the cancellation")
    stage.set(State.USER_KILLED, job.id, *(key[0] for key in others))
    stage.wake()
    await stage.until(lambda: len(stage.agent.stops) == 5, "all to be ended")
    for key in list(stage.agent.orders):
        stage.agent.end(key, Outcome.KILLED)
    await stage.settled()
    stage.set(State.RESTART_READY, job.id)
    stage.wake()
    await stage.until(lambda: (job.id, 2) in stage.agent.orders, "the search's second attempt")
    stage.says(Hello(PROTOCOL, job.id, 2, 0, SHAPE))
    again = {(key[0], 2) for key in others}
    await stage.until(lambda: again <= set(stage.agent.orders), "its evaluations")
    assert len(stage.agent.orders) == 3, "those that were ended alone stay as they are"


# -- what cannot be served -------------------------------------------------------------------------------
@pytest.mark.parametrize("shape", [Shape(ranks_per_node=2), Shape(gpus_per_rank=1)])
def test_a_search_whose_evaluations_never_fit_is_refused(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, shape: Shape
) -> None:
    @on_stage()
    async def play(stage: Stage) -> None:
        [job] = stage.add(search())
        stage.wake()
        await stage.until(lambda: (job.id, 1) in stage.agent.orders, "the search's start")
        stage.says(Hello(PROTOCOL, job.id, 1, 0, shape))
        await stage.until(lambda: any(isinstance(m, End) for _, m in stage.sent), "the refusal")

    play(bench, monkeypatch)


@pytest.mark.parametrize("shape", [Shape(ranks_per_node=2), Shape(node_packing_count=0)])
def test_an_evaluation_that_never_fits_is_refused(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, shape: Shape
) -> None:
    @on_stage()
    async def play(stage: Stage) -> None:
        await stage.search()
        stage.says(Submit(1, (Ask(1, "m.f", {}, 1, shape),)))
        await stage.until(lambda: any(isinstance(m, Refused) for _, m in stage.sent), "the refusal")
        await stage.settled()

    play(bench, monkeypatch)


@on_stage()
async def test_a_job_whose_resources_make_no_sense_does_not_hinder_the_others(stage: Stage) -> None:
    odd, good = program(resources=Resources(node_packing_count=0)), program()
    stage.add(odd, good)
    stage.wake()
    await stage.until(lambda: (good.id, 1) in stage.agent.orders, "the good one")
    assert odd.id in stage.launcher.dispatcher.never


# -- an error in the loop --------------------------------------------------------------------------------
@on_stage()
async def test_an_error_in_the_launcher_itself_ends_it_and_loses_no_job(stage: Stage) -> None:
    def broken(order: Order) -> None:
        raise RuntimeError("a defect")

    stage.agent.on_start = broken
    [job] = stage.add(program())
    stage.wake()
    await asyncio.wait([stage.task], timeout=60)
    assert stage.task.done(), "it hangs"
    assert isinstance(stage.task.exception(), RuntimeError)
    assert stage.jobs(ids=(job.id,))[0].state is State.RUNNING
    assert [one.id for one in stage.store.leases()] == [stage.launcher.lease.id], "for the next to settle"


@on_stage()
async def test_a_message_that_makes_no_sense_is_answered_and_the_next_one_is_heard(stage: Stage) -> None:
    job = await stage.search()
    odd = Submit(1, 7)  # type: ignore[arg-type]
    for message in (odd, Report(1.0, {}, 1, 0, 2)):
        stage.launcher.endpoint._take(PEER, message)
    assert any(isinstance(message, End) for _, message in stage.sent)
    [shown] = stage.launcher.view()["searches"]  # type: ignore[misc]
    assert (shown["job"], shown["done"]) == (job.id, 1)


# -- the end ---------------------------------------------------------------------------------------------
@on_stage()
async def test_what_comes_while_the_launcher_ends_is_left_to_the_next(stage: Stage) -> None:
    closing = asyncio.Event()

    async def close() -> None:
        [stage.job] = stage.add(program())  # type: ignore[attr-defined]
        stage.wake()
        closing.set()
        for _ in range(200):
            await asyncio.sleep(0.001)

    stage.agent.close = close  # type: ignore[method-assign]
    stage.launcher._idling._over()
    await closing.wait()
    await stage.until(stage.task.done, "its end")
    [job] = stage.jobs(ids=(stage.job.id,))  # type: ignore[attr-defined]
    assert job.state is State.READY
    assert stage.store.leases() == []


def test_a_time_limit_that_leaves_nothing_for_jobs_is_refused() -> None:
    with pytest.raises(WrongCall, match="12 s leaves nothing"):
        LauncherOptions(time_limit_s=12.0, stop_margin_s=15.0)
