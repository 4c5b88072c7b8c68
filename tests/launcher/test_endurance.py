"""A launcher never hangs, sleeps when there is nothing to do, and leaves nothing that nobody settles."""

from __future__ import annotations

import re
import signal
import time
from pathlib import Path

import pytest

from nas_hpc.evaluator.client import Client
from nas_hpc.records import Lease, new_id
from nas_hpc.store import open_store
from nas_hpc.store.base import Claim, JobFilter, Store
from nas_hpc.wire import Ask, Shape
from tests.launcher.bench import POLYNOME, Bench
from tests.support import wait_until

SLEEP = "import time; print('running', flush=True); time.sleep(600)"
QUICK = "print('done')"
SHAPE = Shape(node_packing_count=4)


def store_of(bench: Bench) -> Store:
    """Another connection to the site's database."""
    return open_store(bench.site / "db.sqlite3")


def running(bench: Bench, name: str) -> None:
    """Wait until a job prints."""
    wait_until(lambda: list(bench.site.glob(f"data/W/{name}_*/{name}.out")), 60, f"{name} to start")


def ready(bench: Bench) -> None:
    """Wait until the launcher listens."""
    wait_until((bench.site / "run" / "endpoint.json").exists, 60, "the endpoint")


def switches(pid: int) -> int:
    """Voluntary context switches of all threads."""
    total = 0
    for status in Path(f"/proc/{pid}/task").glob("*/status"):
        found = re.search(r"^voluntary_ctxt_switches:\s+(\d+)", status.read_text(), re.MULTILINE)
        total += int(found.group(1)) if found else 0
    return total


@pytest.mark.slow
def test_an_idle_launcher_wakes_less_than_twice_a_second(bench: Bench) -> None:
    bench.job("quick", bench.script("QUICK", QUICK))
    launcher = bench.start("--idle-timeout", "60")
    wait_until(lambda: bench.state("quick") == "JOB_FINISHED", 60, "the job")
    ready(bench)
    before, begun = switches(launcher.pid), time.monotonic()
    wait_until(lambda: time.monotonic() - begun >= 10, 60, "ten seconds")
    woken = (switches(launcher.pid) - before) / (time.monotonic() - begun)
    launcher.send_signal(signal.SIGTERM)
    assert launcher.wait(60) == 0
    assert woken < 2, f"{woken:.2f} wake-ups per second"


@pytest.mark.slow
def test_a_launcher_whose_output_nobody_reads_any_more_still_ends_when_told(bench: Bench) -> None:
    bench.job("long", bench.script("SLEEP", SLEEP))
    launcher = bench.start()
    running(bench, "long")
    assert launcher.stdout is not None
    launcher.stdout.close()
    launcher.send_signal(signal.SIGTERM)
    launcher.wait(60)
    assert bench.state("long") == "RESTART_READY"


@pytest.mark.slow
def test_a_removed_endpoint_file_comes_back(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NAS_HPC_HEARTBEAT_S", "0.3")
    launcher = bench.start("--idle-timeout", "60")
    ready(bench)
    (bench.site / "run" / "endpoint.json").unlink()
    ready(bench)
    bench.job("quick", bench.script("QUICK", QUICK))
    wait_until(lambda: bench.state("quick") == "JOB_FINISHED", 60, "the job that the launcher was told of")
    launcher.send_signal(signal.SIGTERM)
    assert launcher.wait(60) == 0
    assert not (bench.site / "run" / "endpoint.json").exists()


@pytest.mark.slow
def test_a_launcher_that_cannot_open_its_endpoint_ends_and_the_next_one_works(bench: Bench) -> None:
    bench.job("quick", bench.script("QUICK", QUICK))
    blocked = bench.site / "run" / "endpoint.json"
    blocked.mkdir()
    log = bench.launch(code=1)
    assert "endpoint.json" in log
    blocked.rmdir()
    bench.launch()
    assert bench.state("quick") == "JOB_FINISHED"


@pytest.mark.slow
def test_unplaceable_jobs_do_not_keep_a_launcher(bench: Bench) -> None:
    quick = bench.script("QUICK", QUICK)
    bench.searches()
    bench.job("quick", quick)
    for name in ("two", "more"):
        bench.job(name, quick, "--ranks-per-node", "2")
    bench.job("wide", quick, "--num-nodes", "3")
    bench.job("gpu", quick, "--gpus-per-rank", "1")
    bench.job("whole", "RAN", "--node-packing-count", "1", args=f"{POLYNOME} --max-evals 5")
    child = bench.job("child", quick, "--parents", bench.listing("two")["id"])
    log = bench.launch("--job-mode", "serial", "--nodes", "2", code=1)
    assert log.count("cannot run here") == 5
    assert bench.state("quick") == "JOB_FINISHED"
    assert {bench.state(name) for name in ("two", "more", "wide", "gpu", "whole")} == {"READY"}
    assert bench.listing("child")["id"] == child
    assert bench.state("child") == "AWAITING_PARENTS"


@pytest.mark.slow
def test_jobs_that_a_predecessors_predecessor_left_are_settled(bench: Bench) -> None:
    """A launcher died, and the next one died between ending that lease and adopting its jobs."""
    bench.job("left", bench.script("QUICK", QUICK))
    with_store = store_of(bench)
    job = with_store.jobs(JobFilter(name="left"))[0]
    leases = [Lease(new_id(), "elsewhere", "boot", 1, 1.0, "", 1.0) for _ in range(2)]
    with_store.open_lease(leases[0], exclusive=True)
    with_store.claim(leases[0].id, [Claim(job.id)])
    with_store.open_lease(leases[1], ending=[leases[0].id], exclusive=True)
    with_store.close()
    bench.launch()
    assert bench.state("left") == "JOB_FINISHED"
    assert [(line["number"], line["outcome"]) for line in bench.attempts()] == [(1, "lost"), (2, "ok")]


@pytest.mark.slow
def test_lines_that_a_full_disk_refused_are_written_by_the_next_launcher(bench: Bench) -> None:
    bench.job("quick", bench.script("QUICK", QUICK))
    lines = bench.site / "data" / "W" / "attempts.jsonl"
    lines.parent.mkdir(parents=True)
    lines.symlink_to("/dev/full")
    log = bench.launch()
    assert "attempts.jsonl cannot be written: No space left on device" in log
    assert bench.state("quick") == "JOB_FINISHED"
    lines.unlink()
    bench.launch()
    assert [line["outcome"] for line in bench.attempts()] == ["ok"]


@pytest.mark.slow
def test_a_superseded_launcher_writes_nothing_that_its_searches_asked_of_it(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NAS_HPC_LEASE_S", "2")
    monkeypatch.setenv("NAS_HPC_HEARTBEAT_S", "1")
    search = bench.job("s", bench.script("SEARCH", SLEEP))
    bench.nas("app", "--name", "SEARCH", "--restartable", "--replace", "--exec", "/bin/sleep 600")
    first = bench.start("--job-mode", "serial")
    ready(bench)
    wait_until(lambda: bench.state("s") == "RUNNING", 60, "the search")
    client = Client(bench.site / "run" / "endpoint.json", job=search, attempt=1, shape=SHAPE, reconnect_s=20)
    try:
        wait_until(lambda: [m for m in client.receive(0.5) if type(m).__name__ == "Welcome"], 60, "Welcome")
        lines = bench.site / "data" / "W" / "launchers.jsonl"
        wait_until(lambda: lines.exists() and "capacity" in lines.read_text(), 60, "its last commit")
        first.send_signal(signal.SIGSTOP)  # not in the middle of one, which keeps a successor waiting
        stopped = time.monotonic()
        client.submit((Ask(1, "m.f", {}, 1, SHAPE),))
        wait_until(lambda: time.monotonic() - stopped > 2.5, 60, "the lease to run out")
        second = bench.start("--job-mode", "serial")
        wait_until(
            lambda: (
                second.poll() is not None or len(bench.states("s")) >= 4 and bench.state("s") == "RUNNING"
            ),
            60,
            "the takeover",
        )
        assert second.poll() is None
        first.send_signal(signal.SIGCONT)
        assert first.wait(60) == 1
    finally:
        client.close()
    assert store_jobs(bench) == ["s"]
    second.send_signal(signal.SIGTERM)
    assert second.wait(60) == 0


def store_jobs(bench: Bench) -> list[str]:
    """Names of all jobs."""
    store = store_of(bench)
    try:
        return [job.name for job in store.jobs(JobFilter())]
    finally:
        store.close()
