"""Databases under test, and short ways to make records. A further database is an entry of ``SUPPLIERS``."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from nas_hpc.records import Evaluation, Job, Lease, Result, new_id
from nas_hpc.states import Actor, Outcome, State
from nas_hpc.store import Claim, Finish, JobFilter, open_store
from nas_hpc.store.sql import SqlStore
from tests.peers.postgres import drop_database, missing_postgres, new_database


def new_sqlite(directory: Path) -> str:
    """The URL of a fresh SQLite database."""
    path = directory / "db.sqlite3"
    open_store(path, create=True).close()
    return f"sqlite:///{path}"


def new_postgres(directory: Path) -> str:
    """The URL of a fresh database of the tests' own server."""
    return new_database()


SUPPLIERS: dict[str, Callable[[Path], str]] = {"sqlite": new_sqlite, "postgres": new_postgres}


def discard(url: str) -> None:
    """What a supplier made is not needed any more."""
    if not url.startswith("sqlite"):
        drop_database(url)


only_sqlite = pytest.mark.parametrize("url", ["sqlite"], indirect=True)
only_postgres = pytest.mark.parametrize("url", ["postgres"], indirect=True)


def skip_without(kind: str) -> None:
    """Skip the test, with the name of what is missing, where there is no such database."""
    if kind == "postgres" and (missing := missing_postgres()):
        pytest.skip(missing)


DONE = (State.RUN_DONE, State.JOB_FINISHED)
ERROR = (State.RUN_ERROR, State.FAILED)
AGAIN = (State.RESTART_READY,)


def person_job(
    name: str = "job", *, parents: Sequence[Job] = (), workflow: str = "W", application: str = ""
) -> Job:
    """A job of a person."""
    return Job(
        new_id(), name, workflow, application=application, parents=tuple(parent.id for parent in parents)
    )


def evaluation(creator: str, seq: int, workflow: str = "W") -> Job:
    """An evaluation of a search."""
    return Job(
        new_id(), f"task{seq}", workflow, creator=creator, seq=seq, data={"told": seq},
        evaluation=Evaluation("module.run", {"x": seq / 3, "kind": ["a", None]}, seq),
    )  # fmt: skip


def lease(expires_in_s: float = 60.0, host: str = "here") -> Lease:
    """A launcher's lease."""
    return Lease(new_id(), host, "boot", 4711, 12.0, "", time.time() + expires_in_s)


def hold(store: SqlStore, **options: object) -> str:
    """Open a lease beside any others; its id."""
    one = lease(**options)  # type: ignore[arg-type]
    store.open_lease(one, exclusive=False)
    return one.id


def add(store: SqlStore, *jobs: Job) -> list[Job]:
    """Insert as a command does."""
    return store.add_jobs(jobs, Actor.COMMAND)


def claim(store: SqlStore, lease_id: str, *jobs: Job) -> list[Job]:
    """Claim on one node."""
    return store.claim(lease_id, [Claim(job.id, ("node1",), (0, 1), (2,)) for job in jobs])


def ended(
    job: Job, path: tuple[State, ...] = DONE, outcome: Outcome = Outcome.OK, **fields: object
) -> Finish:
    """The end of a claimed job's attempt."""
    result = Result(outcome, start=1.0, end=2.0, **fields)  # type: ignore[arg-type]
    return Finish(job.id, job.attempt, job.lease, result, path, tail="last words", message="it ended")


def run(store: SqlStore, lease_id: str, job: Job, path: tuple[State, ...] = DONE) -> None:
    """Claim and end a job."""
    (claimed,) = claim(store, lease_id, job)
    outcome = Outcome.OK if path == DONE else Outcome.ERROR
    assert len(store.finish(lease_id, [ended(claimed, path, outcome)])) == 1


def state_of(store: SqlStore, job: Job) -> State:
    """Where a job stands."""
    return store.jobs(JobFilter(ids=(job.id,)))[0].state


def path_of(store: SqlStore, job: Job) -> list[State]:
    """States of a job by its events; consecutive events fit together."""
    events = store.events([job.id])
    for before, after in zip(events, events[1:], strict=False):
        assert before.new is after.old
        assert before.id < after.id
    return [events[0].old, *(event.new for event in events)] if events else []
