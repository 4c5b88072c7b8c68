"""A site's own PostgreSQL server: nothing is trusted, there is one at most, and a dead one is told from a
living one."""

from __future__ import annotations

import fcntl
import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from nas_hpc.errors import StoreError, WorkFailed, WrongCall
from nas_hpc.records import App
from nas_hpc.site import Site
from nas_hpc.store import cluster, listening, open_site, programs, server, starting
from nas_hpc.store.place import place_of
from nas_hpc.store.server import State, look, read_record, url_of, write_record
from tests.peers.own_server import (
    as_stranger,
    copy_of_site,
    open_directory,
    processes_in,
    server_user,
    wait_for_end,
)
from tests.peers.postgres import missing_postgres

if missing_postgres():
    pytest.skip(missing_postgres(), allow_module_level=True)

import psycopg  # noqa: E402


@pytest.fixture
def directory(test_id: str) -> Iterator[Path]:
    """One that the server's user can pass through; servers below it end with the test."""
    with open_directory() as path:
        yield path


@pytest.fixture
def site(directory: Path) -> Site:
    """A site whose server does not run."""
    return copy_of_site(directory)


def start(site: Site, **options: str) -> server.Record:
    return starting.start(site, place_of(site), **options)


def password_of(site: Site) -> str:
    return (site.path / "database.password").read_text().strip()


def refused(url: str, **parameters: str) -> str:
    """Why the server at ``url`` lets nobody in."""
    with pytest.raises(psycopg.OperationalError) as caught:
        psycopg.connect(url, connect_timeout=10, **parameters)
    return str(caught.value)


def test_a_server_listens_on_its_private_socket_alone_and_trusts_nobody(site: Site) -> None:
    record = start(site)
    assert record.addresses == ()
    assert Path(record.socket_directory).stat().st_mode & 0o777 == 0o700
    assert (site.path / "database.password").stat().st_mode & 0o777 == 0o600
    listening = Path(f"/proc/{record.pid}/net/tcp").read_text()
    url = url_of(site)
    with psycopg.connect(url, password=password_of(site)) as connection:
        assert connection.execute("SHOW listen_addresses").fetchone() == ("",)
        assert connection.execute("SHOW data_checksums").fetchone() == ("on",)
        assert connection.execute(
            "SELECT rolsuper FROM pg_roles WHERE rolname = current_user"
        ).fetchone() == (False,)
    assert f":{record.port:04X} 00000000:0000 0A" not in listening
    assert "no password" in refused(url)
    assert "authentication failed" in refused(url, password="wrong")
    assert "authentication failed" in refused(url, user="postgres", password="wrong")
    assert "no pg_hba.conf entry" in refused(url, user="somebody", password=password_of(site))
    methods = [
        line.split()[-1]
        for line in (site.postgres / "pg_hba.conf").read_text().splitlines()
        if line and not line.startswith("#")
    ]
    assert set(methods) == {"scram-sha-256"}


def test_with_an_interface_a_server_listens_there_and_the_superuser_stays_outside(site: Site) -> None:
    record = start(site, interface="lo")
    assert record.addresses == ("127.0.0.1",)
    url = f"postgresql://nas_hpc@127.0.0.1:{record.port}/nas_hpc"
    with psycopg.connect(url, password=password_of(site)) as connection:
        assert connection.execute("SHOW listen_addresses").fetchone() == ("127.0.0.1",)
    assert "authentication failed" in refused(url, password="wrong")
    assert "no pg_hba.conf entry" in refused(url, user="postgres", password=password_of(site))
    assert "no pg_hba.conf entry" in refused(url, dbname="postgres", password=password_of(site))


@pytest.mark.needs_root
def test_a_second_user_is_refused_at_the_socket_the_password_and_the_file(site: Site) -> None:
    record = start(site, interface="lo")
    path = str(server.socket_of(record))

    def connect() -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as one:
            one.connect(path)

    network = f"postgresql://nas_hpc@127.0.0.1:{record.port}/nas_hpc"
    assert "PermissionError" in as_stranger(connect)
    assert "PermissionError" in as_stranger(lambda: os.listdir(record.socket_directory))
    assert "PermissionError" in as_stranger((site.path / "database.password").read_text)
    assert "PermissionError" in as_stranger(lambda: os.listdir(site.postgres))
    assert "PermissionError" in as_stranger((site.postgres / "pg_hba.conf").read_text)
    assert "no password" in as_stranger(lambda: psycopg.connect(network, connect_timeout=10))
    wrong = as_stranger(lambda: psycopg.connect(network, password="guess", connect_timeout=10))
    assert "authentication failed" in wrong
    psycopg.connect(network, password=password_of(site)).close()


def test_the_password_is_in_no_argument_environment_or_log(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOKEN", "mine alone")
    monkeypatch.setenv("PGPASSWORD", "mine alone")
    record = start(site)
    with open_site(site) as store:
        store.put_app(App("A", "true"))
        told = b""
        found = processes_in(site)
        assert record.pid in found
        for pid in found:
            for name in ("cmdline", "environ"):
                told += Path(f"/proc/{pid}/{name}").read_bytes()
    assert b"postgres" in told
    secret = password_of(site).encode()
    assert secret not in told
    assert b"mine alone" not in told
    assert secret not in (site.log / "postgres.log").read_bytes()
    assert secret not in site.file.read_bytes() + site.server.read_bytes()


def test_a_second_server_is_refused_and_stop_waits_for_the_end_of_all(site: Site) -> None:
    record = start(site)
    with pytest.raises(StoreError, match=f"running already .process {record.pid} "):
        start(site)
    assert look(site).state is State.RUNNING
    server.stop(site)
    assert processes_in(site) == []
    assert look(site).state is State.STOPPED
    assert not server.socket_of(record).exists()
    with pytest.raises(StoreError, match="is not running"):
        server.stop(site)
    with pytest.raises(StoreError, match="nas-hpc db start"):
        open_site(site)
    again = start(site)
    assert (again.socket_directory, again.port) == (record.socket_directory, record.port)


@pytest.mark.slow
def test_a_port_of_the_network_stays_the_same_unless_somebody_else_has_it(site: Site) -> None:
    record = start(site, interface="lo")
    server.stop(site)
    for port in random.sample(range(12_000, 30_000), 100):  # no client gets one of these by chance
        with closing(socket.socket()) as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            break
    write_record(site, replace(record, port=port, stopped=1.0))
    assert start(site, interface="lo").port == port
    server.stop(site)
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", port))
        other.listen()
        assert start(site, interface="lo").port != port


@pytest.mark.slow
def test_a_server_that_was_killed_is_seen_and_started_again_with_all_that_was_acknowledged(
    site: Site,
) -> None:
    record = start(site)
    with open_site(site) as store:
        store.put_app(App("A", "true"))
    os.kill(record.pid, signal.SIGKILL)
    wait_for_end(site)
    assert look(site).state is State.DIED
    with pytest.raises(StoreError, match="has died; nothing is lost, start it with: nas-hpc db start"):
        open_site(site)
    start(site)
    with open_site(site) as store:
        assert [app.name for app in store.apps()] == ["A"]


def test_who_has_the_database_open_finds_a_server_that_came_back_elsewhere(site: Site) -> None:
    port = start(site).port
    with open_site(site) as store:
        store.put_app(App("A", "true"))
        server.stop(site)
        assert start(site, interface="lo").port != port
        assert [app.name for app in store.apps()] == ["A"]


@pytest.mark.slow
def test_after_a_reboot_a_pid_that_is_somebody_elses_by_now_is_no_server(site: Site) -> None:
    record = start(site)
    os.kill(record.pid, signal.SIGKILL)
    wait_for_end(site)
    account = cluster.account_of(server_user())
    with subprocess.Popen(["sleep", "60"], **(account.start() if account else {})) as other:
        try:
            pid_file = site.postgres / "postmaster.pid"
            pid_file.write_text(pid_file.read_text().replace(str(record.pid), str(other.pid), 1))
            lock = Path(record.socket_directory, f".s.PGSQL.{record.port}.lock")
            lock.write_text(lock.read_text().replace(str(record.pid), str(other.pid), 1))
            write_record(site, replace(record, boot_id="before", pid=other.pid))
            assert look(site).state is State.DIED
            start(site)
        finally:
            other.kill()


def fake_elsewhere(site: Site, **more: object) -> server.Record:
    """As if the server had been started on another host."""
    record = replace(start(site), host="node17", boot_id="another")
    server.stop(site)
    record = replace(record, **more)
    write_record(site, record)
    return record


def test_a_server_of_another_host_is_not_started_twice_unless_its_death_is_sure(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_elsewhere(site)
    assert look(site).state is State.DIED  # a local file system: the lock tells
    for module in (server, starting):
        monkeypatch.setattr(module, "locks_reach_others", lambda path: False)
    assert look(site).state is State.UNKNOWN
    with pytest.raises(StoreError, match=r"started on another host \(process \d+ on node17.*--gone node17"):
        start(site)
    with pytest.raises(WrongCall, match="--gone node18: the server .* was started on node17"):
        start(site, gone="node18")
    assert processes_in(site) == []
    assert start(site, gone="node17").host == socket.gethostname()


def test_a_lock_that_another_host_holds_proves_its_server_alive_whatever_the_user_says(site: Site) -> None:
    fake_elsewhere(site)
    with (site.run / "postgres.lock").open("rb+") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert look(site).state is State.ELSEWHERE
        for gone in ("", "node17"):
            with pytest.raises(StoreError, match="runs on another host .process .* on node17"):
                start(site, gone=gone)
        with pytest.raises(
            StoreError, match=r"cannot be stopped from here: call  nas-hpc db stop  on node17"
        ):
            server.stop(site)
    assert start(site).host == socket.gethostname()


def test_from_another_host_a_server_is_reached_by_its_interface_or_the_way_is_told(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = fake_elsewhere(site)
    with (site.run / "postgres.lock").open("rb+") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(
            StoreError, match=r"only a socket there: call this on node17, .* --interface NAME"
        ):
            open_site(site)
        monkeypatch.setattr("nas_hpc.store.postgres.PostgresDialect.patience_s", 0.0)
        write_record(site, replace(record, addresses=("127.0.0.1",), port=1))
        with pytest.raises(StoreError, match="Connection refused.* if node17 is gone: .*--gone node17"):
            open_site(site)
        write_record(site, replace(record, addresses=("10.1.2.3",), port=4321))
        assert "host=10.1.2.3&port=4321" in url_of(site)


@pytest.mark.slow
def test_the_processes_of_a_server_hold_its_lock_until_the_last_has_ended(site: Site) -> None:
    record = start(site)
    assert server.is_locked(site)
    child = next(pid for pid in processes_in(site) if pid != record.pid)
    os.kill(child, signal.SIGSTOP)
    os.kill(record.pid, signal.SIGKILL)
    try:
        deadline = time.monotonic() + 30
        while processes_in(site) != [child]:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert server.is_locked(site)
        with pytest.raises(StoreError, match="has died, its processes still end"):
            start(site)
    finally:
        os.kill(child, signal.SIGKILL)
    wait_for_end(site)
    start(site)


def test_a_server_that_cannot_start_says_why_and_leaves_no_process(site: Site) -> None:
    with (site.postgres / "postgresql.conf").open("a") as conf:
        conf.write("shared_buffers = nonsense\n")
    before = site.server.read_bytes()
    with pytest.raises(WorkFailed, match="shared_buffers"):
        start(site)
    assert processes_in(site) == []
    assert site.server.read_bytes() == before
    assert not server.is_locked(site)


@pytest.mark.slow
def test_the_path_of_a_socket_is_short_where_that_of_the_site_is_long(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = directory / ("d" * 100)
    deep.mkdir(mode=0o711)
    deep.chmod(0o711)
    site = copy_of_site(deep)
    monkeypatch.setenv("TMPDIR", f"/tmp/{'t' * 90}")
    record = start(site)
    try:
        assert len(os.fsencode(server.socket_of(record))) <= listening.LONGEST_SOCKET
        open_site(site).close()
    finally:
        server.stop(site)


@pytest.mark.slow
def test_a_socket_directory_that_somebody_else_made_is_not_used(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = start(site).socket_directory
    server.stop(site)
    Path(usual).mkdir(mode=0o777)
    try:
        Path(usual).chmod(0o777)
        record = start(site)
        assert record.socket_directory != usual
        server.stop(site)
    finally:
        os.rmdir(usual)


def test_missing_programs_are_named_with_how_to_get_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.setattr(programs, "USUAL", ("/nonexistent/*/bin",))
    with pytest.raises(WorkFailed, match=r"no initdb and postgres .*conda install -c conda-forge postgresql"):
        programs.find_postgres()


def test_half_an_installation_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "postgres").write_text("#!/bin/sh\necho postgres 15.1\n")
    (tmp_path / "postgres").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(programs, "USUAL", ())
    with pytest.raises(WorkFailed, match=f"{tmp_path} lacks initdb"):
        programs.find_postgres()


def test_the_version_that_made_the_data_is_asked_for(site: Site) -> None:
    (site.postgres / "PG_VERSION").write_text("11\n")
    with pytest.raises(
        WorkFailed, match="PostgreSQL 11, which made the data directory, is not here: .*found"
    ):
        start(site)


@pytest.mark.needs_root
def test_root_is_told_to_name_an_ordinary_user(site: Site) -> None:
    with pytest.raises(WrongCall, match="does not run as root: .*--server-user NAME"):
        cluster.account_of("")
    with pytest.raises(WrongCall, match="no such user"):
        cluster.account_of("nobody-of-that-name")
    with pytest.raises(WrongCall, match="does not run as root"):
        cluster.account_of("root")
    site.path.parent.chmod(0o700)
    with pytest.raises(WrongCall, match=f"cannot enter {site.path.parent} .mode 0700.*chmod"):
        start(site)


def test_the_record_is_damaged_and_says_what_to_do(site: Site) -> None:
    site.server.write_text("{}")
    with pytest.raises(WrongCall, match="is damaged: .*nas-hpc db start"):
        read_record(site)
