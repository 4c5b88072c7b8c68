"""PostgreSQL: how its database is made and opened, what is said when it cannot be used, what it refuses."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from nas_hpc.errors import NasHpcError, SchemaMismatch, SiteError, StoreError, WrongCall
from nas_hpc.records import Result, new_id
from nas_hpc.states import Actor, Outcome, State
from nas_hpc.store import JobFilter, open_store
from nas_hpc.store.schema import SCHEMA
from nas_hpc.store.sql import SqlStore
from tests.peers import postgres
from tests.peers.postgres import Postgres
from tests.store.supply import (
    add,
    claim,
    ended,
    evaluation,
    hold,
    lease,
    only_postgres,
    person_job,
    run,
    state_of,
)
from tests.support import wait_until


@pytest.fixture
def server() -> Postgres:
    """The server of this process."""
    if missing := postgres.missing_postgres():
        pytest.skip(missing)
    return postgres.shared_server()


@pytest.fixture
def empty(server: Postgres) -> Iterator[str]:
    """The name of an empty database."""
    name = server.fresh()
    yield name
    server.drop(name)


@pytest.fixture
def do(url: str, server: Postgres) -> Callable[..., list[Any]]:
    """Execute statements in the test's database."""
    return partial(server.do, database=postgres.name_of(url))


def refused(
    target: str | Callable[[], str], kind: type[NasHpcError], *parts: str, **options: Any
) -> NasHpcError:
    """Opening fails with one line that holds ``parts``."""
    with pytest.raises(kind) as caught:
        open_store(target, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert postgres.PASSWORD not in message
    for part in parts:
        assert part in message
    return caught.value


def secret(directory: Path, text: str = postgres.PASSWORD, mode: int = 0o600) -> Path:
    """A password file."""
    path = directory / "password"
    path.write_text(f"{text}\n")
    path.chmod(mode)
    return path


class TestOpening:
    def test_an_empty_database_is_made_ours_when_asked(self, server: Postgres, empty: str) -> None:
        url = server.url(empty)
        refused(url, SiteError, "is no job database", "it is empty", "nas-hpc init")
        with open_store(url, create=True) as store:
            add(store, person_job())
        with open_store(url, create=True) as store:
            assert len(store.jobs(JobFilter())) == 1

    def test_several_that_make_it_at_once_all_get_it(self, server: Postgres, empty: str) -> None:
        url = server.url(empty)
        with ThreadPoolExecutor(4) as pool:
            stores = list(pool.map(lambda _: open_store(url, create=True), range(4)))
        for number, store in enumerate(stores):
            add(store, person_job(str(number)))
            store.close()
        with open_store(url) as store:
            assert len(store.jobs(JobFilter())) == 4

    def test_the_password_comes_from_its_file(self, server: Postgres, empty: str, tmp_path: Path) -> None:
        url = server.url(empty, tcp=True)
        with open_store(url, create=True, password_file=secret(tmp_path)) as store:
            add(store, person_job())
        refused(url, SiteError, "wants a password", "name the file")

    def test_a_wrong_password_is_told_without_it(self, server: Postgres, empty: str, tmp_path: Path) -> None:
        error = refused(
            server.url(empty, tcp=True), SiteError, "password authentication failed", "check the password",
            password_file=secret(tmp_path, "guess"),
        )  # fmt: skip
        assert "guess" not in str(error)
        assert not error.transient

    def test_a_password_file_that_is_no_good_is_refused(self, server: Postgres, tmp_path: Path) -> None:
        url = server.url("postgres", tcp=True)
        for mode in (0o640, 0o604, 0o666):
            path = secret(tmp_path, mode=mode)
            parts = "can be read by others", f"{mode:04o}", f"chmod 600 {path}"
            refused(url, SiteError, *parts, password_file=path)
        refused(url, SiteError, "is empty", password_file=secret(tmp_path, ""))
        refused(url, SiteError, "No such file", password_file=tmp_path / "none")
        refused(url, SiteError, "cannot be read", password_file=tmp_path)
        path = secret(tmp_path)
        path.write_bytes(b"\xff\xfe\n")
        refused(url, SiteError, "holds no text", password_file=path)

    @pytest.mark.parametrize(
        ("url", "parts"),
        [
            ("postgresql://", ["names no database", "postgresql://USER@HOST:PORT/NAME"]),
            ("postgresql://host", ["names no database"]),
            ("postgresql://host/name?nonsense=1", ["is no URL of a database", "nonsense"]),
            ("postgresql://host:port:9/name", ["the port 'port:9'", "65535"]),
            ("postgresql://me:hush@host/name", ["holds a password", "me:...@host", "0600"]),
            ("postgresql://host/name?password=hush", ["holds a password", "password=..."]),
            ("postgresql://me:hush@[host/name", ["is no URL"]),
            ("postgresql://host:99999/name", ["the port '99999'", "65535"]),
            ("mysql://host/name", ["mysql://...", "postgresql://"]),
        ],
    )
    def test_a_wrong_url_is_told_with_what_would_be_right(self, url: str, parts: list[str]) -> None:
        error = refused(url, NasHpcError, *parts)
        assert "hush" not in str(error)

    def test_a_server_that_is_not_there_may_come_back(self, tmp_path: Path) -> None:
        for url, part in (
            ("postgresql://me@127.0.0.1:1/name", "Connection refused"),
            (f"postgresql:///name?host={tmp_path}", "No such file or directory"),
        ):
            error = refused(url, StoreError, "cannot be reached", part, "is it running")
            assert error.transient

    def test_an_unknown_database_or_user_is_told(self, server: Postgres, empty: str) -> None:
        refused(server.url("nowhere"), SiteError, "nowhere", "does not exist", "createdb")
        stranger = server.url(empty).replace("user=tester", "user=stranger")
        refused(stranger, SiteError, '"stranger" does not exist', "USER@")

    def test_anothers_database_is_refused_and_left_alone(self, server: Postgres, empty: str) -> None:
        server.do("CREATE TABLE songs (name text)", database=empty)
        for create in (False, True):
            refused(server.url(empty), SiteError, "holds the tables songs", create=create)
        server.do("CREATE TABLE meta (name text)", database=empty)
        refused(server.url(empty), SiteError, "is no job database", "does not exist")
        tables = "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'"
        assert server.do(tables, database=empty) == [(2,)]

    def test_another_encoding_is_refused(self, server: Postgres) -> None:
        server.do("CREATE DATABASE bytes ENCODING 'SQL_ASCII' LOCALE 'C' TEMPLATE template0")
        try:
            refused(server.url("bytes"), SiteError, "the encoding SQL_ASCII", "UTF8", create=True)
        finally:
            server.drop("bytes")

    def test_an_old_server_is_refused(self, server: Postgres, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("nas_hpc.store.postgres.OLDEST", 990000)
        refused(server.url("postgres"), SiteError, "needs version 99 or later", "is PostgreSQL 1")

    def test_who_may_not_make_tables_is_told_what_to_ask_for(self, server: Postgres, empty: str) -> None:
        server.do("CREATE ROLE guest LOGIN")
        try:
            guest = server.url(empty).replace("user=tester", "user=guest")
            server.do("REVOKE CREATE ON SCHEMA public FROM public", database=empty)
            refused(guest, SiteError, "permission denied for schema public", "GRANT CREATE", create=True)
            open_store(server.url(empty), create=True).close()
            refused(guest, SiteError, "permission denied for table meta")
        finally:
            server.do("DROP ROLE guest")

    @pytest.mark.usefixtures("server")
    def test_without_the_driver_its_extra_is_named(self, checkout: Path) -> None:
        code = (
            "import sys; sys.modules['psycopg'] = None\n"
            "from nas_hpc.store import open_store\n"
            "try: open_store('postgresql://h/n')\n"
            "except Exception as error: print(type(error).__name__, error)"
        )
        done = subprocess.run([sys.executable, "-c", code], cwd=checkout, capture_output=True, text=True)
        assert done.stdout.startswith("WrongCall ")
        assert 'pip install "nas-hpc[postgres]"' in done.stdout

    @only_postgres
    def test_a_function_is_asked_for_the_url_at_each_connection(self, url: str, do: Any) -> None:
        asked: list[str] = []

        def find() -> str:
            asked.append(url)
            return url

        with open_store(find) as store:
            add(store, person_job())
            before = len(asked)
            do("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'nas-hpc'")
            add(store, person_job())
            assert len(asked) == before + 1


@only_postgres
class TestSchema:
    def test_another_schema_is_refused_with_both_numbers(self, url: str, do: Any) -> None:
        do("UPDATE meta SET value = '77' WHERE key = 'schema'")
        for create in (False, True):
            refused(url, SchemaMismatch, "has schema 77", f"knows {SCHEMA}", create=create)

    @pytest.mark.parametrize("read_only", [False, True])
    def test_an_older_one_is_brought_to_this_one(self, url: str, do: Any, read_only: bool) -> None:
        with open_store(url) as store:
            parent = person_job("parent")
            add(store, parent, person_job("child", parents=[parent]))
            before = store.jobs(JobFilter())
        do(
            "ALTER TABLE apps DROP COLUMN body", "ALTER TABLE edges DROP COLUMN failure",
            "ALTER TABLE leases DROP COLUMN slots", "DROP TABLE requests",
            "UPDATE meta SET value = '1' WHERE key = 'schema'",
        )  # fmt: skip
        if read_only:
            open_store(url, read_only=True).close()
        with ThreadPoolExecutor(3) as pool:
            for store in pool.map(lambda _: open_store(url), range(3)):
                assert store.jobs(JobFilter()) == before
                store.close()
        with open_store(url) as store:
            run(store, hold(store), parent)
            assert store.leases()[0].slots == 0
            assert store.first_time("x")

    def test_events_are_neither_changed_nor_deleted_while_their_job_is_there(
        self, store: SqlStore, do: Any
    ) -> None:
        import psycopg

        add(store, person_job())
        for statement in ("UPDATE events SET message = 'x'", "DELETE FROM events"):
            with pytest.raises(psycopg.IntegrityError, match="append-only"):
                do(statement)
        store.remove(JobFilter())
        assert store.events() == []

    def test_what_is_searched_is_read_through_an_index(self, store: SqlStore) -> None:
        queries = {
            "state = 'READY' AND workflow = 'W' LIMIT 5": "jobs_state",
            "creator = 's' AND final_event > 3 ORDER BY final_event": "jobs_final",
            "creator = 's' AND seq BETWEEN 1 AND 2": "jobs_creator_seq_key",
            "id IN ('a', 'b')": "jobs_id_key",
            "lease = 'x'": "jobs_lease",
            "application = 'x'": "jobs_application",
            "name = 'x'": "jobs_name",
            "number IN (1, 2)": "jobs_pkey",
        }
        for condition, index in queries.items():
            lines = store.raw().execute(f"EXPLAIN SELECT * FROM jobs WHERE {condition}").fetchall()
            plan = " ".join(line for (line,) in lines)
            assert index in plan, plan


@only_postgres
class TestSessions:
    def test_settings_do_not_depend_on_the_server_the_database_or_the_environment(
        self, url: str, do: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        name = postgres.name_of(url)
        wrong = {
            "synchronous_commit": "off", "search_path": "pg_catalog", "standard_conforming_strings": "off",
            "default_transaction_read_only": "on", "default_transaction_isolation": "serializable",
            "idle_in_transaction_session_timeout": "0", "lock_timeout": "0", "client_encoding": "LATIN1",
        }  # fmt: skip
        do(*(f"ALTER DATABASE {name} SET {key} = '{value}'" for key, value in wrong.items()))
        monkeypatch.setenv("PGCLIENTENCODING", "LATIN1")
        monkeypatch.setenv("PGAPPNAME", "other")
        monkeypatch.setenv("PGOPTIONS", "-c synchronous_commit=off")
        with open_store(url) as store:
            (job,) = add(store, person_job("näme \u2713"))
            run(store, hold(store), job)
            shown = {key: store.raw().execute(f"SHOW {key}").fetchone()[0] for key in wrong}
            shown["application_name"] = store.raw().execute("SHOW application_name").fetchone()[0]
        assert shown == {
            "synchronous_commit": "on", "search_path": "public", "standard_conforming_strings": "on",
            "default_transaction_read_only": "on", "default_transaction_isolation": "serializable",
            "idle_in_transaction_session_timeout": "15s", "lock_timeout": "20s", "client_encoding": "UTF8",
            "application_name": "nas-hpc",
        }  # fmt: skip

    def test_a_read_only_store_reads_and_refuses_every_write(self, store: SqlStore, url: str) -> None:
        add(store, person_job())
        with open_store(url, read_only=True) as reader:
            assert len(reader.jobs(JobFilter())) == 1
            with pytest.raises(SiteError, match="opened for reading only"):
                add(reader, person_job())

    def test_who_waits_for_too_long_is_told_for_whom(
        self, store: SqlStore, url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(postgres_settings(), "lock_timeout", "50ms")
        with open_store(url) as other, store.transaction():
            other.wait_while(lambda waited_s: False)
            add(store, person_job())
            pid = store.raw().info.backend_pid
            with pytest.raises(StoreError, match=f"locked by process {pid} of .* nas-hpc on") as caught:
                add(other, person_job())
            assert caught.value.transient
            assert other.jobs(JobFilter()) == []

    @pytest.mark.parametrize("writes", [False, True])
    @pytest.mark.slow
    def test_a_process_that_stops_in_a_transaction_holds_nobody_for_ever(
        self, url: str, monkeypatch: pytest.MonkeyPatch, writes: bool
    ) -> None:
        """The server ends the one that waits with nothing under way; who waits for it the other one."""
        monkeypatch.setitem(postgres_settings(), "idle_in_transaction_session_timeout", "1500ms")
        monkeypatch.setitem(postgres_settings(), "lock_timeout", "3s" if writes else "20s")
        with open_store(url) as stopped, open_store(url) as other:
            stopped.wait_while(lambda waited_s: False)

            def stop_in_the_middle() -> None:
                with stopped.transaction():
                    if writes:
                        add(stopped, person_job("lost"))
                    add(other, person_job("kept"))
                    add(stopped, person_job("lost too"))

            with pytest.raises(
                StoreError, match="stopped in the middle|told to end the connection"
            ) as caught:
                stop_in_the_middle()
            assert caught.value.transient
            assert [job.name for job in stopped.jobs(JobFilter())] == ["kept"]

    def test_a_circle_that_a_stranger_closes_is_opened(self, store: SqlStore, url: str, do: Any) -> None:
        """Whichever of the two the server picks: the store tries again."""
        import psycopg

        (job,) = add(store, person_job())
        blocked = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
        with psycopg.connect(postgres.shared_server().conninfo(postgres.name_of(url))) as stranger:
            stranger.execute("SELECT 1 FROM jobs WHERE id = %s FOR UPDATE", [job.id])

            def close_the_circle() -> None:
                wait_until(lambda: do(blocked), 60, "the store to wait for the stranger")
                with suppress(psycopg.errors.DeadlockDetected):
                    stranger.execute("SELECT 1 FROM counters FOR UPDATE")
                stranger.rollback()

            thread = threading.Thread(target=close_the_circle, daemon=True)
            thread.start()
            assert len(store.set_state([job.id], State.USER_KILLED, Actor.COMMAND)) == 1
            thread.join(20)
        assert state_of(store, job) is State.USER_KILLED

    def test_a_job_that_a_stranger_holds_is_passed_over_by_a_claim(self, store: SqlStore, url: str) -> None:
        import psycopg

        one, two = add(store, person_job("one"), person_job("two"))
        mine = hold(store)
        with psycopg.connect(postgres.shared_server().conninfo(postgres.name_of(url))) as stranger:
            stranger.execute("SELECT 1 FROM jobs WHERE id = %s FOR UPDATE", [one.id])
            assert [job.name for job in claim(store, mine, one, two)] == ["two"]
        assert [job.name for job in claim(store, mine, one, two)] == ["one"]


class TestValues:
    """What a database can hold is the same on both."""

    def test_text_with_a_nul_is_refused(self, store: SqlStore) -> None:
        for job in (person_job("a\0b"), replace(person_job(), workflow="\0")):
            with pytest.raises(WrongCall, match="NUL"):
                add(store, job)
        assert store.jobs(JobFilter()) == []
        with store.transaction():
            add(store, person_job("one"))
            with pytest.raises(WrongCall, match="NUL"), store.transaction():
                add(store, person_job("a\0b"))
            add(store, person_job("two"))
        assert [job.name for job in store.jobs(JobFilter())] == ["one", "two"]

    @pytest.mark.parametrize("count", [1, 3, 4, 9])
    def test_few_and_many_rows_are_written_alike(self, store: SqlStore, count: int) -> None:
        mine = hold(store)
        texts = ["", "plain", "näme \u2713", "quote ' \" \\ %s", "a\nb\tc", "null", "{}", "[1]", "\U0001f600"]
        plain = [evaluation("s", seq) for seq in range(1, count + 1)]
        jobs = [replace(job, name=text, data={"t": texts}) for job, text in zip(plain, texts, strict=False)]
        stored = store.add_jobs(jobs, Actor.SEARCH)
        assert store.jobs(JobFilter()) == stored
        won = claim(store, mine, *stored)
        assert store.jobs(JobFilter()) == won
        ends = [
            replace(
                ended(job, objective=[1 / 3, None, 1e-320, -0.0][place % 4], reason=texts[-1]),
                tail=texts[place],
                message=texts[-place],
            )
            for place, job in enumerate(won)
        ]
        assert store.finish(mine, ends) == store.finished("s")
        assert [one.job.name for one in store.finished("s")] == texts[:count]

    def test_numbers_that_no_column_takes_are_refused(self, store: SqlStore) -> None:
        for seq in (2**63, 10**40):
            with pytest.raises(WrongCall, match="cannot be stored"):
                store.add_jobs([replace(evaluation("s", 1), seq=seq)], Actor.SEARCH)
        (job,) = store.add_jobs([replace(evaluation("s", 1), seq=2**63 - 1)], Actor.SEARCH)
        assert store.jobs(JobFilter()) == [job]

    @pytest.mark.parametrize("value", [float("inf"), float("-inf"), 1e308, 5e-324, -0.0, None])
    def test_objectives_come_back_as_they_were(self, store: SqlStore, value: float | None) -> None:
        mine = hold(store)
        (job,) = claim(store, mine, *store.add_jobs([evaluation("s", 1)], Actor.SEARCH))
        store.finish(mine, [ended(job, objective=value, metadata={"n": 2**70, "i": float("inf")})])
        (found,) = store.finished("s")
        assert found.attempt is not None
        assert found.attempt.result is not None
        assert found.attempt.result.objective == value
        assert found.attempt.result.metadata == {"n": 2**70, "i": float("inf")}

    def test_an_objective_that_is_no_number_is_none(self, store: SqlStore) -> None:
        result = Result(Outcome.OK, float("nan"), start=1.0, end=1.0)
        store.add_finished([(evaluation("s", 1), result)])
        (found,) = store.finished("s")
        assert found.attempt is not None
        assert found.attempt.result is not None
        assert found.attempt.result.objective is None

    def test_return_codes_of_any_program_are_kept(self, store: SqlStore) -> None:
        for seq, code in enumerate((-9, 255, 2**31 - 1), 1):
            result = Result(Outcome.OK, 1.0, return_code=code, start=1.0, end=1.0)
            store.add_finished([(evaluation("s", seq), result)])
        codes = [
            one.attempt.result.return_code
            for one in store.finished("s")
            if one.attempt and one.attempt.result
        ]
        assert codes == [-9, 255, 2**31 - 1]


def postgres_settings() -> dict[str, str]:
    """Those of every session; the driver may be missing when this module is imported."""
    from nas_hpc.store.postgres import SETTINGS

    return SETTINGS


@only_postgres
class TestProofOfDeath:
    @pytest.fixture(autouse=True)
    def _hasty(self, monkeypatch: pytest.MonkeyPatch, server: Postgres) -> None:
        monkeypatch.setattr("nas_hpc.store.postgres.UP_S", 0.0)
        monkeypatch.setattr("nas_hpc.store.postgres.SURE_S", 0.2)

    def test_it_is_there_when_no_connection_holds_the_lease(self, store: SqlStore, url: str) -> None:
        one, two = lease(), lease()
        with open_store(url) as alive, open_store(url) as second:
            alive.keep(one.id)
            alive.open_lease(one, exclusive=False)
            dying = open_store(url)
            dying.keep(two.id)
            dying.keep(two.id)
            dying.open_lease(two, exclusive=False)
            second.keep(two.id)
            assert store.gone([one, two]) == []
            dying.close()
            assert store.gone([one, two]) == []
            second.close()
            wait_until(lambda: store.gone([one, two]) == [two], 60, "the server to see the end")
            assert alive.gone([one, two]) == [two]
            assert store.gone([]) == []

    def test_a_lost_connection_that_is_made_anew_proves_life(
        self, store: SqlStore, url: str, do: Any
    ) -> None:
        one = lease()
        with open_store(url) as alive:
            alive.keep(one.id)
            alive.open_lease(one, exclusive=False)
            pid = alive.raw().info.backend_pid
            do(f"SELECT pg_terminate_backend({pid}, 5000)")
            alive.renew_lease(one.id, one.expires)
            assert store.gone([one]) == []

    def test_after_a_start_or_a_crash_the_server_is_no_witness(
        self, store: SqlStore, do: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store.keep(new_id())
        assert len(store.gone([lease()])) == 1
        do("DELETE FROM witness")  # as the recovery from a crash does
        assert store.gone([lease()]) == []
        do("INSERT INTO witness SELECT extract(epoch FROM now())")
        assert len(store.gone([lease()])) == 1
        monkeypatch.setattr("nas_hpc.store.postgres.UP_S", 1e9)
        assert store.gone([lease()]) == []
