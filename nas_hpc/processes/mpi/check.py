"""A trial start of two ranks: does the MPI program start them, and do they find each other?"""

from __future__ import annotations

import asyncio
import json
import os
import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nas_hpc.errors import WrongCall
from nas_hpc.processes import boot, rank_check, sessions
from nas_hpc.processes.environment import recordable
from nas_hpc.processes.mpi.bounded import Output, run_bounded
from nas_hpc.processes.mpi.builders import command
from nas_hpc.processes.mpi.program import MpiProgram, Start
from nas_hpc.processes.mpi.surroundings import of_batch_job
from nas_hpc.processes.start_failures import main_line

CHECK_S = 60.0
"""Deadline: importing mpi4py from a cold parallel file system may take half of it."""
_SLURM_WAYS = ("pmi2", "pmix", "cray_shasta")


@dataclass(frozen=True, slots=True)
class Checked:
    """How the trial start went."""

    program: MpiProgram
    """As it is to be used: for srun perhaps with a ``--mpi`` that was found to be needed."""
    started: bool
    """It started two ranks."""
    size: int | None
    """Result of their allreduce, which has to be 2; None: the interpreter has no mpi4py, so nobody asked."""
    text: str
    """One line for a person: what was seen, or what is wrong."""

    @property
    def good(self) -> bool:
        """Two ranks were started and, as far as could be asked, found each other."""
        return self.started and self.size in (2, None)


async def check(
    program: MpiProgram,
    interpreter: str,
    hosts: Sequence[str],
    *,
    local: bool,
    environ: Mapping[str, str] | None = None,
    marker: str = "",
    timeout_s: float = CHECK_S,
) -> Checked:
    """Start two ranks of ``interpreter`` on the one or two ``hosts`` and have mpi4py add 1 and 1.

    ``environ`` is the environment of whoever asks (default: this process's), ``marker`` the launcher's lease,
    by which what is left of a hanging start is found and ended.
    """
    ask = _Ask(
        interpreter, tuple(hosts[:2]), local, dict(os.environ if environ is None else environ), timeout_s
    )
    ask.environ[sessions.MARKER_VARIABLE] = marker or uuid.uuid4().hex
    found = await ask.of(program)
    if (
        program.flavour == "slurm"
        and found.size == 1
        and not any(f.startswith("--mpi") for f in program.flags)
    ):
        listed = await run_bounded([program.path, "--mpi=list"], ask.environ, timeout_s)
        for way in (way for way in _SLURM_WAYS if way in listed.text.split()):
            other = await ask.of(replace(program, flags=(*program.flags, f"--mpi={way}")))
            if other.good:
                return replace(other, text=f"{other.text}, with --mpi={way}")
    return found


async def start_two(
    program: MpiProgram, argv: Sequence[str], hosts: Sequence[str], *, local: bool, timeout_s: float
) -> Output:
    """Start ``argv`` on two ranks on the one or two ``hosts``, in this process's environment, and leave
    nothing of them behind.

    Raises OSError, WrongCall if ``program`` cannot be started.
    """
    ask = _Ask("", tuple(hosts[:2]), local, dict(os.environ), timeout_s)
    ask.environ[sessions.MARKER_VARIABLE] = uuid.uuid4().hex
    return await ask.run(program, argv)


@dataclass(frozen=True, slots=True)
class _Ask:
    interpreter: str
    hosts: tuple[str, ...]
    local: bool
    environ: dict[str, str]
    timeout_s: float

    async def of(self, program: MpiProgram) -> Checked:
        try:
            output = await self.run(program, boot.command(self.interpreter, "rank_check"))
        except OSError as error:
            return Checked(program, False, None, f"{program.path} cannot be started: {error.strerror}")
        except WrongCall as error:
            return Checked(program, False, None, str(error))
        return self._judge(program, output)

    async def run(self, program: MpiProgram, argv: Sequence[str]) -> Output:
        """Two ranks of ``argv``."""
        start = Start(
            tuple(argv),
            self.hosts,
            ranks_per_node=2 // len(self.hosts),
            local=self.local,
            as_root=os.geteuid() == 0,
        )
        attempt = ("mpi-check-" + uuid.uuid4().hex, 0)
        marks = {"NAS_HPC_JOB_ID": attempt[0], "NAS_HPC_ATTEMPT": "0"}
        marker = self.environ[sessions.MARKER_VARIABLE]
        environ = {
            **recordable(self.environ),
            **of_batch_job(self.environ),
            **marks,
            sessions.MARKER_VARIABLE: marker,
        }
        once = (
            replace(program, flags=("--overlap", *program.flags)) if program.flavour == "slurm" else program
        )
        output = await run_bounded(command(once, start), environ, self.timeout_s)
        if output.code != 0:
            await asyncio.to_thread(sessions.end_attempts, Path(os.devnull), marker, [attempt])
        return output

    def _judge(self, program: MpiProgram, output: Output) -> Checked:
        said = _said(output.text)
        places = [one for one in said if "rank" in one]  # a rank may have been ended before it said its own
        started = len(places) == 2 or any(one["size"] == 2 for one in places)
        sums = [int(one["sum"]) for one in said if "sum" in one]
        size = min(sums) if len(sums) == 2 else None
        who = f"the mpi4py of {self.interpreter}"
        if output.code is None:
            return Checked(program, False, size, f"two ranks did not end within {self.timeout_s:g} s")
        if not started:
            return Checked(program, False, None, f"it does not start two ranks: {_end(output)}")
        if any("missing" in one for one in said):
            text = f"it starts two ranks; {self.interpreter} has no mpi4py to show that they find each other"
            return Checked(program, output.code == 0, None, text)
        if size is None or output.code != 0:
            return Checked(
                program,
                True,
                size or 0,
                f"two ranks with {who} fail, perhaps as it belongs to another MPI: {_end(output)}",
            )
        if size != 2:
            text = f"it starts two ranks, but each is alone (size {size}): {who} belongs to another MPI"
            return Checked(program, True, size, text)
        return Checked(program, True, size, f"two ranks with {who} find each other")


def _said(text: str) -> list[dict[str, Any]]:
    """What the ranks printed: on one line there may be more, of the MPI program or of another rank."""
    return [json.loads(body) for body in re.findall(rank_check.MARK + r"(\{[^{}]*\})", text)]


def _end(output: Output) -> str:
    line = main_line(output.text) or "it says nothing"
    return f"{line} (exit code {output.code})" if output.code else line
