"""Evaluations of a Balsam database as lines of attempts.jsonl and launchers.jsonl, for analytics.

``read`` is the entry point ``nas_hpc.histories``: it asks the bridge for the histories of a workflow's jobs,
and reads what evaluations left in their directories and the logs of Balsam's launchers.
"""

from __future__ import annotations

import bisect
import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nas_hpc.integrations.balsam.histories import Span, bound, correct, spans, stamps
from nas_hpc.integrations.balsam.lives import Life, read_lives
from nas_hpc.integrations.balsam.offers import (
    AROUND_S,
    Noted,
    Row,
    launcher_of,
    offers,
    read_noted,
    same_clock,
)
from nas_hpc.integrations.balsam.process import Bridge
from nas_hpc.integrations.balsam.protocol import Link
from nas_hpc.processes import results
from nas_hpc.states import Outcome

ANY = "balsam"
"""Stands for the search of jobs that are no evaluations, but all that there is: they need no objective."""
PAGE = 1000
"""Jobs that are asked for at once."""
TASK = re.compile(r"task\d+")
"""So DeepHyper names its evaluations."""
STALE_S = 120.0
"""Balsam takes jobs of a dead launcher back when their locks, renewed each minute, are three minutes old:
it died at least this long before."""
FAILED_SO = (Outcome.ERROR, Outcome.INVALID_RESULT, Outcome.TIMEOUT)


@dataclass(frozen=True, slots=True)
class Evaluations:
    """What a workflow's jobs in a Balsam database say of its evaluations."""

    attempts: list[dict[str, Any]]
    """As the lines of attempts.jsonl."""
    launchers: list[dict[str, Any]]
    """As the lines of launchers.jsonl; none where those that searches wrote have to do."""
    unfinished: list[str]
    """The search of each evaluation of which no attempt has ended."""
    notes: tuple[str, ...]
    """What was corrected, and what could not be."""


@dataclass(slots=True)
class _Counts:
    """What the notes tell."""

    lost: int = 0
    killed: int = 0
    outlived: int = 0
    measured: int = 0
    stamped: int = 0
    guessed: bool = False
    notes: list[str] = field(default_factory=list)


def read(database: Path, workflow: str) -> Evaluations:
    """The evaluations of ``workflow`` in the Balsam database ``database``.

    Raises NasHpcError where Balsam cannot be found, or its database not be asked.
    """
    with Bridge(database) as link:
        rows = list(_rows(link, workflow))
    noted = read_noted(database / "data" / workflow / "launchers.jsonl")
    return convert(rows, read_lives(database), workflow, noted)


def _rows(link: Link, workflow: str) -> Iterator[Row]:
    """All jobs of a workflow, page by page."""
    after: str | None = ""
    while after is not None:
        page = link.call("jobs", workflow=workflow, after=after, limit=PAGE)
        yield from page["jobs"]
        after = page["next"]


def convert(
    rows: Sequence[Row], lives: Sequence[Life], workflow: str, noted: Sequence[Noted] = ()
) -> Evaluations:
    """The evaluations among ``rows``, all jobs of one workflow. ``noted``: the slots that searches had."""
    counts = _Counts()
    chosen = _evaluations(rows, counts)
    taking = [life for life in lives if life.takes(workflow)]
    histories = [row["history"] for row in rows]
    if not same_clock(stamps(histories), taking):
        if taking:
            counts.notes.append("the launchers' logs have other times than the histories and were left out")
        taking = []
    signs = _Signs(stamps(histories), taking)
    attempts: list[dict[str, Any]] = []
    unfinished: list[str] = []
    for row, creator in chosen:
        found, runs = spans(row["history"], row["state"])
        result = _read_result(row)
        measured = correct(found, result)
        bound(found, signs.last)
        for number, span in enumerate(found, start=0 if found and found[0].cached else 1):
            # One that found the result of an earlier one has it, too.
            has = span is measured or span.cached or (span is found[-1] and span.outcome is Outcome.OK)
            told = result if has else None
            attempts.append(_line(row, creator, number, span, told))
            _count(counts, span)
        if not found and (runs or row["state"] not in ("JOB_FINISHED", "FAILED", "USER_KILLED")):
            unfinished.append(creator)
    launchers = _offered(rows, chosen, taking, noted, counts)
    for line in attempts:
        line["launcher"] = launcher_of(line, taking if launchers else (), noted)
    return Evaluations(attempts, launchers, unfinished, tuple(_notes(counts)))


def _offered(
    rows: Sequence[Row], chosen: Sequence[tuple[Row, str]], lives: Sequence[Life], noted: Sequence[Noted],
    counts: _Counts,
) -> list[dict[str, Any]]:  # fmt: skip
    """Lines of launchers.jsonl."""
    creators = {creator for _, creator in chosen}
    searches = [row for row in rows if _plain(row["id"]) in creators]
    lines, counts.guessed = offers([row for row, _ in chosen], searches, lives, noted)
    return lines


def _evaluations(rows: Sequence[Row], counts: _Counts) -> list[tuple[Row, str]]:
    """The jobs that are evaluations, each with the id of its search: those that say so, else those named as
    DeepHyper does, else all."""
    said = [(row, _plain(_ours(row).get("creator"))) for row in rows if _ours(row).get("creator")]
    if said:
        return said
    tasks = [row for row in rows if TASK.fullmatch(row["name"])]
    if not tasks:
        if rows:
            counts.notes.append(
                "no job of this workflow is an evaluation of a search: all its jobs are counted"
            )
        return [(row, ANY) for row in rows]
    searches = [row for row in rows if not TASK.fullmatch(row["name"])]
    creator = _plain(searches[0]["id"]) if len(searches) == 1 else "deephyper"
    return [(row, creator) for row in tasks]


def _ours(row: Row) -> Mapping[str, Any]:
    data = row.get("data")
    ours = data.get("nas_hpc") if isinstance(data, dict) else None
    return ours if isinstance(ours, dict) else {}


def _plain(identifier: object) -> str:
    """A job's id as everywhere in the package."""
    return str(identifier or "").replace("-", "")


def _line(
    row: Row, creator: str, number: int, span: Span, result: Mapping[str, Any] | None
) -> dict[str, Any]:
    """A line of attempts.jsonl."""
    outcome, objective = span.outcome, None
    if outcome is Outcome.OK:
        objective = _objective(row, result)
        if objective is None and creator != ANY:
            outcome = Outcome.INVALID_RESULT
    said = "" if result is None else str(result.get("outcome") or "")
    if outcome in FAILED_SO and said in [one.value for one in FAILED_SO]:
        outcome = Outcome(said)
    reason = "" if result is None else str(result.get("reason") or "")
    return {
        "job": _plain(row["id"]),
        "name": str(row["name"]).strip().replace(" ", "_"),
        "number": number,
        "launcher": "",
        "creator": creator,
        "seq": _ours(row).get("seq"),
        "submitted": row["history"][0][0] if row["history"] else None,
        "start": None if math.isnan(span.start) else span.start,
        "end": span.end,
        "outcome": outcome.value,
        "objective": objective,
        "reason": "" if outcome is Outcome.OK else reason or _last_line(span.message),
        "cached": span.cached and outcome is Outcome.OK,
    }


def _last_line(message: str) -> str:
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return lines[-1] if lines else ""


def _read_result(row: Row) -> Mapping[str, Any] | None:
    """The result.json of a job that is our evaluation; None if there is none."""
    try:
        result = json.loads(Path(row["directory"], "result.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    mine = isinstance(result, dict) and _plain(result.get("job", row["id"])) == _plain(row["id"])
    return result if mine else None


def _objective(row: Row, result: Mapping[str, Any] | None) -> float | None:
    """That of result.json, else of the job's data, else of its output."""
    data = row.get("data") if isinstance(row.get("data"), dict) else {}
    for value in ((result or {}).get("objective"), (data or {}).get("dh_objective")):
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            return float(value)
    return results.printed_objective(os.path.join(row["directory"], f"{row['name']}.out"), row["name"])[0]


def _count(counts: _Counts, span: Span) -> None:
    ran = not math.isnan(span.start)
    counts.lost += span.outcome is Outcome.LOST
    counts.killed += ran and span.outcome is Outcome.KILLED
    counts.outlived += span.outlived
    counts.measured += span.measured
    counts.stamped += ran and not span.measured


def _notes(counts: _Counts) -> Iterable[str]:
    yield from counts.notes
    if counts.killed:
        ran_on = f", {counts.outlived} of them until their programs ended, later" if counts.outlived else ""
        yield (
            f"killed while they ran: {counts.killed}, counted until the kill{ran_on}; by Balsam's own report "
            "they run for ever"
        )
    if counts.lost:
        yield (
            f"attempts lost with their launcher: {counts.lost}; Balsam writes down nothing of that: they "
            "end at its last sign of life, and what runs again counts once"
        )
    if counts.stamped:
        rest = f"; by their programs' own: {counts.measured}" if counts.measured else ""
        yield (
            f"attempts timed by Balsam's stamps: {counts.stamped}, which it writes for many jobs at once: in "
            f"serial mode they are some seconds late, and short attempts look shorter or longer{rest}"
        )
    if counts.guessed:
        yield "evaluator slots are the nodes of Balsam's launchers by their logs, times what is packed on one"


@dataclass(frozen=True, slots=True)
class _Signs:
    """Signs of life: what launchers wrote into histories, and their logs."""

    stamps: list[float]
    lives: Sequence[Life]

    def last(self, start: float, before: float) -> float:
        """The last one of the launcher that ran a job from ``start``, which was run again at ``before``."""
        dead = [
            life.end
            for life in self.lives
            if not life.ended and life.start <= start + AROUND_S and start - AROUND_S <= life.end < before
        ]
        seen = bisect.bisect_right(self.stamps, before - STALE_S)
        return max([start, *dead, *(self.stamps[seen - 1 : seen] if not dead else [])])
