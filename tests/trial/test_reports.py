"""Named reports: what trainers of a search's trials say, and what is read of it."""

from __future__ import annotations

import json
import math
import resource
from pathlib import Path
from typing import Any

import pytest

from nas_hpc.errors import WrongCall
from nas_hpc.trial import UnknownMetric, place, report, reports
from nas_hpc.trial.metrics import last_metrics, read_reports


@pytest.fixture
def trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Trial 3 of a search that waits for ``accuracy``; its directory."""
    for name, value in place.environment(tmp_path, "3", "accuracy").items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(reports, "_told", set())
    monkeypatch.setattr(reports, "_checked", set())
    return tmp_path


def lines(trial: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (trial / "metrics.jsonl").read_text().splitlines()]


def test_a_named_report_is_read_again_with_all_of_its_other_metrics(trial: Path) -> None:
    others = {f"n{at}": at / 2 for at in range(12)}
    report("accuracy", 0.25, 1)
    report("accuracy", 0.5, 2, other_metrics=others, model_flops=100, checkpoint_path="/x")
    first, second = read_reports(trial)
    assert (first.metric, first.value, first.step, first.others) == ("accuracy", 0.25, 1, {})
    assert second.others == {**others, "model_flops": 100}
    assert (second.of("accuracy"), second.of("n3"), second.of("other")) == (0.5, 1.5, None)
    assert last_metrics(trial) == {"accuracy": 0.5, **others, "model_flops": 100}
    assert lines(trial)[0]["trial"] == "3"


def test_a_report_is_on_the_disk_or_raises_and_the_next_one_is_none_the_worse_for_it(trial: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    noted: list[int] = []

    def fill() -> None:
        for step in range(1000):
            report("accuracy", 0.5, step)
            noted.append(step)

    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))  # as a disk that is full
        with pytest.raises(OSError, match="File too large"):
            fill()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (trial / "metrics.jsonl").stat().st_size == 1000, "the last line is torn"
    report("accuracy", 0.75, 1000)
    assert [one.step for one in read_reports(trial)] == [*noted, 1000]


def test_a_report_without_a_name_is_of_the_metric_that_is_waited_for(trial: Path) -> None:
    report(3, 0.75, loss=0.5)
    (only,) = read_reports(trial)
    assert (only.of("accuracy"), only.of("loss"), only.step) == (0.75, 0.5, 3)


def test_a_metric_that_the_search_does_not_wait_for_ends_the_trial_at_its_first_report(trial: Path) -> None:
    with pytest.raises(UnknownMetric, match=r"waits for the metric 'accuracy', and .* reports 'acc', 'loss'"):
        report("acc", 0.5, 1, other_metrics={"loss": 1.0})
    report("loss", 0.5, 1, other_metrics={"accuracy": 0.25})  # it may be any of them
    report("loss", 0.5, 2)
    assert [one.of("accuracy") for one in read_reports(trial)] == [None, 0.25, None]


def test_all_metrics_that_a_search_needs_are_waited_for(trial: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NAS_HPC_REQUIRED_METRICS", "accuracy, latency")
    with pytest.raises(UnknownMetric, match="waits for the metric 'latency'"):
        report("accuracy", 0.5, 1)
    report("accuracy", 0.5, 1, other_metrics={"latency": 3})


def test_a_reward_far_from_what_searches_like_is_warned_of_once(
    trial: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report("accuracy", 1e-3, 1)
    report("accuracy", 10.0, 2)
    assert capsys.readouterr().err == ""
    report("accuracy", 0.0, 3)
    report("accuracy", 100.0, 4)
    said = capsys.readouterr().err
    assert said.startswith("nas-hpc: the reward 0 is outside of 0.001 to 10")
    assert said.count("\n") == 1
    assert [one.value for one in read_reports(trial)] == [0.001, 10.0, 0.0, 100.0]


def test_a_scaling_is_recorded_with_what_it_scales(
    trial: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    report("accuracy", 97.0, 1, scaling=(0.01, 0.0))
    monkeypatch.setenv("NAS_HPC_REWARD_SCALING", "-0.5,1")
    report("accuracy", 0.5, 2)
    assert [(one.value, one.reward) for one in read_reports(trial)] == [(97.0, 0.97), (0.5, 0.75)]
    assert lines(trial)[1]["scaling"] == [-0.5, 1.0]
    report("accuracy", 0.5, 3, scaling=(1, 0))
    report("loss", 1.0, 4, other_metrics={"accuracy": 0.5})
    report(5, 0.5)
    found = read_reports(trial)  # what the trainer did not scale is scaled when it is read
    assert [one.of("accuracy", (-0.5, 1.0)) for one in found] == [0.97, 0.75, 0.5, 0.75, 0.75]
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("NAS_HPC_REWARD_SCALING", "a,b")
    with pytest.raises(WrongCall, match="NAS_HPC_REWARD_SCALING is 'a,b'"):
        report("accuracy", 0.5, 2)


def test_a_number_that_is_not_finite_is_null_and_read_as_none(trial: Path) -> None:
    report("accuracy", math.nan, 1, other_metrics={"loss": math.inf})
    assert (lines(trial)[0]["value"], lines(trial)[0]["other_metrics"]) == (None, {"loss": None})
    (only,) = read_reports(trial)
    assert math.isnan(only.reward)
    assert math.isnan(only.others["loss"])


@pytest.mark.parametrize(
    ("arguments", "named", "words"),
    [
        (("", 0.5, 1), {}, "the metric is ''"),
        (("accuracy", "high", 1), {}, "value is str 'high'"),
        (("accuracy", 0.5, 1.5), {}, "the step is 1.5"),
        (("accuracy", 0.5), {}, "the step is 'accuracy'"),
        (("accuracy", 0.5, 1), {"other_metrics": [1]}, "other_metrics is"),
        (("accuracy", 0.5, 1), {"other_metrics": {"a": None}}, "a is NoneType"),
        (("accuracy", 0.5, 1), {"scaling": (0, 1)}, "scaling is"),
    ],
)
def test_what_is_no_report_is_refused_and_not_written(
    trial: Path, arguments: tuple[Any, ...], named: dict[str, Any], words: str
) -> None:
    with pytest.raises(WrongCall, match=words):
        report(*arguments, **named)
    assert not (trial / "metrics.jsonl").exists()


def test_in_the_original_surroundings_lines_are_as_those_of_the_original(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(reports, "_told", set())
    monkeypatch.setenv("CLOUD_ML_HP_METRIC_FILE", str(tmp_path / "metrics.jsonl"))
    monkeypatch.setenv("CLOUD_ML_HP_METRIC_TAG", "top_1")
    monkeypatch.setenv("CLOUD_ML_TRIAL_ID", "4")
    others = {"x" * 65: 1.0, **{f"m{at}": at for at in range(6)}}
    report("top_1", 0.5, 9, other_metrics=others, model_flops=7.0)
    (line,) = lines(tmp_path)
    assert float(line.pop("timestamp")) > 1e9
    pairs = {f"key_{at}": f"m{at}" for at in range(5)} | {f"value_{at}": str(at) for at in range(5)}
    fixed = {"trial": "4", "top_1": "0.5", "global_step": "9", "checkpoint_path": "", "model_flops": "7.0"}
    assert line == fixed | pairs
    assert "'m5'; there are 5 other metrics at most" in capsys.readouterr().err
    assert last_metrics(tmp_path) == {"top_1": 0.5, "model_flops": 7.0, **{f"m{at}": at for at in range(5)}}
    report("top_1", 0.5, 10, scaling=(0.5, 0.0))
    assert [one.of("top_1", (100.0, 0.0)) for one in read_reports(tmp_path)] == [50.0, 0.25]


@pytest.mark.parametrize(
    "torn", ['{"step": 1, "val', "[]", '{"step": 1}', '{"step": 1, "value": "x"}', "\\xff"]
)
def test_lines_that_are_no_reports_are_passed_over(tmp_path: Path, torn: str) -> None:
    good = '{"step": 1, "value": 0.5, "metric": "a"}\n'
    (tmp_path / "metrics.jsonl").write_text(f"{good}{torn}\n{good}{torn}", encoding="latin-1")
    assert [one.value for one in read_reports(tmp_path)] == [0.5, 0.5]
    assert not list(read_reports(tmp_path / "none"))
