"""How much a trainer's score varies when one model is trained several times, and how smooth its curves are.

Models are drawn until one can be trained at all; copies of it are trained with seeds of their own; their
curves are judged (``nas_hpc.analytics.proxy.variance``). What is found follows from the recorded trials, so
that a measurement that starts again repeats its steps, and each of those that is done takes no time.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from nas_hpc.analytics.proxy.curves import Curve, few_points
from nas_hpc.analytics.proxy.variance import SMOOTHNESS_THRESHOLD, VARIANCE_THRESHOLD, Variance, judge
from nas_hpc.apps.proxy.rounds import Model, Round, Rounds, advice_on, curve_of, failed_of, sample
from nas_hpc.apps.proxy.tool import VARIANCE, StateFile
from nas_hpc.apps.trials import records
from nas_hpc.apps.trials.records import SUCCEEDED, Trial
from nas_hpc.apps.trials.runner import TrialRunner
from nas_hpc.apps.trials.space import load_space
from nas_hpc.apps.trials.spec import TrialsSpec
from nas_hpc.errors import WorkFailed
from nas_hpc.evaluator import derived_seed
from nas_hpc.trial.jsonfiles import write_json

COPIES, TRIES, TRY_PCT = 5, 10, 1.0
SEED_VARIABLE = "NAS_HPC_TRIAL_SEED"
"""A copy finds its seed there, and under the flag that the user names."""
RESULT_FILE = "variance_and_smoothness.json"
FIGURE_FILE = "training_curves.png"
_log = logging.getLogger("nas_hpc.apps")


def begin(spec: TrialsSpec, settings: Mapping[str, Any], seed: int) -> Callable[[TrialRunner], None]:
    """What runs the measurement. Raises WrongCall if the space cannot be drawn from."""
    tries = int(settings.get("max_tries", TRIES))
    models = sample(load_space(spec.space), seed, tries, least=1)
    state = StateFile(
        spec.directory,
        VARIANCE,
        {
            "workable_model_dir": "",
            "training_job_name": "",
            "finished_model_dirs": [],
            "seed": seed,
            "num_copies": int(settings.get("copies", COPIES)),
            "max_tries": tries,
            "seed_flag": str(settings.get("seed_flag", "")),
            "variance_threshold": VARIANCE_THRESHOLD,
            "smoothness_threshold": SMOOTHNESS_THRESHOLD,
            "tries": [],
            "copies": [],
            "stopping_state": "",
        },
    )
    return Measurement(spec, state, models).run


class Measurement:
    """One measurement; ``state`` is its state file."""

    def __init__(self, spec: TrialsSpec, state: StateFile, models: list[Model]) -> None:
        self._spec, self._state, self._models = spec, state, models
        body = state.body
        self._copies, self._seed = int(body["num_copies"]), int(body["seed"])

    def run(self, runner: TrialRunner) -> None:
        """Measure. Raises WorkFailed if no model can be trained, or the copies say nothing."""
        body = self._state.body
        body["stopping_state"] = ""
        self._state.save()
        try:
            model = self._find(runner)
            trials = self._train(runner, model)
            self._judge(trials)
        except WorkFailed as error:
            body["stopping_state"] = error.message
            self._state.save()
            raise

    # -- a model that can be trained ---------------------------------------------------------------
    def _find(self, runner: TrialRunner) -> Model:
        body, rounds = self._state.body, Rounds(self._spec, runner, total=1 + self._copies)
        tries: list[dict[str, Any]] = []
        ended: list[Trial] = []
        for number, model in enumerate(self._models, 1):
            round = self._round(number - 1, f"Find_workable_model_{number}_{self._spec.job_name}", (model,))
            [trial] = rounds.run(round)
            ended.append(trial)
            tries.append(_tried(round, trial))
            works = tries[-1]["state"] == SUCCEEDED
            body["tries"] = tries
            body["workable_model_dir"] = trial.directory if works else ""
            self._state.save()
            if works:
                _log.info("a model that can be trained: %s", dict(trial.parameters))
                return model
            _log.info("%s: %s", round.name, tries[-1]["reason"])
        what = "; ".join(f"{one['model']}: {one['reason']}" for one in tries)
        raise WorkFailed(
            f"none of {len(tries)} models can be trained: {what}{_behind(advice_on(failed_of(ended)))}"
        )

    def _round(self, number: int, name: str, models: tuple[Model, ...], pct: float = TRY_PCT) -> Round:
        return Round(
            number=number,
            name=name,
            directory=str(Path(self._spec.directory, name)),
            models=models,
            desired_pct=pct,
        )

    # -- its copies --------------------------------------------------------------------------------
    def _train(self, runner: TrialRunner, model: Model) -> list[Trial]:
        body, spec = self._state.body, self._spec
        seeds = [derived_seed(self._seed, "copy", k) for k in range(1, self._copies + 1)]
        copies = tuple(self._copy(model, seed) for seed in seeds)
        round = self._round(int(body["max_tries"]), spec.job_name, copies, pct=100.0)
        if not body["copies"]:
            body["training_job_name"] = round.name
            body["copies"] = [
                {"copy": k, "seed": seed, "directory": round.trial_directory(k), "state": "", "reason": ""}
                for k, seed in enumerate(seeds, 1)
            ]
            self._state.save()
        trials = Rounds(spec, runner, total=len(body["tries"]) + self._copies).run(round)
        for record, trial in zip(body["copies"], trials, strict=True):
            record.update(state=trial.state, reason=trial.reason)
        body["finished_model_dirs"] = [trial.directory for trial in trials]
        self._state.save()
        return trials

    def _copy(self, model: Model, seed: int) -> Model:
        name = str(self._state.body["seed_flag"])
        return Model(
            parameters=model.parameters,
            expanded=model.expanded,
            flags={name: str(seed)} if name else {},
            environ={SEED_VARIABLE: str(seed)},
        )

    # -- what they say -----------------------------------------------------------------------------
    def _judge(self, trials: list[Trial]) -> None:
        curves = [curve_of(one) if one.state == SUCCEEDED else None for one in trials]
        measured = judge(curves)
        notes = [*_notes(curves), *advice_on(failed_of(trials))]
        place = Path(self._spec.directory)
        try:
            write_json(place / RESULT_FILE, result_of(measured, notes))
        except OSError as error:
            raise WorkFailed(f"{place / RESULT_FILE} cannot be written: {error.strerror}") from error
        self._draw(curves, place / FIGURE_FILE)
        for line in (measured.variance.info, measured.smoothness.info, *notes, *measured.advice):
            _log.info("%s", line)
        if measured.variance.value is None:
            failed = failed_of(trials)
            why = f"; copy {failed[0].number} failed: {failed[0].reason}" if failed else ""
            raise WorkFailed(f"{self._spec.job_name}: {measured.variance.info}{why}")

    def _draw(self, curves: list[Curve | None], path: Path) -> None:
        from nas_hpc.analytics.proxy.pictures import draw_curves

        named = {f"copy {k}": one for k, one in enumerate(curves, 1) if one is not None and len(one.pcts)}
        try:
            draw_curves(named, path, f"Copies of one model of {self._spec.job_name}")
        except Exception as error:  # a picture is no reason to fail
            _log.warning("%s cannot be drawn: %s", path, error)


def result_of(measured: Variance, notes: list[str]) -> dict[str, Any]:
    """The content of ``variance_and_smoothness.json``."""
    return {
        "variance_value": measured.variance.value,
        "variance_info": measured.variance.info,
        "smoothness_value": measured.smoothness.value,
        "smoothness_info": measured.smoothness.info,
        "good": measured.variance.good and measured.smoothness.good,
        "notes": notes,
        "advice": list(measured.advice),
    }


def _tried(round: Round, trial: Trial) -> dict[str, Any]:
    """The record of a try. Raises WorkFailed if the trainer keeps no curve, by which alone it is measured."""
    state, reason_class, reason = trial.state, trial.reason_class, trial.reason
    curve = curve_of(trial)
    if state == SUCCEEDED and (curve is None or not len(curve.scores)):
        raise WorkFailed(
            f"{round.name}: the trainer records no scores: call nas_hpc.trial."
            "update_trial_training_accuracy_metric after each cycle of its training"
        )
    if state == SUCCEEDED and curve is not None and not np.isfinite(curve.scores).all():
        state, reason_class, reason = records.FAILED, records.NOT_A_NUMBER, "its score is not finite"
    return {
        "model": round.number + 1,
        "search_job_name": round.name,
        "directory": trial.directory,
        "parameters": dict(trial.parameters),
        "state": state,
        "reason_class": reason_class,
        "reason": reason,
    }


def _notes(curves: list[Curve | None]) -> list[str]:
    known = [one for one in curves if one is not None and len(one.scores)]
    notes = []
    if few := few_points(known, "how smooth it is"):
        notes.append(few)
    first = known[0].scores if known else np.array([])
    drawn = len(known) > 1 and bool(np.ptp(first) > 0.0)  # else nothing was learnt, which is said otherwise
    if drawn and all(np.array_equal(one.scores, first, equal_nan=True) for one in known):
        notes.append(
            "all copies have the same scores: their trainer draws the same random numbers each time; give "
            f"--seed-flag, or have it read {SEED_VARIABLE}"
        )
    return notes


def _behind(lines: list[str]) -> str:
    return f". Advice: {'; '.join(lines)}" if lines else ""
