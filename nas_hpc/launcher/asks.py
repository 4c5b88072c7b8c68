"""From what a search asks for to jobs: those that run, those known already, those that never will."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from nas_hpc.records import App, Evaluation, Job, Resources, Result, new_id
from nas_hpc.states import Outcome, State
from nas_hpc.store.base import Claim, Finish, Finished, Store
from nas_hpc.wire import Ask, Shape


@dataclass(frozen=True, slots=True)
class Asked:
    """The evaluations of one request."""

    fresh: tuple[Job, ...]
    """To be run."""
    hits: tuple[tuple[Job, int], ...]
    """Each with the number of the evaluation whose result it shares."""
    failed: tuple[tuple[Job, Result], ...]
    """Each with why there is nothing to run."""
    refusal: str = ""
    """Why the whole request cannot be done; empty if it can."""

    @property
    def applications(self) -> bool:
        """Whether registered applications are asked for: those have to be known."""
        return any(job.application for job in self.fresh)

    def known(self, apps: Mapping[str, App], now: float) -> Asked:
        """The same, where what asks for an application that is not among ``apps`` has failed."""
        there_are = ", ".join(sorted(apps)) or "none"
        unknown = {
            job.id: failure(
                f"the application {job.application!r} is not registered; known: {there_are}; register it: "
                f"nas-hpc app --name {job.application} --exec PROGRAM",
                now,
            )
            for job in self.fresh
            if job.application and job.application not in apps
        }
        left = tuple(job for job in self.fresh if job.id not in unknown)
        failed = tuple((job, unknown[job.id]) for job in self.fresh if job.id in unknown)
        return replace(self, fresh=left, failed=(*self.failed, *failed))


def sort(search: Job, asks: Iterable[Ask], now: float, never_here: Callable[[Job], str]) -> Asked:
    """The jobs of ``asks``.

    What a job specification made and this allocation can never run has failed: another configuration may
    well run. If plain run functions cannot, none of the search's could, and the request is refused.
    """
    fresh: list[Job] = []
    hits: list[tuple[Job, int]] = []
    failed: list[tuple[Job, Result]] = []
    verdicts: dict[Resources, str] = {}
    refusal = ""
    for ask in asks:
        job = job_of(search, ask, now)
        if ask.cached_of:
            hits.append((job, ask.cached_of))
            continue
        if ask.failure:
            failed.append((job, failure(ask.failure, now)))
            continue
        if job.resources not in verdicts:
            verdicts[job.resources] = never_here(job)
        why = verdicts[job.resources]
        if why and is_program(job):
            failed.append((job, failure(_cannot(why), now)))
        else:
            refusal = refusal or why
            fresh.append(job)
    said = f"an evaluation that cannot run here: {refusal}" if refusal else ""
    return Asked(tuple(fresh), tuple(hits), tuple(failed), said)


def job_of(search: Job, ask: Ask, now: float) -> Job:
    """The job of one evaluation of ``search``."""
    return Job(
        id=new_id(),
        name=f"task{ask.seq}",
        workflow=search.workflow,
        application=ask.application,
        args=ask.args,
        environ=dict(ask.environ),
        resources=resources_of(ask.shape, ask.timeout_s, ask.wall_time_minutes),
        evaluation=Evaluation(ask.run, ask.config, ask.seed, ask.argv, dict(ask.data)),
        creator=search.id,
        seq=ask.seq,
        retries=ask.retries,
        data=dict(ask.job_data),
        created=now,
    )


def probe(search: Job, shape: Shape) -> Job:
    """An evaluation of ``search`` with that shape, as far as it matters where it may run."""
    nothing = Evaluation("", {}, 0)
    return Job("", "", search.workflow, creator=search.id, evaluation=nothing, resources=resources_of(shape))


def fail_waiting(store: Store, lease: str, reasons: Mapping[str, tuple[Job, str]]) -> list[Finished]:
    """In the store's thread: these waiting programs have failed, as they can never run here.

    They are claimed and ended at once, so that the reason stands in an attempt. Raises LeaseLost.
    """
    claimed = store.claim(lease, [Claim(identifier) for identifier in reasons])
    now = time.time()
    path = (State.RUN_ERROR, State.FAILED)
    return store.finish(
        lease,
        [
            Finish(job.id, job.attempt, lease, failure(_cannot(reasons[job.id][1]), now), path)
            for job in claimed
        ],
    )


def _cannot(why: str) -> str:
    return f"it cannot run here: {why}"


def resources_of(shape: Shape, timeout_s: float = 0.0, wall_time_minutes: float = 0.0) -> Resources:
    """What a job of that shape occupies."""
    return Resources(
        num_nodes=shape.num_nodes,
        ranks_per_node=shape.ranks_per_node,
        threads_per_rank=shape.threads_per_rank,
        threads_per_core=shape.threads_per_core,
        gpus_per_rank=shape.gpus_per_rank,
        node_packing_count=shape.node_packing_count,
        wall_time_minutes=wall_time_minutes,
        timeout_s=timeout_s,
    )


def is_program(job: Job) -> bool:
    """Whether the job is an evaluation by a program that a job specification named."""
    return job.evaluation is not None and bool(job.application or job.evaluation.argv)


def failure(reason: str, now: float) -> Result:
    """The result of an evaluation that never ran."""
    return Result(Outcome.ERROR, reason=reason, start=now, end=now)
