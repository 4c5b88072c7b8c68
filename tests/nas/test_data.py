"""Data of problems: one form for all that load_data may give, and one line for all that it may not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from nas_hpc.errors import WrongCall
from nas_hpc.nas import ConstantNode, NaProblem, SearchSpace, VariableNode
from nas_hpc.nas.data import Data, check_problem, load_data, space_of
from nas_hpc.nas.operations import Dense, Flatten, Identity

RNG = np.random.default_rng(5)


def dense_space(input_shape: Any, output_shape: Any, **_: Any) -> SearchSpace:
    """Inputs of any rank and number, and a dense layer for each output."""
    space = SearchSpace(input_shape, output_shape)
    choice = VariableNode("choice", [Identity(), Dense(4, "relu"), Dense(8, "tanh")])
    flat = ConstantNode(Flatten(), "flat")
    space.connect(space.inputs[0], flat)
    space.connect(flat, choice)
    for number, shape in enumerate(space.output_shapes):
        space.connect(choice, out := ConstantNode(Dense(shape[-1]), f"out_{number}"))
        assert out.name
    return space


def pair(inputs: Any, targets: Any) -> Callable[[], Any]:
    """A load_data with the same arrays in training and validation."""
    return lambda: ((inputs, targets), (inputs, targets))


def problem_of(load: Callable[..., Any], loss: Any = "mse", **arguments: Any) -> NaProblem:
    problem = NaProblem()
    problem.load_data(load)
    problem.search_space(dense_space, **arguments)
    problem.loss(loss)
    problem.metrics(["mae"])
    problem.objective("-val_loss")
    return problem


def refused(problem: NaProblem) -> str:
    """The one line that ``check_problem`` says of it."""
    with pytest.raises(WrongCall) as caught:
        check_problem(problem)
    assert "\n" not in caught.value.message
    return caught.value.message


X = RNG.normal(size=(20, 3))
Y = X.sum(axis=1)


# -- what is taken ---------------------------------------------------------------------------------------
def test_vectors_become_columns_and_numbers_float32() -> None:
    space, data = check_problem(problem_of(pair(X[:, 0], Y)))
    assert isinstance(data, Data)
    assert data.train.inputs[0].shape == data.train.targets[0].shape == (20, 1)
    assert {array.dtype for array in (*data.train.inputs, *data.valid.targets)} == {np.dtype(np.float32)}
    assert len(data.train) == 20
    assert space.output_shapes == [(1,)]


def test_a_third_pair_is_the_test_and_two_pairs_have_none() -> None:
    with_test = problem_of(lambda: ((X, Y), (X[:5], Y[:5]), (X[:4], Y[:4])))
    assert [len(part) for part in (load_data(with_test).valid, load_data(with_test).test or [])] == [5, 4]
    assert load_data(problem_of(pair(X, Y))).test is None


def test_class_numbers_are_int32_and_give_the_width_of_the_output() -> None:
    labels = np.arange(20) % 4
    space, data = check_problem(problem_of(pair(X, labels), "sparse_categorical_crossentropy"))
    assert data is not None
    assert data.train.targets[0].dtype == np.int32
    assert data.output_shapes == ((4,),)
    assert space.output_shapes == [(4,)]


def test_a_given_output_shape_says_how_many_classes_there_are() -> None:
    labels = np.arange(20) % 4
    problem = problem_of(pair(X, labels), "sparse_categorical_crossentropy", output_shape=(9,))
    assert space_of(problem, load_data(problem)).output_shapes == [(9,)]


def test_several_inputs_and_outputs_are_lists_of_arrays() -> None:
    several = pair([X, X[:, :2]], [Y, np.eye(2)[np.arange(20) % 2]])
    data = load_data(problem_of(several, ["mse", "categorical_crossentropy"]))
    assert data.input_shapes == ((3,), (2,))
    assert data.output_shapes == ((1,), (2,))


def test_with_both_shapes_given_the_data_is_not_loaded() -> None:
    def never() -> Any:
        raise AssertionError("loaded")

    space, data = check_problem(problem_of(never, input_shape=(3,), output_shape=(1,)))
    assert data is None
    assert space.size == 3


def test_preprocessing_is_fitted_on_training_data_alone() -> None:
    problem = problem_of(lambda: ((X, Y), (X + 100.0, Y), (X - 100.0, Y)))
    problem.preprocessing(StandardScaler)
    data = load_data(problem)
    assert data.test is not None
    np.testing.assert_allclose(data.train.inputs[0].mean(axis=0), 0.0, atol=1e-6)
    np.testing.assert_allclose(data.train.inputs[0].std(axis=0), 1.0, atol=1e-5)
    assert data.valid.inputs[0].min() > 10
    assert data.test.inputs[0].max() < -10


def test_preprocessing_takes_images_and_gives_them_their_shape_back() -> None:
    images = RNG.normal(size=(20, 4, 4, 1))
    problem = problem_of(pair(images, Y))
    problem.preprocessing(StandardScaler)
    data = load_data(problem)
    assert data.input_shapes == ((4, 4, 1),)
    np.testing.assert_allclose(data.train.inputs[0].mean(axis=0), 0.0, atol=1e-6)


def test_preprocessing_of_targets_may_change_their_width_and_kind() -> None:
    words = np.array(["cat", "dog", "owl", "dog"] * 5)
    problem = problem_of(pair(X, words), "categorical_crossentropy")
    problem.preprocessing(None, OneHotEncoder)
    data = load_data(problem)
    assert data.output_shapes == ((3,),)
    assert data.train.targets[0].sum() == 20


# -- what is refused -------------------------------------------------------------------------------------
def with_hole(value: float) -> Any:
    holed = X.copy()
    holed[7, 1] = value
    return holed


LABELS = np.arange(20) % 4
SPARSE = "sparse_categorical_crossentropy"
BAD_DATA: list[tuple[Callable[[], Any], Any, str]] = [
    (pair(X, Y[:19]), "mse", "training inputs have 20 examples and its targets 19"),
    (pair([X, X[:10]], Y), "mse", "training inputs have 20 examples and its inputs 10"),
    (lambda: ((X, Y), (X, Y[:3])), "mse", "validation inputs have 20 examples and its targets 3"),
    (lambda: ((X, Y), (X[:0], Y[:0])), "mse", "validation has no examples"),
    (pair(with_hole(np.nan), Y), "mse", "training inputs have 1 numbers that are not finite"),
    (pair(with_hole(np.inf), Y), "mse", "the first at [7, 1]: inf"),
    (pair(with_hole(1e300), Y), "mse", "not finite in float32, the first at [7, 1]: 1e+300"),
    (lambda: ((X, Y), (X[:, :2], Y)), "mse", "inputs have the shape (3,) and validation inputs (2,)"),
    (lambda: ((X, Y), (X, np.stack([Y, Y], 1))), "mse", "training targets have the shape (1,) and valid"),
    (lambda: ((X, Y), (X, Y), ([X, X], Y)), "mse", "and test inputs (3,), (3,)"),
    (pair(X, LABELS - 1), SPARSE, "a label is -1: give labels from 0 to 2"),
    (pair(X, LABELS + 0.5), SPARSE, "a label is 0.5: give whole numbers"),
    (lambda: ((X, LABELS % 3), (X, LABELS)), SPARSE, "crossentropy is for 3 classes, and a label is 3"),
    (pair(X, LABELS), "categorical_crossentropy", "give one-hot targets, or the loss sparse_cat"),
    (pair(X, np.ones((20, 2))), "categorical_crossentropy", "one has the sum 2"),
    (pair(X, Y * 0), SPARSE, "is for two classes or more"),
    (pair(X, LABELS), "binary_crossentropy", "takes targets from 0 to 1, and one is 2"),
    (pair(X, -LABELS), "poisson", "takes targets from 0 on, and one is -1"),
    (pair(X, LABELS), "hinge", "takes targets of -1 and 1, and one is 2"),
    (pair(X, -LABELS), "msle", "takes targets above -1, and one is -1"),
    (pair(X, np.array(["a", "b"] * 10)), "mse", "training targets are no numbers"),
    (pair([[1.0, 2.0], [3.0]], Y), "mse", "training inputs are no array"),
    (pair(3.0, Y), "mse", "training inputs are a float, no array"),
    (pair(X, None), "mse", "training targets are a NoneType, no array"),
    (pair(X[:, :0], Y), "mse", "nothing is in an example"),
    (lambda: (X, Y), "mse", "gave no pair (inputs, targets) for training"),
    (lambda: ((X, Y),), "mse", "gave 1 parts: let it return ((x, y), (x, y))"),
    (lambda: {"x": X}, "mse", "gave a dict: let it return ((x, y), (x, y))"),
    (lambda: np.load("/nowhere/data.npy"), "mse", "raised FileNotFoundError: [Errno 2]"),
    (pair(X, Y), ["mse", "mse"], "the problem has 1 outputs and 2 losses"),
]  # fmt: skip


@pytest.mark.parametrize(("load", "loss", "said"), BAD_DATA, ids=[said for _, _, said in BAD_DATA])
def test_bad_data_is_refused_in_one_line(load: Callable[[], Any], loss: Any, said: str) -> None:
    assert said in refused(problem_of(load, loss))


def test_labels_beyond_a_given_output_shape_are_out_of_range() -> None:
    said = refused(problem_of(pair(X, LABELS), SPARSE, output_shape=(3,)))
    assert "is for 3 classes, and a label is 3: give labels from 0 to 2, or another output_shape" in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"input_shape": (5,)}, "its input shape is (5,), and that of the data (3,)"),
        ({"output_shape": (2,)}, "its output shape is (2,), and that of the data (1,)"),
        ({"output_shape": 2}, "the output shape 2 is none"),
        ({"input_shape": (3,), "output_shape": (0,)}, "the output shape (0,) is none"),
    ],
)
def test_given_shapes_that_are_not_those_of_the_data_are_refused(arguments: Any, said: str) -> None:
    problem = problem_of(pair(X, Y), **arguments)
    with pytest.raises(WrongCall, match="shape") as caught:
        space_of(problem, load_data(problem))
    assert said in caught.value.message


def test_what_the_users_functions_raise_is_one_line() -> None:
    problem = problem_of(pair(X, Y), width=3)
    problem.search_space(lambda input_shape, output_shape: 1 / 0)
    assert "search_space: <lambda> raised ZeroDivisionError: division by zero" in refused(problem)
    problem.search_space(dense_space)
    problem.preprocessing(lambda: object())
    assert "preprocessing: <lambda> raised AttributeError" in refused(problem)


def test_a_problem_that_lacks_something_says_what() -> None:
    problem = NaProblem()
    assert "the problem has no data" in refused(problem)
    problem.load_data(pair(X, Y))
    assert "the problem has no search space" in refused(problem)
    problem.search_space(dense_space)
    assert "the problem has no loss" in refused(problem)
    problem.loss("msee")
    assert "the problem has no objective" in refused(problem)
    problem.objective("val_acc__max")
    assert "objective 'val_acc__max' names no metric of the problem" in refused(problem)
    problem.objective("val_loss__min")
    assert "objective 'val_loss__min' would maximise the loss: give '-val_loss__min'" in refused(problem)
    problem.objective("-val_loss")
    problem.metrics(["acuracy"])
    problem.loss("mse")
    assert "metrics: 'acuracy' is none of Keras's: did you mean accuracy" in refused(problem)
    problem.loss("msee")
    assert "loss 'msee' is none of Keras's: did you mean mse" in refused(problem)


def test_of_several_outputs_an_objective_names_one() -> None:
    several = problem_of(pair(X, [Y, Y]), ["mse", "mse"])
    for right in ("-val_loss", "-val_out_1_mae__min", "-out_0_mae"):
        several.objective(right)
        assert check_problem(several)[0].size == 3
    several.objective("-val_mae")
    assert "objective '-val_mae' names no metric of the problem" in refused(several)


def test_early_stopping_that_looks_at_no_metric_is_refused() -> None:
    problem = problem_of(pair(X, Y))
    problem.hyperparameters(patience=3, monitor="val_acc")
    assert "monitor='val_acc' names no metric of the problem" in refused(problem)


def test_a_space_that_leaves_no_choice_or_does_not_fit_is_refused() -> None:
    def fixed(input_shape: Any, output_shape: Any) -> SearchSpace:
        space = SearchSpace(input_shape, output_shape)
        space.connect(space.inputs[0], ConstantNode(Dense(1), "out"))
        return space

    def narrow(input_shape: Any, output_shape: Any) -> SearchSpace:
        space = SearchSpace(input_shape, output_shape)
        space.connect(space.inputs[0], VariableNode("out", [Dense(2), Dense(1)]))
        return space

    problem = problem_of(pair(X, Y))
    problem.search_space(fixed)
    assert "no variable node" in refused(problem)
    problem.search_space(narrow)
    assert "has the output shape (2,), and the space is for (1,)" in refused(problem)
    problem.search_space(dense_space)
    problem.baseline(0, 1)
    assert "the sequence [0, 1] has 2 numbers" in refused(problem)
