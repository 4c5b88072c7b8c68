"""The launcher's side of its searches: requests in, results and capacity out.

A search is known by its job and attempt. What it sends is idempotent by (creator, seq), and results are sent
in the order of their final events from the cursor that it names, so that a search that connects again, or a
new attempt of it, misses nothing and gets nothing twice.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from nas_hpc.errors import NasHpcError
from nas_hpc.launcher import asks
from nas_hpc.launcher.answers import Originals, done_of
from nas_hpc.launcher.dispatch import Dispatcher
from nas_hpc.launcher.endings import (
    SEARCH_ENDED,
    UNFINISHED,
    cancel_if_over,
    check_current,
    or_refusal,
    revive,
)
from nas_hpc.launcher.journal import Journal
from nas_hpc.launcher.orders import Allocation
from nas_hpc.processes.orders import Key
from nas_hpc.records import App, Job
from nas_hpc.resources import Request
from nas_hpc.states import RUNNABLE, Actor, Outcome, State
from nas_hpc.store.base import Finished, JobFilter, Store
from nas_hpc.wire import (
    PROTOCOL,
    Accepted,
    Cancel,
    Capacity,
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
_History = tuple[list[Finished], list[Job], float]
"""What is finished, what is not, and when the search's first attempt began."""
_Added = tuple[list[Job], list[Finished], dict[str, App] | None]
"""What is to run, what is over already, and the applications if any is asked for."""


@dataclass(slots=True)
class Session:
    """A connected search. ``live`` once its history has been sent."""

    peer: bytes
    job: Job
    shape: Shape
    request: Request
    cursor: int
    """The newest result that was sent."""
    settled: int
    """Up to here certainly all were sent. A kill by somebody else becomes known late: results that are newer
    than its own may have been sent before."""
    originals: Originals
    capacity: int = -1
    live: bool = False
    fetching: bool = False
    """Whether the database is being asked for news."""
    again: bool = False
    """Whether there may be more since."""
    report: Report | None = None


@dataclass(frozen=True, slots=True)
class Outside:
    """What the searches need from the launcher."""

    send: Callable[[bytes, Message], bool]
    deadline_utc: Callable[[], float]
    note: Callable[[str], None]
    changed: Callable[[], None]
    log_capacity: Callable[[str, dict[str, object]], None]
    expects: Callable[[Key], bool] = lambda key: False
    """Whether an attempt of a dead launcher may still turn out to go on."""
    others: Callable[[str], bool] = lambda workflow: False
    """Whether another launcher runs jobs of a workflow."""
    share: Callable[[Job, int], int] | None = None
    """Where several launchers run: a search's part of what all hold, when this one holds so much."""


@dataclass(slots=True)
class Searches:
    """All searches that are connected, and the evaluations that they asked for."""

    dispatcher: Dispatcher
    allocation: Allocation
    journal: Journal
    outside: Outside
    sessions: dict[bytes, Session] = field(default_factory=dict)
    workflows: set[str] = field(default_factory=set)
    """Where searches have connected."""
    waiting: dict[Key, tuple[bytes, Hello]] = field(default_factory=dict)
    """Searches that outlived their launcher, and of which it is not known yet whether they go on."""
    _told_for: tuple[int, ...] = (-1, 0)

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
        key = (hello.job, hello.attempt)
        run = self.dispatcher.running.get(key)
        if run is None and self.outside.expects(key):
            self.waiting[key] = (peer, hello)
            return
        if run is None or not run.held:
            said = f"attempt {hello.attempt} of this search is not the current one (superseded)"
            self.outside.send(peer, End(said))
            return
        job, settled = run.job, hello.cursor
        for other in [s for s in self.sessions.values() if s.job.id == hello.job]:
            settled = min(settled, other.settled)
            self._drop(other)
        probe = asks.probe(job, hello.shape)
        why = self._never_anywhere(probe)
        if why:
            self.outside.send(peer, End(f"none of its evaluations can run here: {why}"))
            return
        request = self.dispatcher.request_of(probe)
        self.dispatcher.placing.wants(job.id, request)
        session = Session(peer, job, hello.shape, request, hello.cursor, settled, Originals(job.id))
        self.sessions[peer] = session
        self.dispatcher.creators[job.id] = job
        self.workflows.add(job.workflow)

        def history(store: Store) -> _History:
            check_current(store, self.allocation.lease, job)
            if hello.cursor == 0 and job.attempt > 1:
                revive(store, job)
            done = store.finished(job.id, after=settled)
            waiting = store.jobs(JobFilter(creator=job.id, states=UNFINISHED))
            first = min((a.claimed for a in store.attempts([job.id])), default=time.time())
            return done, waiting, first

        self.dispatcher.write(or_refusal(history), partial(self._welcome, session))

    def _never_anywhere(self, job: Job) -> str:
        """Why no launcher can run it; what cannot run here may run under another."""
        return "" if self.outside.others(job.workflow) else self.dispatcher.never_here(job)

    def adopted(self, keys: Iterable[Key]) -> None:
        """It is decided whether these attempts go on: answer the searches among them."""
        for key in keys:
            if key in self.waiting:
                self._hello(*self.waiting.pop(key))

    def _welcome(self, session: Session, history: _History | NasHpcError) -> None:
        if self.sessions.get(session.peer) is not session:
            return
        if isinstance(history, NasHpcError):
            self._drop(session)
            return
        done, waiting, first = history
        self._deliver_all(session, done)
        session.live = True
        self.dispatcher.add(job for job in waiting if job.state in RUNNABLE)
        pending = tuple(
            Pending(job.seq, job.evaluation.config, job.evaluation.notes)
            for job in waiting
            if job.evaluation is not None
        )
        session.capacity = self._capacity_of(session)
        deadline = self.outside.deadline_utc()
        welcome = Welcome(PROTOCOL, self.allocation.lease, session.capacity, pending, deadline, first)
        self.outside.send(session.peer, welcome)
        if self.allocation.shared:
            self._fetch(session)  # others may have committed results since its history was read
        self._log_capacity(session.job.workflow)
        self.update_capacity()

    def _submit(self, session: Session, submit: Submit) -> None:
        now = time.time()
        asked = asks.sort(session.job, submit.asks, now, self._never_anywhere)
        if asked.refusal:
            self.outside.send(session.peer, Refused(submit.request, asked.refusal))
            return

        def commit(store: Store) -> _Added:
            store.claim(self.allocation.lease, ())  # raises LeaseLost
            apps = {app.name: app for app in store.apps()} if asked.applications else None
            wanted = asked if apps is None else asked.known(apps, now)
            added = store.add_jobs(wanted.fresh, Actor.SEARCH) if wanted.fresh else []
            hits = session.originals.hits(store, wanted.hits, now) if wanted.hits else []
            over = [*hits, *wanted.failed]
            return added, store.add_finished(over) if over else [], apps

        self.dispatcher.write(or_refusal(commit), partial(self._submitted, session, submit))

    def _submitted(self, session: Session, submit: Submit, outcome: _Added | NasHpcError) -> None:
        if isinstance(outcome, NasHpcError):
            self.outside.send(session.peer, Refused(submit.request, str(outcome)))
            return
        added, found, apps = outcome
        over = [one for one in found if one.order]  # sent again, one may run that could not be run now
        if apps is not None:
            self.dispatcher.apps = apps
        self.outside.send(session.peer, Accepted(submit.request))
        self.dispatcher.add(job for job in added if job.state in RUNNABLE)
        self.journal.attempts((one.job, one.attempt) for one in over if one.attempt is not None)
        self.finished(over)

    def _cancel(self, session: Session, cancel: Cancel) -> None:
        wanted = set(cancel.seqs)
        creator = session.job.id

        def commit(store: Store) -> list[Job]:
            check_current(store, self.allocation.lease, session.job)
            jobs = store.jobs(JobFilter(creator=creator, states=UNFINISHED))
            ids = [job.id for job in jobs if job.seq in wanted]
            return store.set_state(ids, State.USER_KILLED, Actor.SEARCH, "cancelled by its search")

        def then(killed: list[Job] | NasHpcError) -> None:
            if isinstance(killed, NasHpcError):
                self.outside.send(session.peer, Refused(cancel.request, str(killed)))
                return
            self.outside.send(session.peer, Accepted(cancel.request))
            self.killed(killed, "cancelled by its search")

        self.dispatcher.write(or_refusal(commit), then)

    # -- what happens to evaluations and searches ----------------------------------------------------
    def finished(self, done: Sequence[Finished]) -> None:
        """Tell the searches which of their evaluations ended; part with the searches that have ended."""
        by_creator: dict[str, list[Finished]] = {}
        for one in done:
            if one.job.creator:
                by_creator.setdefault(one.job.creator, []).append(one)
            elif self.dispatcher.has_evaluations(one.job):
                self._part_with(one.job)
                self.dispatcher.creators.pop(one.job.id, None)
        for session in list(self.sessions.values()):
            mine = by_creator.get(session.job.id)
            if mine and self.allocation.shared:
                self._fetch(session)  # others' results may stand before these
            elif mine and session.live:
                self._deliver(session, [one for one in mine if one.order > session.cursor])

    def _deliver(self, session: Session, news: Sequence[Finished]) -> None:
        if not news:
            return
        session.cursor = max(session.cursor, news[-1].order)
        for first in range(0, len(news), CHUNK):
            self.outside.send(session.peer, Results(tuple(map(done_of, news[first : first + CHUNK]))))

    def _deliver_all(self, session: Session, done: Sequence[Finished]) -> None:
        """Send everything that the database has after ``settled``; what comes twice its search drops."""
        if self.sessions.get(session.peer) is session and done:
            self._deliver(session, done)
            session.settled = done[-1].order

    def heard(self, creator: str) -> None:
        """Evaluations of a search (empty: any) became final elsewhere."""
        for session in list(self.sessions.values()):
            if creator in ("", session.job.id):
                self._fetch(session)

    def _fetch(self, session: Session) -> None:
        """Deliver what is new, in the order of the events: one request to the database at a time."""
        if session.fetching or not session.live:
            session.again = True
            return
        session.fetching, session.again = True, False
        news = partial(_after, session.job.id, session.settled)
        self.dispatcher.write(news, partial(self._fetched, session))

    def _fetched(self, session: Session, done: list[Finished]) -> None:
        session.fetching = False
        self._deliver_all(session, done)
        if session.again and self.sessions.get(session.peer) is session:
            self._fetch(session)

    def killed(self, before: Sequence[Job], reason: str) -> None:
        """Jobs, ``before`` as they were, became USER_KILLED: ends what runs of them, tells the searches."""
        self.dispatcher.forget(job.id for job in before)
        running = [(j.id, j.attempt) for j in before if j.state is State.RUNNING]
        self.dispatcher.stop(running, Outcome.KILLED, reason)
        for search in [job for job in before if self.dispatcher.has_evaluations(job)]:
            self._part_with(search)
            cancel = partial(cancel_if_over, search=search, lease=self.allocation.lease)
            self.dispatcher.write(cancel, partial(self.killed, reason=SEARCH_ENDED))
        creators = {job.creator for job in before if job.creator}
        for session in [s for s in self.sessions.values() if s.job.id in creators]:
            news = partial(_after, session.job.id, session.settled)
            self.dispatcher.write(news, partial(self._deliver_all, session))

    def unfit(self, jobs: Mapping[str, tuple[Job, str]]) -> None:
        """What waited can never run here, as is known now: searches of which that is all are ended; of the
        others the programs that job specifications named have failed."""
        for session in list(self.sessions.values()):
            why = self._never_anywhere(asks.probe(session.job, session.shape))
            if why:
                self.sessions.pop(session.peer, None)
                self.outside.send(session.peer, End(f"none of its evaluations can run here: {why}"))
        programs = {
            id_: (job, why)
            for id_, (job, why) in jobs.items()
            if asks.is_program(job) and not self.outside.others(job.workflow)
        }
        if programs:
            fail = partial(asks.fail_waiting, lease=self.allocation.lease, reasons=programs)
            self.dispatcher.write(fail, self._failed)

    def _failed(self, over: list[Finished]) -> None:
        self.dispatcher.forget(one.job.id for one in over)
        self.journal.attempts((one.job, one.attempt) for one in over if one.attempt is not None)
        self.finished(over)

    def _part_with(self, search: Job) -> None:
        for session in [s for s in self.sessions.values() if s.job.id == search.id]:
            if session.job.attempt <= search.attempt:
                self._drop(session)

    def _drop(self, session: Session) -> None:
        self.sessions.pop(session.peer, None)
        self.outside.send(session.peer, End("another process is this search now, or it has ended"))

    # -- capacity ------------------------------------------------------------------------------------
    def _capacity_of(self, session: Session) -> int:
        """The session's part of what the allocation holds of its shape: searches share it evenly."""
        total = self.dispatcher.capacity(session.request)
        if self.outside.share is not None:
            return self.outside.share(session.job, total)
        peers = sorted((s.job.created, s.job.id) for s in self.sessions.values())
        rank = peers.index((session.job.created, session.job.id))
        return total // len(peers) + (rank < total % len(peers))

    def slots(self) -> int:
        """Evaluators of all connected searches."""
        return sum(session.capacity for session in self.sessions.values() if session.live)

    def update_capacity(self, version: int = 0) -> None:
        """Tell every search whose capacity has changed; ``version`` grows when other launchers change it."""
        cause = (self.dispatcher.placing.version, len(self.sessions), version)
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


def _after(creator: str, order: int, store: Store) -> list[Finished]:
    return store.finished(creator, after=order)
