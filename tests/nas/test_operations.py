"""Operations: what they refuse, how they are said, JSON; shapes, parameters and FLOPs as TensorFlow's."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pytest

from nas_hpc.errors import WrongCall
from nas_hpc.nas.operations import (
    ACTIVATIONS,
    OPERATIONS,
    Activation,
    AddByPadding,
    AddByProjecting,
    AveragePooling1D,
    AveragePooling2D,
    BatchNormalization,
    Concatenate,
    Connect,
    Conv1D,
    Conv2D,
    Dense,
    Dropout,
    Flatten,
    GlobalAveragePooling1D,
    GlobalAveragePooling2D,
    Identity,
    MaxPooling1D,
    MaxPooling2D,
    Operation,
    Reshape,
    SeparableConv2D,
    Shape,
    Zero,
    operation_from_json,
)

VECTOR, SERIES, IMAGE = (6,), (9, 4), (9, 7, 4)
CASES: list[tuple[Operation, list[Shape]]] = [
    (Identity(), [IMAGE]),
    *((Dense(5, activation), [VECTOR]) for activation in ("", "relu")),
    (Dense(5), [SERIES]),
    (Dense(5), [IMAGE]),
    *((Activation(activation), [VECTOR]) for activation in ACTIVATIONS),
    (Dropout(0.3), [IMAGE]),
    *((BatchNormalization(), [shape]) for shape in (VECTOR, SERIES, IMAGE)),
    *((Flatten(), [shape]) for shape in (VECTOR, SERIES, IMAGE)),
    (Reshape((2, 3)), [VECTOR]),
    *((Conv1D(5, 3, "relu", s, padding), [SERIES]) for s in (1, 2) for padding in ("same", "valid")),
    *((Conv2D(5, k, "", s, p), [IMAGE]) for k, s in ((1, 1), (4, 3), (4, 1)) for p in ("same", "valid")),
    *((SeparableConv2D(5, 3, "relu", s, p), [IMAGE]) for s, p in ((1, "same"), (2, "valid"), (2, "same"))),
    *((kind(p, s, padding), [SERIES]) for kind in (MaxPooling1D, AveragePooling1D)
      for p, s in ((2, 0), (3, 1), (2, 3)) for padding in ("same", "valid")),
    *((kind(p, s, padding), [IMAGE]) for kind in (MaxPooling2D, AveragePooling2D)
      for p, s in ((2, 0), (3, 1), (2, 3)) for padding in ("same", "valid")),
    (GlobalAveragePooling1D(), [SERIES]),
    (GlobalAveragePooling2D(), [IMAGE]),
    (Concatenate(), [IMAGE]),
    (Concatenate(), [(6,), (3,), (6,)]),
    (Concatenate(), [(9, 4), (9, 2)]),
    (AddByProjecting(), [VECTOR]),
    (AddByProjecting("relu"), [(6,), (3,), (6,), (8,)]),
    (AddByProjecting(), [(9, 7, 4), (9, 7, 2)]),
    (AddByPadding("tanh"), [(6,), (3,), (8,)]),
    (AddByPadding(), [(9, 4), (5, 6)]),
    (AddByPadding(), [(9, 7, 4), (5, 8, 2), (9, 7, 4)]),
    (Connect("somewhere"), [VECTOR]),
]  # fmt: skip
KINDS = sorted({type(op).__name__ for op, _ in CASES} | {"Zero"})


def name_of(case: Any) -> str:
    return f"{case[0]} {case[1]}".replace(" ", "")


# -- without TensorFlow -------------------------------------------------------------------------------------
def test_every_operation_is_tried_here() -> None:
    assert sorted(kind.__name__ for kind in OPERATIONS) == KINDS


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Dense(0), "Dense: units=0: give a whole number above 0"),
        (lambda: Dense(2.5), "Dense: units=2.5: give a whole number above 0"),
        (lambda: Dense(True), "Dense: units=True: give a whole number above 0"),
        (lambda: Dense("16"), "Dense: units='16': give a whole number above 0"),
        (lambda: Dense(3, "rleu"), "Dense: unknown activation 'rleu': give one of elu, exponential, gelu"),
        (lambda: Dense(3, 0), "Dense: unknown activation 0: give one of elu"),
        (lambda: Activation("step"), "Activation: unknown activation 'step'"),
        (lambda: Dropout(1), "Dropout: rate=1: give a share from 0 to below 1"),
        (lambda: Dropout("half"), "Dropout: rate='half': give a share from 0 to below 1"),
        (lambda: Dropout(float("nan")), "Dropout: rate=nan: give a share"),
        (lambda: Conv2D(3, (3, 3)), "Conv2D: kernel_size=(3, 3): give a whole number above 0"),
        (lambda: Conv1D(3, 3, "", 0), "Conv1D: strides=0: give a whole number above 0"),
        (lambda: Conv1D(3, 3, "", 1, "full"), "Conv1D: padding='full': give same or valid"),
        (lambda: MaxPooling2D(-1), "MaxPooling2D: pool_size=-1: give a whole number above 0"),
        (lambda: Reshape((0, 3)), "Reshape: shape=(0, 3): give whole numbers above 0, such as (8, 8, 1)"),
        (lambda: Reshape(6), "Reshape: shape=6: give whole numbers above 0"),
        (lambda: Connect(3), "Connect(3): give a node that has a name"),
        (lambda: Dense(3).output_shape([VECTOR, VECTOR]), "Dense(3) takes one input, and here are 2: put"),
        (lambda: Conv2D(3, 3).output_shape([VECTOR]), "takes inputs of rank 3 (without the batch)"),
        (lambda: GlobalAveragePooling1D().output_shape([IMAGE]), "takes inputs of rank 2 (without"),
        (lambda: Conv2D(3, 8, padding="valid").output_shape([IMAGE]), "has a window of 8, larger than its"),
        (lambda: MaxPooling1D(10).output_shape([SERIES]), "has a window of 10, larger than its input (9, 4)"),
        (lambda: Reshape((7,)).output_shape([VECTOR]), "Reshape((7,)) cannot be made of (6,)"),
        (lambda: Concatenate().output_shape([(9, 4), (8, 4)]), "that differ in their last dimension only"),
        (lambda: AddByProjecting().output_shape([(9, 4), (8, 4)]), "projects the last dimension only"),
        (lambda: AddByProjecting().output_shape([(9, 4), (4,)]), "takes inputs of one rank, and these"),
        (lambda: AddByPadding().output_shape([(9,) * 4, (8,) * 4]), "takes inputs of rank 1 to 3"),
    ],
)  # fmt: skip
def test_what_is_no_operation_is_refused_in_one_line(make: Callable[[], object], said: str) -> None:
    with pytest.raises(WrongCall) as caught:
        make()
    assert said in caught.value.message
    assert "\n" not in caught.value.message


def test_numpys_numbers_and_no_activation_are_taken_as_pythons() -> None:
    assert Dense(np.int64(3), None) == Dense(3)  # type: ignore[arg-type]
    assert json.dumps(Dense(np.int64(3), None).to_json())  # type: ignore[arg-type]


@pytest.mark.parametrize("case", [*CASES, (Zero(), [VECTOR])], ids=name_of)
def test_operations_survive_json(case: tuple[Operation, list[Shape]]) -> None:
    body = json.loads(json.dumps(case[0].to_json()))
    again = operation_from_json(body)
    assert again == case[0]
    assert again.to_json() == body
    assert len({again, case[0]}) == 1


def test_operations_are_said_as_they_are_written_in_a_program() -> None:
    written = {str(op) for op, _ in CASES}
    assert {"Identity", "Dense(5, relu)", "MaxPooling2D(3, 1, same)", "Reshape((2, 3))"} <= written
    assert str(MaxPooling2D(2, 1)) == "MaxPooling2D(strides=1)"
    assert str(Conv2D(8, 3, "", 2)) == "Conv2D(8, 3, strides=2)"
    assert str(AveragePooling1D(2, 0, "same")) == "AveragePooling1D(padding=same)"


@dataclass(frozen=True)
class Twice(Operation):
    """An operation of one's own."""

    times: int = 2


def test_an_operation_of_ones_own_is_found_again_by_its_module() -> None:
    body = Twice(3).to_json()
    assert body == {"op": f"{Twice.__module__}.Twice", "times": 3}
    assert operation_from_json(body) == Twice(3)
    for wrong, said in (
        ({"op": "Dance"}, "unknown operation 'Dance': give one of Activation, AddByPadding"),
        ({"op": "Dense", "unit": 3}, "unexpected keyword argument 'unit'"),
        ({"op": "json.JSONDecoder"}, "unknown operation 'json.JSONDecoder'"),
        ({"op": "no_such_module.Op"}, "no module 'no_such_module'"),
    ):
        with pytest.raises(WrongCall, match=".") as caught:
            operation_from_json(wrong)
        assert said in caught.value.message


def test_two_operations_are_different_if_any_field_is() -> None:
    for op, _ in CASES:
        assert all(
            op != other for other, _ in CASES if (type(other), other.to_json()) != (type(op), op.to_json())
        )
        assert {one.name for one in fields(op)} | {"op"} == set(op.to_json())


# -- beside TensorFlow ---------------------------------------------------------------------------------------
def built(operation: Operation, shapes: list[Shape]) -> Any:
    """A Keras model of ``operation`` alone."""
    import keras

    inputs = [keras.Input(shape) for shape in shapes]
    made = operation.build(inputs, lambda layer, **arguments: getattr(keras.layers, layer)(**arguments))
    return keras.Model(inputs, made)


@pytest.mark.slow
@pytest.mark.extra("tensorflow")
@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_shape_and_parameters_are_those_of_the_keras_layers(case: tuple[Operation, list[Shape]]) -> None:
    operation, shapes = case
    model = built(operation, shapes)
    assert tuple(model.output.shape[1:]) == operation.output_shape(shapes)
    assert model.count_params() == operation.parameters(shapes)
    given = [np.random.default_rng(0).normal(size=(2, *shape)).astype("float32") for shape in shapes]
    found = np.asarray(model(given))
    assert found.shape == (2, *operation.output_shape(shapes))
    assert np.isfinite(found).all()


def test_a_sum_by_padding_adds_zeros_behind() -> None:
    assert AddByPadding().output_shape([(2,), (4,), (3,)]) == (4,)


@pytest.mark.slow
@pytest.mark.extra("tensorflow")
def test_a_sum_by_padding_is_the_sum_of_the_padded_inputs() -> None:
    model = built(AddByPadding("relu"), [(2, 2), (3, 1)])
    one, other = np.array([[[1.0, 2.0], [3.0, -9.0]]]), np.array([[[10.0], [20.0], [30.0]]])
    assert np.asarray(model([one, other])).tolist() == [[[11.0, 2.0], [23.0, 0.0], [30.0, 0.0]]]


UNCOUNTED = (Activation, BatchNormalization)
"""Which nothing is counted for, and the profiler does for some."""


@pytest.mark.slow
@pytest.mark.extra("tensorflow")
def test_flops_are_those_of_tensorflows_profiler() -> None:
    assert profiled(built(Dense(5), [VECTOR]), [VECTOR]) == (2 * 6 + 1) * 5  # it counts at all
    differing = {}
    for operation, shapes in CASES:
        if isinstance(operation, UNCOUNTED):
            continue
        counted, own = profiled(built(operation, shapes), shapes), operation.flops(shapes)
        if counted != own:
            differing[f"{operation} {shapes}"] = (counted, own)
    assert differing == {}


def profiled(model: Any, shapes: list[Shape]) -> int:
    """Floating-point operations of one example's way forward, as TensorFlow's profiler counts them."""
    import tensorflow as tf
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2
    from tensorflow.python.profiler import model_analyzer
    from tensorflow.python.profiler.option_builder import ProfileOptionBuilder

    call = tf.function(lambda *given: model(list(given), training=False))
    function = call.get_concrete_function(*(tf.TensorSpec((1, *shape), tf.float32) for shape in shapes))
    graph = convert_variables_to_constants_v2(function).graph
    options = ProfileOptionBuilder(ProfileOptionBuilder.float_operation()).with_empty_output().build()
    return int(model_analyzer.profile(graph, options=options).total_float_ops)
