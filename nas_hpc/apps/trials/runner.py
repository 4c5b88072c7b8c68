"""Trials by an evaluator: their directories are made, their programs run, their results read.

What the search of trials does, any other controller can do with it:

    with connected(spec) as runner:
        runner.launch(Order(id=1, number=1, parameters={"lr": 0.1}, directory=str(place)))
        for trial in runner.wait(): ...

``id`` names a trial in its job: an order that is given again after a restart is the same trial, which
is not run twice; ``runner.trials`` then has it, running or finished.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nas_hpc.apps.trials.records import RUNNING, Trial, finished
from nas_hpc.apps.trials.spec import SEARCH, TrialsSpec, flag_words
from nas_hpc.errors import WorkFailed
from nas_hpc.evaluator import (
    EvaluationResult,
    LauncherEvaluator,
    Settings,
    create,
    derived_seed,
    evaluation_shape,
    job_of,
)
from nas_hpc.plain import plain
from nas_hpc.specification import JobSpec
from nas_hpc.trial import place, rewards
from nas_hpc.trial.architecture import EXPANDED_FILE, PARAMETERS_FILE
from nas_hpc.trial.jsonfiles import write_json

STAGE = "NAS_HPC_TRIAL_STAGE"
"""search or train, in the environment of a trial."""
WRAPPER = "nas_hpc.trial.run"
CANCEL_S = 30.0
"""So long trials that were told to end are waited for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """A trial that is to run."""

    id: int
    number: int
    parameters: Mapping[str, Any]
    directory: str
    stage: str = SEARCH
    nas_trial_id: int | None = None
    flags: Mapping[str, str] = field(default_factory=dict)
    """For its trainer, as ``--k=v``."""
    environ: Mapping[str, str] = field(default_factory=dict)
    expanded: Any = None
    """The object that the parameters stand for; None: themselves."""
    program: tuple[str, ...] = ()
    """What runs in the place of the trainer under its wrapper: a whole command line."""
    shape: Mapping[str, Any] = field(default_factory=dict)
    """Fields of JobSpec about what it occupies, where that is not as with all trials."""
    note: Mapping[str, Any] = field(default_factory=dict)
    """What the controller wants to know of it after a restart: in ``TrialRunner.notes``."""


class TrialRunner:
    """The trials of one job. ``trials`` has all that were ever started, by id."""

    def __init__(self, spec: TrialsSpec, connect: Callable[[Settings], LauncherEvaluator]) -> None:
        """``connect`` gives the evaluator with these settings. Raises NasHpcError."""
        self.spec = spec
        self.trials: dict[int, Trial] = {}
        self.notes: dict[int, Mapping[str, Any]] = {}
        self.order: list[int] = []
        """Ids of what is finished, in the order in which it was."""
        self._next: JobSpec | None = None
        self.evaluator = connect(settings_of(spec, self._specify))
        for item in self.evaluator.pending:
            self._note(item.seq, item.config, item.data)
        for result in self.evaluator.history:
            self._note(result.id, result.config, result.data)
            self._finish(result)

    @property
    def running(self) -> list[Trial]:
        """What was started and is not finished."""
        return [one for one in self.trials.values() if one.state == RUNNING]

    def launch(self, order: Order) -> Trial:
        """Have a trial run: its directory is made, its parameters are in it before it begins.

        Raises WorkFailed if the directory cannot be written.
        """
        trial = self.trials.get(order.id)
        if trial is not None:
            return trial
        parameters = plain(dict(order.parameters))
        expanded = parameters if order.expanded is None else plain(order.expanded)
        prepare_directory(order.directory, parameters, expanded)
        self._next = job_spec(self.spec, order)
        data = {
            "stage": order.stage, "trial": order.number, "directory": order.directory,
            "nas_trial_id": order.nas_trial_id, "note": dict(order.note),
        }  # fmt: skip
        self.evaluator.submit([parameters], data=data, ids=[order.id])
        return self._note(order.id, parameters, data)

    def wait(self, timeout_s: float | None = None, *, or_capacity: bool = False) -> list[Trial]:
        """Wait until at least one running trial is finished, and return all that are, each once.

        Empty when ``timeout_s`` has passed, nothing runs, or, with ``or_capacity``, more could run.
        """
        return self.take(self.evaluator.gather(1, timeout_s, or_capacity=or_capacity))

    def pause(self, duration_s: float) -> None:
        """Let time pass, and hear the launcher meanwhile."""
        self.evaluator.listen(duration_s)

    def take(self, results: Iterable[EvaluationResult]) -> list[Trial]:
        """The trials that ``results``, gathered from the evaluator, are of."""
        return [self._finish(result) for result in results]

    def cancel(self, timeout_s: float = CANCEL_S) -> list[Trial]:
        """End all that runs, and wait for it, ``timeout_s`` at most."""
        self.evaluator.cancel([one.id for one in self.running])
        return self.take(self.evaluator.gather("all", timeout_s))

    # -- records -----------------------------------------------------------------------------------
    def _specify(self, parameters: Mapping[str, Any]) -> JobSpec:
        """What the evaluator asks for within ``submit``."""
        assert self._next is not None
        return self._next

    def _note(self, id: int, parameters: Mapping[str, Any], data: Mapping[str, Any]) -> Trial:
        trial = Trial(
            id=id,
            stage=str(data.get("stage", SEARCH)),
            number=int(data.get("trial", id)),
            directory=str(data.get("directory", "")),
            parameters=parameters,
            nas_trial_id=data.get("nas_trial_id"),
        )
        self.trials[id] = trial
        self.notes[id] = data.get("note") or {}
        return trial

    def _finish(self, result: EvaluationResult) -> Trial:
        trial = finished(self.trials[result.id], result, self.spec.metric)
        self.trials[result.id] = trial
        if result.id in self.order:  # a person had it run again
            self.order.remove(result.id)
        self.order.append(result.id)
        return trial


@contextlib.contextmanager
def connected(spec: TrialsSpec) -> Iterator[TrialRunner]:
    """The trials of this process's job, with its past. Raises NasHpcError."""
    runner = TrialRunner(spec, lambda settings: create("auto", settings))
    with runner.evaluator:
        yield runner


def settings_of(spec: TrialsSpec, specify: Callable[[Any], JobSpec]) -> Settings:
    """What all trials of a job have in common. Raises ConfigError, WrongCall."""
    return Settings(
        run="trial",
        seed=spec.seed if spec.seed is not None else derived_seed(job_of()),
        shape=evaluation_shape(
            nodes=spec.nodes_per_trial,
            ranks_per_node=spec.ranks_per_node,
            threads_per_rank=spec.threads_per_rank,
            gpus_per_rank=spec.gpus_per_rank,
        ),
        timeout_s=spec.trial_timeout_s,
        specify=specify,
    )


def prepare_directory(directory: str, parameters: Any, expanded: Any) -> None:
    """Make a trial's directory with its parameters. Raises WorkFailed."""
    here = Path(directory)
    try:
        here.mkdir(parents=True, exist_ok=True)
        write_json(here / PARAMETERS_FILE, parameters)
        write_json(here / EXPANDED_FILE, expanded)
    except OSError as error:
        raise WorkFailed(f"the trial's directory {directory} cannot be written: {error.strerror}") from error


def job_spec(spec: TrialsSpec, order: Order) -> JobSpec:
    """The program of a trial and its environment."""
    words = list(order.program) or trial_words(spec, order)
    return JobSpec(argv=words, environ=trial_environ(spec, order), **order.shape)


def trial_words(spec: TrialsSpec, order: Order) -> list[str]:
    """The command line: the trainer under the wrapper that reads its reward and says how it failed."""
    name = "--nas-params-str" if spec.flag_style == "dashes" else "--nas_params_str"
    own = {"job-dir": order.directory, **order.flags}
    if spec.flag_style != "dashes":
        own = {k.replace("-", "_") if k != "job-dir" else k: v for k, v in own.items()}
    parameters = Path(order.directory, PARAMETERS_FILE)
    return [sys.executable, "-m", WRAPPER, "--", *spec.trainer, f"{name}={parameters}", *flag_words(own)]


def trial_environ(spec: TrialsSpec, order: Order) -> dict[str, str]:
    """What a trial finds in its environment, the names that trainers written for Vertex know among them."""
    own = place.environment(order.directory, str(order.number), spec.metric)
    if spec.required_metrics:
        own[place.REQUIRED] = ",".join(spec.required_metrics)
    if spec.reward_scaling:
        own[place.SCALING] = ",".join(map(repr, spec.reward_scaling))
    if spec.metric_format:
        own[place.FORMAT] = spec.metric_format
    latency = rewards.environment(
        workers=spec.on_premises_latency, wait_s=spec.latency_wait_s, command=spec.latency_calculator,
        flags=spec.latency_flags, underscores=spec.flag_style != "dashes", limit_s=spec.latency_timeout_s,
    )  # fmt: skip
    return {**spec.environ, **latency, **order.environ, **own, STAGE: order.stage}
