"""Search spaces of trials, what is chosen for full training, and what trials cost."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nas_hpc.apps.trials.environment import environment_of
from nas_hpc.apps.trials.plan import Machine, selection, stages
from nas_hpc.apps.trials.policy import PolicyOptimizer
from nas_hpc.apps.trials.records import Trial, finished, read_trials, write_trials
from nas_hpc.apps.trials.space import load_space, space_of
from nas_hpc.apps.trials.spec import TrialsSpec, id_of, make_directory, read_spec, trial_of, write_spec
from nas_hpc.apps.trials.stage2 import chosen_by
from nas_hpc.errors import WrongCall
from nas_hpc.evaluator import EvaluationResult
from nas_hpc.problem import HpProblem
from nas_hpc.states import Outcome


def test_a_list_of_dictionaries_is_a_space_whose_points_are_lists_of_dictionaries_again() -> None:
    form = [
        {"filters": [8, 16], "kernel": [3, 5], "act": "relu"},
        {"rate": (0.1, 0.2), "inner": {"n": (1, 3)}},
    ]
    space = space_of(form, "form")
    assert space.names == ["0.filters", "0.kernel", "1.rate", "1.inner.n"]
    [point] = space.optimizer("random", 3, 1).ask(1)
    first, second = space.expand(point)
    assert first == {"filters": point["0.filters"], "kernel": point["0.kernel"], "act": "relu"}
    assert second == {"rate": point["1.rate"], "inner": {"n": point["1.inner.n"]}}


def test_a_space_may_be_made_by_a_function(tmp_path: Path) -> None:
    file = tmp_path / "made_space.py"
    file.write_text("def space():\n    return {'x': [1, 2]}\ndef broken():\n    return [1][2]\nnothing = 7\n")
    assert load_space(f"{file}:space").names == ["x"]
    with pytest.raises(WrongCall, match="raised IndexError"):
        load_space(f"{file}:broken")
    with pytest.raises(WrongCall, match="is a int: give an HpProblem"):
        load_space(f"{file}:nothing")


@pytest.mark.slow
def test_a_space_of_architectures_gives_sequences_and_whole_architectures() -> None:
    space = load_space("nas_hpc.problems.nas.digits_dense.Problem")
    [point] = space.optimizer("random", 3, 1).ask(1)
    expanded = space.expand(point)
    assert list(point) == ["arch_seq"]
    assert expanded["arch_seq"] == point["arch_seq"]
    assert len(expanded) > 1


@pytest.mark.parametrize(
    ("form", "said"),
    [({}, "nothing to choose"), ({"a.b": [1]}, "without a dot"), ({"a": object()}, "give a list of values")],
)
def test_what_is_no_space_is_refused_with_what_would_be_right(form: Any, said: str) -> None:
    with pytest.raises(WrongCall, match=said):
        space_of(form, "form")


def test_a_function_that_returns_no_space_is_named(tmp_path: Path) -> None:
    (tmp_path / "nothing.py").write_text("def space(): pass\n")
    with pytest.raises(WrongCall, match="returned nothing: have it return the space"):
        load_space(f"{tmp_path}/nothing.py:space")


def test_a_policy_refuses_what_is_no_choice_and_says_what_would_be_right() -> None:
    with pytest.raises(WrongCall, match="'x' is a UniformFloatHyperparameter: give a list of values"):
        space_of({"x": (0.0, 1.0)}, "form").optimizer("ppo", 0, 10)


def test_a_policy_comes_to_prefer_what_is_rewarded() -> None:
    problem = HpProblem()
    problem.add_dim("a", ["bad", "good"])
    policy = PolicyOptimizer(problem, total=300, seed=1)
    asked = []
    for _ in range(300):
        [config] = policy.ask(1)
        asked.append(config["a"])
        policy.tell([config], [1.0 if config["a"] == "good" else None if len(asked) % 3 else 0.0])
    assert asked[-50:].count("good") > asked[:50].count("good") + 10


def trial(number: int, reward: float | None) -> Trial:
    return Trial(id=number, stage="search", number=number, directory="", parameters={}, reward=reward)


def test_the_best_of_every_so_many_are_chosen_and_none_twice() -> None:
    done = [trial(n, r) for n, r in [(1, 0.5), (3, None), (2, 0.9), (4, 0.7), (5, 0.1), (6, 0.9)]]
    assert chosen_by(done[:2], 3, 2) == []
    assert chosen_by(done[:3], 3, 2) == [2, 1]
    assert chosen_by(done, 3, 2) == [2, 1, 6, 4]
    assert chosen_by(done, 3, 2, {1: 5}) == [5, 2, 6, 4], "what was started stays"
    assert chosen_by(done, 2, 3) == [1, 2, 4, 6, 5]


@given(st.sampled_from(["search", "train"]), st.integers(1, 999_999), st.integers(0, 50))
def test_an_id_tells_stage_number_and_how_often_a_trial_ran(stage: str, number: int, times: int) -> None:
    spec = TrialsSpec(job_name="a", directory="", again={f"{stage}/{number}": times})
    assert trial_of(id_of(spec, stage, number)) == (stage, number, times)


def test_what_was_asked_is_read_as_it_was_written_and_from_where_it_was_moved(tmp_path: Path) -> None:
    place = make_directory(str(tmp_path / "root"), "job")
    spec = TrialsSpec(
        job_name="job", directory=str(place), trainer=("a", "b"), search_flags={"k": "v=w"}, chosen=(3, 1)
    )
    write_spec(spec)
    assert read_spec(place) == spec
    assert make_directory(str(tmp_path / "root"), "job") != place
    place.rename(tmp_path / "elsewhere")
    assert read_spec(tmp_path / "elsewhere").directory == str(tmp_path / "elsewhere")
    with pytest.raises(WrongCall, match="no directory of a search of trials"):
        read_spec(tmp_path)


@pytest.mark.parametrize(
    ("outcome", "metadata", "reason", "expected"),
    [
        (Outcome.TIMEOUT, {"reason_class": "error"}, "too long", "timeout"),
        (Outcome.ERROR, {"reason_class": "oom"}, "MemoryError", "oom"),
        (Outcome.ERROR, {"reason_class": "nan"}, "loss is NaN", "nan"),
        (Outcome.ERROR, {}, "killed by signal 9 (SIGKILL)", "oom"),
        (Outcome.ERROR, {}, "exit code 3", "error"),
        (Outcome.LOST, {}, "node gone", "node"),
    ],
)
def test_a_failure_has_its_class(
    tmp_path: Path, outcome: Outcome, metadata: dict[str, Any], reason: str, expected: str
) -> None:
    result = EvaluationResult(1, {}, None, outcome, reason, metadata, 0, 1, 2, 1, False, {}, 1)
    made = finished(
        Trial(id=1, stage="search", number=1, directory=str(tmp_path), parameters={}), result, "r"
    )
    assert (made.state, made.reason_class, made.reason) == ("FAILED", expected, reason)


def test_the_listing_keeps_numbers_parameters_and_odd_texts(tmp_path: Path) -> None:
    odd = 'quote " comma , ü = new'
    result = EvaluationResult(
        2,
        {},
        0.25,
        Outcome.OK,
        "",
        {"step": 3, "latency": 0.5, "reward": 9, "trial": 4},
        0,
        10,
        12.5,
        1,
        False,
        {},
        1,
    )
    first = finished(
        Trial(id=2, stage="search", number=2, directory="/d", parameters={"a": odd}), result, "reward"
    )
    write_trials(tmp_path, [first, trial(1, None)])
    one, two = read_trials(tmp_path)
    assert (one["trial"], one["reward"], one["latency"]) == (1, None, None)
    assert (two["reward"], two["latency"], two["step"], two["metric.trial"]) == (0.25, 0.5, 3, 4)
    assert two["parameters"] == {"a": odd}
    assert two["seconds"] == 2.5


def test_forty_batches_of_fifty_make_two_thousand_trials() -> None:
    [search] = stages(Machine(50), trials=2000, hours=1)
    assert (search.batches, search.hours, search.node_hours) == (40, 40, 2000)
    [packed] = stages(Machine(50, trials_per_node=5), trials=2000, hours=1)
    assert packed.node_hours == 400


def test_a_selection_costs_twelve_full_trainings_at_full_width() -> None:
    left = 1 - (1 / 30 + 1 / 25 + 1 / 20 + 1 / 15)
    made = selection(Machine(30), 10.0)
    assert math.isclose(made.node_hours, 10 * (4 + 10 * left), abs_tol=1e-3)
    assert made.said.startswith("12.1 full trainings")
    assert math.isclose(made.hours, 10.0), "side by side the rounds are one training"


def test_the_environment_of_a_job_changes_with_packages_image_and_trainer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = tmp_path / "train.py"
    trainer.write_text("print(1)\n")
    words = ("/no/such/python", str(trainer), "--flag", "relative.py")
    before = environment_of(words, {})
    assert before == environment_of(words, {"HOME": "/x"})
    assert {"python", "interpreter", "packages_sha256", f"sha256 of {trainer}"} <= before.keys()
    assert environment_of(words, {"APPTAINER_CONTAINER": "/i.sif"})["APPTAINER_CONTAINER"] == "/i.sif"
    trainer.write_text("print(2)\n")
    (tmp_path / "more-1.0.dist-info").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    after = environment_of(words, {})
    assert {name for name in after if after[name] != before[name]} == {
        "packages_sha256", f"sha256 of {trainer}"
    }  # fmt: skip
