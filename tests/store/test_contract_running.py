"""What every job database promises about running jobs, leases and history (``nas_hpc/store/base.py``)."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from nas_hpc.errors import LeaseLost, WrongCall
from nas_hpc.records import Attempt, Result, new_id
from nas_hpc.states import FINAL, Actor, Outcome, State, is_path
from nas_hpc.store import Claim, JobFilter
from nas_hpc.store.sql import SqlStore
from tests.store.supply import (
    AGAIN,
    ERROR,
    add,
    claim,
    ended,
    evaluation,
    hold,
    lease,
    path_of,
    person_job,
    run,
    state_of,
)

S = State


class TestClaim:
    def test_makes_jobs_running_with_a_new_attempt(self, store: SqlStore) -> None:
        mine = hold(store)
        one, two = add(store, person_job("one"), person_job("two"))
        won = claim(store, mine, two, one)
        assert won == [replace(job, state=S.RUNNING, attempt=1, lease=mine) for job in (two, one)]
        assert store.jobs(JobFilter()) == won[::-1]
        attempts = store.attempts([two.id, one.id])
        assert [(a.job, a.number, a.lease, a.result) for a in attempts] == [
            (j.id, 1, mine, None) for j in (one, two)
        ]
        assert (attempts[0].nodes, attempts[0].cores, attempts[0].gpus) == (("node1",), (0, 1), (2,))

    def test_wins_only_what_is_runnable_and_each_once(self, store: SqlStore) -> None:
        mine, other = hold(store), hold(store)
        one, two, three = add(store, *(person_job(str(number)) for number in range(3)))
        claim(store, other, one)
        store.set_state([two.id], S.USER_KILLED, Actor.COMMAND)
        assert [job.id for job in claim(store, mine, one, two, three, three, person_job())] == [three.id]
        assert len(store.attempts([one.id, two.id, three.id])) == 2

    def test_an_ended_or_unknown_lease_claims_nothing(self, store: SqlStore) -> None:
        mine = hold(store)
        (job,) = add(store, person_job())
        store.close_lease(mine, time.time())
        for dead in (mine, "unknown"):
            with pytest.raises(LeaseLost):
                claim(store, dead, job)
        assert state_of(store, job) is S.READY


class TestFinish:
    def test_closes_the_attempt_and_writes_an_event_per_state(self, store: SqlStore) -> None:
        mine = hold(store)
        (job,) = claim(store, mine, *add(store, person_job()))
        result = Result(Outcome.OK, 0.5, {"accuracy": [0.1, None]}, "", 0, 5.0, 7.5)
        (done,) = store.finish(mine, [replace(ended(job), result=result)])
        events = store.events([job.id])
        assert [event.new for event in events] == [S.READY, S.RUNNING, S.RUN_DONE, S.JOB_FINISHED]
        assert {event.message for event in events[2:]} == {"it ended"}
        assert done.order == events[-1].id
        assert done.job == store.jobs(JobFilter())[0] == replace(job, state=S.JOB_FINISHED, lease="")
        (attempt,) = store.attempts([job.id])
        assert done.attempt == attempt == Attempt(
            job.id, 1, mine, ("node1",), (0, 1), (2,), attempt.claimed, result, "last words"
        )  # fmt: skip

    @pytest.mark.parametrize("change", ["attempt", "lease", "twice", "killed"])
    def test_a_stale_end_changes_nothing(self, store: SqlStore, change: str) -> None:
        mine, other = hold(store), hold(store)
        (job,) = claim(store, mine, *add(store, person_job()))
        order = ended(job)
        if change == "attempt":
            store.finish(mine, [ended(job, AGAIN, Outcome.LOST)])
            claim(store, mine, job)
        elif change == "lease":
            order = replace(order, lease=other)
        elif change == "twice":
            store.finish(mine, [order])
        else:
            store.set_state([job.id], S.USER_KILLED, Actor.COMMAND)
        before = store.jobs(JobFilter()), store.attempts([job.id]), store.events()
        assert store.finish(mine, [order]) == []
        assert store.finish(other, [order]) == []
        assert (store.jobs(JobFilter()), store.attempts([job.id]), store.events()) == before

    def test_an_ended_lease_writes_nothing(self, store: SqlStore) -> None:
        mine = hold(store)
        (job,) = claim(store, mine, *add(store, person_job()))
        store.open_lease(lease(), ending=[mine], proven=True, exclusive=True)
        with pytest.raises(LeaseLost, match="may write nothing more"):
            store.finish(mine, [ended(job)])
        assert state_of(store, job) is S.RUNNING

    def test_a_path_that_the_table_does_not_know_is_refused(self, store: SqlStore) -> None:
        mine = hold(store)
        one, two = claim(store, mine, *add(store, person_job(), person_job()))
        for path in ((), (S.JOB_FINISHED,), (S.RUN_ERROR, S.RUN_DONE), (S.RESTART_READY, S.RUNNING)):
            with pytest.raises(WrongCall, match="no path"):
                store.finish(mine, [ended(one), ended(two, path)])
        assert store.counts(JobFilter()) == {S.RUNNING: 2}

    def test_output_that_is_no_text_is_kept_readable(self, store: SqlStore) -> None:
        mine = hold(store)
        (job,) = claim(store, mine, *add(store, person_job()))
        store.finish(
            mine, [replace(ended(job, ERROR, Outcome.ERROR, reason="\udcff"), tail="a\0b", message="\ud800")]
        )
        (attempt,) = store.attempts([job.id])
        assert attempt.tail == "a\\0b"
        assert attempt.result is not None
        assert "udcff" in attempt.result.reason

    def test_exchange_finishes_and_claims_or_does_neither(self, store: SqlStore) -> None:
        mine = hold(store)
        one, two = add(store, person_job("one"), person_job("two"))
        (one,) = claim(store, mine, one)
        finished, claimed = store.exchange(mine, [ended(one)], [Claim(two.id)])
        assert (finished[0].job.id, claimed[0].id) == (one.id, two.id)
        with pytest.raises(WrongCall, match="no path"):
            store.exchange(mine, [ended(claimed[0], (S.JOB_FINISHED,))], [])
        store.close_lease(mine, time.time())
        with pytest.raises(LeaseLost):
            store.exchange(mine, [ended(claimed[0])], [])
        assert state_of(store, two) is S.RUNNING


class TestFamilies:
    def test_a_child_becomes_ready_when_its_last_parent_is_finished(self, store: SqlStore) -> None:
        mine = hold(store)
        one, two = person_job("one"), person_job("two")
        child = person_job("child", parents=[one, two])
        add(store, one, two, child)
        run(store, mine, one)
        assert state_of(store, child) is S.AWAITING_PARENTS
        run(store, mine, two)
        assert state_of(store, child) is S.READY
        run(store, mine, child)

    def test_both_parents_in_one_batch_release_the_child(self, store: SqlStore) -> None:
        mine = hold(store)
        one, two = person_job("one"), person_job("two")
        child = person_job("child", parents=[one, two])
        add(store, one, two, child)
        store.finish(mine, [ended(job) for job in claim(store, mine, one, two)])
        assert state_of(store, child) is S.READY

    def test_a_failed_parent_fails_its_waiting_descendants_and_says_why(self, store: SqlStore) -> None:
        mine = hold(store)
        family = [person_job("root")]
        for number in range(400):  # deeper than Python's stack is
            family.append(person_job(f"n{number}", parents=[family[-1]]))
        add(store, *family)
        run(store, mine, family[0], ERROR)
        assert store.counts(JobFilter()) == {S.FAILED: len(family)}
        assert store.events([family[1].id])[-1].message == f"its parent root ({family[0].id[:8]}) is FAILED"

    def test_a_killed_parent_fails_its_waiting_children(self, store: SqlStore) -> None:
        parent = person_job("parent")
        child = person_job("child", parents=[parent])
        add(store, parent, child)
        store.set_state([parent.id], S.USER_KILLED, Actor.COMMAND)
        assert state_of(store, child) is S.FAILED
        assert "is USER_KILLED" in store.events([child.id])[-1].message

    def test_retried_together_the_child_waits_for_its_parent_again(self, store: SqlStore) -> None:
        mine = hold(store)
        parent = person_job("parent")
        child = person_job("child", parents=[parent])
        add(store, parent, child)
        run(store, mine, parent, ERROR)
        store.set_state([child.id, parent.id], S.RESTART_READY, Actor.COMMAND)
        assert (state_of(store, parent), state_of(store, child)) == (S.RESTART_READY, S.AWAITING_PARENTS)
        run(store, mine, parent)
        assert state_of(store, child) is S.READY

    def test_a_finished_parent_that_runs_again_counts_as_unfinished(self, store: SqlStore) -> None:
        mine = hold(store)
        one, two = person_job("one"), person_job("two")
        child = person_job("child", parents=[one, two])
        add(store, one, two, child)
        run(store, mine, one)
        store.set_state([one.id], S.RESTART_READY, Actor.COMMAND)
        run(store, mine, two)
        assert state_of(store, child) is S.AWAITING_PARENTS
        run(store, mine, one)
        run(store, mine, child)
        store.set_state([one.id, child.id], S.RESTART_READY, Actor.COMMAND)
        assert state_of(store, child) is S.AWAITING_PARENTS
        assert is_path(path_of(store, child))


class TestSetState:
    def test_kill_moves_what_may_be_killed_and_returns_it_as_it_was(self, store: SqlStore) -> None:
        mine = hold(store)
        ready, runs, done = add(store, *(person_job(name) for name in ("ready", "runs", "done")))
        run(store, mine, done)
        (runs,) = claim(store, mine, runs)
        before = store.set_state(
            [done.id, runs.id, ready.id, new_id()], S.USER_KILLED, Actor.COMMAND, "enough"
        )
        assert before == [ready, runs]
        assert store.counts(JobFilter()) == {S.USER_KILLED: 2, S.JOB_FINISHED: 1}
        assert store.events([runs.id])[-1].message == "enough"

    def test_kill_ends_the_running_attempt_and_frees_it_from_its_lease(self, store: SqlStore) -> None:
        mine = hold(store)
        (job,) = claim(store, mine, *add(store, person_job()))
        store.set_state([job.id], S.USER_KILLED, Actor.SEARCH, "search ended")
        (attempt,) = store.attempts([job.id])
        assert attempt.result is not None
        assert (attempt.result.outcome, attempt.result.reason) == (Outcome.KILLED, "search ended")
        assert attempt.result.start == attempt.claimed <= attempt.result.end
        assert store.jobs(JobFilter(lease=mine)) == []

    def test_retry_is_for_final_jobs_and_the_next_attempt_has_the_next_number(self, store: SqlStore) -> None:
        mine = hold(store)
        (job,) = add(store, person_job())
        run(store, mine, job, ERROR)
        assert store.set_state([job.id], S.RESTART_READY, Actor.SEARCH) == []
        assert len(store.set_state([job.id], S.RESTART_READY, Actor.COMMAND)) == 1
        assert store.set_state([job.id], S.RESTART_READY, Actor.COMMAND) == []
        (again,) = claim(store, mine, job)
        assert again.attempt == 2

    def test_running_is_reached_and_left_by_claims_and_their_ends_only(self, store: SqlStore) -> None:
        mine = hold(store)
        (job,) = add(store, person_job())
        with pytest.raises(WrongCall, match="by a claim"):
            store.set_state([job.id], S.RUNNING, Actor.LAUNCHER)
        claim(store, mine, job)
        for state in set(S) - {S.RUNNING, S.USER_KILLED}:
            assert store.set_state([job.id], state, Actor.LAUNCHER) == []


class TestLeases:
    def test_are_listed_from_the_oldest_with_the_live_ones_by_default(self, store: SqlStore) -> None:
        one, two = lease(), lease()
        for each in (one, two):
            store.open_lease(each, exclusive=False)
        store.close_lease(one.id, 99.0)
        store.close_lease(one.id, 100.0)
        assert store.leases() == [two]
        assert store.leases(live_only=False) == [replace(one, ended=99.0), two]

    def test_an_exclusive_one_is_refused_beside_a_live_one(self, store: SqlStore) -> None:
        first = lease(host="elsewhere")
        store.open_lease(first, exclusive=True)
        with pytest.raises(LeaseLost, match=r"host elsewhere, process 4711\) runs this site's jobs"):
            store.open_lease(lease(), exclusive=True)
        store.open_lease(lease(), exclusive=False)
        assert len(store.leases()) == 2

    def test_an_unexpired_one_is_taken_over_only_with_proof(self, store: SqlStore) -> None:
        old, new = lease(), lease()
        store.open_lease(old, exclusive=True)
        with pytest.raises(LeaseLost, match="may be alive"):
            store.open_lease(new, ending=[old.id], exclusive=True)
        assert store.leases() == [old]
        store.open_lease(new, ending=[old.id], proven=True, exclusive=True)
        assert store.leases() == [new]

    def test_an_expired_one_needs_no_proof_and_is_ended_by_one_launcher_only(self, store: SqlStore) -> None:
        old, new = lease(-1.0), lease()
        store.open_lease(old, exclusive=True)
        store.open_lease(new, ending=[old.id], exclusive=True)
        for dead in (old.id, "unknown"):
            with pytest.raises(LeaseLost, match="another launcher has taken over"):
                store.open_lease(lease(), ending=[dead], proven=True, exclusive=False)
        assert store.leases() == [new]

    def test_renewal_lengthens_a_live_one_and_fails_for_an_ended_one(self, store: SqlStore) -> None:
        one = lease()
        store.open_lease(one, exclusive=True)
        store.renew_lease(one.id, one.expires + 60)
        assert store.leases()[0].expires == one.expires + 60
        store.close_lease(one.id, time.time())
        with pytest.raises(LeaseLost):
            store.renew_lease(one.id, one.expires + 120)

    def test_adoption_moves_current_attempts_of_an_ended_lease(self, store: SqlStore) -> None:
        old, new = hold(store), lease()
        one, two, three = claim(store, old, *add(store, *(person_job(str(number)) for number in range(3))))
        store.finish(old, [ended(two)])
        with pytest.raises(LeaseLost, match="has not ended"):
            store.adopt(hold(store), old, [(one.id, 1)])
        store.open_lease(new, ending=[old], proven=True, exclusive=False)
        pairs = [(one.id, 9), (one.id, 1), (one.id, 1), (two.id, 1), (three.id, 2), (new_id(), 1)]
        assert store.adopt(new.id, old, pairs) == [(one.id, 1)]
        assert store.adopt(new.id, old, pairs) == []
        assert [job.id for job in store.jobs(JobFilter(lease=new.id))] == [one.id]
        assert len(store.finish(new.id, [ended(replace(one, lease=new.id))])) == 1
        with pytest.raises(LeaseLost):
            store.finish(old, [ended(three)])


class TestHistory:
    def test_finished_comes_in_the_order_of_the_ends_from_a_cursor_on(self, store: SqlStore) -> None:
        mine = hold(store)
        jobs = store.add_jobs(
            [evaluation("s", seq) for seq in range(1, 6)] + [evaluation("t", 1)], Actor.SEARCH
        )
        claimed = claim(store, mine, *jobs[:4], jobs[5])
        orders = [*reversed(claimed[1:]), claimed[0]]
        store.finish(mine, [ended(job, ERROR, Outcome.ERROR, reason="no") for job in orders[:2]])
        store.finish(mine, [ended(job, objective=1.0) for job in orders[2:]])
        store.set_state([jobs[4].id], S.USER_KILLED, Actor.SEARCH)
        found = store.finished("s")
        assert [one.job.seq for one in found] == [4, 3, 2, 1, 5]
        assert [one.job.state in FINAL for one in found] == [True] * 5
        results = [one.attempt.result if one.attempt else None for one in found]
        assert [result.outcome if result else None for result in results] == [
            Outcome.ERROR, Outcome.OK, Outcome.OK, Outcome.OK, None,
        ]  # fmt: skip
        assert store.finished("s", after=found[2].order) == found[3:]
        assert store.finished("s", after=found[0].order, limit=2) == found[1:3]
        assert store.finished("nobody") == []

    def test_a_retried_evaluation_appears_once_under_its_newest_end(self, store: SqlStore) -> None:
        mine = hold(store)
        one, two = store.add_jobs([evaluation("s", seq) for seq in (1, 2)], Actor.SEARCH)
        run(store, mine, one, ERROR)
        run(store, mine, two)
        store.set_state([one.id], S.RESTART_READY, Actor.COMMAND)
        assert [found.job.seq for found in store.finished("s")] == [2]
        run(store, mine, one)
        found = store.finished("s")
        assert [(each.job.seq, each.job.attempt) for each in found] == [(2, 1), (1, 2)]
        assert [attempt.number for attempt in store.attempts([one.id])] == [1, 2]

    def test_events_come_in_order_from_a_cursor_on(self, store: SqlStore) -> None:
        one, two = add(store, person_job("one"), person_job("two"))
        run(store, hold(store), one)
        events = store.events()
        assert [event.id for event in events] == sorted(event.id for event in events)
        assert store.events(after=events[1].id, limit=2) == events[2:4]
        assert store.events([two.id]) == [event for event in events if event.job == two.id]
        assert store.events([new_id()]) == []
