"""A launcher takes over on a shared file system, which shows what other nodes wrote only a while later."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nas_hpc.cli.sites import new_site
from nas_hpc.launcher import LauncherOptions, ownership
from nas_hpc.records import App, Job, Lease, new_id
from nas_hpc.site import Site, filesystem_type, is_local
from nas_hpc.states import Actor, State
from nas_hpc.store import open_store
from nas_hpc.store.base import Claim, JobFilter, Store

OPTIONS = LauncherOptions(job_mode="serial", result_grace_s=20.0)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return new_site(str(tmp_path / "site"))


@pytest.fixture
def store(site: Site) -> Iterator[Store]:
    with open_store(site.database) as opened:
        opened.put_app(App("P", "true"), replace=True)
        yield opened


def lease(proven_dead: bool) -> Lease:
    now = time.time()
    boot = "another boot" if proven_dead else ownership.sessions.boot_id()
    start = ownership.sessions.start_ticks(os.getpid())
    return Lease(new_id(), socket.gethostname(), boot, os.getpid(), start, "", now + 60)


def left_running(store: Store, jobs: list[Job], node: str) -> list[Job]:
    """These jobs, running on ``node`` under a launcher that is dead."""
    store.add_jobs(jobs, Actor.COMMAND)
    dead = lease(proven_dead=True)
    store.open_lease(dead, ending=[], proven=False, exclusive=True)
    running = store.claim(dead.id, [Claim(job.id, (node,)) for job in jobs])
    assert len(running) == len(jobs)
    return running


def take_over(store: Store, site: Site) -> dict[str, Job]:
    mine, _ = ownership.take_site(store, site, OPTIONS)
    ownership.adopt(store, site, mine, OPTIONS)
    return {job.name: job for job in store.jobs(JobFilter())}


def write_result(site: Site, job: Job, objective: float) -> None:
    directory = site.job_directory(job.workflow, job.directory_name)
    directory.mkdir(parents=True, exist_ok=True)
    body = {"job": job.id, "attempt": job.attempt, "outcome": "ok", "objective": objective,
            "start": 1.0, "end": 2.0}  # fmt: skip
    (directory / "draft").write_text(json.dumps(body))
    os.rename(directory / "draft", directory / "result.json")


def job(name: str, application: str = "P") -> Job:
    return Job(new_id(), name, "W", application=application)


def test_what_another_node_wrote_is_waited_for_and_adopted(
    site: Site, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ownership, "is_local", lambda path, shared: False)
    seen, late = left_running(store, [job("seen"), job("late")], "elsewhere")
    write_result(site, seen, 1.0)
    timer = threading.Timer(0.6, write_result, (site, late, 2.0))
    begun = time.monotonic()
    timer.start()
    jobs = take_over(store, site)
    assert 0.6 <= time.monotonic() - begun < OPTIONS.result_grace_s
    assert {name: one.state for name, one in jobs.items()} == dict.fromkeys(
        ("seen", "late"), State.JOB_FINISHED
    )
    [attempt] = store.attempts([late.id])
    assert attempt.result is not None
    assert attempt.result.objective == 2.0


def test_what_never_comes_is_lost_after_one_grace_for_all(
    site: Site, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ownership, "is_local", lambda path, shared: False)
    options = LauncherOptions(job_mode="serial", result_grace_s=0.5)
    left_running(store, [job(f"j{n}") for n in range(20)], "elsewhere")
    mine, _ = ownership.take_site(store, site, options)
    begun = time.monotonic()
    ownership.adopt(store, site, mine, options)
    assert 0.5 <= time.monotonic() - begun < 5
    assert {one.state for one in store.jobs(JobFilter())} == {State.RESTART_READY}


@pytest.mark.parametrize("case", ["local file system", "this host", "a virtual node", "a search"])
def test_nobody_waits_where_nothing_can_come_late(
    case: str, site: Site, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ownership, "is_local", lambda path, shared: case == "local file system")
    store.put_app(App("SEARCH", "search", restartable=True), replace=True)
    node = {"this host": socket.gethostname(), "a virtual node": f"{socket.gethostname()}-3"}.get(case, "far")
    left_running(store, [job("j", "SEARCH" if case == "a search" else "P")], node)
    begun = time.monotonic()
    assert take_over(store, site)["j"].state is State.RESTART_READY
    assert time.monotonic() - begun < OPTIONS.result_grace_s / 2


@pytest.mark.parametrize(
    ("kind", "local"),
    [("ext4", True), ("tmpfs", True), ("overlay", True), ("fuseblk", True), ("", True),
     ("nfs4", False), ("lustre", False), ("gpfs", False), ("beegfs", False), ("cifs", False),
     ("fuse.anything", False), ("fuse", False)],
)  # fmt: skip
def test_file_systems_of_several_hosts_are_known(
    kind: str, local: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nas_hpc.site.filesystem_type", lambda path: kind)
    assert is_local(Path("/")) is local


def test_the_file_system_of_a_path_that_does_not_exist_yet_is_its_parents() -> None:
    assert filesystem_type(Path("/proc/self/no/such")) == "proc"
