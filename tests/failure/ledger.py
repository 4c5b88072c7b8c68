"""The outside judge: a run function that writes a line at its start and its end, and what the lines must say.

The ledger is a file that the engine knows nothing of. Each line is one write to a descriptor with O_APPEND.
"""

from __future__ import annotations

import csv
import json
import os
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nas_hpc.processes import packed
from nas_hpc.site import Site
from nas_hpc.states import Outcome, State, is_path
from nas_hpc.store import open_site
from nas_hpc.store.base import JobFilter

LEDGER = "LEDGER"
GATE = "GATE"
WORK_S = "WORK_S"
"""Environment variables of the run functions: the ledger's path, that of a file to wait for, seconds."""


def note(what: str) -> None:
    """Append a line about this attempt."""
    line = f"{what} {os.environ['NAS_HPC_JOB_ID']} {os.environ['NAS_HPC_ATTEMPT']} {time.time()}\n"
    descriptor = os.open(os.environ[LEDGER], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(descriptor, line.encode())
    finally:
        os.close(descriptor)


def run(config: dict[str, Any]) -> float:
    """The run function under test: a moment's work between two lines."""
    note("start")
    time.sleep(float(os.environ.get(WORK_S, "0.03")))
    note("end")
    return -float(sum(value * value for value in config.values()))


@dataclass(slots=True)
class Lines:
    """Attempt numbers by job."""

    started: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    ended: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    began: dict[tuple[str, int], float] = field(default_factory=dict)
    """When each attempt started, seconds since the epoch."""


def read(path: Path) -> Lines:
    """The ledger."""
    lines = Lines()
    for line in path.read_text().splitlines():
        what, job, attempt, moment = line.split()
        (lines.started if what == "start" else lines.ended)[job].append(int(attempt))
        if what == "start":
            lines.began[job, int(attempt)] = float(moment)
    return lines


def judge(ledger: Path, workflow: Path, max_evals: int) -> int:
    """Assert that nothing was lost and nothing finished ran again; returns how many attempts were cut short.

    An evaluation is finished when result.json of its attempt, or its line in a packed file, is in place: no
    attempt may start after that. A ledger's end without it is an attempt that was killed between the two,
    and may be repeated.
    """
    results = {}
    for path in workflow.glob("task*/result.json"):
        body = json.loads(path.read_text())
        results[body["job"]] = body
    for line in packed.read(workflow):
        assert line["id"] not in results, f"{line['id']} finished twice"
        results[line["id"]] = line["result"]
    assert len(results) == max_evals, f"{len(results)} results on disk of {max_evals} evaluations"
    assert all(body["outcome"] == "ok" for body in results.values())
    judge_rows(workflow, max_evals)
    judge_attempts(workflow, results)
    return judge_starts(ledger, {job: body["attempt"] for job, body in results.items()})


def judge_starts(ledger: Path, last: Mapping[str, int]) -> int:
    """No attempt started after the finished one (``last``, by job), which ended; returns how many before."""
    lines = read(ledger)
    assert set(lines.started) == set(last), "every result comes from an attempt that ran"
    for job, numbers in lines.started.items():
        assert len(numbers) == len(set(numbers)), f"{job}: an attempt started twice: {numbers}"
        assert max(numbers) == last[job], f"{job}: {numbers} started, but {last[job]} is its last attempt"
        assert last[job] in lines.ended[job], f"{job}: a success of an attempt that did not end"
    return sum(len(numbers) for numbers in lines.started.values()) - len(last)


def judge_store(site: Path, workflow: str, max_evals: int) -> dict[str, int]:
    """The database has every evaluation once and finished, by one success of its last attempt, over recorded
    states that the table knows; returns its number by job."""
    store = open_site(Site(site), read_only=True)
    try:
        jobs = [job for job in store.jobs(JobFilter(workflow=workflow)) if job.creator]
        attempts = store.attempts([job.id for job in jobs])
        events = store.events()
    finally:
        store.close()
    assert sorted(job.seq for job in jobs) == list(range(1, max_evals + 1))
    for job in jobs:
        path = [event for event in events if event.job == job.id]
        states = [path[0].old, *(event.new for event in path)]
        assert is_path(states), f"{job.name}: {states}"
        assert all(one.new is other.old for one, other in zip(path, path[1:], strict=False)), (job.name, path)
        assert job.state is State.JOB_FINISHED is states[-1], f"{job.name}: {job.state}, {states}"
        own = [attempt for attempt in attempts if attempt.job == job.id]
        assert [attempt.number for attempt in own] == list(range(1, job.attempt + 1)), job.name
        good = [one.number for one in own if one.result is not None and one.result.outcome is Outcome.OK]
        assert good == [job.attempt], f"{job.name}: successes {good} of {job.attempt} attempts"
    return {job.id: job.attempt for job in jobs}


def judge_rows(workflow: Path, max_evals: int) -> None:
    """results.csv has every evaluation once."""
    with (workflow / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert sorted(int(row["seq"]) for row in rows) == list(range(1, max_evals + 1))
    assert all(row["objective"] for row in rows), "an evaluation that succeeds in the end has its objective"


def judge_attempts(workflow: Path, results: dict[str, Any]) -> None:
    """attempts.jsonl has every attempt once, and one success per evaluation."""
    ok: dict[str, int] = defaultdict(int)
    seen = set()
    for line in (workflow / "attempts.jsonl").read_text().splitlines():
        body = json.loads(line)
        if not body["creator"]:
            continue
        key = (body["job"], body["number"])
        assert key not in seen, f"{key} stands twice in attempts.jsonl"
        seen.add(key)
        ok[body["job"]] += body["outcome"] == "ok"
    assert ok == dict.fromkeys(results, 1)
