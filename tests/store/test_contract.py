"""What every job database promises about applications, jobs and transactions (``nas_hpc/store/base.py``)."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

import pytest

from nas_hpc.errors import LeaseLost, StoreError, WrongCall
from nas_hpc.records import App, Job, Origin, Resources, Result, new_id
from nas_hpc.states import RUNNABLE, Actor, Outcome, State, is_path
from nas_hpc.store import Claim, JobFilter, open_store
from nas_hpc.store.sql import SqlStore
from tests.store.supply import (
    DONE,
    ERROR,
    add,
    claim,
    ended,
    evaluation,
    hold,
    path_of,
    person_job,
    run,
    state_of,
)

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
            data={"k": [1, {"x": None}, float("inf"), "\0"]}, made_by=parent.id, created=123.25,
        )  # fmt: skip
        search = new_id()
        asked = evaluation(search, 7)
        assert asked.evaluation is not None
        program = replace(asked.evaluation, argv=("/bin/a", "b c"), notes={"told": 3})
        asked = replace(asked, evaluation=program, application="a")
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

    def test_numbers_far_apart_are_recognised_too(self, store: SqlStore) -> None:
        first = store.add_jobs([evaluation("s", seq) for seq in (1, 50, 9000)], Actor.SEARCH)
        again = store.add_jobs([evaluation("s", seq) for seq in (9000, 4, 1)], Actor.SEARCH)
        assert (again[0], again[2]) == (first[2], first[0])
        assert [job.seq for job in store.jobs(JobFilter())] == [1, 50, 9000, 4]

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
            (circle, r"cycle: (one|two) \(\w{8}\) <- (two|one) \(\w{8}\) <- (one|two) \(\w{8}\); "),
            ([replace(one, parents=(one.id,))], rf"cycle: one \({one.id[:8]}\) <- one \({one.id[:8]}\)"),
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
        late, waits = add(store, person_job(parents=[parent]), other, person_job(parents=[parent, other]))[
            ::2
        ]
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

    def test_one_that_could_never_run_is_failed_with_its_reason(self, store: SqlStore) -> None:
        search = new_id()
        result = Result(Outcome.ERROR, reason="ValueError: no such machine", start=10.0, end=10.0)
        job = evaluation(search, 4)
        (failed,) = store.add_finished([(job, result)])
        assert failed.job.state is S.FAILED
        assert failed.attempt is not None
        assert failed.attempt.result is not None
        assert failed.attempt.result.reason == "ValueError: no such machine"
        assert store.finished(search)[0].job == failed.job
        assert path_of(store, job) == [S.CREATED, S.FAILED]
        assert store.events([job.id])[0].message == failed.attempt.result.reason

    def test_is_idempotent_as_add_jobs_is(self, store: SqlStore) -> None:
        search = new_id()
        first = store.add_finished([(evaluation(search, 1), Result(Outcome.OK, 1.0))])
        second = store.add_finished([(evaluation(search, 1), Result(Outcome.OK, 2.0))])
        assert first == second
        assert store.add_jobs([evaluation(search, 1)], Actor.SEARCH) == [first[0].job]


class TestFilters:
    def test_each_field_restricts(self, store: SqlStore) -> None:
        store.put_app(App("a", "x"))
        one, two = person_job("one", application="a"), person_job("two", workflow="V")
        one, two = add(store, one, replace(two, made_by=one.id, data={"made_by": "x" * 32}))
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
            JobFilter(made_by=one.id): [two],
            JobFilter(made_by=one.id, workflow="W"): [],
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
        one, two = (
            replace(person_job(name), id=f"abcdef{number}" + "0" * 25)
            for number, name in ((1, "x"), (2, "y"))
        )
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


class TestTransaction:
    @staticmethod
    def _fail_halfway(store: SqlStore) -> None:
        with store.transaction():
            add(store, person_job("two"))
            raise ZeroDivisionError

    @staticmethod
    def _be_refused_halfway(store: SqlStore) -> None:
        with store.transaction():
            add(store, person_job("two"))
            add(store, person_job("three", application="no"))

    @staticmethod
    def _go_on_after_a_refusal(store: SqlStore, refused: Callable[[], object]) -> None:
        with store.transaction():
            add(store, person_job("three"))
            with suppress(WrongCall):
                refused()

    def test_calls_inside_are_committed_together_or_not_at_all(self, store: SqlStore, url: str) -> None:
        with open_store(url) as other:
            with store.transaction():
                add(store, person_job("one"))
                assert len(store.jobs(JobFilter())) == 1
                assert other.jobs(JobFilter()) == []
            assert len(other.jobs(JobFilter())) == 1
            with pytest.raises(ZeroDivisionError):
                self._fail_halfway(store)
            assert len(other.jobs(JobFilter())) == 1

    def test_a_refusal_inside_undoes_itself_alone(self, store: SqlStore) -> None:
        with store.transaction():
            add(store, person_job("one"))
            with pytest.raises(WrongCall):
                self._be_refused_halfway(store)
            with pytest.raises(LeaseLost):
                claim(store, "nobody", person_job())
        assert [job.name for job in store.jobs(JobFilter())] == ["one"]

    def test_a_call_that_is_refused_halfway_takes_its_transaction_with_it(self, store: SqlStore) -> None:
        mine = hold(store)
        (job,) = claim(store, mine, *add(store, person_job("one")))
        (other,) = add(store, person_job("two"))
        nowhere = [Claim(other.id, nodes=(object(),))]  # type: ignore[arg-type]
        with pytest.raises(WrongCall, match="a place cannot be stored"):
            self._go_on_after_a_refusal(store, lambda: store.exchange(mine, [ended(job)], nowhere))
        assert [(one.name, one.state) for one in store.jobs(JobFilter())] == [
            ("one", S.RUNNING), ("two", S.READY),
        ]  # fmt: skip
        with store.transaction():
            add(store, person_job("three"))
            with pytest.raises(WrongCall, match="a place cannot be stored"), store.transaction():
                store.exchange(mine, [ended(job)], nowhere)
            add(store, person_job("four"))
        assert [one.name for one in store.jobs(JobFilter())] == ["one", "two", "three", "four"]
        assert state_of(store, job) is S.RUNNING

    def test_numbers_of_events_grow_without_a_gap_past_what_was_undone(self, store: SqlStore) -> None:
        with store.transaction():
            with pytest.raises(ZeroDivisionError):
                self._fail_halfway(store)
            add(store, person_job("one"))
            with pytest.raises(WrongCall):
                self._be_refused_halfway(store)
            add(store, person_job("two"), person_job("three"))
        add(store, person_job("four"))
        assert [event.id for event in store.events()] == [1, 2, 3, 4]

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
