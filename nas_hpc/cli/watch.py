"""``nas-hpc watch``: what the running launchers do, as they do it."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import click

from nas_hpc.cli.client import query, several
from nas_hpc.cli.context import Invocation, note, site_options
from nas_hpc.cli.output import print_json, show_duration, show_number
from nas_hpc.cli.types import Amount
from nas_hpc.errors import LauncherGone


@site_options
@click.command()
@click.option(
    "--interval", type=Amount("seconds", positive=True), default=2.0, help="Between two looks. [default: 2]"
)
@click.option("--once", is_flag=True, help="Look once.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, one document a look; implies --once.")
@click.pass_obj
def watch(call: Invocation, interval: float, once: bool, as_json: bool) -> None:
    """Watch the running launcher until it ends; with PostgreSQL all of them.

    \b
    Examples:
      nas-hpc watch
      nas-hpc watch --once --json
    """
    site = call.site()
    views = query(site)
    if as_json:
        print_json(views if several(site) else views[0])
        return
    if once:
        print("\n".join(describe_all(views)))
        return
    show = _live if sys.stdout.isatty() else _plain
    show(lambda: query(site), views, interval)


def describe_all(views: Sequence[Mapping[str, Any]]) -> list[str]:
    """The launchers' views as lines."""
    return [line for view in views for line in describe(view)]


def describe(view: Mapping[str, Any]) -> list[str]:
    """The launcher's view as lines."""
    now = float(view.get("time") or time.time())
    deadline = float(view.get("deadline") or 0.0)
    left = f", {show_duration(deadline - now)} left" if deadline else ""
    used = f", utilization {float(view['utilization']):.0%}" if view.get("utilization") is not None else ""
    stopping = ", stopping" if view.get("stopping") else ""
    lines = [
        f"launcher {view.get('pid')} on {view.get('host')} ({view.get('mode')}), "
        f"up {show_duration(now - float(view.get('started') or now))}{left}: "
        f"{view.get('running')} running, {view.get('waiting')} waiting{used}{stopping}"
    ]
    for node in view.get("nodes") or []:
        jobs = ", ".join(node.get("jobs", [])[:6]) + (", …" if len(node.get("jobs", [])) > 6 else "")
        state = node.get("state", "here")
        name = f"{node.get('name')} ({state})" if state != "here" else node.get("name")
        lines.append(f"  node {name}: {float(node.get('free', 0)):.0%} free; {jobs or 'idle'}")
    for search in view.get("searches") or []:
        lines.append(f"  search {search.get('workflow')}/{search.get('name')}: {describe_search(search)}")
    for job, reason in (view.get("never") or {}).items():
        lines.append(f"  cannot run here: {job[:8]}: {reason}")
    return lines


def describe_search(search: Mapping[str, Any]) -> str:
    """Counts and the best of a search."""
    most = search.get("max_evals")
    best = search.get("best")
    ended = search.get("done") or 0  # failed ones among them
    of = f"/{most}" if most else ""
    return (
        f"{ended}{of} evaluations, {search.get('failed', 0)} failed, {search.get('running', 0)} running"
        f" of {search.get('capacity', 0)}, best {show_number(float(best)) if best is not None else '-'}"
    )


_Views = Sequence[Mapping[str, Any]]


def _plain(look: Callable[[], _Views], views: _Views, interval_s: float) -> None:
    last: list[list[str]] = []
    while True:
        shown = [describe(view) for view in views]
        if [lines[1:] for lines in shown] != [lines[1:] for lines in last] or not last:
            print("\n".join(line for lines in shown for line in lines), flush=True)
        last = shown
        time.sleep(interval_s)
        try:
            views = look()
        except LauncherGone as error:
            note(f"note: {error}")
            return


def _live(look: Callable[[], _Views], views: _Views, interval_s: float) -> None:
    from rich.live import Live
    from rich.text import Text

    with Live(Text("\n".join(describe_all(views))), auto_refresh=False) as live:
        while True:
            live.update(Text("\n".join(describe_all(views))), refresh=True)
            time.sleep(interval_s)
            try:
                views = look()
            except LauncherGone as error:
                live.console.print(f"note: {error}", markup=False)
                return
