"""What a launcher reads when it is told that something changed: that, and not all that waits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from nas_hpc.records import Job, Lease, new_id
from nas_hpc.states import State
from nas_hpc.store import reading
from nas_hpc.store.base import Claim
from tests.launcher.stage import Stage, on_stage, program

MANY = 20_000
FEW = 60
"""More than what changes in a test and what runs on four cores, less than what waits by far."""


async def crowded(stage: Stage, many: int) -> list[Job]:
    """So many jobs wait, of this launcher's; some run."""
    jobs = stage.add(*(program() for _ in range(many)))
    stage.wake()
    await stage.until(
        lambda: stage.agent.orders and len(stage.launcher.dispatcher.queue) > many - FEW, "jobs"
    )
    await stage.settled()
    return [job for job in jobs if job.id in stage.launcher.dispatcher.queue]


@pytest.mark.slow
@on_stage()
async def test_a_look_with_many_waiting_jobs_reads_what_changed_and_misses_nothing(stage: Stage) -> None:
    waiting = await crowded(stage, MANY)
    launcher, queue = stage.launcher, stage.launcher.dispatcher.queue
    read: list[object] = []
    with pytest.MonkeyPatch.context() as patch:
        make = reading.job_of
        patch.setattr(reading, "job_of", lambda row: read.append(row) or make(row))

        async def looks_until(so: Callable[[], object], what: str) -> None:
            read.clear()
            launcher.looks.soon()
            await stage.until(so, what)
            await stage.settled()
            assert len(read) < FEW, what

        [new] = stage.add(program())
        await looks_until(lambda: new.id in queue, "a new job")
        killed = waiting[10].id
        stage.set(State.USER_KILLED, killed)
        await looks_until(lambda: killed not in queue, "a kill")
        stage.set(State.RESTART_READY, killed)
        await looks_until(lambda: killed in queue, "a retry")
        other = Lease(new_id(), "elsewhere", "boot", 1, 1.0, "", 4e9)
        stage.store.open_lease(other, exclusive=False)
        taken = waiting[20].id
        assert stage.store.claim(other.id, [Claim(taken, ("node",))])
        await looks_until(lambda: taken not in queue, "another launcher's claim")
        key = next(iter(stage.agent.orders))
        stage.set(State.USER_KILLED, key[0])
        await looks_until(lambda: key in stage.agent.stops, "the kill of a running job")
        edited = waiting[30]
        stage.store.modify([replace(edited, args="other")])
        launcher.looks.soon(everything=True)
        await stage.until(lambda: queue.get(edited.id) == replace(edited, args="other"), "a change")
        assert len(queue) > MANY - FEW


@on_stage()
async def test_a_job_whose_parent_ends_here_starts_although_many_wait(stage: Stage) -> None:
    await crowded(stage, 10 * FEW)
    key = next(iter(stage.agent.orders))
    [child] = stage.add(program(parents=(key[0],)))
    stage.wake()
    await stage.until(lambda: stage.launcher.looks.children_wait, "the child")
    stage.agent.end(key)
    await stage.until(lambda: child.id in stage.launcher.dispatcher.queue, "the child's turn")
