"""Connections to PostgreSQL that are lost at any moment: what was acknowledged is there, and what was not
acknowledged is not, so that it can be done again."""

from __future__ import annotations

import math
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from nas_hpc.errors import StoreError
from nas_hpc.records import Job
from nas_hpc.states import Actor, State, is_path
from nas_hpc.store import Claim, JobFilter, open_store
from nas_hpc.store.sql import SqlStore
from nas_hpc.store.writer import Writer
from tests.peers import postgres
from tests.peers.postgres import Postgres
from tests.peers.way import Cut, Way
from tests.store.supply import add, claim, ended, evaluation, hold, path_of, person_job
from tests.store.test_postgres import postgres_settings

pytestmark = pytest.mark.usefixtures("server")


@pytest.fixture
def server() -> None:
    """Skips without one."""
    if missing := postgres.missing_postgres():
        pytest.skip(missing)


@pytest.fixture
def url(server: None) -> Iterator[str]:
    """Of a fresh database of the server: none of this concerns a file."""
    made = postgres.new_database()
    yield made
    postgres.drop_database(made)


@pytest.fixture
def way(url: str) -> Iterator[Way]:
    """A way to the server that can be cut."""
    with Way(postgres.shared_server().port) as made:
        yield made


@pytest.fixture
def far(url: str, way: Way, tmp_path: Path) -> Callable[[], SqlStore]:
    """Opens the database by that way."""
    secret = tmp_path / "password"
    secret.write_text(postgres.PASSWORD)
    secret.chmod(0o600)
    target = f"postgresql://tester@127.0.0.1:{way.port}/{postgres.name_of(url)}"
    return lambda: open_store(target, password_file=secret)


COMMIT = b"COMMIT\0"
"""And not the beginning of a transaction that reads what is committed."""


def once(cut: Cut, what: bytes = COMMIT) -> Callable[[bytes], Cut]:
    """Cut the connection at the first piece that holds ``what``."""
    left = [cut]
    return lambda piece: left.pop() if left and what in piece else Cut.NOT


@pytest.mark.parametrize("cut", [Cut.BEFORE, Cut.AFTER])
def test_a_claim_whose_commit_is_cut_off_is_won_once_and_known_to_be(
    store: SqlStore, way: Way, far: Callable[[], SqlStore], cut: Cut
) -> None:
    mine = hold(store)
    jobs = add(store, *(person_job(str(number)) for number in range(3)))
    with far() as remote:
        way.cut = once(cut)
        won = claim(remote, mine, *jobs)
        assert way.cuts == 1
        assert [job.id for job in won] == [job.id for job in jobs]
        assert claim(remote, mine, *jobs) == []
    assert Counter(attempt.number for attempt in store.attempts([job.id for job in jobs])) == {1: 3}


@pytest.mark.parametrize("cut", [Cut.BEFORE, Cut.AFTER])
def test_a_group_of_requests_whose_commit_is_cut_off_is_answered_once(
    store: SqlStore, way: Way, far: Callable[[], SqlStore], cut: Cut
) -> None:
    mine = hold(store)
    jobs = add(store, *(person_job(str(number)) for number in range(3)))
    writer = Writer(far, patience_s=60)
    way.cut = once(cut)
    futures = [writer.call(lambda store, job=job: claim(store, mine, job)) for job in jobs]  # type: ignore[misc]
    assert [[job.id for job in future.result(60)] for future in futures] == [[job.id] for job in jobs]
    writer.close(10)
    assert way.cuts == 1
    assert {job.attempt for job in store.jobs(JobFilter(lease=mine))} == {1}


@pytest.mark.parametrize("what", [b"BEGIN", b"INSERT", b"UPDATE"])
def test_a_change_that_is_cut_off_before_its_commit_is_made_once(
    store: SqlStore,
    way: Way,
    far: Callable[[], SqlStore],
    what: bytes,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # What the server is not told that it is over holds the others up for so long.
    monkeypatch.setitem(postgres_settings(), "idle_in_transaction_session_timeout", "300ms")
    with far() as remote:
        way.cut = once(Cut.AFTER, what)
        add(remote, person_job("one"))
        way.cut = once(Cut.BEFORE, what)
        add(remote, person_job("two"))
    assert way.cuts == 2
    assert [job.name for job in store.jobs(JobFilter())] == ["one", "two"]
    assert [event.id for event in store.events()] == [1, 2]


def test_a_reading_call_that_is_cut_off_reads_again(
    store: SqlStore, way: Way, far: Callable[[], SqlStore]
) -> None:
    add(store, person_job())
    with far() as remote:
        way.cut = once(Cut.AFTER, b"SELECT jobs")
        assert remote.jobs(JobFilter()) == store.jobs(JobFilter())
    assert way.cuts == 1


def test_who_cannot_find_out_whether_it_was_committed_says_so(
    store: SqlStore, way: Way, far: Callable[[], SqlStore]
) -> None:
    with far() as remote:
        remote.wait_while(lambda waited_s: waited_s < 0.2)

        def cut(piece: bytes) -> Cut:
            way.closed = COMMIT in piece
            return Cut.AFTER if way.closed else Cut.NOT

        way.cut = cut
        with pytest.raises(StoreError, match="not known whether the last change was made") as caught:
            add(remote, person_job("one"))
        assert not caught.value.transient
        way.closed, way.cut = False, lambda piece: Cut.NOT
        add(remote, person_job("two"))
    assert [job.name for job in store.jobs(JobFilter())][-1] == "two"


def test_an_error_of_a_lost_connection_undoes_the_whole_transaction(store: SqlStore, url: str) -> None:
    def lose_it_in_the_middle() -> None:
        with store.transaction():
            add(store, person_job("lost"))
            end_connections(url)
            with pytest.raises(StoreError), store.transaction():
                add(store, person_job("lost too"))

    with pytest.raises(StoreError) as caught:
        lose_it_in_the_middle()
    assert caught.value.transient
    assert store.jobs(JobFilter()) == []


def end_connections(url: str) -> None:
    """Of ours, all to the database."""
    postgres.shared_server().do(
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
        " WHERE application_name = 'nas-hpc' AND datname = current_database()",
        database=postgres.name_of(url),
    )


class Worker(threading.Thread):
    """A launcher in small: claims what is there and finishes it, with a writer of its own; remembers what was
    acknowledged."""

    def __init__(self, url: Any, jobs: list[Job], seed: int) -> None:
        super().__init__(daemon=True)
        self.writer = Writer(lambda: open_store(url), patience_s=math.inf)
        self.jobs, self.chance = jobs, random.Random(seed)
        self.lease = self.writer.call(hold).result(60)
        self.claimed: list[tuple[str, int]] = []
        self.finished: list[str] = []
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            left = [job.id for job in self.jobs]
            self.chance.shuffle(left)
            while left:
                some, left = left[:6], left[6:]
                asked = [self._claim(some[:3]), self._claim(some[3:])]
                won = [job for future in asked for job in future.result(100)]
                self.claimed += [(job.id, job.attempt) for job in won]
                ends = [ended(job) for job in won]
                finished = self.writer.call(lambda store, ends=ends: store.finish(self.lease, ends)).result(
                    100
                )
                self.finished += [one.job.id for one in finished]
        except BaseException as error:
            self.error = error

    def _claim(self, ids: list[str]) -> Future[list[Job]]:
        return self.writer.call(lambda store: store.claim(self.lease, [Claim(one) for one in ids]))


def check_ledger(store: SqlStore, workers: list[Worker], jobs: list[Job], note: str) -> None:
    """Every job was claimed once and finished once, by the workers' own account and by the database's."""
    errors = [repr(worker.error) for worker in workers if worker.error is not None]
    assert not errors, f"{note}: {errors}"
    ids = Counter(job.id for job in jobs)
    assert Counter(id_ for worker in workers for id_, _ in worker.claimed) == ids, note
    assert Counter(id_ for worker in workers for id_ in worker.finished) == ids, note
    assert store.counts(JobFilter()) == {State.JOB_FINISHED: len(jobs)}, note
    assert [attempt.number for attempt in store.attempts(list(ids))] == [1] * len(jobs), note
    numbers = [event.id for event in store.events()]
    assert numbers == list(range(1, 4 * len(jobs) + 1)), note
    assert all(is_path(path_of(store, job)) for job in jobs[:20]), note


def work(url: Any, store: SqlStore, seed: int, disturb: Callable[[random.Random], None], count: int) -> None:
    """Two workers on the same jobs, while ``disturb`` does its worst."""
    jobs = store.add_jobs([evaluation("s", seq) for seq in range(1, count + 1)], Actor.SEARCH)
    workers = [Worker(url, jobs, seed + number) for number in range(2)]
    chance = random.Random(seed)
    for worker in workers:
        worker.start()
    while any(worker.is_alive() for worker in workers):
        disturb(chance)
    for worker in workers:
        worker.join(100)
        worker.writer.close(20)
    check_ledger(store, workers, jobs, f"seed {seed}")


def test_connections_ended_at_random_lose_nothing_and_repeat_nothing(store: SqlStore, url: str) -> None:
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    kills = []

    def disturb(chance: random.Random) -> None:
        time.sleep(chance.uniform(0.0, 0.1) if kills else 0.0)
        if len(kills) >= 20:
            return
        ended = postgres.shared_server().do(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
            f" AND application_name = 'nas-hpc' AND pid <> {store.raw().info.backend_pid}"
            " AND datname = current_database() ORDER BY random() LIMIT 1",
            database=postgres.name_of(url),
        )
        kills.extend(ended)

    work(url, store, seed, disturb, 60)
    assert kills, f"seed {seed}"


@pytest.mark.slow
def test_a_server_that_is_stopped_or_killed_and_started_again_loses_nothing(server: None) -> None:
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    ends = [signal.SIGINT, signal.SIGQUIT, signal.SIGKILL]
    peer = Postgres(fsync=True)
    try:
        peer.make()
        url = peer.url(peer.fresh())
        with open_store(url, create=True) as store:
            store.wait_while(lambda waited_s: waited_s < 60)

            def disturb(chance: random.Random) -> None:
                time.sleep(chance.uniform(0.1, 0.3) if len(ends) < 3 else 0.0)
                if ends:
                    peer.stop(ends.pop(chance.randrange(len(ends))))
                    time.sleep(chance.uniform(0.0, 0.5))
                    peer.start()

            work(url, store, seed, disturb, 120)
            assert len(ends) < 3
    finally:
        peer.end()


def test_events_come_in_the_order_of_their_numbers_to_whoever_reads_meanwhile(
    store: SqlStore, url: str
) -> None:
    """A reader who goes on from the last number he saw misses none, however the writers' commits fall."""
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    done = threading.Event()
    errors: list[BaseException] = []

    def write(number: int) -> None:
        chance = random.Random(seed + number)
        try:
            with open_store(url) as mine:
                lease = hold(mine)
                for turn in range(12):
                    with mine.transaction():
                        jobs = add(
                            mine, *(person_job(f"{number}-{turn}") for _ in range(chance.randint(1, 5)))
                        )
                        time.sleep(chance.uniform(0, 0.004))
                        won = claim(mine, lease, *jobs[: chance.randint(0, len(jobs))])
                    mine.finish(lease, [ended(job) for job in won])
        except BaseException as error:
            errors.append(error)

    writers = [threading.Thread(target=write, args=(number,), daemon=True) for number in range(4)]
    seen: list[int] = []

    def read() -> None:
        while True:
            last = done.is_set()
            new = [event.id for event in store.events(after=seen[-1] if seen else 0, limit=40)]
            seen.extend(new)
            if last and not new:
                return

    for writer in writers:
        writer.start()
    threading.Thread(
        target=lambda: ([writer.join(60) for writer in writers], done.set()), daemon=True
    ).start()
    read()
    assert not errors, f"seed {seed}: {errors}"
    assert seen == list(range(1, len(seen) + 1)), f"seed {seed}"
    assert len(seen) >= 4 * 12
