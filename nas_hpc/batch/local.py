"""A batch system of this machine's own: the same script, run by a process in the background.

Its id is ``PID.TICKS.HOST`` of that process (``local_runner``): no other process will ever have it. What
becomes of the script is written by the runner beside it, to ``KEY.local.json``. It has no queues.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from nas_hpc.batch.jobs import LOCAL
from nas_hpc.batch.system import Ask, QueueState, Request, Status
from nas_hpc.errors import BatchRefused, BatchSilent, WrongCall
from nas_hpc.processes import sessions
from nas_hpc.records import BatchJob
from nas_hpc.states import BATCH_FINAL, BatchState

RUNNER = Path(__file__).with_name("local_runner.py")
CANCEL_S = 5.0
"""So long ``cancel`` waits for the end; a launcher may take longer to stop in order."""
_ID = re.compile(r"([0-9]+)\.([0-9]+)\.(\S+)")


class Local:
    """This machine. See ``BatchSystem``."""

    name = "local"
    programs: tuple[str, ...] = ()
    endings = (".output",)

    def directives(self, request: Request) -> list[str]:
        """None: its script's last line says the nodes and the time."""
        return []

    def submit(self, request: Request, script: Path, ask: Ask) -> str:
        """Start the runner, which outlives this process."""
        for one in request.dependencies:
            parse_id(one)
        answer = ask(submit_argv(request, script))
        id_ = answer.stdout.strip()
        if answer.code == 0 and _ID.fullmatch(id_):
            return id_
        if answer.code == 0:
            raise BatchSilent(f"it is not known whether {script} was started: {answer.said or 'no word'}")
        raise BatchRefused(f"{script} was not started: {answer.said or f'exit code {answer.code}'}")

    def interactive_argv(self, request: Request) -> list[str]:
        """Nothing has to be opened: the user's shell is on the machine."""
        return []

    def status(self, jobs: Sequence[BatchJob], ask: Ask) -> dict[str, Status]:
        """By what their runners wrote, and whether these live."""
        return {job.id: _status(job) for job in jobs}

    def cancel(self, ids: Sequence[str], ask: Ask) -> dict[str, str]:
        """Tell the runners, which end their scripts in order, and wait a moment for them."""
        left: dict[str, str] = {}
        told: list[tuple[int, int]] = []
        for id_ in ids:
            try:
                pid, ticks, host = parse_id(id_)
            except WrongCall as error:
                left[id_] = error.message
                continue
            if host != socket.gethostname():
                left[id_] = f"it was started on {host}: end it there"
            elif is_runner(pid, ticks):
                why = _tell(pid, ticks)
                if why:
                    left[id_] = why
                else:
                    told.append((pid, ticks))
        for pid, ticks in told:
            sessions.await_end(pid, ticks, CANCEL_S)
        return left

    def queues(self, ask: Ask) -> list[QueueState]:
        """None."""
        return []


def submit_argv(request: Request, script: Path) -> list[str]:
    """The command that starts the runner."""
    waits = [word for one in request.dependencies for word in ("--after", one)]
    output = f"{request.output}{Local.endings[0]}"
    return [
        sys.executable, str(RUNNER), "--directory", str(request.directory), "--output", output,
        "--minutes", str(request.walltime_minutes), *waits, str(script),
    ]  # fmt: skip


def parse_id(id_: str) -> tuple[int, int, str]:
    """Pid, start time in ticks and host. Raises WrongCall."""
    match = _ID.fullmatch(id_)
    if match is None:
        raise WrongCall(f"{id_!r} is no id of a batch job of this machine; nas-hpc ls queues shows them")
    return int(match[1]), int(match[2]), match[3]


def is_runner(pid: int, ticks: int) -> bool:
    """Whether that process lives and is a runner."""
    if not sessions.is_alive(pid, ticks):
        return False
    try:
        return os.fsencode(RUNNER.name) in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def _tell(pid: int, ticks: int) -> str:
    try:
        os.kill(pid, signal.SIGTERM)
    except ProcessLookupError:
        return ""
    except PermissionError:
        return "it is another user's" if sessions.is_alive(pid, ticks) else ""
    return ""


def _lives(pid: int, ticks: int) -> bool:
    return sessions.is_alive(pid, ticks)


def state_file(script: str | Path) -> Path:
    """Where the runner of that script writes."""
    return Path(script).with_suffix("").with_name(Path(script).stem + LOCAL)


def _status(job: BatchJob) -> Status:
    try:
        pid, ticks, host = parse_id(job.id)
    except WrongCall as error:
        return Status(BatchState.GONE, error.message)
    alive = is_runner(pid, ticks)  # looked at first: the file is written before the end
    told: Mapping[str, Any] = {}
    with suppress(OSError, ValueError):
        told = json.loads(state_file(job.script).read_bytes())
    # A machine may be renamed while it runs, and one of another name have such a process.
    here = told.get("boot_id") == sessions.boot_id() or host == socket.gethostname()
    state = _state(told) if told.get("id") == job.id else None
    if state is not None and state.state in BATCH_FINAL:
        return state
    if not here:  # nobody here can see whether it lives
        return state or Status(job.state, job.reason)
    if alive:
        return state or Status(BatchState.RUNNING)
    its, began = told.get("script_pid"), told.get("script_ticks")
    if state is not None and isinstance(its, int) and isinstance(began, int) and _lives(its, began):
        return Status(BatchState.ENDING, "its runner was killed; the launcher is ending")
    return Status(BatchState.GONE, "its runner was killed")


def _state(told: Mapping[str, Any]) -> Status | None:
    try:
        state, code = BatchState(told["state"]), told.get("exit_code")
    except (KeyError, ValueError):
        return None
    return Status(state, str(told.get("reason", "")), code if isinstance(code, int) else None)
