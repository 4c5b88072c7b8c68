"""What has changed since an event: how a launcher learns of others' doings without reading all that waits."""

from __future__ import annotations

from nas_hpc.states import Actor, State
from nas_hpc.store import Claim, JobFilter
from nas_hpc.store.sql import SqlStore
from tests.store.supply import add, claim, ended, hold, person_job


def test_jobs_with_newer_events_are_told_as_they_are_now_and_no_others(store: SqlStore) -> None:
    assert store.last_event() == 0
    mine, others = hold(store), hold(store)
    quiet, waits, killed, here, there, done = add(store, *(person_job(str(n)) for n in range(6)))
    foreign = add(store, person_job("foreign", workflow="V"))[0]
    after = store.last_event()
    store.set_state([waits.id], State.USER_KILLED, Actor.COMMAND)
    store.set_state([waits.id], State.RESTART_READY, Actor.COMMAND)
    store.set_state([killed.id, foreign.id], State.USER_KILLED, Actor.COMMAND)
    claim(store, mine, here)
    claim(store, others, there)
    store.finish(others, [ended(one) for one in claim(store, others, done)])
    new = add(store, person_job("new"))[0]
    child = add(store, person_job("child", parents=[here]))[0]
    found = store.changed(after, "W", mine)
    assert found.jobs == store.jobs(JobFilter(ids=(waits.id, here.id, new.id, child.id)))
    assert sorted(found.others) == sorted([killed.id, there.id, done.id])
    assert quiet.id not in {job.id for job in found.jobs}
    everywhere = store.changed(after, "", mine)
    assert everywhere.jobs == found.jobs
    assert set(everywhere.others) - set(found.others) == {foreign.id}
    also = store.changed(store.last_event(), "W", mine, [quiet.id, done.id, foreign.id, "f" * 32])
    assert (also.jobs, also.others) == (store.jobs(JobFilter(ids=(quiet.id,))), [done.id])
    last = store.last_event()
    assert last == store.events()[-1].id
    assert store.changed(last, "W", mine).jobs == store.changed(last, "W", mine).others == []


def test_thousands_of_changes_are_told_completely(store: SqlStore) -> None:
    mine = hold(store)
    jobs = add(store, *(person_job(str(n)) for n in range(1500)))
    won = store.claim(mine, [Claim(job.id, ("node",), (0,)) for job in jobs[:700]])
    store.finish(mine, [ended(job) for job in won[:600]])
    found = store.changed(0, "", mine)
    assert [job.id for job in found.jobs] == [job.id for job in jobs[600:]]
    assert sorted(found.others) == sorted(job.id for job in jobs[:600])
