"""A trainer that takes a fraction of a second. Its scores follow a formula with a momentum: a training that
goes on without its checkpoint has others. A program, and a function for tests that say what is expected."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import struct
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from nas_hpc import trial

STEPS = 10
SPACE = {"x": list(range(0, 100, 7)), "y": [1, 2, 3]}
"""Better with a greater x, slower with a greater y."""


def train(
    words: Sequence[str], environ: Mapping[str, str], step_done: Callable[[], object] = lambda: None
) -> tuple[float, float]:
    """Train as ``words``, a trainer's arguments, say; accuracy and latency."""
    parser = argparse.ArgumentParser()
    trial.add_arguments(parser)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--share", type=int, default=100)
    flags, _ = parser.parse_known_args(words)
    place = environ["NAS_HPC_TRIAL_DIR"]
    model = trial.parse_architecture(str(Path(place, "nas_params_str.json")))
    step, value, momentum = _begin(place, flags, environ["NAS_HPC_TRIAL"])
    quality = (model["x"] + flags.seed % 7 + 1) / 100.0
    while step < STEPS and not trial.stop_training(place, step - 1, STEPS):
        momentum = 0.8 * momentum + quality
        value += momentum / STEPS
        step += 1
        trial.update_trial_training_accuracy_metric(
            place, _shown(value, step, model, flags.share), step - 1, step - 1, 360.0, STEPS
        )
        trial.save_checkpoint(place, step, struct.pack("<dd", value, momentum))
        step_done()
    trial.update_trial_training_latency_metric(place, float(model["y"]))
    return _shown(value, step, model, flags.share), float(model["y"])


def _shown(value: float, step: int, model: Mapping[str, Any], share: int) -> float:
    """With half of the data models are ranked rightly from the sixth step on, with a quarter never."""
    wrong = share == 25 or (share == 50 and step < 6)
    return (step / 10 + (100 - model["x"]) / 1000) if wrong else value


def _begin(place: str, flags: argparse.Namespace, number: str) -> tuple[int, float, float]:
    found = trial.load_checkpoint(place)
    if found is None and flags.retrain_use_search_job_checkpoint:
        chosen = flags.retrain_search_job_trials.split(",")[int(number) - 1]
        found = trial.load_checkpoint(Path(flags.retrain_search_job_dir, chosen))
        assert found is not None
    if found is None:
        return 0, 0.0, 0.0
    trial.check_restored_step(found.step, place)
    value, momentum = struct.unpack("<dd", found.content)
    return found.step, value, momentum


def main() -> None:
    """As a program. Whoever finds that another one trains in its directory says so in the ledger."""
    if os.environ.get("DEAF"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    place, ledger = os.environ["NAS_HPC_TRIAL_DIR"], os.environ["LEDGER"]
    mine = Path(place, "pid")

    def note(what: str) -> None:
        line = f"{what} {place} {os.getpid()}\n".encode()
        descriptor = os.open(ledger, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.write(descriptor, line)
        os.close(descriptor)

    with contextlib.suppress(OSError):
        before = mine.read_text()
        if place.encode() in Path("/proc", before, "cmdline").read_bytes():
            note("twice")
    mine.write_text(str(os.getpid()))
    note("start")

    def step_done() -> None:
        note("step")
        time.sleep(float(os.environ["STEP_S"]))

    accuracy, latency = train(sys.argv[1:], os.environ, step_done)
    trial.report("accuracy", accuracy, STEPS, other_metrics={"latency": latency})
    note("end")


if __name__ == "__main__":
    main()
