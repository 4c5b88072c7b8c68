"""Several processes on one database, and processes that are killed in the middle."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from nas_hpc.errors import StoreError
from nas_hpc.records import new_id
from nas_hpc.states import Actor, State, is_path
from nas_hpc.store import JobFilter, open_store
from nas_hpc.store.sql import SqlStore
from tests.store.supply import add, claim, ended, evaluation, hold, only_sqlite, path_of, person_job, run
from tests.store.worker import BATCH

Worker = subprocess.Popen[str]


@contextmanager
def workers(checkout: Path, count: int, *arguments: str) -> Iterator[list[Worker]]:
    """Processes of ``tests.store.worker``; none is left behind."""
    command = [sys.executable, "-m", "tests.store.worker", *arguments]
    started = [
        subprocess.Popen(command, cwd=checkout, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(count)
    ]
    try:
        yield started
    finally:
        for process in started:
            process.kill()
            process.communicate()


def line(process: Worker) -> str:
    """The next line of output; fails when there is none."""
    assert process.stdout is not None
    text = process.stdout.readline()
    assert text, f"the worker ended with {process.wait()}"
    return text.strip()


def rest_of(process: Worker) -> list[str]:
    """What it printed behind the lines that were read; ``communicate`` would leave out what is read ahead."""
    assert process.stdout is not None
    return process.stdout.read().split()


@pytest.mark.slow
def test_four_processes_win_each_job_once(store: SqlStore, url: str, checkout: Path) -> None:
    jobs = store.add_jobs([evaluation("s", seq) for seq in range(1, 501)], Actor.SEARCH)
    with workers(checkout, 4, "claim", url) as claimers:
        assert [line(process) for process in claimers] == ["ready"] * 4
        for process in claimers:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        won = [process.communicate(timeout=60)[0].split("\n")[:-1] for process in claimers]
        assert [process.returncode for process in claimers] == [0] * 4
    winners = Counter(text for each in won for text in each)
    assert winners == Counter(f"{job.id} 1" for job in jobs)
    assert len(store.attempts([job.id for job in jobs])) == 500
    assert sum(bool(each) for each in won) >= 3


@pytest.mark.slow
def test_of_several_that_take_over_a_dead_lease_one_wins(store: SqlStore, url: str, checkout: Path) -> None:
    dead = hold(store)
    with workers(checkout, 3, "take", url, dead) as takers:
        assert [line(process) for process in takers] == ["ready"] * 3
        answers = sorted(process.communicate("go\n", timeout=60)[0].strip() for process in takers)
    assert answers == ["lost", "lost", "won"]
    assert len(store.leases()) == 1


@pytest.mark.parametrize("seed", [1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (2, 3))])
def test_what_a_killed_process_had_acknowledged_is_there_and_no_batch_is_torn(
    store: SqlStore, url: str, checkout: Path, seed: int
) -> None:
    chance = random.Random(seed)
    with workers(checkout, 1, "add", url) as (adder,):
        creator = line(adder)
        acknowledged = 0
        for _ in range(chance.randint(1, 12)):
            acknowledged = int(line(adder))
        adder.send_signal(signal.SIGKILL)
        rest = rest_of(adder)
    acknowledged = int(rest[-1]) if rest else acknowledged
    found = store.jobs(JobFilter(creator=creator))
    assert [job.seq for job in found] == list(range(1, len(found) + 1)), f"seed {seed}"
    assert len(found) % BATCH == 0, f"seed {seed}: {len(found)} jobs, a batch is torn"
    assert len(found) >= acknowledged, f"seed {seed}"
    assert len(store.events()) == len(found)
    run(store, hold(store), found[0])


def test_a_killed_launcher_leaves_each_job_finished_running_or_untouched(
    store: SqlStore, url: str, checkout: Path
) -> None:
    search = new_id()
    store.add_jobs([evaluation(search, seq) for seq in range(1, 401)], Actor.SEARCH)
    with workers(checkout, 1, "exchange", url, search) as (launcher,):
        dead = line(launcher)
        acknowledged = {line(launcher) for _ in range(40)}
        launcher.send_signal(signal.SIGKILL)
        acknowledged |= set(rest_of(launcher))
    finished = {one.job.id for one in store.finished(search)}
    assert acknowledged <= finished
    assert len(finished - acknowledged) <= 1
    running = store.jobs(JobFilter(lease=dead))
    assert len(running) == 1
    assert all(is_path(path_of(store, job)) for job in store.jobs(JobFilter(creator=search))[:60])
    mine = hold(store)
    store.close_lease(dead, 1.0)
    assert store.adopt(mine, dead, [(running[0].id, 1)]) == [(running[0].id, 1)]


@only_sqlite
def test_a_second_process_is_told_who_holds_the_lock(url: str, checkout: Path, tmp_path: Path) -> None:
    with workers(checkout, 1, "lock", url) as (holder,), open_store(url) as store:
        assert line(holder) == "locked"
        store.raw().execute("PRAGMA busy_timeout=50")
        assert store.leases() == []
        with pytest.raises(
            StoreError, match=f"is locked by process {holder.pid} .*tests.store.worker"
        ) as caught:
            add(store, person_job())
        assert caught.value.transient
        holder.communicate("", timeout=60)
        add(store, person_job())
        assert len(store.leases()) == 1


def test_a_command_kills_what_a_launcher_runs_and_the_launchers_end_is_skipped(
    store: SqlStore, url: str
) -> None:
    mine = hold(store)
    (job,) = claim(store, mine, *add(store, person_job()))
    with open_store(url) as command:
        (before,) = command.set_state([job.id], State.USER_KILLED, Actor.COMMAND)
    assert before.state is State.RUNNING
    assert store.jobs(JobFilter(ids=(job.id,)))[0].state is State.USER_KILLED
    assert store.finish(mine, [ended(job)]) == []
