"""From many random models to few whose scores are spread well, trained to the end.

Each round trains its K models a K-th of the whole further, from where the round before left them, and takes
out those that add least to the spread of accuracy and latency (``nas_hpc.analytics.proxy.thinning``). The
last round trains what is left to the end: reference models for a rank correlation.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from nas_hpc.analytics.proxy.correlation import LEAST_MODELS
from nas_hpc.analytics.proxy.curves import ENOUGH_POINTS, Array
from nas_hpc.analytics.proxy.thinning import LEAST, TO_THE_END, Kept, described, desired_pcts, keep, spread
from nas_hpc.apps.proxy.latencies import Latencies, LatencySettings, latency_settings
from nas_hpc.apps.proxy.rounds import (
    LOOK_EVERY_S,
    Model,
    Next,
    Round,
    Rounds,
    advice_on,
    classes_of,
    curve_of,
    failed_of,
    metric_of,
    retrain_flags,
    sample,
)
from nas_hpc.apps.proxy.tool import SELECTION, StateFile
from nas_hpc.apps.trials.records import SUCCEEDED, Trial
from nas_hpc.apps.trials.runner import TrialRunner
from nas_hpc.apps.trials.space import load_space
from nas_hpc.apps.trials.spec import TrialsSpec
from nas_hpc.errors import WorkFailed, WrongCall
from nas_hpc.trial.checkpoints import load_checkpoint
from nas_hpc.trial.latency import error_of

START, FINAL, REMOVE = 30, 10, 5
MAX_FAILURE_PCT = 20.0
FIGURE_FILE = "filtered_trial_scores.png"
_log = logging.getLogger("nas_hpc.apps")


def check_counts(start: int, final: int, remove: int) -> None:
    """Raise WrongCall for numbers of models with which no selection can be made."""
    if final < LEAST or start < final or remove < 1:
        raise WrongCall(
            f"from {start} models to {final}, {remove} a round: give --final-num-models of {LEAST} or more, "
            "no fewer at the start, and at least one a round"
        )
    rounds = desired_pcts(start, final, remove)
    if len(rounds) > 1 and rounds[-2][1] >= 100.0:
        raise WrongCall(
            f"from {start} models to {final}, {remove} a round, takes {len(rounds)} rounds, whose trainings "
            f"add up to {rounds[-2][1]:.0f} % of a whole one: remove more a round"
        )


def begin(spec: TrialsSpec, settings: Mapping[str, Any], seed: int) -> Callable[[TrialRunner], None]:
    """What runs the selection. Raises WrongCall if the space has too few models."""
    start, final, remove = (
        int(settings.get(name, default))
        for name, default in (
            ("start_num_models", START),
            ("final_num_models", FINAL),
            ("num_models_to_remove_per_iter", REMOVE),
        )
    )
    check_counts(start, final, remove)
    state = StateFile(
        spec.directory,
        SELECTION,
        {
            "start_num_models": start,
            "final_num_models": final,
            "num_models_to_remove_per_iter": remove,
            "accuracy_metric_id": str(settings.get("accuracy_metric_id", "")),
            "latency_metric_id": str(settings.get("latency_metric_id", "")),
            "iterations": [],
            "seed": seed,
            "pin_extremes": bool(settings.get("pin_extremes", False)),
            "max_failure_pct": float(settings.get("max_failure_pct", MAX_FAILURE_PCT)),
            "models": {},
            "selected_models": [],
            "spread": {},
            "notes": [],
            "stopping_state": "",
        },
    )
    state.body["max_failure_pct"] = float(settings.get("max_failure_pct", MAX_FAILURE_PCT))
    space = load_space(spec.space)
    drawn: list[Model]
    if state.body["models"]:
        known = state.body["models"].values()
        drawn = [Model(parameters=one, expanded=space.expand(one)) for one in known]
    else:
        drawn = sample(space, seed, start)
        state.body["models"] = {str(id): dict(one.parameters) for id, one in enumerate(drawn, 1)}
    return Selection(spec, state, drawn, latency_settings(settings)).run


class Selection:
    """One selection; ``state`` is its state file, ``models`` all that were drawn: model 1 is the first."""

    def __init__(
        self, spec: TrialsSpec, state: StateFile, models: Sequence[Model], settings: LatencySettings
    ) -> None:
        self._spec, self._state, self._models, self._settings = spec, state, models, settings
        self._body = state.body
        self._wants_latency = settings.wanted or bool(self._body["latency_metric_id"])

    def run(self, runner: TrialRunner) -> None:
        """Select. Raises WorkFailed if too many models fail, or too few are left."""
        body = self._body
        body["stopping_state"] = ""
        names = (
            ("accuracy_metric_id",) if self._settings.wanted else ("accuracy_metric_id", "latency_metric_id")
        )
        rounds = Rounds(
            self._spec,
            runner,
            metrics=[body[name] for name in names if body[name]],
            total=self._total(),
            environ=self._settings.environment(),
        )
        self._latencies = Latencies(self._spec, runner, self._settings, LOOK_EVERY_S)
        try:
            number = 0
            while True:
                if number == len(body["iterations"]):
                    body["iterations"].append(self._next())
                    self._state.save()
                if self._iterate(rounds, number):
                    break
                number += 1
        except WorkFailed as error:
            body["stopping_state"] = error.message
            self._state.save()
            raise
        self._finish()

    def _total(self) -> int:
        body = self._body
        counts = (body["start_num_models"], body["final_num_models"], body["num_models_to_remove_per_iter"])
        return sum(count for count, _ in desired_pcts(*counts))

    # -- rounds ------------------------------------------------------------------------------------
    def _next(self) -> dict[str, Any]:
        """The record of the iteration behind the last one of the state."""
        body, before = self._body, self._body["iterations"]
        number = len(before)
        name = f"{self._spec.job_name}_iter_{number}" if number else self._spec.job_name
        directory = str(Path(self._spec.directory, name))
        if number:
            models = [before[-1]["models"][int(k) - 1] for k in before[-1]["trials_to_retrain"]]
        else:
            models = list(range(1, len(self._models) + 1))
        last = len(models) <= body["final_num_models"]
        trained = before[-1]["desired_training_step_pct"] if number else 0.0
        return {
            "num_trials": len(models),
            "trials_to_retrain": [],
            "search_job_name": name,
            "search_job_link": directory,
            "latency_calculator_job_name": self._settings.job_name(name),
            "latency_calculator_job_link": self._settings.job_link(str(Path(directory, "nas", "search"))),
            "desired_training_step_pct": TO_THE_END if last else trained + 100.0 / len(models),
            "models": models,
            "trials": [],
            "removed": [],
            "invalid": [],
        }

    def _round(self, number: int) -> Round:
        iteration = self._body["iterations"][number]
        models = [self._models[id - 1] for id in iteration["models"]]
        flags: dict[str, str] = {}
        if number:
            before = self._body["iterations"][number - 1]
            kept = before["trials_to_retrain"]
            source = Path(before["search_job_link"], "nas", "search")
            models = [
                replace(model, continues=str(source / k)) for model, k in zip(models, kept, strict=True)
            ]
            flags = retrain_flags(str(source), kept, checkpoint=True)
        return Round(
            number=number,
            name=iteration["search_job_name"],
            directory=iteration["search_job_link"],
            models=tuple(models),
            flags=flags,
            desired_pct=iteration["desired_training_step_pct"],
        )

    def _iterate(self, rounds: Rounds, number: int) -> bool:
        """Run an iteration, and choose who stays; whether it was the last one."""
        iteration = self._body["iterations"][number]
        last = bool(iteration["desired_training_step_pct"] >= TO_THE_END)
        if iteration["trials_to_retrain"] and not last:
            return False  # it was done before
        round = self._round(number)
        trials = rounds.run(round, self._look_at_failures(iteration, last))
        if said := self._latencies.measure(round, trials):
            _log.info("%s: %s", round.name, said)
        accuracy, latency = self._note(iteration, trials, last)
        self._check_failures(round, iteration, trials, last)
        surplus = len(trials) - self._body["final_num_models"]
        remove = 0 if last else min(self._body["num_models_to_remove_per_iter"], surplus)
        found = keep(accuracy, latency, remove, pin_extremes=self._body["pin_extremes"])
        if len(found.kept) < LEAST:
            raise WorkFailed(f"{round.name}: {len(found.kept)} of {len(trials)} models have a score")
        for name, places in (("removed", found.removed), ("invalid", found.invalid)):
            iteration[name] = [str(place + 1) for place in places]
        if not last:
            iteration["trials_to_retrain"] = [str(place + 1) for place in found.kept]
        _draw(accuracy, latency, found, Path(round.directory, FIGURE_FILE))
        self._state.save()
        _log.info(
            "%s: %d of %d models stay, %d removed, %d without a score",
            round.name, len(found.kept), len(trials), len(found.removed), len(found.invalid),
        )  # fmt: skip
        return last

    # -- failures ----------------------------------------------------------------------------------
    def _too_many(self, failed: int, total: int) -> bool:
        return failed * 100.0 > float(self._body["max_failure_pct"]) * total

    def _look_at_failures(
        self, iteration: Mapping[str, Any], last: bool
    ) -> Callable[[Sequence[Trial]], Next]:
        """Ends a round of which too many fail; the last one costs most, and what it has is kept."""

        def look(trials: Sequence[Trial]) -> Next:
            failed = len(failed_of(trials))
            return Next.END if not last and self._too_many(failed, iteration["num_trials"]) else Next.GO_ON

        return look

    def _check_failures(
        self, round: Round, iteration: Mapping[str, Any], trials: Sequence[Trial], last: bool
    ) -> None:
        invalid = [one for one in iteration["trials"] if one["accuracy"] is None or one["reason"]]
        if last or not self._too_many(len(invalid), iteration["num_trials"]):
            return
        failed = failed_of(trials)
        classes = f" ({classes_of(failed)})" if failed else ""
        what = ", the calculator" if self._settings.latency_calculator else ""
        advice = "; ".join(advice_on(failed)) or f"{invalid[0]['reason']}"
        raise WorkFailed(
            f"{round.name}: {len(invalid)} of {iteration['num_trials']} models are invalid{classes}, more "
            f"than {self._body['max_failure_pct']:g} %: correct the search space{what} or the trainer. "
            f"Advice: {advice}"
        )

    # -- scores ------------------------------------------------------------------------------------
    def _note(
        self, iteration: dict[str, Any], trials: Sequence[Trial], last: bool
    ) -> tuple[Array, Array | None]:
        """Record what came of the trials; accuracy and latency of each, shape (n,), not-a-number: invalid."""
        pct = iteration["desired_training_step_pct"]
        rows = [self._row(trial, iteration["models"][trial.number - 1], pct, last) for trial in trials]
        iteration["trials"] = rows
        accuracy, latency = (
            np.array([math.nan if row[name] is None else row[name] for row in rows], dtype=np.float64)
            for name in ("accuracy", "latency")
        )
        invalid = np.array([bool(row["reason"]) for row in rows], dtype=bool)
        accuracy = np.where(invalid, math.nan, accuracy)
        return accuracy, latency if self._wants_latency else None

    def _row(self, trial: Trial, model: int, pct: float, last: bool) -> dict[str, Any]:
        body, curve = self._body, curve_of(trial)
        accuracy, reason = math.nan, ""
        latency = math.nan
        if self._wants_latency:
            latency = self._latencies.latency_of(trial, body["latency_metric_id"])
        if trial.state != SUCCEEDED:
            reason = trial.reason or trial.state.lower()
        elif last:
            accuracy = metric_of(trial, body["accuracy_metric_id"])
            if curve is not None and len(curve.pcts) and not curve.complete:
                reason = f"its training ended at {curve.pcts[-1]:.4g} %"
        elif curve is None:
            reason = "it left no scores"
        else:
            accuracy = curve.score_at(pct)
            if not curve.pcts[-1:].size or curve.pcts[-1] < pct:
                reason = f"it trained {curve.pcts[-1] if len(curve.pcts) else 0.0:.4g} % of {pct:.4g} %"
        if not reason and not math.isfinite(accuracy):
            reason = "its accuracy is not finite"
        if not reason and self._wants_latency and not math.isfinite(latency):
            why = error_of(trial.directory) if self._settings.wanted else body["latency_metric_id"]
            reason = f"it has no latency ({why or 'it was not measured'})"
        checkpoint = load_checkpoint(trial.directory) if trial.state == SUCCEEDED else None
        return {
            "trial": str(trial.number),
            "model": model,
            "state": trial.state,
            "accuracy": accuracy if math.isfinite(accuracy) else None,
            "latency": latency if math.isfinite(latency) else None,
            "validations": 0 if curve is None else len(curve.pcts),
            "checkpoint_step": None if checkpoint is None else checkpoint.step,
            "reason_class": trial.reason_class,
            "reason": reason,
        }

    # -- the end -----------------------------------------------------------------------------------
    def _finish(self) -> None:
        body = self._body
        rows = body["iterations"][-1]["trials"]
        good = [row for row in rows if not row["reason"]]
        body["selected_models"] = [row["model"] for row in good]
        names = ("accuracy", "latency") if self._wants_latency else ("accuracy",)
        body["spread"] = {name: described(np.array([row[name] for row in good])) for name in names}
        body["notes"] = self._notes(good)
        self._state.save()
        for line in body["notes"]:
            _log.info("%s", line)
        scores = [row["accuracy"] for row in good]
        _log.info(
            "%s: %d models, accuracy from %.6g to %.6g: reference for a proxy-task search",
            self._spec.job_name, len(good), min(scores), max(scores),
        )  # fmt: skip

    def _notes(self, good: Sequence[Mapping[str, Any]]) -> list[str]:
        found = []
        for name in ("accuracy", "latency") if self._wants_latency else ("accuracy",):
            said = spread(np.array([row[name] for row in good], dtype=np.float64))
            if said:
                found.append(f"{name}: {said}")
        if len(good) < LEAST_MODELS:
            found.append(
                f"{len(good)} models with a score: a proxy-task search needs {LEAST_MODELS} or more of them"
            )
        least = min(row["validations"] for row in good)
        if 0 < least < ENOUGH_POINTS:
            found.append(
                f"{least} validations in a training: {ENOUGH_POINTS} or more show its score at each round"
            )
        several = len(self._body["iterations"]) > 1
        if several and all(row["checkpoint_step"] is None for row in good):
            found.append(
                "no checkpoint of nas_hpc.trial is there: make sure that the trainer goes on from its own, "
                "with optimizer and step"
            )
        return found


def _draw(accuracy: Array, latency: Array | None, found: Kept, path: Path) -> None:
    from nas_hpc.analytics.proxy.pictures import draw_round

    try:
        draw_round(accuracy, latency, found, path)
    except Exception as error:  # a picture is no reason to fail
        _log.warning("%s cannot be drawn: %s", path, error)
