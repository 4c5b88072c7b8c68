"""Programs of running jobs that ask for something: jobs to be added or ended, and what became of theirs.

A request is answered after its commit, and may come again: a job that a job adds has an id made of that job
and a key, so that it is added once, however often its program is started.
"""

from __future__ import annotations

import shlex
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from nas_hpc.errors import NasHpcError, WrongCall
from nas_hpc.launcher.asks import resources_of
from nas_hpc.launcher.dispatch import Dispatcher
from nas_hpc.launcher.endings import or_refusal
from nas_hpc.names import wrong_name
from nas_hpc.records import App, Job, Origin, ParentFailure, Stages
from nas_hpc.states import RUNNABLE, Actor, Outcome, State
from nas_hpc.store.base import JobFilter, Store
from nas_hpc.wire import (
    PROTOCOL,
    Accepted,
    Added,
    AddJobs,
    AskChildren,
    Child,
    Children,
    KillJobs,
    Message,
    NewJob,
    OfJob,
    Refused,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Outside:
    """What visitors need from the launcher."""

    send: Callable[[bytes, Message], bool]
    killed: Callable[[Sequence[Job], str], None]
    """Jobs, as they were, became USER_KILLED."""
    waits: Callable[[], None]
    """A job was added that waits for its parents."""
    workflow: str
    """Only jobs of this workflow run here; empty: all."""


_Added = tuple[list[Job], dict[str, App]]


@dataclass(slots=True)
class Visitors:
    """Answers programs of running jobs. All methods run in the loop's thread."""

    dispatcher: Dispatcher
    lease: str
    outside: Outside
    awaited: set[str] = field(default_factory=set)
    """Parents of waiting jobs: any of them may be an evaluation."""

    def receive(self, peer: bytes, message: OfJob) -> None:
        """Handle a request; the answer follows its commit."""
        if message.protocol != PROTOCOL:
            self.outside.send(peer, Refused(message.request, f"the launcher speaks protocol {PROTOCOL}"))
        elif isinstance(message, AddJobs):
            self.dispatcher.write(
                or_refusal(partial(self._add, message)), partial(self._added, peer, message.request)
            )
        elif isinstance(message, KillJobs):
            self.dispatcher.write(
                or_refusal(partial(self._kill, message)), partial(self._ended, peer, message.request)
            )
        else:
            self.dispatcher.write(
                or_refusal(partial(_children, message)), partial(self._told, peer, message.request)
            )

    def await_parents(self, waiting: Iterable[Job]) -> None:
        """These jobs wait for their parents."""
        for job in waiting:
            self.awaited.update(job.parents)

    # -- adding --------------------------------------------------------------------------------------
    def _add(self, message: AddJobs, store: Store) -> _Added:
        store.claim(self.lease, ())  # raises LeaseLost
        maker = _asker(store, message.job, message.attempt)
        origin, now = _origin_of(store, maker), time.time()
        new = [_job_of(maker, origin, one, now) for one in message.jobs]
        return store.add_jobs(new, Actor.COMMAND), {app.name: app for app in store.apps()}

    def _added(self, peer: bytes, request: int, outcome: _Added | NasHpcError) -> None:
        if isinstance(outcome, NasHpcError):
            self.outside.send(peer, Refused(request, str(outcome)))
            return
        jobs, self.dispatcher.apps = outcome
        self.outside.send(peer, Added(request, tuple(job.id for job in jobs)))
        mine = [job for job in jobs if self.outside.workflow in ("", job.workflow)]
        waiting = [job for job in mine if job.state is State.AWAITING_PARENTS]
        if waiting:
            self.await_parents(waiting)
            self.outside.waits()
        self.dispatcher.add(job for job in mine if job.state in RUNNABLE)

    # -- ending --------------------------------------------------------------------------------------
    def _kill(self, message: KillJobs, store: Store) -> tuple[list[Job], str]:
        store.claim(self.lease, ())
        asker = _asker(store, message.job, message.attempt)
        if asker.id in message.ids:
            raise WrongCall(f"job {asker.name} cannot kill itself: let its program end")
        jobs = store.jobs(JobFilter(ids=message.ids)) if message.ids else []  # raises for an unknown one
        reason = f"killed by job {asker.name} ({asker.id[:8]})"
        return store.set_state([job.id for job in jobs], State.USER_KILLED, Actor.COMMAND, reason), reason

    def _ended(self, peer: bytes, request: int, outcome: tuple[list[Job], str] | NasHpcError) -> None:
        if isinstance(outcome, NasHpcError):
            self.outside.send(peer, Refused(request, str(outcome)))
            return
        self.outside.send(peer, Accepted(request))
        self.outside.killed(*outcome)

    # -- telling -------------------------------------------------------------------------------------
    def _told(self, peer: bytes, request: int, outcome: tuple[Child, ...] | NasHpcError) -> None:
        if isinstance(outcome, NasHpcError):
            self.outside.send(peer, Refused(request, str(outcome)))
        else:
            self.outside.send(peer, Children(request, outcome))


def _children(message: AskChildren, store: Store) -> tuple[Child, ...]:
    asker = _asker(store, message.job, message.attempt)
    jobs = store.jobs(JobFilter(made_by=asker.id))
    last = {attempt.job: attempt.result for attempt in store.attempts([job.id for job in jobs])}
    told = []
    for job in jobs:
        result = last.get(job.id)
        told.append(
            Child(
                id=job.id,
                name=job.name,
                workflow=job.workflow,
                application=job.application,
                state=job.state.value,
                attempt=job.attempt,
                objective=result.objective if result is not None and result.outcome is Outcome.OK else None,
                reason=result.reason if result is not None else "",
            )
        )
    return tuple(told)


def _asker(store: Store, job: str, attempt: int) -> Job:
    """The job that asks. Raises WrongCall unless that attempt of it, or a script before or after it, is what
    a launcher runs now: what was lost and goes on somewhere must change nothing any more."""
    try:
        [asker] = store.jobs(JobFilter(ids=(job,)))
    except WrongCall:
        raise WrongCall(f"the site of this launcher has no job {job:.32}") from None
    if not asker.lease or asker.attempt != attempt:
        raise WrongCall(
            f"attempt {attempt} of job {asker.name} ({job[:8]}) is over: it was ended or restarted"
        )
    return asker


def _origin_of(store: Store, maker: Job) -> Origin:
    """Where the job came from; an evaluation came from where its search did."""
    if not maker.creator:
        return maker.origin
    try:
        [search] = store.jobs(JobFilter(ids=(maker.creator,)))
    except WrongCall:
        return maker.origin
    return search.origin


def child_id(maker: str, key: str) -> str:
    """The id of the job that ``maker`` adds under ``key``."""
    return uuid.uuid5(uuid.UUID(hex=maker), key).hex


def _job_of(maker: Job, origin: Origin, new: NewJob, now: float) -> Job:
    """Raises WrongCall for what a program that is not ours might send."""
    workflow = new.workflow or maker.workflow
    for what, name in (("name", new.name), ("workflow", workflow)):
        if wrong := wrong_name(name):
            raise WrongCall(f"the {what} {name!r:.120} {wrong}")
    try:
        shlex.split(new.args)
    except ValueError as error:
        raise WrongCall(f"the args of job {new.name} cannot be split: {error}") from None
    if not new.application:
        raise WrongCall(f"job {new.name} has no application: say which one it runs")
    return Job(
        id=child_id(maker.id, new.key),
        name=new.name,
        workflow=workflow,
        application=new.application,
        args=new.args,
        environ=dict(new.environ),
        origin=origin,
        resources=resources_of(new.shape, new.timeout_s, new.wall_time_minutes),
        parents=new.parents,
        retries=new.retries,
        data=dict(new.data),
        made_by=maker.id,
        stages=_stages_of(new.name, new.stages),
        created=now,
    )


def _stages_of(name: str, given: Mapping[str, Any]) -> Stages:
    try:
        policy = ParentFailure(given.get("on_parent_failure", ParentFailure.FAIL))
        return Stages(**{**given, "on_parent_failure": policy})
    except (ValueError, TypeError) as error:
        there_are = ", ".join(one.value for one in ParentFailure)
        raise WrongCall(f"job {name}: {error}; on_parent_failure is one of {there_are}") from None
