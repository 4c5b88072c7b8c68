"""Huge pages for what is forked: nothing is lost, and nothing is filled up."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

GATHER = """
import ctypes, json, mmap, os, random
from nas_hpc.processes import memory
def of(field, path="/proc/self/smaps_rollup"):
    return sum(int(line.split()[1]) for line in open(path) if line.startswith(field))
sparse = mmap.mmap(-1, 256 << 20)
for start in range(0, len(sparse), 2 << 20):
    sparse[start] = 1
random.seed(7)
values = [str(random.random()) for _ in range(400_000)]
whole = hash(tuple(values))
before, rss = of("AnonHuge"), of("Rss")
limit = memory.gather(0.0)
done = memory.gather()
print(json.dumps({
    "none": limit, "done": done, "huge_kb": of("AnonHuge") - before, "grown_kb": of("Rss") - rss,
    "same": hash(tuple(values)) == whole,
}))
"""


def test_dense_memory_is_gathered_and_sparse_memory_is_left_alone(checkout: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", GATHER], cwd=checkout, capture_output=True, text=True, check=True, timeout=60
    )
    told = json.loads(done.stdout)
    assert told["same"]
    assert told["none"] == 0, "it ends when its time is over"
    if told["done"] == 0:  # this kernel cannot, or has no huge page to give
        assert told["huge_kb"] == 0
        return
    assert told["huge_kb"] >= 1024 * told["done"]
    assert told["grown_kb"] < 2048 * told["done"] * 0.3 + 4096
