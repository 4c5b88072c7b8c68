"""The launcher's side of its searches: requests in, results and capacity out.

A search is known by its job and attempt. What it sends is idempotent by (creator, seq), and results are sent
in the order of their final events from the cursor that it names, so that a search that connects again, or a
new attempt of it, misses nothing and gets nothing twice.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial

from nas_hpc.errors import NasHpcError
from nas_hpc.launcher import policy
from nas_hpc.launcher.dispatch import Dispatcher
from nas_hpc.launcher.journal import Journal
from nas_hpc.launcher.orders import Allocation
from nas_hpc.records import Attempt, Evaluation, Job, Resources, Result, new_id
from nas_hpc.resources import Request
from nas_hpc.states import FINAL, RUNNABLE, Actor, Outcome, State
from nas_hpc.store.base import Finished, JobFilter, Store
from nas_hpc.wire import (
    PROTOCOL,
    Accepted,
    Ask,
    Cancel,
    Capacity,
    Done,
    End,
    Hello,
    Message,
    Pending,
    Refused,
    Report,
    Results,
    Shape,
    Submit,
    Welcome,
)  # fmt: skip

CHUNK = 200
"""Results per message."""
UNFINISHED = frozenset(State) - FINAL


@dataclass(slots=True)
class Session:
    """A connected search. ``live`` once its history has been sent."""

    peer: bytes
    job: Job
    shape: Shape
    request: Request
    cursor: int
    capacity: int = -1
    live: bool = False
    report: Report | None = None


@dataclass(frozen=True, slots=True)
class Outside:
    """What the searches need from the launcher."""

    send: Callable[[bytes, Message], bool]
    deadline_utc: Callable[[], float]
    note: Callable[[str], None]
    changed: Callable[[], None]
    log_capacity: Callable[[str, dict[str, object]], None]


@dataclass(slots=True)
class Searches:
    """All searches that are connected, and the evaluations that they asked for."""

    dispatcher: Dispatcher
    allocation: Allocation
    journal: Journal
    outside: Outside
    sessions: dict[bytes, Session] = field(default_factory=dict)
    _told_for: tuple[int, int] = (-1, 0)

    # -- messages ------------------------------------------------------------------------------------
    def receive(self, peer: bytes, message: Message) -> None:
        """Handle a message of a search."""
        if isinstance(message, Hello):
            self._hello(peer, message)
            return
        session = self.sessions.get(peer)
        if session is None:
            self.outside.send(peer, End("this launcher does not know you: say Hello first"))
        elif isinstance(message, Submit):
            self._submit(session, message)
        elif isinstance(message, Cancel):
            self._cancel(session, message)
        elif isinstance(message, Report):
            session.report = message
            self.outside.changed()

    def _hello(self, peer: bytes, hello: Hello) -> None:
        if hello.protocol != PROTOCOL:
            said = f"the search speaks protocol {hello.protocol}, the launcher {PROTOCOL}"
            self.outside.send(peer, End(said))
            return
        run = self.dispatcher.running.get((hello.job, hello.attempt))
        if run is None:
            said = f"attempt {hello.attempt} of this search is not the current one (superseded)"
            self.outside.send(peer, End(said))
            return
        for other in [s for s in self.sessions.values() if s.job.id == hello.job]:
            self._drop(other)
        job = run.job
        try:
            request = self._request_of(hello.shape)
        except NasHpcError as error:
            self.outside.send(peer, End(str(error)))
            return
        session = Session(peer, job, hello.shape, request, hello.cursor)
        self.sessions[peer] = session
        self.dispatcher.creators[job.id] = job

        def history(store: Store) -> tuple[list[Finished], list[Job], float]:
            done = store.finished(job.id, after=hello.cursor)
            waiting = store.jobs(JobFilter(creator=job.id, states=UNFINISHED))
            first = min((a.claimed for a in store.attempts([job.id])), default=time.time())
            return done, waiting, first

        self.dispatcher.write(history, partial(self._welcome, session))

    def _request_of(self, shape: Shape) -> Request:
        resources = _resources(shape, 0.0)
        probe = Job(id="", name="", workflow="", creator="-", resources=resources)
        return policy.request_of(probe, self.allocation.mode, shares_node=False)

    def _welcome(self, session: Session, history: tuple[list[Finished], list[Job], float]) -> None:
        if self.sessions.get(session.peer) is not session:
            return
        done, waiting, first = history
        self._deliver(session, done)
        session.live = True
        pending = tuple(
            Pending(job.seq, job.evaluation.config, job.data) for job in waiting if job.evaluation is not None
        )
        session.capacity = self._capacity_of(session)
        deadline = self.outside.deadline_utc()
        welcome = Welcome(PROTOCOL, self.allocation.lease, session.capacity, pending, deadline, first)
        self.outside.send(session.peer, welcome)
        self._log_capacity(session.job.workflow)
        self.update_capacity()

    def _submit(self, session: Session, submit: Submit) -> None:
        now = time.time()
        fresh = [self._job_of(session, ask, now) for ask in submit.asks if not ask.cached_of]
        cached = [(self._job_of(session, ask, now), ask.cached_of) for ask in submit.asks if ask.cached_of]
        creator = session.job.id

        def commit(store: Store) -> tuple[list[Job], list[Finished]] | NasHpcError:
            try:
                with store.transaction():  # all of the request, or nothing of it
                    added = store.add_jobs(fresh, Actor.SEARCH) if fresh else []
                    hits = store.add_finished(_with_results(store, creator, cached, now)) if cached else []
            except NasHpcError as error:
                if error.exit_code != 2:
                    raise  # the database's own trouble is not the search's
                return error
            return added, hits

        self.dispatcher.write(commit, partial(self._submitted, session, submit))

    def _submitted(
        self, session: Session, submit: Submit, outcome: tuple[list[Job], list[Finished]] | NasHpcError
    ) -> None:
        if isinstance(outcome, NasHpcError):
            self.outside.send(session.peer, Refused(submit.request, str(outcome)))
            return
        added, hits = outcome
        self.outside.send(session.peer, Accepted(submit.request))
        self.dispatcher.add(job for job in added if job.state in RUNNABLE)
        self.journal.attempts((hit.job, hit.attempt) for hit in hits if hit.attempt is not None)
        self.finished(hits)

    def _job_of(self, session: Session, ask: Ask, now: float) -> Job:
        search = session.job
        return Job(
            id=new_id(),
            name=f"task{ask.seq}",
            workflow=search.workflow,
            environ=dict(ask.environ),
            resources=_resources(ask.shape, ask.timeout_s),
            evaluation=Evaluation(ask.run, ask.config, ask.seed),
            creator=search.id,
            seq=ask.seq,
            retries=ask.retries,
            data=dict(ask.data),
            created=now,
        )

    def _cancel(self, session: Session, cancel: Cancel) -> None:
        wanted = set(cancel.seqs)
        creator = session.job.id

        def commit(store: Store) -> list[Job]:
            jobs = store.jobs(JobFilter(creator=creator, states=UNFINISHED))
            ids = [job.id for job in jobs if job.seq in wanted]
            return store.set_state(ids, State.USER_KILLED, Actor.SEARCH, "cancelled by its search")

        def then(killed: list[Job]) -> None:
            self.outside.send(session.peer, Accepted(cancel.request))
            self.killed(killed, "cancelled by its search")

        self.dispatcher.write(commit, then)

    # -- what happens to evaluations and searches ----------------------------------------------------
    def finished(self, done: Sequence[Finished]) -> None:
        """Tell the searches which of their evaluations ended; cancel those of searches that have ended."""
        by_creator: dict[str, list[Finished]] = {}
        for one in done:
            if one.job.creator:
                by_creator.setdefault(one.job.creator, []).append(one)
            elif self.dispatcher.is_search(one.job):
                self._search_ended(one.job)
        for session in list(self.sessions.values()):
            mine = by_creator.get(session.job.id)
            if mine and session.live:
                self._deliver(session, mine)

    def _deliver(self, session: Session, done: Iterable[Finished]) -> None:
        news = [one for one in done if one.order > session.cursor]
        if not news:
            return
        session.cursor = news[-1].order
        for first in range(0, len(news), CHUNK):
            self.outside.send(session.peer, Results(tuple(map(_done, news[first : first + CHUNK]))))

    def killed(self, before: Sequence[Job], reason: str) -> None:
        """Jobs, ``before`` as they were, became USER_KILLED: ends what runs of them, tells the searches."""
        self.dispatcher.forget(job.id for job in before)
        running = [(j.id, j.attempt) for j in before if j.state is State.RUNNING]
        self.dispatcher.stop(running, Outcome.KILLED, reason)
        for search in [job for job in before if self.dispatcher.is_search(job)]:
            self._search_ended(search)
        creators = {job.creator for job in before if job.creator}
        for session in [s for s in self.sessions.values() if s.job.id in creators and s.live]:
            news = partial(_after, session.job.id, session.cursor)
            self.dispatcher.write(news, partial(self._deliver, session))

    def _search_ended(self, search: Job) -> None:
        """A search that is over for good takes its evaluations with it."""
        for session in [s for s in self.sessions.values() if s.job.id == search.id]:
            self._drop(session)

        def cancel(store: Store) -> list[Job]:
            jobs = store.jobs(JobFilter(creator=search.id, states=UNFINISHED))
            return store.set_state([j.id for j in jobs], State.USER_KILLED, Actor.LAUNCHER, reason)

        reason = "its search has ended"
        self.dispatcher.write(cancel, lambda before: self.killed(before, reason))

    def _drop(self, session: Session) -> None:
        self.sessions.pop(session.peer, None)
        self.outside.send(session.peer, End("another process is this search now, or it has ended"))

    # -- capacity ------------------------------------------------------------------------------------
    def _capacity_of(self, session: Session) -> int:
        """The session's part of what the allocation holds of its shape: searches share it evenly."""
        total = self.dispatcher.capacity(session.request)
        peers = sorted(s.job.created for s in self.sessions.values())
        rank = peers.index(session.job.created)
        return total // len(peers) + (rank < total % len(peers))

    def slots(self) -> int:
        """Evaluators of all connected searches."""
        return sum(session.capacity for session in self.sessions.values() if session.live)

    def update_capacity(self) -> None:
        """Tell every search whose capacity has changed."""
        cause = (self.dispatcher.persons_version, len(self.sessions))
        if cause == self._told_for:
            return
        self._told_for = cause
        for session in self.sessions.values():
            now = self._capacity_of(session)
            if session.live and now != session.capacity:
                session.capacity = now
                self.outside.send(session.peer, Capacity(now))
                self._log_capacity(session.job.workflow)

    def _log_capacity(self, workflow: str) -> None:
        slots = sum(s.capacity for s in self.sessions.values() if s.job.workflow == workflow and s.live)
        self.outside.log_capacity(workflow, launcher_line(self.allocation, "capacity", slots))


def launcher_line(allocation: Allocation, event: str, slots: int) -> dict[str, object]:
    """A line of launchers.jsonl."""
    return {
        "launcher": allocation.lease,
        "time": time.time(),
        "event": event,
        "nodes": [node.name for node in allocation.nodes],
        "mode": allocation.mode,
        "slots": slots,
    }


def _resources(shape: Shape, timeout_s: float) -> Resources:
    return Resources(
        num_nodes=shape.num_nodes,
        ranks_per_node=shape.ranks_per_node,
        threads_per_rank=shape.threads_per_rank,
        gpus_per_rank=shape.gpus_per_rank,
        node_packing_count=shape.node_packing_count,
        timeout_s=timeout_s,
    )


def _after(creator: str, cursor: int, store: Store) -> list[Finished]:
    return store.finished(creator, after=cursor)


def _with_results(
    store: Store, creator: str, cached: Sequence[tuple[Job, int]], now: float
) -> list[tuple[Job, Result]]:
    """The cache hits with their originals' results. Raises WrongCall for an original that has none."""
    by_seq = {one.job.seq: one.attempt for one in store.finished(creator)}
    pairs = []
    for job, seq in cached:
        attempt: Attempt | None = by_seq.get(seq)
        if attempt is None or attempt.result is None:
            raise policy.no_original(job.seq, seq)
        original = attempt.result
        result = Result(original.outcome, original.objective, original.metadata, start=now, end=now)
        pairs.append((job, result))
    return pairs


def _done(one: Finished) -> Done:
    job, result = one.job, one.attempt.result if one.attempt is not None else None
    if result is None:
        result = Result(Outcome.KILLED, reason="ended before it began", start=0.0, end=0.0)
    return Done(
        order=one.order,
        seq=job.seq,
        config=job.evaluation.config if job.evaluation is not None else {},
        data=job.data,
        outcome=result.outcome.value,
        objective=result.objective if result.outcome is Outcome.OK else None,
        metadata=result.metadata,
        reason=result.reason,
        start=result.start,
        end=result.end,
        attempt=job.attempt,
        submitted=job.created,
        cached=job.attempt == 0 and result.outcome is Outcome.OK,
    )
