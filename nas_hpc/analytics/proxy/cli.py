"""``deephyper-analytics variance`` and ``correlation``: of finished trainings, from their directories."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from nas_hpc.analytics.text import number
from nas_hpc.errors import WorkFailed

if TYPE_CHECKING:
    from nas_hpc.analytics.proxy.directories import Compared, Copies

_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
_picture = click.option("-o", "--output", metavar="FILE", help="A picture to write, PNG.")
_debug = click.option("--debug", is_flag=True, help="Show tracebacks.")


@click.command(short_help="Judge copies of one training: do their scores vary, are their curves smooth?")
@click.argument("path", metavar="PATH")
@_json
@_picture
@_debug
def variance(path: str, as_json: bool, output: str | None, debug: bool) -> None:
    """Judge copies of one training, in the directories below PATH.

    The coefficient of variation of their last scores, and how much their curves go down.

    Example: deephyper-analytics variance trials/Variance_20260101_120000 -o curves.png
    """
    from nas_hpc.analytics.proxy.directories import measure_copies
    from nas_hpc.analytics.proxy.pictures import draw_curves

    found = measure_copies(Path(path))
    if output:
        _write(lambda: draw_curves(found.curves, Path(output), f"{len(found.curves)} copies"), output)
    click.echo(json.dumps(found.to_dict(), indent=2) if as_json else "\n".join(_of_copies(found)))


@click.command(short_help="Compare cheap trainings with full ones of the same models.")
@click.argument("proxy", metavar="PROXY")
@click.argument("full", metavar="FULL")
@click.option(
    "--interpolate",
    is_flag=True,
    help="Scores on straight lines, for trainings that were validated at different steps.",
)
@_json
@_picture
@_debug
def correlation(
    proxy: str, full: str, interpolate: bool, as_json: bool, output: str | None, debug: bool
) -> None:
    """Compare the cheap trainings below PROXY with the full ones of the same models below FULL.

    Kendall's rank correlation (tau-b) at every step at which there are scores of five models and of 70 %
    of all, and of the last scores.

    Example: deephyper-analytics correlation trials/half_20260101_120000 trials/full_20260101_120000
    """
    from nas_hpc.analytics.proxy.directories import compare
    from nas_hpc.analytics.proxy.pictures import draw_pairs

    found = compare(Path(proxy), Path(full), interpolate=interpolate)
    if output:
        _write(lambda: draw_pairs(found.full, found.proxy, found.tau, Path(output), found.models), output)
    click.echo(json.dumps(found.to_dict(), indent=2) if as_json else "\n".join(_of_compared(found)))


def _write(draw: Callable[[], None], output: str) -> None:
    try:
        draw()
    except OSError as error:
        raise WorkFailed(f"{output} cannot be written: {error.strerror or error}") from None


def _of_copies(found: Copies) -> list[str]:
    said = [f"{found.directory}: {len(found.curves)} copies"]
    for name, judged in (
        ("variance (standard deviation / mean of the last scores)", found.measured.variance),
        ("smoothness (sum of what goes down; 0 only rises)", found.measured.smoothness),
    ):
        value = "-" if judged.value is None else number(judged.value)
        said.append(f"{name}: {value}. {judged.info}")
    return said + [f"advice: {one}" for one in found.measured.advice]


def _of_compared(found: Compared) -> list[str]:
    steps = found.over_steps
    said = []
    if len(steps.steps):
        said.append(f"{'step':>10}  {'tau':>7}  {'p':>9}  {'median':>9}  hours")
    for at in range(len(steps.steps)):
        values = (steps.tau[at], steps.p_value[at], steps.median_score[at], steps.median_hours[at])
        cells = [_cell(value) for value in values]
        said.append(f"{steps.steps[at]:>10}  {cells[0]:>7}  {cells[1]:>9}  {cells[2]:>9}  {cells[3]}")
    if math.isfinite(found.tau):
        last = f"tau {found.tau:.3f}, p {found.p_value:.3g}"
        said.append(f"last scores of {len(found.models)} models: {last}")
    if math.isfinite(found.latency_tau):
        said.append(f"latencies: tau {found.latency_tau:.3f}, p {found.latency_p_value:.3g}")
    return said + [f"note: {note}" for note in found.notes]


def _cell(value: float) -> str:
    return f"{value:.3g}" if math.isfinite(value) else "-"
