"""Sites on PostgreSQL by the commands: made, started, looked at, moved; what is wrong is told in one line and
leaves nothing behind."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nas_hpc import site as site_module
from nas_hpc.cli.context import open_database
from nas_hpc.cli.sites import new_site
from nas_hpc.errors import StoreError
from nas_hpc.records import App, Lease, new_id
from nas_hpc.site import Site, load_site
from nas_hpc.store import calls, inbox, moving, server, who
from nas_hpc.store.base import JobFilter
from nas_hpc.store.place import place_of
from nas_hpc.wire import PROTOCOL, StoreCall
from tests.cli.conftest import Called, Run
from tests.peers.own_server import copy_of_site, open_directory, processes_in, server_user
from tests.peers.postgres import PASSWORD, Postgres, missing_postgres, shared_server
from tests.support import processes_of, wait_until

if missing_postgres():
    pytest.skip(missing_postgres(), allow_module_level=True)

AS_USER = ("--server-user", server_user()) if server_user() else ()
JOB = ("job", "--workflow", "W", "--app", "echo")


@pytest.fixture
def directory(test_id: str) -> Iterator[Path]:
    """One that the server's user can pass through; servers below it end with the test."""
    with open_directory() as path:
        yield path


@pytest.fixture
def own(directory: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    """A site with a server of its own, which does not run; that of NAS_HPC_SITE."""
    site = copy_of_site(directory)
    monkeypatch.setenv("NAS_HPC_SITE", str(site.path))
    return site


@pytest.fixture
def given() -> Iterator[tuple[Postgres, str]]:
    """A server that exists, and the name of an empty database in it."""
    peer = shared_server()
    name = peer.fresh()
    yield peer, name
    peer.drop(name)


def one_line(called: Called, *codes: int) -> str:
    """The only line of a call that failed."""
    assert called.code in codes, called
    [line] = called.err.splitlines()
    assert "Traceback" not in line
    return line


def network_url(peer: Postgres, name: str, password: str = PASSWORD) -> str:
    """The URL of a database that asks for a password."""
    word = password.replace(" ", "%20")
    return f"postgresql://tester:{word}@127.0.0.1:{peer.port}/{name}"


def program(*argv: str) -> subprocess.Popen[bytes]:
    """The program in a process of its own."""
    root = Path(__file__).resolve().parents[2]
    return subprocess.Popen(
        [sys.executable, "-m", "nas_hpc.cli", *argv],
        env=os.environ | {"PYTHONPATH": str(root)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


# -- init ------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_site_with_a_server_of_its_own_is_usable_at_once(nas_hpc: Run, directory: Path) -> None:
    path = str(directory / "site")
    made = nas_hpc("init", path, "--postgres", *AS_USER)
    assert made.code == 0, made
    assert "PostgreSQL" in made.out
    assert nas_hpc("app", "--name", "echo", "--exec", "true", "--site", path).code == 0
    assert nas_hpc(*JOB, "--name", "a", "--site", path).code == 0
    site = load_site(path)
    assert place_of(site).owned
    with open_database(site) as store:
        for name in ("fsync", "full_page_writes", "synchronous_commit"):
            assert store.raw().execute(f"SHOW {name}").fetchone() == ("on",)  # type: ignore[attr-defined]
    assert nas_hpc("db", "stop", "--site", path).code == 0
    assert processes_in(site) == []
    line = one_line(nas_hpc("ls", "jobs", "--site", path), 1)
    assert "is not running; start it, on the host where it is to run, with: nas-hpc db start" in line
    assert nas_hpc("db", "start", "--site", path).code == 0
    assert "READY" in nas_hpc("ls", "jobs", "--site", path).out


def test_a_site_on_a_given_server_keeps_the_password_in_a_file_of_its_own(
    nas_hpc: Run, tmp_path: Path, given: tuple[Postgres, str]
) -> None:
    peer, name = given
    made = nas_hpc("init", str(tmp_path / "site"), "--database", network_url(peer, name))
    assert made.code == 0, made
    assert PASSWORD not in made.out + made.err
    assert "--password-file" in made.err  # how not to show it to others
    site = load_site(tmp_path / "site")
    assert place_of(site).url == f"postgresql://tester@127.0.0.1:{peer.port}/{name}"
    holding = [
        path for path in site.path.rglob("*") if path.is_file() and PASSWORD.encode() in path.read_bytes()
    ]
    assert holding == [site.path / "database.password"]
    assert holding[0].stat().st_mode & 0o777 == 0o600
    where = ("--site", str(site.path))
    assert nas_hpc("app", "--name", "echo", "--exec", "true", *where).code == 0
    assert json.loads(nas_hpc("ls", "apps", "--json", *where).out)[0]["name"] == "echo"
    status = json.loads(nas_hpc("db", "status", "--json", *where).out)
    assert (status["kind"], status["usable"]) == ("postgresql", True)
    assert "not the site's own" in status["server"]
    for action in ("start", "stop"):
        assert "no PostgreSQL server of its own" in one_line(nas_hpc("db", action, *where), 2)


def test_a_password_file_is_used_where_it_is(
    nas_hpc: Run, tmp_path: Path, given: tuple[Postgres, str]
) -> None:
    peer, name = given
    word = tmp_path / "word"
    word.write_text(PASSWORD + "\n")
    url = f"postgresql://tester@127.0.0.1:{peer.port}/{name}"
    argv = ("init", str(tmp_path / "site"), "--database", url, "--password-file", str(word))
    word.chmod(0o640)
    assert f"chmod 600 {word}" in one_line(nas_hpc(*argv), 2)
    assert not (tmp_path / "site").exists()
    word.chmod(0o600)
    assert nas_hpc(*argv).code == 0
    assert place_of(load_site(tmp_path / "site")).password_file == word
    word.chmod(0o644)
    assert "chmod 600" in one_line(nas_hpc("ls", "jobs", "--site", str(tmp_path / "site")), 1, 2)


def test_a_database_of_another_site_or_program_is_refused_and_left_as_it_was(
    nas_hpc: Run, tmp_path: Path, given: tuple[Postgres, str]
) -> None:
    peer, name = given
    url = peer.url(name)
    assert nas_hpc("init", str(tmp_path / "first"), "--database", url).code == 0
    line = one_line(nas_hpc("init", str(tmp_path / "second"), "--database", url), 2)
    assert f"those of the site {tmp_path / 'first'}" in line
    assert not (tmp_path / "second").exists()
    where = ("--site", str(tmp_path / "first"))
    assert nas_hpc("app", "--name", "echo", "--exec", "true", *where).code == 0
    other = peer.fresh()
    peer.do("CREATE TABLE theirs (a int)", database=other)
    try:
        line = one_line(nas_hpc("init", str(tmp_path / "third"), "--database", peer.url(other)), 2)
        assert "theirs" in line
        rows = peer.do("SELECT tablename FROM pg_tables WHERE schemaname = 'public'", database=other)
        assert rows == [("theirs",)]
    finally:
        peer.drop(other)
    assert not (tmp_path / "third").exists()


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("mysql://me:hush@host/jobs", "no URL of a PostgreSQL database"),
        ("postgresql://me:hush@127.0.0.1:1/jobs", "127.0.0.1"),
        ("postgresql://me:hush@no-such-host.invalid/jobs", "no-such-host.invalid"),
        ("postgresql:///jobs?host=/nonexistent", "/nonexistent"),
        ("postgresql://tester:hush@127.0.0.1:{port}/nas", "password"),
    ],
)
def test_a_database_that_cannot_be_used_is_told_and_nothing_is_left(
    nas_hpc: Run, tmp_path: Path, url: str, told: str
) -> None:
    url = url.format(port=shared_server().port)
    called = nas_hpc("init", str(tmp_path / "site"), "--database", url)
    assert called.code in (1, 2), called
    lines = [line for line in called.err.splitlines() if not line.startswith("note:")]
    assert len(lines) == 1, called
    assert told in lines[0]
    assert "hush" not in called.err
    assert not (tmp_path / "site").exists()


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (("--postgres", "--database", "postgresql://h/d"), "do not go together"),
        (("--password-file", "x"), "goes with --database"),
        (("--interface", "lo"), "--interface lo goes with --postgres"),
        (("--server-user", "me"), "--server-user me goes with --postgres"),
        (("--postgres", "--server-user", "nobody-of-that-name"), "no such user"),
        (("--postgres", "--interface", "nope9", *AS_USER), "'nope9' has no address on this host; there are"),
    ],
)
def test_flags_of_init_that_make_no_sense_are_told(
    nas_hpc: Run, directory: Path, argv: tuple[str, ...], told: str
) -> None:
    assert told in one_line(nas_hpc("init", str(directory / "site"), *argv), 2)
    assert not (directory / "site").exists()


@pytest.mark.slow
def test_a_site_whose_mark_cannot_be_written_takes_its_tables_and_its_server_with_it(
    nas_hpc: Run, directory: Path, given: tuple[Postgres, str], monkeypatch: pytest.MonkeyPatch, test_id: str
) -> None:
    def fail(site: Site, more: str) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(site_module, "_write_mark", fail)
    peer, name = given
    assert "full" in one_line(nas_hpc("init", str(directory / "a"), "--database", peer.url(name)), 2)
    assert peer.do("SELECT tablename FROM pg_tables WHERE schemaname = 'public'", database=name) == []
    assert "full" in one_line(nas_hpc("init", str(directory / "b"), "--postgres", *AS_USER), 2)
    assert list(directory.iterdir()) == []
    assert processes_of(test_id) == []


@pytest.mark.slow
@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
def test_an_init_that_is_interrupted_leaves_neither_directory_nor_process(
    directory: Path, sign: signal.Signals, test_id: str
) -> None:
    seed = random.randrange(1 << 30)
    print("seed", seed)
    with program("init", str(directory / "site"), "--postgres", *AS_USER) as process:
        wait_until((directory / "site" / "postgres").exists, 60, "initdb to begin")
        time.sleep(random.Random(seed).uniform(0.0, 1.5))  # anywhere in initdb, roles, start, tables
        process.send_signal(sign)
        process.send_signal(sign)  # the impatient
        out, _ = process.communicate(timeout=60)
    if process.returncode == 0:  # it was ready before
        assert (directory / "site" / "site.toml").exists()
        server.stop(load_site(directory / "site"), at_once=True)
        return
    assert process.returncode == 130, out
    assert out.decode().strip() == "nas-hpc: interrupted"
    assert list(directory.iterdir()) == []
    wait_until(lambda: processes_of(test_id) == [], 60, "the processes to end")


@pytest.mark.slow
@pytest.mark.needs_root
@pytest.mark.needs_program("mount")
def test_a_full_or_read_only_disk_is_told_and_nothing_is_left(nas_hpc: Run, directory: Path) -> None:
    disk = directory / "disk"
    disk.mkdir(mode=0o711)
    mount = ["mount", "-t", "tmpfs", "-o", "size=12m,mode=0711", "none", str(disk)]
    subprocess.run(mount, check=True, timeout=60)
    try:
        line = one_line(nas_hpc("init", str(disk / "site"), "--postgres", *AS_USER), 1)
        assert "the disk is full" in line
        assert list(disk.iterdir()) == []
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True, timeout=60)
        assert "read-only" in one_line(nas_hpc("init", str(disk / "site"), "--postgres", *AS_USER), 2)
    finally:
        subprocess.run(["umount", str(disk)], check=True, timeout=60)


def test_without_its_programs_no_server_is_made(
    nas_hpc: Run, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nas_hpc.store.programs.USUAL", ())
    monkeypatch.setenv("PATH", "/nonexistent")
    line = one_line(nas_hpc("init", str(directory / "site"), "--postgres", *AS_USER), 1)
    assert "no initdb and postgres" in line
    assert "conda" in line
    assert list(directory.iterdir()) == []


# -- start, stop, status ---------------------------------------------------------------------------


def test_status_works_whether_the_server_runs_or_not(nas_hpc: Run, own: Site) -> None:
    down = nas_hpc("db", "status", "--json")
    body = json.loads(down.out)
    assert (down.code, body["server"], body["usable"]) == (1, "stopped", False)
    assert body["size_bytes"] > 1 << 20
    assert "nas-hpc db start" in nas_hpc("db", "status").out
    assert nas_hpc("db", "start", "--interface", "lo").code == 0
    assert "running already" in one_line(nas_hpc("db", "start"), 1)
    up = nas_hpc("db", "status", "--json")
    body = json.loads(up.out)
    record = server.read_record(own)
    assert record is not None
    assert (up.code, body["server"], body["pid"], body["launchers"]) == (0, "running", record.pid, [])
    assert body["addresses"] == [f"127.0.0.1:{record.port}"]
    assert body["host"] == socket.gethostname()
    assert body["version"].split(".")[0].isdigit()
    assert f"process {record.pid}" in nas_hpc("db", "stop").out
    assert "is not running" in one_line(nas_hpc("db", "stop"), 1)


def test_status_of_a_site_on_sqlite_names_its_file(nas_hpc: Run, site: Site) -> None:
    body = json.loads(nas_hpc("db", "status", "--json").out)
    assert (body["kind"], body["address"], body["usable"]) == ("sqlite", str(site.database), True)
    assert "SQLite" in one_line(nas_hpc("db", "start"), 2)


@pytest.mark.slow
def test_the_doctor_names_the_database_its_version_and_how_long_a_commit_takes(
    nas_hpc: Run, own: Site, directory: Path
) -> None:
    nas_hpc("db", "start")
    small = new_site(str(directory / "small"))
    for path, kind in ((own.path, "PostgreSQL"), (small.path, "SQLite")):
        found = json.loads(nas_hpc("doctor", "--quick", "--json", "--site", str(path)).out)["checks"]
        said = {check["name"]: check for check in found}
        assert said["database"]["text"].startswith(f"{kind} ")
        assert said["commits"]["level"] in ("ok", "warn")
        assert "ms" in said["commits"]["text"]
    nas_hpc("db", "stop")
    checks = json.loads(nas_hpc("doctor", "--quick", "--json").out)["checks"]
    [down] = [check for check in checks if check["name"] == "database"]
    assert down["level"] == "warn"  # a launcher would start it
    assert "nas-hpc db start" in down["text"]


@pytest.mark.slow
def test_a_launcher_starts_the_server_of_its_site_and_ends_it_but_not_one_that_ran(
    nas_hpc: Run, own: Site
) -> None:
    nas_hpc("db", "start")
    assert nas_hpc("app", "--name", "echo", "--exec", "true").code == 0
    assert nas_hpc(*JOB, "--name", "a").code == 0
    nas_hpc("db", "stop")
    ran = nas_hpc("launcher", "--job-mode", "serial")
    assert ran.code == 0, ran
    assert "it ends with this launcher" in ran.err
    assert "1 JOB_FINISHED" in ran.out
    assert processes_in(own) == []
    nas_hpc("db", "start")
    assert nas_hpc("launcher", "--job-mode", "serial").code == 0
    assert processes_in(own)


@pytest.mark.slow
def test_a_launcher_leaves_the_server_that_it_started_to_others_that_use_it(nas_hpc: Run, own: Site) -> None:
    other = Lease("l", "node17", "boot", 4711, 1.0, "", time.time() + 600)
    nas_hpc("db", "start")
    with open_database(own) as store:
        store.open_lease(other, exclusive=False)
    nas_hpc("db", "stop")
    ran = nas_hpc("launcher", "--job-mode", "serial")
    assert ran.code == 0, ran
    assert "the site's PostgreSQL server stays: process 4711 on node17" in ran.err
    assert processes_in(own)
    shown = json.loads(nas_hpc("db", "status", "--json").out)["launchers"]
    assert [one["host"] for one in shown] == ["node17"]


# -- move ------------------------------------------------------------------------------------------


def contents(site: Site) -> dict[str, list[object]]:
    """All that a site's database says through its protocol."""
    with open_database(site, read_only=True) as store:
        jobs = store.jobs(JobFilter())
        return {
            "apps": list(store.apps()),
            "jobs": list(jobs),
            "events": list(store.events()),
            "attempts": list(store.attempts([job.id for job in jobs])),
            "leases": list(store.leases(live_only=False)),
        }


@pytest.mark.slow
def test_a_site_moves_to_a_server_of_its_own_with_every_event(nas_hpc: Run, directory: Path) -> None:
    site = new_site(str(directory / "site"))
    where = ("--site", str(site.path))
    assert nas_hpc("app", "--name", "echo", "--exec", "true", *where).code == 0
    for name in ("a", "b"):
        assert nas_hpc(*JOB, "--name", name, *where).code == 0
    assert nas_hpc("launcher", "--job-mode", "serial", *where).code == 0
    assert nas_hpc(*JOB, "--name", "c", *where).code == 0
    with site.file.open("a") as file:
        file.write('job_mode = "serial"\n')
    before = contents(site)
    moved = nas_hpc("db", "move", "--postgres", *AS_USER, *where)
    assert moved.code == 0, moved
    assert "moved 3 jobs and 9 events" in moved.out
    assert place_of(site).owned
    assert contents(site) == before
    assert not site.database.exists()
    assert site.database.with_name("db.sqlite3.moved").exists()
    ran = nas_hpc("launcher", *where)  # numbers go on after the copied ones
    assert "1 JOB_FINISHED" in ran.out
    assert contents(site)["events"][:9] == before["events"]
    assert "in PostgreSQL already" in one_line(nas_hpc("db", "move", "--postgres", *AS_USER, *where), 2)


def test_a_site_moves_to_a_given_server_once_and_a_database_in_use_is_refused(
    nas_hpc: Run, full_site: Site, given: tuple[Postgres, str], tmp_path: Path
) -> None:
    peer, name = given
    used = peer.fresh()
    try:
        assert nas_hpc("init", str(tmp_path / "other"), "--database", peer.url(used)).code == 0
        before = contents(full_site)
        line = one_line(nas_hpc("db", "move", "--to", peer.url(used)), 2)
        assert f"those of the site {tmp_path / 'other'}" in line
        assert contents(full_site) == before
        assert load_site(tmp_path / "other")
        assert nas_hpc("ls", "jobs", "--site", str(tmp_path / "other")).out == "no jobs\n"
    finally:
        peer.drop(used)
    assert nas_hpc("db", "move", "--to", network_url(peer, name)).code == 0
    assert contents(full_site) == before
    assert PASSWORD not in full_site.file.read_text()


def test_a_site_whose_launcher_lives_does_not_move(
    nas_hpc: Run, full_site: Site, given: tuple[Postgres, str]
) -> None:
    peer, name = given
    mine = Lease(
        "l", who.this_host(), who.boot_id(), os.getpid(), who.start_ticks(os.getpid()), "", time.time() + 60
    )
    with open_database(full_site) as store:
        store.open_lease(mine, exclusive=True)
    line = one_line(nas_hpc("db", "move", "--to", peer.url(name)), 2)
    assert f"process {os.getpid()} on {who.this_host()}; stop it first" in line
    assert place_of(full_site).kind == "sqlite"
    with open_database(full_site) as store:
        store.close_lease("l", time.time())
    assert nas_hpc("db", "move", "--to", peer.url(name)).code == 0


@pytest.mark.slow
def test_who_waited_for_the_old_file_while_the_site_moved_does_not_write_to_it(
    nas_hpc: Run, full_site: Site, given: tuple[Postgres, str]
) -> None:
    peer, name = given
    with open_database(full_site) as late:  # opened before, writes after
        assert nas_hpc("db", "move", "--to", peer.url(name)).code == 0
        with pytest.raises(StoreError, match="moved to PostgreSQL: call the command again"):
            late.put_app(App("new", "true"))


@pytest.mark.slow
def test_a_move_that_fails_in_the_copy_leaves_the_site_and_an_empty_database(
    nas_hpc: Run, full_site: Site, given: tuple[Postgres, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(target: object, table: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(moving, "_advance_sequence", fail)
    peer, name = given
    before = contents(full_site)
    assert nas_hpc("db", "move", "--to", network_url(peer, name)).code == 130
    assert contents(full_site) == before
    assert not (full_site.path / "database.password").exists()
    assert peer.do("SELECT tablename FROM pg_tables WHERE schemaname = 'public'", database=name) == []


@pytest.mark.slow
def test_what_was_left_in_the_inbox_while_a_site_moved_is_carried_out_there(
    nas_hpc: Run, full_site: Site, given: tuple[Postgres, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    peer, name = given
    close = moving._close

    def leave_and_close(source: object) -> None:
        call = StoreCall(PROTOCOL, 0, new_id(), "put_app", [calls.put_app(App("left", "true")), False])
        inbox.leave(full_site, call)
        close(source)

    monkeypatch.setattr(moving, "_close", leave_and_close)
    assert nas_hpc("db", "move", "--to", peer.url(name)).code == 0
    with open_database(full_site) as store:
        assert "left" in {app.name for app in store.apps()}
    assert inbox.waiting(full_site) == []


@pytest.mark.slow
def test_a_move_that_is_killed_leaves_the_old_or_the_new_site_and_can_be_repeated(
    full_site: Site, given: tuple[Postgres, str], nas_hpc: Run
) -> None:
    peer, name = given
    before = contents(full_site)
    seed = random.randrange(1 << 30)
    print("seed", seed)
    chance = random.Random(seed)
    for _ in range(6):
        with program("db", "move", "--to", peer.url(name)) as process:
            time.sleep(chance.uniform(0.5, 1.6))
            process.kill()
            process.communicate()
        assert contents(full_site) == before
        if place_of(full_site).kind == "postgresql":
            return
    assert nas_hpc("db", "move", "--to", peer.url(name)).code == 0
    assert contents(full_site) == before


@pytest.mark.slow
@pytest.mark.parametrize("step", ["_copy", "write_place", "_close", "_rename"])
def test_a_move_that_ends_right_after_any_step_can_be_repeated_or_is_done(
    full_site: Site, given: tuple[Postgres, str], nas_hpc: Run, step: str
) -> None:
    peer, name = given
    before = contents(full_site)
    code = (
        "import os, sys; from nas_hpc.store import moving; from nas_hpc.cli.main import main\n"
        f"step = moving.{step}\n"
        "def last(*args):\n    step(*args)\n    os._exit(9)\n"
        f"moving.{step} = last\n"
        f"main(['db', 'move', '--to', {peer.url(name)!r}])"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=100).returncode == 9
    done = place_of(full_site).kind == "postgresql"
    assert done == (step != "_copy")
    assert contents(full_site) == before
    again = nas_hpc("db", "move", "--to", peer.url(name))
    assert again.code == (2 if done else 0), again
    assert contents(full_site) == before


@pytest.mark.slow
def test_a_move_to_a_server_of_its_own_that_was_killed_is_begun_anew(
    nas_hpc: Run, directory: Path, test_id: str
) -> None:
    site = new_site(str(directory / "site"))
    where = ("--site", str(site.path))
    assert nas_hpc("app", "--name", "echo", "--exec", "true", *where).code == 0
    before = contents(site)
    with program("db", "move", "--postgres", *AS_USER, *where) as process:
        wait_until(lambda: processes_in(site) and site.server.exists(), 60, "the server to start")
        process.kill()
        process.communicate()
    if place_of(site).kind == "sqlite":
        assert contents(site) == before
        assert nas_hpc("db", "move", "--postgres", *AS_USER, *where).code == 0
    assert contents(site) == before
    assert nas_hpc("db", "stop", *where).code == 0
    wait_until(lambda: processes_of(test_id) == [], 60, "the first server to have ended, too")


@pytest.mark.slow
def test_a_move_leaves_alone_what_a_user_put_into_the_site(nas_hpc: Run, directory: Path) -> None:
    site = new_site(str(directory / "site"))
    (site.postgres / "mine").mkdir(parents=True)
    line = one_line(nas_hpc("db", "move", "--postgres", *AS_USER, "--site", str(site.path)), 2)
    assert f"{site.postgres} is there already" in line
    assert (site.postgres / "mine").is_dir()
    assert place_of(site).kind == "sqlite"


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        ((), "say where to"),
        (("--to", "postgresql://h/d", "--postgres"), "--to and --postgres do not go together"),
        (("--to", "nowhere"), "--to 'nowhere' is no URL"),
        (("--password-file", "x"), "goes with --to"),
    ],
)
def test_a_move_to_nowhere_is_told(nas_hpc: Run, site: Site, argv: tuple[str, ...], told: str) -> None:
    assert told in one_line(nas_hpc("db", "move", *argv), 2)
    assert place_of(site).kind == "sqlite"
