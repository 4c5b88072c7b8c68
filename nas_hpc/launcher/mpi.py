"""The launcher's MPI program: looked for when the first job needs it, tried with two ranks, and then used.

Nothing of this holds up jobs that need no MPI program: it is looked for and tried beside the loop.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import replace
from typing import Any

from nas_hpc.launcher.options import LauncherOptions
from nas_hpc.launcher.orders import Allocation
from nas_hpc.launcher.pacing import APRUN_AT_ONCE, Pacer
from nas_hpc.launcher.policy import evaluations_of, python_of_agents
from nas_hpc.processes.mpi import Checked, MpiProgram, check, find_program
from nas_hpc.records import App, Job

_SHORT = 40
"""So long a text may be told several times."""


class Mpi:
    """What the launcher knows of its MPI program. Lives in a running asyncio loop.

    ``changed`` is called when something was found out: jobs may start now, or never. ``apps`` gives the
    applications by name.
    """

    def __init__(
        self,
        allocation: Allocation,
        options: LauncherOptions,
        *,
        apps: Callable[[], Mapping[str, App]],
        note: Callable[[str], None],
        changed: Callable[[], None],
    ) -> None:
        self._allocation, self._options = allocation, options
        self._apps, self._note, self._changed = apps, note, changed
        self._loop = asyncio.get_running_loop()
        self._turn: asyncio.TimerHandle | None = None
        """When the next start may be made."""
        self.program: MpiProgram | None = None
        self.problem = ""
        """Why there is none; empty while that is not known."""
        self.pacer = Pacer(options.starts_per_s, options.concurrent_starts)
        self._checked: dict[str, Checked] = {}
        """By interpreter."""
        self._tasks: dict[str, asyncio.Task[None]] = {}
        """What is being found out: the program (""), or how an interpreter's ranks do."""

    @property
    def pending(self) -> bool:
        """Whether something is being found out, or a start waits for its turn."""
        return bool(self._tasks) or self._turn is not None

    def may_be_needed(self, job: Job) -> bool:
        """Whether the job's start is, or may be, the MPI program's: such starts are counted and paced."""
        found = self._allocation.found
        return self._allocation.mode == "mpi" and (_ranks(job) > 1 or bool(found.elsewhere))

    def begin(self) -> None:
        """Look for the program where other hosts than this are reached by it alone."""
        if self._allocation.mode == "mpi" and self._allocation.found.elsewhere:
            self._begin("", self._look_and_try())

    def refusal(self, job: Job, creator: Job | None, *, search: bool) -> str:
        """Why the job can never run here, as far as that is known; empty: nothing speaks against it."""
        need, found, ranks = job.resources, self._allocation.found, _ranks(job)
        if self._allocation.mode != "mpi":
            return _refusal_in_serial(job, len(found.nodes), search=search)
        if self.problem and ranks > 1:
            shape = _shape(need.num_nodes, need.ranks_per_node)
            return f"it has {shape}, which need an MPI program, and there is none: {self.problem}"
        if self.problem and not found.virtual and not found.here:
            return f"all nodes are other hosts, which need an MPI program, and there is none: {self.problem}"
        trial = self._checked.get(self._interpreter(job, creator)) if ranks > 1 else None
        return "" if trial is None or trial.good else f"its ranks would not find each other: {trial.text}"

    def for_log(self, why: str) -> str:
        """A refusal as the log has it, in which what is wrong with the MPI program stands already."""
        texts = [self.problem, *(trial.text for trial in self._checked.values() if not trial.good)]
        for text in texts:
            if len(text) > _SHORT:
                why = why.replace(f": {text}", " (see above)")
        return why

    def may_start(self, job: Job, creator: Job | None) -> bool:
        """Whether a job may be started now: what its start needs is known, and it is not too early.

        Else ``changed`` is called when that may be so.
        """
        if not self.may_be_needed(job):
            return True
        if _ranks(job) > 1 and not self._is_ready(job, creator):
            return False
        wait_s = self.pacer.wait_s(self._loop.time())
        if 0 < wait_s < float("inf") and self._turn is None:
            self._turn = self._loop.call_later(wait_s, self._next_turn)
        return wait_s == 0

    def starts(self, job: Job) -> None:
        """A place was taken for the job, which is to be started now."""
        if self.may_be_needed(job):
            self.pacer.started(self._loop.time())

    def ended(self, job: Job) -> None:
        """The job's place is free again."""
        if self.may_be_needed(job):
            self.pacer.ended()

    def _next_turn(self) -> None:
        self._turn = None
        self._changed()

    def _is_ready(self, job: Job, creator: Job | None) -> bool:
        """Whether all is known that the start of several ranks needs; if not it is found out."""
        if self.program is None:
            self._find()
            return False
        interpreter = self._interpreter(job, creator)
        if interpreter not in self._checked:
            self._try(interpreter)
            return False
        return True

    def why_not(self, job: Job) -> str:
        """What keeps a job of several ranks waiting, besides room; empty: nothing."""
        if self._tasks and self.may_be_needed(job):
            return "the MPI program is being tried"
        wait_s = self.pacer.wait_s(self._loop.time()) if self.may_be_needed(job) else 0.0
        if wait_s == float("inf"):
            return f"{self.pacer.running} MPI programs run, and no more may run at a time (concurrent_starts)"
        return f"{self.pacer.per_s:g} MPI programs may be started per second (starts_per_s)" if wait_s else ""

    async def close(self) -> None:
        """End what is being found out."""
        if self._turn is not None:
            self._turn.cancel()
        for task in list(self._tasks.values()):
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    def _interpreter(self, job: Job, creator: Job | None) -> str:
        """Whose mpi4py has to fit. A program's MPI is its own matter: with Python's it is only tried. A
        search of agents is known to use mpi4py."""
        if job.application:
            return python_of_agents(self._apps().get(job.application))
        if job.evaluation is None or job.evaluation.argv:
            return ""
        origin = (creator or job).origin
        return origin.interpreter or sys.executable

    # -- finding out ---------------------------------------------------------------------------------------
    def _find(self) -> None:
        if not self._tasks and self.program is None and not self.problem:
            self._begin("", self._look())

    def _try(self, interpreter: str) -> None:
        if not self._tasks:  # one after the other: each may find a flag that the program needs
            self._begin(interpreter or sys.executable, self._check(interpreter))

    def _begin(self, key: str, work: Coroutine[Any, Any, None]) -> None:
        task = self._tasks[key] = self._loop.create_task(work)

        def done(_: asyncio.Task[None]) -> None:
            self._tasks.pop(key, None)
            if not task.cancelled():
                error = task.exception()
                if error is not None:
                    self.program, self.problem = None, f"{type(error).__name__}: {error}"
                    self._note(f"MPI: {self.problem}")
                self._changed()

        task.add_done_callback(done)

    async def _look_and_try(self) -> None:
        await self._look()
        if self.program is not None:
            await self._check("")

    async def _look(self) -> None:
        found = await find_program(self._options.mpi, self._options.mpi_flags, os.environ)
        for line in found.notes:
            self._note(f"note: {line}")
        if found.program is None:
            self.problem = found.problem
            self._note(f"jobs of several ranks or on other hosts cannot run: {found.problem}")
            return
        self.program = found.program
        if found.program.flavour == "aprun" and not self.pacer.at_once:
            self.pacer.at_once = APRUN_AT_ONCE
        self._note(f"MPI: {found.program}")

    async def _check(self, interpreter: str) -> None:
        assert self.program is not None
        found = self._allocation.found
        local = not found.elsewhere
        hosts = [node.address for node in found.nodes[-2:]]  # the last ones: the first are filled first
        trial = await check(
            self.program,
            interpreter or sys.executable,
            hosts[:1] if local else hosts,
            local=local,
            marker=self._allocation.lease,
        )
        if trial.started:
            self.program = trial.program
        elif not interpreter:
            self.program, self.problem = None, f"{self.program} was tried: {trial.text}"
        if not interpreter:  # Python's own MPI may be another; programs may have the right one
            trial = replace(trial, size=None)
        self._checked[interpreter] = trial
        self._note(f"MPI: {trial.text}")


def _refusal_in_serial(job: Job, have: int, *, search: bool) -> str:
    """Why serial mode on so many nodes cannot run the job, or the evaluations that a search will ask for."""
    need = job.resources
    only = "and serial mode runs one rank on one node: use --job-mode mpi"
    if _ranks(job) > 1:
        change = (
            f", or nas-hpc modify {job.id[:8]} --num-nodes 1 --ranks-per-node 1" if not job.creator else ""
        )
        return f"it has {_shape(need.num_nodes, need.ranks_per_node)}, {only}{change}"
    nodes, ranks = evaluations_of(job.args) if search else (1, 1)
    if nodes * ranks == 1:
        return ""
    wanted = nodes + 1 if nodes > 1 else 1  # beside that of the search
    on = f" on {wanted} nodes or more" if wanted > have else ""
    return f"its evaluations are to have {_shape(nodes, ranks)}, {only}{on}"


def _shape(nodes: int, ranks: int) -> str:
    return f"{nodes} node{'s' * (nodes > 1)} x {ranks} rank{'s' * (ranks > 1)}"


def _ranks(job: Job) -> int:
    return job.resources.num_nodes * job.resources.ranks_per_node
