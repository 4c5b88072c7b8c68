"""Measuring how a trainer's score varies: the model that is found, its copies, what is never called good."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nas_hpc.analytics.proxy.curves import read_curve
from nas_hpc.analytics.proxy.variance import smoothness, variation
from nas_hpc.apps.progress import Interrupted
from nas_hpc.apps.proxy import variance
from nas_hpc.apps.proxy.rounds import sample
from nas_hpc.apps.proxy.tool import StateFile
from nas_hpc.apps.trials.space import load_space
from nas_hpc.errors import WorkFailed
from tests.apps.played_trainer import STEPS, Killed, Played, Trainer, runner_of, spec_in


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """A picture takes longer than a measurement; the test with real launchers has it."""
    monkeypatch.setattr(variance.Measurement, "_draw", lambda *words: None)


def measure(peer: Played, directory: Path, attempt: int = 1, **settings: Any) -> dict[str, Any]:
    """Run a measurement; its state."""
    spec = spec_in(directory, "variance")
    run = variance.begin(spec, {"seed_flag": "seed", **settings}, 5)
    runner = runner_of(peer, spec, attempt)
    with runner.evaluator:
        run(runner)
    return read(directory, "measurement_state.json")


def read(directory: Path, name: str) -> dict[str, Any]:
    """A file of the measurement, with the directory's own path taken out of it."""
    found: dict[str, Any] = json.loads((directory / name).read_text().replace(str(directory), "DIR"))
    return found


def drawn(tmp_path: Path, count: int) -> list[dict[str, Any]]:
    """The parameters of the first models."""
    spec = spec_in(tmp_path / "drawn", "variance")
    return [dict(one.parameters) for one in sample(load_space(spec.space), 5, count)]


def test_a_model_that_can_be_trained_is_found_and_its_copies_are_measured(tmp_path: Path) -> None:
    bad = drawn(tmp_path, 2)
    place = tmp_path / "measure"
    trainer = Trainer(fails=lambda p: ("oom", "nan")[bad.index(p)] if p in bad else "", noise=0.5)
    with Played(tmp_path / "endpoint", trainer) as peer:
        state = measure(peer, place)
        argv = [row.ask.argv for seq, row in sorted(peer.rows.items())][-5:]
        environ = [row.ask.environ for seq, row in sorted(peer.rows.items())][-5:]
    assert [(one["state"], one["reason_class"]) for one in state["tries"]] == [
        ("FAILED", "oom"),
        ("FAILED", "nan"),
        ("SUCCEEDED", ""),
    ]
    assert state["workable_model_dir"] == "DIR/Find_workable_model_3_job/nas/search/1"
    assert len(trainer.steps[str(place / "Find_workable_model_3_job" / "nas" / "search" / "1")]) == 1, "1 %"
    seeds = [one["seed"] for one in state["copies"]]
    assert len(set(seeds)) == 5
    assert [f"--seed={seed}" in words for seed, words in zip(seeds, argv, strict=True)] == [True] * 5
    assert [one["NAS_HPC_TRIAL_SEED"] for one in environ] == [str(seed) for seed in seeds]
    assert state["finished_model_dirs"] == [f"DIR/job/nas/search/{k}" for k in range(1, 6)]
    curves = [read_curve(place / "job" / "nas" / "search" / str(k)) for k in range(1, 6)]
    known = [one for one in curves if one is not None and len(one.steps) == STEPS]
    found = read(place, "variance_and_smoothness.json")
    assert found["variance_value"] == pytest.approx(variation(np.array([one.final for one in known])))
    assert found["smoothness_value"] == pytest.approx(
        np.mean([smoothness(one.pcts, one.scores) for one in known])
    )
    assert (found["good"], found["advice"]) == (True, [])


def test_if_no_model_can_be_trained_it_fails_with_each_reason_and_advice(tmp_path: Path) -> None:
    with Played(tmp_path / "endpoint", Trainer(fails=lambda parameters: "oom")) as peer:
        with pytest.raises(WorkFailed, match=r"none of 3 models.*1: it is oom; 2: it is oom; 3.*batch"):
            measure(peer, tmp_path / "measure", max_tries=3)
        assert len(peer.rows) == 3
    state = read(tmp_path / "measure", "measurement_state.json")
    assert state["workable_model_dir"] == ""
    assert "none of 3" in state["stopping_state"]


def test_dead_copies_are_invalid_and_never_good(tmp_path: Path) -> None:
    dead = Trainer(score=lambda parameters, share: 0.0)
    with (
        Played(tmp_path / "endpoint", dead) as peer,
        pytest.raises(WorkFailed, match="0 of 5 copies can be used"),
    ):
        measure(peer, tmp_path / "measure")
    found = read(tmp_path / "measure", "variance_and_smoothness.json")
    assert (found["good"], found["variance_value"], found["smoothness_value"]) == (False, None, None)
    assert found["advice"]


def test_copies_that_are_all_the_same_are_told_and_how_to_seed_them(tmp_path: Path) -> None:
    with Played(tmp_path / "endpoint", Trainer()) as peer:
        measure(peer, tmp_path / "measure", seed_flag="")
    found = read(tmp_path / "measure", "variance_and_smoothness.json")
    assert found["variance_value"] == 0.0
    assert "--seed-flag" in found["notes"][0]


def test_a_trainer_that_records_no_scores_is_told_so_at_its_first_training(tmp_path: Path) -> None:
    with Played(tmp_path / "endpoint", Trainer(records=False)) as peer:
        with pytest.raises(WorkFailed, match="update_trial_training_accuracy_metric"):
            measure(peer, tmp_path / "measure")
        assert len(peer.rows) == 1


@pytest.mark.slow
@pytest.mark.parametrize("after", [False, True])
def test_a_measurement_that_ends_at_any_save_goes_on_to_the_same_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: bool
) -> None:
    bad = drawn(tmp_path, 1)

    def trainer() -> Trainer:
        return Trainer(fails=lambda parameters: "error" if parameters in bad else "", noise=0.3)

    def files(directory: Path) -> list[dict[str, Any]]:
        return [read(directory, name) for name in ("measurement_state.json", "variance_and_smoothness.json")]

    with Played(tmp_path / "endpoint", trainer()) as peer:
        measure(peer, tmp_path / "whole")
    for number in range(1, 100):
        place = tmp_path / str(number)
        with Played(tmp_path / f"endpoint{number}", trainer()) as peer:
            killed = Killed(number, after=after)
            monkeypatch.setattr(StateFile, "save", lambda state, killed=killed: killed(state))
            try:
                measure(peer, place)
            except Interrupted:
                monkeypatch.setattr(StateFile, "save", killed.save)
                measure(peer, place, attempt=2)
            else:
                assert number > 4, "there are that many saves"
                break
            finally:
                monkeypatch.setattr(StateFile, "save", killed.save)
            assert files(place) == files(tmp_path / "whole"), f"ended at save {number}"
            assert set(peer.ledger.values()) == {1}, "nothing runs twice"
