"""Trainings of small networks: what they give, when they end, and how they go on after an interruption."""

from __future__ import annotations

import math
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nas_hpc.errors import WrongCall
from nas_hpc.nas import NaProblem
from nas_hpc.nas.checkpoints import Checkpoints
from nas_hpc.nas.failures import CannotBuild, NotFinite
from nas_hpc.nas.settings import OPTIMIZERS
from tests.nas import small

pytestmark = [pytest.mark.extra("tensorflow"), pytest.mark.slow]


class Ended(Exception):
    """Stands for the end of the process."""


def trainer_of(problem: NaProblem, directory: Path | None = None, sequence: list[int] = small.PLAIN) -> Any:
    from nas_hpc.nas.model import build_model
    from nas_hpc.nas.training import Trainer

    space, data = small.loaded(problem)
    model = build_model(space.architecture(sequence), seed=11)
    return Trainer(problem, model, data, 11, Checkpoints(directory, "key"))


def train(problem: NaProblem, directory: Path | None = None, sequence: list[int] = small.PLAIN) -> Any:
    return trainer_of(problem, directory, sequence).run()


def steps_of(problem: NaProblem) -> tuple[Any, Any]:
    """The steps of a network, and its data."""
    from nas_hpc.nas.model import build_model
    from nas_hpc.nas.steps import Steps

    space, data = small.loaded(problem)
    return Steps(build_model(space.architecture(small.FULL), seed=11), problem, data.train), data


# -- what it gives ---------------------------------------------------------------------------------------
def test_the_history_has_keras_names_and_a_number_for_each_epoch_and_the_seed_decides_them() -> None:
    trained = train(small.regression(), sequence=small.FULL)
    assert set(trained.history) == {"loss", "mae", "r2", "val_loss", "val_mae", "val_r2"}
    assert {len(values) for values in trained.history.values()} == {3}
    assert (trained.epochs, trained.stopped, trained.resumed_from, trained.resumed_step) == (
        3,
        "epochs",
        0,
        0,
    )
    assert set(trained.test) == {"test_loss", "test_mae", "test_r2"}
    again = train(small.regression(), sequence=small.FULL)
    assert (again.history, again.test) == (trained.history, trained.test)


def test_a_network_learns_and_its_best_epoch_judges_the_test_data() -> None:
    problem = small.regression(num_epochs=60, learning_rate=0.1)
    training, valid, _ = small.parts()
    problem.load_data(lambda: (training, valid, valid))
    trained = train(problem)
    values = trained.history["val_r2"]
    assert max(values) > 0.9
    assert trained.best_epoch == values.index(max(values)) + 1
    assert trained.test["test_r2"] == max(values)
    assert trained.test["test_loss"] == trained.history["val_loss"][trained.best_epoch - 1]


@pytest.mark.parametrize("make", [small.regression, small.classification])
def test_losses_and_metrics_are_those_that_keras_itself_gives(make: Callable[..., NaProblem]) -> None:
    import keras

    steps, data = steps_of(make())
    sample = data.valid
    steps.reset()
    mine = {"loss": steps.evaluate(sample.inputs, sample.targets), **steps.results()}
    problem = make()
    metrics = [keras.metrics.R2Score(name="r2") if one == "r2" else one for one in problem.metric_list]
    steps.model.compile(loss=problem.loss_function, metrics=metrics)
    theirs = steps.model.evaluate(
        sample.inputs[0], sample.targets[0], batch_size=1000, verbose=0, return_dict=True
    )
    assert mine == pytest.approx(theirs, rel=1e-5)


def test_where_the_last_epoch_counts_its_weights_do() -> None:
    problem = small.classification(num_epochs=3)
    problem.objective("val_accuracy__last")
    train_part, valid, _ = small.classes()
    problem.load_data(lambda: (train_part, valid, valid))
    trained = train(problem)
    assert (trained.best_epoch, trained.test["test_loss"]) == (3, trained.history["val_loss"][-1])


def test_several_outputs_have_losses_weights_and_metrics_each_and_without_test_data_there_is_no_test() -> (
    None
):
    from nas_hpc.nas import ConstantNode, SearchSpace, VariableNode
    from nas_hpc.nas.operations import Dense, Identity

    def space(input_shape: Any, output_shape: Any) -> SearchSpace:
        made = SearchSpace(input_shape, output_shape)
        node = VariableNode("choice", ops=[Identity(), Dense(4, "relu")])
        made.connect(made.inputs[0], node)
        for name in ("sum", "size"):
            made.connect(node, ConstantNode(Dense(1), name))
        return made

    problem = small.regression(num_epochs=1)
    problem.search_space(space)
    problem.load_data(lambda: [(x, [y, np.abs(y)]) for x, y in small.parts(test=False)])
    problem.loss(["mse", "mae"], weights=[0.0, 1.0])
    problem.objective("val_mae__max")
    with pytest.raises(WrongCall, match=r"'val_mae__max' names no metric.*val_(sum|size)_mae"):
        trainer_of(problem, sequence=[1])
    problem.objective("-val_loss")
    trained = trainer_of(problem, sequence=[1]).run()
    assert {"val_sum_mae", "val_size_mae", "val_sum_r2", "val_size_r2", "val_loss"} <= set(trained.history)
    assert trained.history["val_loss"] == pytest.approx(trained.history["val_size_mae"])
    assert trained.test == {}


def test_metrics_are_names_functions_and_classes_and_acc_keeps_its_name() -> None:
    import keras

    def twice(wanted: Any, predicted: Any) -> Any:
        return 2 * keras.losses.sparse_categorical_crossentropy(wanted, predicted)

    problem = small.classification(num_epochs=1)
    problem.metrics(["acc", twice])
    problem.objective("val_acc__max")
    history = train(problem).history
    assert set(history) == {"loss", "acc", "twice", "val_loss", "val_acc", "val_twice"}
    assert history["val_twice"] == pytest.approx([2 * value for value in history["val_loss"]], rel=1e-5)


# -- how it trains -----------------------------------------------------------------------------------------
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_updating_all_variables_as_one_gives_what_updating_each_gives(
    optimizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import keras

    from nas_hpc.nas import steps

    rng = np.random.default_rng(1)
    shapes = [(3, 4), (4,), (4, 1)]
    start = [rng.normal(size=shape).astype("float32") for shape in shapes]
    gradients = [[rng.normal(size=shape).astype("float32") for shape in shapes] for _ in range(3)]

    def updated(longest: int) -> list[Any]:
        monkeypatch.setattr(steps, "_LONG", longest)
        variables = [keras.Variable(one) for one in start]
        updates = steps.Updates(steps.optimizer_of(settings), variables)
        for each in gradients:
            updates.apply([keras.ops.convert_to_tensor(one) for one in each])
        return [np.array(one) for one in variables]

    settings = small.regression(optimizer=optimizer, clip_norm=0.5, learning_rate=0.1).training
    together, each = updated(1000), updated(0)
    for one, other, before in zip(together, each, start, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
        assert np.abs(one - before).max() > 1e-5


@pytest.mark.parametrize("clip_norm", [0.0, 0.001])
def test_gradients_that_are_longer_than_clip_norm_are_shortened_to_it(clip_norm: float) -> None:
    problem = small.regression(optimizer="sgd", learning_rate=1.0, clip_norm=clip_norm)
    steps, data = steps_of(problem)
    before = [np.array(one) for one in steps.model.trainable_variables]
    steps.train(data.train.inputs, data.train.targets, 1.0)
    after = [np.array(one) for one in steps.model.trainable_variables]
    moved = math.sqrt(sum(float(((a - b) ** 2).sum()) for a, b in zip(after, before, strict=True)))
    if clip_norm:
        assert moved == pytest.approx(clip_norm, rel=1e-3)
    else:
        assert moved > 0.1


def test_each_step_has_the_schedules_rate() -> None:
    problem = small.regression(schedule="cosine", warmup_epochs=1, learning_rate=0.1)
    trainer = trainer_of(problem)
    seen: list[float] = []
    step = trainer._steps.train

    def noted(inputs: Any, targets: Any, rate: float) -> Any:
        loss = step(inputs, targets, rate)
        seen.append(float(trainer._steps.optimizer.learning_rate))
        return loss

    trainer._steps.train = noted
    trainer.run()
    from nas_hpc.nas.schedules import schedule_of

    expected = [schedule_of(problem.training, 4)(number) for number in range(12)]
    assert seen == pytest.approx(expected)
    assert seen[3] == pytest.approx(0.1)


def test_every_epoch_sees_every_example_once_in_an_order_of_its_own() -> None:
    trainer = trainer_of(small.regression())
    step, seen = trainer._steps.train, []

    def noted(inputs: Any, targets: Any, rate: float) -> Any:
        seen.append(inputs[0][:, 0])
        return step(inputs, targets, rate)

    trainer._steps.train = noted
    trainer.run()
    epochs = [np.concatenate(seen[first : first + 4]) for first in (0, 4, 8)]
    everything = np.sort(trainer._data.train.inputs[0][:, 0])
    assert all(np.array_equal(np.sort(one), everything) for one in epochs)
    assert not np.array_equal(epochs[0], epochs[1])
    assert not np.array_equal(epochs[1], epochs[2])


# -- when it ends ------------------------------------------------------------------------------------------
def test_early_stopping_ends_it_after_patience_epochs_without_a_gain() -> None:
    trained = train(small.regression(num_epochs=50, patience=2, min_delta=1e9))
    assert (trained.epochs, trained.stopped) == (3, "early")


def test_the_time_limit_ends_it_before_an_epoch_that_would_pass_it() -> None:
    trained = train(small.regression(num_epochs=50, time_limit_s=1e-6))
    assert (trained.epochs, trained.stopped) == (1, "time")


def test_a_loss_that_is_not_finite_ends_it_at_once_with_step_epoch_and_rate() -> None:
    problem = small.regression(optimizer="sgd", learning_rate=1e30)
    with pytest.raises(
        NotFinite, match=r"loss is (nan|inf) after [23] steps of epoch 1 \(learning_rate 1e\+30\)"
    ):
        train(problem)


def test_a_validation_that_is_not_finite_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = small.regression(optimizer="sgd", learning_rate=1e30, batch_size=100)
    with pytest.raises(NotFinite, match=r"val_loss is (nan|inf) after epoch 1"):
        train(problem)


def test_a_loss_that_does_not_fit_the_output_cannot_be_built() -> None:
    def wrong(wanted: Any, predicted: Any) -> Any:
        import keras

        return keras.ops.matmul(predicted, keras.ops.ones((5, 1)))

    problem = small.regression()
    problem.loss(wrong)
    with pytest.raises(CannotBuild, match="do not fit together"):
        trainer_of(problem)


def test_names_that_keras_does_not_know_are_refused() -> None:
    problem = small.regression()
    problem.metrics(["r2", "nonsense"])
    with pytest.raises(WrongCall, match="nonsense"):
        train(problem)


# -- interruptions -----------------------------------------------------------------------------------------
SCHEDULED = small.regression(schedule="cosine", warmup_epochs=1, checkpoint_s=0.0)


@pytest.fixture(scope="module")
def whole() -> Any:
    """The uninterrupted training."""
    return train(SCHEDULED, sequence=small.FULL)


@pytest.fixture
def stop_at(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], None]]:
    """Have the training asked to end at its n-th look between two batches."""
    handler = signal.getsignal(signal.SIGTERM)

    def end() -> None:
        raise Ended

    def arrange(number: int) -> None:
        looks = iter(range(1, 1_000_000))
        monkeypatch.setattr("nas_hpc.nas.training.should_stop", lambda: next(looks) == number)
        monkeypatch.setattr("nas_hpc.nas.training._end_as_asked", end)

    yield arrange
    signal.signal(signal.SIGTERM, handler)


@pytest.mark.parametrize(
    ("look", "epochs", "steps"),
    [(3, 0, 2), (5, 0, 4), (8, 1, 6), (16, 3, 12)],
    ids=["in the first epoch", "before its validation", "in the second epoch", "before the test"],
)
def test_after_an_interruption_it_goes_on_to_the_very_end_it_would_have_had(
    tmp_path: Path, stop_at: Callable[[int], None], whole: Any, look: int, epochs: int, steps: int
) -> None:
    stop_at(look)
    with pytest.raises(Ended):
        train(SCHEDULED, tmp_path / "checkpoint", small.FULL)
    stop_at(0)
    rest = train(SCHEDULED, tmp_path / "checkpoint", small.FULL)
    assert (rest.resumed_from, rest.resumed_step) == (epochs, steps)
    assert rest.history == whole.history
    assert rest.test == whole.test
    assert (rest.epochs, rest.best_epoch, rest.stopped) == (3, whole.best_epoch, "epochs")


def test_a_checkpoint_has_the_step_and_every_number_of_network_and_optimizer(
    tmp_path: Path, stop_at: Callable[[int], None]
) -> None:
    problem = small.regression()
    stop_at(7)
    interrupted = trainer_of(problem, tmp_path / "checkpoint", small.FULL)
    with pytest.raises(Ended):
        interrupted.run()
    resumed = trainer_of(problem, tmp_path / "checkpoint", small.FULL)
    assert resumed._resume() == (1, 5)
    mine, theirs = interrupted._steps, resumed._steps
    assert int(theirs.optimizer.iterations) == 5
    for one, other in zip(mine.arrays(), theirs.arrays(), strict=True):
        np.testing.assert_array_equal(one, other)
    momenta = [np.array(one) for one in theirs.optimizer.variables[2:]]
    assert momenta
    assert all(np.abs(one).max() > 0 for one in momenta)


def test_a_killed_training_goes_on_from_the_last_checkpoint_of_an_epoch(
    tmp_path: Path, stop_at: Callable[[int], None], whole: Any
) -> None:
    stop_at(0)
    killed = trainer_of(SCHEDULED, tmp_path / "checkpoint", small.FULL)
    step = killed._steps.train

    def dies(inputs: Any, targets: Any, rate: float) -> Any:
        if killed._done == 10:
            raise Ended
        return step(inputs, targets, rate)

    killed._steps.train = dies
    with pytest.raises(Ended):
        killed.run()
    rest = train(SCHEDULED, tmp_path / "checkpoint", small.FULL)
    assert (rest.resumed_from, rest.resumed_step) == (2, 8)
    assert rest.history == whole.history


def test_no_checkpoint_is_written_before_its_time(tmp_path: Path, stop_at: Callable[[int], None]) -> None:
    stop_at(0)
    train(small.regression(checkpoint_s=1000.0), tmp_path / "checkpoint")
    assert not (tmp_path / "checkpoint").exists()
