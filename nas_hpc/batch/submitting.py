"""Submitting allocations for launchers: what is checked, written and recorded, in which order."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from nas_hpc.batch import jobs, limits, script
from nas_hpc.batch.following import refresh
from nas_hpc.batch.local import parse_id
from nas_hpc.batch.machine import Machine
from nas_hpc.batch.system import Answer, Ask, BatchSystem, QueueState, Request, ask
from nas_hpc.batch.systems import system_of
from nas_hpc.config import Settings
from nas_hpc.errors import BatchRefused, BatchSilent, NasHpcError, SiteError, WrongCall
from nas_hpc.files import replace_file
from nas_hpc.records import BatchJob
from nas_hpc.site import Site
from nas_hpc.states import BATCH_FINAL, BatchState
from nas_hpc.store.place import place_of

Note = Callable[[str], None]
MAX_CHAIN = 100


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a command asks for."""

    nodes: int
    walltime_minutes: int
    queue: str = ""
    project: str = ""
    job_mode: str = "mpi"
    workflow: str = ""
    """Empty: all."""
    dependencies: tuple[str, ...] = ()
    """Ids of batch jobs, or keys of the site's."""
    attrs: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    name: str = ""
    """Of the batch job; empty: the workflow's."""
    chain: int = 1
    """So many allocations, one after the other."""
    check: bool = True
    """Whether the machine's limits are looked at."""


@dataclass(frozen=True, slots=True)
class Planned:
    """A batch job that may be submitted."""

    job: BatchJob
    request: Request
    body: script.Body
    text: str
    """The script."""


def plan(
    site: Site,
    machine: Machine,
    settings: Settings,
    wanted: Wanted,
    *,
    environ: Mapping[str, str] | None = None,
    note: Note = lambda line: None,
    reserve: bool = True,
    call: Ask = ask,
) -> list[Planned]:
    """The batch jobs of ``wanted``, in their order, with all that can be checked beforehand checked.

    ``reserve``: their scripts are there then, empty; without it nothing is written, and the batch system may
    be missing. Raises WrongCall and SiteError; then nothing was submitted, and nothing is left.
    """
    environ = os.environ if environ is None else environ
    system = system_of(machine.system)
    ready = _check_programs(machine, system, None if reserve else note)
    request = _request(site, machine, wanted)
    _check_limits(site, machine, system if ready else None, request, wanted, note, call)
    if reserve:
        _check_directory(site)
    keys = jobs.new_keys(site, wanted.workflow, wanted.chain, reserve=reserve)
    try:
        planned = [_planned(site, machine, wanted, request, keys, link, environ) for link in range(len(keys))]
        command_of(machine, planned[0])  # what the adapter cannot say to its system it refuses
        return planned
    except BaseException:
        if reserve:
            jobs.drop_scripts(site, keys)
        raise


def request_of(site: Site, machine: Machine, wanted: Wanted, note: Note, call: Ask = ask) -> Request:
    """The checked request for an interactive shell."""
    system = system_of(machine.system)
    _check_programs(machine, system)
    request = _request(site, machine, wanted)
    _check_limits(site, machine, system, request, wanted, note, call)
    return request


def abandon(site: Site, planned: Sequence[Planned]) -> None:
    """Remove what a plan has left, where it is not submitted after all."""
    jobs.drop_scripts(site, [link.job.key for link in planned])


def submit(
    site: Site, machine: Machine, planned: Sequence[Planned], note: Note, call: Ask = ask
) -> list[BatchJob]:
    """Submit what was planned, each of a chain behind the one before it; the batch jobs with their ids.

    A signal (Ctrl-C) waits until the answer of the batch system is written down. Raises BatchRefused,
    BatchSilent, SiteError: what had been submitted by then stays so, and was told to ``note``.
    """
    done: list[BatchJob] = []
    try:
        for link in planned:
            if done:
                link = _behind(site, machine, link, done[-1].id)
            with unbroken():
                done.append(_submit(site, system_of(machine.system), link, call))
        return done
    except BaseException:
        abandon(site, planned)
        for job in done:
            note(f"submitted: {job.id} ({job.key}), it will run; to end it: nas-hpc kill {job.id}")
        raise


def command_of(machine: Machine, link: Planned) -> tuple[str, ...]:
    """The command that would submit it; nothing is called."""

    class Shown(Exception):
        pass

    called: list[tuple[str, ...]] = []

    def show(argv: Sequence[str]) -> Answer:
        called.append(tuple(argv))
        raise Shown

    try:
        system_of(machine.system).submit(link.request, Path(link.job.script), show)
    except Shown:
        return called[0]
    return ()


@contextmanager
def unbroken() -> Iterator[None]:
    """Put signals that would end this process off until the block has ended."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    before = {}
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) not in (signal.SIG_IGN, None):
            before[number] = signal.signal(number, lambda number, frame: came.append(number))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if came:
            signal.raise_signal(came[0])


def _request(site: Site, machine: Machine, wanted: Wanted) -> Request:
    if wanted.nodes < 1:
        raise WrongCall(f"-n {wanted.nodes}: a batch job has 1 node or more")
    if wanted.walltime_minutes < 1:
        raise WrongCall(f"-t {wanted.walltime_minutes}: a batch job takes a minute or more; give minutes")
    if not 1 <= wanted.chain <= MAX_CHAIN:
        raise WrongCall(f"--chain {wanted.chain}: give a number from 1 to {MAX_CHAIN}")
    attrs = _united((*machine.attrs, *wanted.attrs))
    words = {"-q": wanted.queue, "-A": wanted.project, "--name": wanted.name}
    words |= {f"--attrs {one.partition('=')[0]}": one for one in attrs}
    words |= {f"--dependencies {one}": one for one in wanted.dependencies}
    for flag, word in words.items():
        _check_word(flag, word)
    return Request(
        name=wanted.name or wanted.workflow or "all",
        nodes=wanted.nodes,
        walltime_minutes=wanted.walltime_minutes,
        directory=site.qsubmit,
        output=site.qsubmit / "output",
        queue=wanted.queue or machine.queue,
        project=wanted.project,
        dependencies=_dependencies(site, machine, wanted),
        attrs=attrs,
        flags=(*machine.flags, *wanted.flags),
        queue_flag=machine.queue_flag,
    )


def _united(attrs: Sequence[str]) -> tuple[str, ...]:
    """Of several with one key the last."""
    return tuple({one.partition("=")[0]: one for one in attrs}.values())


def _check_word(flag: str, word: str) -> None:
    bad = sorted({character for character in word if character.isspace() or character in "'\"\\`$"})
    if bad:
        raise WrongCall(
            f"{flag}: {word!r} has {', '.join(map(repr, bad))} in it, which a script's directives cannot "
            "hold (they know no quotes); write it without"
        )


def _id_of(site: Site, machine: Machine, word: str) -> str:
    """The batch system's id of what is named by its key; other words are ids."""
    job = jobs.find_job(site, word)
    if job is None or job.system != machine.system:
        return word
    if not job.id:
        raise WrongCall(f"--dependencies {word}: {job.key} has no id ({job.state.value}); name another one")
    return job.id


def _dependencies(site: Site, machine: Machine, wanted: Wanted) -> tuple[str, ...]:
    named = [_id_of(site, machine, one) for one in wanted.dependencies]
    return tuple(dict.fromkeys([*named, *_in_turn(site, machine)]))


def _in_turn(site: Site, machine: Machine) -> tuple[str, ...]:
    """The batch jobs that a new one waits for where no queue puts them in order: on this machine itself those
    of a site with SQLite, which one launcher has at a time."""
    if machine.system != "local" or place_of(site).kind != "sqlite":
        return ()
    mine = [job for job in jobs.read_jobs(site) if job.system == "local" and job.state not in BATCH_FINAL]
    live = refresh(site, mine, os.environ, patience_s=0.0).jobs
    here = socket.gethostname()
    return tuple(
        job.id for job in live if job.state not in BATCH_FINAL and job.id and parse_id(job.id)[2] == here
    )


def _check_programs(machine: Machine, system: BatchSystem, note: Note | None = None) -> bool:
    """Whether the batch system's commands are here. Raises WrongCall if not, or tells ``note``."""
    missing = [program for program in system.programs if shutil.which(program) is None]
    if not missing:
        return True
    why = (
        f"machine {machine.name} ({machine.system}): there is no {', '.join(missing)} on PATH; load the "
        "batch system's module, go to a login node, or name another machine with --machine"
    )
    if note is None:
        raise WrongCall(why)
    note(f"note: {why}")
    return False


def _check_directory(site: Site) -> None:
    if not os.access(site.qsubmit, os.W_OK | os.X_OK):
        raise SiteError(
            f"the script directory {site.qsubmit} is not writable for you, so nothing was submitted; make it "
            f"so (chmod u+rwx {shlex.quote(str(site.qsubmit))}), or use another site with --site"
        )


def _check_limits(
    site: Site,
    machine: Machine,
    system: BatchSystem | None,
    request: Request,
    wanted: Wanted,
    note: Note,
    call: Ask,
) -> None:
    """As ``limits.check``. ``system`` is None where it cannot be asked."""
    if not wanted.check:
        return
    live: list[QueueState] | None = None
    asked = request.queue and machine.find_queue(request.queue) is None and machine.system != "local"
    if asked and system is not None:
        try:
            live = system.queues(call)
        except BatchSilent as error:
            note(f"note: {error}")
    queued = _queued(site, machine, request)
    for link in range(wanted.chain):
        more = [_job(site, machine, wanted, request, f"link{number}") for number in range(link)]
        told = limits.check(machine, request, live=live, queued=[*queued, *more])
        for line in told if link == 0 else ():
            note(f"note: {line}")


def _queued(site: Site, machine: Machine, request: Request) -> list[BatchJob]:
    """This site's batch jobs that are not at their end, where their number matters."""
    queue = machine.find_queue(request.queue)
    if queue is None or not queue.max_queued:
        return []
    now = time.time()
    known = [
        job
        for job in jobs.read_jobs(site)
        if job.machine == machine.name and job.state not in BATCH_FINAL and not jobs.is_unknown(job, now)
    ]
    if len(known) < queue.max_queued:
        return known
    known = refresh(site, known, os.environ, patience_s=0.0).jobs  # some may have begun, or ended
    return [job for job in known if job.state not in BATCH_FINAL]


def _job(site: Site, machine: Machine, wanted: Wanted, request: Request, key: str) -> BatchJob:
    return jobs.make_job(
        site,
        key,
        system=machine.system,
        machine=machine.name,
        output=f"{site.qsubmit / key}{system_of(machine.system).endings[0]}",
        nodes=request.nodes,
        walltime_minutes=request.walltime_minutes,
        job_mode=wanted.job_mode,
        workflow=wanted.workflow,
        queue=request.queue,
        project=request.project,
        dependencies=request.dependencies,
        submitted=time.time(),
    )


def _planned(
    site: Site,
    machine: Machine,
    wanted: Wanted,
    request: Request,
    keys: Sequence[str],
    link: int,
    environ: Mapping[str, str],
) -> Planned:
    key, chained = keys[link], len(keys) > 1
    first = request.dependencies if link == 0 else ()  # the others' ids are not known yet
    request = replace(request, output=site.qsubmit / key, dependencies=first)
    body = script.body_of(
        machine, request, site, key, job_mode=wanted.job_mode, workflow=wanted.workflow, chained=chained,
        environ=environ,
    )  # fmt: skip
    text = script.render(machine, request, body, templates_of(site))
    job = _job(site, machine, wanted, request, key)
    return Planned(replace(job, chain=keys[0] if chained else ""), request, body, text)


def templates_of(site: Site) -> Path:
    """Where a site has its own templates, if it has any."""
    return site.path / "templates"


def _behind(site: Site, machine: Machine, link: Planned, before: str) -> Planned:
    """The same, dependent on the batch job ``before``, whose id is known now."""
    request = replace(link.request, dependencies=(before,))
    text = script.render(machine, request, link.body, templates_of(site))
    return replace(link, job=replace(link.job, dependencies=(before,)), request=request, text=text)


def _submit(site: Site, system: BatchSystem, link: Planned, call: Ask) -> BatchJob:
    job = replace(link.job, submitted=time.time())
    try:
        replace_file(job.script, link.text, mode=0o700)
        jobs.write_job(site, job)
    except OSError as error:
        raise SiteError(
            f"{job.key} was not submitted, its files cannot be written to {site.qsubmit}: "
            f"{error.strerror or error}"
        ) from None
    try:
        found = system.submit(link.request, Path(job.script), call)
    except NasHpcError as error:
        refused = BatchState.REFUSED if not isinstance(error, BatchSilent) else BatchState.SUBMITTING
        _keep(site, replace(job, state=refused, reason=error.message, asked=time.time()), "")
        raise
    now = time.time()
    job = replace(job, id=found, state=BatchState.QUEUED, submitted=now, asked=now)
    _keep(site, job, f"{job.key} was submitted, its id is {found}, but that cannot be written down")
    return job


def _keep(site: Site, job: BatchJob, what: str) -> None:
    """Write the record; with ``what`` a failure is an error, else one is on its way already."""
    try:
        jobs.write_job(site, job)
    except OSError as error:
        if what:
            raise BatchRefused(f"{what}: {error.strerror or error}") from None
