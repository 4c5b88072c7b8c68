"""The loop of a search of trials: start as many as may run, take what is finished, stop where a limit is met.

Resume: as in ``nas_hpc.apps.search``, an optimizer's future depends on what it was asked for and told, and in
which order; each trial's record says how many results it had been told before it was asked for that one.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nas_hpc.apps.progress import Interrupted, Progress
from nas_hpc.apps.results import ResultsFile
from nas_hpc.apps.trials import records
from nas_hpc.apps.trials.records import CLASSES, FAILED, SUCCEEDED, WRONG_METRIC, Trial, best_of
from nas_hpc.apps.trials.runner import CANCEL_S, Order, TrialRunner
from nas_hpc.apps.trials.spec import SEARCH, TRAIN, TrialsSpec, id_of
from nas_hpc.apps.trials.stage2 import chosen_by, keep_map, order_of
from nas_hpc.errors import LauncherGone, NasHpcError, WorkFailed
from nas_hpc.units import format_duration

if TYPE_CHECKING:  # loads scikit-learn
    from nas_hpc.apps.trials.space import TrialSpace
    from nas_hpc.search.base import Optimizer

_log = logging.getLogger("nas_hpc.apps")


@dataclass(frozen=True, slots=True)
class Ending:
    """Why the job is over."""

    reason: str = ""
    """The limit that ended it, for the last line; empty: all was done."""
    failed: bool = False
    """Whether that is a failure of the work."""


class TrialLoop:
    """One job of trials. ``space``: of a search; a job of full trainings alone has none."""

    def __init__(
        self, spec: TrialsSpec, runner: TrialRunner, results: ResultsFile, space: TrialSpace | None, seed: int
    ) -> None:
        self._spec, self._runner, self._space = spec, runner, space
        self._optimizer: Optimizer | None = None
        if space is not None:
            self._optimizer = space.optimizer(spec.algorithm, seed, spec.max_trials)
        self._progress = Progress(
            runner.evaluator, results, max_evals=total_of(spec), time_limit_s=spec.time_limit_s
        )
        self._told = 0
        self._ending = Ending()
        self._exhausted = False
        self._chosen: tuple[int, list[int]] = (0, [])

    # -- the whole ---------------------------------------------------------------------------------
    def run(self) -> None:
        """Run all trials. Raises WorkFailed if a limit ended them that is a failure, or none succeeded;
        Interrupted and LauncherGone pass through, after everything known was written."""
        try:
            self._progress.run(self._restore, self._loop)
        except (Interrupted, LauncherGone):
            self._write("INTERRUPTED", "interrupted; it goes on when it is started again")
            raise
        except NasHpcError as error:
            text = self._last_line() if self._ending.failed else error.message
            self._write("FAILED", text)
            raise WorkFailed(text) if self._ending.failed else error from None
        text = self._last_line()
        self._write("FAILED" if self._ending.failed else "SUCCEEDED", text)
        if self._ending.failed:
            raise WorkFailed(text)
        _log.info("%s", text)

    def _loop(self) -> None:
        progress, runner = self._progress, self._runner
        news = False
        while True:
            self._ending = self._limit_met()
            if self._ending.reason:
                self._cancel()
                return
            if self._refill() or news:
                self._write("RUNNING", "")
            if not runner.evaluator.in_flight:
                if self._exhausted:
                    done = f"every configuration of the space was tried ({len(self._of(SEARCH))})"
                    self._ending = Ending(f"{done}, before --max-nas-trial {self._spec.max_trials}")
                return
            results = runner.evaluator.gather(1, progress.patience_s(), or_capacity=True)
            runner.take(results)
            progress.collect(results)
            news = bool(results)

    def _cancel(self) -> None:
        evaluator = self._runner.evaluator
        if self._runner.running:
            _log.info("%s: ending %d running trials", self._ending.reason, len(self._runner.running))
            evaluator.cancel([one.id for one in self._runner.running])
            results = evaluator.gather("all", CANCEL_S)
            self._runner.take(results)
            self._progress.collect(results)

    # -- limits ------------------------------------------------------------------------------------
    def _limit_met(self) -> Ending:
        mine = self._finished(SEARCH if self._space is not None else TRAIN)
        failed = [one for one in mine if one.state == FAILED]
        good = any(one.state == SUCCEEDED for one in mine)
        if failed and not good and all(one.reason_class == WRONG_METRIC for one in failed):
            return Ending(f"no trial reports {self._spec.metric!r}: {failed[0].reason}", failed=True)
        if 0 < self._spec.max_failed <= len(failed):
            count = f"{len(failed)} trial{'s' if len(failed) > 1 else ''} failed ({_classes(failed)})"
            last = f"; the last failure: {failed[-1].reason}" if failed[-1].reason else ""
            cap = f"{count}, and --max-failed-nas-trial is {self._spec.max_failed}"
            return Ending(f"{cap}{last}", failed=True)
        if self._progress.over:
            limit = format_duration(self._spec.time_limit_s)
            return Ending(f"the time limit was reached (--time-limit {limit})")
        return Ending()

    # -- starting ----------------------------------------------------------------------------------
    def _refill(self) -> bool:
        """Start what may run now, stage 2 first, it is what the search is for; whether there was any."""
        before = len(self._runner.trials)
        for order in self._stage_2():
            self._runner.launch(order)
        for order in self._again():
            self._runner.launch(order)
        while self._space is not None and self._free(SEARCH, self._spec.max_parallel) > 0:
            suggested = self._suggest()
            if suggested is None:
                break
            self._runner.launch(suggested)
        return len(self._runner.trials) > before

    def _free(self, stage: str, most: int) -> int:
        running = self._runner.running
        here = sum(one.stage == stage for one in running)
        capacity = max(1, self._runner.evaluator.capacity())  # with none yet, one waits for it
        return min(most - here, capacity - len(running))

    def _suggest(self) -> Order | None:
        optimizer, asked = self._optimizer, len(self._of(SEARCH))
        assert optimizer is not None
        if asked >= self._spec.max_trials:
            return None
        self._tell()
        if optimizer.exhausted:
            self._exhausted = True
            return None
        [parameters] = optimizer.ask(1)
        return self._order(asked + 1, parameters, self._told)

    def _again(self) -> list[Order]:
        """Orders of the search's trials that were asked to run again and may start now."""
        spec, space = self._spec, self._space
        if space is None:
            return []
        waiting = [one for one in self._of(SEARCH) if one.id != id_of(spec, SEARCH, one.number)]
        free = max(0, self._free(SEARCH, spec.max_parallel))
        return [self._order(one.number, one.parameters) for one in waiting[:free]]

    def _order(self, number: int, parameters: Mapping[str, Any], told: int = 0) -> Order:
        spec, space = self._spec, self._space
        assert space is not None
        return Order(
            id=id_of(spec, SEARCH, number),
            number=number,
            parameters=parameters,
            expanded=space.expand(parameters),
            directory=str(spec.trial_directory(SEARCH, number)),
            flags=spec.search_flags,
            environ=space.searched.environ,
            note={"told": told},
        )

    def _stage_2(self) -> list[Order]:
        """Orders of stage-2 trials that may start now."""
        spec = self._spec
        source = spec.search_directory or spec.directory
        ids = self._runner.trials
        chosen_before = {one.number: one.nas_trial_id or 0 for one in ids.values() if one.stage == TRAIN}
        if self._space is None:
            chosen: Sequence[int] = spec.chosen
        elif spec.train_flags is not None:
            chosen = self._choose(chosen_before)
        else:
            return []
        waiting = [n for n in range(1, len(chosen) + 1) if id_of(spec, TRAIN, n) not in ids]
        if waiting:
            keep_map(spec, chosen)
        free = max(0, self._free(TRAIN, spec.train_max_parallel))
        return [order_of(spec, n, chosen[n - 1], chosen, source) for n in waiting[:free]]

    def _choose(self, before: Mapping[int, int]) -> Sequence[int]:
        """Numbers of the search's trials that are to be trained in full by now."""
        spec, done = self._spec, self._finished(SEARCH)
        rounds = len(done) // spec.train_frequency if spec.train_frequency else 0
        if rounds != self._chosen[0]:  # all rounds are gone through again: not for every result
            count = spec.train_max_parallel
            self._chosen = rounds, chosen_by(done, spec.train_frequency, count, before)
        return self._chosen[1]

    # -- the optimizer -----------------------------------------------------------------------------
    def _tell(self, until: int | None = None) -> None:
        """Tell the optimizer of what is finished, a failure as a bad choice."""
        assert self._optimizer is not None
        done = self._finished(SEARCH)
        news = done[self._told : until]
        if news:
            self._optimizer.tell([one.parameters for one in news], [one.reward for one in news])
            self._told += len(news)

    def _restore(self) -> None:
        self._progress.begin()
        if not self._runner.trials:
            return
        self._progress.resume()
        if self._optimizer is None:
            return
        for trial in self._of(SEARCH):
            told = self._runner.notes[trial.id].get("told", 0)
            if isinstance(told, int) and told > self._told:
                self._tell(told)
            self._optimizer.remember([trial.parameters])

    # -- records -----------------------------------------------------------------------------------
    def _of(self, stage: str) -> list[Trial]:
        return [one for one in self._current() if one.stage == stage]

    def _current(self) -> list[Trial]:
        """All trials; of one that ran again the latest."""
        latest = {(one.stage, one.number): one for _, one in sorted(self._runner.trials.items())}
        return records.in_order(latest.values())

    def _finished(self, stage: str) -> list[Trial]:
        """In the order in which they were, without those that are to run again."""
        done = [self._runner.trials[id] for id in self._runner.order]
        return [one for one in done if one.stage == stage and one.id == id_of(self._spec, stage, one.number)]

    def _write(self, state: str, message: str) -> None:
        spec, trials = self._spec, self._current()
        limits = {
            "max_nas_trial": spec.max_trials, "max_parallel_nas_trial": spec.max_parallel,
            "max_failed_nas_trial": spec.max_failed, "time_limit_s": spec.time_limit_s,
        }  # fmt: skip
        try:
            records.write_trials(spec.directory, trials)
            records.write_state(spec.directory, spec.job_name, state, message, trials, limits)
            if state not in ("RUNNING", "INTERRUPTED"):
                _draw(spec, trials)
        except OSError as error:
            _log.warning("the records in %s cannot be written: %s", spec.directory, error.strerror)

    def _last_line(self) -> str:
        stage = SEARCH if self._space is not None else TRAIN
        trials = self._of(stage)
        states = Counter(one.state for one in trials)
        total = self._spec.max_trials if stage == SEARCH else len(self._spec.chosen)
        parts = [f"{states[SUCCEEDED] + states[FAILED]} of {total} trials done"]
        failed = [one for one in trials if one.state == FAILED]
        if failed:
            parts.append(f"{len(failed)} failed ({_classes(failed)})")
        if states[records.CANCELLED]:
            parts.append(f"{states[records.CANCELLED]} ended early")
        best = best_of(trials)
        if best is not None:
            parts.append(f"best {self._spec.metric} {best.reward:.6g} in trial {best.number}")
        what = f"search {self._spec.job_name}" if stage == SEARCH else self._spec.job_name
        text = f"{what}: {', '.join(parts)}"
        return f"{text}; it ended because {self._ending.reason}" if self._ending.reason else text


def total_of(spec: TrialsSpec) -> int:
    """How many times a trial will run, of both stages."""
    again = sum(spec.again.values())
    if spec.kind == TRAIN:
        return len(spec.chosen) + again
    if spec.train_flags is None or not spec.train_frequency:
        return spec.max_trials + again
    return spec.max_trials + again + spec.max_trials // spec.train_frequency * spec.train_max_parallel


def _classes(failed: Sequence[Trial]) -> str:
    counts = Counter(CLASSES.get(one.reason_class, one.reason_class) for one in failed)
    return ", ".join(f"{count} {name}" for name, count in counts.most_common())


def _draw(spec: TrialsSpec, trials: Sequence[Trial]) -> None:
    from nas_hpc.apps.trials.figure import draw_rewards

    try:
        draw_rewards(Path(spec.directory), spec.job_name, spec.metric, trials)
    except Exception as error:  # a picture is no reason to fail
        _log.warning("the figure of the rewards cannot be drawn: %s", error)
