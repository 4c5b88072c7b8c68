"""How long jobs take, by what their like took; and so whether they fit into the time that is left."""

from __future__ import annotations

import asyncio
import math
import time
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from nas_hpc.launcher import policy
from nas_hpc.records import Job
from nas_hpc.resources import Placement
from nas_hpc.resources.slots import EndOf

SAMPLES = 200
"""So many of the last ones tell how long the next takes."""


@dataclass(slots=True)
class _Samples:
    """Seconds that the last jobs of a kind took."""

    last: deque[float] = field(default_factory=deque)
    ordered: list[float] = field(default_factory=list)

    def add(self, seconds: float) -> None:
        self.last.append(seconds)
        insort(self.ordered, seconds)
        if len(self.last) > SAMPLES:
            del self.ordered[bisect_left(self.ordered, self.last.popleft())]


class Foresight:
    """The durations of one launcher's jobs. Lives in a running asyncio loop."""

    def __init__(self, *, is_search: Callable[[Job], bool], has_evaluations: Callable[[Job], bool]) -> None:
        self._loop = asyncio.get_running_loop()
        self._is_search, self._has_evaluations = is_search, has_evaluations
        self._samples: dict[str, _Samples] = {}
        self.deadline = math.inf
        """Monotonic time at which running jobs are told to stop; nothing that would pass it is started."""

    def took(self, job: Job, seconds: float) -> None:
        """``job`` succeeded after so long."""
        self._samples.setdefault(like(job), _Samples()).add(seconds)

    def estimate_s(self, job: Job) -> float:
        """How long ``job`` takes, at a guess; 0: nobody knows."""
        samples = self._samples.get(like(job))
        return policy.estimate_s(job, samples.ordered if samples is not None else ())

    def surely_s(self, job: Job) -> float:
        """The same, but a search runs for nobody knows how long."""
        return 0.0 if self._is_search(job) else self.estimate_s(job)

    def left_s(self) -> float:
        """How long until jobs are told to stop."""
        return self.deadline - self._loop.time()

    def fits(self, job: Job) -> bool:
        """Whether ``job`` is started in the time that is left."""
        samples = self._samples.get(like(job))
        durations = samples.ordered if samples is not None else ()
        return policy.may_start(job, durations, self.left_s(), restartable=self._is_search(job))

    def latest_start(self, job: Job) -> float:
        """After that time (UTC) the job will not be started any more."""
        return time.time() + self.left_s() - self.estimate_s(job)

    def ends_of(self, running: Iterable[tuple[Job, Placement, float]]) -> EndOf:
        """When the placements of running jobs (with the times of their claims) end.

        A search is not waited for: its evaluations would be waiting, too. What nobody knows runs as long
        again as it has run so far, for all we know.
        """
        now = time.time()
        runs = {id(placement): (job, claimed) for job, placement, claimed in running}

        def end_of(placement: Placement) -> tuple[float, bool]:
            if id(placement) not in runs:  # it is about to start
                return now, True
            job, claimed = runs[id(placement)]
            if self._has_evaluations(job):
                return math.inf, False
            end = claimed + self.estimate_s(job)
            known = end > max(claimed, now)
            return (end, False) if known else (2 * now - claimed, True)

        return end_of


def like(job: Job) -> str:
    """Jobs of one kind have one name: their durations tell how long the next takes."""
    evaluation = job.evaluation
    if evaluation is None:
        return f"{job.workflow}/{job.application}/{job.data.get('budget', '')}"
    return f"{job.workflow}/{evaluation.run}/{job.application}/{evaluation.notes.get('budget', '')}"
