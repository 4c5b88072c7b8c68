"""The evaluator slots that Balsam's launchers offered, as lines of launchers.jsonl.

How long a launcher lived its log says; how many evaluations a search could have at once under it the search
itself wrote down (DB/data/WORKFLOW/launchers.jsonl). Its evaluations may run before it does, and after: so
its number counts for the launcher's whole life. Where no search wrote one down it is worked out of the
launcher's nodes.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nas_hpc.integrations.balsam.lives import Life

Row = Mapping[str, Any]
"""A job as the bridge's ``jobs`` gives it."""
AROUND_S = 10.0
"""A log's times and a history's are taken to be of the same clock if they differ by less."""
SECOND = 1.0
"""The grain of a log's times."""


@dataclass(frozen=True, slots=True)
class Noted:
    """A search's own line: from ``time`` on it may have ``slots`` evaluations at once."""

    search: str
    launcher: str
    time: float
    slots: int


def read_noted(path: Path) -> list[Noted]:
    """The beginnings in a launchers.jsonl, in its order; what is torn is left out."""
    found: list[Noted] = []
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError:
        return found
    for text in lines:
        with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError, RecursionError):
            line = json.loads(text)
            if line["event"] == "start":
                search = line["launcher"].partition("-")[0]
                found.append(Noted(search, line["launcher"], float(line["time"]), int(line["slots"])))
    return found


def same_clock(signs: Sequence[float], lives: Sequence[Life]) -> bool:
    """Whether most of what launchers wrote into histories falls into their lives, as their logs have them."""
    inside = sum(any(_covers(life, sign) for life in lives) for sign in signs)
    return 2 * inside >= len(signs)


def _covers(life: Life, time_s: float) -> bool:
    """One whose log has no end may live on."""
    return life.start - AROUND_S <= time_s and (not life.ended or time_s <= life.end + AROUND_S)


def offers(
    evaluations: Sequence[Row], searches: Sequence[Row], lives: Sequence[Life],
    noted: Sequence[Noted],
) -> tuple[list[dict[str, Any]], bool]:  # fmt: skip
    """Lines of launchers.jsonl, and whether a number in them had to be worked out.

    No lines where ``lives`` do not have all the launchers under which searches wrote something down: then
    their own lines have to do.
    """
    if not all(any(_covers(life, one.time) for life in lives) for one in noted):
        return [], False
    lines: list[dict[str, Any]] = []
    guessed = False
    for life in lives:
        said = {one.search: one.slots for one in noted if _began_in(life, lives, one.time)}
        slots = sum(said.values()) if said else _places(evaluations, searches, life)
        guessed = guessed or not said
        mode = "serial" if life.serial else "mpi"
        line = {"launcher": key_of(life), "nodes": [], "mode": mode, "host": "", "pid": life.pid}
        lines.append({**line, "time": life.start, "event": "start", "slots": slots})
        over = {"event": "end", "slots": 0} if life.ended else {"event": "capacity", "slots": slots}
        lines.append({**line, "time": life.end + SECOND, **over})
    return lines, guessed


def key_of(life: Life) -> str:
    """A name for a launcher."""
    return f"balsam-{life.pid}-{life.start:.0f}"


def launcher_of(attempt: Mapping[str, Any], lives: Sequence[Life], noted: Sequence[Noted]) -> str:
    """As which launcher of the lines an attempt is a sign of life: the one that began last before its end."""
    if lives:
        began = [(life.start, key_of(life)) for life in lives if life.start <= attempt["end"]]
    else:
        began = [
            (one.time, one.launcher)
            for one in noted
            if one.search == attempt["creator"] and one.time <= attempt["end"]
        ]
    return max(began, default=(0.0, ""))[1]


def _began_in(life: Life, lives: Sequence[Life], time_s: float) -> bool:
    """Whether what began at ``time_s`` began under ``life``: the last one that had begun."""
    begun = [one for one in lives if one.start <= time_s and _covers(one, time_s)]
    return bool(begun) and max(begun, key=lambda one: one.start) is life


def _places(evaluations: Sequence[Row], searches: Sequence[Row], life: Life) -> int:
    """A launcher's nodes, in serial mode as many as are packed on each, without what the searches occupy that
    ran under it."""
    packing = max((_whole(row, "node_packing_count") for row in evaluations), default=1)
    nodes_each = max((_whole(row, "num_nodes") for row in evaluations), default=1)
    taken = sum(1 if life.serial else _whole(row, "num_nodes") for row in searches if _ran_in(row, life))
    places = life.nodes * packing if life.serial else life.nodes
    return max(0, (places - taken) // (1 if life.serial else nodes_each))


def _whole(row: Row, key: str) -> int:
    return max(1, int(row.get(key) or 1))


def _ran_in(row: Row, life: Life) -> bool:
    """Whether a job began under a launcher."""
    return any(
        line[1] == "RUNNING" and life.start - AROUND_S <= line[0] <= life.end + AROUND_S
        for line in row["history"]
    )
