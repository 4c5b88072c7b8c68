"""The agents of other nodes: which are wanted, how they are started, started again, and ended.

A start outlives the launcher: it runs in a session of its own and is recorded in SITE/run/ensemble.json
(``roster``), where the next launcher of the allocation finds it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Collection, Coroutine, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nas_hpc.launcher import roster as rosters
from nas_hpc.launcher.options import LauncherOptions
from nas_hpc.launcher.roster import Process, Roster
from nas_hpc.processes import boot, sessions, traces
from nas_hpc.processes.mpi import MpiProgram, agents_command, find_program, step_name
from nas_hpc.processes.start_failures import main_line
from nas_hpc.site import Site
from nas_hpc.wire import AgentHello

BACK_OFF_S = (0.2, 30.0)
"""First and longest pause before an agent is started again; it doubles in between."""
TRIES = 6
"""An agent that did not say Hello after so many starts is given up."""
PROVEN_S = 30.0
"""An agent that lived so long is no failed start."""
FAREWELL_S = 10.0
"""So long agents have to end by themselves, once they are dismissed."""
SHORT_FAREWELL_S = 1.0
"""The same if some have not said Hello: those have not heard that it is over, and end only when told."""
_POLL_S = 1.0


def supervisor_command(
    site: Site,
    ensemble: str,
    numbers: Sequence[int],
    deadline_s: float,
    endpoint: Path,
    interpreter: str = sys.executable,
) -> list[str]:
    """The argv of a supervisor: ``nas_hpc.processes.supervisor.main([SITE, ENSEMBLE, NUMBERS, DEADLINE_S,
    ENDPOINT])``.

    ``SITE`` is the site's path: the endpoint file is SITE/run/ENDPOINT, logs go below SITE/log. NUMBERS
    are the numbers of the agents of this start, "0,1,2": rank i of an MPI start keeps the i-th of them, and
    what was started without MPI the only one. An agent without a launcher for ``DEADLINE_S`` ends, and its
    supervisor with it.

    Standard output and error are a file; the environment is the launcher's own. SIGTERM ends the agent, what
    it runs, and the supervisor.
    """
    listed = ",".join(map(str, numbers))
    words = (site.path, ensemble, listed, f"{deadline_s:g}", endpoint.name)
    return boot.command(interpreter, "supervisor", *words, isolated=True)


@dataclass(frozen=True, slots=True)
class EnsembleHooks:
    """Whom the ensemble tells."""

    gone: Callable[[int, str], None]
    """The process of this agent, of this incarnation, has ended."""
    is_here: Callable[[int], bool]
    """Whether the agent is connected."""
    given_up: Callable[[Collection[int], str], None]
    """These could not be started, and why."""
    note: Callable[[str], None]


@dataclass(slots=True, eq=False)
class _Watched:
    process: Process
    child: subprocess.Popen[bytes] | None
    """None: another launcher started it."""
    since: float
    fd: int = -1
    output_from: int = 0
    incarnation: str = ""
    """Of an agent; empty for who started it."""


class Ensemble:
    """Keeps the processes of ``roster`` running; lives in a running asyncio loop.

    ``hosts`` are those of the agents by number, as MPI programs know them; empty: all are this machine.
    """

    def __init__(
        self,
        site: Site,
        roster: Roster,
        hooks: EnsembleHooks,
        *,
        options: LauncherOptions,
        endpoint: Path,
        hosts: Sequence[str] = (),
    ) -> None:
        self._site, self._roster, self._hooks, self._endpoint = site, roster, hooks, endpoint
        self._options, self._hosts = options, hosts
        self._mpi: MpiProgram | None = None
        self._loop = asyncio.get_running_loop()
        self.log = site.log / f"agents-{roster.id[:8]}.log"
        self._watched: set[_Watched] = set()
        self._agents: dict[int, _Watched] = {}
        """Agents on this host: one can outlive its supervisor."""
        self._tries: dict[int, int] = {}
        """Starts since an agent last lived for a while: they come ever more slowly."""
        self._fruitless: dict[int, int] = {}
        """Starts since it last said Hello."""
        self._arrived: dict[int, float] = {}
        self._timers: dict[int, asyncio.TimerHandle] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._turn = asyncio.Lock()
        self._all_ended = asyncio.Event()
        self._closing = False

    @property
    def id(self) -> str:
        """Which start this is."""
        return self._roster.id

    # -- starting ------------------------------------------------------------------------------------------
    def begin(self) -> None:
        """Watch what lives of the roster, and start the rest."""
        living = traces.alive(self._site.run, self.id)
        for process in self._roster.processes:
            if process.may_live:
                living |= set(process.numbers)
                self._watch(_Watched(process, None, self._loop.time()))
        missing = [number for number in range(len(self._roster.nodes)) if number not in living]
        self._keep(self._start(self._starts(missing)))

    def _starts(self, numbers: Sequence[int]) -> list[tuple[int, ...]]:
        """Which agents are started together: all by one MPI start, unless that has failed before."""
        together = self._roster.start == "ensemble" and not any(self._tries.get(n) for n in numbers)
        return [tuple(numbers)] if together and numbers else [(number,) for number in numbers]

    def _needs_mpi(self, numbers: Sequence[int]) -> bool:
        """Whether a start reaches other hosts, or is to be one of many agents on this one."""
        return len(numbers) > 1 or (bool(self._hosts) and not is_this_host(self._hosts[numbers[0]]))

    def _named(self, program: MpiProgram | None) -> MpiProgram | None:
        """Slurm's steps get a name by which they can be found."""
        if program is None or program.flavour != "slurm":
            return program
        return replace(program, flags=(*program.flags, f"--job-name={step_name(self.id)}"))

    async def _find_mpi(self) -> str:
        """Find the MPI program, once; why there is none, or ""."""
        if self._mpi is None:
            found = await find_program(self._options.mpi, self._options.mpi_flags, os.environ)
            self._mpi = self._named(found.program)
            for line in found.notes:
                self._hooks.note(f"note: {line}")
            if found.program is None:
                return f"the agents of other nodes need an MPI program: {found.problem}"
            self._hooks.note(f"agents are started by {found.program}")
        return ""

    async def _start(self, groups: Sequence[tuple[int, ...]]) -> None:
        async with self._turn:
            if self._closing:
                return
            why = await self._find_mpi() if any(map(self._needs_mpi, groups)) else ""
            if why:
                self._hooks.given_up([number for numbers in groups for number in numbers], why)
                return
            living = [one.process for one in self._supervisors()]
            started, refused = await asyncio.to_thread(self._start_all, groups, living)
            self._roster = self._roster.with_processes([*living, *(one.process for one in started)])
            for one in started:
                self._watch(one)
            for numbers, how in refused:
                self._failed(numbers, how)

    def _start_all(
        self, groups: Sequence[tuple[int, ...]], living: Sequence[Process]
    ) -> tuple[list[_Watched], list[tuple[tuple[int, ...], str]]]:
        """In a thread. The record is written before, too: whoever succeeds us while we start knows the id by
        which the agents are to be known."""
        rosters.write(self._site, self._roster)
        started, refused = [], []
        for numbers in groups:
            try:
                started.append(self._spawn(numbers))
            except OSError as error:
                refused.append((numbers, f"cannot start {error.filename}: {error.strerror}"))
        processes = [*living, *(one.process for one in started)]
        rosters.write(self._site, self._roster.with_processes(processes))
        return started, refused

    def _spawn(self, numbers: tuple[int, ...]) -> _Watched:
        argv = supervisor_command(
            self._site, self.id, numbers, self._options.agent_deadline_s, self._endpoint
        )
        if self._mpi is not None and self._needs_mpi(numbers):
            hosts = (
                [self._hosts[number] for number in numbers] if self._hosts else ["localhost"] * len(numbers)
            )
            argv = agents_command(self._mpi, hosts, argv, local=not self._hosts, as_root=os.geteuid() == 0)
        with self.log.open("ab") as log:
            before = log.tell()
            child = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/", start_new_session=True
            )
        ticks = sessions.start_ticks(child.pid)  # it is not waited for yet, and so still there
        process = Process(socket.gethostname(), sessions.boot_id(), child.pid, ticks, numbers)
        return _Watched(process, child, self._loop.time(), output_from=before)

    def arrived(self, number: int, hello: AgentHello) -> None:
        """The agent has said Hello."""
        self._arrived[number] = self._loop.time()
        self._fruitless.pop(number, None)
        process = Process(hello.host, hello.boot_id, hello.pid, hello.start_ticks, (number,))
        known = self._agents.get(number)
        if hello.boot_id == sessions.boot_id() and (known is None or known.process != process):
            one = _Watched(process, None, self._loop.time(), incarnation=hello.incarnation)
            self._agents[number] = one
            self._watch(one)

    def missing(self, number: int) -> None:
        """The agent is away for too long, and whoever started it does not see to it. One that was started
        alone has a supervisor that does."""
        alone = any(one.process.numbers == (number,) for one in self._supervisors())
        if not alone and number not in self._timers:
            self._again([number])

    def _supervisors(self) -> list[_Watched]:
        return [one for one in self._watched if not one.incarnation]

    # -- ends ----------------------------------------------------------------------------------------------
    def _watch(self, one: _Watched) -> None:
        self._watched.add(one)
        try:
            one.fd = os.pidfd_open(one.process.pid)
        except OSError:
            self._loop.call_later(0.0 if not self._lives(one) else _POLL_S, self._poll, one)
            return
        self._loop.add_reader(one.fd, self._ended, one)
        if not self._lives(one):
            self._loop.call_soon(self._ended, one)

    def _poll(self, one: _Watched) -> None:
        if self._lives(one):
            self._loop.call_later(_POLL_S, self._poll, one)
        else:
            self._ended(one)

    @staticmethod
    def _lives(one: _Watched) -> bool:
        if not one.process.is_here:
            return True
        return one.process.may_live

    def _ended(self, one: _Watched) -> None:
        if one not in self._watched:
            return
        self._watched.discard(one)
        if one.fd >= 0:
            self._loop.remove_reader(one.fd)
            os.close(one.fd)
        code = one.child.poll() if one.child is not None else None
        if not self._watched:
            self._all_ended.set()
        if self._closing:
            return
        numbers = one.process.numbers
        if one.incarnation:
            self._agent_ended(numbers[0], one)
            return
        if self._loop.time() - one.since > PROVEN_S:
            for number in numbers:
                if self._arrived.get(number, 0.0) >= one.since:
                    self._tries.pop(number, None)
        how = self._how(code, one.output_from)
        alive = [number for number in numbers if self._hooks.is_here(number)]
        if alive:
            self._hooks.note(f"what started agents {_listed(alive)} ended ({how}); they go on")
        self._failed([number for number in numbers if number not in alive], how)

    def _agent_ended(self, number: int, one: _Watched) -> None:
        if self._agents.get(number) is one:
            del self._agents[number]
        self._hooks.gone(number, one.incarnation)
        kept = any(number in other.process.numbers for other in self._supervisors())
        if not kept and number not in self._timers and number not in self._agents:
            self._failed([number], "it was left without a supervisor")

    def _failed(self, numbers: Sequence[int], how: str) -> None:
        """These ended, or could not be started."""
        if self._closing or not numbers:
            return
        hopeless = [n for n in numbers if self._fruitless.get(n, 0) >= TRIES and not self._hooks.is_here(n)]
        if hopeless:
            self._hooks.given_up(hopeless, how)
        again = [number for number in numbers if number not in hopeless]
        if again:
            what = "agents" if len(again) > 1 else "agent"
            self._hooks.note(f"{what} {_listed(again)} ended ({how}): starting again")
            self._again(again)

    def _again(self, numbers: Sequence[int]) -> None:
        tries = max(self._tries.get(number, 0) for number in numbers)
        pause_s = min(BACK_OFF_S[0] * 2**tries, BACK_OFF_S[1])
        timer = self._loop.call_later(pause_s, self._start_missing, tuple(numbers))
        for number in numbers:
            self._timers[number] = timer

    def _start_missing(self, numbers: Sequence[int]) -> None:
        for number in numbers:
            self._timers.pop(number, None)
        missing = [number for number in numbers if not self._hooks.is_here(number)]
        groups = self._starts(missing)
        for number in missing:
            self._tries[number] = self._tries.get(number, 0) + 1
            self._fruitless[number] = self._fruitless.get(number, 0) + 1
        if groups:
            self._keep(self._start(groups))

    def _how(self, code: int | None, output_from: int) -> str:
        how = "gone" if code is None else f"killed by signal {-code}" if code < 0 else f"exit code {code}"
        last = main_line(_tail(self.log, output_from)) or last_line(self.log, output_from)
        return f"{how}: {last}" if last else f"{how}, see {self.log}"

    def last_words(self) -> str:
        """The last line of what supervisors or agents of this start printed."""
        words = sorted(self.log.parent.glob(f"{self.log.stem}*.log"), key=lambda path: path.stat().st_mtime)
        return next(filter(None, map(last_line, reversed(words))), "")

    def _keep(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def end(self) -> None:
        """After the agents were dismissed: wait for their processes, end what is left, forget the record."""
        self._leave()
        async with self._turn:
            if not self._watched:
                self._all_ended.set()
            heard = len(self._arrived) == len(self._roster.nodes)
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._all_ended.wait(), FAREWELL_S if heard else SHORT_FAREWELL_S)
            await asyncio.to_thread(rosters.end, self._site, self._roster, self._hooks.note)
        for one in list(self._watched):
            self._ended(one)
        with contextlib.suppress(OSError):
            if not self.log.stat().st_size:
                self.log.unlink()

    async def abandon(self) -> None:
        """They belong to another launcher now."""
        self._leave()
        async with self._turn:
            for one in self._watched:
                if one.fd >= 0:
                    self._loop.remove_reader(one.fd)
                    os.close(one.fd)

    def _leave(self) -> None:
        self._closing = True
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()


def is_this_host(name: str) -> bool:
    """Whether ``name`` is this host's, with or without its domain."""
    mine = socket.gethostname()
    return name in ("localhost", mine) or name.partition(".")[0] == mine.partition(".")[0]


def last_line(log: Path, start: int = 0) -> str:
    """The last line of text of a log from byte ``start`` on; empty if there is none."""
    return next((line.strip() for line in reversed(_tail(log, start).splitlines()) if line.strip()), "")


def _tail(log: Path, start: int) -> str:
    """The end of a log, from byte ``start`` on at most; empty where it cannot be read."""
    try:
        with log.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(start, size - 4096))
            return file.read().decode(errors="replace")
    except OSError:
        return ""


def _listed(numbers: Sequence[int]) -> str:
    some = ", ".join(map(str, numbers[:8]))
    return f"{some} and {len(numbers) - 8} more" if len(numbers) > 8 else some
