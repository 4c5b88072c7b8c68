"""The search for a proxy task: the cheapest training that still ranks models as the full one does.

One task after the other, in the generator's order: the reference models are trained with its flags, and at
every step their scores are compared with those of their full trainings. A task ends as soon as it has shown
what it is worth. What comes next follows from the state file and the recorded trials alone.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from nas_hpc.analytics.proxy.curves import read_curve
from nas_hpc.analytics.proxy.stopping import Limits, Stop, Stopped
from nas_hpc.apps.proxy import task_pictures
from nas_hpc.apps.proxy.best import best_flags, write_best
from nas_hpc.apps.proxy.generator import check_known, make_tasks
from nas_hpc.apps.proxy.latencies import Latencies, LatencySettings, check_latencies, latency_settings
from nas_hpc.apps.proxy.reference import Reference, read_reference
from nas_hpc.apps.proxy.rounds import (
    LOOK_EVERY_S,
    Next,
    Round,
    Rounds,
    failed_of,
    retrain_flags,
)
from nas_hpc.apps.proxy.tasks import (
    HOURS,
    Seen,
    best_of_tasks,
    fresh_record,
    look_at,
    nodes_of,
    note_latency,
    note_no_correlation,
    note_statistics,
    stop_of,
)
from nas_hpc.apps.proxy.tool import SEARCH_TASK, StateFile
from nas_hpc.apps.trials.records import CLASSES, Trial
from nas_hpc.apps.trials.runner import TrialRunner
from nas_hpc.apps.trials.spec import TrialsSpec, nodes_of_training
from nas_hpc.errors import WorkFailed
from nas_hpc.trial.proxy_tasks import ProxyTaskConfig

_log = logging.getLogger("nas_hpc.apps")


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxySettings:
    """What the search is asked for beside what any job of trials is."""

    generator: str
    """"module.function" or "file.py:function"."""
    selection: str
    """The directory of the model selection, or of other full trainings."""
    accuracy_metric_id: str = ""
    latency_metric_id: str = ""
    """Metrics of the full trainings; "": as the selection had them."""
    desired_accuracy_correlation: float | None = 0.65
    max_p_value: float | None = None
    """Of a correlation that counts."""
    desired_accuracy: float | None = None
    training_time_hrs_limit: float | None = None
    """Of each training of a task."""
    node_hours_limit: float | None = None
    """Of all trainings of a task together."""
    cost: str = HOURS
    """By which the best task is the cheapest: HOURS or NODE_HOURS."""
    desired_latency_correlation: float | None = 0.65
    """Needed if the full trainings have latencies."""
    early_stop_proxy_task_if_not_best: bool = True
    interpolate: bool = False
    """For trainers that validate at different steps."""
    look_every_s: float = LOOK_EVERY_S
    steps_flag: str = ""
    decay_steps_flag: str = ""
    validations_flag: str = ""
    """The trainer's flags for how long it trains, for ``best_proxy_task.yaml``."""
    latencies: LatencySettings = field(default_factory=LatencySettings)

    def limits(self, best: float | None, nodes: float) -> Limits:
        """What ends a task whose trainings have ``nodes`` each, while the best one so far costs ``best``."""
        best = best if self.early_stop_proxy_task_if_not_best else None
        all_hours = self.node_hours_limit
        return Limits(
            correlation=self.desired_accuracy_correlation,
            p_value=self.max_p_value,
            accuracy=self.desired_accuracy,
            hours=self.training_time_hrs_limit,
            best_hours=best if self.cost == HOURS else None,
            total_hours=None if all_hours is None else all_hours / nodes,
            best_total_hours=None if best is None or self.cost == HOURS else best / nodes,
        )


def settings_from(values: dict[str, Any]) -> ProxySettings:
    """The settings that were left in the directory."""
    known = {one.name for one in fields(ProxySettings)}
    given = {name: value for name, value in values.items() if name in known}
    return ProxySettings(**given, latencies=latency_settings(values))


def begin(spec: TrialsSpec, values: dict[str, Any], seed: int) -> Callable[[TrialRunner], None]:
    """What runs the search in ``spec.directory``. Raises WrongCall for what can be known before it runs."""
    settings = settings_from(values)
    reference = read_reference(settings.selection, settings.accuracy_metric_id, settings.latency_metric_id)
    tasks = make_tasks(settings.generator, spec.search_flags)
    check_known(spec.directory, tasks)
    check_latencies(settings.latencies, reference)
    for note in reference.notes:
        _log.info("%s", note)
    if spec.max_parallel < len(reference.models):
        _log.info(
            "%d of %d models train at once: a task can stop only when all of them have come to the same step",
            spec.max_parallel, len(reference.models),
        )  # fmt: skip
    return lambda runner: ProxySearch(spec, settings, reference, tasks, runner, seed).run()


class ProxySearch:
    """One search, in its directory."""

    def __init__(
        self,
        spec: TrialsSpec,
        settings: ProxySettings,
        reference: Reference,
        tasks: Sequence[ProxyTaskConfig],
        runner: TrialRunner,
        seed: int,
    ) -> None:
        self._spec, self._settings, self._reference, self._tasks = spec, settings, reference, tasks
        self._rounds = Rounds(
            replace(spec, search_flags={}),  # a task's flags are all that its trainers get
            runner,
            look_every_s=settings.look_every_s,
            total=len(tasks) * len(reference.models),
            environ=settings.latencies.environment(),
        )
        self._latencies = Latencies(spec, runner, settings.latencies, settings.look_every_s)
        fresh = {"proxy_tasks_map": {}, "best_proxy_task_name": "", "seed": seed}
        self._state = StateFile(spec.directory, SEARCH_TASK, fresh)
        self._state.body["reference"] = reference.to_dict()
        self._records: dict[str, dict[str, Any]] = self._state.body["proxy_tasks_map"]

    def run(self) -> None:
        """Try all tasks that were not tried yet. Raises WorkFailed if none could be compared; Interrupted and
        LauncherGone pass through."""
        for task in self._tasks:
            record = self._records.get(task.name)
            if record is None:
                record = self._enter(task)
            if not record["finished"]:
                self._try(record)
                self._finish(record)
        self._end()

    # -- one task ----------------------------------------------------------------------------------
    def _enter(self, task: ProxyTaskConfig) -> dict[str, Any]:
        number = max((one["number"] for one in self._records.values()), default=0) + 1
        name = f"ProxyTask_{self._spec.job_name}_{task.name}"
        directory = str(Path(self._spec.directory, name))
        self._records[task.name] = fresh_record(task, number, name, directory, nodes_of_training(self._spec))
        self._state.save()
        return self._records[task.name]

    def _try(self, record: dict[str, Any]) -> None:
        """Train the models with the task's flags until it has shown what it is worth."""
        reference, stats = self._reference, record["proxy_task_stats"]
        round = Round(
            number=record["number"],
            name=record["search_job_name"],
            directory=record["search_job_link"],
            models=reference.models,
            flags={**record["docker_args_map"], **retrain_flags(reference.source, reference.trials)},
            desired_pct=0.0 if stats["stopping_state"] else None,
            max_hours=self._settings.training_time_hrs_limit,
        )
        _, best = best_of_tasks(self._records, self._settings.cost)
        limits = self._settings.limits(best, nodes_of(record))
        try:
            trials = self._rounds.run(
                round, lambda trials: self._look(record, round, limits, trials), watch=True
            )
        except WorkFailed as error:
            if not failed_of(self._rounds.trials(round)):
                raise  # it is none of this task's
            stats["stopping_state"] = Stop.FAILED.value
            record["notes"].append(error.message)
            return
        if stats["stopping_state"] == Stop.FAILURES.value:
            classes = sorted({CLASSES.get(one.reason_class, "error") for one in failed_of(trials)})
            record["notes"].append(f"too few trials are left, others failed: {', '.join(classes)}")
        if not stats["stopping_state"]:
            seen = self._seen(round, trials)
            hours = float(seen.over_steps.total_hours[-1]) if len(seen.over_steps.steps) else -1.0
            note_statistics(record, seen.over_steps, Stopped(Stop.COMPLETED, -1.0, -1, total_hours=hours))
            note_no_correlation(record, seen)
        if stats["stopping_state"] != Stop.FAILURES.value and reference.has_latency:
            self._compare_latencies(record, round, trials)

    def _look(self, record: dict[str, Any], round: Round, limits: Limits, trials: Sequence[Trial]) -> Next:
        stats = record["proxy_task_stats"]
        if not stats["stopping_state"]:
            seen = self._seen(round, trials)
            stopped = stop_of(seen, limits)
            before = len(stats["training_steps"])
            note_statistics(record, seen.over_steps, stopped)
            if stopped is not None or len(stats["training_steps"]) != before:
                self._state.save()  # before anybody is told: what was decided stays so
                task_pictures.draw(self._spec.directory, record, seen, self._reference)
            if stopped is None:
                return Next.GO_ON
            _log.info("%s: %s", record["proxy_task_name"], stats["stopping_state"])
        if not stats["posted_stop_trials_message"]:
            self._rounds.post(round, desired_pct=0.0)
            stats["posted_stop_trials_message"] = True
            self._state.save()
        return Next.END if stats["stopping_state"] == Stop.FAILURES.value else Next.START_NO_MORE

    def _seen(self, round: Round, trials: Sequence[Trial]) -> Seen:
        places = (Path(round.trial_directory(k)) for k in range(1, len(round.models) + 1))
        curves = [read_curve(place) for place in places]
        return look_at(trials, curves, self._reference.accuracy, interpolate=self._settings.interpolate)

    def _compare_latencies(self, record: dict[str, Any], round: Round, trials: Sequence[Trial]) -> None:
        metric = self._reference.latency_metric
        said = self._latencies.measure(round, trials)
        record["notes"] += [said] if said else []
        record["latency_calculator_job_name"] = self._settings.latencies.job_name(round.name)
        record["latency_calculator_job_link"] = self._settings.latencies.job_link(round.trials)
        latency = np.full(len(round.models), math.nan)
        for trial in trials:
            latency[trial.number - 1] = self._latencies.latency_of(trial, metric)
        desired = self._settings.desired_latency_correlation
        note_latency(record, latency, self._reference.latency, desired)
        task_pictures.draw_latency(self._spec.directory, record, latency, self._reference)

    def _finish(self, record: dict[str, Any]) -> None:
        record["finished"] = True
        self._choose()
        self._state.save()
        _log.info("%s", line_of(record))

    def _choose(self) -> None:
        best, _ = best_of_tasks(self._records, self._settings.cost)
        self._state.body["best_proxy_task_name"] = best

    # -- the end -----------------------------------------------------------------------------------
    def _end(self) -> None:
        self._choose()
        best = self._state.body["best_proxy_task_name"]
        self._state.save()
        records = self._records.values()
        if best:
            flags = best_flags(self._records[best], self._settings)
            write_best(self._spec, self._settings, self._records[best], flags)
        states = [one["proxy_task_stats"]["stopping_state"] for one in records]
        if all(one in (Stop.FAILED.value, Stop.FAILURES.value) for one in states):
            why = next((one["notes"][-1] for one in records if one["notes"]), "see list-trials of each one")
            raise WorkFailed(f"no proxy task could be compared with the full trainings: {why}")
        _log.info("%s", last_line(self._spec.job_name, self._state.body))


def last_line(name: str, state: dict[str, Any]) -> str:
    """What came of a search, in one line."""
    tasks = state.get("proxy_tasks_map", {})
    done = [one for one in tasks.values() if one.get("finished")]
    text = f"search for a proxy task {name}: {len(done)} of {len(tasks)} tasks done"
    best = state.get("best_proxy_task_name")
    if best:
        return f"{text}; best {line_of(tasks[best])}"
    return f"{text}; none met what was asked for"


def line_of(record: dict[str, Any]) -> str:
    """What came of one task, in one line."""
    stats = record["proxy_task_stats"]
    known = [one for one in stats["accuracy_correlation_over_step"] if one >= -1.0]
    parts = [f"{record['proxy_task_name']}: {stats['stopping_state']}"]
    if known:
        parts.append(f"correlation {known[-1]:.3f}")
    if stats["final_training_steps"] >= 0:
        hours = stats["final_training_time_in_hours"]
        parts.append(f"{stats['final_training_steps'] + 1} steps, {hours:.3g} hours a training")
    if stats.get("final_node_hours", -1.0) >= 0.0:
        parts.append(f"{stats['final_node_hours']:.3g} node-hours in all")
    return ", ".join([*parts, *record["notes"]])
