"""Launchers beside each other: who gets how many slots, whose agents and jobs are whose, and shared files."""

from __future__ import annotations

import fcntl
import json
import os
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nas_hpc.launcher import LauncherOptions, joining, journal, roster
from nas_hpc.launcher.journal import Journal
from nas_hpc.launcher.roster import Process, Roster
from nas_hpc.launcher.together import Around, share
from nas_hpc.processes import sessions
from nas_hpc.records import App, Attempt, Job, Lease, Result, new_id
from nas_hpc.site import Site
from nas_hpc.states import Actor, Outcome, State
from nas_hpc.store import open_store
from nas_hpc.store.base import Claim, Finish, Store
from tests.launcher.bench import Bench


def lease(slots: int = 0, workflow: str = "", **fields: object) -> Lease:
    return Lease(new_id(), "elsewhere", "boot", 1, 1.0, workflow, time.time() + 600, slots=slots, **fields)  # type: ignore[arg-type]


def search(number: int = 0, workflow: str = "W") -> Job:
    return Job(new_id(), f"s{number}", workflow, "SEARCH", created=float(number))


def plain(workflow: str = "W") -> Job:
    return Job(new_id(), "p", workflow, "PLAIN", created=1.0)


# -- slots -------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 500), min_size=1, max_size=6), st.integers(1, 7))
def test_searches_wherever_they_run_share_all_slots_evenly(slots: list[int], count: int) -> None:
    leases = tuple(lease(number) for number in slots)
    searches = tuple(search(number) for number in range(count))
    around = Around(leases, searches)
    parts = [
        share(around, mine.id, one, mine.slots)
        for number, one in enumerate(searches)
        for mine in [leases[number % len(leases)]]
    ]
    assert sum(parts) == sum(slots)
    assert max(parts) - min(parts) <= len(leases)


def test_a_launcher_s_slots_are_for_the_workflow_that_it_runs() -> None:
    mine, others = lease(4, "W"), lease(100, "V")
    one, two = search(1, "W"), search(2, "V")
    around = Around((mine, others), (one, two))
    assert share(around, mine.id, one, 4) == 4
    assert share(around, others.id, two, 100) == 100


def test_what_a_launcher_has_itself_counts_as_it_is_now_not_as_it_was_told() -> None:
    mine = lease(3)
    assert share(Around((mine,), ()), mine.id, search(), 9) == 9
    assert share(Around(), "not seen yet", search(), 9) == 9


# -- agents and jobs of others ------------------------------------------------------------------------


def record(bench: Bench, allocation: str, *launchers: str, host: str = "elsewhere") -> Roster:
    """An ensemble of two nodes on ``host``, of which nobody here knows whether it lives."""
    process = Process(host, sessions.boot_id(), os.getpid(), 1, (0, 1))  # here: one that is dead
    nodes = (("n1",), ("n2",))
    made = Roster(new_id(), allocation, "direct", nodes, (process,), time.time(), launchers)
    roster.write(Site(bench.site), made)
    return made


def test_agents_go_to_a_launcher_of_their_allocation_and_to_one_only(bench: Bench) -> None:
    site = Site(bench.site)
    living, orphan = record(bench, "slurm 1", "living"), record(bench, "slurm 1", "dead")
    foreign, gone = (
        record(bench, "slurm 2", "dead"),
        record(bench, "slurm 2", "dead", host=os.uname().nodename),
    )
    want = replace(orphan, id=new_id(), processes=(), launchers=())
    notes: list[str] = []
    first, served = roster.succeed_among(site, want, "first", {"living"}, notes.append)
    assert first is not None
    assert (first.id, first.launchers, served) == (orphan.id, ("dead", "first"), {"n1", "n2"})
    second, served = roster.succeed_among(site, want, "second", {"living", "first"}, notes.append)
    assert second is not None
    assert (second.id, second.launchers, served) == (want.id, ("second",), set())
    assert {one.id for one in roster.read_all(site)} == {living.id, orphan.id, foreign.id}
    assert gone.id not in {one.id for one in roster.read_all(site)}, "of which nothing lives is forgotten"
    assert roster.read(site) is None, "the file of a site's only launcher is not touched"


def held(store: Store, owner: Lease, *nodes: str) -> Job:
    """A job that runs under ``owner`` on ``nodes``."""
    [job] = store.add_jobs([plain()], Actor.COMMAND)
    [won] = store.claim(owner.id, [Claim(job.id, nodes)])
    return won


def test_what_agents_of_another_allocation_may_still_run_is_spared_until_they_have_surely_ended_it(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = Site(bench.site)
    store = open_store(site.database)
    try:
        store.put_app(App("PLAIN", "plain"))
        mine, dead = lease(), lease()
        for one in (mine, dead):
            store.open_lease(one, exclusive=False)
        served, alone = held(store, dead, "n1"), held(store, dead, "n7")
        record(bench, "slurm 2", dead.id)
        [ended] = store.end_leases(mine.id, [dead])
        options = LauncherOptions(agent_deadline_s=300.0)
        assert joining.spared(store, site, [served, alone], mine.id, options) == {served.id}
        later = ended.ended + 300.0 + joining.FAREWELL_S + 1
        monkeypatch.setattr(joining, "time", SimpleNamespace(time=lambda: later))
        assert joining.spared(store, site, [served, alone], mine.id, options) == set()
    finally:
        store.close()


def test_a_lease_that_is_not_renewed_is_dead_only_after_it_was_seen_for_as_long(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [1000.0]
    own = SimpleNamespace(monotonic=lambda: clock[0], time=time.time)
    monkeypatch.setattr(joining, "time", own)
    store = open_store(bench.site / "db.sqlite3")
    try:
        mine, other = lease(), replace(lease(), expires=1.0)
        for one in (mine, other):
            store.open_lease(one, exclusive=False)
        deaths = joining.Deaths(mine, 60.0)
        assert deaths.find(store) == [], "its clock may be wrong, or the database was away"
        clock[0] += 60.0
        assert deaths.find(store) == []
        deaths.forget()
        clock[0] += 60.0
        assert deaths.find(store) == [], "for a while nobody could renew anything"
        clock[0] += 30.0
        store.renew_lease(other.id, 2.0)
        assert deaths.find(store) == []
        clock[0] += 60.0 + joining.SLACK_S + 0.1
        assert [one.id for one in deaths.find(store)] == [other.id]
    finally:
        store.close()


def test_lines_are_missing_of_who_was_found_dead_by_one_that_is_dead_itself(bench: Bench) -> None:
    store = open_store(Site(bench.site).database)
    try:
        store.put_app(App("PLAIN", "plain"))
        mine, first, second = lease(), lease(), lease()
        for one in (mine, first, second):
            store.open_lease(one, exclusive=False)
        jobs = [held(store, one) for one in (mine, first, second)]
        for one, job in zip((mine, first, second), jobs, strict=True):
            done = Result(Outcome.OK, 1.0, start=1.0, end=2.0)
            store.finish(one.id, [Finish(job.id, job.attempt, one.id, done, (State.RUN_DONE,))])
        store.end_leases(second.id, [first])
        ended = store.end_leases(mine.id, [second])
        lines = joining.missing_lines(store, ended)
        assert {attempt.lease for _, attempt in lines} == {first.id, second.id}
        assert {job.id for job, _ in lines} == {job.id for job in jobs[1:]}
    finally:
        store.close()


# -- files --------------------------------------------------------------------------------------------


def attempts(count: int) -> list[tuple[Job, Attempt]]:
    jobs = [plain() for _ in range(count)]
    return [(job, Attempt(job.id, 1, "dead", result=Result(Outcome.OK, 1.0))) for job in jobs]


def test_several_launchers_write_whole_lines_and_what_is_missing_once(tmp_path: Path) -> None:
    notes: list[str] = []
    writers = [Journal(tmp_path, notes.append, several=True) for _ in range(3)]
    missing = attempts(50)
    own = [attempts(50) for _ in writers]
    for writer, mine in zip(writers, own, strict=True):
        for pair in mine:
            writer.attempts([pair])
        writer.missing("W", missing)
    for writer in writers:
        assert writer.close()
    lines = [json.loads(line) for line in (tmp_path / "W" / "attempts.jsonl").read_text().splitlines()]
    wanted = sorted(job.id for pairs in [missing, *own] for job, _ in pairs)
    assert sorted(line["job"] for line in lines) == wanted
    assert notes == []


def test_a_launcher_that_was_stopped_while_it_wrote_holds_up_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "TURN_S", 0.05)
    path = tmp_path / "W" / "attempts.jsonl"
    path.parent.mkdir()
    with path.open("ab") as holder:
        fcntl.flock(holder, fcntl.LOCK_EX)
        writer = Journal(tmp_path, lambda line: None, several=True)
        writer.attempts(attempts(1))
        assert writer.close()
    assert len(path.read_text().splitlines()) == 1
