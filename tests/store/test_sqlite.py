"""The SQLite file: how it is made and opened, and what is said when it cannot be used."""

from __future__ import annotations

import os
import sqlite3
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from nas_hpc.errors import NasHpcError, SchemaMismatch, SiteError, StoreError, WrongCall
from nas_hpc.site import filesystem_type
from nas_hpc.store import JobFilter, open_store
from nas_hpc.store.schema import SCHEMA
from tests.store.supply import add, hold, person_job, run


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A fresh database with one job."""
    made = tmp_path / "db.sqlite3"
    with open_store(made, create=True) as store:
        add(store, person_job())
    return made


@contextmanager
def another_user() -> Iterator[None]:
    """As an ordinary user, whom permissions bind, also when the tests run as root."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def refused(target: Path | str, kind: type[NasHpcError], *parts: str, **options: bool) -> None:
    """Opening fails with one line that holds ``parts``."""
    with pytest.raises(kind) as caught:
        open_store(target, **options)
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


def test_the_file_and_its_log_are_the_owners_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        with open_store(tmp_path / "db.sqlite3", create=True) as store:
            add(store, person_job())
            modes = {entry.name: stat.S_IMODE(entry.stat().st_mode) for entry in tmp_path.iterdir()}
    finally:
        os.umask(before)
    assert modes == {"db.sqlite3": 0o600, "db.sqlite3-wal": 0o600, "db.sqlite3-shm": 0o600}


def test_every_commit_is_synced_and_the_log_is_written_ahead(path: Path) -> None:
    with open_store(path) as store:
        values = {
            name: store.raw().execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("synchronous", "journal_mode")
        }
        assert store.raw().execute("PRAGMA foreign_keys").fetchone()[0] == 1
    assert values == {"synchronous": 2, "journal_mode": "wal"}


def test_on_a_network_filesystem_there_is_no_shared_memory_log(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nas_hpc.store.sqlite.filesystem_type", lambda _: "lustre")
    with open_store(path) as store:
        assert store.raw().execute("PRAGMA journal_mode").fetchone()[0] == "truncate"
        add(store, person_job())
        assert not path.with_name("db.sqlite3-shm").exists()


def test_the_type_of_a_filesystem_is_that_of_the_longest_mount_point() -> None:
    assert filesystem_type(Path("/proc/self")) == "proc"
    assert filesystem_type(Path("/dev/shm/none")) in {"tmpfs", ""}


def test_creating_what_exists_opens_it(path: Path) -> None:
    with open_store(path, create=True) as store:
        assert len(store.jobs(JobFilter())) == 1


def test_a_url_names_the_same_file(path: Path) -> None:
    with open_store(f"sqlite:///{path}") as store:
        assert len(store.jobs(JobFilter())) == 1
    refused("mysql://host/db", WrongCall, "mysql://", "sqlite:///PATH")


def test_a_missing_file_is_not_made_without_being_asked(tmp_path: Path) -> None:
    refused(tmp_path / "db.sqlite3", SiteError, "does not exist", "nas-hpc init")
    refused(tmp_path / "no" / "db.sqlite3", SiteError, "No such file", create=True)
    refused(tmp_path, SiteError, "is not a file")
    assert list(tmp_path.iterdir()) == []


def test_another_schema_is_refused_with_both_numbers(path: Path) -> None:
    with closing(sqlite3.connect(path)) as raw, raw:
        raw.execute("UPDATE meta SET value = '77' WHERE key = 'schema'")
    refused(path, SchemaMismatch, "has schema 77", f"knows {SCHEMA}", "use the version")
    refused(path, SchemaMismatch, "has schema 77", create=True)


def test_what_is_no_database_is_refused_and_left_alone(tmp_path: Path) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("dear diary, ...")
    other = tmp_path / "other.sqlite3"
    with closing(sqlite3.connect(other)) as raw:
        raw.execute("CREATE TABLE songs (name TEXT)")
    empty = tmp_path / "empty"
    empty.touch()
    bytes_before = {file: file.read_bytes() for file in (text, empty)}
    for create in (False, True):
        refused(text, SiteError, "is no job database", create=create)
        refused(other, SiteError, "holds the tables songs", create=create)
    refused(empty, SiteError, "it is empty")
    assert {file: file.read_bytes() for file in (text, empty)} == bytes_before


def test_a_damaged_file_is_told_in_one_line(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(100)
        file.write(b"\xff" * 4000)
    refused(path, StoreError, str(path), "malformed")
    with path.open("r+b") as file:
        file.seek(20)
        file.write(b"\xff" * 40)
    with pytest.raises(NasHpcError) as caught:
        open_store(path)
    assert "\n" not in str(caught.value)


def test_a_damage_that_is_met_later_is_a_store_error(path: Path) -> None:
    with open_store(path) as store:
        store.raw().execute("DROP TABLE leases")
        with pytest.raises(SiteError, match="no such table: leases"):
            hold(store)
        assert len(store.jobs(JobFilter())) == 1


def test_a_read_only_store_reads_and_refuses_every_write(path: Path) -> None:
    with open_store(path, read_only=True) as store:
        assert len(store.jobs(JobFilter())) == 1
        with pytest.raises(SiteError, match="opened for reading only"):
            add(store, person_job())


def test_a_site_of_another_user_is_read_but_not_written() -> None:
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "db.sqlite3"
        open_store(path, create=True).close()
        path.chmod(0o444)
        path.parent.chmod(0o555)
        try:
            with another_user():
                refused(path, SiteError, "cannot be written", "Permission denied")
                with open_store(path, read_only=True) as store:
                    assert store.jobs(JobFilter()) == []
        finally:
            path.parent.chmod(0o755)


@pytest.mark.needs_root
def test_a_full_disk_is_told_and_the_database_is_as_it_was(tmp_path: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(tmp_path)], check=True)
    try:
        with open_store(tmp_path / "db.sqlite3", create=True) as store:
            add(store, person_job("first"))
            many = [person_job(f"job{number}") for number in range(4000)]
            with pytest.raises(StoreError, match="cannot grow: .*full; make room") as caught:
                add(store, *many)
            assert caught.value.transient
            assert [job.name for job in store.jobs(JobFilter())] == ["first"]
            run(store, hold(store), store.jobs(JobFilter())[0])
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_a_database_locked_for_too_long_is_transient(path: Path) -> None:
    with open_store(path) as one, open_store(path) as two, one.transaction():
        hold(one)
        two.raw().execute("PRAGMA busy_timeout=10")
        with pytest.raises(StoreError, match="is locked by another process") as caught:
            hold(two)
        assert caught.value.transient
        assert two.leases() == []


def test_events_are_neither_changed_nor_deleted_while_their_job_is_there(path: Path) -> None:
    with closing(sqlite3.connect(path)) as raw:
        for statement in ("UPDATE events SET message = 'x'", "DELETE FROM events"):
            with pytest.raises(sqlite3.IntegrityError, match="append-only"):
                raw.execute(statement)
    with open_store(path) as store:
        store.remove(JobFilter())
        assert store.events() == []


def test_what_is_searched_is_read_through_an_index(path: Path) -> None:
    queries = {
        "state = 'READY' AND workflow = 'W' ORDER BY number LIMIT 5": "jobs_state (state=? AND workflow=?)",
        "creator = 's' AND final_event > 3 ORDER BY final_event": "jobs_final (creator=? AND final_event>?)",
        "creator = 's' AND seq BETWEEN 1 AND 2": "(creator=? AND seq>? AND seq<?)",
        "id IN ('a', 'b')": "(id=?)",
        "lease = 'x'": "jobs_lease (lease=?)",
        "application = 'x'": "jobs_application (application=?)",
        "name = 'x'": "jobs_name (name=?)",
    }
    with closing(sqlite3.connect(path)) as raw:
        for condition, index in queries.items():
            plan = " ".join(
                row[3] for row in raw.execute(f"EXPLAIN QUERY PLAN SELECT * FROM jobs WHERE {condition}")
            )
            assert index in plan
            assert "TEMP B-TREE" not in plan


def test_a_job_can_be_read_with_the_sqlite3_program(path: Path) -> None:
    with open_store(path) as store:
        add(store, person_job("x"))
    with closing(sqlite3.connect(path)) as raw:
        assert raw.execute("SELECT state, json_valid(body) FROM jobs WHERE name = 'x'").fetchone() == (
            "READY",
            1,
        )


@pytest.mark.slow
def test_two_that_create_it_at_once_both_get_it(tmp_path: Path, checkout: Path) -> None:
    code = "import sys; from nas_hpc.store import open_store; open_store(sys.argv[1], create=True).close()"
    path = tmp_path / "db.sqlite3"
    makers = [subprocess.Popen([sys.executable, "-c", code, str(path)], cwd=checkout) for _ in range(3)]
    assert [maker.wait(60) for maker in makers] == [0, 0, 0]
    with open_store(path) as store:
        assert store.jobs(JobFilter()) == []


def test_the_room_is_imported_without_sqlalchemy(checkout: Path) -> None:
    code = "import sys, nas_hpc.store; sys.exit('sqlalchemy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=checkout, check=False).returncode == 0
