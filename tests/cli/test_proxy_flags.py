"""Calls of the tools for proxy tasks that cannot be, and what a tool that goes on may be given anew."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nas_hpc.apps.proxy.tool import read_tool, write_tool
from nas_hpc.apps.trials.spec import TrialsSpec, write_spec
from nas_hpc.cli.main import main
from nas_hpc.cli.proxy_tools import _rounds_of_selection, _rounds_of_variance

MEASURE, SELECT = "measure-proxy-task-variance", "select-proxy-task-models"
SEARCH = "search-proxy-task"
ACC = ("--accuracy-metric-id", "acc")
WHOLE = ("--job-name", "a", "--trainer", "python t.py", "--root-output-dir", "out")


def make(directory: Path) -> Path:
    directory.mkdir()
    return directory


def begun(tmp_path: Path, kind: str = "variance") -> Path:
    """The directory of a tool that was begun with seed 3."""
    spec = TrialsSpec(job_name="first", directory=str(tmp_path), kind=kind, space="s.py:s", seed=3)
    write_tool(spec, {"copies": 5, "max_tries": 10, "seed_flag": "seed"})
    return tmp_path


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((MEASURE,), "give --job-name, or --previous-variance-dir"),
        ((MEASURE, *WHOLE[:2]), "give --trainer"),
        ((MEASURE, *WHOLE[:4]), "give --root-output-dir"),
        ((MEASURE, *WHOLE), "give one of --search-space-module and --problem"),
        ((MEASURE, *WHOLE, "--copies", "1"), "--copies"),
        ((SELECT, *WHOLE), "give --accuracy-metric-id"),
        ((SELECT, *WHOLE, "--accuracy_metric_id", "acc", "--start_num_models", "5"), "from 5 models to 10"),
        ((SELECT, *WHOLE, "--accuracy-metric-id", "a b"), "--accuracy-metric-id 'a b' is no name"),
        ((SELECT, *WHOLE, *ACC, "--latency-metric-id", "acc"), "--latency-metric-id 'acc' is the accuracy"),
        ((SELECT, *WHOLE, *ACC, "--max-failure-pct", "150"), "150 is not allowed"),
        (
            (SELECT, *WHOLE, *ACC, "--final-num-models", "4"),
            "--final-num-models 4: a search for a proxy task",
        ),
        ((MEASURE, *WHOLE, "--seed-flag", "a b"), "--seed-flag 'a b' is no name of a flag"),
        ((MEASURE, *WHOLE, "--seed-flag", "--job_dir"), "is given to every trial by the search"),
        ((SEARCH, *WHOLE, "--decay-steps-flag", "a=1"), "--decay-steps-flag 'a=1' is no name of a flag"),
        ((SEARCH, *WHOLE, "--desired-accuracy", "nan"), "--desired-accuracy nan: give a score"),
        ((SEARCH, *WHOLE), "give --proxy-task-config-generator-module"),
        ((SELECT, "--previous-model-selection-dir", "nowhere"), "'nowhere' is no directory of a search"),
    ],
)
def test_what_is_missing_or_cannot_be_is_said_in_one_line(
    words: tuple[str, ...],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.py").touch()
    assert main(list(words)) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_directory_of_another_tool_or_of_a_search_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([SELECT, "--previous-model-selection-dir", str(begun(tmp_path))]) == 2
    assert "one of another tool (variance)" in capsys.readouterr().err
    assert main([SEARCH, "--previous-proxy-task-search-dir", str(tmp_path)]) == 2
    assert "one of another tool (variance)" in capsys.readouterr().err
    write_spec(TrialsSpec(job_name="copies", directory=str(make(tmp_path / "copies"))))
    assert main(["list-trials", str(tmp_path)]) == 2
    assert f"give one of its rounds: {tmp_path / 'copies'}" in capsys.readouterr().err
    write_spec(TrialsSpec(job_name="first", directory=str(tmp_path)))
    assert main([SELECT, "--previous-model-selection-dir", str(tmp_path)]) == 2
    assert "the directory of a search, and not of a tool" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--seed", "4"), "begun with seed 3, not 4"),
        (("--copies", "3"), "begun with copies 5, not 3"),
        (("--job-name", "second"), "begun with job-name 'first', not 'second'"),
    ],
)
def test_what_a_tool_was_begun_with_cannot_be_said_otherwise(
    words: tuple[str, ...], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([MEASURE, "--previous-variance-dir", str(begun(tmp_path)), *words]) == 2
    assert said in capsys.readouterr().err


def test_settings_are_kept_beside_what_is_asked_of_all_jobs_of_trials(tmp_path: Path) -> None:
    spec, settings = read_tool(begun(tmp_path))
    assert (spec.kind, spec.seed) == ("variance", 3)
    assert settings == {"copies": 5, "max_tries": 10, "seed_flag": "seed"}
    assert json.loads((tmp_path / "search_job_spec.json").read_text())["job_name"] == "first"


def test_only_rounds_that_are_not_finished_run_again() -> None:
    assert _rounds_of_variance({"max_tries": 10, "workable_model_dir": "x"}) == range(10, 11)
    assert _rounds_of_variance({"max_tries": 10, "workable_model_dir": ""}) == range(11)
    assert _rounds_of_selection({"iterations": [{}, {}, {}]}) == range(2, 3)
    assert _rounds_of_selection({}) == range(1)
