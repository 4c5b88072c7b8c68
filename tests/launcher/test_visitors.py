"""What programs of running jobs may ask of the launcher, in the order in which a test wants it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from nas_hpc.launcher.visitors import child_id
from nas_hpc.records import Job, Origin, Resources, new_id
from nas_hpc.states import Outcome, State
from nas_hpc.wire import (
    PROTOCOL,
    Accepted,
    Added,
    AddJobs,
    AskChildren,
    Children,
    KillJobs,
    Message,
    NewJob,
    Refused,
    Shape,
)
from tests.launcher.stage import Stage, on_stage, program

VISITOR = b"program"
QUARTER = Resources(node_packing_count=4)
ORIGIN = Origin("/somewhere", ("/somewhere",), "/usr/bin/python3", {"HOME": "/h"})


async def running(stage: Stage, **fields: Any) -> Job:
    """A person's program that runs."""
    [job] = stage.add(program(resources=QUARTER, origin=ORIGIN, **fields))
    stage.wake()
    await stage.until(lambda: (job.id, 1) in stage.agent.orders, "its start")
    return job


def new(name: str = "child", **fields: Any) -> NewJob:
    """A job that a program wants."""
    return NewJob(**{
        "key": name, "name": name, "application": "PLAIN", "shape": Shape(node_packing_count=16), **fields,
    })  # fmt: skip


async def answer(stage: Stage, message: Message) -> Any:
    """What the launcher says to it."""
    before = len(stage.sent)
    stage.says(message, VISITOR)
    await stage.until(lambda: any(peer == VISITOR for peer, _ in stage.sent[before:]), "the answer")
    return next(said for peer, said in stage.sent[before:] if peer == VISITOR)


async def add(stage: Stage, maker: Job, *jobs: NewJob, attempt: int = 1) -> Any:
    return await answer(stage, AddJobs(PROTOCOL, 7, maker.id, attempt, jobs))


@on_stage()
async def test_a_job_that_a_job_adds_is_a_persons_and_runs_from_where_its_maker_came(stage: Stage) -> None:
    maker = await running(stage)
    stages = {"input_files": "*.h5", "on_parent_failure": "run"}
    times = {"timeout_s": 5.0, "wall_time_minutes": 3.0}
    wish = new(args="a 'b c'", environ={"A": "1"}, retries=2, data={"x": [1]}, stages=stages, **times)
    said = await add(stage, maker, wish)
    assert said == Added(7, (child_id(maker.id, "child"),))
    await stage.until(lambda: len(stage.agent.orders) == 2, "the child's start")
    [child] = stage.jobs(name="child")
    assert (child.id, child.workflow, child.creator, child.seq) == (said.ids[0], "W", "", 0)
    assert (child.made_by, child.origin) == (maker.id, ORIGIN)
    assert (child.args, child.environ, child.retries, child.data) == ("a 'b c'", {"A": "1"}, 2, {"x": [1]})
    assert (child.resources.timeout_s, child.resources.wall_time_minutes) == (5.0, 3.0)
    assert (child.stages.input_files, child.stages.on_parent_failure.value) == ("*.h5", "run")
    order = stage.agent.orders[child.id, 1]
    assert (order.argv, order.expects_result, order.environ["A"]) == (("plain", "a", "b c"), False, "1")


@on_stage()
async def test_what_is_added_again_by_a_later_attempt_or_a_lost_answer_is_the_same_job(stage: Stage) -> None:
    maker = await running(stage, retries=1)
    first = await add(stage, maker, new("a"), new("b"))
    assert await add(stage, maker, new("a"), new("b")) == first
    stage.agent.end((maker.id, 1), Outcome.ERROR)
    await stage.until(lambda: (maker.id, 2) in stage.agent.orders, "its restart")
    again = await add(stage, maker, new("a"), new("b"), new("c"), attempt=2)
    assert again.ids[:2] == first.ids
    assert [job.name for job in stage.jobs() if job.made_by] == ["a", "b", "c"]
    other = await running(stage)
    assert (await add(stage, other, new("a"))).ids[0] not in again.ids, "another maker's is another job"


@on_stage()
async def test_a_finished_child_is_not_started_by_being_added_again(stage: Stage) -> None:
    maker = await running(stage)
    (child,) = (await add(stage, maker, new())).ids
    await stage.until(lambda: (child, 1) in stage.agent.orders, "its start")
    stage.agent.end((child, 1))
    await stage.until(lambda: stage.jobs(ids=(child,))[0].state is State.JOB_FINISHED, "its end")
    assert (await add(stage, maker, new())).ids == (child,)
    await stage.settled()
    assert set(stage.agent.orders) == {(maker.id, 1)}


@on_stage()
async def test_only_the_current_attempt_of_a_running_job_may_ask(stage: Stage) -> None:
    maker = await running(stage)
    nobody = replace(maker, id=new_id())
    for asker, attempt in ((maker, 2), (maker, 0), (nobody, 1)):
        for message in (
            AddJobs(PROTOCOL, 7, asker.id, attempt, (new(),)),
            KillJobs(PROTOCOL, 7, asker.id, attempt, (maker.id,)),
            AskChildren(PROTOCOL, 7, asker.id, attempt),
        ):
            said = await answer(stage, message)
            assert isinstance(said, Refused)
            assert ("is over" if asker is maker else "has no job") in said.message
    assert len(stage.jobs()) == 1


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"application": "NOBODY"}, "unknown application 'NOBODY'; known: PLAIN, SEARCH"),
        ({"application": ""}, "has no application"),
        ({"parents": ("f" * 32,)}, "parent 'ffff"),
        ({"name": "../../x"}, "'../../x' has a slash"),
        ({"workflow": ".hidden"}, "workflow '.hidden' begins with '.'"),
        ({"args": "'open"}, "cannot be split"),
        ({"stages": {"on_parent_failure": "dance"}}, "on_parent_failure is one of fail, run, wait"),
        ({"stages": {"nonsense": 1}}, "nonsense"),
    ],
)
def test_a_wish_that_makes_no_sense_adds_nothing_and_says_why(
    bench: Any, monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any], said: str
) -> None:
    async def play(stage: Stage) -> None:
        maker = await running(stage)
        refused = await add(stage, maker, new("good"), new(**fields))
        assert isinstance(refused, Refused)
        assert said in refused.message
        assert len(stage.jobs()) == 1, "all or nothing"

    on_stage()(play)(bench, monkeypatch)


@on_stage()
async def test_another_protocol_is_refused_with_its_number(stage: Stage) -> None:
    maker = await running(stage)
    said = await answer(stage, AskChildren(PROTOCOL + 1, 7, maker.id, 1))
    assert said == Refused(7, f"the launcher speaks protocol {PROTOCOL}")


@on_stage()
async def test_a_child_waits_for_its_parents_the_maker_among_them(stage: Stage) -> None:
    maker = await running(stage)
    (first,) = (await add(stage, maker, new("first"))).ids
    (second,) = (await add(stage, maker, new("second", parents=(first, maker.id)))).ids
    await stage.until(lambda: (first, 1) in stage.agent.orders, "the first child")
    assert stage.jobs(ids=(second,))[0].state is State.AWAITING_PARENTS
    stage.agent.end((first, 1))
    await stage.settled()
    assert (second, 1) not in stage.agent.orders
    stage.agent.end((maker.id, 1))
    await stage.until(lambda: (second, 1) in stage.agent.orders, "the second child")


@on_stage()
async def test_an_evaluation_may_add_a_job_that_waits_for_it(stage: Stage) -> None:
    search = await stage.search()
    (one, *_) = await stage.evaluations(1, 2)
    [evaluation] = stage.jobs(name="task1")
    (child,) = (await add(stage, evaluation, new(parents=(evaluation.id,)))).ids
    assert stage.jobs(ids=(child,))[0].origin == search.origin
    stage.agent.end(one)
    await stage.until(lambda: (child, 1) in stage.agent.orders, "the child, while the search goes on")


@on_stage(workflow="W")
async def test_a_job_of_another_workflow_is_left_to_another_launcher(stage: Stage) -> None:
    maker = await running(stage)
    (other,) = (await add(stage, maker, new(workflow="V"))).ids
    await stage.settled()
    assert set(stage.agent.orders) == {(maker.id, 1)}
    assert stage.jobs(ids=(other,))[0].state is State.READY


@on_stage()
async def test_a_job_may_end_others_and_their_evaluations_with_them_but_not_itself(stage: Stage) -> None:
    search = await stage.search()
    evaluations = await stage.evaluations(1, 2)
    maker = await running(stage)
    (waiting,) = (await add(stage, maker, new("waiting", parents=(maker.id,)))).ids

    def kill(*ids: str) -> KillJobs:
        return KillJobs(PROTOCOL, 8, maker.id, 1, ids)

    assert "cannot kill itself" in (await answer(stage, kill(waiting, maker.id))).message
    assert "there is no job" in (await answer(stage, kill(waiting, "f" * 32))).message
    assert stage.jobs(ids=(waiting,))[0].state is State.AWAITING_PARENTS, "all or nothing"
    assert await answer(stage, kill(waiting, search.id)) == Accepted(8)
    await stage.until(lambda: len(stage.agent.stops) == 3, "the search and its evaluations to be stopped")
    assert set(stage.agent.stops) == {(search.id, 1), *evaluations}
    for key in list(stage.agent.stops):
        stage.agent.end(key, Outcome.KILLED)
    await stage.settled()
    assert {job.state for job in stage.jobs() if job.id != maker.id} == {State.USER_KILLED}
    assert await answer(stage, kill(waiting, search.id)) == Accepted(8), "they have ended: nothing changes"
    assert await answer(stage, kill()) == Accepted(8)
    [event] = [event for event in stage.store.events([waiting]) if event.new is State.USER_KILLED]
    assert event.message == f"killed by job p ({maker.id[:8]})"


@on_stage()
async def test_a_job_is_told_what_became_of_its_children(stage: Stage) -> None:
    maker, other = await running(stage), await running(stage)
    await add(stage, other, new("not_mine"))
    ids = (await add(stage, maker, new("good"), new("bad"), new("later", parents=(maker.id,)))).ids
    stage.agent.end((other.id, 1))
    for identifier in ids[:2]:
        await stage.until(lambda one=identifier: (one, 1) in stage.agent.orders, "its start")  # type: ignore[misc]
    stage.agent.end((ids[0], 1), objective=2.5)
    stage.agent.end((ids[1], 1), Outcome.ERROR)
    await stage.settled()
    told = await answer(stage, AskChildren(PROTOCOL, 9, maker.id, 1))
    assert isinstance(told, Children)
    assert [(one.name, one.state, one.attempt, one.objective) for one in told.jobs] == [
        ("good", "JOB_FINISHED", 1, 2.5),
        ("bad", "FAILED", 1, None),
        ("later", "AWAITING_PARENTS", 0, None),
    ]
    assert tuple(one.id for one in told.jobs) == ids
