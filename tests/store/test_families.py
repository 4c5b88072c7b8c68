"""What a job database does with children when their parents fail, are killed, or are retried."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import pytest

from nas_hpc.records import Job, ParentFailure, Stages
from nas_hpc.states import FINAL, Actor, State, is_path
from nas_hpc.store import JobFilter
from nas_hpc.store.sql import SqlStore
from tests.store.supply import ERROR, add, hold, path_of, person_job, run, state_of

S = State
RUN, WAIT = ParentFailure.RUN, ParentFailure.WAIT


def child(name: str, policy: ParentFailure, *parents: Job) -> Job:
    """A child that has that policy."""
    return replace(person_job(name, parents=parents), stages=Stages(on_parent_failure=policy))


def retry(store: SqlStore, *jobs: Job) -> list[str]:
    """Names of the jobs that moved."""
    moved = store.set_state([job.id for job in jobs], S.RESTART_READY, Actor.COMMAND, "retried")
    return [job.name for job in moved]


def kill(store: SqlStore, *jobs: Job) -> None:
    store.set_state([job.id for job in jobs], S.USER_KILLED, Actor.COMMAND)


def states(store: SqlStore, jobs: Sequence[Job]) -> list[State]:
    found = {job.id: job.state for job in store.jobs(JobFilter())}
    return [found[job.id] for job in jobs]


class TestPolicies:
    @pytest.mark.parametrize("end", ["fails", "is killed"])
    def test_each_child_fares_by_its_own_policy_in_the_commit_of_its_parents_end(
        self, store: SqlStore, end: str
    ) -> None:
        mine = hold(store)
        parent = person_job("parent")
        fails, runs, waits = children = [child(p.value, p, parent) for p in ParentFailure]
        add(store, parent, *children)
        if end == "fails":
            run(store, mine, parent, ERROR)
        else:
            kill(store, parent)
        assert states(store, children) == [S.FAILED, S.READY, S.AWAITING_PARENTS]
        last = [store.events([job.id])[-1] for job in (parent, fails, runs)]
        assert len({event.time for event in last}) <= 2  # the parent's, and that of all that follows
        said = f"its parent parent ({parent.id[:8]}) is {last[0].new.value}"
        assert [event.message for event in last[1:]] == [said, f"{said}: it runs all the same"]
        assert path_of(store, runs) == [S.CREATED, S.AWAITING_PARENTS, S.READY]
        assert path_of(store, waits) == [S.CREATED, S.AWAITING_PARENTS]

    def test_a_child_that_runs_all_the_same_waits_for_the_end_of_all_parents(self, store: SqlStore) -> None:
        mine = hold(store)
        parents = [person_job(name) for name in "abc"]
        collect = child("collect", RUN, *parents)
        add(store, *parents, collect)
        run(store, mine, parents[0], ERROR)
        kill(store, parents[1])
        assert state_of(store, collect) is S.AWAITING_PARENTS
        run(store, mine, parents[2])
        assert state_of(store, collect) is S.READY

    def test_a_child_that_waits_runs_after_its_parents_retry(self, store: SqlStore) -> None:
        mine = hold(store)
        parent = person_job("parent")
        patient = child("patient", WAIT, parent)
        add(store, parent, patient)
        run(store, mine, parent, ERROR)
        assert retry(store, parent) == ["parent"]
        run(store, mine, parent)
        assert path_of(store, patient) == [S.CREATED, S.AWAITING_PARENTS, S.READY]

    def test_added_after_the_failure_only_one_that_runs_all_the_same_is_ready(self, store: SqlStore) -> None:
        mine = hold(store)
        parent = person_job("parent")
        add(store, parent)
        run(store, mine, parent, ERROR)
        late = [child(p.value, p, parent) for p in ParentFailure]
        assert [job.state for job in add(store, *late)] == [S.AWAITING_PARENTS, S.READY, S.AWAITING_PARENTS]

    def test_a_retried_parent_holds_back_who_still_waits_for_its_end(self, store: SqlStore) -> None:
        mine = hold(store)
        one, two = person_job("one"), person_job("two")
        collect = child("collect", RUN, one, two)
        add(store, one, two, collect)
        run(store, mine, one, ERROR)
        retry(store, one)
        run(store, mine, two)
        assert state_of(store, collect) is S.AWAITING_PARENTS
        run(store, mine, one, ERROR)
        assert state_of(store, collect) is S.READY

    def test_a_changed_policy_holds_for_the_parents_that_have_failed(self, store: SqlStore) -> None:
        mine = hold(store)
        parent = person_job("parent")
        patient = child("patient", WAIT, parent)
        add(store, parent, patient)
        run(store, mine, parent, ERROR)
        store.modify([replace(patient, stages=Stages(on_parent_failure=RUN))])
        assert state_of(store, patient) is S.READY
        assert store.jobs(JobFilter(name="patient"))[0].stages.on_parent_failure is RUN
        store.modify([patient])
        assert state_of(store, patient) is S.AWAITING_PARENTS
        assert is_path(path_of(store, patient))


class TestRetry:
    def test_descendants_that_failed_with_a_parent_wait_again_when_it_is_retried(
        self, store: SqlStore
    ) -> None:
        mine = hold(store)
        root = person_job("root")
        left, right = (person_job(name, parents=[root]) for name in ("left", "right"))
        longer = person_job("longer", parents=[right])
        last = person_job("last", parents=[left, longer])
        family = [root, left, right, longer, last]
        add(store, *family)
        run(store, mine, root, ERROR)
        assert states(store, family) == [S.FAILED] * 5
        assert retry(store, root) == ["root", "left", "right", "longer", "last"]
        assert states(store, family) == [S.RESTART_READY] + [S.AWAITING_PARENTS] * 4
        assert store.events([left.id])[-1].message == f"its parent root ({root.id[:8]}) was retried"
        for job in family:
            run(store, mine, job)
        assert path_of(store, last) == [
            S.CREATED, S.AWAITING_PARENTS, S.FAILED, S.AWAITING_PARENTS, S.READY,
            S.RUNNING, S.RUN_DONE, S.JOB_FINISHED,
        ]  # fmt: skip

    def test_a_child_of_another_failed_parent_stays_failed_until_that_is_retried_too(
        self, store: SqlStore
    ) -> None:
        mine = hold(store)
        one, two = person_job("one"), person_job("two")
        both = person_job("both", parents=[one, two])
        add(store, one, two, both)
        run(store, mine, one, ERROR)
        kill(store, two)
        assert retry(store, one) == ["one"]
        assert state_of(store, both) is S.FAILED
        assert retry(store, two) == ["two", "both"]
        assert state_of(store, both) is S.AWAITING_PARENTS

    def test_a_child_that_failed_itself_or_was_killed_stays_as_it_is(self, store: SqlStore) -> None:
        mine = hold(store)
        parent = person_job("parent")
        ran, killed = child("ran", RUN, parent), person_job("killed", parents=[parent])
        add(store, parent, ran, killed)
        kill(store, killed)
        run(store, mine, parent, ERROR)
        run(store, mine, ran, ERROR)
        assert retry(store, parent) == ["parent"]
        assert states(store, [ran, killed]) == [S.FAILED, S.USER_KILLED]

    def test_parents_and_children_retried_in_one_call_are_each_moved_once(self, store: SqlStore) -> None:
        mine = hold(store)
        parent = person_job("parent")
        one, two = person_job("one", parents=[parent]), person_job("two", parents=[parent])
        add(store, parent, one, two)
        run(store, mine, parent, ERROR)
        assert retry(store, one, parent) == ["parent", "one", "two"]
        assert states(store, [parent, one, two]) == [S.RESTART_READY] + [S.AWAITING_PARENTS] * 2
        assert len(store.events([one.id])) == len(store.events([two.id])) == 3


class TestLargeFamilies:
    def test_a_thousand_children_of_one_parent_cost_a_handful_of_queries(
        self, store: SqlStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        mine = hold(store)
        parent = person_job("parent")
        children = [child(str(n), list(ParentFailure)[n % 3], parent) for n in range(999)]
        last = child("last", RUN, *children)
        add(store, parent, *children, last)
        asked = []
        fetch = store._session.sending._send
        monkeypatch.setattr(store._session.sending, "_send", lambda *a: asked.append(1) or fetch(*a))
        run(store, mine, parent, ERROR)
        assert len(asked) < 25  # the lists are asked for in parts of 512
        assert store.counts(JobFilter()) == {S.FAILED: 334, S.READY: 333, S.AWAITING_PARENTS: 334}
        asked.clear()
        assert len(retry(store, parent)) == 334
        assert len(asked) < 35
        run(store, mine, parent)
        assert store.counts(JobFilter()) == {S.JOB_FINISHED: 1, S.READY: 999, S.AWAITING_PARENTS: 1}

    def test_random_graphs_come_to_the_end_that_their_policies_say(self, store: SqlStore) -> None:
        seed = random.randrange(10**6)
        print(f"seed {seed}")
        dice = random.Random(seed)
        mine = hold(store)
        family: list[Job] = []
        for number in range(60):
            parents = dice.sample(family, min(len(family), dice.randrange(4)))
            family.append(child(f"n{number}", dice.choice(list(ParentFailure)), *parents))
        shuffled = dice.sample(family, len(family))
        add(store, *shuffled)
        expected: dict[str, State] = {}
        bad = {job.id for job in family if dice.random() < 0.3}
        for job in family:  # parents come before their children
            above = [expected[parent] for parent in job.parents]
            policy = job.stages.on_parent_failure
            own = S.FAILED if job.id in bad else S.JOB_FINISHED
            lost = [state for state in above if state is S.FAILED]
            if S.AWAITING_PARENTS in above and not (lost and policy is ParentFailure.FAIL):
                own = S.AWAITING_PARENTS
            elif lost and policy is not RUN:
                own = S.FAILED if policy is ParentFailure.FAIL else S.AWAITING_PARENTS
            expected[job.id] = own
        while ready := store.jobs(JobFilter(states=frozenset({S.READY}))):
            job = dice.choice(ready)
            run(store, mine, job, ERROR if job.id in bad else (S.RUN_DONE, S.JOB_FINISHED))
        assert {job.id: job.state for job in store.jobs(JobFilter())} == expected
        for job in family:
            assert is_path(path_of(store, job))
        retry(store, *(job for job in family if expected[job.id] in FINAL))
        while ready := store.jobs(JobFilter(states=frozenset({S.READY, S.RESTART_READY}))):
            run(store, mine, dice.choice(ready))
        assert store.counts(JobFilter()) == {S.JOB_FINISHED: len(family)}
