"""How busy the evaluators are kept: ``python -m benchmarks.utilization --nodes N --workers-per-node W``.

Virtual nodes of this machine, evaluations that sleep. Keys:

busy_share        busy evaluator-seconds over available ones, from the last first-start of a slot to the first
                  idleness for want of work (the last start): the steady state
whole_run_share   the same from the first start to the last end
gap_p50_ms ...    between the end of an evaluation and the start of the next on the same number of busy slots
launcher_cpu_share, launcher_rss_mb   of the launcher, and of its agents where they are processes of their own
"""

from __future__ import annotations

import argparse
import heapq
from typing import Any

from benchmarks.common import Load, drive, percentile, show, workplace


def gaps_s(attempts: list[dict[str, Any]], slots: int) -> list[float]:
    """How long each freed slot stood empty. Slots are alike: the one that was freed first is filled first."""
    free: list[float] = []
    gaps = []
    for attempt in sorted(attempts, key=lambda a: a["start"]):
        if len(free) >= slots:
            gaps.append(attempt["start"] - heapq.heappop(free))
        heapq.heappush(free, attempt["end"])
    return gaps


def busy_share(attempts: list[dict[str, Any]], slots: int, begin: float, end: float) -> float:
    """Busy slot-seconds over ``slots`` between two times."""
    busy = sum(max(0.0, min(a["end"], end) - max(a["start"], begin)) for a in attempts)
    return busy / (slots * (end - begin)) if end > begin else 0.0


def measure(load: Load, *launcher_flags: str) -> dict[str, Any]:
    """Run it and compute the figures."""
    with workplace() as place:
        record, attempts, cost = drive(load, place, *launcher_flags)
    slots = record["capacity"]
    mine = sorted((a for a in attempts if a["creator"]), key=lambda a: a["start"])
    starts = [a["start"] for a in mine]
    gaps = gaps_s(mine, slots)
    return {
        "slots": slots,
        "evaluations": len(mine),
        "busy_share": busy_share(mine, slots, starts[min(slots, len(starts)) - 1], starts[-1]),
        "whole_run_share": busy_share(mine, slots, starts[0], max(a["end"] for a in mine)),
        "gap_p50_ms": 1e3 * percentile(gaps, 0.5),
        "gap_p95_ms": 1e3 * percentile(gaps, 0.95),
        "launcher_cpu_share": cost.cpu_s / cost.wall_s,
        "launcher_rss_mb": cost.rss_bytes / 1e6,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--workers-per-node", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--evaluations", type=int, default=200)
    parser.add_argument("--spread", type=float, default=0.0, help="share by which the seconds differ")
    parser.add_argument("--program", action="store_true", help="programs instead of a run function")
    parser.add_argument("--agents", type=int, default=0)
    parser.add_argument("--task-directories", default="each")
    parser.add_argument("--json", action="store_true")
    flags = parser.parse_args()
    load = Load(
        flags.evaluations,
        flags.seconds,
        workers_per_node=flags.workers_per_node,
        spread=flags.spread,
        program=flags.program,
    )
    more = ("--agents", str(flags.agents), "--task-directories", flags.task_directories)
    show(measure(load, "--nodes", str(flags.nodes), *more), flags.json)


if __name__ == "__main__":
    main()
