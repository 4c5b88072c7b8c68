"""Views of a search's trials in files: a dot for each one over two columns, and a page with a table."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nas_hpc.errors import WorkFailed, WrongCall

HOURS = "hours"
"""A column that there is for pictures alone: since the first trial began, at the trial's end."""
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{{ title }}</title><style>
body { font: 14px system-ui, sans-serif; margin: 2em; }
table { border-collapse: collapse; }
th, td { border: 1px solid #ccc; padding: .3em .6em; text-align: left; vertical-align: top; }
th { cursor: pointer; background: #eee; position: sticky; top: 0; }
</style></head><body>
<h1>{{ title }}</h1><p>{{ message }}</p>
<table><thead><tr>{% for name in names %}<th>{{ name }}</th>{% endfor %}</tr></thead><tbody>
{% for row in rows %}<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</tbody></table>
<p>A click on a column's name sorts by it, another one the other way round.</p>
<script>
const body = document.querySelector("tbody"), up = {};
document.querySelectorAll("th").forEach((head, at) => head.addEventListener("click", () => {
  up[at] = !up[at];
  const text = (row) => row.cells[at].textContent, number = (row) => parseFloat(text(row));
  const key = (one, other) => isNaN(number(one)) || isNaN(number(other))
    ? text(one).localeCompare(text(other)) : number(one) - number(other);
  const rows = [...body.rows].sort((one, other) => up[at] ? key(other, one) : key(one, other));
  rows.forEach((row) => body.append(row));
}));
</script></body></html>
"""


def value_of(row: dict[str, Any], column: str, start: float) -> Any:
    """What a trial has in a column: one of its record, a metric, a parameter, or its hours."""
    if column == HOURS:
        return (row["ended"] - start) / 3600.0 if row["ended"] else None
    return row.get(column, row["parameters"].get(column))


def plot(rows: Sequence[dict[str, Any]], x: str, y: str, path: str, title: str) -> int:
    """Draw a dot for each trial that has a number in both columns; returns how many. With the rewards over
    the trials or the time comes the best so far. Raises WrongCall for a column without numbers, WorkFailed if
    the file cannot be written."""
    from nas_hpc.apps.trials.figure import FORMATS, draw_columns

    if Path(path).suffix[1:].lower() not in FORMATS:
        raise WrongCall(f"--plot {path!r}: give a file that ends in .{', .'.join(FORMATS)}")
    if not rows:
        raise WrongCall(f"--plot {path!r}: there are no such trials to draw")
    start = min((row["started"] for row in rows if row["started"]), default=0.0)
    pairs = [(value_of(row, x, start), value_of(row, y, start)) for row in rows]
    for flag, column, place in (("--x", x, 0), ("--y", y, 1)):
        if not any(_is_number(pair[place]) for pair in pairs):
            there = ", ".join(sorted({name for row in rows for name in _numbers(row)} | {HOURS}))
            raise WrongCall(f"{flag} {column!r} is no column with numbers; there are {there}")
    points = [(float(a), float(b)) for a, b in pairs if _is_number(a) and _is_number(b)]
    if not points:
        raise WrongCall(f"--x {x!r} and --y {y!r}: no trial has both")
    try:
        draw_columns(Path(path), title, x, y, points, best=y == "reward" and x in ("trial", HOURS))
    except OSError as error:
        raise WorkFailed(f"{path} cannot be written: {error.strerror or error}") from None
    return len(points)


def write_page(rows: Sequence[dict[str, Any]], path: str, title: str, message: str) -> None:
    """Write a page with all columns, which needs nothing beside itself. Raises WorkFailed."""
    import jinja2

    from nas_hpc.files import replace_file

    flat = [{**row, **{k: v for k, v in row["parameters"].items() if k not in row}} for row in rows]
    names = list(dict.fromkeys(name for row in flat for name in row if name != "parameters"))
    cells = [[_text(row.get(name)) for name in names] for row in flat]
    page = jinja2.Environment(autoescape=True).from_string(_PAGE)
    text = page.render(title=title, message=message, names=names, rows=cells)
    try:
        replace_file(Path(path), text.encode("utf-8", "replace"), mode=0o644)
    except OSError as error:
        raise WorkFailed(f"{path} cannot be written: {error.strerror or error}") from None


def _text(value: Any) -> str:
    if value is None:
        return ""
    return json.dumps(value) if isinstance(value, dict | list) else str(value)


def _numbers(row: dict[str, Any]) -> list[str]:
    return [name for name, value in {**row["parameters"], **row}.items() if _is_number(value)]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
