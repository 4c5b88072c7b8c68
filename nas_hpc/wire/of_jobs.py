"""What the program of a running job says about other jobs, and what it is answered."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from nas_hpc.records import Json
from nas_hpc.wire.messages import Shape


@dataclass(frozen=True, slots=True)
class NewJob:
    """A job that the program of a running one wants added."""

    key: str
    """What makes it the same job when the program is started again: unique among those that it adds."""
    name: str
    application: str
    args: str = ""
    workflow: str = ""
    """Empty: that of the running job."""
    environ: Mapping[str, str] = field(default_factory=dict)
    shape: Shape = Shape()
    wall_time_minutes: float = 0.0
    timeout_s: float = 0.0
    retries: int = 0
    parents: tuple[str, ...] = ()
    data: Json = field(default_factory=dict)
    stages: Json = field(default_factory=dict)
    """Fields of ``records.Stages``."""


@dataclass(frozen=True, slots=True)
class AddJobs:
    """From the program of a running job: add these; answered by Added after the commit, or by Refused."""

    protocol: int
    request: int
    job: str
    attempt: int
    """Which program asks: only a current attempt may."""
    jobs: tuple[NewJob, ...]


@dataclass(frozen=True, slots=True)
class Added:
    """Ids of the jobs of ``request``, in order."""

    request: int
    ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class KillJobs:
    """From the program of a running job: end these. Answered by Accepted after the commit, or by Refused."""

    protocol: int
    request: int
    job: str
    attempt: int
    ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class AskChildren:
    """From the program of a running job: which jobs has it added? Answered by Children, or by Refused."""

    protocol: int
    request: int
    job: str
    attempt: int


@dataclass(frozen=True, slots=True)
class Child:
    """A job that another one's program added, as it is now."""

    id: str
    name: str
    workflow: str
    application: str
    state: str
    attempt: int
    objective: float | None
    reason: str
    """Why its last attempt failed; empty if it did not."""


@dataclass(frozen=True, slots=True)
class Children:
    """Answer to AskChildren, in the order in which they were added."""

    request: int
    jobs: tuple[Child, ...]
