"""What proxy tasks are compared with: models that were trained in full, and their scores."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nas_hpc.analytics.proxy.correlation import LEAST_MODELS, LEAST_SHARE
from nas_hpc.analytics.proxy.curves import Array, few_points, read_curve
from nas_hpc.analytics.proxy.thinning import spread
from nas_hpc.apps.proxy.rounds import Model
from nas_hpc.apps.proxy.tool import SELECTION, STATE_FILES, read_state_of
from nas_hpc.apps.trials.records import SUCCEEDED, read_trials
from nas_hpc.apps.trials.spec import SEARCH, TRAIN
from nas_hpc.errors import WrongCall
from nas_hpc.trial.architecture import EXPANDED_FILE, PARAMETERS_FILE
from nas_hpc.trial.jsonfiles import read_json
from nas_hpc.trial.latency import measured_latency
from nas_hpc.trial.metrics import last_metrics

_LEAST_DIFFERENT = 2


@dataclass(frozen=True, slots=True)
class Reference:
    """Models with the scores of their full trainings; all have an accuracy."""

    source: str
    """The directory that has the directories of their trials."""
    trials: tuple[str, ...]
    """Names of these."""
    models: tuple[Model, ...]
    accuracy: Array
    """Shape (models,)."""
    latency: Array
    """Shape (models,); not-a-number where a model has none."""
    notes: tuple[str, ...]
    """What is to be said of them."""
    latency_metric: str = ""
    """Under which their trainers report one, if they do."""

    @property
    def has_latency(self) -> bool:
        """Whether enough of them have a latency for a correlation of these."""
        known = int(np.isfinite(self.latency).sum())
        return known >= LEAST_MODELS and known >= LEAST_SHARE * len(self.latency)

    def to_dict(self) -> dict[str, Any]:
        """For the state file."""
        latency = [float(one) if math.isfinite(one) else -1.0 for one in self.latency]
        return {"directory": self.source, "trials": list(self.trials),
                "accuracy": [float(one) for one in self.accuracy], "latency": latency}  # fmt: skip


def read_reference(directory: Path | str, accuracy_id: str = "", latency_id: str = "") -> Reference:
    """The models of the last round of the model selection in ``directory``, or the trials of any other
    directory of trainings.

    ``accuracy_id`` and ``latency_id`` are metrics that the trainings reported; "": those of the selection,
    else the last score of a training's curve, and its recorded or measured latency.

    Raises WrongCall: no such trainings, fewer than five with an accuracy or fewer than 70 % of all, all
    accuracies equal, none that reports the metric.
    """
    asked = latency_id
    source, accuracy_id, latency_id = _place(Path(directory), accuracy_id, latency_id)
    names = sorted((one.name for one in source.iterdir() if one.name.isdigit()), key=int)
    states = {str(row["trial"]): row["state"] for row in read_trials(source.parents[1])}
    good = [name for name in names if states.get(name, SUCCEEDED) == SUCCEEDED]
    scores = {name: _accuracy(source / name, accuracy_id) for name in good}
    kept = tuple(name for name in good if math.isfinite(scores[name]))
    if good and not kept and accuracy_id:
        raise WrongCall(_not_reported(source, good, accuracy_id))
    if len(kept) < LEAST_MODELS or len(kept) < LEAST_SHARE * len(names):
        raise WrongCall(
            f"{source} has {len(kept)} models with the score of a full training, of {len(names)}: a rank "
            f"correlation needs {LEAST_MODELS} and {LEAST_SHARE:.0%} of them"
        )
    accuracy = np.array([scores[name] for name in kept])
    if len(np.unique(accuracy)) < _LEAST_DIFFERENT:
        raise WrongCall(
            f"the full trainings in {source} all have the score {accuracy[0]:g}: no rank correlation can be "
            "computed with them; select models whose scores differ"
        )
    latency = _latencies([source / name for name in kept], latency_id)
    if asked and not np.isfinite(latency).any():
        raise WrongCall(_not_reported(source, kept, asked))
    said = spread(accuracy)
    models = tuple(_model(source / name) for name in kept)
    few = few_points(
        map(read_curve, (source / name for name in kept)), "at which step a task ranks as they do"
    )
    notes = tuple(f"full trainings: {one}" for one in (said, few) if one)
    return Reference(str(source), kept, models, accuracy, latency, notes, latency_id)


def _place(directory: Path, accuracy_id: str, latency_id: str) -> tuple[Path, str, str]:
    """(the directory that has the trials', metrics) of a selection or of any directory of trials."""
    state = read_state_of(directory, SELECTION)
    rounds = state.get("iterations")
    if isinstance(rounds, list):
        if not rounds or not _is_over(rounds[-1]):
            raise WrongCall(
                f"the model selection in {directory} is not finished: {len(rounds)} rounds were begun, and "
                "none was trained to the end; wait for it, or go on with it"
            )
        accuracy_id = accuracy_id or str(state.get("accuracy_metric_id") or "")
        latency_id = latency_id or str(state.get("latency_metric_id") or "")
        last = rounds[-1]
        places = (
            directory / str(last.get("search_job_name", "")),
            Path(str(last.get("search_job_link", ""))),
        )
        directory = next((one for one in places if (one / "nas" / SEARCH).is_dir()), directory)
    for below in (SEARCH, TRAIN):
        if (directory / "nas" / below).is_dir():
            return directory / "nas" / below, accuracy_id, latency_id
    raise WrongCall(
        f"{directory} has no full trainings: give the directory of a model selection, with its "
        f"{STATE_FILES[SELECTION]}, or of trainings below nas/{SEARCH} or nas/{TRAIN}"
    )


def _is_over(last: object) -> bool:
    """Whether this round is the one that is trained to the end, and has its scores."""
    if not isinstance(last, dict):
        return False
    pct = last.get("desired_training_step_pct")
    return isinstance(pct, int | float) and pct > 100.0 and bool(last.get("trials", True))


def _accuracy(place: Path, metric: str) -> float:
    if metric:
        return last_metrics(place).get(metric, math.nan)
    curve = read_curve(place)
    return math.nan if curve is None or not curve.complete else curve.final


def _latencies(places: Sequence[Path], metric: str) -> Array:
    """Those that were measured, if any was; else what the trainings say. The two are not to be mixed."""
    measured = [measured_latency(place) for place in places]
    told = measured if any(one is not None for one in measured) else [_told(one, metric) for one in places]
    return np.array([math.nan if one is None or one < 0.0 else one for one in told], dtype=np.float64)


def _told(place: Path, metric: str) -> float | None:
    curve = read_curve(place)
    found = curve.latency if curve is not None else None
    return last_metrics(place).get(metric) if found is None and metric else found


def _not_reported(source: Path, names: Sequence[str], metric: str) -> str:
    there = sorted({one for name in names for one in last_metrics(source / name)})
    did = f"they reported {', '.join(map(repr, there))}" if there else "they reported nothing"
    return f"no full training in {source} reported the metric {metric!r}; {did}: give one of these"


def _model(place: Path) -> Model:
    parameters = read_json(place / PARAMETERS_FILE)
    if not isinstance(parameters, dict):
        raise WrongCall(f"{place} has no parameters: {PARAMETERS_FILE} is missing or no JSON object")
    return Model(parameters=parameters, expanded=read_json(place / EXPANDED_FILE))
