"""SITE/run/ensemble.json: which agents were started for an allocation, so that the next launcher of the same
allocation takes them over instead of starting others, and one of another allocation ends them.

Where several launchers run at a time each has a record of its own, ensemble-ENSEMBLE-LAUNCHER.json, and
leaves those of other allocations alone. One whose launcher has died is taken by renaming it, which only one
can do.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from nas_hpc import __version__
from nas_hpc.files import replace_file
from nas_hpc.launcher.options import LauncherOptions
from nas_hpc.processes import sessions, traces
from nas_hpc.processes.mpi import end_left_steps
from nas_hpc.records import new_id
from nas_hpc.resources import Found
from nas_hpc.site import Site
from nas_hpc.wire import PROTOCOL

TERM_S = 12.0
"""So long a supervisor may take to end its agent after SIGTERM: longer than it gives the agent."""


@dataclass(frozen=True, slots=True)
class Process:
    """A supervisor, or the MPI program that started several; pid and start time name it for ever."""

    host: str
    boot_id: str
    pid: int
    start_ticks: int
    numbers: tuple[int, ...]
    """Of the agents that it started."""

    @property
    def is_here(self) -> bool:
        """Whether it was started on this host, so that its end can be proven."""
        return self.host == socket.gethostname()

    @property
    def may_live(self) -> bool:
        """Whether it lives, as far as can be told from here."""
        if not self.is_here:
            return True
        return self.boot_id == sessions.boot_id() and sessions.is_alive(self.pid, self.start_ticks)


@dataclass(frozen=True, slots=True)
class Roster:
    """One ensemble."""

    id: str
    allocation: str
    """The batch system and its job, or host and boot."""
    start: str
    """direct, ensemble or per_node."""
    nodes: tuple[tuple[str, ...], ...]
    """Those of each agent, by number."""
    processes: tuple[Process, ...] = ()
    time: float = 0.0
    launchers: tuple[str, ...] = ()
    """The leases that have run it, this one's last; none where only one launcher runs at a time."""
    version: str = __version__
    protocol: int = PROTOCOL

    def living(self, site: Site) -> set[int]:
        """Numbers of the agents that are not proven dead: they, or the supervisors that would start them."""
        kept = {number for process in self.processes if process.may_live for number in process.numbers}
        return kept | {number for number in traces.alive(site.run, self.id) if number < len(self.nodes)}

    def with_processes(self, processes: Iterable[Process]) -> Roster:
        """The same ensemble, run by these."""
        return replace(self, processes=tuple(processes))


def wanted(options: LauncherOptions, found: Found) -> Roster | None:
    """The agents that an allocation is to have; None where the launcher does all itself.

    Virtual nodes of one machine are shared out among ``options.agents`` agents in blocks; of several machines
    each has one. The first of several nodes is the master's and has none; if jobs may use it
    (``use_master_node``), the launcher serves it itself where it is its own.
    """
    if options.job_mode != "serial" or not (found.elsewhere or options.agents):
        return None
    nodes = [node.name for node in found.nodes]
    free = len(nodes) == 1 or (options.use_master_node and nodes[0] != found.here)
    names = nodes if free else nodes[1:]
    count = len(names) if found.elsewhere else min(options.agents, len(names))
    blocks = tuple(tuple(names[_cut(k, count, names) : _cut(k + 1, count, names)]) for k in range(count))
    start = "direct"
    if found.elsewhere or options.agent_start == "ensemble":
        start = "per_node" if options.agent_start == "per_node" else "ensemble"
    named = f"{found.source} {found.job}" if found.job else f"{socket.gethostname()} {sessions.boot_id()}"
    return Roster(new_id(), named, start, blocks, time=time.time())


def _cut(part: int, parts: int, names: Sequence[str]) -> int:
    return part * len(names) // parts


def file_of(site: Site, roster: Roster | None = None) -> Path:
    """The file of the site's ensemble, or of that of one of several launchers."""
    if roster is None or not roster.launchers:
        return site.run / "ensemble.json"
    return site.run / f"ensemble-{roster.id}-{roster.launchers[-1]}.json"


def write(site: Site, roster: Roster) -> None:
    """Replace the file, mode 0600."""
    replace_file(file_of(site, roster), json.dumps(asdict(roster)))


def remove(site: Site, roster: Roster) -> None:
    """Remove the file if it is still that ensemble's."""
    path = file_of(site, roster)
    with contextlib.suppress(OSError):
        if roster.id in path.read_text(errors="replace"):
            path.unlink()


def read_all(site: Site) -> list[Roster]:
    """The records of several launchers; what cannot be read is passed over."""
    found = []
    for path in sorted(site.run.glob("ensemble-*.json")):
        with contextlib.suppress(ValueError):
            one = _read(path)
            found += [one] if one is not None and one.launchers else []
    return found


def read(site: Site) -> Roster | None:
    """The recorded ensemble; None if there is none. Raises ValueError, with a line, for what is no record."""
    return _read(file_of(site))


def _read(path: Path) -> Roster | None:
    try:
        body = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from None
    try:
        processes = tuple(
            Process(
                str(one["host"]),
                str(one["boot_id"]),
                int(one["pid"]),
                int(one["start_ticks"]),
                tuple(map(int, one["numbers"])),
            )
            for one in body["processes"]
        )
        nodes = tuple(tuple(map(str, names)) for names in body["nodes"])
        return Roster(
            str(body["id"]),
            str(body["allocation"]),
            str(body["start"]),
            nodes,
            processes,
            float(body["time"]),
            tuple(map(str, body.get("launchers", ()))),
            str(body["version"]),
            int(body["protocol"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path} is no record of agents: {type(error).__name__} {error}") from None


def why_not(site: Site, roster: Roster, wanted: Roster | None) -> str:
    """Why the recorded ensemble cannot serve a launcher that wants ``wanted``; empty if it can."""
    if (roster.version, roster.protocol) != (__version__, PROTOCOL):
        return f"they are of nas-hpc {roster.version} (protocol {roster.protocol})"
    if wanted is None:
        return "this launcher runs without agents"
    if roster.allocation != wanted.allocation:
        return f"they belong to another allocation ({roster.allocation})"
    if roster.nodes != wanted.nodes:
        return "this launcher has other nodes, or another number of agents"
    if not roster.living(site):
        return "none of them is alive"
    return ""


def succeed(site: Site, wanted: Roster | None, note: Callable[[str], None]) -> tuple[Roster | None, set[str]]:
    """The ensemble that this launcher is to run, and the nodes on which agents of it may live already.

    One that is recorded and fits is taken over; another is ended first. Blocking.
    """
    try:
        old = read(site)
    except ValueError as error:
        note(f"{error}; the agents that it named are ended")
        file_of(site).unlink(missing_ok=True)
        old = None
    why = "" if old is None else why_not(site, old, wanted)
    if old is None or wanted is None or why:
        if old is not None and old.living(site):
            note(f"agents of an earlier launch are ended: {why}")
        if old is not None:
            end(site, old, note)
        traces.end_left(site.run)  # of starts that no record names
        return wanted, set()
    return replace(old, start=wanted.start), {name for one in old.living(site) for name in old.nodes[one]}


def succeed_among(
    site: Site, wanted: Roster | None, lease: str, live: Collection[str], note: Callable[[str], None]
) -> tuple[Roster | None, set[str]]:
    """``succeed`` for one of several launchers; ``live`` are the leases of the others.

    Agents of launchers that live are theirs. Of those that have died, this allocation's are taken over or
    ended; another allocation's are left to its next launcher, and end themselves if none comes.
    """
    if wanted is not None:
        wanted = replace(wanted, launchers=(lease,))
    records = read_all(site)
    theirs = {one.id for one in records if one.launchers[-1] in live}
    for old in [one for one in records if one.id not in theirs]:
        here = wanted is not None and old.allocation == wanted.allocation
        if not old.living(site) or (here and why_not(site, old, wanted)):
            end(site, old, note)
            continue
        if wanted is None or not here:
            continue
        mine = replace(old, start=wanted.start, launchers=(*old.launchers, lease))
        try:
            os.rename(file_of(site, old), file_of(site, mine))
        except FileNotFoundError:  # another launcher was faster
            continue
        write(site, mine)
        return mine, {name for one in mine.living(site) for name in mine.nodes[one]}
    return wanted, set()


def end(site: Site, roster: Roster, note: Callable[[str], None]) -> None:
    """End the recorded processes of this host and all that their agents run; blocking.

    SIGTERM first, at which a supervisor ends its agent in order, and an MPI program what it started. Agents
    of other hosts that this does not reach are dismissed when they say Hello.
    """
    mine = [one for one in roster.processes if one.is_here and one.may_live]
    for one in mine:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(one.pid, signal.SIGTERM)
    _wait(mine, TERM_S)
    left = [one for one in mine if one.may_live]
    for one in left:
        sessions.end_process(one.pid, one.start_ticks)
    source, _, job = roster.allocation.partition(" ")
    if source == "slurm" and roster.start != "direct" and (left or not mine):
        count = end_left_steps([roster.id], {"SLURM_JOB_ID": job})  # ranks of a killed srun can live on
        if count:
            note(f"{count} steps of an earlier launch were cancelled")
    ended = traces.end_left(site.run, roster.id)
    if left or ended:
        note(f"{len(left)} supervisors did not end by themselves; {ended} processes of agents were killed")
    remove(site, roster)


def _wait(processes: list[Process], timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    for one in processes:
        left_s = deadline - time.monotonic()
        if left_s > 0:
            sessions.await_end(one.pid, one.start_ticks, left_s)
