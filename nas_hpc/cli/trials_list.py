"""``nas-hpc list-trials``: what came of the trials of a search."""

from __future__ import annotations

import csv
import json
import os
import sys
from collections.abc import Sequence
from typing import Any

import click

from nas_hpc.cli.context import Invocation, note, site_options
from nas_hpc.cli.output import print_json, print_table, show_config, show_duration, show_number
from nas_hpc.cli.trials_flags import TrialsCommand
from nas_hpc.cli.trials_views import plot, write_page
from nas_hpc.cli.types import Count
from nas_hpc.errors import WrongCall

_SHOWN = ("stage", "trial", "state", "reward")
_HIDDEN = (*_SHOWN, "nas_trial_id", "reason_class", "reason", "parameters", "started", "ended", "seconds",
           "attempt", "directory")  # fmt: skip


@site_options
@click.command(cls=TrialsCommand)
@click.argument("word", metavar="JOB")
@click.option(
    "--sort",
    default="",
    metavar="COLUMN",
    help="By this column, a metric or a parameter; numbers from the greatest down.",
)
@click.option(
    "--state", default="", metavar="STATE", help="Only SUCCEEDED, FAILED, RUNNING or CANCELLED ones."
)
@click.option("--max-trials", "most", type=Count(0), default=0, help="At most so many; 0: all. [default: 0]")
@click.option("--json", "as_json", is_flag=True, help="Print them as JSON.")
@click.option("--csv", "as_csv", is_flag=True, help="Print them as CSV.")
@click.option("--html", default="", metavar="FILE", help="Write a page, too, whose table can be sorted.")
@click.option(
    "--plot", "picture", default="", metavar="FILE", help="Draw a dot for each, too: .png, .svg, .pdf."
)
@click.option("--x", default="", metavar="COLUMN", help="Of the picture; or hours. [default: trial]")
@click.option("--y", default="", metavar="COLUMN", help="Of the picture. [default: reward]")
@click.pass_obj
def list_trials(
    call: Invocation, word: str, sort: str, state: str, most: int, as_json: bool, as_csv: bool,
    html: str, picture: str, x: str, y: str,
) -> None:  # fmt: skip
    """List the trials of a search: rewards, metrics, parameters, and why those that failed did.

    \b
    Examples:
      nas-hpc list-trials first --sort reward
      nas-hpc list-trials ~/searches/first_20250101_120000 --json
      nas-hpc list-trials first --plot tradeoff.png --x latency_ms --y reward
    """
    from nas_hpc.apps.trials.records import read_state, read_trials
    from nas_hpc.apps.trials.spec import read_spec
    from nas_hpc.cli.trials_jobs import find

    if as_json and as_csv:
        raise WrongCall("--json and --csv do not go together: give one of them")
    if (x or y) and not picture:
        raise WrongCall(f"--{'x' if x else 'y'} {x or y} is of a picture: give --plot FILE, too")
    directory = find(call, word).directory
    reward = {read_spec(directory).metric: "reward"}  # the metric's own name is as good
    sort, x, y = (reward.get(name, name) for name in (sort, x or "trial", y or "reward"))
    rows = chosen(read_trials(directory), sort, state, most)
    message = str(read_state(directory).get("message") or "")
    if html:
        write_page(rows, html, os.path.basename(directory), message)
        note(f"page {html}")
    if picture:
        count = plot(rows, x, y, picture, os.path.basename(directory))
        note(f"picture {picture}, of {count} of {len(rows)} trials")
    if as_json:
        print_json(rows)
    elif as_csv:
        _print_csv(rows)
    else:
        _print_table(rows)
        if message:
            note(message)


def chosen(rows: Sequence[dict[str, Any]], sort: str, state: str, most: int) -> list[dict[str, Any]]:
    """The rows that are asked for, in their order. Raises WrongCall for a column that is none."""
    found = [row for row in rows if not state or row["state"] == state.upper()]
    if state and state.upper() not in ("SUCCEEDED", "FAILED", "RUNNING", "CANCELLED"):
        raise WrongCall(f"--state {state!r}: give SUCCEEDED, FAILED, RUNNING or CANCELLED")
    if sort and rows:
        known = {name for row in rows for name in (*row, *row["parameters"])}
        if sort not in known:
            raise WrongCall(f"--sort {sort!r} is no column; there are {', '.join(sorted(known))}")
        found.sort(key=lambda row: _key(row.get(sort, row["parameters"].get(sort))))
    return found[: most or None]


def _key(value: Any) -> tuple[int, float, str]:
    """Numbers from the greatest down, then texts, then what has no value."""
    if isinstance(value, int | float):
        return 0, -float(value), ""
    return (2, 0.0, "") if value in (None, "") else (1, 0.0, str(value))


def _print_csv(rows: Sequence[dict[str, Any]]) -> None:
    names = list(dict.fromkeys(name for row in rows for name in row))
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(names)
    for row in rows:
        cells = {**row, "parameters": json.dumps(row["parameters"])}
        writer.writerow(["" if cells.get(name) is None else cells[name] for name in names])


def _print_table(rows: Sequence[dict[str, Any]]) -> None:
    metrics = list(dict.fromkeys(name for row in rows for name in row if name not in _HIDDEN))
    head = [*_SHOWN, *metrics, "took", "parameters", "reason"]
    if not any(row["nas_trial_id"] for row in rows):
        cells = [_cells(row, metrics) for row in rows]
    else:
        head.insert(2, "nas_trial_id")
        cells = [_cells(row, metrics) for row in rows]
        for line, row in zip(cells, rows, strict=True):
            line.insert(2, _show(row["nas_trial_id"]))
    print_table(head, cells, empty="no trials yet")


def _cells(row: dict[str, Any], metrics: Sequence[str]) -> list[str]:
    why = f"{row['reason_class']}: {row['reason']}" if row["reason_class"] else row["reason"]
    took = show_duration(row["seconds"]) if row["seconds"] is not None else "-"
    shown = [_show(row[name]) for name in (*_SHOWN, *metrics)]
    return [*shown, took, show_config(row["parameters"]), why]


def _show(value: Any) -> str:
    return "-" if value is None or value == "" else show_number(value)
