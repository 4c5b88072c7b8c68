"""The run function of architecture searches, called as an evaluation calls it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nas_hpc.errors import WrongCall
from nas_hpc.nas import NaProblem, alpha
from nas_hpc.nas.failures import CannotBuild, NotFinite
from nas_hpc.processes.call import RunningJob, judge
from tests.nas import small

ROOT = Path(__file__).resolve().parents[2]
PATH = "tests.nas.small.Regression"


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """That of an evaluation, whose problem is ``small.Regression``."""
    import signal

    handler = signal.getsignal(signal.SIGTERM)
    monkeypatch.setenv("NAS_HPC_JOB_DIR", str(tmp_path))
    monkeypatch.setenv(alpha.PROBLEM_VARIABLE, PATH)
    monkeypatch.setattr(alpha, "_setups", {})
    yield tmp_path
    signal.signal(signal.SIGTERM, handler)


def evaluate(problem: NaProblem, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setattr(small, "Regression", problem)
    return alpha.run(RunningJob({"arch_seq": small.PLAIN}, "id", 17))


def test_without_a_problem_both_places_for_it_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(alpha.PROBLEM_VARIABLE, raising=False)
    with pytest.raises(WrongCall, match=r'config\["problem"\].*NAS_HPC_PROBLEM'):
        alpha.run({"arch_seq": [0]})


@pytest.mark.slow
def test_a_search_can_look_at_it_without_loading_tensorflow() -> None:
    code = "import sys, nas_hpc.nas.alpha as a; print(callable(a.run.prepare), 'keras' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "False"]


@pytest.mark.parametrize("sequence", [None, 3, "101"])
def test_what_is_no_sequence_is_refused(sequence: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(alpha.PROBLEM_VARIABLE, PATH)
    with pytest.raises(WrongCall, match=r"arch_seq is .*: give the sequence of an architecture"):
        alpha.run({"arch_seq": sequence})


@pytest.mark.parametrize(("sequence", "said"), [([1, 0], "2 numbers"), ([1, 0, 2], "2 is no choice of")])
def test_a_sequence_that_is_none_of_the_space_is_refused(
    sequence: list[int], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(alpha.PROBLEM_VARIABLE, raising=False)
    with pytest.raises(WrongCall, match=said):
        alpha.run({"arch_seq": sequence, "problem": PATH})


def test_random_data_is_the_same_in_every_interpreter_and_the_generators_go_on_as_they_were(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import random

    import numpy as np

    def drawn() -> Any:
        pairs = [np.random.normal(size=(9, 3)) + random.random() for _ in range(2)]
        return tuple((pair[:, :2], pair[:, 2:]) for pair in pairs)

    problem = small.regression()
    problem.load_data(drawn)
    monkeypatch.setattr(small, "Regression", problem)
    seen = []
    for seed in (1, 2):
        monkeypatch.setattr(alpha, "_setups", {})
        random.seed(seed)
        np.random.seed(seed)
        before = random.getstate(), np.random.get_state()[1].tolist()
        seen.append(alpha._setup(PATH).data.train.inputs[0].tolist())
        assert (random.getstate(), np.random.get_state()[1].tolist()) == before
    assert seen[0] == seen[1]


@pytest.mark.extra("tensorflow")
@pytest.mark.slow
def test_an_evaluation_gives_the_objective_its_numbers_and_its_files(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = evaluate(small.regression(tensorboard=True, checkpoint_s=0.0), monkeypatch)
    outcome, objective, metadata, _ = judge(answer)
    history = json.loads((directory / "history.json").read_text())
    assert (outcome, objective) == ("ok", max(history["val_r2"]))
    assert {name: metadata[name] for name in ("parameters", "epochs", "stopped", "resumed_from", "seed")} == {
        "parameters": 4 * 8 + 8 + 8 + 1, "epochs": 3, "stopped": "epochs", "resumed_from": 0, "seed": 5,
    }  # fmt: skip
    assert metadata["flops"] > 0
    assert 1 <= metadata["best_epoch"] <= 3
    assert {"test_loss", "test_mae", "test_r2"} < set(metadata)
    about = json.loads((directory / "architecture.json").read_text())
    assert about["arch_seq"] == small.PLAIN
    assert (about["problem"], about["seed"], about["objective"]) == (PATH, 5, "val_r2__max")
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["value"]) for line in lines] == [
        (number, value) for number, value in enumerate(history["val_r2"], 1)
    ]
    assert lines[0]["val_mae"] == history["val_mae"][0]
    for part in ("train", "validation"):
        assert next((directory / "tensorboard" / part).iterdir()).stat().st_size > 200
    assert not (directory / "checkpoint").exists()


@pytest.mark.extra("tensorflow")
@pytest.mark.slow
def test_the_objective_may_be_a_function_of_the_history_and_without_a_directory_there_are_no_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NAS_HPC_JOB_DIR", raising=False)
    problem = small.regression(num_epochs=2)
    problem.seed = None
    problem.objective(lambda history: -sum(history["val_loss"]))
    monkeypatch.setattr(alpha, "_setups", {})
    monkeypatch.setenv(alpha.PROBLEM_VARIABLE, "tests.nas.small.Huge")
    monkeypatch.setattr(small, "Regression", problem)
    answer = alpha.run(RunningJob({"arch_seq": small.PLAIN, "problem": PATH}, "id", 17))
    assert answer["objective"] < 0
    assert answer["metadata"]["seed"] == 17
    assert list(tmp_path.iterdir()) == []


@pytest.mark.extra("tensorflow")
@pytest.mark.slow
def test_a_failed_training_leaves_its_history_and_no_checkpoint(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = small.regression(optimizer="sgd", learning_rate=1e15, batch_size=100, checkpoint_s=0.0)
    with pytest.raises(NotFinite, match="(of|after) epoch 2"):
        evaluate(problem, monkeypatch)
    assert len(json.loads((directory / "history.json").read_text())["val_loss"]) == 1
    assert not (directory / "checkpoint").exists()


@pytest.mark.extra("tensorflow")
@pytest.mark.slow
def test_a_step_that_tensorflow_refuses_is_said_in_one_line(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(wanted: Any, predicted: Any) -> Any:
        import keras

        return keras.ops.reshape(predicted, (7, 7))

    problem = small.regression()
    problem.loss(wrong)
    # Which one is first depends on TensorFlow's threads: the reshaping, or its gradient.
    numbers = r"(\b30\b.*\b49\b|\b240\b.*\b392\b)"
    told = rf"\ATensorFlow refused a step of the training: .*{numbers}.{{0,40}}\Z"
    with pytest.raises(CannotBuild, match=told):
        evaluate(problem, monkeypatch)


_LITTLE_MEMORY = """
import resource, sys
import tensorflow as tf
from nas_hpc.nas import alpha
from tests.nas import small
alpha.run({"arch_seq": small.PLAIN, "problem": "tests.nas.small.Regression"})
used = int(open("/proc/self/statm").read().split()[0]) * 4096
resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 29),) * 2)
try:
    alpha.run({"arch_seq": [1], "problem": "tests.nas.small.Huge"})
except Exception as error:
    print(f"{type(error).__name__}: {error}")
"""


@pytest.mark.extra("tensorflow")
@pytest.mark.slow
def test_a_network_that_does_not_fit_into_the_memory_fails_for_that() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _LITTLE_MEMORY], cwd=ROOT, capture_output=True, text=True, timeout=250
    )
    assert done.stdout.startswith("OutOfMemory: there was not enough memory to "), done.stdout + done.stderr
    assert done.stdout.count("\n") == 1
