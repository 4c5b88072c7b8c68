"""What a launcher reads from the database when commands may have changed it."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass

from nas_hpc.records import App, Job
from nas_hpc.states import RAN, RUNNABLE, State
from nas_hpc.store.base import Changes, JobFilter, Store

_CHILDREN = frozenset({State.AWAITING_PARENTS})


@dataclass(frozen=True, slots=True)
class Seen:
    """One look."""

    last: int
    """Number of the newest event that was there."""
    changed: frozenset[str] | None
    """Ids of the jobs that were looked at; None: all were."""
    apps: list[App]
    waiting: list[Job]
    """Jobs for which something is to be done."""
    creators: list[Job]
    """Those of them that asked for evaluations and were not known."""
    mine: list[Job]
    """Those of them that are under this launcher's lease."""
    children: list[Job]
    """Jobs that wait for their parents: all, or one of them."""


def look_at_changes(
    store: Store, workflow: str, lease: str, known: Container[str], after: int, also: Sequence[str]
) -> Seen:
    """Read what has events after number ``after``, and the jobs with the ids ``also``. In the store's
    thread."""
    last = store.last_event()
    found = store.changed(after, workflow, lease, also) if also or last > after else Changes([], [])
    waiting = _free(store, [job for job in found.jobs if job.state in RUNNABLE | RAN], lease)
    return Seen(
        last=last,
        changed=frozenset({job.id for job in found.jobs}.union(found.others)),
        apps=store.apps(),
        waiting=waiting,
        creators=_creators(store, waiting, known),
        mine=[job for job in found.jobs if job.lease == lease],
        children=[job for job in found.jobs if job.state in _CHILDREN],
    )


def _free(store: Store, waiting: list[Job], lease: str) -> list[Job]:
    """Without those that are held by another launcher that lives."""
    if not store.shared or not any(job.lease for job in waiting):
        return waiting
    others = {one.id for one in store.leases()} - {lease}
    return [job for job in waiting if job.lease not in others]


def _creators(store: Store, waiting: list[Job], known: Container[str]) -> list[Job]:
    new = sorted({job.creator for job in waiting if job.creator and job.creator not in known})
    return store.jobs(JobFilter(ids=tuple(new))) if new else []


def look(store: Store, workflow: str, lease: str, known: Container[str], *, all_children: bool) -> Seen:
    """Read it all. In the store's thread."""
    waiting = _free(store, store.jobs(JobFilter(workflow=workflow, states=RUNNABLE | RAN)), lease)
    return Seen(
        last=store.last_event(),
        changed=None,
        apps=store.apps(),
        waiting=waiting,
        creators=_creators(store, waiting, known),
        mine=store.jobs(JobFilter(lease=lease)),
        children=store.jobs(JobFilter(workflow=workflow, states=_CHILDREN, limit=0 if all_children else 1)),
    )
