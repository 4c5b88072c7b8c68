"""The ready-made problems: spaces, optima; digits learns from its labels and nothing else."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_digits

from nas_hpc.problem import load_callable, load_problem
from nas_hpc.problems.hps import digits, external_program, polynome2, toy_forbidden
from nas_hpc.specification import JobSpec, is_job_specification

GOOD = {
    "layers": 1,
    "units": 128,
    "activation": "relu",
    "solver": "adam",
    "learning_rate": 3e-3,
    "alpha": 1e-4,
    "batch_size": 32,
}


@pytest.mark.parametrize("name", ["polynome2", "toy_forbidden", "digits"])
def test_problem_and_run_load_by_name_and_fit_each_other(name: str) -> None:
    problem = load_problem(f"nas_hpc.problems.hps.{name}.Problem")
    run = load_callable(f"nas_hpc.problems.hps.{name}.run")
    result = run(problem.default_configuration)
    objective = result["objective"] if isinstance(result, dict) else result
    assert type(objective) is float


@pytest.mark.parametrize("name", ["printed", "noted", "registered"])
def test_the_specifications_of_external_fit_its_problem(name: str) -> None:
    problem = load_problem("nas_hpc.problems.hps.external.Problem")
    function = load_callable(f"nas_hpc.problems.hps.external.{name}")
    assert is_job_specification(function)
    assert isinstance(function(problem.default_configuration), JobSpec)


def test_the_program_of_external_says_what_it_found(capsys: pytest.CaptureFixture[str]) -> None:
    external_program.main(["--x", "2", "--y", "3"])
    assert capsys.readouterr().out == "DH-OUTPUT: -13.0\n"
    with pytest.raises(SystemExit):
        external_program.main(["--note"])
    assert "--note is for a job" in capsys.readouterr().err


def test_polynome2_starts_at_ten_and_has_its_optimum_at_zero() -> None:
    assert polynome2.Problem.hyperparameter_names == [f"e{i}" for i in range(10)]
    assert polynome2.Problem.starting_point_asdict == [{f"e{i}": 10.0 for i in range(10)}]
    assert polynome2.run(polynome2.Problem.starting_point_asdict[0]) == -1000.0
    assert polynome2.run({f"e{i}": 0.0 for i in range(10)}) == 0.0


def test_toy_forbidden_never_gives_what_it_forbids() -> None:
    drawn = toy_forbidden.Problem.sample(300, np.random.default_rng(0))
    assert {"x": 3, "shape": "ridge"} not in drawn
    assert {"x": 4, "shape": "ridge"} in drawn
    assert all(("depth" in c) == (c["shape"] == "bowl") for c in drawn)
    best = {"x": 7, "shape": "bowl", "depth": 2}
    assert toy_forbidden.run(best) == 0.0 == max(toy_forbidden.run(c) for c in [*drawn, best])


def test_digits_has_mixed_hyperparameters_and_a_condition() -> None:
    kinds = {type(hp).__name__ for hp in digits.Problem.space.values()}
    assert len(digits.Problem) >= 6
    assert len(kinds) >= 3
    for config in digits.Problem.sample(50, np.random.default_rng(0)):
        assert ("momentum" in config) == (config["solver"] == "sgd")


def test_digits_splits_are_disjoint_fixed_stratified_and_scaled_on_training_data_alone() -> None:
    x, y = load_digits(return_X_y=True)
    # each image marked by its number: parts are told apart by it
    marked = digits.split(np.hstack([x, np.arange(len(x))[:, None]]), y)
    numbers = [part[:, -1] for part in (marked.x_train, marked.x_validation, marked.x_test)]
    assert len(np.unique(np.concatenate(numbers).round(9))) == len(x)
    first, second = digits.load_data(), digits.load_data()
    np.testing.assert_array_equal(first.x_validation, second.x_validation)
    np.testing.assert_allclose(first.x_train.mean(axis=0), 0.0, atol=1e-9)
    assert np.abs(first.x_test.mean(axis=0)).max() > 1e-3
    for part in (first.y_train, first.y_validation, first.y_test):
        shares = np.bincount(part) / len(part)
        np.testing.assert_allclose(shares, np.bincount(y) / len(y), atol=0.01)


def test_digits_learns_and_repeats_by_numpys_seed() -> None:
    results = []
    for seed in (1, 1, 2):
        np.random.seed(seed)
        results.append(digits.run(GOOD))
    assert results[0] == results[1] != results[2]
    assert results[0]["objective"] > 0.93
    assert results[0]["metadata"]["test_accuracy"] > 0.93
    assert 1 <= results[0]["metadata"]["epochs"] <= 15


@pytest.mark.slow
def test_with_permuted_labels_digits_learns_nothing() -> None:
    def permuted() -> digits.Data:
        x, y = load_digits(return_X_y=True)
        return digits.split(x, np.random.default_rng(7).permutation(y))

    for config in (GOOD, GOOD | {"layers": 2, "solver": "sgd", "learning_rate": 0.1, "momentum": 0.5}):
        np.random.seed(0)
        result = digits.run_on(permuted, config)
        assert result["objective"] <= 0.2
        assert result["metadata"]["test_accuracy"] <= 0.2


def test_a_network_that_diverges_is_worth_a_guess(monkeypatch: pytest.MonkeyPatch) -> None:
    def explode(*_: Any) -> None:
        raise ValueError("Solver produced non-finite parameter weights.")

    monkeypatch.setattr(digits.MLPClassifier, "fit", explode)
    result = digits.run(GOOD)
    assert result["objective"] == pytest.approx(0.1, abs=0.02)
    assert result["metadata"]["diverged"] is True
