"""What the benchmarks share: a throw-away site, a launcher on it, a search that is nothing but a driver."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

REPOSITORY = Path(__file__).resolve().parent.parent
AGENTS_COME_S = 10.0
_AGENTS = ("launcher.node_agent", "processes.supervisor")


@contextlib.contextmanager
def workplace(directory: str = "") -> Iterator[Path]:
    """A temporary directory; on tmpfs unless another is named, so that the disk is not what is measured."""
    base = directory or ("/dev/shm" if os.access("/dev/shm", os.W_OK) else None)
    path = Path(tempfile.mkdtemp(prefix="nas-hpc-bench-", dir=base))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def environment() -> dict[str, str]:
    """The environment of the benchmark's commands: the package of this checkout."""
    return {**os.environ, "PYTHONPATH": str(REPOSITORY), "NAS_HPC_SITE": ""}


def command(*arguments: str, cwd: Path) -> None:
    """Run one ``nas-hpc`` command; its output is shown only if it fails."""
    done = subprocess.run(
        [sys.executable, "-m", "nas_hpc.cli", *arguments],
        cwd=cwd,
        env=environment(),
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SystemExit(f"nas-hpc {' '.join(arguments)} failed:\n{done.stdout}{done.stderr}")


@dataclass(frozen=True, slots=True)
class Load:
    """What a driver submits: ``count`` evaluations of ``seconds``; ``window`` of them at once (0: as many
    as there are evaluators, twice)."""

    count: int
    seconds: float = 0.0
    window: int = 0
    workers_per_node: int = 2
    spread: float = 0.0
    """Each takes between (1 - spread) and (1 + spread) of ``seconds``, so that ends do not come in bursts."""
    program: bool = False
    """Programs, by a job specification, instead of a run function in forks of a warm interpreter."""


@dataclass(frozen=True, slots=True)
class Machine:
    """What the launcher and its agents cost: CPU seconds, and the sum of their largest resident sets."""

    wall_s: float
    cpu_s: float
    rss_bytes: int


def drive(
    load: Load, place: Path, *launcher_flags: str
) -> tuple[dict[str, Any], list[dict[str, Any]], Machine]:
    """Run ``load`` through a fresh site: the driver's own record, the attempts, and the launcher's cost."""
    site = place / "site"
    command("init", str(site), cwd=place)
    flags = ["--site", str(site)]
    driver = f"{sys.executable} -m benchmarks.driver"
    command(*flags, "app", "--name", "DRIVER", "--exec", driver, "--restartable", cwd=place)
    command(
        *flags, "job", "--name", "driver", "--workflow", "bench", "--app", "DRIVER",
        "--node-packing-count", str(load.workers_per_node),
        "--env", f"DEEPHYPER_WORKERS_PER_NODE={load.workers_per_node}",
        "--args", f"'{json.dumps(asdict(load))}'", cwd=place,
    )  # fmt: skip
    cost = launch(site, place, "--job-mode", "serial", *launcher_flags)
    data = site / "data" / "bench"
    record = json.loads(next(data.glob("driver_*/driver.json")).read_text())
    attempts = [json.loads(line) for line in (data / "attempts.jsonl").read_text().splitlines()]
    return record, attempts, cost


def launch(site: Path, place: Path, *flags: str) -> Machine:
    """Run a launcher on ``site`` to its end."""
    log = place / "launcher.log"
    with log.open("wb") as out:
        process = psutil.Popen(
            [sys.executable, "-m", "nas_hpc.cli", "--site", str(site), "launcher", *flags],
            cwd=place, env=environment(), stdout=out, stderr=subprocess.STDOUT,
        )  # fmt: skip
        begun = time.monotonic()
        cost: dict[psutil.Process, tuple[float, int]] = {process: (0.0, 0)}
        while True:
            if time.monotonic() - begun < AGENTS_COME_S:
                cost |= {agent: (0.0, 0) for agent in _agents(site) if agent not in cost}
            for one, (_, rss) in cost.items():
                with contextlib.suppress(psutil.Error):
                    times = one.cpu_times()
                    cost[one] = times.user + times.system, max(rss, one.memory_info().rss)
            try:
                code = process.wait(0.5)
                break
            except psutil.TimeoutExpired:
                continue
    if code:
        raise SystemExit(f"the launcher ended with {code}:\n{log.read_text()[-3000:]}")
    spent = cost.values()
    return Machine(time.monotonic() - begun, sum(cpu_s for cpu_s, _ in spent), sum(rss for _, rss in spent))


def _agents(site: Path) -> list[psutil.Process]:
    """The agent processes and supervisors of a site."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            line = process.cmdline()
            if any(f"nas_hpc.{of}" in part for part in line for of in _AGENTS) and any(
                part.startswith(str(site)) for part in line
            ):
                found.append(process)
    return found


def percentile(values: list[float], share: float) -> float:
    """The value below which ``share`` of ``values`` lie."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def show(figures: dict[str, Any], as_json: bool) -> None:
    """Print the figures, rounded, one a line or as JSON."""
    rounded = {k: round(v, 4) if isinstance(v, float) else v for k, v in figures.items()}
    if as_json:
        print(json.dumps(rounded))
    else:
        for key, value in rounded.items():
            print(f"{key:32} {value}")
