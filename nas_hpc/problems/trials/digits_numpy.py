"""A trial's trainer in plain Python: ``nas_hpc.problems.trials.digits`` with numpy, in a second or two.

python -m nas_hpc.problems.trials.digits_numpy --nas-params-str='{"filters_1": 4, "kernel_1": 3, …}'
"""

from __future__ import annotations

import argparse
import json
import time
import timeit
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from nas_hpc import trial
from nas_hpc.problems.trials import digits
from nas_hpc.problems.trials.convolution import Network

BATCH = 32


def main(argv: Sequence[str] | None = None) -> None:
    """Train one network; report its validation accuracy, and what it costs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    trial.add_arguments(parser)
    parser.add_argument("--epochs", type=digits.count, default=12)
    parser.add_argument("--steps", type=int, default=0, help="batches, instead of epochs")
    parser.add_argument("--validations", type=digits.count, default=10, help="how often it is validated")
    parser.add_argument("--share", type=float, default=1.0, help="of the training data")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--target-latency-ms", type=float, default=0.0, help="report a reward with it, too")
    flags = parser.parse_args(argv)
    place = flags.job_dir or None
    threadpool_limits(1)  # the matrices are so small that several threads only wait for each other

    parameters = trial.read_architecture(flags)
    trial.save_architecture(place, parameters, digits.expand(parameters))
    (x, y), validation = digits.load_data(flags.share, flags.seed)
    network = Network(digits.expand(parameters), (8, 8, 1), flags.seed)
    found = trial.find_checkpoint(flags)
    if found is not None:
        network.restore(found.arrays())

    total = flags.steps or flags.epochs * -(-len(y) // BATCH)
    cycle = max(1, -(-total // flags.validations))
    while network.step < total and not trial.stop_training(place, network.step - 1, total):
        begin, start = network.step, time.perf_counter()
        for step in range(begin, min(total, (begin // cycle + 1) * cycle)):
            if trial.should_stop():
                return  # the allocation ends; the next one goes on from the checkpoint
            rows = np.random.default_rng((flags.seed, step)).choice(len(y), BATCH)
            network.train(x[rows], y[rows], digits.learning_rate(parameters["learning_rate"], step, total))
        spent = time.perf_counter() - start
        accuracy = network.accuracy(*validation)
        trial.update_trial_training_accuracy_metric(place, accuracy, begin, network.step - 1, spent, total)
        trial.save_checkpoint(
            place, network.step, network.state()
        )  # last: an interrupted cycle is made again

    accuracy = network.accuracy(*validation)
    if place:
        export(network, parameters, Path(place, "saved_model"))
    measured = trial.wait_for_latency(place)  # who measures, if anybody does, is the search's business
    latency_ms = measured["latency_in_milli_seconds"] if measured else own_latency_ms(network, validation[0])
    trial.update_trial_training_latency_metric(place, latency_ms)
    costs = {"latency_ms": latency_ms, "flops": network.flops, "parameters": network.parameters}
    if flags.retrain_search_job_trials:
        costs["nas_trial_id"] = int(trial.nas_trial_id(flags.retrain_search_job_trials))
    if flags.target_latency_ms:
        costs["reward"] = trial.compute_reward(accuracy, flags.target_latency_ms, latency_ms)
    trial.report("accuracy", accuracy, network.step, other_metrics=costs)
    print(f"accuracy {accuracy:.4f} after {network.step} steps")


def own_latency_ms(network: Network, images: NDArray[np.float32]) -> float:
    """Of one image, on what it was trained on, in a batch of many."""
    few = images[:64]  # that takes less time than others get the core for
    looks = timeit.repeat(lambda: network.predict(few), number=1, repeat=100)
    return 1000.0 * min(looks) / len(few)


def export(network: Network, parameters: Mapping[str, Any], place: Path) -> None:
    """Leave the trained network as ``digits_latency`` reads it."""
    place.mkdir(parents=True, exist_ok=True)
    np.savez(place / "weights.npz", **network.weights())
    (place / "layers.json").write_text(json.dumps(digits.expand(parameters)))


if __name__ == "__main__":
    main()
