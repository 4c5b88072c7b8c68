"""What a launcher shows of itself: to ``ls nodes``, ``why``, ``watch`` and to the display of ``run``."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nas_hpc.launcher.searches import Session
from nas_hpc.records import Node

if TYPE_CHECKING:
    from nas_hpc.launcher.loop import Launcher


@dataclass(slots=True)
class Meter:
    """Integrals over time of the running evaluations and of the evaluators that there are.

    From the first evaluation that ran to the last moment at which one did: the definition of utilization in
    ``nas_hpc.analytics``.
    """

    busy_s: float = 0.0
    available_s: float = 0.0
    _running: int = 0
    _slots: int = 0
    _since: float = 0.0
    _begun: bool = False
    _tail_s: float = 0.0

    def update(self, now: float, running: int, slots: int) -> None:
        """From ``now`` (monotonic seconds) on, ``running`` of ``slots`` evaluators are busy."""
        if self._begun:
            span = now - self._since
            self.busy_s += span * self._running
            if self._running:
                self.available_s += self._tail_s + span * self._slots
                self._tail_s = 0.0
            else:
                self._tail_s += span * self._slots
        self._begun = self._begun or running > 0
        # Evaluations of an earlier attempt of a search may run before it has said how many it wants.
        self._running, self._slots, self._since = running, max(slots, running), now

    def advance(self, now: float) -> None:
        """Count up to ``now``, at which nothing has changed."""
        self.update(now, self._running, self._slots)

    @property
    def utilization(self) -> float | None:
        """Busy share of the available evaluator-seconds; None before the first evaluation."""
        return self.busy_s / self.available_s if self.available_s > 0 else None


def say(line: str) -> None:
    """Print a line for the launcher's log; nothing if nobody reads it any more."""
    with contextlib.suppress(OSError, ValueError):
        print(f"{time.strftime('%H:%M:%S')} {line}", flush=True)


class Display:
    """Shows the launcher to ``options.progress``: not too often, and each second while something runs."""

    def __init__(self, launcher: Launcher) -> None:
        self._launcher = launcher
        self._planned = False

    def plan(self) -> None:
        """Something has changed. Called in the loop."""
        if self._launcher.options.progress is not None and not self._planned:
            self._planned = True
            loop = asyncio.get_running_loop()
            loop.call_later(self._launcher.options.progress_s, self._show_and_plan)

    def _show_and_plan(self) -> None:
        self._planned = False
        if not self._launcher.ended:
            self.show()
            if self._launcher.dispatcher.busy:
                asyncio.get_running_loop().call_later(1.0, self.plan)

    def show(self) -> None:
        """Show it now."""
        if self._launcher.options.progress is not None:
            with contextlib.suppress(OSError, ValueError):  # a terminal that has gone
                self._launcher.options.progress(of_launcher(self._launcher))


def of_launcher(launcher: Launcher, job: str = "") -> Mapping[str, object]:
    """The launcher as JSON; with ``job`` (an id) also why that job does not run."""
    dispatcher = launcher.dispatcher
    launcher.meter.advance(time.monotonic())
    body: dict[str, object] = {
        "launcher": launcher.lease.id,
        "pid": launcher.lease.pid,
        "host": launcher.lease.host,
        "workflow": launcher.options.workflow,
        "mode": launcher.options.job_mode,
        "time": time.time(),
        "started": launcher.started,
        "deadline": launcher.deadline_utc(),
        "stopping": dispatcher.stopping,
        "running": len(dispatcher.running),
        "waiting": len(dispatcher.queue),
        "never": dict(dispatcher.never),
        "utilization": launcher.meter.utilization,
        "searches": [_search(launcher, session) for session in launcher.searches.sessions.values()],
    }
    if job:
        body["why"] = _why(launcher, job)
    else:
        body["nodes"] = _nodes(launcher)
    return body


def _search(launcher: Launcher, session: Session) -> dict[str, Any]:
    report = session.report
    return {
        "job": session.job.id,
        "name": session.job.name,
        "workflow": session.job.workflow,
        "capacity": session.capacity,
        "running": launcher.dispatcher.evaluations_of(session.job.id),
        "best": report.best if report else None,
        "best_config": dict(report.best_config) if report else {},
        "done": report.done if report else 0,
        "failed": report.failed if report else 0,
        "max_evals": report.max_evals if report else 0,
    }


def _nodes(launcher: Launcher) -> list[dict[str, Any]]:
    jobs: dict[str, list[str]] = {}
    for run in launcher.dispatcher.running.values():
        for name in run.placement.nodes:
            jobs.setdefault(name, []).append(run.job.name)
    served = launcher.fleet.places() if launcher.fleet is not None else {}
    masters = set(launcher.masters_nodes())
    elsewhere = set(launcher.allocation.found.elsewhere) - served.keys()
    shown = []
    for node in launcher.pool.nodes:
        agent, state, host = served.get(node.name, (None, "here", node.address))
        if node.name in masters:
            state = "master's"
        elif node.name in elsewhere:
            state = "other host"
        elif state == "here" and launcher.pool.is_set_aside(node.name):
            state = "set aside"
        shown.append(_node(launcher, node, agent, state, host, jobs.get(node.name, [])))
    return shown


def _node(
    launcher: Launcher, node: Node, agent: int | None, state: str, host: str, jobs: list[str]
) -> dict[str, Any]:
    return {
        "name": node.name,
        "host": host,
        "agent": agent,
        "state": state,
        "cores": len(node.cores),
        "gpus": len(node.gpus),
        "free": float(launcher.pool.free_share(node.name)),
        "jobs": jobs[:100],
        "running": len(jobs),
    }


def _why(launcher: Launcher, job_id: str) -> str:
    for run in launcher.dispatcher.running.values():
        if run.job.id == job_id:
            where, since = ", ".join(run.placement.nodes), time.time() - run.claimed
            stuck = f"; {launcher.dispatcher.deadlock}" * bool(launcher.dispatcher.deadlock)
            return f"it is running on {where} for {since:.0f} s (attempt {run.job.attempt}){stuck}"
    if said := launcher.dispatcher.stages.why(job_id):
        return said
    for job in launcher.dispatcher.queue:
        if job.id == job_id:
            return launcher.dispatcher.why_not(job)
    if job_id in launcher.dispatcher.never:
        return launcher.dispatcher.never[job_id]
    return ""
