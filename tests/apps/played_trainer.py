"""A trainer that takes no time: its scores follow a formula of its parameters, its files are those of a real
one, written by the functions that real ones call. And a launcher that runs it for the controllers of rounds.

Its state has a momentum, as an optimizer has: a training that goes on without it has other scores.
"""

from __future__ import annotations

import argparse
import json
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from nas_hpc import trial, wire
from nas_hpc.apps.progress import Interrupted
from nas_hpc.apps.proxy.tool import StateFile
from nas_hpc.apps.trials.runner import TrialRunner
from nas_hpc.apps.trials.spec import TrialsSpec
from nas_hpc.evaluator import LauncherEvaluator, Settings
from nas_hpc.evaluator.client import Client
from nas_hpc.trial.proxy import stop_training, update_trial_training_accuracy_metric
from nas_hpc.wire import Shape
from tests.evaluator.peer import Peer

STEPS = 20
SPACE = {"x": list(range(0, 100, 7)), "y": [1, 2, 3]}
"""Better with a greater x, slower with a greater y."""


@dataclass
class Trainer:
    """What it does with which parameters."""

    fails: Callable[[Mapping[str, Any]], str] = lambda parameters: ""
    """The class of the failure, or "" for none."""
    noise: float = 0.0
    """How much of a score is the seed's."""
    score: Callable[[Mapping[str, Any], float], float] = lambda parameters, share: share
    latency: Callable[[Mapping[str, Any]], float] = lambda parameters: float(parameters["y"])
    records: bool = True
    steps: dict[str, list[int]] = field(default_factory=dict)
    """The steps that were made, by directory."""

    def run(self, ask: wire.Ask) -> float:
        """Train as ``ask`` says; the reward."""
        place = ask.environ["NAS_HPC_TRIAL_DIR"]
        parameters = json.loads(Path(place, "nas_params_str.json").read_text())
        reason_class = self.fails(parameters)
        if reason_class:
            status = {"job_status": "failed", "reason_class": reason_class, "reason": f"it is {reason_class}"}
            Path(place, "job_status.json").write_text(json.dumps(status))
            raise RuntimeError(reason_class)
        parser = argparse.ArgumentParser()
        trial.add_arguments(parser)
        parser.add_argument("--seed", type=int, default=0)
        flags, _ = parser.parse_known_args(list(ask.argv[ask.argv.index("--") + 2 :]))
        flags.number = ask.environ["NAS_HPC_TRIAL"]
        score = self._train(place, parameters, flags)
        latency = self.latency(parameters)
        if self.records:
            trial.update_trial_training_latency_metric(place, latency)
        line = {"step": STEPS, "value": score, "metric": "accuracy", "other_metrics": {"latency": latency}}
        Path(place, "metrics.jsonl").write_text(json.dumps(line) + "\n")
        return score

    def _train(self, place: str, parameters: Mapping[str, Any], flags: argparse.Namespace) -> float:
        step, value, momentum = self._begin(place, flags)
        made = self.steps.setdefault(place, [])
        quality = parameters["x"] / 100.0 + self.noise * (flags.seed % 1000) / 1000.0
        while step < STEPS and not stop_training(place, step - 1, STEPS):
            momentum = 0.8 * momentum + quality
            value += momentum / STEPS
            made.append(step)
            step += 1
            if self.records:
                shown = value * self.score(parameters, 1.0) / 4.0
                update_trial_training_accuracy_metric(place, shown, step - 1, step - 1, 1.0, STEPS)
                trial.save_checkpoint(place, step, struct.pack("<dd", value, momentum))
        return value * self.score(parameters, 1.0) / 4.0

    def _begin(self, place: str, flags: argparse.Namespace) -> tuple[int, float, float]:
        found = trial.load_checkpoint(place)
        if found is None and flags.retrain_use_search_job_checkpoint:
            chosen = flags.retrain_search_job_trials.split(",")[int(flags.number) - 1]
            found = trial.load_checkpoint(Path(flags.retrain_search_job_dir, chosen))
            assert found is not None
        if found is None:
            return 0, 0.0, 0.0
        trial.check_restored_step(found.step, place)
        value, momentum = struct.unpack("<dd", found.content)
        return found.step, value, momentum


class Played(Peer):
    """A launcher whose evaluations are trainings of ``trainer``."""

    def __init__(self, path: Path, trainer: Trainer, workers: int = 2) -> None:
        super().__init__(path, lambda config: 0.0, workers)
        self.trainer = trainer

    def evaluate(self, ask: wire.Ask) -> float:
        return self.trainer.run(ask)


def spec_in(directory: Path, kind: str, **fields: Any) -> TrialsSpec:
    """What a tool in ``directory`` is asked for; its space is SPACE."""
    directory.mkdir(parents=True, exist_ok=True)
    given: dict[str, Any] = {
        "job_name": "job", "directory": str(directory), "kind": kind, "metric": "accuracy", "seed": 5,
        "space": "tests.apps.played_trainer.SPACE", "trainer": ("played",), "max_parallel": 2, **fields,
    }  # fmt: skip
    return TrialsSpec(**given)


def runner_of(peer: Peer, spec: TrialsSpec, attempt: int = 1) -> TrialRunner:
    """The trials of the job under ``peer``, as its ``attempt`` finds them."""

    def connect(settings: Settings) -> LauncherEvaluator:
        client = Client(peer.path, job=peer.job, attempt=attempt, shape=Shape(), reconnect_s=10.0)
        return LauncherEvaluator(client, replace(settings, shape=Shape()))

    return TrialRunner(spec, connect)


class Killed:
    """Ends the tool at its ``number``-th save: before the file is written, or after."""

    def __init__(self, number: int, *, after: bool) -> None:
        self.left, self.after = number, after
        self.save = StateFile.save

    def __call__(self, state: StateFile) -> None:
        self.left -= 1
        if self.left == 0 and not self.after:
            raise Interrupted(9)
        self.save(state)
        if self.left == 0:
            raise Interrupted(9)
