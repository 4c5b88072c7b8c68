"""Checking a request for nodes against the limits of the machine's queues, before the batch system does it.

What the batch system tells of a queue itself goes before the machine's file; where the file has limits by
number of nodes (``Queue.steps``) both hold.
"""

from __future__ import annotations

from collections.abc import Sequence

from nas_hpc.batch.machine import Machine, Queue, Step
from nas_hpc.batch.system import QueueState, Request
from nas_hpc.config import Settings
from nas_hpc.errors import WrongCall
from nas_hpc.records import BatchJob
from nas_hpc.states import BatchState

WORKERS_VARIABLE = "DEEPHYPER_WORKERS_PER_NODE"
_WAITING = frozenset({BatchState.SUBMITTING, BatchState.QUEUED, BatchState.HELD})
_SKIP = "--no-check submits it all the same"


def check(
    machine: Machine, request: Request, *, live: Sequence[QueueState] | None, queued: Sequence[BatchJob]
) -> list[str]:
    """Raise WrongCall, with limit and value, for what the machine's queues do not allow; returns notes.

    ``live``: the queues as the batch system tells of them, None if it was not asked or did not answer.
    ``queued``: this user's batch jobs, as far as they are known; those that wait in the same queue count.
    """
    _check_possible(request)
    if machine.system == "local":
        return []
    if machine.project_required and not request.project:
        raise WrongCall(f"no project: {machine.name} charges each batch job to one; add -A PROJECT")
    name = request.queue or machine.queue
    if not name:
        return []
    # With a flag of its own the queue is something (a QOS) that the system's list of queues does not hold.
    told = None if request.queue_flag or machine.queue_flag else live
    table, state = machine.find_queue(name), _find(told, name)
    notes = _known(machine, name, table, state, told)
    _check_nodes(machine, name, table, state, request.nodes)
    _check_minutes(machine, name, table, state, request)
    if table is not None and table.max_queued:
        _check_queued(machine, table, queued)
    return notes


def _check_possible(request: Request) -> None:
    """Raise WrongCall for what no batch system can be asked."""
    if request.nodes < 1:
        raise WrongCall(f"{request.nodes} nodes: a batch job has 1 at least (-n)")
    if request.walltime_minutes < 1:
        raise WrongCall(
            f"a walltime of {request.walltime_minutes} min: give 1 at least (-t, in minutes); seconds are "
            "dropped by batch systems, and 0 would mean the longest that there is"
        )


def check_packing(settings: Settings, job_mode: str, workers: int) -> None:
    """Raise WrongCall if ``workers`` evaluations are to share a node in mpi mode, and may not there."""
    packing = settings.mpi_mode_packing
    if job_mode == "mpi" and workers > packing.value:
        raise WrongCall(
            f"{WORKERS_VARIABLE}={workers} with job mode mpi: {packing.value} job{_s(packing.value)} at most "
            f"may have a node there (mpi_mode_packing, {packing.origin}); use job mode serial (-j serial), "
            f"or set {WORKERS_VARIABLE}={packing.value}"
        )


def step_of(queue: Queue, nodes: int) -> Step | None:
    """The limits of the queue for so many nodes, if it has any by number of nodes."""
    return next((step for step in reversed(queue.steps) if step.nodes <= nodes), None)


def longest(queue: Queue) -> int:
    """Minutes that the queue gives at most, to any number of nodes; 0: no limit is known."""
    by_nodes = max((step.max_minutes for step in queue.steps), default=0)
    return min(filter(None, (queue.max_minutes, by_nodes)), default=0)


def _find(live: Sequence[QueueState] | None, name: str) -> QueueState | None:
    return next((state for state in live or () if state.name == name), None)


def _known(
    machine: Machine,
    name: str,
    table: Queue | None,
    state: QueueState | None,
    live: Sequence[QueueState] | None,
) -> list[str]:
    """What is to be said of whether the queue exists. Raises WrongCall if nobody knows it."""
    if state is not None:
        return (
            [] if state.open else [f"queue {name} takes no batch jobs at the moment, says {machine.system}"]
        )
    own = [queue.name for queue in machine.queues]
    if not live:
        if table is not None or not own:
            return []
        return [
            f"queue {name} is not in {machine.origin} (which has {', '.join(own)}), and {machine.system} "
            "did not tell its queues: its limits are not checked"
        ]
    there = ", ".join(state.name for state in live)
    if table is not None:
        return [f"queue {name} is in {machine.origin}, and {machine.system} has none of that name: {there}"]
    raise WrongCall(
        f"queue {name!r}: neither {machine.system} (which has {there}) nor the file of {machine.name} "
        f"({', '.join(own) or 'without queues'}) knows it; name another with -q, or {_SKIP}"
    )


def _check_nodes(
    machine: Machine, name: str, table: Queue | None, state: QueueState | None, nodes: int
) -> None:
    least = _told(state.min_nodes if state else None, table.min_nodes if table else 0)
    most = _told(state.max_nodes if state else None, table.max_nodes if table else 0)
    if least and nodes < least:
        raise WrongCall(
            f"{nodes} node{_s(nodes)}: queue {name} of {machine.name} takes {least} at least (-n); {_SKIP}"
        )
    if most and nodes > most:
        raise WrongCall(
            f"{nodes} node{_s(nodes)}: queue {name} of {machine.name} takes {most} at most (-n); {_SKIP}"
        )


def _check_minutes(
    machine: Machine, name: str, table: Queue | None, state: QueueState | None, request: Request
) -> None:
    nodes, minutes = request.nodes, request.walltime_minutes
    step = step_of(table, nodes) if table is not None else None
    least = max(step.min_minutes if step else 0, table.min_minutes if table else 0)
    limits = [_told(state.max_minutes if state else None, table.max_minutes if table else 0)]
    limits += [step.max_minutes] if step else []
    most = min(filter(None, limits), default=0)
    where = f"queue {name} of {machine.name}"
    if step and step.max_minutes == most:
        where += f" gives {nodes} node{_s(nodes)}"
    else:
        where += " gives"
    if minutes < least:
        raise WrongCall(
            f"a walltime of {_minutes(minutes)}: {where} {_minutes(least)} at least (-t); {_SKIP}"
        )
    if most and minutes > most:
        raise WrongCall(f"a walltime of {_minutes(minutes)}: {where} {_minutes(most)} at most (-t); {_SKIP}")


def _check_queued(machine: Machine, queue: Queue, queued: Sequence[BatchJob]) -> None:
    waiting = [
        job
        for job in queued
        if job.state in _WAITING
        and (job.queue or machine.queue) == queue.name
        and job.machine == machine.name
    ]
    if len(waiting) >= queue.max_queued:
        which = ", ".join(job.id or job.key for job in waiting[:5]) + (", ..." if len(waiting) > 5 else "")
        raise WrongCall(
            f"{len(waiting)} of this site's batch jobs waiting in queue {queue.name} of {machine.name} "
            f"({which}), and a user may have {queue.max_queued}; wait, end one with nas-hpc kill, or {_SKIP}"
        )


def _told(live: int | None, table: int) -> int:
    """The limit that holds, 0: none."""
    return table if live is None else live


def _minutes(minutes: int) -> str:
    """60 min; 400 min (6 h 40 min)."""
    hours, rest = divmod(minutes, 60)
    if not hours:
        return f"{minutes} min"
    return f"{minutes} min ({hours} h{f' {rest} min' if rest else ''})"


def _s(count: int) -> str:
    return "" if count == 1 else "s"
