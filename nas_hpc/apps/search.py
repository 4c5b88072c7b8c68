"""The loop of all searches: ask the optimizer, have evaluated, tell, write down; stop at exactly
``max_evals``.

Resume. An optimizer's future depends only on what it was asked for, in order, and on the objectives told
(``nas_hpc.search.base``). So a search that is started again takes its recorded evaluations as asked, tells
what was finished, waits for what was running, and goes on as if nothing had happened. Nothing is evaluated
again.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nas_hpc.apps.results import ResultsFile
from nas_hpc.errors import LauncherGone, WorkFailed, WrongCall
from nas_hpc.evaluator import EvaluationResult, Evaluator, canonical
from nas_hpc.wire import Report

if TYPE_CHECKING:  # loads scikit-learn
    from nas_hpc.search.base import Optimizer

BATCH = 20
"""At most so many configurations are asked for at once, so that the first ones run while the others are
chosen."""
LOG_S = 10.0
REPORT_S = 0.2
CANCEL_S = 30.0
"""So long a search that has reached its time limit waits for its evaluations to end."""
_log = logging.getLogger("nas_hpc.apps")


class Interrupted(BaseException):
    """SIGTERM or SIGINT came."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal_number)
        self.signal_number = signal_number


@dataclass(slots=True)
class Tally:
    """What was finished so far."""

    done: int = 0
    failed: int = 0
    best: EvaluationResult | None = None

    def add(self, result: EvaluationResult) -> None:
        """Count one result."""
        self.done += 1
        if result.objective is None:
            self.failed += 1
        elif self.best is None or self.best.objective is None or result.objective > self.best.objective:
            self.best = result


class Search:
    """One search. ``optimizer`` makes a fresh optimizer; it is called once, or twice when a search goes
    on."""

    def __init__(
        self,
        make_optimizer: Callable[[], Optimizer],
        evaluator: Evaluator,
        results: ResultsFile,
        *,
        max_evals: int,
        starting_points: int = 0,
        time_limit_s: float = 0.0,
        repeats_run: bool = True,
    ) -> None:
        self._make_optimizer = make_optimizer
        self._optimizer = make_optimizer()
        self._evaluator = evaluator
        self._results = results
        self._max_evals = max_evals
        self._starting_points = starting_points
        self._ends = time.monotonic() + time_limit_s if time_limit_s else float("inf")
        self._tally = Tally()
        self._finished: list[EvaluationResult] = []
        self._told = 0
        self._asked: set[str] | None = set() if repeats_run else None
        self._logged = (0.0, 0)
        self._reported = 0.0
        self._owes_report = False

    # -- the whole ---------------------------------------------------------------------------------
    def run(self) -> None:
        """Search until ``max_evals`` evaluations are finished or the time is over.

        Raises WorkFailed if no evaluation gave an objective, or results.csv could not be written.
        Interrupted and LauncherGone pass through, after everything known was written.
        """
        try:
            self._restore()
            self._loop()
        except (Interrupted, LauncherGone):
            self._results.replace(self._evaluator.history)
            raise
        self._finish()

    def _loop(self) -> None:
        while True:
            self._ask()
            if not self._evaluator.in_flight:
                return
            self._collect(self._evaluator.gather(1, self._patience_s(), or_capacity=True))
            if time.monotonic() >= self._ends:
                _log.info("the time limit is reached: ending %d evaluations", self._evaluator.in_flight)
                self._cancel_all()
                return

    def _patience_s(self) -> float | None:
        until = self._ends
        if self._owes_report:
            until = min(until, self._reported + REPORT_S)
        return None if until == float("inf") else max(0.0, until - time.monotonic())

    # -- asking ------------------------------------------------------------------------------------
    def _ask(self) -> None:
        while (count := self._wanted()) > 0 and time.monotonic() < self._ends:
            self._tell()
            configs = self._optimizer.ask(min(count, BATCH))
            if not configs:
                _log.info("the search has no more configurations to try")
                self._max_evals = len(self._finished) + self._evaluator.in_flight
                return
            self._note_repeats(configs)
            self._evaluator.submit(configs, data={"told": self._told, "batch": self._evaluator.next_id})

    def _wanted(self) -> int:
        """How many more evaluations should be submitted now: one per free slot, all starting points at
        first."""
        running = self._evaluator.in_flight
        submitted = len(self._finished) + running
        free = max(1, self._evaluator.capacity()) - running  # with no capacity yet, one waits for it
        return min(max(free, self._starting_points - submitted), self._max_evals - submitted)

    def _tell(self) -> None:
        news = self._finished[self._told :]
        if news:
            self._optimizer.tell([result.config for result in news], [result.objective for result in news])
            self._told = len(self._finished)

    def _note_repeats(self, configs: list[dict[str, Any]]) -> None:
        if self._asked is None:
            return
        keys = [canonical(config) for config in configs]
        if any(key in self._asked for key in keys):
            _log.info(
                "the space has no more new configurations: known ones run again (or --cache-key to_dict)"
            )
            self._asked = None
        else:
            self._asked.update(keys)

    # -- collecting --------------------------------------------------------------------------------
    def _collect(self, results: list[EvaluationResult]) -> None:
        for result in results:
            self._tally.add(result)
        self._finished += results
        if results:
            self._results.add(results)
            self._owes_report = True
            self._log_progress()
        if self._owes_report and time.monotonic() - self._reported >= REPORT_S:
            self._report()

    def _cancel_all(self) -> None:
        pending = set(range(1, self._evaluator.next_id)) - {result.id for result in self._evaluator.history}
        self._evaluator.cancel(sorted(pending))
        self._collect(self._evaluator.gather("all", CANCEL_S))

    def _report(self) -> None:
        best = self._tally.best
        self._evaluator.report(
            Report(
                best=None if best is None else best.objective,
                best_config={} if best is None else best.config,
                done=self._tally.done,
                failed=self._tally.failed,
                max_evals=self._max_evals,
            )
        )
        self._reported, self._owes_report = time.monotonic(), False

    def _log_progress(self, last: bool = False) -> None:
        when, before = self._logged
        tenth = self._max_evals / 10
        now = time.monotonic()
        due = last or now - when >= LOG_S or int(before / tenth) != int(self._tally.done / tenth)
        if not due or self._tally.done == before:
            return
        self._logged = (now, self._tally.done)
        best = self._tally.best
        found = "nothing found yet" if best is None else f"best {best.objective!r} {canonical(best.config)}"
        _log.info(
            "%d of %d done, %d failed, %s", self._tally.done, self._max_evals, self._tally.failed, found
        )

    # -- beginning and end -------------------------------------------------------------------------
    def _restore(self) -> None:
        """Bring the optimizer to where it was, from the recorded evaluations."""
        history, pending = self._evaluator.history, self._evaluator.pending
        self._results.begin(history, self._evaluator.started)
        if not history and not pending:
            return
        _log.info("going on: %d evaluations are finished, %d are not", len(history), len(pending))
        records = {result.id: result.config for result in history} | {
            item.seq: item.config for item in pending
        }
        data = {result.id: result.data for result in history} | {item.seq: item.data for item in pending}
        asked, first = [dict(records[seq]) for seq in sorted(records)], min(records)
        self._compare(asked, sum(item.get("batch") == first for item in data.values()))
        try:
            self._optimizer.remember(asked)
        except WrongCall as error:
            raise WrongCall(f"this search's recorded evaluations do not fit its problem: {error}") from error
        for result in history:
            self._tally.add(result)
        self._finished = list(history)
        if self._asked is not None:
            self._asked.update(canonical(config) for config in asked)
        self._owes_report = True
        surplus = sorted(item.seq for item in pending)[max(0, self._max_evals - len(history)) :]
        if surplus:
            self._evaluator.cancel(surplus)

    def _compare(self, asked: list[dict[str, Any]], first_batch: int) -> None:
        """Say once if these settings would have begun otherwise: then the records stand."""
        begun = self._make_optimizer().ask(first_batch)
        if [canonical(config) for config in begun] != [canonical(config) for config in asked[:first_batch]]:
            _log.warning(
                "these settings (seed, problem or algorithm) would have begun with other configurations than "
                "the recorded ones; the recorded ones are kept, and the search goes on from them"
            )

    def _finish(self) -> None:
        if self._evaluator.revised:
            self._results.replace(self._evaluator.history)
        self._results.end()
        self._log_progress(last=True)
        self._report()
        if self._tally.best is None:
            raise WorkFailed(self._why_nothing())

    def _why_nothing(self) -> str:
        if not self._finished:
            return "no evaluation was finished in the time given"
        reasons = Counter(result.reason or result.outcome.value for result in self._finished)
        reason, count = reasons.most_common(1)[0]
        return f"all {len(self._finished)} evaluations failed, {count} of them with: {reason}"
