"""Helpers for generators of proxy tasks: parts of the training data, smaller models, their combinations."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nas_hpc import trial
from nas_hpc.errors import WrongCall

SHARES = st.floats(0.01, 1.0)


@given(st.integers(1, 200), SHARES, SHARES, st.integers(0, 99))
def test_a_smaller_part_is_in_a_larger_one_of_the_same_seed(
    count: int, one: float, other: float, seed: int
) -> None:
    labels = [index % 3 for index in range(count)]
    small, large = sorted((one, other))
    for flags in ({}, {"labels": labels}, {"labels": labels, "balance": True}):
        less = trial.choose_subset(count, small, seed, **flags)  # type: ignore[arg-type]
        more = trial.choose_subset(count, large, seed, **flags)  # type: ignore[arg-type]
        assert set(less) <= set(more) <= set(range(count))
        assert 1 <= len(less) == len(set(less))
        assert [row for row in more if row in set(less)] == less  # in one order


def test_a_part_is_shuffled_and_of_the_size_that_was_asked_for() -> None:
    rows = trial.choose_subset(1000, 0.25, seed=3)
    assert len(rows) == 250
    assert rows != sorted(rows)
    assert rows == trial.choose_subset(1000, 0.25, seed=3) != trial.choose_subset(1000, 0.25, seed=4)
    assert sorted(trial.choose_subset(1000, 1.0)) == list(range(1000))


def test_a_stratified_part_keeps_the_shares_of_the_classes_and_a_balanced_one_makes_them_equal() -> None:
    labels = ["often"] * 900 + ["seldom"] * 100
    kept = Counter(labels[row] for row in trial.choose_subset(1000, 0.5, 1, labels))
    assert kept == {"often": 450, "seldom": 50}
    even = Counter(labels[row] for row in trial.choose_subset(1000, 0.5, 1, labels, balance=True))
    assert even == {"often": 100, "seldom": 100}
    fewer = Counter(labels[row] for row in trial.choose_subset(1000, 0.1, 1, labels, balance=True))
    assert fewer == {"often": 50, "seldom": 50}


def test_a_manifest_of_a_part_has_lines_of_the_whole_and_is_written_the_same_again(tmp_path: Path) -> None:
    lines = [f"train/{name}/{number}.png" for name in ("cat", "dog") for number in range(20)]
    (tmp_path / "train.txt").write_text("\n".join(lines) + "\n")
    made = [
        trial.write_subset(tmp_path / "train.txt", tmp_path / "parts", 0.25, 7, trial.folder_of)
        for _ in range(2)
    ]
    assert made[0] == made[1]
    kept = Path(made[0]).read_text().splitlines()
    assert set(kept) <= set(lines)
    assert Counter(map(trial.folder_of, kept)) == {"cat": 5, "dog": 5}


def test_a_grid_has_all_combinations_with_names_of_their_choices_and_the_baselines_other_flags() -> None:
    baseline = {"filters": "64", "target-latency": "8", "lr": "0.1"}
    tasks = trial.grid(
        baseline,
        trial.data_shares([25, 50]),
        trial.model_scales(
            baseline, [25, 50], flags=["filters"], multiple_of=8, latency_flag="target-latency"
        ),
        prefix="net",
    )
    assert [task.name for task in tasks] == [
        "net_training_data_pct_25_model_scale_25",
        "net_training_data_pct_25_model_scale_50",
        "net_training_data_pct_50_model_scale_25",
        "net_training_data_pct_50_model_scale_50",
    ]
    assert tasks[0].docker_args_map == {"share": "0.25", "filters": 16, "target-latency": 2.0, "lr": "0.1"}
    assert tasks[3].docker_args_map == {"share": "0.5", "filters": 32, "target-latency": 4.0, "lr": "0.1"}
    assert baseline == {"filters": "64", "target-latency": "8", "lr": "0.1"}


def test_a_limit_on_the_latency_is_scaled_as_the_measured_latencies_of_the_baseline_model() -> None:
    [choice] = trial.model_scales(
        {"blocks": "8", "limit": "10"}, [50], flags=["blocks"], latency_flag="limit",
        latencies={100: 4.0, 50: 1.0},
    )  # fmt: skip
    assert choice.flags == {"blocks": 4, "limit": 2.5}


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: trial.choose_subset(10, 0.0), "the share of the training data is 0.0"),
        (lambda: trial.choose_subset(10, 0.5, labels=[1]), "1 labels for 10 examples"),
        (lambda: trial.choose_subset(10, 0.5, balance=True), "labels"),
        (lambda: trial.data_shares([120]), "120 percent"),
        (lambda: trial.model_scales({"a": "1"}, [50], flags=["b"]), "'b' is none of the baseline"),
        (lambda: trial.model_scales({"a": "x"}, [50], flags=["a"]), "only whole numbers"),
        (lambda: trial.grid({}, trial.data_shares([1]), trial.data_shares([2])), "'share'"),
        (lambda: trial.write_subset("/nowhere", "/tmp", 0.5), "cannot be read"),
    ],
)
def test_what_cannot_be_is_said_with_its_value(call: object, said: str) -> None:
    with pytest.raises(WrongCall, match=said):
        call()  # type: ignore[operator]
