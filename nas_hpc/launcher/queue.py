"""The jobs that wait for a place, and who is next. Pure: times and estimates are given.

Jobs that ask for the same thing stand in one line, so that finding the next one costs the number of
different requests and not the number of jobs.

Nobody starves. A job that did not fit and saw a later one placed is *passed over*: nodes are kept free for
the first such job until it fits, as in EASY backfilling (Lifka 1995, "The ANL/IBM SP scheduling system"): a
job may still use them if it surely ends before the first one could begin. A line whose first job saw
``patience`` others placed is *overdue* and goes before all that are not, so that a stream of large jobs does
not hold up a small one for ever.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

from nas_hpc.records import Job
from nas_hpc.resources import Placement, Request

Kind = tuple[bool, Request, str]
"""(is a search, what it asks for, its like for estimates)."""
_Rank = tuple[bool, int, bool, int, float, int, int]


class Floor(Protocol):
    """Where the queue's jobs are placed."""

    @property
    def version(self) -> int:
        """Grows when ``keep`` may give another answer than None."""

    def place(self, job: Job, request: Request, *, search: bool, on_kept: bool) -> Placement | None:
        """Take a place for ``job``, None if there is none; with ``on_kept`` also on the nodes kept free."""

    def keep(self, job: Job, request: Request, *, search: bool, now: float) -> tuple[float, bool] | None:
        """Keep nodes free on which ``request`` will fit, instead of those kept so far.

        Returns when it will fit there, and whether that is a guess; None if waiting would not help.
        """

    def keep_none(self) -> None:
        """Give all nodes free that were kept."""


@dataclass(slots=True, eq=False)
class _Line:
    """The waiting jobs of one kind, each with its number of arrival."""

    kind: Kind
    since: int
    """How many jobs had been placed when its first job became that."""
    jobs: dict[str, tuple[Job, int]] = field(default_factory=dict)
    passed: bool = False
    """Later ones were placed while its first did not fit."""
    hopeless: int = -1
    """The floor's version at which waiting for a place was of no use."""

    size: tuple[bool, int, float, int] = field(init=False)
    """Sorts searches first, then the largest."""

    def __post_init__(self) -> None:
        search, request, _ = self.kind
        self.size = (not search, -request.num_nodes, -float(request.share), -request.gpus)

    def first(self) -> tuple[Job, int]:
        return next(iter(self.jobs.values()))


@dataclass(slots=True)
class _Kept:
    """For whom nodes are kept free."""

    line: _Line
    start: float
    guessed: bool
    chosen: int
    """How many jobs had been placed when they were chosen."""


class JobQueue:
    """Waiting jobs: overdue ones, then searches, then the largest request, then the oldest."""

    def __init__(self, patience: int = 64) -> None:
        self._patience = patience
        self._lines: dict[Kind, _Line] = {}
        self._kind: dict[str, Kind] = {}
        self._arrived = 0
        self._placed = 0
        self._kept: _Kept | None = None

    def __len__(self) -> int:
        return len(self._kind)

    def __contains__(self, job_id: str) -> bool:
        return job_id in self._kind

    def __iter__(self) -> Iterator[Job]:
        for line in self._lines.values():
            for job, _ in line.jobs.values():
                yield job

    def get(self, job_id: str) -> Job | None:
        """The job as it waits; None if it does not."""
        kind = self._kind.get(job_id)
        return None if kind is None else self._lines[kind].jobs[job_id][0]

    @property
    def next(self) -> Job | None:
        """The job for which nodes are kept free."""
        line = self._kept.line if self._kept is not None else None
        return line.first()[0] if line is not None and line.jobs else None

    def firsts(self) -> Iterator[tuple[Job, Request]]:
        """The first job of each kind, and what it asks for."""
        for line in self._lines.values():
            yield line.first()[0], line.kind[1]

    def add(self, job: Job, request: Request, *, search: bool, like: str) -> None:
        """Append ``job``; one that waits already is replaced in its place."""
        kind = (search, request, like)
        if self._kind.get(job.id, kind) != kind:
            self.remove(job.id)
        self._kind[job.id] = kind
        line = self._lines.get(kind)
        if line is None:
            line = self._lines[kind] = _Line(kind, self._placed)
        _, number = line.jobs.get(job.id, (job, self._arrived))
        self._arrived += 1
        line.jobs[job.id] = job, number

    def remove(self, job_id: str) -> Job | None:
        """Take a job out; None if it does not wait."""
        kind = self._kind.pop(job_id, None)
        if kind is None:
            return None
        line = self._lines[kind]
        job, _ = line.jobs.pop(job_id)
        if not line.jobs:
            del self._lines[kind]
        return job

    # -- who is next ---------------------------------------------------------------------------------
    def take(
        self,
        floor: Floor,
        fits: Callable[[Job], bool],
        *,
        may_start: Callable[[Job], bool] = lambda job: True,
        now: float = 0.0,
        estimate: Callable[[Job], float] = lambda job: 0.0,
    ) -> Iterator[tuple[Job, Placement]]:
        """Take out, one after the other, the jobs for which there is room and, by ``fits``, time.

        ``may_start`` says whether it may start at this moment (so many starts per second): if not, it keeps
        its turn. ``estimate`` says how many seconds a job takes, 0 if nobody knows; ``now`` is the time to
        which ``floor.keep`` compares. To be used up: nodes are kept for the next job at the end.
        """
        if self._kept is not None and not self._kept.line.jobs:
            self._keep_none(floor)
        order = [(self._rank(line), line) for line in self._lines.values()]
        heapq.heapify(order)
        waiting: list[_Line] = []
        not_now: list[_Line] = []
        full: set[tuple[bool, Request, bool]] = set()
        """What did not fit in this round: what asks for the same does not either."""
        while order:
            line = heapq.heappop(order)[1]
            search, request, _ = line.kind
            job, _ = line.first()
            if not fits(job):
                continue  # of one kind: what is too long for one is too long for the next
            if not may_start(job):
                not_now.append(line)
                continue
            on_kept = self._may_use_kept(line, job, now, estimate)
            same = (search, request, bool(job.creator))
            placement = None
            if on_kept or same not in full:
                placement = floor.place(job, request, search=search, on_kept=on_kept)
            if placement is None:
                full.add(same)
                waiting.append(line)
                continue
            self.remove(job.id)
            self._placed += 1
            line.since, line.passed = self._placed, False
            for other in waiting:
                other.passed = True
            if self._kept is not None and self._kept.line is line:
                self._keep_none(floor)
                order += [(self._rank(other), other) for other in waiting]  # what was kept is free for them
                waiting.clear()
                full.clear()
                heapq.heapify(order)
            yield job, placement
            if line.jobs:
                heapq.heappush(order, (self._rank(line), line))
        if self._kept is None or self._kept.line not in not_now:
            self._keep(waiting, floor, now)

    def _rank(self, line: _Line) -> _Rank:
        number = line.first()[1]
        if self._placed - line.since > self._patience:
            return False, line.since, False, 0, 0.0, 0, number
        return True, 0, *line.size, number

    def _may_use_kept(self, line: _Line, job: Job, now: float, estimate: Callable[[Job], float]) -> bool:
        """Whether nodes are kept for it, or it surely ends before they are needed."""
        kept = self._kept
        if kept is None or kept.line is line:
            return kept is not None
        return not kept.guessed and 0 < estimate(job) <= kept.start - now

    def _keep(self, waiting: list[_Line], floor: Floor, now: float) -> None:
        """Keep nodes for the first that was passed over.

        They are chosen anew now and then: what was thought to end soon may not.
        """
        for line in waiting:
            mine = self._kept is not None and self._kept.line is line
            if mine and self._kept is not None and self._placed - self._kept.chosen <= self._patience:
                return
            if not (mine or line.passed) or line.hopeless == floor.version:
                continue
            search, request, _ = line.kind
            found = floor.keep(line.first()[0], request, search=search, now=now)
            if found is not None:
                self._kept = _Kept(line, *found, self._placed)
                return
            line.hopeless = floor.version
        if self._kept is not None:
            self._keep_none(floor)

    def forget_kept(self, floor: Floor) -> None:
        """Nodes were lost or found: choose anew for whom to keep which."""
        self._keep_none(floor)

    def _keep_none(self, floor: Floor) -> None:
        self._kept = None
        floor.keep_none()
