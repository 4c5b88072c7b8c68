"""PBS Professional and OpenPBS: qsub, qstat, qdel.

qstat's JSON cannot be taken for granted. Variables of the submitting shell make it invalid (what they hold is
not escaped, numbers such as 007 are not quoted); older versions write ``"Jobs":{`` once for each of several
ids, one newer version tells of the first of them only. So what is no JSON is read by its lines, and who was
not told of is asked for alone.
"""

from __future__ import annotations

import json
import re
import shlex
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from nas_hpc.batch.pbs_states import number, part, seconds, status_of
from nas_hpc.batch.system import Answer, Ask, QueueState, Request, Status
from nas_hpc.errors import BatchRefused, BatchSilent, WrongCall
from nas_hpc.records import BatchJob
from nas_hpc.states import BATCH_FINAL, BatchState

_ID = re.compile(r"(\d+)(\[\d*\])?(?:\.([\w.-]+))?(?:@[\w.-]+)?", re.ASCII)
_UNKNOWN = re.compile(r"Unknown Job Id(?: Error)?:?\s*(\S+)?", re.IGNORECASE)
_FINISHED = re.compile(r"(\S+) Job has finished", re.IGNORECASE)
_AWAY = re.compile(
    r"cannot connect|connection (?:refused|reset|timed out)|no route to host|communication failure"
    r"|end of file|premature|errno=|server is shutting down|timed? ?out",
    re.IGNORECASE,
)
_TOLD = re.compile(r'^(?P<indent>[ \t]*)"(?P<id>\d[^"\s]*)"\s*:\s*\{\s*$', re.MULTILINE)
_LOOKS_S = (0.2, 0.5, 1.0, 2.0, 0.0)
"""Pauses after the looks at what qdel was to end."""


class Pbs:
    """The commands of PBS. See ``BatchSystem``."""

    name = "pbs"
    programs = ("qsub", "qstat", "qdel")
    endings = (".output",)

    def directives(self, request: Request) -> list[str]:
        """One option a line. What cannot stand there is for the command line."""
        return [f"#PBS {option} {value}".rstrip() for option, value in _options(request) if not _odd(value)]

    def submit(self, request: Request, script: Path, ask: Ask) -> str:
        """Its id, with the server's name behind a dot."""
        argv = submit_argv(request, script)
        answer = ask(argv)
        if answer.code != 0:
            said = answer.said or f"exit code {answer.code}, and no word"
            if _AWAY.search(said):
                raise BatchSilent(f"{said}; sent: {shlex.join(argv)}")
            raise BatchRefused(f"PBS refused it: {said}; sent: {shlex.join(argv)}")
        lines = [line.strip() for line in answer.stdout.splitlines()]
        found = next((line for line in reversed(lines) if _ID.fullmatch(line)), "")
        if not found:
            raise BatchSilent(f"qsub succeeded without telling an id: {answer.said[:200] or 'nothing'}")
        return found

    def interactive_argv(self, request: Request) -> list[str]:
        """qsub -I: a shell on the first node. PBS takes no working directory and no output for it."""
        words = [word for pair in _options(request, batch=False) for word in pair if word]
        given = request.environ or {}
        variables = ["-v", ",".join(f"{name}={_quoted(given[name])}" for name in given)] if given else []
        return ["qsub", "-I", *words, *_dependency(request), *variables, *request.flags]

    def status(self, jobs: Sequence[BatchJob], ask: Ask) -> dict[str, Status]:
        """By qstat, which remembers jobs for days where the site lets it.

        A job of which it does not tell, and does not say either that it is not there, is left out.
        """
        found = {
            job.id: Status(BatchState.GONE, f"{job.id!r} is no id of a PBS job")
            for job in jobs
            if not _ID.fullmatch(job.id)
        }
        ids = [job.id for job in jobs if job.id not in found]
        if ids:
            found |= _asked(ids, ask)
        left = [id_ for id_ in ids if id_ not in found]
        for id_ in left if len(ids) > 1 else ():
            found |= _asked([id_], ask)
        if ids and not found:
            raise BatchSilent(f"qstat succeeded and told of none of {', '.join(ids)}")
        return found

    def cancel(self, ids: Sequence[str], ask: Ask) -> dict[str, str]:
        """By qdel. qstat tells what came of it."""
        refused = {id_: f"{id_!r} is no id of a PBS job" for id_ in ids if not _ID.fullmatch(id_)}
        wanted = [id_ for id_ in ids if id_ not in refused]
        if not wanted:
            return refused
        answer = ask(("qdel", *wanted))
        there: dict[str, Status] = {}
        for pause_s in _LOOKS_S:
            there = {
                id_: status
                for id_, status in _asked(wanted, ask).items()
                if status.state not in BATCH_FINAL and status.state is not BatchState.ENDING
            }
            if not there:
                break
            if answer.code != 0 and all(_of_line(answer, id_) for id_ in there):
                break  # refused: there is nothing to wait for
            time.sleep(pause_s)
        for id_, status in there.items():
            refused[id_] = _of_line(answer, id_) or f"PBS has it still ({status.state.value}): is it yours?"
        return refused

    def queues(self, ask: Ask) -> list[QueueState]:
        """By ``qstat -Q``."""
        answer = ask(("qstat", "-Q", "-f", "-F", "json"))
        if answer.code != 0:
            raise BatchSilent(f"qstat -Q: {answer.said or f'exit code {answer.code}, and no word'}")
        return parse_queues(answer.stdout)


def submit_argv(request: Request, script: Path) -> list[str]:
    """The command line that submits: what is no directive, dependencies, flags."""
    words = [word for option, value in _options(request) if _odd(value) for word in (option, value)]
    return ["qsub", *words, *_dependency(request), *_flags(request), str(script)]


def _options(request: Request, *, batch: bool = True) -> Iterator[tuple[str, str]]:
    """Options of qsub and their values. Raises WrongCall for what PBS takes for something else."""
    if request.walltime_minutes < 1:
        raise WrongCall(f"a walltime of {request.walltime_minutes} min: PBS takes none for its longest")
    chunk: list[tuple[str, str]] = []
    job: list[tuple[str, str]] = []
    for attr in request.attrs:
        name, _, value = attr.partition("=")
        if not name or not value:
            raise WrongCall(f"attribute {attr!r}: PBS wants NAME=VALUE, such as ngpus=4 or filesystems=home")
        (job if name in _OF_JOB else chunk).append((name, value))
    select = ":".join([str(request.nodes), *(f"{name}={value}" for name, value in chunk)])
    resources = [("select", select), ("walltime", _clock(request.walltime_minutes)), *job]
    if "place" not in dict(job):
        resources.insert(2, ("place", "scatter"))
    yield "-N", request.name
    if request.project:
        yield "-A", request.project
    if request.queue:
        yield request.queue_flag or "-q", request.queue
    for name, value in resources:
        if re.search(r"\s", value):
            raise WrongCall(f"attribute {name}={value!r}: PBS takes no blank in it")
        yield "-l", f"{name}={value}"
    if batch:
        yield "-j", "oe"
        yield "-o", f"{request.output}{Pbs.endings[0]}"


_OF_JOB = frozenset(
    {"place", "filesystems", "software", "nodect", "preempt_targets", "min_walltime", "max_walltime"}
)
"""Resources of the whole job; all others are asked for on each node."""


def _clock(minutes: int) -> str:
    return f"{minutes // 60:02d}:{minutes % 60:02d}:00"


def _odd(value: str) -> bool:
    """Whether qsub reads something else in a directive."""
    return re.search(r"[\s#'\"\\]", value) is not None


def _quoted(value: str) -> str:
    r"""A variable's value for ``-v``, where commas divide."""
    if '"' in value or "'" in value:
        return value.replace("\\", "\\\\").replace(",", "\\,")
    return f'"{value}"' if re.search(r"[,\s\\]", value) else value


def _dependency(request: Request) -> list[str]:
    for id_ in request.dependencies:
        if not _ID.fullmatch(id_):
            raise WrongCall(f"dependency {id_!r} is no id of a PBS job, such as 12345 or 12345.server")
    ids = ":".join(request.dependencies)
    return ["-W", f"depend=afterany:{ids}"] if ids else []


def _flags(request: Request) -> list[str]:
    if request.flags and not request.flags[0].startswith("-"):
        raise WrongCall(
            f"flags for qsub: {request.flags[0]!r} is no option, so it would be taken for the script"
        )
    return list(request.flags)


def _of_line(answer: Answer, id_: str) -> str:
    """What a command said of an id."""
    number = id_.partition(".")[0]
    lines = [line for line in answer.stderr.splitlines() if number in line]
    return " ".join(lines[0].split()) if lines else ""


def _asked(ids: Sequence[str], ask: Ask) -> dict[str, Status]:
    """What qstat says of the ids, as they are spelled here. Raises BatchSilent."""
    answer = ask(("qstat", "-x", "-f", "-F", "json", *ids))
    told = parse_jobs(answer.stdout)
    found = {}
    for id_ in ids:
        fields = next((fields for name, fields in told.items() if _same(name, id_)), None)
        if fields is not None:
            found[id_] = status_of(fields)
    errors = f"{answer.stderr}\n{'' if told else answer.stdout}"
    missing = [match[1] or (ids[0] if len(ids) == 1 else "") for match in _UNKNOWN.finditer(errors)]
    missing += [match[1] for match in _FINISHED.finditer(errors)]  # and no history of it
    for id_ in ids:
        if id_ not in found and any(_same(name, id_) for name in missing):
            found[id_] = Status(BatchState.GONE, "PBS does not know it any more")
    if answer.code != 0 and not missing:
        raise BatchSilent(f"qstat: {answer.said or f'exit code {answer.code}, and no word'}")
    return found


def _same(name: str, id_: str) -> bool:
    """Whether two spellings of an id mean one job: with its server, a part of the server's name, or none."""
    one, other = _ID.fullmatch(name.rstrip(":;,")), _ID.fullmatch(id_)
    if one is None or other is None or (one[1], one[2]) != (other[1], other[2]):
        return False
    servers = [(match[3] or "").lower().split(".") for match in (one, other)]
    return not one[3] or not other[3] or servers[0][0] == servers[1][0]


def parse_jobs(text: str) -> dict[str, dict[str, Any]]:
    """Attributes of jobs, by id, of ``qstat -f -F json``; by its lines where it is no JSON.

    Raises BatchSilent where it is neither.
    """
    if not text.strip():
        return {}
    try:
        body = json.loads(text, strict=False)
        jobs = body.get("Jobs", {})
        if all(isinstance(fields, dict) and "job_state" in fields for fields in jobs.values()):
            return dict(jobs)
    except (ValueError, AttributeError):
        pass
    found = _by_lines(text)
    if not found:
        raise BatchSilent(f"qstat gave what is no JSON of jobs: {' '.join(text.split())[:200]}")
    return found


def _by_lines(text: str) -> dict[str, dict[str, Any]]:
    """The same by lines: a job's own attributes are those indented as its name is."""
    starts = [match for match in _TOLD.finditer(text) if "Job_Name" in text[match.end() : match.end() + 200]]
    found: dict[str, dict[str, Any]] = {}
    ends = [*(match.start() for match in starts[1:]), len(text)]
    for start, end in zip(starts, ends, strict=False):
        chunk = text[start.end() : end]
        first = re.search(r'^([ \t]*)"Job_Name"', chunk, re.MULTILINE)
        if first is None:
            continue
        lines = re.finditer(rf'^{re.escape(first[1])}"(\w+)"\s*:\s*(.*?),?\s*$', chunk, re.MULTILINE)
        fields: dict[str, Any] = {}
        for line in lines:
            fields.setdefault(line[1], _value(line[2]))
        for group in ("Resource_List", "resources_used"):
            inner = re.search(rf'^[ \t]*"{group}"\s*:\s*\{{([^{{}}]*)\}}', chunk, re.MULTILINE)
            pairs = re.findall(r'"(\w+)"\s*:\s*"?([^",\n]*)', inner[1]) if inner else []
            fields[group] = dict(pairs)
        if "job_state" in fields:
            found[start["id"]] = fields
    return found


def _value(text: str) -> Any:
    try:
        return json.loads(text, strict=False)
    except ValueError:
        return text.strip('"')


def parse_queues(text: str) -> list[QueueState]:
    """Queues of ``qstat -Q -f -F json``. Raises BatchSilent for what is none."""
    try:
        queues = json.loads(text, strict=False)["Queue"]
        rows = [(str(name), dict(fields)) for name, fields in queues.items()]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise BatchSilent(f"qstat gave what is no JSON of queues: {' '.join(text.split())[:200]}") from None
    found = []
    for name, fields in rows:
        largest, smallest = part(fields, "resources_max"), part(fields, "resources_min")
        longest = seconds(largest.get("walltime"))
        found.append(
            QueueState(
                name,
                open=str(fields.get("enabled", "True")) == "True",
                min_nodes=number(smallest.get("nodect")),
                max_nodes=number(largest.get("nodect")),
                max_minutes=None if longest is None else int(longest // 60),
            )
        )
    return found
