"""Slurm: sbatch, squeue, scontrol, sacct, scancel, sinfo, salloc.

How they answer was seen with Slurm 22.05: ``squeue`` fails for one id that it does not have and says nothing
of it among several; ``scancel`` succeeds for a job that is over or never was; a directive's value is cut off
at ``#`` and split at blanks; a variable ``SBATCH_...`` of the submitting shell beats the script's directive.
"""

from __future__ import annotations

import math
import os
import re
import shlex
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from nas_hpc.batch.slurm_states import status_of
from nas_hpc.batch.system import Answer, Ask, QueueState, Request, Status
from nas_hpc.errors import BatchRefused, BatchSilent, WrongCall
from nas_hpc.records import BatchJob
from nas_hpc.states import BATCH_FINAL, BatchState
from nas_hpc.units import parse_time_left

_ID = re.compile(r"(\d+)(?:[_+]\d+)?(?:\.([A-Za-z0-9_-]+))?", re.ASCII)
"""Number, of an array or a heterogeneous job with the number of its part; behind a dot its cluster."""
_SUBMITTED = re.compile(r"(\d+)(?:;([A-Za-z0-9_-]+))?", re.ASCII)
_UNKNOWN = re.compile(r"invalid job id specified", re.IGNORECASE)
_NO_ACCOUNTING = re.compile(
    r"accounting.storage.*(?:disabled|not enabled|supported)", re.IGNORECASE | re.DOTALL
)
_AWAY = re.compile(
    r"unable to contact slurm controller|socket timed out|zero bytes were transmitted|temporarily unable"
    r"|communication connection|connection (?:refused|reset|timed out)|backup controller in standby",
    re.IGNORECASE,
)
"""What sbatch says where it is not a refusal: nobody knows whether the job was taken."""
_FIELD = re.compile(r"(?:^|\s)(\w+)=")
_ROW = re.compile(r"([^|\s]+)\|([A-Z_]+)\|(.*)")
_SHARED = frozenset(
    {"exclusive", "oversubscribe", "share", "cpus-per-task", "ntasks", "ntasks-per-node", "mincpus"}
)
"""Options that say how much of a node is wanted; without one of them it is the whole."""
_VARIABLES: Mapping[str, str] = {"time": "SBATCH_TIMELIMIT"}
_LOOKS_S = (0.1, 0.2, 0.5, 1.0, 2.0, 0.0)
"""Pauses after the looks at what scancel was to end."""


class Slurm:
    """Slurm's commands. See ``BatchSystem``."""

    name = "slurm"
    programs = ("sbatch", "squeue", "scontrol", "scancel")
    endings = (".output",)

    def directives(self, request: Request) -> list[str]:
        """One option a line. What cannot stand there (blanks, quotes, ``#``) is for the command line."""
        return [f"#SBATCH {word}" for word in _options(request) if not _is_for_line(word)]

    def submit(self, request: Request, script: Path, ask: Ask) -> str:
        """Its id; of another cluster (``--clusters`` among the flags) ``ID.CLUSTER``."""
        argv = submit_argv(request, script, os.environ)
        answer = ask(argv)
        if answer.code != 0:
            said = answer.said or f"exit code {answer.code}, and no word"
            if _AWAY.search(said):
                raise BatchSilent(f"{said}; sent: {shlex.join(argv)}")
            raise BatchRefused(f"Slurm refused it: {said}; sent: {shlex.join(argv)}")
        matches = filter(None, (_SUBMITTED.fullmatch(line.strip()) for line in answer.stdout.splitlines()))
        match = next(matches, None)
        if match is None:
            raise BatchSilent(f"sbatch succeeded without telling an id: {answer.said[:200] or 'nothing'}")
        return f"{match[1]}.{match[2]}" if match[2] else match[1]

    def interactive_argv(self, request: Request) -> list[str]:
        """salloc, which opens the user's shell; its variables are this command's."""
        words = [word for word in _options(request) if not word.startswith(("--output=", "--open-mode="))]
        environ = [f"{name}={value}" for name, value in (request.environ or {}).items()]
        return [
            *(["env", *environ] if environ else []),
            *("salloc", *words, *_dependency(request), *_flags(request)),
        ]

    def status(self, jobs: Sequence[BatchJob], ask: Ask) -> dict[str, Status]:
        """By squeue; then scontrol, which knows exit codes; then sacct, for what both have forgotten.

        A job is left out of the answer if squeue has forgotten it and the accounting cannot be asked now.
        """
        found = {
            job.id: Status(BatchState.GONE, f"{job.id!r} is no id of a Slurm job")
            for job in jobs
            if not _ID.fullmatch(job.id)
        }
        good = {job.id: job for job in jobs if job.id not in found}
        listed = _listed(good, ask)
        for id_, job in good.items():
            status = listed.get(id_)
            if status is None:
                status = _shown(id_, ask) or _accounted(job, ask)
            elif status.state in BATCH_FINAL:
                status = _shown(id_, ask) or status
            if status is not None:
                found[id_] = status
        return found

    def cancel(self, ids: Sequence[str], ask: Ask) -> dict[str, str]:
        """By scancel. squeue tells what came of it."""
        refused = {id_: f"{id_!r} is no id of a Slurm job" for id_ in ids if not _ID.fullmatch(id_)}
        wanted = [id_ for id_ in ids if id_ not in refused]
        said: list[str] = []
        for cluster, some in _by_cluster(wanted).items():
            answer = ask(("scancel", *_on(cluster), *(_number(id_) for id_ in some)))
            if answer.code != 0 and _AWAY.search(answer.said):
                raise BatchSilent(answer.said)
            said += answer.stderr.splitlines()
        there: dict[str, Status] = {}
        for pause_s in _LOOKS_S if wanted else ():
            there = {
                id_: status
                for id_, status in _listed(wanted, ask).items()
                if status.state not in BATCH_FINAL and status.state is not BatchState.ENDING
            }
            if not there:
                break
            time.sleep(pause_s)
        for id_, status in there.items():
            words = [" ".join(line.split()) for line in said if _number(id_) in line]
            refused[id_] = words[0] if words else f"Slurm has it still ({status.state.value}): is it yours?"
        return refused

    def queues(self, ask: Ask) -> list[QueueState]:
        """Partitions, and where there is accounting QOS, which a machine may name instead."""
        answer = ask(("sinfo", "-h", "-o", "%R|%a|%l|%s|%D"))
        if answer.code != 0:
            raise BatchSilent(f"sinfo: {answer.said or f'exit code {answer.code}, and no word'}")
        found = parse_partitions(answer.stdout)
        with suppress(WrongCall, BatchSilent):
            asked = ask(("sacctmgr", "-n", "-P", "show", "qos", "format=Name,MaxWall,MaxTRES"))
            names = {queue.name for queue in found}
            if asked.code == 0:
                found += [queue for queue in parse_qos(asked.stdout) if queue.name not in names]
        return found


def submit_argv(request: Request, script: Path, environ: Mapping[str, str]) -> list[str]:
    """The command line that submits. The options that are no directives stand on it, and those that a
    variable of ``environ`` would beat in the script.
    """
    words = [word for word in _options(request) if _is_for_line(word) or _variable(word) in environ]
    return ["sbatch", "--parsable", *words, *_dependency(request), *_flags(request), str(script)]


def _options(request: Request) -> list[str]:
    """Long options of the request, a word each. Raises WrongCall for what Slurm takes for something else."""
    if request.walltime_minutes < 1:
        raise WrongCall(f"a walltime of {request.walltime_minutes} min: Slurm takes 0 for no limit")
    queue = f"--{request.queue_flag.lstrip('-') or 'partition'}={request.queue}" if request.queue else ""
    attrs = [f"--{attr.lstrip('-')}" for attr in request.attrs]
    whole = not any(_name(word) in _SHARED for word in [*attrs, *request.flags])
    return [
        f"--job-name={request.name}",
        f"--nodes={request.nodes}",
        f"--time={request.walltime_minutes}",
        *([queue] if queue else []),
        *([f"--account={request.project}"] if request.project else []),
        *(["--exclusive"] if whole else []),
        "--no-kill",  # a node that is lost costs what ran there
        *attrs,
        f"--chdir={request.directory}",
        f"--output={_pattern(request.output)}",
        "--open-mode=append",  # one that is queued again keeps what it said before
    ]


def _pattern(output: Path) -> str:
    """The path of the output as Slurm reads it, where % begins a pattern."""
    return f"{output}{Slurm.endings[0]}".replace("%", "%%")


def _is_for_line(word: str) -> bool:
    return re.search(r"[\s#'\"\\]", word) is not None


def _name(word: str) -> str:
    return word.lstrip("-").partition("=")[0]


def _variable(word: str) -> str:
    name = _name(word)
    return _VARIABLES.get(name, f"SBATCH_{name.upper().replace('-', '_')}")


def _dependency(request: Request) -> list[str]:
    for id_ in request.dependencies:
        if not _ID.fullmatch(id_):
            raise WrongCall(
                f"dependency {id_!r} is no id of a Slurm job, which are whole numbers, such as 12345"
            )
    ids = ":".join(_number(id_) for id_ in request.dependencies)
    return [f"--dependency=afterany:{ids}"] if ids else []


def _flags(request: Request) -> list[str]:
    if request.flags and not request.flags[0].startswith("-"):
        raise WrongCall(
            f"flags for Slurm: {request.flags[0]!r} is no option, so it would be taken for the script"
        )
    return list(request.flags)


def _number(id_: str) -> str:
    return id_.partition(".")[0]


def _on(cluster: str) -> list[str]:
    return ["-M", cluster] if cluster else []


def _by_cluster(ids: Iterable[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for id_ in ids:
        found.setdefault(id_.partition(".")[2], []).append(id_)
    return found


def _listed(ids: Iterable[str], ask: Ask) -> dict[str, Status]:
    """What squeue lists of the jobs. Raises BatchSilent."""
    found = {}
    for cluster, some in _by_cluster(ids).items():
        numbers = ",".join(_number(id_) for id_ in some)
        answer = ask(("squeue", "-h", *_on(cluster), "-t", "all", "-o", "%i|%T|%r", "-j", numbers))
        if answer.code != 0:
            if _UNKNOWN.search(answer.stderr):
                continue
            raise BatchSilent(f"squeue: {answer.said or f'exit code {answer.code}, and no word'}")
        rows = parse_rows(answer.stdout)
        for id_ in some:
            status = _of_parts([one for number, one in rows if _is_of(number, _number(id_))])
            if status is not None:
                found[id_] = status
    return found


def _is_of(number: str, wanted: str) -> bool:
    """Whether a row's id is that of the job, or of one of its parts (``12_3``, ``12_[4-9]``, ``12+0``)."""
    return number == wanted or re.match(rf"{re.escape(wanted)}[_+]", number) is not None


def _of_parts(parts: Sequence[Status]) -> Status | None:
    """The status of a job by those of its parts: it is over when all are."""
    alive = [status for status in parts if status.state not in BATCH_FINAL]
    return next(iter([*alive, *parts]), None)


def parse_rows(text: str) -> list[tuple[str, Status]]:
    """Id and status of each row of ``squeue -o '%i|%T|%r'``. The reason, which may hold anything, is last.

    Raises BatchSilent for what is no such row.
    """
    rows = []
    for line in text.splitlines():
        if not line.strip() or line.startswith("CLUSTER: "):
            continue
        match = _ROW.fullmatch(line.strip())
        status = status_of(match[2], match[3]) if match else None
        if match is None or status is None:
            raise BatchSilent(f"squeue tells what nobody knows: {' '.join(line.split())[:200]!r}")
        rows.append((match[1], status))
    return rows


def _shown(id_: str, ask: Ask) -> Status | None:
    """What ``scontrol show job`` says; None if it does not know the job. Raises BatchSilent."""
    answer = ask(("scontrol", "-o", *_on(id_.partition(".")[2]), "show", "job", _number(id_)))
    if answer.code != 0:
        if _UNKNOWN.search(answer.said):
            return None
        raise BatchSilent(f"scontrol: {answer.said or f'exit code {answer.code}, and no word'}")
    lines = [line for line in answer.stdout.splitlines() if line.strip()]
    if not lines:
        raise BatchSilent(f"scontrol succeeded and told nothing of job {id_}")
    return _of_parts([parse_job(line) for line in lines])


def parse_job(line: str) -> Status:
    """Status by a line of ``scontrol -o show job``. Raises BatchSilent for what is none."""
    fields = parse_fields(line)
    status = status_of(fields.get("JobState", ""), fields.get("Reason", ""), fields.get("ExitCode", ""))
    if "JobId" not in fields or status is None:
        raise BatchSilent(f"scontrol tells what nobody knows: {' '.join(line.split())[:200]!r}")
    return status


def parse_fields(line: str) -> dict[str, str]:
    """``Name=value`` pairs of a line, the first of each name; values may hold blanks."""
    found: dict[str, str] = {}
    starts = list(_FIELD.finditer(line))
    ends = [*(match.start() for match in starts[1:]), len(line)]
    for start, end in zip(starts, ends, strict=False):
        found.setdefault(start[1], line[start.end() : end].strip())
    return found


def _accounted(job: BatchJob, ask: Ask) -> Status | None:
    """How it ended by the accounting; GONE where there is none, None if it cannot be asked now."""
    gone = Status(BatchState.GONE, "Slurm does not know it any more")
    since = (
        time.strftime("%Y-%m-%d", time.localtime(job.submitted - 86400)) if job.submitted else "now-30days"
    )
    cluster = job.id.partition(".")[2]
    try:
        answer: Answer = ask(
            ("sacct", "-n", "-P", "-X", *_on(cluster), "-S", since, "-o", "JobID,State,ExitCode", "-j")
            + (_number(job.id),)
        )
    except WrongCall:  # there is no sacct
        return gone
    except BatchSilent:
        return None
    if answer.code != 0:
        return gone if _NO_ACCOUNTING.search(answer.said) else None
    rows = [line.split("|") for line in answer.stdout.splitlines() if line.strip()]
    if not rows:
        return gone
    parts = [status_of(row[1], "", row[2]) if len(row) == 3 else None for row in rows]
    return _of_parts([part for part in parts if part is not None])


def parse_partitions(text: str) -> list[QueueState]:
    """Partitions of ``sinfo -o '%R|%a|%l|%s|%D'``: name, state, time limit, sizes of jobs, number of nodes.

    Raises BatchSilent for what is no such row.
    """
    found: dict[str, QueueState] = {}
    for line in filter(str.strip, text.splitlines()):
        fields = line.strip().split("|")
        sizes = re.fullmatch(r"(\d+)(?:-(\d+|infinite))?", fields[3] if len(fields) == 5 else "")
        if sizes is None or not fields[4].isdecimal():
            raise BatchSilent(f"sinfo tells what nobody knows: {' '.join(line.split())[:200]!r}")
        name, state, limit, _, nodes = fields
        before = found.get(name)
        there = int(nodes) + (before.max_nodes or 0 if before else 0)
        largest = (
            int(sizes[2]) if sizes[2] and sizes[2] != "infinite" else int(sizes[1]) if not sizes[2] else 0
        )
        found[name] = QueueState(
            name,
            open=state not in ("drain", "inact"),
            min_nodes=max(1, int(sizes[1])) if sizes[2] else 1,
            max_nodes=min(largest, there) if largest else there,
            max_minutes=minutes(limit),
        )
    return list(found.values())


def parse_qos(text: str) -> list[QueueState]:
    """QOS of ``sacctmgr -P show qos format=Name,MaxWall,MaxTRES``; a row that is none is passed over."""
    rows = [line.strip().split("|") for line in text.splitlines()]
    return [
        QueueState(
            row[0],
            max_nodes=int(nodes[1]) if (nodes := re.search(r"(?:^|,)node=(\d+)", row[2])) else None,
            max_minutes=minutes(row[1]),
        )
        for row in rows
        if len(row) == 3 and row[0]
    ]


def minutes(text: str) -> int | None:
    """Whole minutes of a time limit; None for none."""
    try:
        seconds = parse_time_left(text)
    except WrongCall:
        return None
    return int(seconds // 60) if math.isfinite(seconds) else None
