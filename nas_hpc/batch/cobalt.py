"""Cobalt, as on Theta: qsub, qstat, qdel and the log that it writes beside a batch job's output.

What its commands print is that of Cobalt 1.0.33; how they fail is told in docs/design.md. It has no history:
a batch job that has ended is not in qstat any more, and its log (``.cobaltlog``) alone tells how it ended.
"""

from __future__ import annotations

import ast
import getopt
import re
import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from nas_hpc.batch.system import Answer, Ask, QueueState, Request, Status
from nas_hpc.errors import BatchRefused, BatchSilent, WrongCall
from nas_hpc.records import BatchJob
from nas_hpc.states import BatchState

COLUMNS = ("JobID", "State")
"""Of qstat. No value of them holds a blank (those of StartTime, SubmitTime, attrs, Args and Envs do)."""

STATES: Mapping[str, BatchState] = {
    "queued": BatchState.QUEUED,
    "starting": BatchState.RUNNING,
    "running": BatchState.RUNNING,
    "killing": BatchState.ENDING,
    "exiting": BatchState.ENDING,
    "done": BatchState.ENDING,
    "user_hold": BatchState.HELD,
    "dep_hold": BatchState.HELD,
    "maxrun_hold": BatchState.HELD,
    "dep_fail": BatchState.HELD,
    "admin_hold": BatchState.HELD,
    "preempting": BatchState.RUNNING,
    "preempted": BatchState.QUEUED,
    # as short_state has them
    "Q": BatchState.QUEUED,
    "R": BatchState.RUNNING,
    "K": BatchState.ENDING,
    "E": BatchState.ENDING,
    "H": BatchState.HELD,
    "P": BatchState.QUEUED,
}
"""A preempted batch job is started again by Cobalt; its short state does not say whether it runs still."""

REASONS: Mapping[str, str] = {
    "starting": "it is being started",
    "killing": "it was deleted, or its walltime is over; its processes are being ended",
    "user_hold": "it is held by its user: qrls lets it go",
    "dep_hold": "it waits for the batch jobs that it depends on",
    "dep_fail": "a batch job that it depends on did not end with exit code 0, so it never starts: kill it",
    "maxrun_hold": "its user has as many batch jobs running as the queue allows",
    "admin_hold": "it is held by an administrator",
    "preempting": "it makes room for another batch job",
    "preempted": "it made room for another batch job and waits to be started again",
}

_CLOSED = frozenset({"draining", "dead"})
"""States of queues that take no batch job; a stopped one takes them and starts none."""
_NOISE = re.compile(r"No handlers could be found for logger .*")
_FAULT = re.compile(r"""<Fault -?\d+: ('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")>""", re.DOTALL)
_RULE = re.compile(r"=+")
_DIGITS = re.compile(r"[0-9]+")
_TIME = re.compile(r"(?:([0-9]+):)?([0-9]+):([0-9]+):([0-9]+)")
_COMPLETED = re.compile(r"task completed normally with an exit code of (-?[0-9]+|None)")
_DELETED = re.compile(r"user delete requested[^\n]*")
_OVER = "maximum execution time exceeded"
_SHORT_OPTIONS = "A:q:n:t:IO:o:e:i:hu:M:d"
_LONG_OPTIONS = [
    "project=", "queue=", "nodecount=", "time=", "mode=", "interactive", "outputprefix=", "output=", "error=",
    "debuglog=", "inputfile=", "cwd=", "env=", "attrs=", "dependencies=", "jobname=", "held", "umask=",
    "notify=", "run_users=", "run_project", "preemptable", "proccount=", "debug",
]  # fmt: skip
_LOOKS = 3
"""At the batch jobs that qdel says it deleted and that qstat has still, a second apart."""


class Cobalt:
    """Cobalt's commands. See ``BatchSystem``."""

    name = "cobalt"
    programs = ("qsub", "qstat", "qdel")
    endings = (".output", ".error", ".cobaltlog")

    def directives(self, request: Request) -> list[str]:
        """One option a line: Cobalt splits these lines at blanks, whatever quotes there are."""
        return [f"#COBALT {option} {value}" for option, value in _wanted(request)]

    def submit(self, request: Request, script: Path, ask: Ask) -> str:
        """Give it the script. Paths, which may hold blanks, go by the command line."""
        answer = ask(submit_argv(request, script))
        job = submitted_id(answer)
        sent = f"sent: {shlex.join(answer.argv)}, with {'; '.join(self.directives(request))}"
        if job and answer.code == 0:
            return job
        if job or answer.code == 0:
            raise BatchSilent(
                f"it is not known whether Cobalt took it: exit code {answer.code}, "
                f"{words(answer) or 'no word'}; look at qstat -u $USER; {sent}"
            )
        raise BatchRefused(f"Cobalt refused it: {words(answer) or f'exit code {answer.code}'}; {sent}")

    def interactive_argv(self, request: Request) -> list[str]:
        """qsub that waits for the nodes and then runs ``$SHELL`` on the head node."""
        argv = ["qsub", "-I", *(word for pair in _wanted(request) for word in pair), *_dependencies(request)]
        if request.environ:
            argv += ["--env", environment_argument(request.environ)]
        return [*argv, *_flags(request)]

    def status(self, jobs: Sequence[BatchJob], ask: Ask) -> dict[str, Status]:
        """By qstat, and by the logs of those that it does not know."""
        ids = [job.id for job in jobs if _DIGITS.fullmatch(job.id)]
        states = _ask_states(ids, ask) if ids else {}
        return {
            job.id: Status(STATES[state], REASONS.get(state, ""))
            if (state := states.get(job.id)) is not None
            else settle(job)
            for job in jobs
        }

    def cancel(self, ids: Sequence[str], ask: Ask) -> dict[str, str]:
        """By qdel. It says nothing of batch jobs that it has not or that are another user's: qstat tells."""
        refused = {
            id_: f"{id_!r} is no id of Cobalt, which are whole numbers" for id_ in ids if not _is_id(id_)
        }
        wanted = [id_ for id_ in ids if _is_id(id_)]
        if not wanted:
            return refused
        answer = ask(("qdel", *wanted))
        if answer.code != 0:
            raise BatchSilent(f"qdel: {words(answer) or f'exit code {answer.code}'}")
        deleted = _deleted(answer)
        for look in range(_LOOKS):
            states = _ask_states(wanted, ask)
            there = {id_: state for id_, state in states.items() if STATES[state] is not BatchState.ENDING}
            if not there.keys() & deleted:
                break
            if look + 1 < _LOOKS:
                time.sleep(1.0)
        for id_, state in there.items():
            why = (
                "though qdel said that it deleted it"
                if id_ in deleted
                else "qdel did not delete it: is it yours?"
            )
            refused[id_] = f"Cobalt has it still ({state}), {why}"
        return refused

    def queues(self, ask: Ask) -> list[QueueState]:
        """By ``qstat -Q``: names, states and times. It does not tell how many nodes a queue gives."""
        answer = ask(("qstat", "-Q"))
        if answer.code != 0:
            raise BatchSilent(f"qstat -Q: {words(answer) or f'exit code {answer.code}, and no word'}")
        return parse_queues(answer.stdout)


def submit_argv(request: Request, script: Path) -> list[str]:
    """The command line that submits; the rest is in the script's directives."""
    return [
        "qsub", "--cwd", str(request.directory), "-O", str(request.output),
        *_dependencies(request), *_flags(request), str(script),
    ]  # fmt: skip


def _wanted(request: Request) -> Iterator[tuple[str, str]]:
    """Options of the allocation that are asked for, and their values.

    Raises WrongCall for a value that Cobalt would read as another.
    """
    if request.walltime_minutes < 1:
        raise WrongCall(
            f"a walltime of {request.walltime_minutes} min: Cobalt takes 0 for the longest there is"
        )
    pairs = [
        ("-A", "project", request.project),
        ("-n", "number of nodes", str(request.nodes)),
        (request.queue_flag or "-q", "queue", request.queue),
        ("-t", "walltime", str(request.walltime_minutes)),
        ("--attrs", "attributes", ":".join(request.attrs)),
    ]
    for option, what, value in pairs:
        if any(character.isspace() for character in value):
            raise WrongCall(
                f"{what} {value!r} holds a blank: Cobalt splits the lines of a script at blanks and knows no "
                f"quotes there, so {option} must be one word"
            )
        if value:
            yield option, value


def _dependencies(request: Request) -> list[str]:
    for id_ in request.dependencies:
        if not _is_id(id_):
            raise WrongCall(f"dependency {id_!r} is no id of Cobalt, which are whole numbers, such as 12345")
    return ["--dependencies", ":".join(request.dependencies)] if request.dependencies else []


def _flags(request: Request) -> list[str]:
    """More words for qsub. Its options end at the first word that is none, which it takes for the script."""
    try:
        options, rest = getopt.getopt(list(request.flags), _SHORT_OPTIONS, _LONG_OPTIONS)
    except getopt.GetoptError:
        return list(request.flags)  # qsub of this site may know more, or says what is wrong
    if rest:
        raise WrongCall(f"flags for qsub: {rest[0]!r} is no option, so Cobalt would take it for the script")
    if request.attrs and any(option == "--attrs" for option, _ in options):
        raise WrongCall(
            f"--attrs is both among the flags for qsub and asked for as {':'.join(request.attrs)}: Cobalt "
            "takes one --attrs, so write all in one, divided by colons"
        )
    return list(request.flags)


def environment_argument(environ: Mapping[str, str]) -> str:
    r"""Variables as ``--env`` takes them: ``A=1:B=2``, with ``\:`` and ``\=`` in values."""
    parts = []
    for name, value in environ.items():
        if value.endswith("\\") or re.search(r"\\[:=]", value):
            raise WrongCall(
                f"{name}={value}: Cobalt's --env cannot hold a backslash before : or =, or at the end"
            )
        escaped = re.sub("([:=])", r"\\\1", value)
        parts.append(f"{name}={escaped}")
    return ":".join(parts)


def submitted_id(answer: Answer) -> str:
    """The id that qsub printed: the last line that is a whole number; empty if there is none."""
    lines = [line.strip() for line in answer.stdout.splitlines()]
    return next((line for line in reversed(lines) if _is_id(line)), "")


def words(answer: Answer) -> str:
    """What a command complained of, in one line: faults unwrapped, without noise and usage."""
    text = answer.stderr if _denoised(answer.stderr) else answer.stdout
    lines = _denoised(text)
    errors = [number for number, line in enumerate(lines) if re.match(r"(\S+: )?error: ", line)]
    if errors and any(re.match(r"\s*usage:", line, re.IGNORECASE) for line in lines):
        lines = lines[errors[0] :]
    return " ".join(_FAULT.sub(lambda fault: _literal(fault[1]), "\n".join(lines)).split())


def _denoised(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.strip() and not _NOISE.fullmatch(line.strip())]


def _literal(quoted: str) -> str:
    try:
        return str(ast.literal_eval(quoted.replace("\n", "\\n")))
    except (ValueError, SyntaxError):
        return quoted[1:-1]


def _ask_states(ids: Sequence[str], ask: Ask) -> dict[str, str]:
    """State as qstat calls it, by id, of those that it knows. Raises BatchSilent."""
    answer = ask(("qstat", "--header", ":".join(COLUMNS), *ids))
    if answer.code == 1 and not answer.stdout.strip() and not answer.stderr.strip():
        return {}
    if answer.code != 0:
        raise BatchSilent(f"qstat: {words(answer) or f'exit code {answer.code}, and no word'}")
    states = {}
    for row in parse_table(answer.stdout, COLUMNS):
        id_, state = row["JobID"], row["State"]
        if not _is_id(id_) or state not in STATES:
            raise BatchSilent(f"qstat tells what nobody knows: batch job {id_!r} in state {state!r}")
        states[id_] = state
    if not states.keys() & set(ids):
        raise BatchSilent(f"qstat succeeded and told of none of {', '.join(ids)}")
    return states


def parse_table(text: str, needed: Sequence[str]) -> list[dict[str, str]]:
    """Rows of a table of Cobalt by their column names: header, a rule of ``=``, rows, in columns as wide as
    their widest value and two blanks apart. Cut at the header's positions, so that values may hold blanks.

    Raises BatchSilent where there is no such table, it lacks a needed column, or a row was cut off.
    """
    lines = text.splitlines()
    rule = next((n for n, line in enumerate(lines) if n and _RULE.fullmatch(line.strip())), 0)
    header = lines[rule - 1] if rule else ""
    columns = [(match[0], match.start()) for match in re.finditer(r"\S+", header)]
    names = [name for name, _ in columns]
    if not rule or any(name not in names for name in needed):
        said = " ".join(text.split())[:200]
        raise BatchSilent(f"qstat gave no table of {', '.join(needed)}: {said or 'nothing'}")
    ends = [start for _, start in columns[1:]] + [None]
    rows = []
    for line in lines[rule + 1 :]:
        if not line.strip():
            continue
        row = {name: line[start:end].strip() for (name, start), end in zip(columns, ends, strict=True)}
        if any(line[start - 2 : start].strip() for _, start in columns[1:]) or not all(
            row[n] for n in needed
        ):
            raise BatchSilent(
                f"a row of qstat does not fit its header {' '.join(names)}: {line.strip()[:200]}"
            )
        rows.append(row)
    return rows


def parse_queues(text: str) -> list[QueueState]:
    """Queues of ``qstat -Q``. Raises BatchSilent."""
    return [
        QueueState(
            name=row["Name"],
            open=row["State"].lower() not in _CLOSED,
            max_minutes=minutes(row.get("MaxTime", "")),
        )
        for row in parse_table(text, ("Name", "State"))
    ]


def seconds(text: str) -> int | None:
    """A time of qstat, ``HH:MM:SS`` or ``DD:HH:MM:SS``; None for what is none (``N/A``, ``None``, ``-``)."""
    match = _TIME.fullmatch(text.strip())
    if match is None:
        return None
    days, hours, minutes_, seconds_ = (int(part or 0) for part in match.groups())
    return ((days * 24 + hours) * 60 + minutes_) * 60 + seconds_


def minutes(text: str) -> int | None:
    """Whole minutes of a time of qstat. See ``seconds``."""
    whole = seconds(text)
    return None if whole is None else whole // 60


def log_path(job: BatchJob) -> Path:
    """Where Cobalt logs what happens to the batch job: beside its output."""
    return Path(job.output.removesuffix(Cobalt.endings[0]) + Cobalt.endings[2])


def settle(job: BatchJob) -> Status:
    """How a batch job ended that qstat does not know, by its log; GONE while that does not tell.

    The log may be seen later than the end: it is written on another host of a shared file system.
    """
    path = log_path(job)
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        return Status(
            BatchState.GONE, f"qstat does not know it, and {path} cannot be read ({error.strerror})"
        )
    found = parse_log(text)
    return found or Status(BatchState.GONE, f"qstat does not know it, and {path} does not tell how it ended")


def parse_log(text: str) -> Status | None:
    """How the batch job ended by a ``.cobaltlog``; None: it does not tell.

    What comes first counts: the exit code of a batch job whose walltime was over is that of its killing.
    """
    completed = _COMPLETED.search(text)
    code = int(completed[1]) if completed and completed[1] != "None" else None
    deleted = _DELETED.search(text)
    over = text.find(_OVER)
    found = []
    if over >= 0:
        found.append((over, Status(BatchState.TIMEOUT, _OVER, code)))
    if deleted:
        found.append((deleted.start(), Status(BatchState.CANCELLED, deleted[0].strip(), code)))
    if completed:
        found.append((completed.start(), Status(BatchState.ENDED, _of_code(code), code)))
    return min(found, key=lambda one: one[0])[1] if found else None


def _of_code(code: int | None) -> str:
    if code is None:
        return "Cobalt does not know its exit code"
    return f"killed by signal {code - 128}" if 128 < code < 160 else ""


def _deleted(answer: Answer) -> set[str]:
    """Ids in qdel's table of those that it deleted."""
    first = (line.split()[0] for line in f"{answer.stdout}\n{answer.stderr}".splitlines() if line.strip())
    return {word for word in first if _is_id(word)}


def _is_id(text: str) -> bool:
    return _DIGITS.fullmatch(text) is not None
