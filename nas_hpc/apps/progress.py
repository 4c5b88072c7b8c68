"""What every search keeps of its finished evaluations: the tally, results.csv, what it tells of itself."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from nas_hpc.apps.results import ResultsFile
from nas_hpc.errors import LauncherGone, WorkFailed
from nas_hpc.evaluator import EvaluationResult, Evaluator, canonical
from nas_hpc.states import Outcome
from nas_hpc.wire import Report

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
            self.failed += result.outcome is not Outcome.KILLED  # what was ended has not failed
        elif self.best is None or self.best.objective is None or result.objective > self.best.objective:
            self.best = result


class Progress:
    """The finished evaluations of one search, in their order, and who is told of them.

    ``ends``: when the search is to end, on the monotonic clock; infinity: when ``max_evals`` are finished.
    """

    def __init__(
        self, evaluator: Evaluator, results: ResultsFile, *, max_evals: int, time_limit_s: float = 0.0
    ) -> None:
        self._evaluator = evaluator
        self._results = results
        self.max_evals = max_evals
        self.ends = time.monotonic() + time_limit_s if time_limit_s else float("inf")
        self.tally = Tally()
        self.finished: list[EvaluationResult] = []
        self._logged = (0.0, 0)
        self._reported = 0.0
        self._owes_report = False

    # -- beginning and end -------------------------------------------------------------------------
    def begin(self) -> None:
        """Write results.csv anew, from what earlier attempts of the search have finished."""
        history, pending = self._evaluator.history, self._evaluator.pending
        self._results.begin(history, self._evaluator.started)
        if history or pending:
            _log.info("going on: %d evaluations are finished, %d are not", len(history), len(pending))

    def resume(self) -> None:
        """Take the recorded evaluations as this search's; what runs beyond ``max_evals`` is ended."""
        history = self._evaluator.history
        for result in history:
            self.tally.add(result)
        self.finished = list(history)
        self._owes_report = True
        pending = sorted(item.seq for item in self._evaluator.pending)
        surplus = pending[max(0, self.max_evals - len(history)) :]
        if surplus:
            self._evaluator.cancel(surplus)

    def run(self, *steps: Callable[[], None]) -> None:
        """Do what a search consists of. Raises WorkFailed as ``_finish`` does; Interrupted and LauncherGone
        pass through, after everything that is known was left in results.csv."""
        try:
            for step in steps:
                step()
        except (Interrupted, LauncherGone):
            self._results.replace(self._evaluator.history)
            raise
        self._finish()

    def _finish(self) -> None:
        """Everything is on the disk and told. Raises WorkFailed if no evaluation gave an objective, or
        results.csv could not be written."""
        if self._evaluator.revised:
            self._results.replace(self._evaluator.history)
        self._results.end()
        self._log_progress(last=True)
        self._report()
        if self.tally.best is None:
            raise WorkFailed(self._why_nothing())

    # -- on the way --------------------------------------------------------------------------------
    @property
    def over(self) -> bool:
        """Whether the time limit is reached."""
        return time.monotonic() >= self.ends

    def patience_s(self) -> float | None:
        """How long to wait for results at most: until the time limit, or until a report is due."""
        until = self.ends
        if self._owes_report:
            until = min(until, self._reported + REPORT_S)
        return None if until == float("inf") else max(0.0, until - time.monotonic())

    def collect(self, results: Sequence[EvaluationResult]) -> None:
        """Take new results in; report if it is time."""
        for result in results:
            self.tally.add(result)
        self.finished += results
        if results:
            self._results.add(results)
            self._owes_report = True
            self._log_progress()
        if self._owes_report and time.monotonic() - self._reported >= REPORT_S:
            self._report()

    def cancel_all(self) -> None:
        """End all that runs, and take what comes of it."""
        _log.info("the time limit is reached: ending %d evaluations", self._evaluator.in_flight)
        pending = set(range(1, self._evaluator.next_id)) - {result.id for result in self._evaluator.history}
        self._evaluator.cancel(sorted(pending))
        self.collect(self._evaluator.gather("all", CANCEL_S))

    def _report(self) -> None:
        best = self.tally.best
        self._evaluator.report(
            Report(
                best=None if best is None else best.objective,
                best_config={} if best is None else best.config,
                done=self.tally.done,
                failed=self.tally.failed,
                max_evals=self.max_evals,
            )
        )
        self._reported, self._owes_report = time.monotonic(), False

    def _log_progress(self, last: bool = False) -> None:
        when, before = self._logged
        tenth = self.max_evals / 10
        now = time.monotonic()
        due = last or now - when >= LOG_S or int(before / tenth) != int(self.tally.done / tenth)
        if not due or self.tally.done == before:
            return
        self._logged = (now, self.tally.done)
        best = self.tally.best
        found = "nothing found yet" if best is None else f"best {best.objective!r} {canonical(best.config)}"
        _log.info("%d of %d done, %d failed, %s", self.tally.done, self.max_evals, self.tally.failed, found)

    def _why_nothing(self) -> str:
        if not self.finished:
            return "no evaluation was finished in the time given"
        reasons = Counter(result.reason or result.outcome.value for result in self.finished)
        reason, count = reasons.most_common(1)[0]
        return f"all {len(self.finished)} evaluations failed, {count} of them with: {reason}"
