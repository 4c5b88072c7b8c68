"""What has become of recorded batch jobs: their systems are asked, and their records brought to that.

A state changes only by an answer that makes sense. A system that is silent is asked again with growing
pauses, within one command and, by ``run/batch-SYSTEM.json``, from one command to the next. Unknown is not
done: a job that left the system without a word of how it ended is GONE only when it is missed a second time.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

from nas_hpc.batch.jobs import read_job, read_launch, write_job
from nas_hpc.batch.system import ANSWER_S, Ask, BatchSystem, Status, ask
from nas_hpc.batch.systems import system_of
from nas_hpc.errors import BatchSilent, NasHpcError, WrongCall
from nas_hpc.files import replace_file
from nas_hpc.records import BatchJob
from nas_hpc.site import Site
from nas_hpc.states import BATCH_FINAL, BatchState

FIRST_PAUSE_S = 0.5
"""Between two questions of one command; each next one is twice as long."""
FIRST_REST_S, LONGEST_REST_S = 5.0, 300.0
"""How long the next commands leave a silent system alone: twice as long after each that asked in vain."""
MISSED_S = 30.0
"""So long after it was first missed a job is GONE: its log may be seen late, as a job just submitted may."""
MISSED = "not in the queue any more; how it ended is not known yet"
BY_LAUNCHER = "its launcher said so"
CANCELLED_HERE = "cancelled by a command"


@dataclass(frozen=True, slots=True)
class Trouble:
    """A batch system that does not answer as it should."""

    system: str
    since: float
    said: str
    """Its last words, or what was wrong with them."""
    tries: int
    """Commands that asked in vain."""
    next: float
    """Not asked again before."""

    def __str__(self) -> str:
        return f"{self.system}: {self.said}"


@dataclass(frozen=True, slots=True)
class Followed:
    """Batch jobs as far as they are known now."""

    jobs: list[BatchJob]
    """In the order in which they were given."""
    trouble: list[str]
    """A line for each batch system that gave no answer: the states of its jobs are as they were."""


@dataclass(frozen=True, slots=True)
class _Patience:
    """How a system is asked."""

    s: float
    ask: Ask
    insist: bool
    pause: Callable[[float], None]


def refresh(
    site: Site,
    jobs: Sequence[BatchJob],
    environ: Mapping[str, str],
    *,
    patience_s: float,
    insist: bool = False,
    answer_s: float = ANSWER_S,
    pause: Callable[[float], None] = time.sleep,
) -> Followed:
    """Ask the systems of the jobs that are not at their end, one call each, and write down what is new.

    A silent system is asked again for ``patience_s``; one that was silent to commands before is left alone
    for its rest, unless one ``insist``-s. Never raises for what a batch system does, or for a record that
    cannot be written.
    """
    patience = _Patience(patience_s, partial(ask, environ=environ, timeout_s=answer_s), insist, pause)
    now = {job.key: _of_launcher(site, job) for job in jobs}
    trouble = []
    for name in dict.fromkeys(job.system for job in jobs):
        open_jobs = [job for job in now.values() if job.system == name and _is_asked(job)]
        if not open_jobs:
            continue
        states, line = _ask_system(site, name, open_jobs, patience)
        if line:
            trouble.append(line)
        for job in open_jobs:
            if job.id in states:
                now[job.key] = _settled(site, job, states[job.id])
    return Followed([_written(site, old, now[old.key]) for old in jobs], trouble)


def _is_asked(job: BatchJob) -> bool:
    return bool(job.id) and job.state not in BATCH_FINAL


def _of_launcher(site: Site, job: BatchJob) -> BatchJob:
    """A job whose id was never written down, but whose launcher has told that it ended."""
    if job.state is not BatchState.SUBMITTING or job.id:
        return job
    launch = read_launch(site, job.key)
    if launch is None or not launch.ended:
        return job
    return _moved(job, Status(BatchState.ENDED, BY_LAUNCHER, launch.exit_code))


def _settled(site: Site, job: BatchJob, status: Status) -> BatchJob:
    """The job with its status; where nothing but its absence is told, with what its launcher said."""
    if status.state is not BatchState.GONE:
        return _moved(job, status)
    launch = read_launch(site, job.key)
    if launch is not None and launch.ended:
        return _moved(job, Status(BatchState.ENDED, BY_LAUNCHER, launch.exit_code))
    if job.reason != MISSED:
        return replace(job, reason=MISSED, asked=time.time())
    if time.time() - job.asked < MISSED_S:
        return job
    return _moved(job, Status(BatchState.GONE, status.reason or "nothing tells how it ended"))


def _moved(job: BatchJob, status: Status) -> BatchJob:
    exit_code = job.exit_code if status.exit_code is None else status.exit_code
    return replace(job, state=status.state, reason=status.reason, exit_code=exit_code, asked=time.time())


def _written(site: Site, old: BatchJob, new: BatchJob) -> BatchJob:
    """Write a changed record, unless another command was here first: what is final stays as it is."""
    if _told(new) == _told(old):
        return new
    current = read_job(site, old.key)
    if current is not None and current.state in BATCH_FINAL and old.state not in BATCH_FINAL:
        return current
    with suppress(OSError):  # a full disk, a site that is only read: the next look finds the same
        write_job(site, new)
    return new


def _told(job: BatchJob) -> tuple[BatchState, str, int | None]:
    return job.state, job.reason, job.exit_code


def cancel(
    site: Site, jobs: Sequence[BatchJob], environ: Mapping[str, str], *, answer_s: float = ANSWER_S
) -> dict[str, str]:
    """End batch jobs of one system. Returns why not, by key, for those that are still there and not ending.

    What the system no longer has, and of which nothing else is known, was cancelled. Raises BatchSilent,
    having changed nothing that is known.
    """
    system = system_of(jobs[0].system)
    asking = partial(ask, environ=environ, timeout_s=answer_s)
    began = time.time()
    refused = system.cancel([job.id for job in jobs], asking)
    taken = [job for job in jobs if job.id not in refused]
    states = system.status(taken, asking) if taken else {}
    for job in taken:
        _written(site, job, _cancelled(site, job, states.get(job.id, Status(BatchState.GONE)), began))
    return {job.key: refused[job.id] for job in jobs if job.id in refused}


def _cancelled(site: Site, job: BatchJob, status: Status, began: float) -> BatchJob:
    """The job after its end was asked for at ``began``."""
    launch = read_launch(site, job.key)
    if status.state is not BatchState.GONE or (launch is not None and 0 < launch.ended < began):
        return _settled(site, job, status)
    exit_code = launch.exit_code if launch is not None else None
    return _moved(job, Status(BatchState.CANCELLED, CANCELLED_HERE, exit_code))


def _ask_system(
    site: Site, name: str, jobs: Sequence[BatchJob], patience: _Patience
) -> tuple[dict[str, Status], str]:
    """What the system says of the jobs, by id, or a line that says why nothing is known."""
    before = read_trouble(site, name)
    if before is not None and not patience.insist and 0 < before.next - time.time() <= LONGEST_REST_S:
        return {}, _line(before, asked=False)
    try:
        states = _patiently(system_of(name), jobs, patience)
    except BatchSilent as error:
        return {}, _line(_note_trouble(site, name, str(error), before), asked=True)
    except WrongCall as error:  # its commands are not on this host: it may be well
        return {}, f"{name} cannot be asked here: {error}; states are as they were last known"
    except (OSError, NasHpcError) as error:
        return {}, _line(_note_trouble(site, name, str(error), before), asked=True)
    if before is not None:
        with suppress(OSError):
            trouble_file(site, name).unlink()
    return states, ""


def _patiently(system: BatchSystem, jobs: Sequence[BatchJob], patience: _Patience) -> dict[str, Status]:
    """Its answer. Raises BatchSilent if it gives none for as long as there is patience."""
    end, pause_s = time.monotonic() + patience.s, FIRST_PAUSE_S
    while True:
        try:
            return system.status(jobs, patience.ask)
        except BatchSilent:
            if time.monotonic() + pause_s > end:
                raise
        patience.pause(pause_s)
        pause_s *= 2


def trouble_file(site: Site, system: str) -> Path:
    """Where it is written down that a batch system does not answer."""
    return site.run / f"batch-{system}.json"


def read_trouble(site: Site, system: str) -> Trouble | None:
    """The trouble with that batch system; None if there is none, or nothing that can be read."""
    try:
        body = json.loads(trouble_file(site, system).read_bytes())
        return Trouble(
            system, float(body["since"]), str(body["said"]), int(body["tries"]), float(body["next"])
        )
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _note_trouble(site: Site, system: str, said: str, before: Trouble | None) -> Trouble:
    now = time.time()
    tries = before.tries + 1 if before is not None else 1
    rest_s = min(FIRST_REST_S * 2.0 ** min(tries - 1, 16), LONGEST_REST_S)
    trouble = Trouble(system, before.since if before is not None else now, said, tries, now + rest_s)
    with suppress(OSError):  # then the next command asks at once
        body = {key: value for key, value in asdict(trouble).items() if key != "system"}
        replace_file(trouble_file(site, system), json.dumps(body) + "\n")
    return trouble


def _line(trouble: Trouble, *, asked: bool) -> str:
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(trouble.since))
    rest_s = max(0, round(trouble.next - time.time()))
    again = f"commands ask again in {rest_s} s" if asked else f"it is asked again in {rest_s} s"
    return f"{trouble} (no answer since {since} UTC; {again}); states are as they were last known"
