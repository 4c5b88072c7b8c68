"""What is said: one frozen dataclass for each kind of message, and for what messages are made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from nas_hpc.records import Json


@dataclass(frozen=True, slots=True)
class Shape:
    """What each evaluation of a search occupies."""

    num_nodes: int = 1
    ranks_per_node: int = 1
    threads_per_rank: int = 1
    gpus_per_rank: int = 0
    node_packing_count: int = 1
    threads_per_core: int = 1


@dataclass(frozen=True, slots=True)
class Hello:
    """First message of a search. ``cursor`` is the order of the last result that it has seen."""

    protocol: int
    job: str
    attempt: int
    cursor: int
    shape: Shape


@dataclass(frozen=True, slots=True)
class Ask:
    """One evaluation that a search wants. ``data`` is kept for the search and given back in the history."""

    seq: int
    run: str
    config: Json
    seed: int
    shape: Shape = Shape()
    timeout_s: float = 0.0
    retries: int = 0
    environ: Mapping[str, str] = field(default_factory=dict)
    data: Json = field(default_factory=dict)
    cached_of: int = 0
    """A cache hit: seq of the finished evaluation whose result is this one's too. It does not run."""
    application: str = ""
    args: str = ""
    """A registered application to run instead of ``run``, with these arguments."""
    argv: tuple[str, ...] = ()
    """A program to run instead of ``run``."""
    job_data: Json = field(default_factory=dict)
    """The user's own data of the job: not the search's."""
    wall_time_minutes: float = 0.0
    """How long it takes, at a guess; for placement. 0: unknown."""
    failure: str = ""
    """Its job specification failed, and this is why: it fails with this reason without running."""


@dataclass(frozen=True, slots=True)
class Submit:
    """Ask for evaluations; answered by Accepted after the commit. May be sent again after a reconnect."""

    request: int
    asks: tuple[Ask, ...]


@dataclass(frozen=True, slots=True)
class Accepted:
    """The evaluations of ``request`` are in the database."""

    request: int


@dataclass(frozen=True, slots=True)
class Refused:
    """``request`` was not done; ``message`` is for the user."""

    request: int
    message: str


@dataclass(frozen=True, slots=True)
class Cancel:
    """End these evaluations, waiting or running. They come back as results with outcome "killed"."""

    request: int
    seqs: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Done:
    """One finished evaluation. ``order`` grows; results of one search come in its order."""

    order: int
    seq: int
    config: Json
    data: Json
    outcome: str
    objective: float | None
    metadata: Json
    reason: str
    start: float
    end: float
    attempt: int
    submitted: float
    cached: bool = False


@dataclass(frozen=True, slots=True)
class Results:
    """Finished evaluations, pushed by the launcher after their commit."""

    done: tuple[Done, ...]


@dataclass(frozen=True, slots=True)
class Pending:
    """An evaluation that was submitted and is not finished."""

    seq: int
    config: Json
    data: Json


@dataclass(frozen=True, slots=True)
class Welcome:
    """Answer to Hello, after the Results since the cursor: the search now knows its whole history."""

    protocol: int
    epoch: str
    """The launcher's lease."""
    capacity: int
    """Evaluations of the search's shape that the launcher can have running at once."""
    pending: tuple[Pending, ...]
    deadline: float
    """When the allocation ends, UTC seconds since the epoch; 0: never."""
    started: float
    """When the search's first attempt began."""


@dataclass(frozen=True, slots=True)
class Capacity:
    """The capacity changed."""

    capacity: int


@dataclass(frozen=True, slots=True)
class End:
    """The search has to end now: superseded, killed, or the launcher stops."""

    reason: str


@dataclass(frozen=True, slots=True)
class Report:
    """What the search wants shown: best so far and counts, for progress displays."""

    best: float | None
    best_config: Json
    done: int
    failed: int
    max_evals: int


@dataclass(frozen=True, slots=True)
class Wake:
    """From a command: the database has changed (jobs added, killed, to be retried). Answered by Accepted."""

    protocol: int
    request: int


@dataclass(frozen=True, slots=True)
class Query:
    """From a command: what is going on? Answered by Status. ``job`` asks why that job does not run."""

    protocol: int
    request: int
    job: str = ""


@dataclass(frozen=True, slots=True)
class Status:
    """Answer to Query; ``view`` is JSON for ``ls nodes``, ``why`` and ``watch``."""

    request: int
    view: Json


@dataclass(frozen=True, slots=True)
class RunEnded:
    """From an agent: an attempt is over. It is said again in every AgentHello until RunsSettled names it."""

    job: str
    attempt: int
    outcome: str
    objective: float | None
    metadata: Json
    reason: str
    return_code: int | None
    start: float
    end: float
    tail: str
    usage: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class AgentHello:
    """First message of an agent on every connection; answered by AgentWelcome or End."""

    protocol: int
    version: str
    """Of the package: an agent of another one is sent away."""
    ensemble: str
    """The start that it belongs to."""
    number: int
    """Its place in that, from 0: the same after a restart by its supervisor."""
    incarnation: str
    """Its process: a new one after a restart. What an older one of that number ran is gone."""
    host: str
    names: tuple[str, ...]
    """By which its node may stand in a node list (host name, short name, SLURMD_NODENAME)."""
    boot_id: str
    pid: int
    start_ticks: int
    cores: tuple[int, ...]
    numa: tuple[tuple[int, ...], ...]
    threads_per_core: int
    gpus: tuple[str, ...]
    running: tuple[tuple[str, int], ...]
    """(job, attempt) of what it runs now."""
    ended: tuple[RunEnded, ...]


@dataclass(frozen=True, slots=True)
class AgentWelcome:
    """The agent serves these nodes now. What it runs and ``stop`` names is to end, unreported."""

    protocol: int
    epoch: str
    nodes: tuple[str, ...]
    grace_s: float
    pulse_s: float
    """It says Pulse so often."""
    fresh_interpreter: bool
    stop: tuple[tuple[str, int], ...]
    result_grace_s: float = 10.0
    task_directories: str = "each"
    stage_environment: str = ""
    """Settings of the launcher, for its ``Agent``."""


@dataclass(frozen=True, slots=True)
class Pulse:
    """From an agent: it is alive."""

    time: float


@dataclass(frozen=True, slots=True)
class RunOrder:
    """To an agent: start an attempt. ``order`` has the fields of ``processes.orders.Order``."""

    order: Json


@dataclass(frozen=True, slots=True)
class RunStarted:
    """From an agent: the attempt's process exists."""

    job: str
    attempt: int
    pid: int
    time: float


@dataclass(frozen=True, slots=True)
class RunStop:
    """To an agent: end an attempt, with this outcome unless it gave a valid result before. ``now``: by
    force."""

    job: str
    attempt: int
    outcome: str
    reason: str
    now: bool = False


@dataclass(frozen=True, slots=True)
class RunsSettled:
    """To an agent: these ends are committed."""

    runs: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class AgentNote:
    """From an agent: a line for the launcher's log."""

    text: str


@dataclass(frozen=True, slots=True)
class Dismiss:
    """To an agent: end everything, and yourself; your supervisor ends with you."""

    reason: str
