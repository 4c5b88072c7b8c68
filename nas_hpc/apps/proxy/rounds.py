"""Rounds of trials: given models are trained, each in a directory of its own, until all of them are done.

A round is a directory ``<tool's directory>/<name>/nas/search/<k>``, as a search of trials has it. How far its
trials train is said by files in their directories, which are there before a trial begins: a trial obeys
them also while its controller is gone. Trials of all rounds are evaluations of the tool's one job, whose ids
follow from the round's number and the trial's: a round that is run again after a restart, with the same
models, goes on where it was, and what is finished stays so.
"""

from __future__ import annotations

import enum
import logging
import math
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nas_hpc.analytics.proxy.curves import METRICS_FILE, Curve, read_curve
from nas_hpc.apps.proxy.tool import follow
from nas_hpc.apps.trials import records
from nas_hpc.apps.trials.records import CLASSES, FAILED, RUNNING, SUCCEEDED, WRONG_METRIC, Trial
from nas_hpc.apps.trials.runner import CANCEL_S, Order, TrialRunner
from nas_hpc.apps.trials.spec import SEARCH, SPEC_FILE, TrialsSpec, id_of, write_spec
from nas_hpc.errors import WorkFailed, WrongCall
from nas_hpc.trial.latency import measured_latency
from nas_hpc.trial.metrics import last_metrics
from nas_hpc.trial.place import REQUIRED
from nas_hpc.trial.proxy import post_desired_training_pct, post_max_training_time
from nas_hpc.wire import Report

if TYPE_CHECKING:  # loads scikit-learn
    from nas_hpc.apps.trials.space import TrialSpace

MOST_MODELS = 999
"""In one round."""
LOOK_EVERY_S = 10.0
_BASE = MOST_MODELS + 1
_log = logging.getLogger("nas_hpc.apps")


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """What one trial of a round trains."""

    parameters: Mapping[str, Any]
    expanded: Any = None
    """The object that the parameters stand for; None: themselves."""
    flags: Mapping[str, str] = field(default_factory=dict)
    """For its trainer alone, as ``--k=v``."""
    environ: Mapping[str, str] = field(default_factory=dict)
    """For its trainer alone."""
    continues: str = ""
    """The directory of the trial whose training it goes on with: it begins with that one's curve."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """Models that are trained beside each other."""

    number: int
    """From 0, of the tool: another one for each of its rounds."""
    name: str
    directory: str
    models: tuple[Model, ...]
    flags: Mapping[str, str] = field(default_factory=dict)
    """For the trainers of all, as ``--k=v``; they take the place of the tool's own --search-flags."""
    desired_pct: float | None = None
    """They stop once so much is trained; more than 100: never; None: nothing is said."""
    max_hours: float | None = None
    """They stop once they have trained for longer; None: nothing is said."""

    @property
    def trials(self) -> str:
        """The directory that has those of the trials: ``--retrain-search-job-dir`` of a round that goes on
        with them."""
        return str(Path(self.directory, "nas", SEARCH))

    def trial_directory(self, k: int) -> str:
        """That of the trial of model ``k``, from 1."""
        return str(Path(self.trials, str(k)))


class Next(enum.Enum):
    """What is to become of a round that was looked at."""

    GO_ON = enum.auto()
    START_NO_MORE = enum.auto()
    """What runs was told to stop, or may end; nothing else begins."""
    END = enum.auto()
    """What runs is ended."""


Look = Callable[[Sequence[Trial]], Next]
"""Called with the trials of a round that were begun, in their order: when one ends, and at intervals."""


def go_on(trials: Sequence[Trial]) -> Next:
    """The look of a round that always comes to its end."""
    return Next.GO_ON


class Rounds:
    """Runs the rounds of one tool, one at a time."""

    def __init__(
        self,
        spec: TrialsSpec,
        runner: TrialRunner,
        *,
        metrics: Sequence[str] = (),
        look_every_s: float = LOOK_EVERY_S,
        total: int = 0,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        """``metrics``: what every trial has to report beside the reward. ``look_every_s``: of running trials'
        curves. ``total``: trials of the whole, as far as that is known, for those who watch. ``environ``: for
        the trainers of all."""
        self.spec, self.runner, self.look_every_s, self.total = spec, runner, look_every_s, total
        required = {REQUIRED: ",".join(metrics)} if metrics else {}
        self._environ = {**(environ or {}), **required}

    # -- one round ---------------------------------------------------------------------------------
    def run(self, round: Round, look: Look = go_on, *, watch: bool = False) -> list[Trial]:
        """Train all models of ``round``; returns its trials in the order of the models, those that were not
        begun left out. ``watch``: look at running ones, too, every ``look_every_s``.

        Raises WorkFailed if no trial reports what it has to; Interrupted and LauncherGone pass through.
        """
        self._begin(round)
        news = True
        while True:
            following = self._look(round, look)
            if following is Next.END:
                self._end(round)
                break
            if following is Next.GO_ON and self._refill(round):
                news = True
            if news:
                self._write(round)
            begun = self.trials(round)
            full = len(begun) < len(round.models) and self.runner.running  # by what is of no round any more
            if not any(one.state == RUNNING for one in begun) and not (full and following is Next.GO_ON):
                break
            timeout_s = self.look_every_s if watch else None
            news = bool(self.runner.wait(timeout_s, or_capacity=following is Next.GO_ON))
        self._write(round)
        return self.trials(round)

    def trials(self, round: Round) -> list[Trial]:
        """Those of ``round`` that were begun, in the order of the models."""
        ids = (self.id_of(round, k) for k in range(1, len(round.models) + 1))
        return [self.runner.trials[id] for id in ids if id in self.runner.trials]

    def id_of(self, round: Round, k: int) -> int:
        """The id of the evaluation of model ``k``: another one each time that it was asked to run again."""
        return id_of(self.spec, SEARCH, trial_key(round.number, k))

    def post(self, round: Round, *, desired_pct: float | None = None, max_hours: float | None = None) -> None:
        """Tell all trials of a round, those to come included, how far to train. Raises WorkFailed."""
        try:
            for k in range(1, len(round.models) + 1):
                place = round.trial_directory(k)
                if desired_pct is not None:
                    post_desired_training_pct(place, desired_pct)
                if max_hours is not None:
                    post_max_training_time(place, max_hours)
        except OSError as error:
            raise WorkFailed(f"{round.trials} cannot be written: {error.strerror}") from error

    # -- steps -------------------------------------------------------------------------------------
    def _begin(self, round: Round) -> None:
        if not 0 < len(round.models) <= MOST_MODELS:
            raise WorkFailed(
                f"{round.name} has {len(round.models)} models: 1 to {MOST_MODELS} can be trained"
            )
        try:
            Path(round.directory).mkdir(parents=True, exist_ok=True)
            write_spec(spec_of_round(self.spec, round))
            follow(self.spec.directory, round.name)
            for k, model in enumerate(round.models, 1):
                if model.continues and self.id_of(round, k) not in self.runner.trials:
                    _copy_curve(Path(model.continues), Path(round.trial_directory(k)))
        except OSError as error:
            raise WorkFailed(f"{round.directory} cannot be written: {error.strerror}") from error
        self.post(round, desired_pct=round.desired_pct, max_hours=round.max_hours)
        done = sum(one.state != RUNNING for one in self.trials(round))
        _log.info("%s: %d models%s", round.name, len(round.models), f", {done} are done" if done else "")

    def _look(self, round: Round, look: Look) -> Next:
        trials = self.trials(round)
        failed = [one for one in trials if one.state == FAILED]
        good = any(one.state == SUCCEEDED for one in trials)
        if failed and not good and all(one.reason_class == WRONG_METRIC for one in failed):
            self._end(round)
            self._write(round)
            raise WorkFailed(f"{round.name}: {failed[0].reason}")
        return look(trials) if trials else Next.GO_ON

    def _refill(self, round: Round) -> bool:
        """Start what may run now; whether that was anything."""
        before = len(self.runner.trials)
        for k, model in enumerate(round.models, 1):
            id = self.id_of(round, k)
            if id in self.runner.trials:
                continue
            running = len(self.runner.running)
            capacity = max(1, self.runner.evaluator.capacity())  # with none yet, one waits for it
            if running >= min(self.spec.max_parallel, capacity):
                break
            self.runner.launch(self._order(round, id, k, model))
        return len(self.runner.trials) > before

    def _order(self, round: Round, id: int, k: int, model: Model) -> Order:
        return Order(
            id=id,
            number=k,
            parameters=model.parameters,
            expanded=model.expanded,
            directory=round.trial_directory(k),
            flags={**flags_of(self.spec, round), **model.flags},
            environ={**self._environ, **model.environ},
            note={"round": round.number, "name": round.name},
        )

    def _end(self, round: Round) -> None:
        running = [one.id for one in self.trials(round) if one.state == RUNNING]
        if running:
            _log.info("%s: ending %d running trials", round.name, len(running))
            self.runner.cancel(CANCEL_S)

    def _write(self, round: Round) -> None:
        trials = self.trials(round)
        try:
            records.write_trials(round.directory, trials)
        except OSError as error:
            _log.warning("the records in %s cannot be written: %s", round.directory, error.strerror)
        everything = [one for one in self.runner.trials.values() if one.is_search]
        ended = [one for one in everything if one.state != RUNNING]
        best = records.best_of(ended)
        self.runner.evaluator.report(
            Report(
                best=None if best is None else best.reward,
                best_config={} if best is None else dict(best.parameters),
                done=len(ended),
                failed=sum(one.state == FAILED for one in ended),
                max_evals=max(self.total, len(everything)),
            )
        )


def trial_key(round_number: int, k: int) -> int:
    """The number of trial ``k`` of a round in the whole job of the tool, as in ``TrialsSpec.again``."""
    return (round_number + 1) * _BASE + k


def round_of(key: int) -> tuple[int, int]:
    """(number of the round, k) of such a number."""
    number, k = divmod(key, _BASE)
    return number - 1, k


def spec_of_round(spec: TrialsSpec, round: Round) -> TrialsSpec:
    """What a round is as a search of trials: by that it can be listed, trained in full, compared."""
    count = len(round.models)
    return replace(
        spec, kind=SEARCH, job_name=round.name, directory=round.directory, max_trials=count, again={},
        max_parallel=min(spec.max_parallel, count), search_flags=flags_of(spec, round),
    )  # fmt: skip


def flags_of(spec: TrialsSpec, round: Round) -> dict[str, str]:
    """The flags of a round's trainers; dashes and underscores in names mean the same."""
    mine = {name.replace("_", "-") for name in round.flags}
    kept = {name: value for name, value in spec.search_flags.items() if name.replace("_", "-") not in mine}
    return {**kept, **round.flags}


def retrain_flags(source: str, trials: Iterable[int | str], *, checkpoint: bool = False) -> dict[str, str]:
    """Flags of a round whose k-th trial trains the k-th of ``trials`` in ``source`` (``Round.trials``) again;
    ``checkpoint``: it goes on from there."""
    flags = {
        "retrain-search-job-dir": source,
        "retrain-search-job-trials": ",".join(str(one) for one in trials),
    }
    return {**flags, "retrain-use-search-job-checkpoint": "True"} if checkpoint else flags


def sample(space: TrialSpace, seed: int, count: int, least: int | None = None) -> list[Model]:
    """The first ``count`` random models of ``space`` with ``seed``, none twice; of a longer list with the
    same seed they are the first. Raises WrongCall if the space has fewer, and fewer than ``least``."""
    optimizer = space.optimizer("random", seed, count)
    found: list[Model] = []
    while len(found) < count:
        if optimizer.exhausted:
            if len(found) >= (count if least is None else least):
                break
            raise WrongCall(
                f"the search space has {len(found)} models, and {least or count} are needed: widen it, or "
                "ask for fewer"
            )
        [parameters] = optimizer.ask(1)
        found.append(Model(parameters=parameters, expanded=space.expand(parameters)))
    return found


# -- what trials left --------------------------------------------------------------------------------
def curve_of(trial: Trial) -> Curve | None:
    """Its scores over the steps so far; None: none yet."""
    return read_curve(Path(trial.directory))


def metric_of(trial: Trial, name: str) -> float:
    """The number that a trial reported last under ``name``; not-a-number: none."""
    return last_metrics(trial.directory).get(name, math.nan) if name else math.nan


def latency_of(trial: Trial, name: str, *, measured: bool = False) -> float:
    """Its latency: as it was measured of the exported model, else, unless only ``measured`` ones count, as
    the trainer recorded it with its curve, or reported it under ``name``; not-a-number: there is none."""
    found = measured_latency(trial.directory)
    if found is not None or measured:
        return math.nan if found is None else found
    curve = curve_of(trial)
    if curve is not None and curve.latency is not None:
        return curve.latency
    reported = metric_of(trial, name)
    return reported if reported >= 0.0 else math.nan


def failed_of(trials: Iterable[Trial]) -> list[Trial]:
    """Those that have failed."""
    return [one for one in trials if one.state == FAILED]


def classes_of(failed: Iterable[Trial]) -> str:
    """``2 out of memory, 1 error``."""
    counts = Counter(CLASSES.get(one.reason_class, one.reason_class) for one in failed)
    return ", ".join(f"{count} {name}" for name, count in counts.most_common())


_ADVICE = {
    records.OUT_OF_MEMORY: "out of memory: take a smaller batch, or leave the largest models out",
    records.NOT_A_NUMBER: "not a number: lower the first learning rate, or clip gradients",
    records.TIMED_OUT: "timed out: give more --trial-timeout, or train fewer steps",
    records.ERROR: "errors: nas-hpc search-local runs one random model here and shows what the trainer says",
    records.NODE: "nodes: nas-hpc why says of each job how it ended",
}


def advice_on(failed: Iterable[Trial]) -> list[str]:
    """What to do about failures, the most frequent class first."""
    counts = Counter(one.reason_class for one in failed)
    return [_ADVICE[name] for name, _ in counts.most_common() if name in _ADVICE]


def _copy_curve(source: Path, target: Path) -> None:
    """Have a trial begin with the curve of another one; what it has of its own stays."""
    if (target / METRICS_FILE).exists() or not (source / METRICS_FILE).exists():
        return
    target.mkdir(parents=True, exist_ok=True)
    partial = target / f".{METRICS_FILE}.{time.monotonic_ns()}"
    shutil.copyfile(source / METRICS_FILE, partial)
    partial.replace(target / METRICS_FILE)


__all__ = [
    "LOOK_EVERY_S", "MOST_MODELS", "SPEC_FILE", "Look", "Model", "Next", "Round", "Rounds", "advice_on",
    "classes_of", "curve_of", "failed_of", "flags_of", "go_on", "latency_of", "metric_of", "retrain_flags",
    "round_of", "sample", "spec_of_round", "trial_key",
]  # fmt: skip
