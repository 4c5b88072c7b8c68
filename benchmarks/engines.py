"""The same search, whose evaluations do nothing, on each engine: ``python -m benchmarks.engines [--json]``.

Under ``engines`` an object for each of embedded (SQLite in the site), postgres (the site's own server) and
balsam (a real Balsam classic, of ``launch_scripts/setup_balsam.sh``, with its own launcher), null where its
programs are missing. All in serial mode with as many places on one node; Balsam's search has one.

Keys:

evaluations_per_s        evaluations over the time from the first start to the last end of one
latency_p50_ms, _p95_ms  end of an evaluation -> gathered by its search
utilization              busy over available evaluator-seconds, as deephyper-analytics says
evaluators               the most at once
wall_s                   from the launcher's start to the search's end
"""

from __future__ import annotations

import argparse
import json
import os
import pwd
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from benchmarks.common import REPOSITORY, Load, command, launch, percentile, workplace
from nas_hpc.analytics import summarize
from tests.peers.balsam import Balsam, directory, missing_balsam
from tests.peers.postgres import missing_postgres
from tests.support import wait_until

DRIVER = f"{sys.executable} -m benchmarks.driver"
WORKFLOW = "bench"
PATIENCE_S = 900.0
ENDED = ("RUN_DONE", "POSTPROCESSED", "JOB_FINISHED")
Figures = dict[str, float | int]


def figures(data: Path, count: int, wall_s: float) -> Figures:
    """What the search and the records of its evaluations say; ``data``: the workflow's directory."""
    record = json.loads(next(data.glob("driver_*/driver.json")).read_text())
    found = summarize(data)
    if found.n_ok != count or found.utilization is None:
        raise SystemExit(f"{found.n_ok} of {count} evaluations in {data} are ok: {dict(found.failures)}")
    latency_s = record["latency_s"]
    return {
        "evaluations_per_s": count / found.elapsed_s,
        "latency_p50_ms": 1e3 * percentile(latency_s, 0.5),
        "latency_p95_ms": 1e3 * percentile(latency_s, 0.95),
        "utilization": found.utilization,
        "evaluators": found.slots,
        "wall_s": wall_s,
    }


def of_site(load: Load, place: Path, *flags: str) -> Figures:
    """On a site made with ``flags``, under this project's launcher."""
    site = place / "site"
    command("init", str(site), *flags, cwd=place)
    at = ["--site", str(site)]
    command(*at, "app", "--name", "DRIVER", "--exec", DRIVER, "--restartable", cwd=place)
    command(
        *at, "job", "--name", "driver", "--workflow", WORKFLOW, "--app", "DRIVER",
        "--node-packing-count", str(load.workers_per_node),
        "--env", f"DEEPHYPER_WORKERS_PER_NODE={load.workers_per_node}",
        "--args", f"'{json.dumps(asdict(load))}'", cwd=place,
    )  # fmt: skip
    cost = launch(site, place, "--job-mode", "serial")
    return figures(site / "data" / WORKFLOW, load.count, cost.wall_s)


def embedded(load: Load) -> Figures:
    """SQLite in the site."""
    with workplace() as place:
        return of_site(load, place)


def postgres(load: Load) -> Figures | None:
    """A PostgreSQL server of the site's own."""
    if missing := missing_postgres():
        return _without("postgres", missing)
    flags = ["--postgres"]
    if os.geteuid() == 0:
        known = {entry.pw_name for entry in pwd.getpwall()}
        flags += ["--server-user", "postgres" if "postgres" in known else "nobody"]
    with workplace() as place:
        place.chmod(0o711)  # the server's user passes
        try:
            return of_site(load, place, *flags)
        finally:
            command("--site", str(place / "site"), "db", "stop", cwd=place)


def balsam(load: Load) -> Figures | None:
    """Balsam's database and launcher."""
    if missing := missing_balsam():
        return _without("balsam", missing)
    found = directory()
    assert isinstance(found, Path)
    peer = Balsam(found, Path(tempfile.mkdtemp(prefix="nhbal", dir="/tmp")))
    os.environ["NAS_HPC_BALSAM_PYTHON"] = str(peer.python)
    try:
        peer.make()
        return of_balsam(load, peer)
    finally:
        peer.end()


def of_balsam(load: Load, peer: Balsam) -> Figures:
    """The same by Balsam's own commands, as its user types them."""
    peer.balsam("app", "--name", "DRIVER", "--executable", DRIVER)
    words = json.dumps(asdict(load), separators=(",", ":"))
    peer.balsam(
        "job", "--name", "driver", "--workflow", WORKFLOW, "--application", "DRIVER", "--args", f"'{words}'",
        "--node-packing-count", str(load.workers_per_node), "--yes",
        "--env", f"DEEPHYPER_WORKERS_PER_NODE={load.workers_per_node}",
    )  # fmt: skip
    with peer.serial():  # waiting for others' launchers is not what is measured
        begun = time.monotonic()
        launcher = peer.launcher(
            "--wf-filter", WORKFLOW, "--job-mode", "serial", "--time-limit-minutes", "60",
            PYTHONPATH=str(REPOSITORY),
        )  # fmt: skip

        def over() -> bool:
            state = next(job["state"] for job in peer.jobs(WORKFLOW) if job["name"] == "driver")
            if state == "FAILED" or launcher.poll() is not None:
                raise SystemExit(f"the search under Balsam failed: {_last_words(peer)}")
            return state in ENDED

        wait_until(over, PATIENCE_S, "the search under Balsam")
        wall_s = time.monotonic() - begun
        peer.end_launcher(launcher)
    return figures(peer.database / "data" / WORKFLOW, load.count, wall_s)


def _last_words(peer: Balsam) -> str:
    places = [
        peer.job_directory(job) / "driver.out" for job in peer.jobs(WORKFLOW) if job["name"] == "driver"
    ]
    said = "".join(path.read_text(errors="replace") for path in places if path.exists())
    return said[-2000:] or (peer.top / "launcher.out").read_text(errors="replace")[-2000:]


def _without(engine: str, missing: str) -> None:
    print(f"without {engine}: {missing}", file=sys.stderr)


ENGINES: dict[str, Callable[[Load], Figures | None]] = {
    "embedded": embedded,
    "postgres": postgres,
    "balsam": balsam,
}


def measure(load: Load) -> dict[str, Figures | None]:
    """Each engine, one after the other."""
    return {name: engine(load) for name, engine in ENGINES.items()}


def show(found: dict[str, Figures | None], as_json: bool) -> None:
    """Print the figures side by side, or as JSON."""
    rounded = {
        name: of
        and {key: round(value, 4) if isinstance(value, float) else value for key, value in of.items()}
        for name, of in found.items()
    }
    if as_json:
        print(json.dumps({"engines": rounded}))
        return
    print(f"{'':20}" + "".join(f"{name:>12}" for name in rounded))
    for key in next((of for of in rounded.values() if of), {}):
        print(f"{key:20}" + "".join(f"{of[key]:>12}" if of else f"{'':>12}" for of in rounded.values()))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--evaluations", type=int, default=200)
    parser.add_argument("--workers", type=int, default=8, help="places on the node")
    parser.add_argument("--json", action="store_true")
    flags = parser.parse_args()
    show(measure(Load(flags.evaluations, workers_per_node=flags.workers)), flags.json)


if __name__ == "__main__":
    main()
