"""Reading a workflow's files into frames, tolerating what is torn, missing or foreign.

The launcher's ``attempts.jsonl`` and ``launchers.jsonl`` say almost everything; only directories that they do
not name are opened (``job.json``, ``result.json``), and lines of packed files, so that ten thousand
evaluations are read in a second. A Balsam database is asked for its histories instead; where it is down, its
directories have to do.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from nas_hpc import plugins
from nas_hpc.analytics.locate import ATTEMPTS, JOB, LAUNCHERS, RESULT, Location, locate, read_object
from nas_hpc.errors import NasHpcError, WorkFailed
from nas_hpc.processes import packed
from nas_hpc.states import Outcome

__all__ = ["Damage", "Frames", "directory_of", "finals", "locate", "read_evaluations"]

ATTEMPT_COLUMNS = (
    "job", "name", "number", "launcher", "creator", "seq", "submitted", "start", "end", "outcome",
    "objective", "reason", "cached",
)  # fmt: skip
LAUNCHER_COLUMNS = ("launcher", "time", "event", "slots")
EVENTS = frozenset({"start", "capacity", "end"})
OUTCOMES = frozenset(outcome.value for outcome in Outcome)
INTERRUPTED = frozenset({Outcome.LOST.value, Outcome.WALLTIME.value, Outcome.START_FAILED.value})
LOST_LIMIT = 3
"""Lost so often, an evaluation has failed instead of being run again."""


@dataclass(frozen=True, slots=True)
class Damage:
    """What could not be used, by count."""

    lines: int = 0
    """Lines of the two .jsonl files that are torn or lack a field."""
    directories: int = 0
    """Job directories whose job.json or result.json is torn or belongs to another job."""
    foreign: int = 0
    """Directories that are no job's."""


@dataclass(frozen=True, slots=True)
class Frames:
    """What a workflow's files say of its evaluations.

    ``attempts`` has a row per ended attempt of an evaluation (ATTEMPT_COLUMNS; times in seconds since the
    epoch, not-a-number where there was none), ``launchers`` a row per change of what launchers offer
    (LAUNCHER_COLUMNS).
    """

    location: Location
    attempts: pd.DataFrame
    launchers: pd.DataFrame
    unfinished: int
    """Evaluations with a directory, of which no attempt has ended."""
    others: pd.DataFrame
    """Attempts of evaluations of the workflow's other searches, where one search is looked at."""
    damage: Damage
    notes: tuple[str, ...] = ()
    """What whoever wrote the records got wrong, and what was done about it."""


def read_evaluations(location: Location) -> Frames:
    """Read the files of ``location``, or its Balsam database. Never fails for what they contain."""
    if location.database is None:
        return _read_files(location)
    try:
        return _read_database(location, location.database)
    except NasHpcError as error:
        note = (
            f"the Balsam database cannot be asked ({error.message}): only job directories were read, which "
            "do not tell of kills, of time-outs and of attempts that were lost"
        )
        return replace(_read_files(location), notes=(note,))


def _read_database(location: Location, database: Path) -> Frames:
    """What a Balsam database says."""
    read = plugins.load("nas_hpc.histories", "balsam")
    if read is None:
        raise WorkFailed("this installation of nas-hpc has no part that reads it")
    told = read(database, location.workflow)
    rows = [row for row in map(_attempt_row, told.attempts) if row is not None]
    launchers, torn = (
        _launcher_frame(told.launchers) if told.launchers else _read_launchers(location.directory / LAUNCHERS)
    )
    return Frames(
        location,
        _attempt_frame([row for row in rows if location.is_of(row["creator"])]),
        launchers,
        sum(map(location.is_of, told.unfinished)),
        _attempt_frame([row for row in rows if not location.is_of(row["creator"])]),
        Damage(lines=torn),
        told.notes,
    )


def _read_files(location: Location) -> Frames:
    lines, torn = _read_lines(location.directory / ATTEMPTS)
    rows: dict[tuple[str, int], dict[str, Any]] = {}
    for line in lines:
        row = _attempt_row(line)
        if row is None:
            torn += 1
        else:
            rows[row["job"], row["number"]] = row
    known = {f"{row['name']}_{row['job'][:8]}" for row in rows.values()}
    found, unfinished, damage = _read_directories(location, known)
    for row in [*found, *_packed_rows(location, rows)]:
        rows.setdefault((row["job"], row["number"]), row)
    launchers, torn_launchers = _read_launchers(location.directory / LAUNCHERS)
    evaluations = [row for row in rows.values() if row["creator"]]
    ours = [row for row in evaluations if location.is_of(row["creator"])]
    others = [row for row in evaluations if not location.is_of(row["creator"])]
    return Frames(
        location, _attempt_frame(ours), launchers, unfinished, _attempt_frame(others),
        replace(damage, lines=torn + torn_launchers),
    )  # fmt: skip


def finals(attempts: pd.DataFrame) -> pd.DataFrame:
    """One row per evaluation, its last attempt, in the order in which they ended.

    ``status`` is "ok", "failed", "cancelled" (killed), or "interrupted" (to be run again).
    """
    last = attempts.sort_values("number", kind="stable").drop_duplicates("job", keep="last")
    last = last.sort_values("end", kind="stable").reset_index(drop=True)
    lost = attempts.loc[attempts["outcome"] == Outcome.LOST.value, "job"].value_counts()
    given_up = last["job"].map(lost).fillna(0) >= LOST_LIMIT
    status = pd.Series("failed", index=last.index, dtype=object)
    status[last["outcome"] == Outcome.OK.value] = "ok"
    status[last["outcome"] == Outcome.KILLED.value] = "cancelled"
    status[last["outcome"].isin(INTERRUPTED) & ~given_up] = "interrupted"
    return last.assign(status=status)


def directory_of(location: Location, name: str, job: str) -> Path:
    """The directory of a job, which need not exist."""
    return location.directory / f"{name}_{job[:8]}"


def _read_lines(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The JSON objects of a file of lines, and how many lines are none."""
    try:
        raw = path.read_bytes()
    except OSError:
        return [], 0
    objects, torn = [], 0
    for line in raw.split(b"\n"):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            value = None
        if isinstance(value, dict):
            objects.append(value)
        else:
            torn += 1
    return objects, torn


def _number(value: object) -> float:
    """A finite float, or not-a-number for all else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return math.nan
    try:
        number = float(value)
    except OverflowError:
        return math.nan
    return number if math.isfinite(number) else math.nan


def _attempt_row(line: dict[str, Any]) -> dict[str, Any] | None:
    """A row for ``attempts``; None if the line cannot be placed in time or to a job."""
    job, name, number = line.get("job"), line.get("name"), line.get("number")
    creator, outcome = line.get("creator") or "", line.get("outcome")
    if not (isinstance(job, str) and job and isinstance(name, str) and isinstance(creator, str)):
        return None
    if not isinstance(number, int) or not isinstance(outcome, str) or outcome not in OUTCOMES:
        return None
    start, end = _number(line.get("start")), _number(line.get("end"))
    if math.isnan(end):
        return None
    if not start > 0:  # an attempt that never came to run
        start = math.nan
    return {
        "job": job,
        "name": name,
        "number": number,
        "launcher": str(line.get("launcher") or ""),
        "creator": creator,
        "seq": _number(line.get("seq")),
        "submitted": _number(line.get("submitted")),
        "start": start,
        "end": end if math.isnan(start) else max(start, end),
        "outcome": outcome,
        "objective": _number(line.get("objective")),
        "reason": str(line.get("reason") or ""),
        "cached": line.get("cached") is True,
    }


def _attempt_frame(rows: list[dict[str, Any]]) -> pd.DataFrame:
    frame = pd.DataFrame(rows, columns=list(ATTEMPT_COLUMNS))
    numbers = dict.fromkeys(("seq", "submitted", "start", "end", "objective"), "float64")
    return frame.astype({**numbers, "number": "int64", "cached": "bool"})


def _read_launchers(path: Path) -> tuple[pd.DataFrame, int]:
    lines, torn = _read_lines(path)
    frame, wrong = _launcher_frame(lines)
    return frame, torn + wrong


def _launcher_frame(lines: list[dict[str, Any]]) -> tuple[pd.DataFrame, int]:
    rows, torn = [], 0
    for line in lines:
        launcher, event, time_s = line.get("launcher"), line.get("event"), _number(line.get("time"))
        slots = 0.0 if event == "end" else _number(line.get("slots"))
        if not isinstance(launcher, str) or event not in EVENTS or math.isnan(time_s) or not slots >= 0:
            torn += 1
        else:
            rows.append((launcher, time_s, event, slots))
    frame = pd.DataFrame(rows, columns=list(LAUNCHER_COLUMNS)).astype({"time": "float64", "slots": "float64"})
    return frame.sort_values("time", kind="stable").reset_index(drop=True), torn


def _read_directories(location: Location, known: set[str]) -> tuple[list[dict[str, Any]], int, Damage]:
    """Results on disk that no line tells of, the number of unfinished evaluations, and what is damaged."""
    rows: list[dict[str, Any]] = []
    unfinished = damaged = foreign = 0
    for path in _directories(location.directory, known):
        job = read_object(path / JOB)
        if job is None and location.database is not None and not (path / JOB).exists():
            continue  # a search's own, or not of ours
        if job is None and _is_of_running(path):
            unfinished += not location.search
            continue
        if job is None:
            damaged, foreign = (damaged + 1, foreign) if (path / JOB).exists() else (damaged, foreign + 1)
            continue
        identifier, name = job.get("id"), job.get("name")
        if not isinstance(identifier, str) or path.name != f"{name}_{identifier[:8]}":
            damaged += 1
            continue
        if not job.get("creator") or not location.is_of(job["creator"]):
            continue
        row = _row_on_disk(path, job)
        if row is not None:
            rows.append(row)
        else:
            unfinished += 1
            damaged += (path / RESULT).exists()
    return rows, unfinished, Damage(directories=damaged, foreign=foreign)


def _is_of_running(path: Path) -> bool:
    """Whether an evaluation runs there that leaves its directory only if it fails."""
    name = path.name[:-9]
    return (path / f"{name}.out").exists() and not (path / JOB).exists() and not (path / RESULT).exists()


def _packed_rows(location: Location, known: Mapping[tuple[str, int], object]) -> Iterator[dict[str, Any]]:
    """Ends of evaluations without a directory, of which no line of attempts.jsonl tells."""
    for line in packed.read(location.directory, lambda *key: key not in known):
        job = line["job"]
        if job.get("creator") and location.is_of(job["creator"]):
            row = _row(job, line["result"])
            if row is not None:
                yield row


def _directories(directory: Path, known: set[str]) -> Iterator[Path]:
    try:
        for entry in os.scandir(directory):
            if (
                entry.name not in known
                and entry.name != packed.PACKED
                and not entry.name.startswith(".")
                and entry.is_dir(follow_symlinks=False)
            ):
                yield Path(entry.path)
    except OSError:
        return


def _row_on_disk(path: Path, job: dict[str, Any]) -> dict[str, Any] | None:
    result = read_object(path / RESULT)
    return None if result is None or result.get("job") != job["id"] else _row(job, result)


def _row(job: dict[str, Any], result: dict[str, Any]) -> dict[str, Any] | None:
    """The row of what job.json and result.json say."""
    line = {key: job.get(key) for key in ("name", "creator", "seq")} | {"submitted": job.get("created")}
    return _attempt_row({**result, **line, "number": result.get("attempt"), "launcher": "", "cached": False})
