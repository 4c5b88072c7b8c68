"""The ready-made problems of architecture search: their data is the reference's, their spaces are large."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.datasets import load_digits

from nas_hpc.errors import WrongCall
from nas_hpc.nas import NaProblem, load_na_problem
from nas_hpc.nas.data import check_problem, load_data
from nas_hpc.nas.operations import Connect
from nas_hpc.problems.hps import digits
from nas_hpc.problems.nas import ackley_reg, digits_conv, digits_dense, linear_reg, polynome2_reg
from nas_hpc.problems.nas.spaces import dense_skipco

PROBLEMS = ("linear_reg", "polynome2_reg", "ackley_reg", "digits_dense", "digits_conv")


@pytest.mark.parametrize("name", PROBLEMS)
def test_every_problem_is_right_and_has_a_million_architectures_with_skip_connections(name: str) -> None:
    space, data = check_problem(load_na_problem(f"nas_hpc.problems.nas.{name}.Problem"))
    assert data is not None
    assert space.size >= 1_000_000
    assert any(isinstance(op, Connect) for node in space.variable_nodes for op in node.ops)


@pytest.mark.parametrize(
    ("module", "seed", "low", "high"),
    [(linear_reg, 42, 100.0, 1.0), (polynome2_reg, 2018, -50.0, 50.0), (ackley_reg, 2018, -32.768, 32.768)],
)
def test_generated_points_are_those_of_the_reference(
    module: object, seed: int, low: float, high: float
) -> None:
    (x, y), (x_valid, y_valid) = module.load_data()  # type: ignore[attr-defined]
    assert (x.shape, y.shape, x_valid.shape, y_valid.shape) == (
        (80000, 10),
        (80000, 1),
        (20000, 10),
        (20000, 1),
    )
    rng = np.random.RandomState(seed)
    for row in range(3):  # the reference draws row by row
        np.testing.assert_allclose(x[row], low + rng.random_sample(10) * (high - low))


def test_targets_are_the_functions_of_the_points() -> None:
    x = np.vstack([np.zeros(10), np.ones(10), np.arange(10.0)])
    np.testing.assert_allclose(linear_reg.linear(x), [0, 10, 45])
    np.testing.assert_allclose(polynome2_reg.polynome2(x), [0, -10, -285])
    np.testing.assert_allclose(ackley_reg.ackley(x)[:2], [0, -(20 - 20 * np.exp(-0.2))], atol=1e-12)


def test_digits_are_real_in_three_parts_that_share_no_image_and_have_every_class() -> None:
    parts = digits_dense.load_data()
    assert [len(x) for x, _ in parts] == [718, 539, 540]
    assert all(set(y) == set(range(10)) for _, y in parts)
    real = load_digits()
    together = np.concatenate([np.column_stack([x, y]) for x, y in parts])
    wanted = np.column_stack([real.data, real.target])
    np.testing.assert_array_equal(np.sort(together, axis=0), np.sort(wanted, axis=0))
    assert {tuple(row) for row in together} == {tuple(row) for row in wanted}


def test_the_digits_of_both_kinds_of_search_are_in_the_same_parts() -> None:
    tuned = digits.load_data()
    data = load_data(digits_dense.Problem)
    np.testing.assert_allclose(data.train.inputs[0], tuned.x_train, rtol=1e-5, atol=1e-6)
    assert data.test is not None
    np.testing.assert_array_equal(data.test.targets[0].ravel(), tuned.y_test)


def test_the_images_of_convolutions_are_those_of_dense_networks_from_0_to_1() -> None:
    for (images, labels), (pixels, same) in zip(
        digits_conv.load_data(), digits_dense.load_data(), strict=True
    ):
        np.testing.assert_array_equal(images.reshape(-1, 64) * 16, pixels)
        np.testing.assert_array_equal(labels, same)
        assert images.shape[1:] == (8, 8, 1)


def test_the_dense_space_has_the_reference_s_choices() -> None:
    space = dense_skipco((10,), (1,), num_layers=10)
    sizes = [len(node.ops) for node in space.variable_nodes]
    assert sizes.count(25) == 10
    assert sizes.count(2) == 1 + 2 + 8 * 3
    assert space.size == 25**10 * 2**27


def test_resources_are_what_was_said_last_and_nothing_else() -> None:
    problem = NaProblem()
    assert problem.asked_resources == {}
    problem.resources(num_nodes=2, ranks_per_node=4)
    problem.resources(ranks_per_node=3, gpus_per_rank=0)
    assert problem.asked_resources == {"num_nodes": 2, "ranks_per_node": 3, "gpus_per_rank": 0}


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("ranks_per_node", 0, "resources: ranks_per_node=0: give a whole number from 1 on"),
        ("num_nodes", True, "resources: num_nodes=True"),
        ("gpus_per_rank", -1, "gpus_per_rank=-1: give a whole number from 0 on"),
        ("threads_per_rank", "2", "threads_per_rank='2'"),
        ("ranks_per_nodes", 2, "unknown 'ranks_per_nodes': did you mean ranks_per_node"),
        ("memory", 2, "unknown 'memory': there are num_nodes, ranks_per_node, "),
    ],
)
def test_resources_that_are_none_are_named(name: str, value: object, said: str) -> None:
    with pytest.raises(WrongCall) as refused:
        NaProblem().resources(**{name: value})  # type: ignore[arg-type]
    assert said in str(refused.value)
