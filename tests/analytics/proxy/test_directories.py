"""Variance and correlation by the program, from directories as trials leave them."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import pytest

from nas_hpc.analytics.cli import main


def write_trial(directory: Path, scores: Sequence[float], total: int = 100, latency: float = -1.0) -> None:
    """A trial that was validated at equal distances up to its end."""
    directory.mkdir(parents=True)
    points = [
        {"training_step_pct": 100 * (at + 1) / len(scores), "accuracy": score,
         "training_step": total * (at + 1) // len(scores) - 1}
        for at, score in enumerate(scores)
    ]  # fmt: skip
    content = {
        "training_time": {"total_training_steps": total, "total_training_time_in_secs": 36.0},
        "latency": latency,
        "training_accuracy_over_steps": points,
    }
    (directory / "TRIAL_TRAINING_METRICS.json").write_text(json.dumps(content))


def run(capsys: pytest.CaptureFixture[str], *argv: object, code: int = 0) -> tuple[str, str]:
    assert main([str(one) for one in argv]) == code
    return capsys.readouterr()


def test_variance_of_copies_with_a_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for copy in range(1, 6):
        write_trial(tmp_path / "job" / "nas" / "search" / str(copy), [0.3, 0.5, 0.6, 0.65 + copy / 100])
    picture = tmp_path / "curves.png"
    out, _ = run(capsys, "variance", tmp_path / "job", "-o", picture)
    assert "5 copies" in out
    assert "Model variance is good." in out
    assert "Model smoothness is good." in out
    assert picture.read_bytes().startswith(b"\x89PNG")
    found = json.loads(run(capsys, "variance", tmp_path / "job", "--json")[0])
    assert found["good"] is True
    assert found["variance_value"] == pytest.approx(math.sqrt(0.0002) / 0.68)
    assert found["smoothness_value"] == 0.0


def test_variance_of_dead_copies_is_invalid_and_says_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for copy in (1, 3):
        write_trial(tmp_path / str(copy), [0.0, 0.0, 0.0])
    (tmp_path / "2").mkdir()
    found = json.loads(run(capsys, "variance", tmp_path, "--json")[0])
    assert (found["good"], found["variance_value"]) == (False, None)
    dead = "has the score 0 from beginning to end"
    said = f"(copy 1 {dead}; copy 2 left no scores; copy 3 {dead})"
    assert said in found["variance_info"], "by the names of the directories"


def test_correlation_of_a_retraining_follows_the_trials_that_its_job_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cheap, full = tmp_path / "cheap", tmp_path / "full"
    for trial in range(1, 9):
        write_trial(cheap / "nas" / "search" / str(trial), [0.1, trial / 10], latency=float(trial))
    chosen = [8, 6, 5, 3, 2]
    for place, trial in enumerate(chosen, 1):
        write_trial(full / "nas" / "train" / str(place), [0.2, 0.5 + trial / 100], latency=3.0 * trial)
    spec = {"search_flags": {"retrain_search_job_trials": ",".join(map(str, chosen))}}
    (full / "search_job_spec.json").write_text(json.dumps(spec))
    picture = tmp_path / "pairs.png"
    out, _ = run(capsys, "correlation", cheap, full, "-o", picture)
    assert "last scores of 5 models: tau 1.000" in out
    assert "latencies: tau 1.000" in out
    assert "left out: 1, 4, 7" in out
    assert picture.read_bytes().startswith(b"\x89PNG")
    found = json.loads(run(capsys, "correlation", cheap, full, "--json")[0])
    assert [one["model"] for one in found["models"]] == ["8", "6", "5", "3", "2"]
    assert [one["step"] for one in found["over_steps"]] == [49, 99]
    assert found["over_steps"][0]["tau"] is None, "there all scores are the same"
    assert found["over_steps"][1]["tau"] == pytest.approx(1.0)
    assert found["over_steps"][1]["median_hours"] == pytest.approx(36 / 100 * 99 / 3600)


def retraining(place: Path, stage: str, trials: dict[str, int], **spec: object) -> Path:
    """Trainings of models, by the names of their directories, whose scores are as the models' numbers."""
    for name, model in trials.items():
        write_trial(place / "nas" / stage / name, [0.1, model / 10])
        (place / "nas" / stage / name / "nas_params_str.json").write_text(json.dumps({"x": model}))
    (place / "search_job_spec.json").write_text(json.dumps(spec))
    return place


def test_models_are_found_again_through_all_rounds_and_trainings_of_chosen_ones(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A selection whose second round has other numbers; a task, a job of full trainings and a search's own
    stage 2 that go back to it, each by what it has; and a search of other models with the same numbers."""
    tool = tmp_path / "Model_Selection_a"
    first = retraining(tool / "a", "search", {str(k): k for k in range(1, 9)})
    flags = {"retrain-search-job-dir": str(first / "nas/search"), "retrain-search-job-trials": "8,2,6,3,7"}
    five = {"1": 8, "2": 2, "3": 6, "4": 3, "5": 7}
    second = retraining(tool / "a_iter_1", "search", five, search_flags=flags)
    state = {"iterations": [{"search_job_link": str(first)}, {"search_job_link": "/moved/from/a_iter_1"}]}
    (tool / "MODEL_SELECTION_STATE.json").write_text(json.dumps(state))
    again = {"1": 7, "2": 3, "3": 6, "4": 2, "5": 8}
    flags = {"retrain-search-job-dir": str(second / "nas/search"), "retrain-search-job-trials": "5,4,3,2,1"}
    tasks = tmp_path / "Search_controller_a"
    task = retraining(tasks / "ProxyTask_a_half", "search", again, search_flags=flags)
    (tasks / "SEARCH_CONTROLLER_STATE.json").write_text("{}")
    job = retraining(
        tmp_path / "job", "train", again, chosen=[7, 3, 6, 2, 8], search_directory=str(first), kind="train"
    )
    for name, model in again.items():  # stage 2 of a search
        write_trial(first / "nas/train" / name, [0.1, model / 10])
    (first / "nas/train/retrain_map.json").write_text('{"1": "7", "2": "3", "3": "6", "4": "2", "5": "8"}')
    for proxy, full in ((task, tool), (first, tool), (task, job), (job, second), (task, first / "nas/train")):
        found = json.loads(run(capsys, "correlation", proxy, full, "--json")[0])
        assert found["tau"] == pytest.approx(1.0), (proxy, full)
        assert sorted(one["model"] for one in found["models"]) == ["2", "3", "6", "7", "8"]
    other = retraining(tmp_path / "other", "search", {str(k): 10 - k for k in range(1, 9)})
    _, err = run(capsys, "correlation", other, first, code=2)
    assert "are not of the same model" in err
    _, err = run(capsys, "correlation", tasks, tool, code=2)
    assert f"give one of them: {task}" in err


def test_what_cannot_be_computed_is_said_and_no_number(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for trial in range(1, 7):
        write_trial(tmp_path / "a" / str(trial), [0.1, 0.2])
        write_trial(tmp_path / "b" / str(trial), [0.1, trial / 10])
    out, _ = run(capsys, "correlation", tmp_path / "a", tmp_path / "b")
    assert "nan" not in out
    assert "no correlation of the last scores can be computed: too few have both scores, or one of" in out
    found = json.loads(run(capsys, "correlation", tmp_path / "b", tmp_path / "a", "--json")[0])
    assert found["tau"] is None
    assert any("all the same" in note for note in found["notes"])


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("variance", "nowhere"), "is no directory"),
        (("variance", "empty"), "holds no trials"),
        (("correlation", "one", "two"), "no trial of"),
        (("correlation", "one"), "Missing argument 'FULL'"),
        (("variance", "one", "-o", "nowhere/x.png"), "nowhere/x.png cannot be written"),
    ],
)
def test_wrong_calls_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    argv: tuple[str, ...], said: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    write_trial(Path("one/1"), [0.1, 0.2])
    write_trial(Path("two/7"), [0.1, 0.2])
    code = main(list(argv))
    out, err = capsys.readouterr()
    assert code == (1 if "cannot be written" in said else 2), err
    assert said in err
    assert err.count("\n") == 1
