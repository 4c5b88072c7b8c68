"""The jobs that wait for a place. Pure.

Jobs that ask for the same thing stand in one line, so that finding the next one costs the number of
different requests and not the number of jobs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from nas_hpc.records import Job
from nas_hpc.resources import Placement, Request

Kind = tuple[bool, Request, str]
"""(is a search, what it asks for, its like for estimates)."""


class JobQueue:
    """Waiting jobs: searches first, then the largest request, within one kind the oldest."""

    def __init__(self) -> None:
        self._lines: dict[Kind, dict[str, Job]] = {}
        self._kind: dict[str, Kind] = {}

    def __len__(self) -> int:
        return len(self._kind)

    def __contains__(self, job_id: str) -> bool:
        return job_id in self._kind

    def __iter__(self) -> Iterator[Job]:
        for line in self._lines.values():
            yield from line.values()

    def get(self, job_id: str) -> Job | None:
        """The job as it waits; None if it does not."""
        kind = self._kind.get(job_id)
        return None if kind is None else self._lines[kind][job_id]

    def add(self, job: Job, request: Request, *, search: bool, like: str) -> None:
        """Append ``job``; one that waits already is replaced in its place."""
        kind = (search, request, like)
        if self._kind.get(job.id, kind) != kind:
            self.remove(job.id)
        self._kind[job.id] = kind
        self._lines.setdefault(kind, {})[job.id] = job

    def remove(self, job_id: str) -> Job | None:
        """Take a job out; None if it does not wait."""
        kind = self._kind.pop(job_id, None)
        if kind is None:
            return None
        line = self._lines[kind]
        job = line.pop(job_id)
        if not line:
            del self._lines[kind]
        return job

    def take(
        self, place: Callable[[Job, Request, bool], Placement | None], fits: Callable[[Job], bool]
    ) -> Iterator[tuple[Job, Placement]]:
        """Take out, one after the other, the jobs for which there is room and, by ``fits``, time."""
        for kind in sorted(self._lines, key=_rank):
            search, request, _ = kind
            line = self._lines.get(kind, {})
            for job in list_lazily(line):
                if not fits(job):
                    break  # of one kind: what is too long for one is too long for the next
                placement = place(job, request, search)
                if placement is None:
                    break
                self.remove(job.id)
                yield job, placement


def list_lazily(line: dict[str, Job]) -> Iterator[Job]:
    """The first job of ``line`` again and again while the caller removes it."""
    seen = ""
    while line:
        job = next(iter(line.values()))
        if job.id == seen:
            return
        seen = job.id
        yield job


def _rank(kind: Kind) -> tuple[bool, int, float]:
    search, request, _ = kind
    return (not search, -request.num_nodes, -float(request.share))
