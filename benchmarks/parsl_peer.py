"""Parsl's side of the dispatch benchmark: ``parsl_peer COUNT WORKERS DIRECTORY`` prints tasks per second."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import parsl
from parsl.config import Config
from parsl.executors import HighThroughputExecutor
from parsl.providers import LocalProvider


@parsl.bash_app
def task(number: int, place: str) -> str:
    """What ``dispatch.TASK`` does, as a bash_app."""
    return (
        f'd="{place}/task{number}"; mkdir -p "$d" && cd "$d" && '
        f'echo \'{{"id": "{number}", "name": "task"}}\' > job.json && /bin/true > task.out 2>&1 && '
        'echo \'{"outcome": "ok", "return_code": 0}\' > .result.json && mv .result.json result.json && '
        "{ [ -s task.out ] || rm task.out; }"
    )


def main() -> None:
    count, workers, place = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    executor = HighThroughputExecutor(
        max_workers_per_node=workers,
        address="127.0.0.1",
        provider=LocalProvider(init_blocks=1, max_blocks=1),
    )
    with parsl.load(Config(executors=[executor], run_dir=str(Path(place) / "runinfo"))):
        task(-1, place).result()  # the workers are up
        begun = time.monotonic()
        for future in [task(number, place) for number in range(count)]:
            future.result()
        print(count / (time.monotonic() - begun))


if __name__ == "__main__":
    main()
