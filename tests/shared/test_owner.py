"""Who owns a site's database, and who takes it over when."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nas_hpc.errors import LeaseLost, SiteError, StoreError
from nas_hpc.records import new_id
from nas_hpc.resources.ends import has_ended
from nas_hpc.site import Site
from nas_hpc.states import Actor, State
from nas_hpc.store import JobFilter, inbox, open_site, owner, remote
from nas_hpc.store.owned import open_owned
from nas_hpc.store.owner import LAUNCHER, Occupied, Owner, own, read_owner
from nas_hpc.store.remote import Left, RemoteStore
from tests.shared.owning import Owning, shared_site
from tests.store.supply import person_job

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return shared_site(tmp_path)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands that do not wait long."""
    monkeypatch.setattr(remote, "ENDPOINT_S", 0.0)
    monkeypatch.setattr(remote, "INBOX_S", 0.3)
    monkeypatch.setattr(remote, "CONNECT_S", 0.3)


def foreign(expires_in_s: float, **fields: Any) -> Owner:
    """An owner on a host that is not this one."""
    told = Owner(new_id(), LAUNCHER, "login7", "boot", 4711, 99, expires=time.time() + expires_in_s)
    return replace(told, **fields)


def names(site: Site) -> list[str]:
    store = RemoteStore(site)
    try:
        return [job.name for job in store.jobs(JobFilter())]
    finally:
        store.close()


def test_the_owner_has_lock_record_and_a_rollback_journal_and_leaves_nothing(site: Site) -> None:
    with open_site(site) as store:
        said = read_owner(site)
        assert said is not None
        assert (said.pid, said.here) == (os.getpid(), True)
        assert store.raw().execute("PRAGMA journal_mode").fetchone() == ("truncate",)
        assert store.raw().execute("PRAGMA locking_mode").fetchone() == ("exclusive",)
    assert not site.owner.exists()
    assert not list(site.path.glob("*-wal"))


def test_a_site_that_was_used_on_a_local_file_system_is_taken_as_it_is(site: Site) -> None:
    from nas_hpc.store import open_store

    with open_store(site.database) as store:
        store.add_jobs([person_job("old")], Actor.COMMAND)
        assert site.database.with_name("db.sqlite3-wal").exists()
    assert names(site) == ["old"]


def test_a_second_process_is_kept_out_and_told_by_whom(site: Site, test_id: str) -> None:
    code = (
        "import sys; from pathlib import Path; from nas_hpc.site import Site;"
        "from nas_hpc.store import owner;"
        "owner.own(Site(Path(sys.argv[1])), owner.LAUNCHER); print('mine', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(site.path)],
        cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert other.stdout is not None
    assert other.stdin is not None
    assert other.stdout.readline() == "mine\n"
    with pytest.raises(Occupied, match=f"process {other.pid} on this host"):
        own(site, LAUNCHER)
    other.kill()
    other.wait(60)
    with open_owned(site) as store:  # at once: it is known to be dead
        assert store.jobs(JobFilter()) == []
    other.stdin.close()
    other.stdout.close()


def test_an_owner_of_another_host_counts_until_its_time_is_over(site: Site) -> None:
    owner._write_owner(site, foreign(60.0))
    with pytest.raises(Occupied, match=r"login7.*its time ends in [0-9]+ s"):
        own(site, LAUNCHER)
    owner._write_owner(site, foreign(-1.0))
    own(site, LAUNCHER).release()
    assert not site.owner.exists()


def test_an_owner_whose_batch_job_is_over_is_dead(site: Site) -> None:
    owner._write_owner(site, foreign(60.0, batch_system="slurm", batch_job="12"))
    for over in (False, True):
        asked = []

        def ended(system: str, job: str, over: bool = over, asked: list[Any] = asked) -> bool:
            asked.append((system, job))
            return over

        if over:
            own(site, LAUNCHER, batch_ended=ended).release()
        else:
            with pytest.raises(Occupied):
                own(site, LAUNCHER, batch_ended=ended)
        assert set(asked) == {("slurm", "12")}


PROGRAMS = {"slurm": "squeue", "pbs": "qstat", "cobalt": "qstat"}
SAID = {
    "slurm": [
        ("echo COMPLETED", True),
        ("echo RUNNING", False),
        ("echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1", True),
        ("echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1", False),
        ("true", False),
        ("echo COMPLETING", False),
    ],
    "cobalt": [
        ("exit 1", True),
        ("printf 'JobID  State    \\n=================\\n12     killing  \\n'", False),
        ("echo 'component error: Failed to connect to queue-manager' >&2; exit 1", False),
        ("kill -9 $$", False),
        ("true", False),
    ],
    "pbs": [
        ("echo 'qstat: Unknown Job Id 12.host' >&2; exit 153", True),
        ("echo 'qstat: 12.host Job has finished, use -x' >&2; exit 35", True),
        ("printf 'Job Id: 12\\n    job_state = F\\n'", True),
        ("printf 'Job Id: 12\\n    job_state = R\\n'", False),
        ("echo 'qstat: cannot connect to server' >&2; exit 111", False),
    ],
}


@pytest.mark.parametrize(
    ("system", "script", "over"), [(system, *case) for system, cases in SAID.items() for case in cases]
)
def test_the_batch_system_is_believed_only_when_it_says_that_a_job_is_over(
    system: str, script: str, over: bool, tmp_path: Path
) -> None:
    path = tmp_path / PROGRAMS[system]
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    environ = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    old = os.environ["PATH"]
    os.environ["PATH"] = environ["PATH"]
    try:
        assert has_ended(system, "12", environ) is over
    finally:
        os.environ["PATH"] = old
    assert not has_ended("none", "12", environ)


def test_an_owner_that_was_superseded_writes_nothing_more(site: Site) -> None:
    store = open_owned(site)
    store.add_jobs([person_job("before")], Actor.COMMAND)
    mine = owner._mine[site.path]
    mine._renewed -= 1000.0  # it was stopped for so long
    store.add_jobs([person_job("after")], Actor.COMMAND)  # and nobody had come
    mine._renewed -= 1000.0
    owner._write_owner(site, foreign(60.0))
    with pytest.raises(LeaseLost, match="login7"):
        store.add_jobs([person_job("late")], Actor.COMMAND)
    store.close()
    assert read_owner(site) is not None  # the other one's record stays
    site.owner.unlink()
    assert names(site) == ["before", "after"]


def test_an_owner_renews_its_word_while_it_writes(site: Site) -> None:
    with open_owned(site) as store:
        first = read_owner(site)
        assert first is not None
        owner._mine[site.path]._renewed -= 10.0
        store.add_jobs([person_job()], Actor.COMMAND)
        then = read_owner(site)
        assert then is not None
        assert then.id == first.id
        assert then.expires > first.expires


# -- without a way to the owner -----------------------------------------------------------------------
@pytest.mark.usefixtures("quick")
def test_a_change_for_an_owner_that_is_silent_stays_and_a_question_is_withdrawn(site: Site) -> None:
    owner._write_owner(site, foreign(60.0))
    store = RemoteStore(site, heartbeat_s=0.0)
    with pytest.raises(StoreError, match=r"login7.*has not answered.*nothing was changed"):
        store.apps()
    assert not list(site.inbox.iterdir())
    with pytest.raises(Left, match="the change lies there") as left:
        store.add_jobs([person_job("left")], Actor.COMMAND)
    assert left.value.exit_code == 0
    [path] = site.inbox.iterdir()
    assert path.stat().st_mode & 0o777 == 0o600
    store.close()
    owner._write_owner(site, foreign(-1.0))  # it has died
    assert names(site) == ["left"]
    assert [path.suffix for path in site.inbox.iterdir()] == [".answer"]


@pytest.mark.usefixtures("quick")
@pytest.mark.slow
def test_an_owner_that_dies_while_a_command_waits_is_succeeded_by_it(site: Site) -> None:
    owner._write_owner(site, foreign(2.0))
    store = RemoteStore(site, heartbeat_s=30.0)
    [job] = store.add_jobs([person_job("kept")], Actor.COMMAND)
    assert (job.name, job.state) == ("kept", State.READY)
    store.close()
    assert not list(site.inbox.iterdir())


@pytest.mark.usefixtures("quick")
def test_an_owner_that_answers_nobody_is_asked_by_way_of_the_inbox(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "ANSWER_S", 0.3)
    with Owning(site, answers=False) as owning:
        store = RemoteStore(site, heartbeat_s=20.0)
        job = person_job("once")
        assert [one.id for one in store.add_jobs([job], Actor.COMMAND)] == [job.id]
        assert owning.calls.count("add_jobs") >= 1
        store.close()
    assert names(site) == ["once"]


def test_files_that_are_no_calls_are_put_aside(site: Site) -> None:
    torn, linked = site.inbox / "0-torn.call", site.inbox / "1-linked.call"
    torn.write_bytes(b"\x93nothing")
    linked.symlink_to(site.file)
    (site.inbox / ".0-half.call.17").write_bytes(b"x")
    assert names(site) == []
    assert {path.name for path in site.inbox.iterdir()} == {
        "0-torn.call.refused", "1-linked.call.refused", ".0-half.call.17",
    }  # fmt: skip
    assert "0-torn.call" in (site.log / "inbox.log").read_text()


@pytest.mark.usefixtures("quick")
def test_what_is_refused_of_what_was_left_is_recorded(site: Site) -> None:
    owner._write_owner(site, foreign(60.0))
    store = RemoteStore(site, heartbeat_s=0.0)
    with pytest.raises(Left):
        store.add_jobs([person_job(application="nothing")], Actor.COMMAND)
    site.owner.unlink()
    assert names(site) == []
    assert "'nothing'" in (site.log / "inbox.log").read_text()
    assert not inbox.waiting(site)


# -- file systems -------------------------------------------------------------------------------------
_NO_LOCKS = """
import ctypes, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
def op(code, jt, jf, k): return struct.pack("HBBI", code, jt, jf, k)
FCNTL, SETLK, ENOLCK = {"x86_64": 72, "aarch64": 25}[__import__("os").uname().machine], 6, 37
program = (op(0x20, 0, 0, 0) + op(0x15, 0, 3, FCNTL) + op(0x20, 0, 0, 24) + op(0x15, 0, 1, SETLK)
           + op(0x06, 0, 0, 0x00050000 | ENOLCK) + op(0x06, 0, 0, 0x7FFF0000))
buffer = ctypes.create_string_buffer(program)
filter = struct.pack("HxxxxxxQ", len(program) // 8, ctypes.addressof(buffer))
assert libc.prctl(38, 1, 0, 0, 0) == 0 and libc.prctl(22, 2, ctypes.c_char_p(filter), 0, 0) == 0
from nas_hpc.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_a_file_system_without_locks_is_told_in_one_line_that_names_postgresql(site: Site) -> None:
    """The kernel itself refuses, as it does for such a file system."""
    for argv in (["ls", "jobs"], ["launcher", "--job-mode", "serial"]):
        done = subprocess.run(
            [sys.executable, "-c", _NO_LOCKS, "--site", str(site.path), *argv],
            cwd=REPOSITORY, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert done.returncode == 2, done
        [line] = done.stderr.splitlines()
        assert "has no locks (No locks available)" in line
        assert "use PostgreSQL" in line


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of two megabytes."""
    path = tmp_path / "disk"
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "none", str(path)], check=True, timeout=60)
    yield path
    subprocess.run(["umount", str(path)], check=True, timeout=60)


@pytest.mark.needs_root
@pytest.mark.needs_program("mount")
def test_a_full_or_read_only_disk_can_be_read_and_what_cannot_be_written_is_told(small_disk: Path) -> None:
    site = shared_site(small_disk)
    with open_site(site) as store:
        store.add_jobs([person_job("there")], Actor.COMMAND)
    with (small_disk / "filler").open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"x" * 4096)
        except OSError:
            pass
    reading = RemoteStore(site, read_only=True)
    assert [job.name for job in reading.jobs(JobFilter())] == ["there"]
    reading.close()
    with pytest.raises(SiteError, match="the disk is full"):
        RemoteStore(site)
    (small_disk / "filler").unlink()
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True, timeout=60)
    reading = RemoteStore(site, read_only=True)
    assert [job.name for job in reading.jobs(JobFilter())] == ["there"]
    reading.close()
    with pytest.raises(SiteError, match="read-only"):
        RemoteStore(site)


def test_who_opens_a_site_s_database_forgets_requests_of_long_ago(site: Site) -> None:
    def known() -> set[str]:
        return {row[0] for row in store.raw().execute("SELECT id FROM requests")}

    with open_owned(site) as store:
        assert store.first_time("new")
        assert store.first_time("old")
        store.raw().execute("UPDATE requests SET time = time - 40 * 86400 WHERE id = 'old'")
        assert known() == {"new", "old"}
    with open_owned(site) as store:
        assert known() == {"new"}
