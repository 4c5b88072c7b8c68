"""Messages between searches, commands, agents and the launcher.

A message is one frozen dataclass of this module, sent as msgpack: its class's name and its fields in order.
Both sides state ``PROTOCOL`` in their first message and refuse another number. The transport is a
ZeroMQ DEALER or ROUTER socket with CURVE; keys and address stand in the endpoint file (mode 0600).
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import msgpack

from nas_hpc.errors import LauncherGone, ProtocolError
from nas_hpc.records import Json

PROTOCOL = 2
ENDPOINT_VARIABLE = "NAS_HPC_ENDPOINT"


@dataclass(frozen=True, slots=True)
class Shape:
    """What each evaluation of a search occupies."""

    num_nodes: int = 1
    ranks_per_node: int = 1
    threads_per_rank: int = 1
    gpus_per_rank: int = 0
    node_packing_count: int = 1


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
    """One evaluation that a search wants. ``data`` is kept with the job and given back in the history."""

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


OfSearch = Hello | Submit | Cancel | Report
OfCommand = Wake | Query
OfAgent = AgentHello | Pulse | RunStarted | RunEnded | AgentNote
ToAgent = AgentWelcome | RunOrder | RunStop | RunsSettled | Dismiss
OfLauncher = Accepted | Refused | Results | Welcome | Capacity | End | Status | ToAgent
Message = OfSearch | OfCommand | OfAgent | OfLauncher
_TYPES: dict[str, type[Any]] = {
    cls.__name__: cls
    for cls in (
        Hello, Submit, Cancel, Report, Wake, Query,
        Accepted, Refused, Results, Welcome, Capacity, End, Status,
        AgentHello, Pulse, RunStarted, RunEnded, AgentNote,
        AgentWelcome, RunOrder, RunStop, RunsSettled, Dismiss,
        Shape, Ask, Done, Pending,
    )
}  # fmt: skip
_FIELDS = {cls: tuple(f.name for f in fields(cls)) for cls in _TYPES.values()}
_TUPLES = {
    cls: tuple(
        (i, str(f.type).startswith("tuple[tuple"))
        for i, f in enumerate(fields(cls))
        if str(f.type).startswith("tuple")
    )
    for cls in _TYPES.values()
}  # positions to be made tuples (of tuples) again: in the user's JSON a list stays a list
_RECORD = 1  # msgpack extension code of a dataclass of this module


def _pack_default(value: object) -> object:
    names = _FIELDS.get(type(value))
    if names is None:
        raise TypeError(f"{type(value).__name__} has no place in a message")
    body = [type(value).__name__, *(getattr(value, name) for name in names)]
    return msgpack.ExtType(_RECORD, msgpack.packb(body, default=_pack_default))


def _unpack_record(code: int, body: bytes) -> object:
    if code != _RECORD:
        raise ProtocolError(f"a message has extension {code}; this version knows {_RECORD}")
    name, *values = msgpack.unpackb(body, ext_hook=_unpack_record)
    cls = _TYPES.get(name)
    if cls is None or len(values) != len(_FIELDS[cls]):
        what = f"{name!r} with {len(values)} fields"
        raise ProtocolError(f"a message of kind {what} is unknown in protocol {PROTOCOL}")
    for position, nested in _TUPLES[cls]:
        values[position] = tuple(map(tuple, values[position]) if nested else values[position])
    return cls(*values)


def pack(message: Message) -> bytes:
    """The bytes of a message."""
    return msgpack.packb(message, default=_pack_default)  # type: ignore[no-any-return]


def unpack(body: bytes) -> Message:
    """The message of ``body``. Raises ProtocolError for anything else."""
    try:
        message = msgpack.unpackb(body, ext_hook=_unpack_record)
    except ProtocolError:
        raise
    except Exception as error:
        raise ProtocolError(f"a message of {len(body)} bytes cannot be read: {error}") from error
    if type(message) not in _FIELDS:
        raise ProtocolError(f"a message of {len(body)} bytes is no record of protocol {PROTOCOL}")
    return message  # type: ignore[no-any-return]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a launcher listens, and the keys that open it."""

    addresses: tuple[str, ...]
    """ZeroMQ addresses, to be tried in order."""
    server_public: str
    client_public: str
    client_secret: str
    """CURVE keys in Z85."""
    epoch: str
    host: str
    pid: int
    protocol: int = PROTOCOL


def write_endpoint(path: Path, endpoint: Endpoint) -> None:
    """Replace the endpoint file atomically, mode 0600."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    body = json.dumps({name: getattr(endpoint, name) for name in endpoint.__slots__})
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(body)
        file.flush()
        os.fsync(descriptor)
    os.replace(temporary, path)


def read_endpoint(path: Path) -> Endpoint:
    """The endpoint of ``path``. Raises LauncherGone if there is none, ProtocolError for another version."""
    try:
        body = json.loads(path.read_text())
        endpoint = Endpoint(**{**body, "addresses": tuple(body["addresses"])})
    except FileNotFoundError:
        raise LauncherGone(f"no launcher is running: {path} does not exist") from None
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ProtocolError(f"{path} is no endpoint file: {error}") from error
    if endpoint.protocol != PROTOCOL:
        raise ProtocolError(
            f"the launcher at {path} speaks protocol {endpoint.protocol}; this program speaks {PROTOCOL}"
        )
    return endpoint
