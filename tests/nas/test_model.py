"""Keras models of architectures: shapes, names, weights, saving."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nas_hpc.nas import ConstantNode, MimeNode, MirrorNode, SearchSpace, VariableNode, load_na_problem
from nas_hpc.nas.data import check_problem
from nas_hpc.nas.failures import CannotBuild
from nas_hpc.nas.losses import LOSSES, METRICS
from nas_hpc.nas.operations import (
    AddByProjecting,
    BatchNormalization,
    Concatenate,
    Dense,
    Dropout,
    Identity,
    Make,
    Operation,
    SeparableConv2D,
)

pytestmark = [pytest.mark.extra("tensorflow"), pytest.mark.slow]
MADE = 75
"""Architectures of each space: every operation of every node is in three of them at least. A thousand found
nothing more."""
SAVED = 10
"""Of these; saving and loading takes longer than making."""


def space_of(problem: str) -> SearchSpace:
    space, _ = check_problem(load_na_problem(f"nas_hpc.problems.nas.{problem}.Problem"))
    return space


def batch_for(space: SearchSpace, examples: int = 3) -> Any:
    return np.random.default_rng(1).normal(size=(examples, *space.inputs[0].shape)).astype(np.float32)


def dealt(space: SearchSpace, count: int, rng: np.random.Generator) -> list[tuple[int, ...]]:
    """Random sequences in which a node has all of its operations before it has one of them again."""
    columns = []
    for choices in space.choices:
        decks = [rng.permutation(choices) for _ in range(-(-count // choices))]
        columns.append(np.concatenate(decks)[:count].tolist())
    return list(zip(*columns, strict=True))


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("problem", ["digits_dense", "digits_conv"])
def test_random_architectures_build_and_some_survive_a_save_and_load(problem: str, tmp_path: Path) -> None:
    import keras

    from nas_hpc.nas.model import build_model

    space, rng = space_of(problem), np.random.default_rng(20)
    batch = batch_for(space)
    for number, sequence in enumerate(dealt(space, MADE, rng)):
        architecture = space.architecture(sequence)
        model = build_model(architecture, seed=number)
        assert [tuple(one.shape[1:]) for one in model.outputs] == space.output_shapes
        assert model.count_params() == architecture.parameters
        if number * SAVED % MADE < SAVED:
            model.save(tmp_path / "model.keras")
            loaded = keras.models.load_model(tmp_path / "model.keras")
            before, after = model(batch, training=False), loaded(batch, training=False)
            np.testing.assert_array_equal(before, after)
            assert before.shape == (3, *space.output_shapes[0])
        if number % 50 == 0:
            keras.backend.clear_session(free_memory=True)


def first_loss(model: Any, space: SearchSpace) -> float:
    """Of one step of training, with what Dropout draws in it."""
    import keras

    predicted = model(batch_for(space, 16), training=True)
    return float(
        keras.losses.MeanSquaredError()(np.ones((16, *space.output_shapes[0]), np.float32), predicted)
    )


@pytest.mark.parametrize("problem", ["linear_reg", "digits_dense", "digits_conv"])
def test_the_same_sequence_and_seed_give_the_same_model_and_first_loss(problem: str) -> None:
    from nas_hpc.nas.model import build_model

    space, rng = space_of(problem), np.random.default_rng(3)
    for _ in range(2):
        architecture = space.architecture(space.sample(rng))
        model, again = build_model(architecture, 7), build_model(architecture, 7)
        other = build_model(architecture, 8)
        assert [layer.name for layer in model.layers] == [layer.name for layer in again.layers]
        for one, two in zip(model.get_weights(), again.get_weights(), strict=True):
            np.testing.assert_array_equal(one, two)
        assert first_loss(model, space) == first_loss(again, space)
        assert first_loss(model, space) != first_loss(other, space)


def small_space(*middle: Operation, input_shape: Any = (4,), output_shape: Any = (3,)) -> SearchSpace:
    """A choice, then one node after the other."""
    space = SearchSpace(input_shape, output_shape)
    space.connect(space.inputs[0], last := VariableNode("first", [Identity(), Dense(8, "relu")]))
    for number, op in enumerate(middle):
        space.connect(last, last := ConstantNode(op, f"middle_{number}"))
    return space


def test_random_numbers_of_the_process_are_neither_used_nor_changed() -> None:
    import keras

    from nas_hpc.nas.model import build_model

    architecture = small_space(Dense(6), Dropout(0.5), Dense(3)).architecture([1])
    losses = []
    for seed in (1, 2):
        keras.utils.set_random_seed(seed)
        state = random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[index]
        model = build_model(architecture, 5)
        assert (random.getstate(), np.random.get_state()[1].tolist()) == state  # type: ignore[index]
        losses.append(first_loss(model, small_space(Dense(3))))
    assert losses[0] == losses[1]


def test_layers_of_a_model_differ_in_their_first_weights() -> None:
    from nas_hpc.nas.model import build_model

    space = small_space(
        Dense(4), Dense(4), SeparableConv2D(4, 3), input_shape=(8, 8, 4), output_shape=(8, 8, 4)
    )
    kernels = [w.ravel()[:16] for w in build_model(space.architecture([0]), 1).get_weights() if w.ndim > 1]
    assert len({tuple(one) for one in kernels}) == len(kernels) == 4


def test_layers_have_the_names_of_their_nodes() -> None:
    from nas_hpc.nas.model import build_model

    space = SearchSpace((4,), (3,))
    space.connect(space.inputs[0], left := VariableNode("sum_1", [Dense(3), Dense(5)]))
    space.connect(space.inputs[0], right := ConstantNode(Dense(7), "right"))
    space.connect(left, total := ConstantNode(AddByProjecting("relu"), "sum"))
    space.connect(right, total)
    names = {layer.name for layer in build_model(space.architecture([0]), 1).layers}
    assert names == {"input_0", "sum_1", "right", "sum", "sum_2", "sum_3"}


def test_a_mirror_has_the_weights_of_its_node_and_a_mime_its_own() -> None:
    from nas_hpc.nas.model import build_model

    def network(kind: Any) -> Any:
        space = SearchSpace([(4,), (4,)], (6,))
        space.connect(space.inputs[0], node := VariableNode("node", [Dense(3), Dense(5)]))
        space.connect(space.inputs[1], other := kind(node, "other"))
        space.connect(node, merged := ConstantNode(Concatenate(), "merged"))
        space.connect(other, merged)
        architecture = space.architecture([0])
        model = build_model(architecture, 1)
        assert model.count_params() == architecture.parameters
        return model

    x = np.ones((2, 4), np.float32)
    mirrored, mimed = network(MirrorNode), network(MimeNode)
    assert (mirrored.count_params(), mimed.count_params()) == (15, 30)
    halves = np.split(np.asarray(mirrored([x, x])), 2, axis=1)
    np.testing.assert_array_equal(*halves)
    assert not np.array_equal(*np.split(np.asarray(mimed([x, x])), 2, axis=1))


def test_several_inputs_and_outputs_keep_their_order() -> None:
    from nas_hpc.nas.model import build_model

    space = SearchSpace([(2,), (5,)], [(3,), (1,)])
    space.connect(space.inputs[1], a := VariableNode("a", [Dense(3), Dense(4)]))
    space.connect(space.inputs[0], ConstantNode(Dense(3), "wide"))
    space.connect(a, ConstantNode(Dense(1), "narrow"))
    model = build_model(space.architecture([1]), 1)
    assert [one.shape for one in model.inputs] == [(None, 2), (None, 5)]
    assert [one.shape for one in model([np.ones((2, 2)), np.ones((2, 5))])] == [(2, 3), (2, 1)]


class Lying(Identity):
    """Says another shape than its layer has."""

    def build(self, tensors: Any, make: Make) -> Any:
        return make("Dense", units=9)(tensors[0])


class Refused(Identity):
    """A layer that Keras does not make."""

    def build(self, tensors: Any, make: Make) -> Any:
        return make("Conv2D", filters=3, kernel_size=2)(tensors[0])


@pytest.mark.parametrize(
    ("op", "said"),
    [
        (Lying(), "node middle_0: Keras gives Lying the output (9,), not (4,)"),
        (Refused(), "node middle_0, Refused: ValueError: "),
    ],
)
def test_a_layer_that_keras_refuses_or_makes_otherwise_is_a_failure_with_its_node(
    op: Operation, said: str
) -> None:
    from nas_hpc.nas.model import build_model

    with pytest.raises(CannotBuild) as caught:
        build_model(small_space(op, output_shape=(4,)).architecture([0]), 1)
    assert said in caught.value.message
    assert "\n" not in caught.value.message


def test_statistics_of_batches_are_counted_with_the_parameters() -> None:
    from nas_hpc.nas.model import build_model

    architecture = small_space(BatchNormalization(), Dense(3)).architecture([1])
    assert build_model(architecture, 1).count_params() == architecture.parameters


def test_the_known_names_of_losses_and_metrics_are_keras_s() -> None:
    import keras

    assert all(keras.losses.get(name) is not None for name in LOSSES)
    for name in METRICS - {"acc", "accuracy", "r2"}:
        found = keras.metrics.get(name)
        assert isinstance(found() if isinstance(found, type) else found, keras.metrics.Metric), name
