"""How listings look: JSON, a table on a terminal, else plain columns."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from typing import Any

from nas_hpc.records import Attempt, Event, Job


def print_json(value: object) -> None:
    """One JSON document on stdout."""
    print(json.dumps(value, indent=2, default=str, allow_nan=False))


def print_table(head: Sequence[str], rows: Sequence[Sequence[object]], empty: str = "nothing") -> None:
    """Columns under ``head``; a framed table where stdout is a terminal."""
    if not rows:
        print(empty)
        return
    cells = [[str(cell) for cell in row] for row in rows]
    if sys.stdout.isatty():
        _print_rich(head, cells)
        return
    widths = [max(len(row[i]) for row in [list(head), *cells]) for i in range(len(head))]
    for row in [list(head), *cells]:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _print_rich(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in head:
        table.add_column(name, overflow="fold", no_wrap=name in ("id", "state"))
    for row in rows:
        table.add_row(*(_escape(cell) for cell in row))
    Console().print(table)


def _escape(cell: str) -> str:
    from rich.markup import escape

    return escape(cell)


def show_time(seconds: float) -> str:
    """A time in UTC, to the second."""
    if not seconds:
        return "-"
    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%d %H:%M:%S")


def show_instant(seconds: float) -> str:
    """A time in UTC, to the millisecond."""
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat(" ", "milliseconds").removesuffix("+00:00")


def show_age(seconds: float) -> str:
    """How long ago, roughly: 12s, 5m, 3h, 2d."""
    return show_duration(time.time() - seconds) if seconds else "-"


def show_duration(seconds: float) -> str:
    """A length of time in one or two units: 12s, 5m10s, 3h05m, 2d04h."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 86400}d{whole % 86400 // 3600:02d}h"


def show_state(job: Job) -> str:
    """State of a job, with the attempt where it is not the first."""
    return f"{job.state.value} ({job.attempt})" if job.attempt > 1 else job.state.value


def job_json(job: Job, events: Sequence[Event] | None = None) -> dict[str, Any]:
    """A job for ``--json``: what the user gave and where it stands; the recorded environment stays out."""
    need = job.resources
    body: dict[str, Any] = {
        "id": job.id,
        "name": job.name,
        "workflow": job.workflow,
        "application": job.application,
        "state": job.state.value,
        "attempt": job.attempt,
        "args": job.args,
        "environ": dict(job.environ),
        "directory": job.directory_name,
        "created": job.created,
        "parents": list(job.parents),
        "creator": job.creator,
        "seq": job.seq or None,
        "retries": job.retries,
        "stages": {name: getattr(job.stages, name) for name in job.stages.__slots__},
        "lease": job.lease,
        "resources": {name: getattr(need, name) for name in need.__slots__},
        "config": dict(job.evaluation.config) if job.evaluation else None,
        "run": job.evaluation.run if job.evaluation else None,
        "argv": list(job.evaluation.argv) if job.evaluation else [],
        "data": dict(job.data),
        "made_by": job.made_by,
    }
    if events is not None:
        body["history"] = [event_json(event) for event in events]
    return body


def event_json(event: Event) -> dict[str, Any]:
    """An event for ``--json``."""
    return {
        "time": event.time,
        "old": event.old.value,
        "new": event.new.value,
        "actor": event.actor,
        "attempt": event.attempt,
        "message": event.message,
    }


def attempt_json(attempt: Attempt) -> dict[str, Any]:
    """An attempt for ``--json``."""
    result = attempt.result
    return {
        "number": attempt.number,
        "nodes": list(attempt.nodes),
        "claimed": attempt.claimed,
        "outcome": result.outcome.value if result else None,
        "objective": result.objective if result else None,
        "reason": result.reason if result else "",
        "return_code": result.return_code if result else None,
        "start": result.start if result else None,
        "end": result.end if result else None,
        "tail": attempt.tail,
    }


def short(identifier: str) -> str:
    """The first eight digits of an id, as in directory names."""
    return identifier[:8]


def show_number(value: object) -> str:
    """A number for people: at most five significant digits."""
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def show_config(config: Mapping[str, Any]) -> str:
    """A configuration on one line."""
    return ", ".join(f"{name}={show_number(value)}" for name, value in config.items())
