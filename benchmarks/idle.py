"""The run function of the benchmarks that measure what is around it; to import it costs nothing."""

from __future__ import annotations

import time


def sleep(config: dict[str, float]) -> float:
    """Nothing, for ``seconds``."""
    if config["seconds"]:
        time.sleep(config["seconds"])
    return 0.0
