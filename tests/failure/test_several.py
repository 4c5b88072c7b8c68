"""Several launchers on one site with PostgreSQL: each runs what there is, none undoes what another does."""

from __future__ import annotations

import csv
import json
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from nas_hpc.records import Job, Lease, new_id
from nas_hpc.site import Site
from nas_hpc.states import State
from nas_hpc.store import open_site
from nas_hpc.store.base import Claim, JobFilter
from tests.failure import ledger, several
from tests.failure.scene import Scene
from tests.failure.several import Band
from tests.failure.soak import frozen
from tests.peers.postgres import Postgres, drop_database, missing_postgres, new_database
from tests.support import stays, wait_until

pytestmark = pytest.mark.slow
WAIT_S = 120.0


@pytest.fixture(autouse=True)
def _settings(monkeypatch: pytest.MonkeyPatch) -> None:
    if missing := missing_postgres():
        pytest.skip(missing)
    for name, value in several.SETTINGS.items():
        monkeypatch.setenv(f"NAS_HPC_{name}", value)


@pytest.fixture
def database() -> Iterator[str]:
    """URL of an empty job database."""
    url = new_database()
    yield url
    drop_database(url)


def jobs(scene: Scene, **where: Any) -> list[Any]:
    store = open_site(Site(scene.site), read_only=True)
    try:
        return store.jobs(JobFilter(workflow=scene.name, **where))
    finally:
        store.close()


def number_of(band: Band, job: Job) -> int:
    """Of the launcher that runs ``job``."""
    store = open_site(Site(band.scene.site), read_only=True)
    try:
        [pid] = [lease.pid for lease in store.leases() if lease.id == job.lease]
    finally:
        store.close()
    return next(number for number, one in band.launchers.items() if one.pid == pid)


def test_launchers_killed_at_random_lose_no_evaluation_and_finish_none_twice(
    several_seed: int, tmp_path: Path, test_id: str, database: str
) -> None:
    print(f"seed {several_seed}")
    scene = Scene(tmp_path, test_id, 80, database=database)
    agents = ("--nodes", "3", "--agents", "2") if several_seed % 3 == 0 else ()
    several.play(scene, launchers=2 if agents else 4, kills=6, seed=several_seed, flags=agents, work_s="0.1")


def test_a_search_has_the_slots_of_all_launchers_and_gets_their_results_in_order(
    tmp_path: Path, test_id: str, database: str
) -> None:
    scene = Scene(tmp_path, test_id, 60, database=database)
    scene.prepare(run="tests.failure.functions.gated", workers=2)
    band = Band(scene)
    for number in range(3):
        band.start(number)

    def full() -> bool:
        band.check()
        shown = band.views()
        capacity = sum(search["capacity"] for view in shown for search in view["searches"])
        return len(shown) == 3 and capacity == 6 and sum(view["running"] for view in shown) == 7

    wait_until(full, WAIT_S, lambda: band.told(f"six evaluations and their search: {band.views()}"))
    scene.gate.touch()
    band.end()
    assert scene.judge() == 0
    lines = [json.loads(line) for line in (scene.workflow / "attempts.jsonl").read_text().splitlines()]
    assert len({line["launcher"] for line in lines if line["creator"]}) == 3
    store = open_site(Site(scene.site), read_only=True)
    try:
        [search] = [job for job in store.jobs(JobFilter()) if not job.creator]
        order = [one.job.seq for one in store.finished(search.id)]
    finally:
        store.close()
    with (scene.workflow / "results.csv").open(newline="") as file:
        assert [int(row["seq"]) for row in csv.DictReader(file)] == order


def test_a_job_is_killed_under_whichever_launcher_it_runs_and_a_retried_one_wakes_those_that_wait(
    tmp_path: Path, test_id: str, database: str
) -> None:
    scene = Scene(tmp_path, test_id, 1, database=database)
    scene.command("init", str(scene.site), "--database", database)
    scene.command("app", "--name", "SLEEP", "--exec", "sleep")
    flags = (
        "--app",
        "SLEEP",
        "--args",
        "1000",
        "--workflow",
        scene.name,
        "--env",
        f"NAS_HPC_TEST_ID={test_id}",
    )
    band = Band(scene, ("--consume-all", "--persistent"))
    for number in range(2):
        band.start(number)
    wait_until(band.all_here, WAIT_S, lambda: band.told("two launchers"))
    for name in ("one", "two"):  # each takes a whole node
        scene.command("job", "--name", name, *flags)

    def running() -> set[str]:
        band.check()
        return {job.lease for job in jobs(scene, states=frozenset({State.RUNNING}))}

    wait_until(lambda: len(running()) == 2, WAIT_S, lambda: band.told("each launcher to run a job"))
    for name in ("one", "two"):
        scene.command("kill", name)

    def idle() -> bool:
        return [view["running"] for view in band.views()] == [0, 0]

    wait_until(idle, WAIT_S, lambda: band.told("both programs to be ended"))
    assert {job.state for job in jobs(scene)} == {State.USER_KILLED}
    scene.command("retry", "one", "two")
    wait_until(lambda: len(running()) == 2, WAIT_S, lambda: band.told("both to run again"))
    assert len(scene.command("ls", "nodes").splitlines()) == 3

    def healthy() -> bool:
        return scene.command("doctor", "--quick", "--json").count(": 1 running, 0 waiting") == 2

    wait_until(healthy, WAIT_S, "doctor to see both launchers at work")
    [said] = [line for line in scene.command("why", "one").splitlines() if "it is running on" in line]
    assert "launcher" in said
    scene.command("kill", "one", "two")
    wait_until(idle, WAIT_S, lambda: band.told("both programs to be ended"))
    band.stop()


def test_a_child_runs_wherever_its_parent_has_finished(tmp_path: Path, test_id: str, database: str) -> None:
    scene = Scene(tmp_path, test_id, 1, database=database)
    scene.command("init", str(scene.site), "--database", database)
    scene.command("app", "--name", "TRUE", "--exec", "true")
    band = Band(scene, ("--consume-all", "--persistent"))
    for number in range(2):
        band.start(number)
    parent = ""
    for generation in range(6):
        more = ("--parents", parent) if parent else ()
        flags = ("--app", "TRUE", "--workflow", scene.name, "--env", f"NAS_HPC_TEST_ID={test_id}")
        parent = scene.command("job", "--name", f"g{generation}", *flags, *more).strip()
    finished = frozenset({State.JOB_FINISHED})
    wait_until(lambda: len(jobs(scene, states=finished)) == 6, WAIT_S, lambda: band.told("six generations"))
    band.stop()


def test_the_search_of_a_launcher_that_ends_goes_on_under_another(
    tmp_path: Path, test_id: str, database: str
) -> None:
    scene = Scene(tmp_path, test_id, 60, database=database)
    scene.prepare(workers=2, environ={ledger.WORK_S: "0.1"})
    band = Band(scene)
    for number in range(2):
        band.start(number)
    band.until(10)
    [search] = [job for job in jobs(scene) if not job.creator]
    ending = band.launchers.pop(number_of(band, search))
    ending.send_signal(signal.SIGTERM)
    assert ending.wait(WAIT_S) == 0, scene.log()
    band.end()
    scene.judge()
    [search] = [job for job in jobs(scene) if not job.creator]
    assert (search.state, search.attempt) == (State.JOB_FINISHED, 2)


def test_while_the_server_is_away_for_twenty_seconds_nothing_is_lost(tmp_path: Path, test_id: str) -> None:
    chance = random.Random(7)
    server = Postgres()
    try:
        server.make()
        scene = Scene(tmp_path, test_id, 120, database=server.url(server.fresh()))
        scene.prepare(workers=2, environ={ledger.WORK_S: "0.1"})
        band = Band(scene)
        for number in range(2):
            band.start(number)
        band.until(chance.randint(20, 40))
        server.stop()
        time_away(20.0)
        band.check()
        server.start()
        band.end()
        assert scene.judge() == 0, "what ran meanwhile kept its result"
    finally:
        server.end()


def time_away(seconds: float) -> None:
    """Let that time pass."""
    until = time.monotonic() + seconds
    wait_until(lambda: time.monotonic() >= until, seconds + 30, "time to pass")


def test_a_launcher_that_was_stopped_beyond_its_lease_finds_its_jobs_taken_over_and_ends(
    tmp_path: Path, test_id: str, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NAS_HPC_LEASE_S", "6")
    monkeypatch.setenv("NAS_HPC_HEARTBEAT_S", "1")
    scene = Scene(tmp_path, test_id, 40, database=database)
    scene.prepare(run="tests.failure.functions.gated", workers=2, flags="--eval-retries 1000")
    band = Band(scene)
    for number in range(2):
        band.start(number)

    def full() -> bool:
        band.check()
        return len(band.views()) == 2 and scene.started() >= 4

    wait_until(full, WAIT_S, lambda: band.told("all slots to be taken"))
    [search] = [job for job in jobs(scene) if not job.creator]
    stopped = band.launchers.pop(number_of(band, search))
    with frozen(psutil.Process(stopped.pid)):
        wait_until(
            lambda: search.lease not in {job.lease for job in jobs(scene)}, WAIT_S,
            lambda: band.told("its jobs to be taken over"),
        )  # fmt: skip
    assert stopped.wait(WAIT_S) == 1, scene.log()
    scene.gate.touch()
    band.end()
    scene.judge()


def test_the_death_of_a_launcher_on_another_host_is_seen_by_its_connection_long_before_its_lease_ends(
    tmp_path: Path, test_id: str, database: str
) -> None:
    scene = Scene(tmp_path, test_id, 1, database=database)
    scene.command("init", str(scene.site), "--database", database)
    scene.command("app", "--name", "TRUE", "--exec", "true")
    flags = ("--app", "TRUE", "--workflow", scene.name, "--env", f"NAS_HPC_TEST_ID={test_id}")
    scene.command("job", "--name", "taken", *flags)
    elsewhere = Lease(new_id(), "elsewhere", "boot", 1, 1.0, "", time.time() + 3600)
    store = open_site(Site(scene.site))
    band = Band(scene, ("--consume-all", "--persistent"))
    try:
        store.keep(elsewhere.id)
        store.open_lease(elsewhere, exclusive=False)
        assert store.claim(elsewhere.id, [Claim(job.id) for job in jobs(scene)])
        band.start(1)
        scene.command("job", "--name", "free", *flags)
        finished = frozenset({State.JOB_FINISHED})
        wait_until(lambda: jobs(scene, states=finished), WAIT_S, lambda: band.told("the job that is free"))
        stays(lambda: jobs(scene, name="taken")[0].lease == elsewhere.id, 5.0, "what lives is left alone:")
    finally:
        store.close()
    wait_until(lambda: len(jobs(scene, states=finished)) == 2, 120, lambda: band.told("both jobs"))
    assert [job.attempt for job in jobs(scene, name="taken")] == [2]
    band.stop()
