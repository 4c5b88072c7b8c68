"""A search that only keeps evaluators busy and writes down when it saw each result (``driver.json``)."""

from __future__ import annotations

import json
import random
import sys
import time
from pathlib import Path

from benchmarks.common import Load
from nas_hpc import JobSpec, job_specification
from nas_hpc.evaluator import Settings, create


@job_specification
def program(config: dict[str, float]) -> JobSpec:
    """The same as a program: a shell that sleeps and prints an objective."""
    return JobSpec(argv=("/bin/sh", "-c", 'sleep "$0"; echo DH-OUTPUT: 0', str(config["seconds"])))


def main() -> None:
    load = Load(**json.loads(sys.argv[1]))
    seen: dict[int, tuple[float, float]] = {}
    left = load.count
    chance = random.Random(0)
    settings = Settings(run="benchmarks.idle.sleep")
    if load.program:
        settings = Settings(run="benchmarks.driver.program", specify=program)
    with create("auto", settings) as evaluator:

        def submit(number: int) -> None:
            nonlocal left
            number = min(number, left)
            left -= number
            if number:
                seconds = [load.seconds * (1 + load.spread * chance.uniform(-1, 1)) for _ in range(number)]
                evaluator.submit([{"seconds": duration} for duration in seconds])

        # By default one more than there are evaluators waits, so that the search's round trip is hidden.
        submit(load.window or 2 * evaluator.capacity())
        while len(seen) < load.count:
            results = evaluator.gather(1)
            now = time.time()
            seen |= {result.id: (result.end, now) for result in results}
            submit(len(results))
        record = {"capacity": evaluator.capacity(), "latency_s": [now - end for end, now in seen.values()]}
    Path("driver.json").write_text(json.dumps(record))


if __name__ == "__main__":
    main()
