"""A launcher among others of its site: what they tell each other by the database's notices, and who gets how
many evaluations at once. All methods but those that a thread calls run in the loop's thread."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from typing import TYPE_CHECKING

from nas_hpc.launcher import joining
from nas_hpc.launcher.searches import Outside
from nas_hpc.launcher.watching import Watch, WatchHooks
from nas_hpc.processes.orders import Key
from nas_hpc.records import Attempt, Job, Lease
from nas_hpc.resources import Request
from nas_hpc.states import FINAL, State
from nas_hpc.store import open_site
from nas_hpc.store.base import Finished, JobFilter, Store
from nas_hpc.store.notices import EDITED, FINISHED, JOBS, SLOTS, Listener, Notice

if TYPE_CHECKING:
    from nas_hpc.launcher.loop import Launcher

TELL_S = 0.5
"""The others are told at most so often how many evaluations fit here."""
CLOSE_S = 3.0
ALL_BEATS = 12
"""At each of so many heartbeats all that waits is read: a job may wait that has been passed over."""


@dataclass(frozen=True, slots=True)
class Around:
    """One look at the launchers of the site."""

    leases: tuple[Lease, ...] = ()
    """Those that live, this one's too."""
    searches: tuple[Job, ...] = ()
    """All that run anywhere, the oldest first."""


def look_around(store: Store) -> Around:
    """In the store's thread."""
    running = frozenset({State.RUNNING})
    found = [
        job
        for app in store.apps()
        if app.restartable
        for job in store.jobs(JobFilter(application=app.name, states=running))
        if not job.creator
    ]
    return Around(tuple(store.leases()), tuple(sorted(found, key=_age)))


def _age(job: Job) -> tuple[float, str]:
    return job.created, job.id


def share(around: Around, mine: str, search: Job, total: int) -> int:
    """How many evaluations ``search`` may have at once: its even part of what every launcher holds that runs
    its workflow. This launcher's, with the lease ``mine``, holds ``total``."""
    part = 0
    searches = {job.id: job for job in (*around.searches, search)}
    leases = {lease.id: (lease.workflow, lease.slots) for lease in around.leases}
    leases[mine] = (leases[mine][0] if mine in leases else "", total)
    for workflow, slots in leases.values():
        if workflow in ("", search.workflow):
            fit = sorted((one for one in searches.values() if workflow in ("", one.workflow)), key=_age)
            rank = [one.id for one in fit].index(search.id)
            part += slots // len(fit) + (rank < slots % len(fit))
    return part


class Together:
    """What a launcher has to do because there may be others."""

    def __init__(self, launcher: Launcher, ended: Sequence[Lease], left: Collection[Key]) -> None:
        """``ended`` were found dead at the start, and ``left`` are attempts that agents may present."""
        self._launcher, self._ended, self._left = launcher, ended, left
        self._loop = asyncio.get_running_loop()
        self.sender = ""
        """Whom notices name that this launcher itself has sent."""
        self.around = Around()
        self.version = 0
        """Grows when the share of a search may be another."""
        self._looking = self._again = False
        self._beats = 0
        self._request: Request | None = None
        """What the evaluations of searches elsewhere ask for, as far as one was seen."""
        self._told: tuple[int, int] = (-1, -1)
        self._known: tuple[object, int] = (None, 0)
        """What was found to fit, and because of what."""
        self._watch: Watch | None = None
        self._listener: Listener | None = None
        self._teller: asyncio.TimerHandle | None = None
        self._closing = False

    def join(self, outside: Outside) -> Outside:
        """Where the launcher's dispatcher and searches have to know of others."""
        self._launcher.dispatcher.elsewhere = partial(self.others, "")
        return replace(outside, others=self.others, share=self.share)

    def begin(self) -> None:
        """Listen, and look after the others."""
        launcher, soon = self._launcher, self._soon
        hooks = WatchHooks(
            settled=self._settled,
            ended=self._write_lines,
            lost=partial(soon, launcher.fatal),
            note=launcher.note,
        )
        self._listener = Listener(
            partial(open_site, launcher.site),
            partial(soon, self._heard),
            launcher.note,
            partial(soon, self._missed),
        )
        self._watch = Watch(
            launcher.site, launcher.lease, launcher.options, hooks, ended=self._ended, left=self._left
        )
        self._look()
        self._beat()

    def _beat(self) -> None:
        """Nobody tells of jobs that others have taken: now and then it is seen what still waits."""
        if not (self._closing or self._launcher.ended):
            self._loop.call_later(self._launcher.options.heartbeat_s, self._beat)
            self._beats += 1
            if len(self._launcher.dispatcher.queue):
                self._launcher.looks.soon(everything=self._beats % ALL_BEATS == 0)

    async def close(self) -> None:
        """Hear nothing more."""
        self._closing = True
        if self._teller is not None:
            self._teller.cancel()
        if self._watch is not None:
            await asyncio.to_thread(self._watch.close, CLOSE_S)
        if self._listener is not None:
            await asyncio.to_thread(self._listener.close, CLOSE_S)

    def _soon(self, function: Callable[..., None], *arguments: object) -> None:
        """Called by threads."""
        try:
            self._loop.call_soon_threadsafe(self._unless_closing, function, *arguments)
        except RuntimeError:
            return  # the loop is closed

    def _unless_closing(self, function: Callable[..., None], *arguments: object) -> None:
        if not (self._closing or self._launcher.ended):
            function(*arguments)

    # -- what is heard -------------------------------------------------------------------------------
    def _heard(self, notice: Notice) -> None:
        if notice.sender == self.sender:
            return
        workflow = self._launcher.options.workflow
        if notice.topic == JOBS and (workflow == notice.key or "" in (workflow, notice.key)):
            self._launcher.looks.soon()
        elif notice.topic == EDITED and (workflow == notice.key or "" in (workflow, notice.key)):
            self._launcher.looks.soon(everything=True)
        elif notice.topic == FINISHED:
            self._launcher.searches.heard(notice.key)
        elif notice.topic == SLOTS:
            self._look()

    def _missed(self) -> None:
        """There was no connection for a while: anything may have happened."""
        self._launcher.looks.soon(everything=True)
        self._launcher.searches.heard("")
        self._look()

    def _settled(self, closed: Sequence[Finished], cancelled: Sequence[Job]) -> None:
        self._write_lines((), [(one.job, one.attempt) for one in closed if one.attempt is not None])
        self._soon(self._take_settled, closed, cancelled)

    def _take_settled(self, closed: Sequence[Finished], cancelled: Sequence[Job]) -> None:
        launcher = self._launcher
        final = [one for one in closed if one.job.state in FINAL]
        launcher.on_finished(final, cancelled)
        launcher.looks.soon(everything=True)  # what a dead one held has no event

    def _write_lines(self, ended: Sequence[Lease], lines: Sequence[tuple[Job, Attempt]]) -> None:
        """In the watch's thread: also while the launcher ends."""
        with suppress(RuntimeError):  # the journal is closed: who finds the next dead one finds these, too
            joining.write_lines(self._launcher.journal, lines, ended, self._launcher.options.lease_s)

    # -- who else there is ---------------------------------------------------------------------------
    def _look(self) -> None:
        if self._looking:
            self._again = True
            return
        self._looking = True
        self._launcher.dispatcher.write(look_around, self._seen)

    def _seen(self, around: Around) -> None:
        self._looking = False
        alone = self.others("") and len(around.leases) < 2
        if {one.id for one in self.around.leases} - {one.id for one in around.leases}:
            self._launcher.looks.soon(everything=True)  # what it held can be had, and has no event
        self.around = around
        self.version += 1
        if alone:
            self._launcher.searches.unfit({})  # nobody else can run what cannot run here
        self._launcher.searches.update_capacity(self.version)
        self.changed()
        if self._again:
            self._again = False
            self._look()

    def others(self, workflow: str) -> bool:
        """Whether another launcher runs jobs of ``workflow`` (empty: any)."""
        mine = self._launcher.lease.id
        return any(
            one.id != mine and (not workflow or one.workflow in ("", workflow)) for one in self.around.leases
        )

    def share(self, search: Job, total: int) -> int:
        """See ``share``."""
        return share(self.around, self._launcher.lease.id, search, total)

    # -- what is told --------------------------------------------------------------------------------
    def saw(self, waiting: Sequence[Job]) -> None:
        """These wait in the database; evaluations among them tell what fits here."""
        one = next((job for job in reversed(waiting) if job.creator), None)
        if one is not None:
            self._request = self._launcher.dispatcher.request_of(one)
            self.changed()

    def changed(self) -> None:
        """More or less may fit here, or more or fewer searches run: the others are told, soon."""
        if self._teller is None and not self._closing and self._fits() != self._told:
            pause_s = 0.0 if self._told[0] < 0 else TELL_S
            self._teller = self._loop.call_later(pause_s, self._tell)

    @property
    def slots(self) -> int:
        """How many evaluations fit here."""
        return self._fits()[0]

    def _fits(self) -> tuple[int, int]:
        """How many evaluations fit here, and how many searches are connected."""
        dispatcher, sessions = self._launcher.dispatcher, self._launcher.searches.sessions
        first = next(iter(sessions.values()), None)
        request = first.request if first is not None else self._request or self._guess()
        cause = (request, dispatcher.placing.version, dispatcher.stopping)
        if self._known[0] != cause:
            slots = 0 if dispatcher.stopping else dispatcher.capacity(request)
            self._known = cause, slots
        return self._known[1], len(sessions)

    def _guess(self) -> Request:
        """What an evaluation may ask for where none was seen: a node in mpi mode, else a core."""
        if self._launcher.options.job_mode == "mpi":
            return Request(1, Fraction(1), 0)
        cores = min((len(node.cores) for node in self._launcher.pool.job_nodes), default=1)
        return Request(1, Fraction(1, max(2, cores)), 0)

    def _tell(self) -> None:
        self._teller = None
        if self._closing or self._launcher.ended:
            return
        told = self._fits()
        if told != self._told:
            self._told = told
            lease = self._launcher.lease.id
            self._launcher.dispatcher.write(
                lambda store: store.tell_slots(lease, told[0]), lambda _: self._look()
            )
