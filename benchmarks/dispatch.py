"""How fast evaluations that do nothing are run, beside peers that do the same file work in the same run.

``python -m benchmarks.dispatch [--evaluations N] [--json]``. Each task: a directory, a job file, the program
or function in a process of its own, a result file moved into place. Keys:

external_per_s           no-op programs (/bin/true) by this launcher; external_cpu_ms its CPU time for each
xargs_per_s, parsl_per_s the same work by ``xargs -P`` and by Parsl's bash_app (when Parsl is installed)
python_isolated_per_s    no-op run functions, each in a process forked from a warm interpreter
python_packed_per_s      the same with a line in a file for each instead of a directory
fresh_interpreter_per_s  the same with a fresh interpreter for each
latency_p50_ms, _p95_ms  end of an evaluation -> seen by the search, at no more than 100 ends per second
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.common import (
    Load,
    command,
    drive,
    environment,
    launch,
    percentile,
    show,
    workplace,
)

TASK = """
d="$1/task$2"; mkdir -p "$d" && cd "$d" && echo '{"id": "'"$2"'", "name": "task"}' > job.json &&
/bin/true > task.out 2>&1 && echo '{"outcome": "ok", "return_code": 0}' > .result.json &&
mv .result.json result.json &&
{ [ -s task.out ] || rm task.out; }
"""


def external(count: int, workers: int) -> dict[str, float]:
    """No-op programs through the launcher."""
    with workplace() as place:
        site = place / "site"
        command("init", str(site), cwd=place)
        command("--site", str(site), "app", "--name", "TRUE", "--exec", "/bin/true", cwd=place)
        add_jobs(site, count, workers)
        cost = launch(site, place, "--job-mode", "serial")
        lines = (site / "data" / "bench" / "attempts.jsonl").read_text().splitlines()
        attempts = [json.loads(line) for line in lines]
    span = max(a["end"] for a in attempts) - min(a["start"] for a in attempts)
    return {"external_per_s": count / span, "external_launcher_cpu_ms": 1e3 * cost.cpu_s / count}


def add_jobs(site: Path, count: int, workers: int) -> None:
    """Insert the jobs at once: typing commands is not what is measured."""
    from nas_hpc.records import Job, Resources, new_id
    from nas_hpc.states import Actor
    from nas_hpc.store import open_store

    store = open_store(site / "db.sqlite3")
    need = Resources(node_packing_count=workers)
    jobs = [
        Job(new_id(), f"task{n}", "bench", application="TRUE", resources=need, created=time.time())
        for n in range(1, count + 1)
    ]
    store.add_jobs(jobs, Actor.COMMAND)
    store.close()


def xargs(count: int, workers: int) -> float:
    """The same by xargs and a shell for each."""
    with workplace() as place:
        numbers = "\n".join(map(str, range(count)))
        begun = time.monotonic()
        subprocess.run(
            ["xargs", "-P", str(workers), "-n", "1", "/bin/sh", "-c", TASK, "task", str(place)],
            input=numbers, text=True, check=True,
        )  # fmt: skip
        return count / (time.monotonic() - begun)


def parsl(count: int, workers: int) -> float | None:
    """The same by Parsl's HighThroughputExecutor, in a process of its own; None without Parsl."""
    if importlib.util.find_spec("parsl") is None:
        return None
    with workplace() as place:
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.parsl_peer", str(count), str(workers), str(place)],
            cwd=place, env=_peer_environment(), capture_output=True, text=True,
        )  # fmt: skip
        if done.returncode:
            raise SystemExit(f"the Parsl peer failed:\n{done.stderr[-3000:]}")
        return float(done.stdout.split()[-1])


def _peer_environment() -> dict[str, str]:
    """Parsl finds its worker program on PATH."""
    return {**environment(), "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


def rate(attempts: list[dict[str, Any]]) -> float:
    """Evaluations per second between the first start and the last end."""
    mine = [a for a in attempts if a["creator"]]
    return len(mine) / (max(a["end"] for a in mine) - min(a["start"] for a in mine))


def functions(count: int, workers: int, *flags: str) -> float:
    """No-op run functions through a search."""
    with workplace() as place:
        _, attempts, _ = drive(Load(count, workers_per_node=workers), place, *flags)
        return rate(attempts)


def latency() -> dict[str, float]:
    """End to seen, at about 50 ends per second."""
    with workplace() as place:
        record, _, _ = drive(Load(count=300, seconds=0.3, workers_per_node=16, spread=0.9), place)
    values = record["latency_s"]
    return {"latency_p50_ms": 1e3 * percentile(values, 0.5), "latency_p95_ms": 1e3 * percentile(values, 0.95)}


def measure(count: int, workers: int) -> dict[str, Any]:
    """All figures; a peer's place is None where the peer is missing."""
    figures: dict[str, Any] = external(count, workers)
    figures["xargs_per_s"] = xargs(count, workers) if shutil.which("xargs") else None
    figures["parsl_per_s"] = parsl(count, workers)
    figures["python_isolated_per_s"] = functions(count, workers)
    figures["python_packed_per_s"] = functions(count, workers, "--task-directories", "packed")
    figures["fresh_interpreter_per_s"] = functions(max(20, count // 10), workers, "--fresh-interpreter")
    figures |= latency()
    for peer in ("xargs_per_s", "parsl_per_s"):
        if figures[peer]:
            figures[f"external_over_{peer[:-6]}"] = figures["external_per_s"] / figures[peer]
    figures["packed_over_isolated"] = figures["python_packed_per_s"] / figures["python_isolated_per_s"]
    figures["isolated_over_fresh"] = figures["python_isolated_per_s"] / figures["fresh_interpreter_per_s"]
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--evaluations", type=int, default=500)
    parser.add_argument("--workers", type=int, default=max(2, os.cpu_count() or 2))
    parser.add_argument("--json", action="store_true")
    flags = parser.parse_args()
    show(measure(flags.evaluations, flags.workers), flags.json)


if __name__ == "__main__":
    main()
