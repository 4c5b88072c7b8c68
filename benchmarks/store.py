"""How fast the job database is: ``python -m benchmarks.store [--json] [--dir PATH] [--no-postgres]``.

``insert_per_s``: evaluations with six hyperparameters, their records and events, in batches of 1,000.
``lifecycle_per_s``: claim and finish with attempts and events, in batches of 256. ``exchange_64``: 64
finishes and 64 claims with their events in one call, while 500 jobs are running. Every batch is one commit
that is synced to disk. The same work is done on PostgreSQL (``postgres_...``), on a server of the
distribution that is started for it with its data in the same directory, in alternation. The peer is bare
``sqlite3``: ``executemany`` of ready-made tuples with the same values into the same tables, indexes and
pragmas, in the same batches. CPU microseconds are of this process; on a busy machine they tell more than
rates. The rates are those of the best round.
"""

from __future__ import annotations

import argparse
import json
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from nas_hpc.records import Evaluation, Job, Lease, Resources, Result, new_id
from nas_hpc.states import Actor, Outcome, State
from nas_hpc.store import Claim, Finish, JobFilter, open_store
from nas_hpc.store.sql import SqlStore
from tests.peers.postgres import Postgres, missing_postgres

INSERT_BATCH = 1000
LIFECYCLE_BATCH = 256
EXCHANGE_BATCH = 64
EXCHANGES = 30
RUNNING = 500
"""Jobs that run while others are exchanged."""
_PRAGMAS = (
    "synchronous",
    "foreign_keys",
    "temp_store",
    "cache_size",
    "wal_autocheckpoint",
    "journal_size_limit",
)
_TO_RUNNING = "UPDATE jobs SET state='RUNNING', lease=?, attempt=? WHERE number=?"
_TO_FINISHED = "UPDATE jobs SET state='JOB_FINISHED', lease=NULL, final_event=? WHERE number=?"
_END = (
    "UPDATE attempts SET outcome=?, objective=?, metadata=?, reason=?, return_code=?, start=?, "
    '"end"=?, tail=? '
    "WHERE job=? AND number=?"
)


@dataclass(frozen=True, slots=True)
class Pace:
    """Duration of one pass over some jobs."""

    jobs: int
    wall_s: float
    cpu_s: float

    @property
    def per_s(self) -> float:
        """Jobs per second."""
        return self.jobs / self.wall_s

    @property
    def cpu_us(self) -> float:
        """Processor time per job, in microseconds."""
        return self.cpu_s / self.jobs * 1e6

    def __add__(self, other: Pace) -> Pace:
        return Pace(self.jobs + other.jobs, self.wall_s + other.wall_s, self.cpu_s + other.cpu_s)


def timed(jobs: int, work: Callable[[], object]) -> Pace:
    """The pace of ``work`` on ``jobs`` jobs."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return Pace(jobs, time.perf_counter() - wall, time.process_time() - cpu)


def evaluations(creator: str, first: int, count: int) -> list[Job]:
    """Evaluations as a search on the digits problem asks for them: hyperparameters of mixed kinds."""
    resources = Resources(node_packing_count=4)
    return [
        Job(
            new_id(), f"task{seq}", "TEST", resources=resources, creator=creator, seq=seq,
            evaluation=Evaluation("nas_hpc.problems.hps.digits.run", configuration(seq), seq),
            data={"told": seq - 1, "batch": seq},
        )
        for seq in range(first, first + count)
    ]  # fmt: skip


def configuration(seq: int) -> dict[str, Any]:
    """Six hyperparameters."""
    return {
        "units": 16 + seq % 240,
        "layers": 1 + seq % 3,
        "activation": ("relu", "tanh", "logistic")[seq % 3],
        "learning_rate": 1e-4 * 1.37 ** (seq % 20),
        "alpha": (seq * 7919 % 9973) / 9973,
        "batch_size": 2 ** (4 + seq % 5),
    }


def batches(items: Sequence[Any], size: int) -> list[Sequence[Any]]:
    """``items`` in pieces of ``size``."""
    return [items[start : start + size] for start in range(0, len(items), size)]


class Ours:
    """The store under test."""

    def __init__(self, target: Path | str) -> None:
        self.store: SqlStore = open_store(target, create=True)
        self.ids: list[str] = []
        self.lease = new_id()
        self.store.open_lease(
            Lease(self.lease, "host", "boot", 1, 1.0, "", time.time() + 600), exclusive=True
        )

    def insert(self, count: int) -> Pace:
        """``count`` jobs; a batch is made, as a launcher unpacks a message, before its time is taken."""
        creator = new_id()
        pace = Pace(0, 0.0, 0.0)
        for first in range(1, count + 1, INSERT_BATCH):
            batch = evaluations(creator, first, min(INSERT_BATCH, count + 1 - first))
            pace += timed(len(batch), partial(self.store.add_jobs, batch, Actor.SEARCH))
            self.ids += [job.id for job in batch]
        return pace

    def finish(self, claimed: Sequence[Job]) -> list[Finish]:
        """Orders to close the attempts of ``claimed``."""
        now = time.time()
        result = Result(Outcome.OK, 12.5, return_code=0, start=now, end=now)
        path = (State.RUN_DONE, State.JOB_FINISHED)
        return [Finish(job.id, job.attempt, self.lease, result, path) for job in claimed]

    def lifecycles(self, count: int) -> None:
        """Claim and finish the first ``count`` jobs."""
        for batch in batches(self.ids[:count], LIFECYCLE_BATCH):
            claimed = self.store.claim(self.lease, [Claim(job, ("host",), (3,)) for job in batch])
            assert len(self.store.finish(self.lease, self.finish(claimed))) == len(batch)

    def exchanges(self, first: int, count: int) -> list[float]:
        """Seconds that each of ``count`` exchanges took, of 64 finishes and 64 claims."""
        took: list[float] = []
        running: list[Job] = []
        for batch in batches(self.ids[first : first + RUNNING], EXCHANGE_BATCH):
            running += self.store.claim(self.lease, [Claim(job, ("host",), (3,)) for job in batch])
        first += RUNNING
        for batch in batches(self.ids[first : first + count * EXCHANGE_BATCH], EXCHANGE_BATCH):
            done, running = running[:EXCHANGE_BATCH], running[EXCHANGE_BATCH:]
            claims = [Claim(job, ("host",), (3,)) for job in batch]
            start = time.perf_counter()
            finished, claimed = self.store.exchange(self.lease, self.finish(done), claims)
            took.append(time.perf_counter() - start)
            assert (len(finished), len(claimed)) == (len(done), len(batch))
            running += claimed
        return took

    def read(self) -> None:
        """All jobs, as records."""
        assert len(self.store.jobs(JobFilter(workflow="TEST"))) == len(self.ids)


class Peer:
    """Bare sqlite3 with the values that our store made."""

    def __init__(self, path: Path, ours: Path) -> None:
        self.connection = sqlite3.connect(path, isolation_level=None)
        source = sqlite3.connect(f"file:{ours}?mode=ro", uri=True)
        page = source.execute("PRAGMA page_size").fetchone()[0]
        for pragma in (f"page_size={page}", "journal_mode=WAL", *self._settings(ours)):
            self.connection.execute(f"PRAGMA {pragma}")
        for (sql,) in source.execute("SELECT sql FROM sqlite_master WHERE sql NOT NULL ORDER BY rowid"):
            self.connection.execute(sql)
        self.jobs = source.execute("SELECT * FROM jobs ORDER BY number").fetchall()
        self.events = source.execute("SELECT * FROM events WHERE old = 'CREATED' ORDER BY id").fetchall()
        source.close()

    @staticmethod
    def _settings(path: Path) -> list[str]:
        with open_store(path) as store:
            raw = store.raw()
            return [f"{name}={raw.execute(f'PRAGMA {name}').fetchone()[0]}" for name in _PRAGMAS]

    def _commit(self, *work: tuple[str, Sequence[tuple[Any, ...]]]) -> None:
        self.connection.execute("BEGIN IMMEDIATE")
        for sql, tuples in work:
            self.connection.executemany(sql, tuples)
        self.connection.execute("COMMIT")

    def insert(self) -> None:
        """All jobs and their first events."""
        job_sql = f"INSERT INTO jobs VALUES ({','.join('?' * len(self.jobs[0]))})"
        event_sql = f"INSERT INTO events VALUES ({','.join('?' * len(self.events[0]))})"
        pairs = zip(batches(self.jobs, INSERT_BATCH), batches(self.events, INSERT_BATCH), strict=True)
        for jobs, events in pairs:
            self._commit((job_sql, jobs), (event_sql, events))

    def lifecycle_work(self, count: int) -> list[list[tuple[str, Sequence[tuple[Any, ...]]]]]:
        """Statements and tuples of each commit, made beforehand."""
        commits: list[list[tuple[str, Sequence[tuple[Any, ...]]]]] = []
        insert_attempt = f"INSERT INTO attempts VALUES ({','.join('?' * 15)})"
        insert_event = "INSERT INTO events VALUES (?,?,?,?,?,?,?,?)"
        event, lease, now = len(self.events) + 1, new_id(), time.time()
        for batch in batches([row[0] for row in self.jobs[:count]], LIFECYCLE_BATCH):
            size = len(batch)
            started = [
                (event + i, n, now, "READY", "RUNNING", "launcher", 1, "") for i, n in enumerate(batch)
            ]
            ended = [
                (event + size + 2 * i + k, n, now, old, new, "launcher", 1, "")
                for i, n in enumerate(batch)
                for k, (old, new) in enumerate((("RUNNING", "RUN_DONE"), ("RUN_DONE", "JOB_FINISHED")))
            ]
            claimed = [(n, 1, lease, '["host"]', "[3]", "[]", now, *(None,) * 8) for n in batch]
            commits.append([
                (_TO_RUNNING, [(lease, 1, n) for n in batch]),
                (insert_attempt, claimed),
                (insert_event, started),
            ])  # fmt: skip
            commits.append([
                (_END, [("ok", 12.5, "{}", "", 0, now, now, "", n, 1) for n in batch]),
                (_TO_FINISHED, [(event + size + 2 * i + 1, n) for i, n in enumerate(batch)]),
                (insert_event, ended),
            ])  # fmt: skip
            event += 3 * size
        return commits

    def lifecycles(self, commits: list[list[tuple[str, Sequence[tuple[Any, ...]]]]]) -> None:
        """Execute what ``lifecycle_work`` made."""
        for work in commits:
            self._commit(*work)


Found = dict[str, Pace | list[float]]


def work(ours: Ours, count: int, lifecycles: int, beside: Callable[[str], Found]) -> Found:
    """What is measured, on a fresh database; ``beside`` is called after each of the two first parts."""
    found: Found = {"insert": ours.insert(count)} | beside("insert")
    found |= {"lifecycle": timed(lifecycles, lambda: ours.lifecycles(lifecycles))} | beside("lifecycle")
    found["read"] = timed(count, ours.read)
    found["exchange"] = ours.exchanges(lifecycles, EXCHANGES)
    ours.store.close()
    return found


def sqlite_round(directory: Path, count: int, lifecycles: int) -> Found:
    """SQLite and the bare one, once, in fresh files."""
    peers: list[Peer] = []

    def beside(part: str) -> Found:
        if part == "insert":
            peers.append(Peer(directory / "peer.sqlite3", directory / "ours.sqlite3"))
            return {"raw_insert": timed(count, peers[0].insert)}
        commits = peers[0].lifecycle_work(lifecycles)
        return {"raw_lifecycle": timed(lifecycles, lambda: peers[0].lifecycles(commits))}

    found = work(Ours(directory / "ours.sqlite3"), count, lifecycles, beside)
    peers[0].connection.close()
    return found


def postgres_round(server: Postgres, count: int, lifecycles: int) -> Found:
    """PostgreSQL, once, in a fresh database."""
    name = server.fresh()
    found = work(Ours(server.url(name)), count, lifecycles, lambda part: {})
    server.drop(name)
    return {f"postgres_{key}": value for key, value in found.items()}


def measure(
    directory: Path, count: int, lifecycles: int, rounds: int, server: Postgres | None
) -> dict[str, float]:
    """The report's numbers: rates of the best round, least CPU time."""
    paces: dict[str, list[Pace]] = {}
    took: dict[str, list[float]] = {}
    for _ in range(rounds):
        with tempfile.TemporaryDirectory(dir=directory) as fresh:
            found = sqlite_round(Path(fresh), count, lifecycles)
        if server is not None:
            found |= postgres_round(server, count, lifecycles)
        for name, one in found.items():
            if isinstance(one, Pace):
                paces.setdefault(name, []).append(one)
            else:
                took.setdefault(name, []).extend(one)
    report = {f"{name}_per_s": max(pace.per_s for pace in those) for name, those in paces.items()}
    report |= {f"{name}_cpu_us": min(pace.cpu_us for pace in those) for name, those in paces.items()}
    for name in ("insert", "lifecycle"):
        report[f"{name}_ratio"] = report[f"{name}_per_s"] / report[f"raw_{name}_per_s"]
    for name, seconds in took.items():
        seconds.sort()
        report[f"{name}_64_p50_ms"] = seconds[len(seconds) // 2] * 1e3
        report[f"{name}_64_p95_ms"] = seconds[int(len(seconds) * 0.95)] * 1e3
    return {name: round(value, 3) for name, value in report.items()}


def start_server(directory: Path | None) -> Postgres | None:
    """A server whose commits are synced to the disk of ``directory``, or None where there is none."""
    if missing := missing_postgres():
        print(f"without PostgreSQL: {missing}", file=sys.stderr)
        return None
    server = Postgres(fsync=True, directory=Path(tempfile.mkdtemp(prefix="nhpg", dir=directory or "/tmp")))
    try:
        server.make()
    except BaseException:
        server.end()
        raise
    return server


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.store", description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.add_argument("--dir", type=Path, default=None, help="directory on the file system to be measured")
    parser.add_argument("--jobs", type=int, default=20_000, help="jobs inserted per round (default 20,000)")
    parser.add_argument(
        "--lifecycles", type=int, default=5_120, help="of them claimed and finished (default 5,120)"
    )
    parser.add_argument("--no-postgres", action="store_true", help="SQLite alone")
    parser.add_argument("--rounds", type=int, default=3, help="rounds; the best counts (default 3)")
    arguments = parser.parse_args()
    least = arguments.lifecycles + RUNNING + EXCHANGES * EXCHANGE_BATCH
    if least > arguments.jobs:
        parser.error(f"--jobs has to be at least {least} with so many lifecycles")
    server = None if arguments.no_postgres else start_server(arguments.dir)
    try:
        report = measure(arguments.dir, arguments.jobs, arguments.lifecycles, arguments.rounds, server)
    finally:
        if server is not None:
            server.end()
    if arguments.json:
        print(json.dumps(report))
        return
    for name, value in report.items():
        print(f"{name:28} {value:12,.2f}")


if __name__ == "__main__":
    main()
