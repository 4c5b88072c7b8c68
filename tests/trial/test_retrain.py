"""Architectures on the command line, trials that train again, and what they go on from."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nas_hpc.errors import WorkFailed, WrongCall
from nas_hpc.trial import (
    add_arguments,
    find_checkpoint,
    load_checkpoint,
    nas_trial_id,
    parse_architecture,
    previous_trial_dir,
    retrain_map,
    save_architecture,
    save_checkpoint,
    update_trial_training_accuracy_metric,
)
from nas_hpc.trial.proxy import read_training
from nas_hpc.trial.retrain import save_retrain_map


def flags(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args(words)


def test_an_architecture_is_json_or_the_file_that_was_saved(tmp_path: Path) -> None:
    params = {"units": 16, "rate": 0.5, "kind": "a=b"}
    assert parse_architecture(json.dumps(params)) == params
    save_architecture(tmp_path / "1", params, [{"filters": np.int64(8)}])
    assert parse_architecture(tmp_path / "1" / "nas_params_str.json") == params
    assert json.loads((tmp_path / "1" / "serialized_tunable_object.json").read_text()) == [{"filters": 8}]
    with pytest.raises(WrongCall, match="what it expands to: nan is no number that JSON has"):
        save_architecture(tmp_path / "1", params, [float("nan")])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is no JSON"),
        ("units=3", "is no JSON"),
        ("[1, 2]", "is a list"),
        ("/no/such.json", "cannot be read: No such file"),
    ],
)
def test_what_is_no_architecture_is_refused_with_what_would_be_one(text: str, words: str) -> None:
    with pytest.raises(WrongCall, match=words):
        parse_architecture(text)


def test_the_flags_have_both_spellings() -> None:
    one = flags("--nas-params-str={}", "--job-dir=a", "--retrain-use-search-job-checkpoint")
    other = flags("--nas_params_str={}", "--job_dir=a", "--retrain_use_search_job_checkpoint=True")
    assert one == other
    assert one.retrain_use_search_job_checkpoint is True
    assert flags("--retrain-use-search-job-checkpoint=False").retrain_use_search_job_checkpoint is False


def test_the_kth_trial_of_a_retraining_is_the_kth_that_was_chosen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "nas" / "search" / "16").mkdir(parents=True)
    assert retrain_map("27, 16") == retrain_map([27, "16"]) == {"1": "27", "2": "16"}
    monkeypatch.setenv("NAS_HPC_TRIAL", "2")
    assert nas_trial_id("27,16") == "16"
    for base in (tmp_path, tmp_path / "nas" / "search"):
        assert previous_trial_dir(base, "27,16") == tmp_path / "nas" / "search" / "16"
    with pytest.raises(WrongCall, match="there is no trial 27 in"):
        previous_trial_dir(tmp_path, "27,16", number=1)
    with pytest.raises(WrongCall, match="trial 2 is none of the 1 that train again"):
        nas_trial_id("27")
    with pytest.raises(WrongCall, match="give --retrain-search-job-dir and"):
        previous_trial_dir("", "")
    monkeypatch.delenv("NAS_HPC_TRIAL")
    with pytest.raises(WrongCall, match="which is no trial"):
        previous_trial_dir(tmp_path, "27,16")


def test_the_map_beside_the_trial_says_which_one_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NAS_HPC_TRIAL", "1")
    monkeypatch.setenv("NAS_HPC_TRIAL_DIR", str(tmp_path / "1"))
    assert nas_trial_id() == "1"
    save_retrain_map(tmp_path, "27,16")
    assert nas_trial_id() == "27"


@pytest.mark.parametrize("trials", ["", "27,", "a", "0", "-1"])
def test_what_is_no_list_of_trials_is_refused(trials: str) -> None:
    with pytest.raises(WrongCall, match="is no number of a trial"):
        retrain_map(trials)


def test_a_checkpoint_is_read_with_its_step_and_a_damaged_one_costs_one_cycle(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert load_checkpoint(tmp_path) is None
    for step in (10, 20, 30):
        save_checkpoint(tmp_path, step, {"w": np.full(3, step), "m": np.eye(2)})
    names = sorted(path.name for path in (tmp_path / "checkpoint").iterdir())
    assert names == ["step-000000000020.ckpt", "step-000000000030.ckpt"]
    newest = load_checkpoint(tmp_path)
    assert newest is not None
    assert newest.step == 30
    assert newest.arrays()["w"].tolist() == [30, 30, 30]
    with pytest.raises(WrongCall, match="'best' is None; give arrays"):
        save_checkpoint(tmp_path, 40, {"w": np.eye(2), "best": None})  # could not be read again
    content = bytearray(newest.path.read_bytes())
    content[-5] ^= 1
    newest.path.write_bytes(content)
    before = load_checkpoint(tmp_path)
    assert before is not None
    assert before.step == 20
    assert "it is damaged" in capsys.readouterr().err


class Two:
    """A search whose trial 7 has trained two cycles of 50 steps, and a trial that trains it again."""

    def __init__(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.old, self.new = tmp_path / "old" / "7", tmp_path / "new" / "1"
        self.new.mkdir(parents=True)
        for begin in (0, 50):
            update_trial_training_accuracy_metric(self.old, 0.5, begin, begin + 49, 1.0, 1000)
        monkeypatch.setenv("NAS_HPC_TRIAL", "1")
        record = (self.old / "TRIAL_TRAINING_METRICS.json").read_bytes()
        (self.new / "TRIAL_TRAINING_METRICS.json").write_bytes(record)

    def found(self, use: bool = True) -> Any:
        old = ["--retrain-search-job-dir", str(self.old.parent), "--retrain-search-job-trials=7"]
        return find_checkpoint(
            flags("--job-dir", str(self.new), *old, f"--retrain-use-search-job-checkpoint={use}")
        )


def test_a_trial_goes_on_from_its_own_checkpoint_else_from_that_of_the_chosen_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    two = Two(tmp_path, monkeypatch)
    save_checkpoint(two.old, 100, b"old")
    assert (two.found().step, two.found().content) == (100, b"old")
    (two.new / "TRIAL_TRAINING_METRICS.json").unlink()
    assert two.found().step == 100
    assert read_training(two.new) == read_training(two.old)  # so far it has trained
    save_checkpoint(two.new, 150, memoryview(b"new"))
    assert (two.found().step, two.found().content) == (150, b"new")


def test_a_training_behind_its_record_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    two = Two(tmp_path, monkeypatch)
    with pytest.raises(WorkFailed, match="has no checkpoint, from which this trial is to go on"):
        two.found()
    with pytest.raises(WorkFailed, match="go on after step 0, and its record is at 100"):
        two.found(use=False)
    save_checkpoint(two.old, 50, b"")  # ended after the record of its last cycle
    assert two.found().step == 50
