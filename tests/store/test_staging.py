"""What a job database promises about jobs that are held for what is done before and after their attempts."""

from __future__ import annotations

import sqlite3
import time
from dataclasses import replace
from pathlib import Path

import pytest

from nas_hpc.errors import LeaseLost, SchemaMismatch, WrongCall
from nas_hpc.records import App, Job, ParentFailure, Stages
from nas_hpc.states import Actor, Outcome, State
from nas_hpc.store import JobFilter, open_store
from nas_hpc.store.base import Advance
from nas_hpc.store.sql import SqlStore
from tests.store.supply import add, claim, ended, hold, lease, path_of, person_job, run, state_of

S = State
ALL = Stages("pre 'a b'", "", "*.dat \udcff", True, True, ParentFailure.RUN)


def step(job: Job, *path: State, message: str = "") -> Advance:
    return Advance(job.id, job.attempt, job.state, path, message)


def held(store: SqlStore, mine: str, *path: State) -> Job:
    """A job whose attempt has ended along ``path`` under ``mine``."""
    (job,) = claim(store, mine, *add(store, person_job()))
    outcome = Outcome.OK if path[0] is S.RUN_DONE else Outcome.ERROR
    (done,) = store.finish(mine, [ended(job, path, outcome)])
    return done.job


def test_stages_of_applications_and_jobs_come_back_as_they_were_given(store: SqlStore, url: str) -> None:
    plain = App("plain", "/bin/plain")
    full = App("full", "/bin/full", "all of it", True, "/etc/env.sh", "/bin/pre -x", "/bin/post")
    store.put_app(plain)
    store.put_app(full)
    store.put_app(full)
    with pytest.raises(WrongCall, match="'full'"):
        store.put_app(replace(full, postprocess=""))
    (job,) = add(store, replace(person_job(), stages=ALL))
    with open_store(url) as other:
        assert other.apps() == [full, plain]
        assert other.jobs(JobFilter())[0].stages == ALL
    store.modify([replace(job, stages=Stages(preprocess=""))])
    assert store.jobs(JobFilter())[0].stages == Stages(preprocess="")
    store.put_app(replace(full, preprocess=""), replace=True)
    assert store.apps()[0].preprocess == ""


class TestHold:
    def test_a_held_job_is_nobody_elses_while_the_lease_lives(self, store: SqlStore) -> None:
        mine, other = hold(store), hold(store)
        one, two = add(store, person_job("one"), person_job("two"))
        assert [job.id for job in store.hold(mine, [two.id, one.id, two.id])] == [two.id, one.id]
        assert store.hold(other, [one.id, two.id]) == []
        assert store.hold(mine, [one.id]) == [replace(one, lease=mine)] == store.jobs(JobFilter(name="one"))
        store.open_lease(lease(), ending=[mine], proven=True, exclusive=False)
        assert [job.lease for job in store.hold(other, [one.id, two.id])] == [other, other]
        assert path_of(store, one) == [S.CREATED, S.READY]

    def test_only_what_waits_for_an_attempt_or_has_ended_one_is_held(self, store: SqlStore) -> None:
        mine = hold(store)
        ready, runs, killed, done = add(store, *(person_job(str(n)) for n in range(4)))
        child = person_job("child", parents=[runs])
        add(store, child)
        claim(store, mine, runs)
        store.set_state([killed.id], S.USER_KILLED, Actor.COMMAND)
        run(store, mine, done)
        ids = [job.id for job in (ready, runs, killed, done, child)]
        assert [job.id for job in store.hold(mine, [*ids, "f" * 32])] == [ready.id]

    def test_an_ended_lease_holds_and_advances_nothing(self, store: SqlStore) -> None:
        mine = hold(store)
        (job,) = add(store, person_job())
        (job,) = store.hold(mine, [job.id])
        store.close_lease(mine, time.time())
        with pytest.raises(LeaseLost):
            store.hold(mine, [job.id])
        with pytest.raises(LeaseLost):
            store.advance(mine, [step(job, S.PREPROCESSED)])
        assert state_of(store, job) is S.READY


class TestAdvance:
    def test_releases_the_job_and_records_every_state(self, store: SqlStore) -> None:
        mine = hold(store)
        (job,) = store.hold(mine, [add(store, person_job())[0].id])
        (moved,) = store.advance(mine, [step(job, S.PREPROCESSED, message="3 files linked")])
        assert moved.job == replace(job, state=S.PREPROCESSED, lease="") == store.jobs(JobFilter())[0]
        assert moved.attempt is None
        assert store.events([job.id])[-1].message == "3 files linked"
        (job,) = claim(store, mine, moved.job)
        (done,) = store.finish(mine, [ended(job, (S.RUN_DONE,))])
        assert (done.job.state, done.job.lease) == (S.RUN_DONE, mine)
        assert store.jobs(JobFilter()) == [done.job]
        (over,) = store.advance(mine, [step(done.job, S.POSTPROCESSED, S.JOB_FINISHED)])
        assert (over.job.state, over.job.lease) == (S.JOB_FINISHED, "")
        assert over.attempt == done.attempt == store.attempts([job.id])[0]
        assert over.order == store.events([job.id])[-1].id
        assert path_of(store, job) == [
            S.CREATED, S.READY, S.PREPROCESSED, S.RUNNING, S.RUN_DONE, S.POSTPROCESSED, S.JOB_FINISHED,
        ]  # fmt: skip

    @pytest.mark.parametrize("state", [S.RUN_DONE, S.RUN_ERROR, S.RUN_TIMEOUT])
    def test_what_an_attempt_leaves_between_two_states_is_held_and_can_be_killed(
        self, store: SqlStore, state: State
    ) -> None:
        mine, other = hold(store), hold(store)
        job = held(store, mine, state)
        assert (job.state, job.lease) == (state, mine)
        assert store.hold(other, [job.id]) == []
        assert claim(store, other, job) == []
        (before,) = store.set_state([job.id], S.USER_KILLED, Actor.COMMAND, "killed by a command")
        assert before.state is state
        assert store.advance(mine, [step(job, S.POSTPROCESSED, S.JOB_FINISHED)]) == []
        assert state_of(store, job) is S.USER_KILLED

    @pytest.mark.parametrize("change", ["attempt", "state", "lease", "twice", "parents", "removed"])
    def test_a_step_of_another_time_changes_nothing(self, store: SqlStore, change: str) -> None:
        mine, other = hold(store), hold(store)
        parent, job = add(store, person_job("parent"), person_job())
        (job,) = store.hold(mine, [job.id])
        wish = step(job, S.PREPROCESSED)
        if change == "attempt":
            wish = replace(wish, attempt=1)
        elif change == "state":
            wish = replace(wish, state=S.RESTART_READY)
        elif change == "twice":
            assert len(store.advance(mine, [wish, wish])) == 1
        elif change == "parents":
            store.modify([replace(job, parents=(parent.id,))])
        elif change == "removed":
            store.remove(JobFilter(ids=(job.id,)))
        before = store.jobs(JobFilter()), store.events()
        assert store.advance(other if change == "lease" else mine, [wish]) == []
        assert (store.jobs(JobFilter()), store.events()) == before

    def test_a_way_that_the_table_does_not_know_is_refused(self, store: SqlStore) -> None:
        mine = hold(store)
        (job,) = store.hold(mine, [add(store, person_job())[0].id])
        for path in ((), (S.RUNNING,), (S.JOB_FINISHED,), (S.PREPROCESSED, S.FAILED)):
            with pytest.raises(WrongCall, match="no path"):
                store.advance(mine, [step(job, *path)])
        assert state_of(store, job) is S.READY

    def test_a_failed_stage_fails_the_children_and_a_finished_one_releases_them(
        self, store: SqlStore
    ) -> None:
        mine = hold(store)
        good, bad = held(store, mine, S.RUN_DONE), held(store, mine, S.RUN_DONE)
        one, two = person_job("one", parents=[good]), person_job("two", parents=[bad])
        add(store, one, two)
        store.advance(mine, [step(good, S.POSTPROCESSED, S.JOB_FINISHED), step(bad, S.FAILED)])
        assert (state_of(store, one), state_of(store, two)) == (S.READY, S.FAILED)


class TestOlderDatabases:
    @pytest.fixture
    def old(self, tmp_path: Path) -> Path:
        """A database as version 0.1.0 made it."""
        path = tmp_path / "old.sqlite3"
        with sqlite3.connect(path) as database:
            database.executescript((Path(__file__).parent / "schema1.sql").read_text())
        database.close()
        return path

    @pytest.mark.parametrize("read_only", [False, True])
    def test_one_of_the_first_schema_is_brought_to_this_one_where_that_may_be_written(
        self, old: Path, read_only: bool
    ) -> None:
        with open_store(old, read_only=read_only) as store:
            first, second = store.jobs(JobFilter())
            assert store.apps()[0].restartable
            assert second.parents == (first.id,)
            assert second.stages == Stages()
        with open_store(old) as store:
            store.put_app(replace(store.apps()[0], preprocess="/bin/true"), replace=True)
            mine = hold(store)
            run(store, mine, first, (S.RUN_ERROR, S.FAILED))
            assert state_of(store, second) is S.FAILED

    def test_one_that_may_not_be_written_is_told_so(self, old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        import nas_hpc.store.sqlite as dialect

        real = dialect._check_file

        def refuse(path: Path, *, create: bool, read_only: bool) -> None:
            if not read_only:
                raise dialect.SiteError(f"the job database {path} cannot be written")
            real(path, create=create, read_only=read_only)

        monkeypatch.setattr(dialect, "_check_file", refuse)
        with pytest.raises(SchemaMismatch, match="schema 1, this program knows 3: .* may write"):
            open_store(old, read_only=True)
