"""What every batch system can do, and how its commands are called.

A system's module builds argv lists and reads answers; it calls nothing by itself: commands go through Ask,
so that everything can be tried on recorded text. An answer that makes no sense is BatchSilent, never a state.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from nas_hpc.errors import BatchSilent, WrongCall
from nas_hpc.records import BatchJob
from nas_hpc.states import BatchState

ANSWER_S = 20.0
"""How long a command of a batch system may take: a busy one takes seconds, a broken one for ever."""


@dataclass(frozen=True, slots=True)
class Request:
    """An allocation that is asked for."""

    name: str
    """Of the batch job; one word."""
    nodes: int
    walltime_minutes: int
    directory: Path
    """Working directory of the script."""
    output: Path
    """What the script prints goes to this path with the system's ending behind it."""
    queue: str = ""
    project: str = ""
    dependencies: tuple[str, ...] = ()
    """Ids of batch jobs that have to end first, in whatever way the system lets them."""
    attrs: tuple[str, ...] = ()
    """``key=value`` each: Cobalt's attributes, PBS's resources, Slurm's long options."""
    flags: tuple[str, ...] = ()
    """More words for the submitting command, as they are."""
    queue_flag: str = ""
    """How the queue is named to the system; empty: its usual way (Slurm: --partition; Perlmutter: --qos)."""
    environ: Mapping[str, str] | None = None
    """Variables for an interactive shell in the allocation."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a command said."""

    argv: tuple[str, ...]
    code: int
    stdout: str
    stderr: str

    @property
    def said(self) -> str:
        """Its words in one line."""
        return " ".join((self.stderr.strip() or self.stdout.strip()).split())


@dataclass(frozen=True, slots=True)
class Status:
    """What is known of a batch job."""

    state: BatchState
    reason: str = ""
    exit_code: int | None = None


@dataclass(frozen=True, slots=True)
class QueueState:
    """A queue as the batch system itself tells of it; None: not told."""

    name: str
    open: bool = True
    min_nodes: int | None = None
    max_nodes: int | None = None
    max_minutes: int | None = None


Ask = Callable[[Sequence[str]], Answer]
"""Calls a command. Raises WrongCall where it is missing, BatchSilent where it does not end in time."""


class BatchSystem(Protocol):
    """A kind of batch system."""

    name: str
    programs: tuple[str, ...]
    """Commands that it needs on PATH."""
    endings: tuple[str, ...]
    """What it appends to ``Request.output``: of what the script prints first, then of errors and logs."""

    def directives(self, request: Request) -> list[str]:
        """The lines that follow ``#!`` in the script."""

    def submit(self, request: Request, script: Path, ask: Ask) -> str:
        """Give it the script; the id. Raises BatchRefused with its words and what was sent."""

    def interactive_argv(self, request: Request) -> list[str]:
        """The command that opens a shell in an allocation."""

    def status(self, jobs: Sequence[BatchJob], ask: Ask) -> dict[str, Status]:
        """What is known of the jobs, by id; GONE for one of which nothing tells how it ended.

        Raises BatchSilent if the system does not answer or says what nobody knows.
        """

    def cancel(self, ids: Sequence[str], ask: Ask) -> dict[str, str]:
        """End batch jobs. Returns why not, by id, for those that are still there and not ending."""

    def queues(self, ask: Ask) -> list[QueueState]:
        """Its queues. Raises BatchSilent."""


def ask(argv: Sequence[str], environ: Mapping[str, str] | None = None, timeout_s: float = ANSWER_S) -> Answer:
    """Call a command, without input, in a session of its own. See ``Ask``."""
    environ = dict(os.environ if environ is None else environ)
    try:
        process = subprocess.Popen(
            list(argv), env={**environ, "LC_ALL": "C"}, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
    except FileNotFoundError:
        raise WrongCall(
            f"there is no {argv[0]} on PATH: load the batch system's module, or name another machine with "
            "--machine; nas-hpc doctor shows what is here"
        ) from None
    except OSError as error:
        raise BatchSilent(f"{argv[0]} cannot be started: {error.strerror or error}") from None
    try:
        stdout, stderr = process.communicate(timeout=timeout_s)
    except BaseException as error:
        with suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL)
        with suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=1.0)
        if isinstance(error, subprocess.TimeoutExpired):
            raise BatchSilent(f"{argv[0]} did not answer within {timeout_s:g} s") from None
        raise
    return Answer(
        tuple(argv), process.returncode, stdout.decode(errors="replace"), stderr.decode(errors="replace")
    )
