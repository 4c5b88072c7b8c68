"""When the allocation ends: what Cobalt, PBS and Slurm say, in a variable or when asked.

Nothing here raises: an end that cannot be learnt is unknown (0), and a line says so. It is never taken for
"no end" silently.
"""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

from nas_hpc.errors import WrongCall
from nas_hpc.resources.topology import Run
from nas_hpc.units import parse_duration, parse_time_left

ASK_TIMEOUT_S = 10.0
"""How long a scheduler may take to answer; a busy one takes seconds, a broken one for ever."""
START_VARIABLE, WALLTIME_VARIABLE = "NAS_HPC_BATCH_START", "NAS_HPC_BATCH_WALLTIME"
"""A batch script may say when it began (``date +%s``) and how long it was given (01:00:00)."""
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_STIME = re.compile(r'"stime"\s*:\s*"([^"]+)"')
_WALLTIME = re.compile(r'"Resource_List"\s*:\s*\{[^{}]*"walltime"\s*:\s*"([^"]+)"')
_CTIME = re.compile(r"\w{3}\s+(\w{3})\s+(\d+)\s+(\d+):(\d+):(\d+)\s+(\d{4})")
_LEFT = re.compile(r"(?:\d+:)?\d+:[0-5]\d:[0-5]\d")
_ISO = re.compile(r"(\d{4})-(\d\d)-(\d\d)T(\d\d):(\d\d):(\d\d)")


@dataclass(frozen=True, slots=True)
class End:
    """UTC seconds since the epoch, 0 if unknown or never; and what is to be said of it ("": nothing)."""

    time: float = 0.0
    note: str = ""


def of_variable(environ: Mapping[str, str], name: str) -> End:
    """The epoch seconds that a batch system put into a variable; nothing if it has not."""
    text = environ.get(name, "").strip()
    if not text:
        return End()
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < 1e11:
        return End(note=f"{name}={text!r} is no time in seconds since 1970")
    return End(value)


def of_cobalt(environ: Mapping[str, str], job: str, run: Run, now: float) -> End:
    """By variable, else by qstat: an interactive job (qsub -I) has no COBALT_ENDTIME."""
    told = of_variable(environ, "COBALT_ENDTIME")
    if told.time:
        return told
    output = run(("qstat", "--header", "JobID:TimeRemaining", job), ASK_TIMEOUT_S)
    for words in map(str.split, (output or "").splitlines()):
        if len(words) == 2 and words[0] == job and _LEFT.fullmatch(words[1]):  # else N/A
            with suppress(WrongCall):
                return End(now + parse_time_left(words[1]))
    asked = "qstat does not answer" if output is None else "qstat does not tell the time that remains"
    return End(note=f"when Cobalt job {job} ends is unknown: {told.note or 'no COBALT_ENDTIME'}; {asked}")


def of_slurm(environ: Mapping[str, str], job: str, run: Run, now: float) -> End:
    """By variable (Slurm 23.02 and later), else by squeue, else by scontrol."""
    told = of_variable(environ, "SLURM_JOB_END_TIME")
    if told.time:
        return told
    answers = []
    # Times come as the epoch where SLURM_TIME_FORMAT is known, else in the local time zone.
    for argv in (("squeue", "-h", "-j", job, "-o", "%e %L"), ("scontrol", "-o", "show", "job", job)):
        output = run(("env", "SLURM_TIME_FORMAT=%s", *argv), ASK_TIMEOUT_S)
        if output is None:
            continue
        answers.append(f"{argv[0]} says {' '.join(output.split())[:60]!r}")
        found = _slurm_answer(output, now)
        if found is not None:
            return End() if found == math.inf else End(found)
    said = "; ".join([told.note, *answers] if told.note else answers)
    return End(note=f"when Slurm job {job} ends is unknown: {said or 'squeue and scontrol do not answer'}")


def _slurm_answer(output: str, now: float) -> float | None:
    """The end in an answer of squeue (end and time left) or scontrol; infinity: none; None: not told."""
    named = re.search(r"\bEndTime=(\S+)", output)
    words = [named[1]] if named else output.split()[:2]
    if not words:
        return None
    end = _slurm_time(words[0])
    if end is not None:
        return end
    try:
        return now + parse_time_left(words[1]) if len(words) == 2 else None
    except WrongCall:  # INVALID, NOT_SET
        return None


def _slurm_time(text: str) -> float | None:
    if text.isdigit() and int(text) > 0:
        return float(text)
    match = _ISO.fullmatch(text)
    return _local(*map(int, match.groups())) if match else None


def of_pbs(environ: Mapping[str, str], job: str, run: Run, node_file: str) -> End:
    """By qstat, else by the script's start and walltime where they are known."""
    output = run(("qstat", "-f", "-F", "json", job), ASK_TIMEOUT_S)
    found = _pbs_answer(output) if output is not None else None
    if found is not None:
        return End(found)
    asked = "qstat does not answer" if output is None else "qstat does not tell its start and walltime"
    counted = of_script(environ, node_file)
    if counted.time:
        return End(counted.time, f"{asked}: PBS job {job} ends by its walltime")
    return End(note=f"when PBS job {job} ends is unknown: {'; '.join(filter(None, (asked, counted.note)))}")


def _pbs_answer(output: str) -> float | None:
    """Start plus walltime. qstat's JSON is invalid for some environments of users: then by the text."""
    try:
        [job] = json.loads(output, strict=False)["Jobs"].values()
        stime, walltime = str(job["stime"]), str(job["Resource_List"]["walltime"])
    except (ValueError, KeyError, TypeError, AttributeError):
        start, length = _STIME.search(output), _WALLTIME.search(output)
        if start is None or length is None:
            return None
        stime, walltime = start[1], length[1]
    match = _CTIME.fullmatch(stime.strip())
    if match is None or match[1] not in _MONTHS:
        return None
    month, day, hour, minute, second, year = match.groups()
    began = _local(int(year), _MONTHS.index(month) + 1, int(day), int(hour), int(minute), int(second))
    try:
        return None if began is None else began + parse_duration(walltime)
    except WrongCall:
        return None


def of_script(environ: Mapping[str, str], node_file: str) -> End:
    """Start and walltime as a batch script says them; PBS_WALLTIME (Torque) counts, too, and the batch
    system writes the node file when it starts the script.
    """
    text = environ.get(WALLTIME_VARIABLE) or environ.get("PBS_WALLTIME") or ""
    if not text:
        return End()
    try:
        length = parse_duration(text)
    except WrongCall as error:
        return End(note=error.message)
    start = of_variable(environ, START_VARIABLE)
    if start.time or start.note:
        return End(start.time + length) if start.time else start
    try:
        return End(os.stat(node_file).st_mtime + length)
    except OSError:
        return End(note=f"{START_VARIABLE} is not set")


_ASK_STATE: Mapping[str, tuple[str, ...]] = {
    "slurm": ("squeue", "-h", "-o", "%T", "-j"),
    "pbs": ("qstat", "-x", "-f"),
    "cobalt": ("qstat", "--header", "JobID:State"),
}
_OVER = re.compile(
    r"invalid job id specified|unknown job id|job has finished|job_state\s*=\s*[FXC]\b|"
    r"\A\s*(?:BOOT_FAIL|CANCELLED|COMPLETED|DEADLINE|FAILED|NODE_FAIL|OUT_OF_MEMORY|PREEMPTED|TIMEOUT)\s*\Z",
    re.IGNORECASE,
)
"""What the batch systems say of a job that is over. Anything else, or nothing, is no proof of that."""


def has_ended(system: str, job: str, environ: Mapping[str, str]) -> bool:
    """Whether the batch system says that the job is over; an answer that tells nothing is no."""
    argv = _ASK_STATE.get(system)
    if argv is None or not job:
        return False
    try:
        asked = subprocess.run(
            [*argv, job], env={**environ, "LC_ALL": "C"}, stdin=subprocess.DEVNULL, capture_output=True,
            text=True, errors="replace", timeout=ASK_TIMEOUT_S, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return False
    said = f"{asked.stdout}\n{asked.stderr}".strip()
    if system == "cobalt":
        return asked.returncode == 1 and not said  # it prints nothing of a job that it does not have
    return _OVER.search(said) is not None


def _local(*parts: int) -> float | None:
    """Year, month, day, hour, minute, second in the local time zone, to UTC seconds since the epoch."""
    year, month, day, hour, minute, second = parts
    try:
        return time.mktime((year, month, day, hour, minute, second, 0, 0, -1))
    except (OverflowError, ValueError):
        return None
