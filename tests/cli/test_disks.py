"""Disks that are full or read-only: told in one line, and nothing is lost."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from nas_hpc.batch.jobs import read_jobs
from nas_hpc.batch.local import Local
from nas_hpc.batch.system import ask
from nas_hpc.cli.sites import new_site
from nas_hpc.site import Site
from nas_hpc.states import BatchState
from tests.cli.conftest import Run
from tests.support import wait_until

JOB = ("job", "--name", "new", "--workflow", "W", "--app", "echo")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte."""
    path = tmp_path / "disk"
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(path)], check=True, timeout=60)
    yield path
    subprocess.run(["umount", str(path)], check=True, timeout=60)


def fill(path: Path) -> None:
    """Leave no byte on the file system of ``path``."""
    with suppress(OSError), (path / "filler").open("wb", buffering=0) as file:
        while True:
            file.write(b"x" * 4096)


@pytest.mark.needs_root
@pytest.mark.needs_program("mount")
def test_a_full_disk_is_told_and_the_database_stays_as_it_was(small_disk: Path, nas_hpc: Run) -> None:
    site = new_site(str(small_disk / "site"))
    assert nas_hpc("app", "--name", "echo", "--exec", "true", "--site", str(site.path)).code == 0
    before = nas_hpc("ls", "jobs", "--json", "--site", str(site.path)).out
    fill(small_disk)
    assert shutil.disk_usage(small_disk).free == 0
    for argv in ((*JOB, "--site", str(site.path)), ("init", str(small_disk / "other"))):
        called = nas_hpc(*argv)
        assert called.code in (1, 2), called
        [line] = called.err.splitlines()
        assert "full" in line
        assert "Traceback" not in line
    (small_disk / "filler").unlink()
    assert nas_hpc("ls", "jobs", "--json", "--site", str(site.path)).out == before
    assert not (small_disk / "other").exists()
    assert nas_hpc(*JOB, "--site", str(site.path)).code == 0


@pytest.mark.needs_root
@pytest.mark.needs_program("mount")
def test_a_read_only_site_can_be_read_and_is_not_written(small_disk: Path, nas_hpc: Run) -> None:
    site = new_site(str(small_disk / "site"))
    where = ("--site", str(site.path))
    assert nas_hpc("app", "--name", "echo", "--exec", "true", *where).code == 0
    assert nas_hpc(*JOB, *where).code == 0
    remount = ["mount", "-o", "remount,ro", str(small_disk)]
    subprocess.run(remount, check=True, timeout=60)
    for argv in (JOB, ("kill", "new"), ("launcher",), ("app", "--sync")):
        called = nas_hpc(*argv, *where)
        assert called.code == 2, called
        [line] = called.err.splitlines()
        assert "read-only" in line
    listed = nas_hpc("ls", "jobs", *where)
    assert listed.code == 0, listed
    assert "new" in listed.out


@pytest.mark.needs_root
@pytest.mark.needs_program("mount")
def test_on_a_full_disk_nothing_is_submitted_and_no_script_is_left(small_disk: Path, nas_hpc: Run) -> None:
    site = new_site(str(small_disk / "site"))
    fill(small_disk)
    called = nas_hpc("submit-launch", "--machine", "local", "-n", "1", "-t", "5", "--site", str(site.path))
    assert called.code == 2, called
    [line] = called.err.splitlines()
    assert "No space left" in line
    assert "not submitted" in line or "nothing was submitted" in line
    assert list(site.qsubmit.iterdir()) == []


@pytest.mark.slow
@pytest.mark.needs_root
@pytest.mark.needs_program("mount")
def test_the_end_of_a_batch_job_whose_disk_became_full_is_known(
    small_disk: Path, nas_hpc: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NAS_HPC_LEASE_S", "3")  # so long the launcher tries to write; the script has it, too
    monkeypatch.setenv("NAS_HPC_HEARTBEAT_S", "1")
    where = ("--site", str(new_site(str(small_disk / "site")).path))
    assert nas_hpc("app", "--name", "wait", "--exec", f"cat {tmp_path}/go", *where).code == 0
    assert nas_hpc("job", "--name", "a", "--workflow", "W", "--app", "wait", *where).code == 0
    os.mkfifo(tmp_path / "go")
    called = nas_hpc("submit-launch", "--machine", "local", "-n", "1", "-t", "5", *where)
    assert called.code == 0, called
    [job] = read_jobs(Site(small_disk / "site"))
    with (tmp_path / "go").open("w"):  # the job runs, and ends when this is closed
        fill(small_disk)
    wait_until(lambda: Local().status([job], ask)[job.id].state is BatchState.ENDED, 120.0, "the end")
    (small_disk / "filler").unlink()
