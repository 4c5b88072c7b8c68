"""The records that every room speaks of: applications, jobs, attempts, events, nodes, leases.

All are frozen; a change is a new record (``dataclasses.replace``). Times are UTC seconds since the
epoch. ``args`` of a job is a command-line string as the user typed it (split by ``shlex`` when it is run,
never by a shell). Only ``data``, ``config`` and ``metadata``, which are the user's JSON, are dictionaries.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from nas_hpc.states import BatchState, Outcome, State

Json = Mapping[str, Any]


def new_id() -> str:
    """A fresh identifier: 32 hexadecimal digits."""
    return uuid.uuid4().hex


@dataclass(frozen=True, slots=True)
class App:
    """A program that jobs run: ``executable`` is a command line prefix ("/env/bin/python -m my.search")."""

    name: str
    executable: str
    description: str = ""
    restartable: bool = False
    """May be started again after an interruption and goes on where it was (searches, controllers)."""
    environment_script: str = ""
    """Absolute path of a shell script that is sourced before the program starts; empty: none."""
    preprocess: str = ""
    """Command line run in the job's directory before its first attempt; empty: none."""
    postprocess: str = ""
    """Command line run in the job's directory after an attempt with outcome OK; empty: none."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a job came from: restored when it runs, also under ``env -i``."""

    directory: str = ""
    """The submitter's working directory."""
    sys_path: tuple[str, ...] = ()
    """Entries that go first on the module search path."""
    interpreter: str = ""
    """Absolute path of the submitter's Python."""
    environ: Mapping[str, str] = field(default_factory=dict)
    """The submitter's environment, without secrets and without what belongs to his batch job or shell."""


@dataclass(frozen=True, slots=True)
class Resources:
    """What one attempt of a job occupies."""

    num_nodes: int = 1
    ranks_per_node: int = 1
    threads_per_rank: int = 1
    threads_per_core: int = 1
    gpus_per_rank: int = 0
    node_packing_count: int = 1
    """At most so many such jobs share a node in serial mode: the job occupies 1/count of it."""
    wall_time_minutes: float = 0.0
    """An estimate for placement; 0 means unknown."""
    timeout_s: float = 0.0
    """The attempt is ended after so long; 0 means never."""


class ParentFailure(str, Enum):
    """What becomes of a job when one of its parents fails or is killed."""

    FAIL = "fail"
    """It fails, too; when the parent is retried it waits again."""
    RUN = "run"
    """It runs as soon as all its parents have ended, however they ended."""
    WAIT = "wait"
    """It waits until somebody retries the parent and that is finished."""


@dataclass(frozen=True, slots=True)
class Stages:
    """What happens before and after the attempts of a person's job."""

    preprocess: str | None = None
    """Command line instead of the application's; None: the application's; empty: none."""
    postprocess: str | None = None
    input_files: str = "*"
    """Patterns, parted by blanks: files of the parents' directories that are linked into the job's."""
    post_error_handler: bool = False
    """Run the postprocess script also after an attempt that failed; its success finishes the job."""
    post_timeout_handler: bool = False
    """The same after an attempt that passed its limit, or that the allocation's end interrupted."""
    on_parent_failure: ParentFailure = ParentFailure.FAIL


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What makes a job an evaluation of a search: a run function and its configuration."""

    run: str
    """Dotted path of the run function, "module.function"."""
    config: Json
    seed: int
    """For random, numpy and the training libraries in the process that runs it."""
    argv: tuple[str, ...] = ()
    """A program to run instead of ``run``, which is the job specification that named it. Empty: ``run`` is
    called; or the job's ``application`` is run, if it has one."""
    notes: Json = field(default_factory=dict)
    """What the search noted when it asked, and is given back with the result."""


@dataclass(frozen=True, slots=True)
class Job:
    """A unit of work. ``creator`` and ``seq`` together are unique: a request sent twice is the same job."""

    id: str
    name: str
    workflow: str
    application: str = ""
    """Name of the App; empty for an evaluation that runs a run function or ``evaluation.argv``."""
    args: str = ""
    environ: Mapping[str, str] = field(default_factory=dict)
    """Set by ``--env``; added to the origin's environment."""
    origin: Origin = Origin()
    """Empty for an evaluation, which inherits its creator's."""
    resources: Resources = Resources()
    evaluation: Evaluation | None = None
    parents: tuple[str, ...] = ()
    creator: str = ""
    """Job id of the search that asked for it; empty for a job of a person."""
    seq: int = 0
    """Its number there, from 1; 0 for a job of a person."""
    retries: int = 0
    data: Json = field(default_factory=dict)
    """The user's: what ``nas_hpc.jobs.current().data`` begins with."""
    made_by: str = ""
    """Job id of the job whose program added it (``nas_hpc.jobs.add``); empty for all others."""
    stages: Stages = Stages()
    state: State = State.CREATED
    created: float = 0.0
    attempt: int = 0
    """Number of the current or last attempt; 0 before the first."""
    lease: str = ""
    """The launcher's lease while RUNNING or while a script of its stages runs, else empty."""

    @property
    def directory_name(self) -> str:
        """Name of the job's directory below its workflow's, as Balsam names it."""
        return f"{self.name}_{self.id[:8]}"


@dataclass(frozen=True, slots=True)
class Result:
    """What an attempt produced. ``objective`` is a number if ``outcome`` is OK and one was expected."""

    outcome: Outcome
    objective: float | None = None
    metadata: Json = field(default_factory=dict)
    reason: str = ""
    """Class and message of the failure, one line; empty for OK."""
    return_code: int | None = None
    start: float = 0.0
    end: float = 0.0


@dataclass(frozen=True, slots=True)
class Attempt:
    """One execution of a job, by one lease, on certain nodes."""

    job: str
    number: int
    lease: str
    nodes: tuple[str, ...] = ()
    cores: tuple[int, ...] = ()
    """On the first of the nodes."""
    gpus: tuple[str, ...] = ()
    claimed: float = 0.0
    result: Result | None = None
    """None while it runs."""
    tail: str = ""
    """The last lines of output of a failure."""


@dataclass(frozen=True, slots=True)
class Event:
    """One transition. Append-only; ``id`` orders the events of a database."""

    id: int
    job: str
    time: float
    old: State
    new: State
    actor: str
    attempt: int
    message: str = ""


@dataclass(frozen=True, slots=True)
class Lease:
    """A launcher's right to run jobs of a site, until ``expires`` unless renewed."""

    id: str
    host: str
    boot_id: str
    pid: int
    start_time: float
    """The process's start time in clock ticks since boot, which with pid and boot id names it for ever."""
    workflow: str
    """The workflow filter, or empty."""
    expires: float
    ended: float = 0.0
    """When it was given up or taken over; 0 while it holds."""
    slots: int = 0
    """So many evaluations the launcher can run at a time."""


@dataclass(frozen=True, slots=True)
class BatchJob:
    """An allocation that was asked of a batch system to run the site's jobs."""

    key: str
    """Its own name in the site, that of its files in qsubmit/."""
    system: str
    """cobalt, pbs, slurm or local."""
    machine: str
    script: str
    """Absolute path."""
    output: str
    """Absolute path of what the script prints."""
    nodes: int
    walltime_minutes: int
    job_mode: str
    workflow: str = ""
    """Its launcher runs only jobs of this workflow; empty: all."""
    queue: str = ""
    project: str = ""
    id: str = ""
    """The batch system's; empty until that is known."""
    dependencies: tuple[str, ...] = ()
    """Ids of the batch jobs that have to end before it starts."""
    chain: str = ""
    """Key of the first of its chain; empty: it is no part of one."""
    submitted: float = 0.0
    state: BatchState = BatchState.SUBMITTING
    reason: str = ""
    """Why it is in that state, in the batch system's words."""
    exit_code: int | None = None
    asked: float = 0.0
    """When that was learnt."""


@dataclass(frozen=True, slots=True)
class Node:
    """A compute node: physical cores and GPUs by their ids.

    A core's id is that of its first hardware thread, as the operating system numbers them.
    """

    name: str
    cores: tuple[int, ...]
    gpus: tuple[str, ...] = ()
    """Ids as the masks of the GPU runtimes take them: "0", "1", or "0.1" for a tile, or a MIG device's."""
    threads_per_core: int = 1
    numa: tuple[tuple[int, ...], ...] = ()
    """Core ids by NUMA domain; empty: unknown, or one domain."""
    host: str = ""
    """The name by which MPI programs know the node; empty: ``name``. Virtual nodes share their machine's."""

    @property
    def address(self) -> str:
        """The host's name for MPI programs."""
        return self.host or self.name
