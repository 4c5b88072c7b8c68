"""What every job database promises (``nas_hpc/store/base.py``)."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from nas_hpc.errors import LeaseLost, StoreError, WrongCall
from nas_hpc.records import App, Attempt, Job, Origin, Resources, Result, new_id
from nas_hpc.states import FINAL, RUNNABLE, Actor, Outcome, State, is_path
from nas_hpc.store import Claim, JobFilter, open_store
from nas_hpc.store.sql import SqlStore
from tests.store.supply import AGAIN, DONE, ERROR, add, claim, ended, evaluation, hold, lease, path_of, person_job
from tests.store.supply import run, state_of

S = State


class TestApplications:
    def test_are_listed_by_name_as_they_were_put(self, store: SqlStore) -> None:
        apps = [App("b", "/bin/b -x", "second", True), App("a", "/bin/a")]
        for app in apps:
            store.put_app(app)
        store.put_app(apps[0])
        assert store.apps() == apps[::-1]

    def test_another_one_of_the_same_name_is_refused_unless_it_replaces(self, store: SqlStore) -> None:
        store.put_app(App("a", "/bin/a"))
        with pytest.raises(WrongCall, match="'a' exists already and runs '/bin/a'"):
            store.put_app(App("a", "/bin/other"))
        assert store.apps() == [App("a", "/bin/a")]
        store.put_app(App("a", "/bin/other"), replace=True)
        assert store.apps() == [App("a", "/bin/other")]

    def test_one_in_use_or_unknown_is_not_removed(self, store: SqlStore) -> None:
        store.put_app(App("a", "/bin/a"))
        (job,) = add(store, person_job(application="a"))
        with pytest.raises(WrongCall, match="READY, uses the application 'a'"):
            store.remove_app("a")
        with pytest.raises(WrongCall, match="no application 'b'; known: a"):
            store.remove_app("b")
        store.set_state([job.id], S.USER_KILLED, Actor.COMMAND)
        store.remove_app("a")
        assert store.apps() == []


class TestAddJobs:
    def test_a_job_comes_back_as_it_was_given(self, store: SqlStore, url: str) -> None:
        store.put_app(App("a", "/bin/a"))
        parent = person_job("parent")
        job = Job(
            new_id(), "näme", "W x", application="a", args="--flag 'a b' \udcff", environ={"A": "ü"},
            origin=Origin("/dir", ("/p", "/q"), "/bin/python", {"HOME": "/h"}),
            resources=Resources(2, 3, 4, 2, 1, 5, 1.5, 60.0), parents=(parent.id,), retries=3,
            data={"k": [1, {"x": None}, float("inf"), "\0"]}, created=123.25,
        )  # fmt: skip
        search = new_id()
        asked = evaluation(search, 7)
        returned = store.add_jobs([parent, job, asked], Actor.COMMAND)
        assert returned[1] == replace(job, state=S.AWAITING_PARENTS)
        with open_store(url) as other:
            assert other.jobs(JobFilter()) == returned
        assert returned[2] == replace(asked, state=S.READY, created=returned[2].created)
        assert abs(returned[2].created - time.time()) < 60

    def test_each_leaves_one_event_by_its_actor(self, store: SqlStore) -> None:
        (job,) = store.add_jobs([evaluation(new_id(), 1)], Actor.SEARCH)
        (event,) = store.events([job.id])
        assert (event.old, event.new, event.actor, event.attempt) == (S.CREATED, S.READY, "search", 0)

    def test_one_that_was_sent_before_is_the_same_job(self, store: SqlStore) -> None:
        search = new_id()
        first = store.add_jobs([evaluation(search, seq) for seq in (1, 2)], Actor.SEARCH)
        again = [evaluation(search, 2), evaluation(search, 3), evaluation(new_id(), 1)]
        second = store.add_jobs(again, Actor.SEARCH)
        assert second[0] == first[1]
        assert [job.id for job in second[1:]] == [job.id for job in again[1:]]
        assert len(store.jobs(JobFilter())) == len(store.events()) == 4

    def test_one_that_one_request_names_twice_is_inserted_once(self, store: SqlStore) -> None:
        one, two = evaluation("s", 1), evaluation("s", 1)
        mine = person_job()
        assert [job.id for job in store.add_jobs([one, two, mine, mine], Actor.SEARCH)] == [
            one.id, one.id, mine.id, mine.id,
        ]  # fmt: skip

    def test_a_persons_job_sent_twice_is_the_same_job(self, store: SqlStore) -> None:
        job = person_job()
        assert add(store, job) == add(store, job)

    def test_what_cannot_be_leaves_the_database_as_it_was(self, store: SqlStore) -> None:
        one, two = person_job("one"), person_job("two")
        circle = [replace(one, parents=(two.id,)), replace(two, parents=(one.id,))]
        wrong: list[tuple[list[Job], str]] = [
            ([person_job(), person_job(application="no")], "unknown application 'no'; known: none"),
            ([person_job(), person_job(parents=[one])], f"names the parent '{one.id}', which does not exist"),
            (circle, "cycle: one <- two <- one|cycle: two <- one <- two"),
            ([replace(one, parents=(one.id,))], "cycle: one <- one"),
            ([one, replace(two, parents=(one.id, one.id))], "names a parent twice"),
            ([replace(one, creator="x")], "creator 'x' and seq 0: both or none"),
            ([replace(one, seq=3)], "both or none"),
            ([replace(one, creator="x", seq=-1)], "seq from 1"),
            ([one, replace(two, data={"x": object()})], "job 'two' cannot be stored"),
            ([one, replace(two, name="\udcff")], "no text that can be stored"),
        ]
        for jobs, message in wrong:
            with pytest.raises(WrongCall, match=message):
                store.add_jobs(jobs, Actor.COMMAND)
            assert store.jobs(JobFilter()) == []
            assert store.events() == []

    def test_a_child_waits_unless_its_parents_are_finished(self, store: SqlStore) -> None:
        mine = hold(store)
        (parent,) = add(store, person_job("parent"))
        run(store, mine, parent)
        other = person_job("other")
        late, waits = add(store, person_job(parents=[parent]), other, person_job(parents=[parent, other]))[::2]
        assert (late.state, waits.state) == (S.READY, S.AWAITING_PARENTS)


class TestAddFinished:
    def test_a_cache_hit_is_finished_and_found_by_its_search(self, store: SqlStore) -> None:
        search = new_id()
        result = Result(Outcome.OK, 1.5, {"m": [1]}, "", 0, 10.0, 10.0)
        job = evaluation(search, 4)
        (hit,) = store.add_finished([(job, result)])
        assert hit.job.state is S.JOB_FINISHED
        assert hit.attempt is not None
        assert hit.attempt.result == result
        assert (hit.attempt.number, hit.attempt.lease) == (0, "")
        assert store.finished(search) == [hit]
        assert path_of(store, job) == [S.CREATED, S.JOB_FINISHED]

    def test_is_idempotent_as_add_jobs_is(self, store: SqlStore) -> None:
        search = new_id()
        first = store.add_finished([(evaluation(search, 1), Result(Outcome.OK, 1.0))])
        second = store.add_finished([(evaluation(search, 1), Result(Outcome.OK, 2.0))])
        assert first == second
        assert store.add_jobs([evaluation(search, 1)], Actor.SEARCH) == [first[0].job]


class TestFilters:
    def test_each_field_restricts(self, store: SqlStore) -> None:
        store.put_app(App("a", "x"))
        one, two = add(store, person_job("one", application="a"), person_job("two", workflow="V"))
        (three,) = store.add_jobs([evaluation(one.id, 1)], Actor.SEARCH)
        mine = hold(store)
        (two,) = claim(store, mine, two)
        by = {
            JobFilter(): [one, two, three],
            JobFilter(ids=(three.id, one.id)): [one, three],
            JobFilter(ids=(two.id[:12],)): [two],
            JobFilter(ids=(two.id[:8].upper(),), workflow="W"): [],
            JobFilter(workflow="W"): [one, three],
            JobFilter(name="one"): [one],
            JobFilter(states=frozenset({S.RUNNING})): [two],
            JobFilter(states=RUNNABLE, workflow="W"): [one, three],
            JobFilter(creator=one.id): [three],
            JobFilter(lease=mine): [two],
            JobFilter(application="a"): [one],
            JobFilter(limit=2): [one, two],
            JobFilter(limit=1, states=RUNNABLE): [one],
            JobFilter(limit=1, workflow="W", states=RUNNABLE | {S.RUNNING}): [one],
            JobFilter(limit=2, workflow="W"): [one, three],
            JobFilter(limit=1, ids=(two.id, three.id)): [two],
        }
        for where, expected in by.items():
            assert store.jobs(where) == expected, where
            if not where.limit:
                counted = store.counts(where)
                assert sum(counted.values()) == len(expected), where
                assert set(counted) == {job.state for job in expected}

    def test_more_ids_than_a_statement_takes_come_in_the_order_of_insertion(self, store: SqlStore) -> None:
        jobs = store.add_jobs([evaluation("s", seq) for seq in range(1, 2001)], Actor.SEARCH)
        assert store.jobs(JobFilter(ids=tuple(job.id for job in reversed(jobs)))) == jobs
        assert len(store.events([job.id for job in jobs], limit=700)) == 700
        assert [event.job for event in store.events(limit=3)] == [job.id for job in jobs[:3]]

    def test_a_prefix_that_fits_none_or_several_is_refused(self, store: SqlStore) -> None:
        one, two = (replace(person_job(name), id=f"abcdef{number}" + "0" * 25) for number, name in ((1, "x"), (2, "y")))
        add(store, one, two)
        assert store.jobs(JobFilter(ids=("abcdef1",)))[0].name == "x"
        for given, message in (
            ("abcdef", r"several jobs .* abcdef100000 \(x\), abcdef200000 \(y\)"),
            ("abcdef3", "no job whose id starts with abcdef3"),
            ("abc", "'abc' is no job id"),
            ("x%_*", "is no job id"),
            ("f" * 32, f"no job {'f' * 32}"),
        ):
            with pytest.raises(WrongCall, match=message):
                store.jobs(JobFilter(ids=(given,)))
            with pytest.raises(WrongCall, match=message):
                store.counts(JobFilter(ids=(given,)))


class TestModify:
    def test_replaces_what_may_change_and_nothing_else(self, store: SqlStore) -> None:
        (job,) = add(store, person_job())
        wish = replace(
            job, name="new", args="-x", environ={"A": "1"}, resources=Resources(3), retries=2, data={"a": 1},
            workflow="other", state=S.FAILED, attempt=9, origin=Origin("/elsewhere"),
        )  # fmt: skip
        store.modify([wish])
        (now,) = store.jobs(JobFilter())
        assert now == replace(wish, workflow="W", state=S.READY, attempt=0, origin=Origin())

    def test_refuses_all_if_one_runs_or_is_unknown(self, store: SqlStore) -> None:
        jobs = add(store, person_job("a"), person_job("b"))
        claim(store, hold(store), jobs[1])
        with pytest.raises(WrongCall, match="job 'b' .* is RUNNING"):
            store.modify([replace(job, args="changed") for job in jobs])
        with pytest.raises(WrongCall, match="there is no job"):
            store.modify([replace(jobs[0], args="changed"), person_job()])
        assert [job.args for job in store.jobs(JobFilter())] == ["", ""]

    def test_new_parents_hold_a_job_back_and_none_releases_it(self, store: SqlStore) -> None:
        parent, child = add(store, person_job("parent"), person_job("child"))
        store.modify([replace(child, parents=(parent.id,))])
        assert state_of(store, child) is S.AWAITING_PARENTS
        assert claim(store, hold(store), child) == []
        store.modify([replace(child, parents=())])
        assert state_of(store, child) is S.READY
        assert is_path(path_of(store, child))

    def test_a_cycle_through_others_is_refused(self, store: SqlStore) -> None:
        one = person_job("one")
        two = person_job("two", parents=[one])
        three = person_job("three", parents=[two])
        add(store, one, two, three)
        before = store.jobs(JobFilter())
        with pytest.raises(WrongCall, match="cycle"):
            store.modify([replace(one, parents=(three.id,))])
        assert store.jobs(JobFilter()) == before


class TestRemove:
    def test_takes_attempts_events_and_evaluations_along(self, store: SqlStore) -> None:
        mine = hold(store)
        search, other = add(store, person_job("search"), person_job("other"))
        (task,) = store.add_jobs([evaluation(search.id, 1)], Actor.SEARCH)
        run(store, mine, task)
        run(store, mine, search)
        removed = store.remove(JobFilter(ids=(search.id,)))
        assert [job.id for job in removed] == [search.id, task.id]
        assert store.jobs(JobFilter()) == [other]
        assert store.attempts([search.id, task.id]) == []
        assert {event.job for event in store.events()} == {other.id}

    def test_refuses_all_while_one_runs(self, store: SqlStore) -> None:
        (search,) = add(store, person_job("search"))
        (task,) = store.add_jobs([evaluation(search.id, 1)], Actor.SEARCH)
        claim(store, hold(store), task)
        with pytest.raises(WrongCall, match="job 'task1' .* is RUNNING"):
            store.remove(JobFilter(ids=(search.id,)))
        assert len(store.jobs(JobFilter())) == 2

    def test_refuses_a_parent_without_its_children(self, store: SqlStore) -> None:
        parent = person_job("parent")
        add(store, parent, person_job("child", parents=[parent]))
        with pytest.raises(WrongCall, match="'parent' .* is a parent of jobs that stay"):
            store.remove(JobFilter(name="parent"))
        assert len(store.remove(JobFilter())) == 2
        assert store.events() == []

    def test_numbers_of_removed_events_are_not_used_again(self, store: SqlStore) -> None:
        add(store, person_job())
        (last,) = store.events()
        store.remove(JobFilter())
        add(store, person_job())
        assert store.events(after=last.id)[0].id > last.id


class TestClaim:
    def test_makes_jobs_running_with_a_new_attempt(self, store: SqlStore) -> None:
        mine = hold(store)
        one, two = add(store, person_job("one"), person_job("two"))
        won = claim(store, mine, two, one)
        assert won == [replace(job, state=S.RUNNING, attempt=1, lease=mine) for job in (two, one)]
        assert store.jobs(JobFilter()) == won[::-1]
        attempts = store.attempts([two.id, one.id])
        assert [(a.job, a.number, a.lease, a.result) for a in attempts] == [(j.id, 1, mine, None) for j in (one, two)]
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
        store.finish(mine, [replace(ended(job, ERROR, Outcome.ERROR, reason="\udcff"), tail="a\0b", message="\ud800")])
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
        before = store.set_state([done.id, runs.id, ready.id, new_id()], S.USER_KILLED, Actor.COMMAND, "enough")
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
        pairs = [(one.id, 1), (two.id, 1), (three.id, 2), (new_id(), 1)]
        assert store.adopt(new.id, old, pairs) == [(one.id, 1)]
        assert store.adopt(new.id, old, pairs) == []
        assert [job.id for job in store.jobs(JobFilter(lease=new.id))] == [one.id]
        assert len(store.finish(new.id, [ended(replace(one, lease=new.id))])) == 1
        with pytest.raises(LeaseLost):
            store.finish(old, [ended(three)])


class TestHistory:
    def test_finished_comes_in_the_order_of_the_ends_from_a_cursor_on(self, store: SqlStore) -> None:
        mine = hold(store)
        jobs = store.add_jobs([evaluation("s", seq) for seq in range(1, 6)] + [evaluation("t", 1)], Actor.SEARCH)
        claimed = claim(store, mine, *jobs[:4], jobs[5])
        orders = [*reversed(claimed[1:]), claimed[0]]
        store.finish(mine, [ended(job, ERROR, Outcome.ERROR, reason="no") for job in orders[:2]])
        store.finish(mine, [ended(job, objective=1.0) for job in orders[2:]])
        store.set_state([jobs[4].id], S.USER_KILLED, Actor.SEARCH)
        found = store.finished("s")
        assert [one.job.seq for one in found] == [4, 3, 2, 1, 5]
        assert [one.job.state in FINAL for one in found] == [True] * 5
        assert [one.attempt.result.outcome if one.attempt and one.attempt.result else None for one in found] == [
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


class TestTransaction:
    def test_calls_inside_are_committed_together_or_not_at_all(self, store: SqlStore, url: str) -> None:
        with open_store(url) as other:
            with store.transaction():
                add(store, person_job("one"))
                assert len(store.jobs(JobFilter())) == 1
                assert other.jobs(JobFilter()) == []
            assert len(other.jobs(JobFilter())) == 1
            with pytest.raises(ZeroDivisionError), store.transaction():
                add(store, person_job("two"))
                raise ZeroDivisionError
            assert len(other.jobs(JobFilter())) == 1

    def test_a_refusal_inside_undoes_itself_alone(self, store: SqlStore) -> None:
        with store.transaction():
            add(store, person_job("one"))
            with pytest.raises(WrongCall), store.transaction():
                add(store, person_job("two"))
                add(store, person_job("three", application="no"))
            with pytest.raises(LeaseLost):
                claim(store, "nobody", person_job())
        assert [job.name for job in store.jobs(JobFilter())] == ["one"]

    def test_a_row_that_the_database_refuses_is_a_store_error(self, store: SqlStore) -> None:
        (job,) = add(store, person_job())
        with pytest.raises(StoreError, match="refused a row"):
            store.add_jobs([replace(evaluation("s", 1), id=job.id)], Actor.SEARCH)
        assert len(store.jobs(JobFilter())) == 1

    def test_no_path_of_events_leaves_the_table(self, store: SqlStore) -> None:
        mine = hold(store)
        jobs = add(store, *(person_job(str(number)) for number in range(4)))
        run(store, mine, jobs[0])
        run(store, mine, jobs[1], ERROR)
        run(store, mine, jobs[2], (S.RUN_TIMEOUT, S.RESTART_READY))
        store.set_state([job.id for job in jobs], S.USER_KILLED, Actor.COMMAND)
        store.set_state([job.id for job in jobs], S.RESTART_READY, Actor.COMMAND)
        for job in jobs:
            path = path_of(store, job)
            assert is_path(path)
            assert path[-1] is state_of(store, job) is S.RESTART_READY
        assert DONE[0] in path_of(store, jobs[0])
