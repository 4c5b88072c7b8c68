"""Notices: who listens is told of every commit that concerns him, in order; of a gap he is told too."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial

import pytest

from nas_hpc.errors import StoreError, WrongCall
from nas_hpc.records import Result, Stages
from nas_hpc.states import Actor, Outcome, State
from nas_hpc.store import JobFilter, open_store
from nas_hpc.store.base import Advance
from nas_hpc.store.notices import (
    EDITED,
    FINISHED,
    JOBS,
    LONGEST,
    SLOTS,
    Listener,
    Notice,
    read_notice,
    write_notice,
)
from nas_hpc.store.sql import SqlStore
from tests.peers import postgres
from tests.store.supply import (
    AGAIN,
    add,
    claim,
    ended,
    evaluation,
    hold,
    lease,
    only_postgres,
    only_sqlite,
    person_job,
    run,
)
from tests.support import wait_until

S = State


@dataclass
class Ear:
    """What a listener heard."""

    heard: queue.Queue[Notice] = field(default_factory=queue.Queue)
    trouble: list[str] = field(default_factory=list)
    gaps: queue.Queue[None] = field(default_factory=queue.Queue)
    count: int = 0

    def listen(self, url: str) -> Listener:
        return Listener(
            lambda: open_store(url), self.heard.put, self.trouble.append, lambda: self.gaps.put(None)
        )

    def until(self, store: SqlStore) -> list[tuple[str, str]]:
        """All before a mark that is sent now, as (topic, key)."""
        self.count += 1
        mark = f"mark{self.count}"
        with store.transaction():
            store._session.tell(SLOTS, mark)
        found = []
        while (notice := self.heard.get(timeout=60)).key != mark:
            assert notice.sender == store.sender
            found.append((notice.topic, notice.key))
        return found


@pytest.fixture
def ear(url: str) -> Iterator[Ear]:
    """Somebody who listens."""
    ear = Ear()
    listener = ear.listen(url)
    yield ear
    listener.close(20)


LISTENING = "FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'LISTEN%'"


def cut(url: str) -> None:
    """End the one connection that listens."""
    do = partial(postgres.shared_server().do, database=postgres.name_of(url))
    wait_until(lambda: do(f"SELECT pid {LISTENING}"), 60, "the listener")
    assert do(f"SELECT pg_terminate_backend(pid) {LISTENING}") == [(True,)]


@only_postgres
def test_each_change_tells_whom_it_concerns_and_nobody_else(store: SqlStore, ear: Ear) -> None:
    mine = hold(store)
    assert ear.until(store) == [(SLOTS, mine)]
    store.tell_slots(mine, 3)
    store.tell_slots(mine, 3)
    assert ear.until(store) == [(SLOTS, mine)] * 2
    store.renew_lease(mine, 5e9)
    assert ear.until(store) == []

    one, two = add(store, person_job("one"), person_job("two", workflow="V"))
    assert ear.until(store) == [(JOBS, "W"), (JOBS, "V")]
    (one,) = claim(store, mine, one)
    store.hold(mine, [two.id])
    assert ear.until(store) == []
    store.advance(mine, [Advance(two.id, 0, S.READY, (S.PREPROCESSED,))])
    assert ear.until(store) == [(JOBS, "V")]
    store.finish(mine, [ended(one, AGAIN, Outcome.LOST)])
    assert ear.until(store) == [(JOBS, "W")]
    run(store, mine, one)
    assert ear.until(store) == []  # a person's job that is done concerns nobody
    store.set_state([one.id], S.RESTART_READY, Actor.COMMAND)
    assert ear.until(store) == [(JOBS, "W")]
    store.set_state([one.id], S.USER_KILLED, Actor.COMMAND)
    assert ear.until(store) == [(JOBS, "W")]
    store.modify([replace(one, args="-x")])
    assert ear.until(store) == [(EDITED, "W")]
    store.remove(JobFilter(ids=(one.id,)))
    assert ear.until(store) == [(EDITED, "W")]
    store.remove(JobFilter(name="nothing"))
    assert ear.until(store) == []

    new = lease()
    store.open_lease(new, ending=[mine], proven=True, exclusive=True)
    assert ear.until(store) == [(SLOTS, mine), (SLOTS, new.id)]
    store.end_leases(new.id, [lease()])
    assert ear.until(store) == []
    store.close_lease(new.id, 1.0)
    assert ear.until(store) == [(SLOTS, new.id)]


@only_postgres
def test_a_search_is_told_of_every_end_of_its_evaluations(store: SqlStore, ear: Ear) -> None:
    mine = hold(store)
    tasks = store.add_jobs([evaluation("s", seq) for seq in range(1, 5)], Actor.SEARCH)
    ear.until(store)
    for task in tasks[:2]:
        run(store, mine, task)
    assert ear.until(store) == [(FINISHED, "s")] * 2
    store.set_state([tasks[2].id], S.USER_KILLED, Actor.SEARCH)
    assert set(ear.until(store)) == {(FINISHED, "s"), (JOBS, "W")}
    store.add_finished([(evaluation("t", 1), Result(Outcome.OK, 1.0))])
    assert ear.until(store) == [(FINISHED, "t")]
    store.finish(mine, [ended(claim(store, mine, tasks[3])[0], (S.RUN_DONE,))])
    assert ear.until(store) == []
    done = Advance(tasks[3].id, 1, S.RUN_DONE, (S.POSTPROCESSED, S.JOB_FINISHED))
    assert len(store.advance(mine, [done])) == 1
    assert ear.until(store) == [(FINISHED, "s")]


@only_postgres
def test_children_that_follow_from_an_end_are_told_too(store: SqlStore, ear: Ear) -> None:
    mine = hold(store)
    parent, other = person_job("parent"), person_job("other")
    child = replace(person_job("child", parents=[parent]), workflow="C")
    task = replace(evaluation("s", 1), parents=(other.id,), stages=Stages())
    store.add_jobs([parent, other, child, task], Actor.COMMAND)
    ear.until(store)
    run(store, mine, parent)
    assert ear.until(store) == [(JOBS, "C")]
    run(store, mine, other, (S.RUN_ERROR, S.FAILED))
    assert ear.until(store) == [(FINISHED, "s")]


def _refused(store: SqlStore) -> None:
    with store.transaction():
        add(store, person_job(workflow="undone"))
        add(store, person_job(application="none"))


@only_postgres
def test_only_what_is_committed_is_told_and_once_for_a_transaction(store: SqlStore, ear: Ear) -> None:
    with store.transaction():
        add(store, person_job())
        with suppress(WrongCall):
            _refused(store)
        add(store, person_job())
    with pytest.raises(WrongCall):
        _refused(store)
    assert ear.until(store) == [(JOBS, "W")]


@only_postgres
def test_a_long_name_is_told_as_any(store: SqlStore, ear: Ear) -> None:
    add(store, person_job(workflow="w" * 9000), person_job(workflow="ü" * 100))
    assert ear.until(store) == [(JOBS, ""), (JOBS, "ü" * 100)]


def test_what_is_no_notice_is_passed_over() -> None:
    for text in ("", "x", "{}", "[1, 2, 3]", '["a", "b"]', "[" * 100_000):
        assert read_notice(text) is None
    notice = Notice("a", "b", "\udcff" * (LONGEST // 8))
    assert read_notice(write_notice(notice)) == notice
    assert len(write_notice(Notice("a", "b", "\udcff" * LONGEST))) < 100


@only_postgres
def test_after_a_gap_the_listener_is_told_and_hears_again(store: SqlStore, url: str, ear: Ear) -> None:
    for turn in range(3):
        cut(url)
        ear.gaps.get(timeout=60)
        assert len(ear.trouble) == turn + 1
        add(store, person_job(workflow=f"after{turn}"))
        assert ear.until(store) == [(JOBS, f"after{turn}")]
    assert all("notices of others are missed" in line for line in ear.trouble)


@only_postgres
def test_none_is_missed_by_who_looks_after_a_gap(store: SqlStore, url: str, ear: Ear) -> None:
    """Whatever is added: either its notice is heard, or it was there before the gap's end was told."""
    cut(url)
    added = 0
    while ear.gaps.empty():
        added += 1
        add(store, person_job(str(added), workflow=f"w{added}"))
    seen = {job.workflow for job in store.jobs(JobFilter())}
    add(store, person_job("last", workflow="last"))
    heard = {key for topic, key in ear.until(store) if topic == JOBS}
    assert "last" in heard
    assert seen | heard >= {f"w{number}" for number in range(1, added + 1)}


@only_postgres
def test_a_listener_ends_while_it_is_connected_and_while_it_is_not(url: str) -> None:
    ear = Ear()
    listener = ear.listen(url)
    listener.close(20)
    listener.close(20)
    assert not listener._thread.is_alive()
    target = [url]
    listener = Listener(lambda: open_store(target[0]), ear.heard.put, ear.trouble.append)
    target[0] = "postgresql://tester@127.0.0.1:1/none"
    cut(url)
    wait_until(lambda: ear.trouble, 60, "the trouble to be told")
    listener.close(20)
    assert not listener._thread.is_alive()


@only_sqlite
def test_a_database_without_notices_is_refused(url: str) -> None:
    with pytest.raises(StoreError, match="sends no notices"):
        Ear().listen(url)
