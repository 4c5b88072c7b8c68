"""Workflow directories as launchers write them, made up for tests."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ORIGIN = 1_790_000_000.0
SEARCH = "5e" * 16


def job_id(seq: int) -> str:
    """A made-up job id; its first eight digits tell evaluations apart."""
    return f"{seq:08x}" + "0" * 24


def attempt_line(seq: int, start: float, end: float, **fields: Any) -> dict[str, Any]:
    """A line of attempts.jsonl; times are relative to ORIGIN."""
    return {
        "job": job_id(seq),
        "name": f"task{seq}",
        "number": 1,
        "launcher": "a1",
        "creator": SEARCH,
        "seq": seq,
        "nodes": ["host"],
        "cores": [0],
        "slots": 0.25,
        "submitted": ORIGIN,
        "start": ORIGIN + start,
        "end": ORIGIN + end,
        "outcome": "ok",
        "return_code": 0,
        "objective": float(seq),
        "reason": "",
        "cached": False,
        **fields,
    }


def launcher_line(time: float, event: str, slots: int, launcher: str = "a1") -> dict[str, Any]:
    """A line of launchers.jsonl; ``time`` is relative to ORIGIN."""
    return {
        "launcher": launcher,
        "time": ORIGIN + time,
        "event": event,
        "nodes": ["host"],
        "mode": "serial",
        "slots": slots,
        "host": "host",
        "pid": 1,
    }


def write_lines(path: Path, lines: Iterable[dict[str, Any]]) -> None:
    """Write a file of JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def write_directory(workflow: Path, line: dict[str, Any], config: dict[str, Any], **metadata: Any) -> Path:
    """The directory of the evaluation that ``line`` tells of."""
    directory = workflow / f"{line['name']}_{line['job'][:8]}"
    directory.mkdir(parents=True)
    job = {
        "id": line["job"],
        "name": line["name"],
        "workflow": workflow.name,
        "application": "",
        "args": "",
        "attempt": line["number"],
        "creator": line["creator"],
        "seq": line["seq"],
        "num_nodes": 1,
        "ranks_per_node": 1,
        "threads_per_rank": 1,
        "node_packing_count": 4,
        "created": line["submitted"],
        "config": config,
        "run": "problem.run",
        "seed": 1,
    }
    keys = ("job", "outcome", "objective", "reason", "start", "end", "return_code")
    result = {**{key: line[key] for key in keys}, "attempt": line["number"], "metadata": metadata}
    (directory / "job.json").write_text(json.dumps(job))
    (directory / "result.json").write_text(json.dumps(result))
    return directory


def write_search(workflow: Path, search: str = SEARCH, name: str = "test") -> Path:
    """The directory of a search."""
    directory = workflow / f"{name}_{search[:8]}"
    directory.mkdir(parents=True)
    job = {"id": search, "name": name, "workflow": workflow.name, "creator": "", "seq": None, "attempt": 1}
    (directory / "job.json").write_text(json.dumps(job))
    return directory


def make_workflow(workflow: Path, n: int = 40, slots: int = 4, seed: int = 0) -> Path:
    """A whole search of ``n`` evaluations with some failures, on ``slots`` evaluators."""
    rng = random.Random(seed)
    free = [0.0] * slots
    lines = []
    for seq in range(1, n + 1):
        slot = min(range(slots), key=free.__getitem__)
        start = free[slot] + 0.05
        free[slot] = start + rng.uniform(1.0, 3.0)
        failed = rng.random() < 0.08
        objective = None if failed else 0.9 + 0.08 * (1 - rng.random() ** (1 + 3 * seq / n))
        if not failed and rng.random() < 0.03:
            objective = 0.1
        outcome = {"outcome": "error", "reason": "ValueError: the loss is not a number"} if failed else {}
        line = attempt_line(seq, start, free[slot], objective=objective, **outcome)
        config = {"units": rng.randrange(16, 256), "rate": 10 ** rng.uniform(-4, -1), "activation": "relu"}
        write_directory(workflow, line, config, test_accuracy=(objective or 0.0) - 0.01)
        lines.append(line)
    write_lines(workflow / "attempts.jsonl", sorted(lines, key=lambda line: line["end"]))
    ends = [launcher_line(-1, "start", slots), launcher_line(max(free) + 1, "end", 0)]
    write_lines(workflow / "launchers.jsonl", ends)
    write_search(workflow)
    return workflow
