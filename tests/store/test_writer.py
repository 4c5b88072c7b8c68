"""Group commit: acknowledged means committed, in order, one request's refusal is its own."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nas_hpc.errors import LeaseLost, SiteError, StoreError, WrongCall
from nas_hpc.records import Job
from nas_hpc.states import Actor
from nas_hpc.store import JobFilter, open_store
from nas_hpc.store.sql import SqlStore
from nas_hpc.store.sqlite import sqlite_engine
from nas_hpc.store.writer import Writer
from tests.store.supply import add, claim, evaluation, only_sqlite, person_job
from tests.support import wait_until


@pytest.fixture
def writer(url: str) -> Iterator[Writer]:
    """A writer on a fresh database."""
    made = Writer(lambda: open_store(url))
    yield made
    made.close(10)


def adding(seq: int) -> Callable[[SqlStore], list[Job]]:
    """A request that inserts one evaluation."""
    return lambda store: store.add_jobs([evaluation("s", seq)], Actor.SEARCH)


class Gate:
    """A request that keeps the writer busy until it is opened, so that others queue up behind it."""

    def __init__(self, writer: Writer) -> None:
        self._open = threading.Event()
        entered = threading.Event()

        def wait(_: SqlStore) -> bool:
            entered.set()
            return self._open.wait(60)

        self._done = writer.call(wait)
        assert entered.wait(60)

    def open(self) -> None:
        """Let it go on."""
        self._open.set()
        self._done.result(10)


def names(url: str) -> list[str]:
    """What another connection sees."""
    with open_store(url) as other:
        return [job.name for job in other.jobs(JobFilter())]


def test_what_is_acknowledged_is_committed(writer: Writer, url: str) -> None:
    async def main() -> None:
        for seq in range(1, 6):
            (job,) = await writer.submit(adding(seq))
            assert job.seq == seq
            assert len(names(url)) == seq

    asyncio.run(main())


def test_requests_that_wait_are_committed_together_in_their_order(writer: Writer, url: str) -> None:
    async def main() -> None:
        gate = Gate(writer)
        before = writer.commits
        answered: list[int] = []
        futures = [writer.submit(adding(seq)) for seq in range(1, 301)]
        for seq, future in enumerate(futures, 1):
            future.add_done_callback(lambda _, seq=seq: answered.append(seq))  # type: ignore[misc]
        gate.open()
        await asyncio.gather(*futures)
        assert writer.commits - before <= 2
        assert answered == list(range(1, 301))

    asyncio.run(main())
    assert names(url) == [f"task{seq}" for seq in range(1, 301)]


def test_under_load_there_are_far_fewer_commits_than_requests(writer: Writer) -> None:
    async def one(first: int) -> None:
        for seq in range(first, first + 20):
            await writer.submit(adding(seq))

    async def main() -> None:
        await asyncio.gather(*(one(1 + 20 * number) for number in range(40)))

    asyncio.run(main())
    assert writer.requests == 800
    assert writer.commits <= 200


def test_a_group_has_a_largest_size(url: str) -> None:
    writer = Writer(lambda: open_store(url), group=10)
    gate = Gate(writer)
    futures = [writer.call(adding(seq)) for seq in range(1, 101)]
    gate.open()
    for future in futures:
        future.result(10)
    assert writer.commits == 11
    writer.close()


def test_a_refused_request_undoes_itself_and_no_other(writer: Writer, url: str) -> None:
    gate = Gate(writer)
    one = writer.call(adding(1))
    lost = writer.call(lambda store: (add(store, person_job("half")), claim(store, "nobody", person_job())))
    wrong = writer.call(lambda store: add(store, person_job(application="no")))
    broken = writer.call(lambda store: 1 / 0)
    two = writer.call(adding(2))
    gate.open()
    assert one.result(10)
    assert two.result(10)
    for future, kind in ((lost, LeaseLost), (wrong, WrongCall), (broken, ZeroDivisionError)):
        with pytest.raises(kind):
            future.result(10)
    assert names(url) == ["task1", "task2"]


def test_a_refused_request_that_is_alone_is_undone(writer: Writer, url: str) -> None:
    with pytest.raises(WrongCall):
        writer.call(
            lambda store: (add(store, person_job("half")), add(store, person_job(application="no")))
        ).result(10)
    assert names(url) == []
    writer.call(adding(1)).result(10)


@only_sqlite
def test_a_full_disk_fails_the_whole_group_and_the_writer_goes_on(writer: Writer, url: str) -> None:
    def limit(pages: int) -> Callable[[SqlStore], object]:
        return lambda store: store.raw().execute(f"PRAGMA max_page_count={pages}").fetchone()

    writer.call(adding(1)).result(10)
    writer.call(limit(1)).result(10)  # no further page than the file has
    gate = Gate(writer)
    many = [evaluation("s", seq) for seq in range(10, 1000)]
    futures = [
        writer.call(adding(2)),
        writer.call(lambda store: store.add_jobs(many, Actor.SEARCH)),
        writer.call(adding(3)),
    ]
    gate.open()
    errors = [future.exception(10) for future in futures]
    assert all(type(error) is StoreError and error.transient for error in errors), errors
    assert "cannot grow: database or disk is full" in str(errors[0])
    assert names(url) == ["task1"]
    writer.call(limit(1_000_000)).result(10)
    assert [job.name for job in writer.call(adding(4)).result(10)] == ["task4"]
    assert names(url) == ["task1", "task4"]


def test_a_cancelled_wait_does_not_undo_the_request_nor_harm_others(writer: Writer, url: str) -> None:
    async def main() -> None:
        gate = Gate(writer)
        given_up, kept = writer.submit(adding(1)), writer.submit(adding(2))
        given_up.cancel()
        gate.open()
        await kept

    asyncio.run(main())
    assert names(url) == ["task1", "task2"]


def test_close_executes_what_was_submitted_and_refuses_more(writer: Writer, url: str) -> None:
    gate = Gate(writer)
    futures = [writer.call(adding(seq)) for seq in range(1, 31)]
    gate.open()
    writer.close(10)
    writer.close(10)
    assert len(names(url)) == 30
    assert all(future.done() for future in futures)
    with pytest.raises(StoreError, match="closed"):
        writer.call(adding(31))


def test_an_event_loop_that_is_gone_does_no_harm(writer: Writer, url: str) -> None:
    gate = Gate(writer)

    async def main() -> None:
        writer.submit(adding(1))

    asyncio.run(main())
    gate.open()
    wait_until(lambda: names(url) == ["task1"], what="the request")
    writer.call(adding(2)).result(10)


def test_more_requests_than_can_wait_are_refused_as_transient(url: str) -> None:
    writer = Writer(lambda: open_store(url), backlog=5)
    gate = Gate(writer)
    futures = [writer.call(adding(seq)) for seq in range(1, 6)]
    with pytest.raises(StoreError, match="5 requests wait") as caught:
        writer.call(adding(6))
    assert caught.value.transient
    gate.open()
    assert all(future.result(10) for future in futures)
    writer.close()


def test_a_database_that_cannot_be_opened_is_told_at_once() -> None:
    with pytest.raises(SiteError, match="does not exist"):
        Writer(lambda: open_store("/nowhere/db.sqlite3"))


@contextlib.contextmanager
def held(path: Path) -> Iterator[None]:
    """The database's write lock, by somebody else."""
    connection = sqlite3.connect(path, timeout=10, isolation_level=None)
    try:
        connection.execute("BEGIN IMMEDIATE")
        yield
        connection.execute("ROLLBACK")
    finally:
        connection.close()


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """A transaction waits a moment for the lock instead of 20 s."""
    monkeypatch.setitem(sqlite_engine.__kwdefaults__, "busy_timeout_s", 0.05)


@pytest.mark.usefixtures("hasty")
def test_what_a_held_lock_kept_out_is_done_once_when_it_is_free(tmp_path: Path) -> None:
    path, said = tmp_path / "db.sqlite3", list[str]()
    open_store(path, create=True).close()
    writer = Writer(lambda: open_store(path), patience_s=30.0, on_trouble=said.append)
    with held(path):
        futures = [writer.call(adding(seq)) for seq in (1, 2, 3)]
        wait_until(lambda: said, 60, "the trouble to be told")
        assert not any(future.done() for future in futures)
    for future in futures:
        assert len(future.result(10)) == 1
    writer.close(10)
    with open_store(path) as other:
        assert [job.seq for job in other.jobs(JobFilter())] == [1, 2, 3]
    assert "is locked" in said[0]
    assert "works again" in said[-1]


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("end", ["patience", "close"])
def test_a_lock_that_is_held_for_too_long_fails_what_waits(tmp_path: Path, end: str) -> None:
    path = tmp_path / "db.sqlite3"
    open_store(path, create=True).close()
    writer = Writer(lambda: open_store(path), patience_s=30.0)
    with held(path):
        future = writer.call(adding(1))
        if end == "patience":
            writer.patience_s = 0.0
        else:
            writer.close(10)
        with pytest.raises(StoreError, match="locked"):
            future.result(10)
    writer.close(10)
