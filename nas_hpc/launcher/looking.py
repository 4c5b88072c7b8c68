"""What a launcher reads from the database when commands may have changed it."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass

from nas_hpc.records import App, Job
from nas_hpc.states import RAN, RUNNABLE, State
from nas_hpc.store.base import JobFilter, Store

_CHILDREN = frozenset({State.AWAITING_PARENTS})


@dataclass(frozen=True, slots=True)
class Seen:
    """One look."""

    apps: list[App]
    waiting: list[Job]
    """Jobs for which something is to be done."""
    creators: list[Job]
    """Those of them that asked for evaluations and were not known."""
    mine: list[Job]
    """Jobs under this launcher's lease."""
    children: list[Job]
    """Jobs that wait for their parents: all, or one of them."""


def look(store: Store, workflow: str, lease: str, known: Container[str], *, all_children: bool) -> Seen:
    """Read it. In the store's thread."""
    waiting = store.jobs(JobFilter(workflow=workflow, states=RUNNABLE | RAN))
    if store.shared:
        others = {one.id for one in store.leases()} - {lease}
        waiting = [job for job in waiting if job.lease not in others]  # held by a launcher that lives
    new = sorted({job.creator for job in waiting if job.creator and job.creator not in known})
    return Seen(
        apps=store.apps(),
        waiting=waiting,
        creators=store.jobs(JobFilter(ids=tuple(new))) if new else [],
        mine=store.jobs(JobFilter(lease=lease)),
        children=store.jobs(JobFilter(workflow=workflow, states=_CHILDREN, limit=0 if all_children else 1)),
    )
