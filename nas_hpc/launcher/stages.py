"""What is done before and after the attempts of persons' jobs: links to their parents' files, scripts.

A job's way: held (commit) -> linked, script run (a thread) -> advanced (commit) -> queued, or at its end.
While it is held the lease stands in its row, in the state in which it waits; what is not finished when this
launcher ends the next one does again. Evaluations have no stages.
"""

from __future__ import annotations

import asyncio
import json
import shlex
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from nas_hpc.errors import WorkFailed
from nas_hpc.launcher import policy
from nas_hpc.launcher.endings import cancel_with
from nas_hpc.launcher.links import link_files
from nas_hpc.launcher.orders import Allocation, job_json, sourced
from nas_hpc.launcher.policy import POSTPROCESS, PREPROCESS
from nas_hpc.launcher.scripts import Script
from nas_hpc.processes import results
from nas_hpc.records import App, Attempt, Job
from nas_hpc.states import FINAL, RAN, RUNNABLE, Outcome, State
from nas_hpc.store.base import Advance, Finished, JobFilter, Store

AT_ONCE = 8
"""So many jobs are linked, or have scripts running, at the same time."""
LIMIT_S = 300.0
"""A script that runs longer is ended, as in Balsam."""


@dataclass(frozen=True, slots=True)
class StageHooks:
    """What the stages need from the launcher."""

    apps: Callable[[], Mapping[str, App]]
    write: Callable[[Callable[[Store], Any], Callable[[Any], None]], None]
    """Have the store's thread do the first; the second is called with its result after the commit."""
    has_evaluations: Callable[[Job], bool]
    ready: Callable[[Iterable[Job]], None]
    """These may be placed now."""
    finished: Callable[[Sequence[Finished], Sequence[Job]], None]
    """These reached a final state; evaluations, as they were, that went with them."""
    overtaken: Callable[[Sequence[Job]], None]
    """Somebody changed these in the meantime: look what they are now."""
    changed: Callable[[], None]


@dataclass(slots=True, eq=False)
class _Stage:
    """One job from its being taken to its being advanced."""

    job: Job
    name: str
    parents: Sequence[Job] = ()
    last: Attempt | None = None
    otherwise: tuple[State, ...] = (State.FAILED,)
    """Where the job goes after a failed attempt if its script does not help."""
    held: bool = False
    working: bool = False
    """Whether a thread has taken it."""
    script: Script | None = None
    begun: float = 0.0
    """When its script began, by the monotonic clock; 0: not yet."""
    timers: list[asyncio.TimerHandle] = field(default_factory=list)
    dropped: bool = False
    """The launcher stops, or the job is no longer its own: nothing is recorded."""


class Stages:
    """Owns the jobs that are held. Lives in the loop's thread but for what is said to be blocking."""

    def __init__(self, allocation: Allocation, sessions_log: Path, grace_s: float, hooks: StageHooks) -> None:
        self._loop = asyncio.get_running_loop()
        self._allocation, self._log, self._grace_s, self._hooks = allocation, sessions_log, grace_s, hooks
        self._threads = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="stage")
        self._active: dict[str, _Stage] = {}
        self._wanted: list[_Stage] = []
        self._over: list[tuple[_Stage, Advance]] = []
        self._planned = False
        self._stopping = False
        self._reasons: dict[str, str] = {}

    # -- what the launcher asks ----------------------------------------------------------------------------

    @property
    def busy(self) -> bool:
        """Whether a job is held or about to be."""
        return bool(self._active)

    def __len__(self) -> int:
        return len(self._active)

    def takes(self, job: Job) -> bool:
        """Whether something has to be done before ``job`` is placed or goes on; it is begun if so."""
        if job.id in self._active:
            return True
        name = policy.stage_due(job, self._hooks.apps().get(job.application))
        if name and not self._stopping:
            stage = self._active[job.id] = _Stage(job, name)
            self._wanted.append(stage)
            self._plan()
        return bool(name)

    def keep(self, held: Iterable[Job], changed: Collection[str] | None = None) -> None:
        """Of the jobs that were taken (all, or ``changed``) these are still this launcher's; what is done for
        others is ended."""
        asked = self._active.keys() if changed is None else self._active.keys() & changed
        self.forget(asked - {job.id for job in held})

    def forget(self, job_ids: Iterable[str]) -> None:
        """End what is done for these: they were killed, changed or removed."""
        for stage in [self._active[one] for one in job_ids if one in self._active]:
            if stage.held:
                self._drop(stage, "its job was killed, changed or removed")

    def stop(self) -> None:
        """Begin nothing more and end what runs: the next launcher does it again."""
        self._stopping = True
        for stage in list(self._active.values()):
            if stage.held:
                self._drop(stage, "its launcher stops")

    def kill_all(self) -> None:
        """End everything now."""
        self.stop()
        for stage in self._active.values():
            if stage.script is not None:
                stage.script.kill()

    async def close(self) -> None:
        """End everything, and wait for that."""
        self.kill_all()
        await asyncio.to_thread(partial(self._threads.shutdown, cancel_futures=True))
        for stage in self._active.values():
            _quiet(stage)

    def reason_of(self, job_id: str) -> str:
        """Why a stage made the job fail; empty if none did. Said once."""
        return self._reasons.pop(job_id, "")

    def why(self, job_id: str) -> str:
        """What is being done for a job; empty: nothing."""
        stage = self._active.get(job_id)
        if stage is None:
            return ""
        if stage.begun:
            return f"its {stage.name} script is running ({time.monotonic() - stage.begun:.0f} s)"
        if stage.working:
            return "files of its parents are being linked" if stage.parents else f"its {stage.name} begins"
        return f"its {stage.name} waits for its turn: {AT_ONCE} jobs at a time are linked or have scripts run"

    # -- holding -------------------------------------------------------------------------------------------

    def _plan(self) -> None:
        """One commit for all that happens in this turn of the loop."""
        if not self._planned:
            self._planned = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._planned = False
        if self._wanted:
            wanted, self._wanted = self._wanted, []
            self._hooks.write(partial(self._hold, wanted), partial(self._held, wanted))
        if self._over:
            over, self._over = self._over, []
            self._hooks.write(partial(self._advance, [step for _, step in over]), partial(self._moved, over))

    def _hold(self, wanted: Sequence[_Stage], store: Store) -> tuple[list[Job], list[Job], list[Attempt]]:
        """In the store's thread: the jobs that were won, their parents, the attempts of those that failed."""
        held = store.hold(self._allocation.lease, [stage.job.id for stage in wanted])
        linking = [job for job in held if job.state in RUNNABLE and job.stages.input_files]
        parents = tuple({parent for job in linking for parent in job.parents})
        ended = [job.id for job in held if job.state in RAN]
        return (
            held,
            store.jobs(JobFilter(ids=parents)) if parents else [],
            store.attempts(ended) if ended else [],
        )

    def _held(self, wanted: Sequence[_Stage], found: tuple[list[Job], list[Job], list[Attempt]]) -> None:
        held, parents, attempts = {job.id: job for job in found[0]}, found[1], found[2]
        by_id = {parent.id: parent for parent in parents}
        for stage in wanted:
            job = held.get(stage.job.id)
            if job is None:  # it was killed, changed, or is another launcher's
                del self._active[stage.job.id]
                continue
            stage.job, stage.held = job, True
            stage.parents = [by_id[parent] for parent in job.parents if parent in by_id]
            _look_back(stage, [attempt for attempt in attempts if attempt.job == job.id])
            if self._stopping:
                self._forget(stage)
            else:
                self._begin(stage)
        self._hooks.changed()

    # -- doing ---------------------------------------------------------------------------------------------

    def _begin(self, stage: _Stage) -> None:
        try:
            stage.script = self._script(stage)
        except ValueError as error:  # quotes that do not match, in a database that somebody else wrote
            self._end(stage, "", f"{stage.name}: {error}")
            return
        done = self._loop.run_in_executor(self._threads, self._work, stage)
        done.add_done_callback(partial(self._worked, stage))

    def _script(self, stage: _Stage) -> Script | None:
        job = stage.job
        app = self._hooks.apps().get(job.application)
        command = policy.script_of(stage.name, job, app)
        if not command:
            return None
        directory = self._directory(job)
        outcome = stage.last.result.outcome if stage.last is not None and stage.last.result else None
        environ = self._allocation.environment_of(
            job, job, max(1, job.resources.threads_per_rank), str(directory)
        )
        environ |= {
            "BALSAM_JOB_STATE": job.state.value,
            "BALSAM_JOB_ERROR": _flag(outcome in (Outcome.ERROR, Outcome.INVALID_RESULT)),
            "BALSAM_JOB_TIMEOUT": _flag(outcome in (Outcome.TIMEOUT, Outcome.WALLTIME)),
        }
        argv = sourced(app, tuple(shlex.split(command)))
        return Script(stage.name, argv, environ, directory, self._log)

    def _directory(self, job: Job) -> Path:
        return self._allocation.site.job_directory(job.workflow, job.directory_name)

    def _work(self, stage: _Stage) -> tuple[str, str]:
        """Blocking: what was done, and why it failed (empty: it did not)."""
        said = ""
        stage.working = True
        if stage.dropped:
            return "", ""
        try:
            job, directory = stage.job, self._directory(stage.job)
            directory.mkdir(parents=True, exist_ok=True)
            if stage.name == PREPROCESS:
                body = json.dumps(job_json(job)).encode()
                results.replace_file(str(directory), "job.json", body, sync=False)
                if stage.parents:
                    parents = [(parent, self._directory(parent)) for parent in stage.parents]
                    said = str(link_files(job, directory, parents))
        except OSError as error:
            where = error.filename or self._directory(stage.job)
            return said, f"{stage.name}: cannot prepare {where}: {error.strerror or error}"
        if stage.script is None:
            return said, ""
        begun = partial(self._loop.call_soon_threadsafe, self._begun, stage)
        return said, stage.script.run(begun)

    def _begun(self, stage: _Stage) -> None:
        stage.begun = time.monotonic()
        if not stage.dropped:
            self._end_later(stage, LIMIT_S, f"ran longer than {LIMIT_S:g} s")

    def _end_later(self, stage: _Stage, wait_s: float, reason: str) -> None:
        script = stage.script
        assert script is not None
        stage.timers = [
            self._loop.call_later(wait_s, script.stop, reason),
            self._loop.call_later(wait_s + self._grace_s, script.kill),
        ]

    def _drop(self, stage: _Stage, reason: str) -> None:
        if not stage.dropped:
            stage.dropped = True
            _quiet(stage)
            if stage.script is not None:
                stage.script.stop(reason)
                self._end_later(stage, 0.0, reason)

    def _worked(self, stage: _Stage, done: asyncio.Future[tuple[str, str]]) -> None:
        _quiet(stage)
        if done.cancelled():
            self._forget(stage)
            return
        error = done.exception()
        if error is not None:
            raise WorkFailed(f"{stage.name} of job {stage.job.name}: {error!r}") from error
        if stage.dropped:
            self._forget(stage)
        else:
            self._end(stage, *done.result())

    def _forget(self, stage: _Stage) -> None:
        """Leave the job as it is in the database."""
        self._active.pop(stage.job.id, None)
        if self._stopping:
            self._hooks.changed()
        else:
            self._hooks.overtaken([stage.job])

    # -- advancing -----------------------------------------------------------------------------------------

    def _end(self, stage: _Stage, said: str, reason: str) -> None:
        job = stage.job
        path: tuple[State, ...]
        if stage.name == PREPROCESS:
            path = (State.FAILED,) if reason else (State.PREPROCESSED,)
        elif job.state is State.RUN_DONE:
            path = (State.FAILED,) if reason else _done(stage)
        elif reason or stage.script is None:
            path = stage.otherwise
        else:
            path, said = _done(stage), f"its {POSTPROCESS} script took care of it"
        step = Advance(job.id, job.attempt, job.state, path, reason or said)
        self._over.append((stage, step))
        self._plan()

    def _advance(self, steps: Sequence[Advance], store: Store) -> tuple[list[Finished], list[Job]]:
        """In the store's thread."""
        moved = store.advance(self._allocation.lease, steps)
        over = [one.job for one in moved if one.job.state in FINAL and self._hooks.has_evaluations(one.job)]
        return moved, cancel_with(store, over)

    def _moved(self, over: Sequence[tuple[_Stage, Advance]], found: tuple[list[Finished], list[Job]]) -> None:
        moved, cancelled = found
        reached = {one.job.id for one in moved}
        for stage, step in over:
            del self._active[stage.job.id]
            failed = step.path[-1] is State.FAILED and step.state is not State.RUN_ERROR
            if failed and stage.job.id in reached:  # of a program that failed its attempt tells why
                self._reasons[stage.job.id] = step.message
        self._hooks.ready(one.job for one in moved if one.job.state in RUNNABLE)
        final = [one for one in moved if one.job.state in FINAL]
        if final:
            self._hooks.finished(final, cancelled)
        overtaken = [stage.job for stage, _ in over if stage.job.id not in reached]
        if overtaken:
            self._hooks.overtaken(overtaken)
        self._hooks.changed()


def _done(stage: _Stage) -> tuple[State, ...]:
    finished = (State.POSTPROCESSED, State.JOB_FINISHED)
    return finished if stage.script is not None else finished[1:]


def _look_back(stage: _Stage, attempts: Sequence[Attempt]) -> None:
    """How the job's last attempt ended, and what would follow from it."""
    job = stage.job
    stage.last = next((attempt for attempt in attempts if attempt.number == job.attempt), None)
    if job.state is State.RUN_TIMEOUT:
        stage.otherwise = (State.RESTART_READY,)
    elif stage.last is not None and stage.last.result is not None and job.state is State.RUN_ERROR:
        earlier = [attempt for attempt in attempts if attempt.number < job.attempt]
        outcome = stage.last.result.outcome
        stage.otherwise = policy.follow(outcome, earlier, retries=job.retries, lost_limit=1)[1:]


def _quiet(stage: _Stage) -> None:
    for timer in stage.timers:
        timer.cancel()
    stage.timers = []


def _flag(value: bool) -> str:
    return "TRUE" if value else "FALSE"
