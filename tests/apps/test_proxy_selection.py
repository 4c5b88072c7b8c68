"""Selecting reference models: its rounds, what they cost, what stops it, and that it survives its end."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nas_hpc.analytics.proxy.curves import read_curve
from nas_hpc.analytics.proxy.thinning import desired_pcts, keep
from nas_hpc.apps.progress import Interrupted
from nas_hpc.apps.proxy import selection
from nas_hpc.apps.proxy.rounds import trial_key
from nas_hpc.apps.proxy.tool import StateFile
from nas_hpc.cli.check_search import _check
from nas_hpc.errors import WorkFailed, WrongCall
from tests.apps.played_trainer import STEPS, Killed, Played, Trainer, runner_of, spec_in

FEW = {"start_num_models": 5, "final_num_models": 3, "num_models_to_remove_per_iter": 1,
       "accuracy_metric_id": "accuracy"}  # fmt: skip
KEYS = {
    "num_trials", "trials_to_retrain", "search_job_name", "search_job_link", "latency_calculator_job_name",
    "latency_calculator_job_link", "desired_training_step_pct",
}  # fmt: skip


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """A picture takes longer than a selection; the test with real launchers has them."""
    monkeypatch.setattr(selection, "_draw", lambda *words: None)


def select(peer: Played, directory: Path, attempt: int = 1, **settings: Any) -> dict[str, Any]:
    """Run a selection; its state."""
    spec = spec_in(directory, "selection", again=settings.pop("again", {}))
    run = selection.begin(spec, {**FEW, **settings}, 5)
    runner = runner_of(peer, spec, attempt)
    with runner.evaluator:
        run(runner)
    return state_in(directory)


def state_in(directory: Path) -> dict[str, Any]:
    """The state, with the directory's own path taken out of it."""
    text = (directory / "MODEL_SELECTION_STATE.json").read_text()
    found: dict[str, Any] = json.loads(text.replace(str(directory), "DIR"))
    return found


def test_models_leave_in_rounds_and_the_rest_are_trained_to_the_end_from_their_checkpoints(
    tmp_path: Path,
) -> None:
    place = tmp_path / "selection"
    trainer = Trainer()
    numbers = {"start_num_models": 12, "final_num_models": 5, "num_models_to_remove_per_iter": 3}
    with Played(tmp_path / "endpoint", trainer) as peer:
        state = select(peer, place, latency_metric_id="latency", **numbers)
        assert set(peer.ledger.values()) == {1}
    rounds = state["iterations"]
    planned = desired_pcts(12, 5, 3)
    assert [(one["num_trials"], one["desired_training_step_pct"]) for one in rounds] == planned
    assert all(set(one) >= KEYS for one in rounds)
    assert [one["search_job_name"] for one in rounds] == ["job", "job_iter_1", "job_iter_2", "job_iter_3"]
    for one, following in zip(rounds, rounds[1:], strict=False):
        scores, latencies = (
            np.array([row[name] for row in one["trials"]]) for name in ("accuracy", "latency")
        )
        kept = keep(scores, latencies, one["num_trials"] - following["num_trials"]).kept
        assert one["trials_to_retrain"] == [str(place + 1) for place in kept]
        assert following["models"] == [one["models"][place] for place in kept]
    assert state["selected_models"] == rounds[-1]["models"]
    _as_if_never_interrupted(tmp_path, place, state)
    made = sum(len(steps) for steps in trainer.steps.values())
    assert made < 12 * STEPS, "nothing is trained twice"


def _as_if_never_interrupted(tmp_path: Path, place: Path, state: dict[str, Any]) -> None:
    """The models of the last round have the curves of trainings that were never stopped."""
    last = state["iterations"][-1]
    whole = tmp_path / "whole"
    with Played(tmp_path / "endpoint2", Trainer()) as peer:
        straight = select(peer, whole, start_num_models=12, final_num_models=12)
    assert straight["models"] == state["models"]
    for k, model in enumerate(last["models"], 1):
        staged = read_curve(place / last["search_job_name"] / "nas" / "search" / str(k))
        never = read_curve(whole / "job" / "nas" / "search" / str(model))
        assert staged is not None
        assert never is not None
        assert staged.scores.tolist() == never.scores.tolist()
        assert staged.complete
        assert staged.trained_steps == STEPS


@pytest.mark.slow
@pytest.mark.parametrize("after", [False, True])
def test_a_selection_that_ends_at_any_save_goes_on_to_the_same_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: bool
) -> None:
    with Played(tmp_path / "endpoint", Trainer()) as peer:
        wanted = select(peer, tmp_path / "whole")
    for number in range(1, 100):
        place = tmp_path / str(number)
        with Played(tmp_path / f"endpoint{number}", Trainer()) as peer:
            killed = Killed(number, after=after)
            monkeypatch.setattr(StateFile, "save", lambda state, killed=killed: killed(state))
            try:
                select(peer, place)
            except Interrupted:
                monkeypatch.setattr(StateFile, "save", killed.save)
                state = select(peer, place, attempt=2)
            else:
                assert number > 5, "there are that many saves"
                break
            assert state == wanted, f"ended at save {number}"
            assert set(peer.ledger.values()) == {1}, "nothing runs twice"


def test_a_selection_that_ends_after_every_result_goes_on_to_the_same_state(tmp_path: Path) -> None:
    with Played(tmp_path / "endpoint", Trainer()) as peer:
        wanted = select(peer, tmp_path / "whole")
    spec = spec_in(tmp_path / "cut", "selection")
    with Played(tmp_path / "endpoint2", Trainer(), workers=1) as peer:
        for attempt in range(1, 50):
            runner = runner_of(peer, spec, attempt)
            before = len(runner.order)
            gather = runner.evaluator.gather

            def interrupted(*words: Any, **flags: Any) -> Any:
                if len(runner.order) > before:  # noqa: B023
                    raise Interrupted(15)
                return gather(*words, **flags)  # noqa: B023

            runner.evaluator.gather = interrupted  # type: ignore[method-assign]
            with runner.evaluator:
                try:
                    selection.begin(spec, FEW, 5)(runner)
                    break
                except Interrupted:
                    continue
        assert set(peer.ledger.values()) == {1}
    assert attempt > 5
    assert state_in(tmp_path / "cut") == wanted


def test_a_fifth_of_failures_is_borne_and_counts_as_removed(tmp_path: Path) -> None:
    first = drawn(tmp_path)[0]
    trainer = Trainer(fails=lambda parameters: "oom" if parameters == first else "")
    with Played(tmp_path / "endpoint", trainer) as peer:
        state = select(peer, tmp_path / "selection")
    one = state["iterations"][0]
    assert (one["invalid"], one["removed"], one["trials_to_retrain"]) == (["1"], [], ["2", "3", "4", "5"])
    assert one["trials"][0]["reason"] == "it is oom"
    assert one["trials"][0]["accuracy"] is None


def test_more_failures_than_a_fifth_stop_it_and_after_a_correction_it_goes_on(tmp_path: Path) -> None:
    bad = drawn(tmp_path)[:2]
    trainer = Trainer(fails=lambda parameters: "oom" if parameters in bad else "")
    place = tmp_path / "selection"
    with Played(tmp_path / "endpoint", trainer, workers=1) as peer:
        with pytest.raises(WorkFailed, match=r"2 of 5 models are invalid \(2 out of memory\).* 20 %.*batch"):
            select(peer, place)
        assert "out of memory" in state_in(place)["stopping_state"]
        trainer.fails = lambda parameters: ""
        again = {f"search/{trial_key(0, k)}": 1 for k in (1, 2, *range(3, 6))}
        done = [
            trial for trial in state_in(place)["iterations"][0]["trials"] if trial["state"] == "SUCCEEDED"
        ]
        for trial in done:
            del again[f"search/{trial_key(0, int(trial['trial']))}"]
        state = select(peer, place, attempt=2, again=again)
    assert state["stopping_state"] == ""
    assert len(state["selected_models"]) == 3
    assert state["iterations"][0]["invalid"] == []


def drawn(tmp_path: Path, count: int = 5) -> list[dict[str, Any]]:
    """The parameters of the first models."""
    spec = spec_in(tmp_path / "drawn", "selection")
    from nas_hpc.apps.proxy.rounds import sample
    from nas_hpc.apps.trials.space import load_space

    return [dict(one.parameters) for one in sample(load_space(spec.space), 5, count)]


def test_a_metric_that_no_trial_reports_ends_it_at_the_first_report(tmp_path: Path) -> None:
    with Played(tmp_path / "endpoint", Trainer(fails=lambda parameters: "metric"), workers=1) as peer:
        with pytest.raises(WorkFailed, match="it is metric"):
            select(peer, tmp_path / "selection")
        assert len(peer.rows) <= 3


def test_zero_is_a_score_and_a_model_without_a_latency_is_invalid(tmp_path: Path) -> None:
    slow = drawn(tmp_path)[1]
    trainer = Trainer(
        score=lambda parameters, share: 0.0 if parameters["x"] < 50 else share,
        latency=lambda parameters: -1.0 if parameters == slow else 2.0,
    )
    with Played(tmp_path / "endpoint", trainer) as peer:
        state = select(peer, tmp_path / "selection", latency_metric_id="latency")
    one = state["iterations"][0]
    assert one["invalid"] == ["2"]
    assert "latency" in one["trials"][1]["reason"]
    assert 0.0 in [row["accuracy"] for row in one["trials"]]


@pytest.mark.parametrize("counts", [(5, 6, 1), (5, 1, 1), (5, 3, 0), (60, 2, 1)])
def test_counts_with_which_nothing_can_be_selected_are_refused(counts: tuple[int, int, int]) -> None:
    with pytest.raises(WrongCall):
        selection.check_counts(*counts)


def test_a_space_with_too_few_models_is_refused_before_anything_runs(tmp_path: Path) -> None:
    spec = replace(spec_in(tmp_path / "few", "selection"), space=f"{tmp_path}/few.py:SPACE")
    (tmp_path / "few.py").write_text("SPACE = {'x': [1, 2], 'y': [1]}\n")
    with pytest.raises(WrongCall, match="has 2 models, and 5 are needed"):
        selection.begin(spec, FEW, 5)
    with pytest.raises(WrongCall, match="has 2 models, and 5 are needed"):
        _check("space", "-", "", [spec.space, "random", "5", "5"])  # what the command asks before
    _check("space", "-", "", [spec.space, "random", "5", "0"])
