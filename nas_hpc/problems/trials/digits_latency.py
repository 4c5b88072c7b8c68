"""A calculator: measures the latency of a network that ``nas_hpc.problems.trials.digits_numpy`` has exported.

python -m nas_hpc.problems.trials.digits_latency --saved-model-dir=/tmp/digits/saved_model
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

from nas_hpc.problems.trials.convolution import Network


def main(argv: Sequence[str] | None = None) -> None:
    """Print the median of many looks at one image each, in milliseconds, and what the network takes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--saved-model-dir", "--saved_model_dir", type=Path, required=True)
    parser.add_argument("--looks", type=int, default=200)
    flags, _ = parser.parse_known_args(argv)  # --nas-params-str and --job-dir are given, too
    threadpool_limits(1)
    network = Network(json.loads((flags.saved_model_dir / "layers.json").read_text()), (8, 8, 1), 0)
    with np.load(flags.saved_model_dir / "weights.npz") as weights:
        network.load_weights(weights)
    image = np.random.default_rng(0).random((1, 8, 8, 1), np.float32)
    times = []
    for _ in range(flags.looks):
        start = time.perf_counter()
        network.predict(image)
        times.append(time.perf_counter() - start)
    memory = sum(one.nbytes for one in network.weights().values())
    print(json.dumps({"latency_in_milli_seconds": 1000.0 * statistics.median(times), "model_memory": memory}))


if __name__ == "__main__":
    main()
