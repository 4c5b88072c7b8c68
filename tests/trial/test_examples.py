"""The worked examples: real trainings of digits, stopped, gone on with, and watched."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from nas_hpc.analytics.proxy.curves import read_curve
from nas_hpc.errors import WorkFailed, WrongCall
from nas_hpc.trial import load_checkpoint, load_keras, place, save_keras
from nas_hpc.trial.metrics import last_metrics
from nas_hpc.trial.proxy import post_desired_training_pct
from nas_hpc.trial.status import read_status
from tests.support import wait_until

PARAMETERS = {
    "filters_1": 4, "kernel_1": 3, "filters_2": 8, "kernel_2": 3, "units": 16,
    "activation": "relu", "learning_rate": 0.01,
}  # fmt: skip


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where trials have their directories. This process is trial 1."""
    monkeypatch.setenv("NAS_HPC_TRIAL", "1")
    return tmp_path / "nas" / "search"


def train(trainer: Any, directory: Path, *flags: str) -> dict[str, float]:
    """Run a trainer in this process; its last metrics."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in place.environment(directory, "1", "accuracy").items():
            patch.setenv(name, value)
        trainer.main([f"--nas-params-str={json.dumps(PARAMETERS)}", f"--job-dir={directory}", *flags])
    return last_metrics(directory)


def continued(old: Path, new: Path) -> list[str]:
    """Flags of the trial in ``new`` that goes on where the one in ``old`` is; it has that one's record."""
    new.mkdir(parents=True)
    shutil.copy(old / "TRIAL_TRAINING_METRICS.json", new)
    return [
        f"--retrain-search-job-dir={old.parent}",
        f"--retrain-search-job-trials={old.name}",
        "--retrain-use-search-job-checkpoint=True",
    ]


@pytest.mark.slow
def test_a_training_in_rounds_is_the_training_in_one_go(root: Path) -> None:
    from nas_hpc.problems.trials import digits_numpy as trainer

    whole = train(trainer, root / "1", "--epochs=8")
    assert whole["accuracy"] > 0.8
    post_desired_training_pct(root / "2", 30.0)
    part = train(trainer, root / "2", "--epochs=8")
    assert part["accuracy"] < whole["accuracy"]
    flags = continued(root / "2", root.parent / "train" / "1")
    rest = train(trainer, root.parent / "train" / "1", "--epochs=8", *flags)
    assert rest["accuracy"] == whole["accuracy"]
    assert rest["nas_trial_id"] == 2
    curves = [read_curve(root / "1"), read_curve(root.parent / "train" / "1")]
    assert all(curve is not None and curve.complete for curve in curves)
    one, other = (list(curve.scores) for curve in curves if curve is not None)
    assert one == other
    assert len(one) == 10
    saved = json.loads((root / "1" / "serialized_tunable_object.json").read_text())
    assert [layer["layer"] for layer in saved] == ["convolution", "pooling"] * 2 + ["dense"] * 2


@pytest.mark.slow
def test_a_trial_that_is_ended_in_the_middle_goes_on_and_comes_to_the_same(root: Path) -> None:
    def start() -> subprocess.Popen[bytes]:
        trainer = [sys.executable, "-m", "nas_hpc.problems.trials.digits_numpy"]
        given = [f"--nas-params-str={json.dumps(PARAMETERS)}", f"--job-dir={root / '1'}", "--epochs=20"]
        return subprocess.Popen(
            [sys.executable, "-m", "nas_hpc.trial.run", "--", *trainer, *given],
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), **wanted},
            stdout=subprocess.DEVNULL,
        )

    wanted = place.environment(root / "1", "1", "accuracy")
    first = start()
    wait_until(lambda: first.poll() is not None or load_checkpoint(root / "1"), what="a checkpoint")
    first.send_signal(signal.SIGTERM)
    assert first.wait(60) in (0, -signal.SIGTERM)  # 0: it was faster
    assert start().wait(120) == 0
    status = read_status(root / "1")
    assert status is not None
    assert status.ok
    from nas_hpc.problems.trials import digits_numpy as trainer

    whole = train(trainer, root / "2", "--epochs=20")
    assert status.reward == pytest.approx(whole["accuracy"], abs=0.03)


@pytest.mark.parametrize("flag", ["--epochs=0", "--validations=0", "--epochs=x"])
def test_trainings_without_epochs_or_validations_are_refused(
    root: Path, flag: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from nas_hpc.problems.trials import digits_numpy as trainer

    with pytest.raises(SystemExit) as ended:
        train(trainer, root / "1", flag)
    assert ended.value.code == 2
    name, _, value = flag.partition("=")
    said = capsys.readouterr().err
    assert name in said
    assert value in said


def test_an_activation_that_the_trainers_do_not_have_is_refused() -> None:
    from nas_hpc.problems.trials import digits

    with pytest.raises(WrongCall, match="'gelu': give one of relu, tanh"):
        digits.expand({**PARAMETERS, "activation": "gelu"})


def test_less_data_is_the_same_share_of_each_class() -> None:
    import numpy as np

    from nas_hpc.problems.trials import digits

    (x, whole), (_, valid) = digits.load_data()
    (part, half), (_, same) = digits.load_data(0.5, seed=3)
    assert (x.shape, part.shape) == ((len(whole), 8, 8, 1), (len(half), 8, 8, 1))
    assert (x.min(), x.max()) == (0.0, 1.0)
    assert (np.bincount(half) == np.ceil(np.bincount(whole) / 2)).all()
    assert (valid == same).all()
    assert (digits.load_data(0.5, seed=3)[0][1] == half).all()
    with pytest.raises(WrongCall, match="share of the training data is 0"):
        digits.load_data(0.0)


@pytest.mark.slow
@pytest.mark.extra("tensorflow")
def test_keras_goes_on_with_its_optimizer_and_step_or_not_at_all(root: Path) -> None:
    from nas_hpc.problems.trials import digits, digits_tensorflow

    post_desired_training_pct(root / "1", 30.0)
    train(digits_tensorflow, root / "1", "--epochs=3")
    checkpoint = load_checkpoint(root / "1")
    assert checkpoint is not None
    flags = continued(root / "1", root.parent / "train" / "1")
    train(digits_tensorflow, root.parent / "train" / "1", "--epochs=3", *flags)
    curve = read_curve(root.parent / "train" / "1")
    assert curve is not None
    assert curve.complete
    assert len(curve.steps) == 3
    last = load_checkpoint(root.parent / "train" / "1")
    assert last is not None
    assert last.step == 3 * checkpoint.step

    model = digits_tensorflow.build(digits.expand(PARAMETERS), 0.01, 100, 0)
    assert load_keras(model, last) == last.step == int(model.optimizer.iterations)
    model.optimizer.iterations.assign(5)
    assert save_keras(model, root / "3") == 5
    other = digits_tensorflow.build(digits.expand({**PARAMETERS, "units": 8}), 0.01, 100, 0)
    with pytest.raises(WorkFailed, match="is of another network or optimizer"):
        load_keras(other, last)


@pytest.mark.slow
@pytest.mark.extra("torch")
def test_pytorch_goes_on_from_its_checkpoint(root: Path) -> None:
    from nas_hpc.problems.trials import digits_torch

    post_desired_training_pct(root / "1", 50.0)
    train(digits_torch, root / "1", "--epochs=4")
    flags = continued(root / "1", root.parent / "train" / "1")
    train(digits_torch, root.parent / "train" / "1", "--epochs=4", *flags)
    train(digits_torch, root / "2", "--epochs=4")
    curve, whole = read_curve(root.parent / "train" / "1"), read_curve(root / "2")
    assert curve is not None
    assert whole is not None
    assert curve.complete
    assert list(curve.scores) == pytest.approx(list(whole.scores), abs=0.02)  # sums of several threads
