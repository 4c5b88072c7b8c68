"""Agents that the test plays, with the real loop and database: what is kept, adopted, lost, and told."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from nas_hpc.launcher import crew
from nas_hpc.processes.orders import Key
from nas_hpc.records import Lease, new_id
from nas_hpc.states import Actor, Outcome, State
from nas_hpc.store.base import Claim, Store
from nas_hpc.wire import (
    PROTOCOL,
    AgentWelcome,
    Dismiss,
    End,
    Hello,
    Pulse,
    RunEnded,
    RunOrder,
    RunsSettled,
    RunStarted,
    RunStop,
    Shape,
    Welcome,
)
from tests.launcher.stage import PEER, Play, Stage, on_stage, program, search


def with_agents(count: int = 1, **options: Any) -> Callable[[Play], Callable[..., None]]:
    """Run a test with a launcher on the stage, all of whose nodes have agents."""
    return on_stage(**{"agents": count, "use_master_node": True, "grace_s": 0.2, **options})


def ends(key: Key, outcome: Outcome = Outcome.OK) -> RunEnded:
    """An agent's word about an attempt."""
    now = time.time()
    return RunEnded(key[0], key[1], outcome.value, None, {}, "", 0, now - 1, now, "", {})


async def running(stage: Stage, peer: bytes, count: int = 1) -> list[Key]:
    """So many jobs that an agent was asked to run."""
    stage.add(*(program() for _ in range(count)))
    stage.wake()
    await stage.until(lambda: len(stage.orders(peer)) >= count, "the orders")
    return stage.orders(peer)


# -- orders and ends -------------------------------------------------------------------------------------
@with_agents()
async def test_nothing_is_started_before_the_agent_is_there_and_then_at_once(stage: Stage) -> None:
    [job] = stage.add(program())
    stage.wake()
    await stage.settled()
    assert stage.jobs()[0].state is State.READY
    assert not stage.task.done(), "a launcher whose agents may come does not end"
    peer = stage.arrives(0)
    await stage.until(lambda: stage.orders(peer) == [(job.id, 1)], "the order")
    [welcome] = stage.told(peer, AgentWelcome)
    assert welcome.nodes == (stage.launcher.pool.nodes[0].name,)
    assert (welcome.protocol, welcome.stop) == (PROTOCOL, ())


@with_agents()
async def test_an_end_is_settled_with_its_agent_after_the_commit_and_not_before(stage: Stage) -> None:
    peer = stage.arrives(0)
    [key] = await running(stage, peer)
    stage.says(RunStarted(*key, 7, time.time()), peer)
    assert key not in stage.launcher.dispatcher.evaluating, "a person's job"
    stage.says(ends(key), peer)
    assert stage.told(peer, RunsSettled) == []
    await stage.until(lambda: stage.told(peer, RunsSettled), "the settlement")
    assert stage.told(peer, RunsSettled) == [RunsSettled((key,))]
    assert stage.jobs()[0].state is State.JOB_FINISHED


@with_agents()
async def test_an_end_told_twice_counts_once_and_is_settled_twice(stage: Stage) -> None:
    peer = stage.arrives(0)
    [key] = await running(stage, peer)
    stage.says(ends(key), peer)
    stage.says(ends(key), peer)
    await stage.settled()
    stage.says(ends(key, Outcome.ERROR), peer)
    await stage.settled()
    assert stage.told(peer, RunsSettled) == [RunsSettled((key,)), RunsSettled((key,))]
    assert stage.jobs()[0].state is State.JOB_FINISHED
    assert [event.new for event in stage.store.events([key[0]])].count(State.RUN_DONE) == 1


@with_agents()
async def test_the_order_carries_no_lease(stage: Stage) -> None:
    peer = stage.arrives(0)
    await running(stage, peer)
    [order] = stage.told(peer, RunOrder)
    assert "NAS_HPC_LAUNCHER_ID" not in order.order["environ"]
    assert stage.launcher.lease.id not in str(order.order)


@with_agents(2)
async def test_two_agents_share_the_work_by_their_nodes(stage: Stage) -> None:
    first, second = stage.arrives(0), stage.arrives(1)
    stage.add(program(), program())
    stage.wake()
    await stage.until(lambda: stage.orders(first) and stage.orders(second), "both to have work")
    assert len(stage.orders(first)) == len(stage.orders(second)) == 1


# -- agents that go and come -----------------------------------------------------------------------------
@with_agents()
async def test_an_agent_that_connects_again_goes_on_with_what_it_runs(stage: Stage) -> None:
    peer = stage.arrives(0)
    keys = await running(stage, peer)
    again = stage.arrives(0, peer=b"again", running=keys)
    await stage.settled()
    assert stage.told(again, AgentWelcome)[0].stop == ()
    assert stage.orders(again) == []
    stage.says(ends(keys[0]), peer)
    await stage.settled()
    assert stage.jobs()[0].state is State.RUNNING, "the old connection is nobody's any more"
    stage.says(ends(keys[0]), again)
    await stage.until(lambda: stage.jobs()[0].state is State.JOB_FINISHED, "the end")


@with_agents()
async def test_an_order_that_was_on_its_way_when_the_connection_broke_is_given_again(stage: Stage) -> None:
    peer = stage.arrives(0)
    keys = await running(stage, peer)
    again = stage.arrives(0, peer=b"again")
    await stage.until(lambda: stage.orders(again) == keys, "the order again")
    assert stage.jobs()[0].attempt == 1


@with_agents()
async def test_what_an_agent_ran_is_lost_and_runs_again_when_another_process_takes_its_place(
    stage: Stage,
) -> None:
    peer = stage.arrives(0)
    [key] = await running(stage, peer)
    new = stage.arrives(0, incarnation="2")
    await stage.until(lambda: stage.orders(new) == [(key[0], 2)], "the second attempt")
    [attempt, _] = stage.store.attempts([key[0]])
    assert attempt.result is not None
    assert attempt.result.outcome is Outcome.LOST
    assert "was started again" in attempt.result.reason
    assert stage.told(peer, Dismiss), "the older process, if there is one still, has to end"


@with_agents()
async def test_a_result_on_disk_counts_although_its_agent_is_gone(stage: Stage) -> None:
    peer = stage.arrives(0)
    [key] = await running(stage, peer)
    job = stage.jobs()[0]
    directory = stage.launcher.site.job_directory(job.workflow, job.directory_name)
    directory.mkdir(parents=True)
    (directory / "result.json").write_text(
        f'{{"job": "{job.id}", "attempt": 1, "outcome": "ok", "start": 1.0, "end": 2.0}}'
    )
    stage.arrives(0, incarnation="2")
    await stage.until(lambda: stage.jobs()[0].state is State.JOB_FINISHED, "the result")


@with_agents()
async def test_an_order_for_an_agent_that_is_away_waits_for_it(stage: Stage) -> None:
    peer = stage.arrives(0)
    stage.cut(peer)
    [job] = stage.add(program())
    stage.wake()
    await stage.until(lambda: stage.jobs()[0].state is State.RUNNING, "the claim")
    await stage.settled()
    [node] = stage.launcher.view()["nodes"]  # type: ignore[misc]
    assert node["state"] == "away"
    again = stage.arrives(0, peer=b"again")
    await stage.until(lambda: stage.orders(again) == [(job.id, 1)], "the order")


@with_agents()
async def test_a_stop_reaches_an_agent_that_was_away_and_is_given_up_if_it_stays_away(stage: Stage) -> None:
    peer = stage.arrives(0)
    keys = await running(stage, peer)
    stage.cut(peer)
    stage.set(State.USER_KILLED, keys[0][0])
    stage.wake()
    await stage.until(lambda: not stage.launcher.dispatcher.running, "the stop to be given up")
    again = stage.arrives(0, peer=b"again", running=keys)
    await stage.settled()
    assert stage.told(again, AgentWelcome)[0].stop == tuple(keys)


@with_agents()
async def test_a_stop_is_said_again_to_an_agent_that_comes_back_in_time(stage: Stage) -> None:
    stage.launcher.fleet.crew._grace_s = 60.0  # type: ignore[union-attr]
    peer = stage.arrives(0)
    keys = await running(stage, peer)
    stage.set(State.USER_KILLED, keys[0][0])
    stage.wake()
    await stage.until(lambda: stage.told(peer, RunStop), "the stop")
    again = stage.arrives(0, peer=b"again", running=keys)
    await stage.until(lambda: stage.told(again, RunStop), "the stop, again")
    assert stage.told(again, RunStop) == stage.told(peer, RunStop)
    stage.says(ends(keys[0], Outcome.KILLED), again)
    await stage.until(lambda: not stage.launcher.dispatcher.running, "the end")


@with_agents()
async def test_a_silent_agent_is_lost_with_what_it_ran_and_served_again_when_it_speaks(stage: Stage) -> None:
    peer = stage.arrives(0)
    keys = await running(stage, peer)
    before, crew.SILENCE_S = crew.SILENCE_S, 0.05
    try:
        await asyncio.sleep(0.1)
        stage.launcher.fleet.crew.look()  # type: ignore[union-attr]
    finally:
        crew.SILENCE_S = before
    await stage.until(lambda: stage.jobs()[0].state is State.RESTART_READY, "the loss")
    assert stage.launcher.view()["nodes"][0]["state"] == "lost"  # type: ignore[index]
    again = stage.arrives(0, peer=b"again", running=keys)
    await stage.until(lambda: stage.orders(again) == [(keys[0][0], 2)], "the second attempt")
    assert stage.told(again, AgentWelcome)[0].stop == tuple(keys), "the first is ended unreported"


@with_agents()
async def test_a_pulse_keeps_an_agent(stage: Stage) -> None:
    peer = stage.arrives(0)
    [remote] = stage.launcher.fleet.crew.remotes  # type: ignore[union-attr]
    remote.heard -= crew.SILENCE_S + 1
    stage.says(Pulse(time.time()), peer)
    stage.launcher.fleet.crew.look()  # type: ignore[union-attr]
    assert remote.state == "here"


# -- agents that do not belong here ----------------------------------------------------------------------
@with_agents()
async def test_an_agent_of_another_version_is_sent_away_with_a_line_and_the_others_work(stage: Stage) -> None:
    old = stage.arrives(0, peer=b"old", version="0.0.1")
    strange = stage.arrives(0, peer=b"strange", protocol=PROTOCOL + 1)
    [end] = stage.told(old, End)
    assert "0.0.1" in end.reason
    assert "host" in end.reason
    assert stage.told(strange, End)
    peer = stage.arrives(0)
    await running(stage, peer)


@with_agents()
async def test_an_agent_of_another_start_is_dismissed(stage: Stage) -> None:
    stranger = stage.arrives(0, peer=b"stranger", ensemble=new_id())
    assert stage.told(stranger, Dismiss)
    assert not stage.told(stranger, AgentWelcome)


@with_agents()
async def test_an_agent_whose_number_is_nobody_s_is_sent_away(stage: Stage) -> None:
    nobody = stage.arrives(7, peer=b"nobody")
    assert "serves no node" in stage.told(nobody, End)[0].reason


# -- what a dead launcher left ---------------------------------------------------------------------------
class Before:
    """A launcher that died: its lease, and jobs that it left running on the first node."""

    def __init__(self, *jobs: Any) -> None:
        self.jobs = jobs

    def __call__(self, store: Store) -> None:
        dead = Lease(new_id(), "elsewhere", "boot", 1, 1.0, "", time.time() - 1)
        store.open_lease(dead, exclusive=True)
        from nas_hpc.resources import local_nodes

        node = local_nodes(1, 4)[0].name
        store.add_jobs(self.jobs, Actor.COMMAND)
        store.claim(dead.id, [Claim(job.id, (node,), (at,), ()) for at, job in enumerate(self.jobs)])


def after_death(*jobs: Any, **options: Any) -> Callable[[Play], Callable[..., None]]:
    """Run a test with a launcher that succeeds one which left ``jobs`` running with its only agent."""
    return with_agents(before=Before(*jobs), **options)


def packed(**fields: Any) -> Any:
    """A job that shares its node with three others."""
    job = program(**fields)
    return replace(job, resources=replace(job.resources, node_packing_count=4))


RUNS, ENDED, GONE = packed(), packed(), packed()


@after_death(RUNS, ENDED, GONE)
async def test_what_an_agent_presents_goes_on_and_what_it_does_not_runs_again(stage: Stage) -> None:
    peer = stage.arrives(0, running=[(RUNS.id, 1)], ended=[ends((ENDED.id, 1))])
    await stage.until(lambda: stage.told(peer, AgentWelcome), "the welcome")
    await stage.settled()
    lease = stage.launcher.lease.id
    runs, ended, gone = stage.jobs()
    assert (runs.state, runs.attempt, runs.lease) == (State.RUNNING, 1, lease)
    assert (ended.state, ended.attempt) == (State.JOB_FINISHED, 1)
    assert stage.told(peer, RunsSettled) == [RunsSettled(((ENDED.id, 1),))]
    await stage.until(lambda: stage.orders(peer) == [(GONE.id, 2)], "the lost one's second attempt")
    assert stage.launcher.pool.free_share(stage.launcher.pool.nodes[0].name) == 0.5
    stage.says(ends((RUNS.id, 1)), peer)
    await stage.until(lambda: stage.jobs()[0].state is State.JOB_FINISHED, "the adopted one's end")


@after_death(packed())
async def test_what_no_agent_presents_in_time_runs_again(stage: Stage) -> None:
    [job] = stage.jobs()
    assert job.state is State.RUNNING
    assert job.lease != stage.launcher.lease.id
    stage.launcher.fleet._settle(None)  # type: ignore[union-attr]
    await stage.until(lambda: stage.jobs()[0].state is State.RESTART_READY, "the loss")
    peer = stage.arrives(0, running=[(job.id, 1)])
    await stage.until(lambda: stage.orders(peer) == [(job.id, 2)], "the second attempt")
    assert stage.told(peer, AgentWelcome)[0].stop == ((job.id, 1),)


@after_death(packed())
async def test_what_was_killed_while_no_launcher_was_there_is_stopped(stage: Stage) -> None:
    [job] = stage.jobs()
    stage.set(State.USER_KILLED, job.id)
    peer = stage.arrives(0, running=[(job.id, 1)])
    await stage.until(lambda: stage.told(peer, AgentWelcome), "the welcome")
    assert stage.told(peer, AgentWelcome)[0].stop == ((job.id, 1),)
    assert stage.jobs()[0].state is State.USER_KILLED


SEARCH = search()


@after_death(replace(SEARCH, resources=replace(SEARCH.resources, node_packing_count=4)))
async def test_a_search_that_outlived_its_launcher_is_welcomed_once_its_agent_has_presented_it(
    stage: Stage,
) -> None:
    stage.says(Hello(PROTOCOL, SEARCH.id, 1, 0, Shape(node_packing_count=4)))
    await stage.settled()
    assert stage.told(PEER, End) == [], "it is not known yet whether it goes on"
    stage.arrives(0, running=[(SEARCH.id, 1)])
    await stage.until(lambda: stage.told(PEER, Welcome), "the welcome")


@after_death(replace(SEARCH, resources=replace(SEARCH.resources, node_packing_count=4)))
async def test_a_search_that_its_agent_does_not_present_is_superseded(stage: Stage) -> None:
    stage.says(Hello(PROTOCOL, SEARCH.id, 1, 0, Shape(node_packing_count=4)))
    peer = stage.arrives(0)
    await stage.until(lambda: stage.told(PEER, End), "the end of the first attempt")
    assert "superseded" in stage.told(PEER, End)[0].reason
    await stage.until(lambda: stage.orders(peer) == [(SEARCH.id, 2)], "the second")


@after_death(packed())
async def test_a_connection_that_breaks_during_the_takeover_loses_nothing(stage: Stage) -> None:
    [job] = stage.jobs()
    stage.arrives(0, running=[(job.id, 1)])
    again = stage.arrives(0, peer=b"again", running=[(job.id, 1)])
    await stage.until(lambda: stage.told(again, AgentWelcome), "the welcome")
    await stage.settled()
    assert stage.told(again, AgentWelcome)[0].stop == ()
    assert stage.jobs()[0].state is State.RUNNING
    stage.says(ends((job.id, 1)), again)
    await stage.until(lambda: stage.jobs()[0].state is State.JOB_FINISHED, "the end")


@after_death(packed())
async def test_an_end_before_the_welcome_is_not_passed_over(stage: Stage) -> None:
    [job] = stage.jobs()
    peer = stage.arrives(0, running=[(job.id, 1)])
    stage.says(ends((job.id, 1)), peer)
    await stage.until(lambda: stage.told(peer, RunsSettled), "the settlement")
    assert stage.told(peer, RunsSettled) == [RunsSettled(((job.id, 1),))]
    assert stage.jobs()[0].state is State.JOB_FINISHED


@after_death(packed())
async def test_a_process_that_dies_during_the_takeover_loses_what_it_presented(stage: Stage) -> None:
    [job] = stage.jobs()
    stage.arrives(0, running=[(job.id, 1)])
    new = stage.arrives(0, incarnation="2")
    await stage.until(lambda: stage.orders(new) == [(job.id, 2)], "the second attempt")


# -- the end ---------------------------------------------------------------------------------------------
@with_agents(2, idle_timeout_s=0.0)
async def test_agents_are_dismissed_when_the_launcher_ends(stage: Stage) -> None:
    first, second = stage.arrives(0), stage.arrives(1)
    stage.launcher.stop("the test is over")
    await asyncio.wait_for(stage.task, 60)
    assert stage.told(first, Dismiss)
    assert stage.told(second, Dismiss)


@with_agents()
async def test_agents_of_a_superseded_launcher_hear_nothing_of_its_end(stage: Stage) -> None:
    peer = stage.arrives(0)
    await running(stage, peer)
    stage.store.close_lease(stage.launcher.lease.id, time.time())
    sent = len(stage.sent)
    stage.launcher._heartbeat()
    await asyncio.wait([stage.task], timeout=60)
    assert "lease" in str(stage.task.exception())
    assert [message for to, message in stage.sent[sent:] if to == peer] == []


@with_agents(agent_deadline_s=0.3)
async def test_a_launcher_whose_agents_never_come_says_so_and_fails(stage: Stage) -> None:
    stage.add(program())
    stage.wake()
    await asyncio.wait([stage.task], timeout=60)
    said = str(stage.task.exception())
    assert said == "no agent has reached the launcher for 0.3 s: an agent's last words"


def one_job(store: Store) -> None:
    """Something to do from the start."""
    store.add_jobs([program()], Actor.COMMAND)


@with_agents(2, idle_timeout_s=0.0, before=one_job)
async def test_work_goes_on_without_an_agent_that_never_comes(stage: Stage) -> None:
    peer = stage.arrives(0)
    await stage.until(lambda: stage.orders(peer), "the order")
    [key] = stage.orders(peer)
    served = stage.launcher.fleet
    assert served is not None
    served._options = replace(served._options, agent_deadline_s=0.0)
    served._look()
    assert served._named == {1}, "the other agent"
    assert not stage.task.done()
    stage.says(ends(key), peer)
    assert await asyncio.wait_for(stage.task, 60) == 0


@with_agents(2, before=one_job)
async def test_agents_that_were_sent_away_are_not_said_to_be_missing(stage: Stage) -> None:
    """While a launcher ends, which may take it a while."""
    peer = stage.arrives(0)
    await stage.until(lambda: stage.orders(peer), "the order")
    [key] = stage.orders(peer)
    served, notes = stage.launcher.fleet, list[str]()
    assert served is not None
    served._hooks = replace(served._hooks, note=notes.append)
    looked = asyncio.Event()
    close = stage.agent.close

    async def slowly() -> None:
        served._look()
        looked.set()
        await close()

    stage.agent.close = slowly  # type: ignore[method-assign]
    stage.launcher.stop("SIGTERM received")
    stage.says(ends(key, Outcome.WALLTIME), peer)
    assert await asyncio.wait_for(stage.task, 60) == 0
    assert looked.is_set()
    assert stage.told(peer, Dismiss)
    assert notes == []
