"""The loop of all searches with an optimizer: ask it, have evaluated, tell, write down; stop at exactly
``max_evals``.

Resume. An optimizer's future depends only on what it was asked for, in order, and on the objectives told
(``nas_hpc.search.base``). So a search that is started again takes its recorded evaluations as asked, tells
what was finished, waits for what was running, and goes on as if nothing had happened. Nothing is evaluated
again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from nas_hpc.apps.progress import Progress
from nas_hpc.apps.results import ResultsFile
from nas_hpc.errors import WrongCall
from nas_hpc.evaluator import Evaluator, canonical

if TYPE_CHECKING:  # loads scikit-learn
    from nas_hpc.search.base import Optimizer

BATCH = 20
"""At most so many configurations are asked for at once, so that the first ones run while the others are
chosen."""
_log = logging.getLogger("nas_hpc.apps")


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
        self._progress = Progress(evaluator, results, max_evals=max_evals, time_limit_s=time_limit_s)
        self._starting_points = starting_points
        self._told = 0
        self._asked: set[str] | None = set() if repeats_run else None

    # -- the whole ---------------------------------------------------------------------------------
    def run(self) -> None:
        """Search until ``max_evals`` evaluations are finished or the time is over.

        Raises WorkFailed if no evaluation gave an objective, or results.csv could not be written.
        Interrupted and LauncherGone pass through, after everything known was written.
        """
        self._progress.run(self._restore, self._loop)

    def _loop(self) -> None:
        progress = self._progress
        while True:
            self._ask()
            if not self._evaluator.in_flight:
                return
            progress.collect(self._evaluator.gather(1, progress.patience_s(), or_capacity=True))
            if progress.over:
                progress.cancel_all()
                return

    # -- asking ------------------------------------------------------------------------------------
    def _ask(self) -> None:
        while (count := self._wanted()) > 0 and not self._progress.over:
            self._tell()
            configs = self._optimizer.ask(min(count, BATCH))
            if not configs:
                _log.info("the search has no more configurations to try")
                self._progress.max_evals = len(self._progress.finished) + self._evaluator.in_flight
                return
            self._note_repeats(configs)
            self._evaluator.submit(configs, data={"told": self._told, "batch": self._evaluator.next_id})

    def _wanted(self) -> int:
        """How many more evaluations should be submitted now: one per free slot, all starting points at
        first."""
        running = self._evaluator.in_flight
        submitted = len(self._progress.finished) + running
        free = max(1, self._evaluator.capacity()) - running  # with no capacity yet, one waits for it
        return min(max(free, self._starting_points - submitted), self._progress.max_evals - submitted)

    def _tell(self) -> None:
        finished = self._progress.finished
        news = finished[self._told :]
        if news:
            self._optimizer.tell([result.config for result in news], [result.objective for result in news])
            self._told = len(finished)

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

    # -- beginning ---------------------------------------------------------------------------------
    def _restore(self) -> None:
        """Bring the optimizer to where it was, from the recorded evaluations."""
        self._progress.begin()
        history, pending = self._evaluator.history, self._evaluator.pending
        if not history and not pending:
            return
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
        if self._asked is not None:
            self._asked.update(canonical(config) for config in asked)
        self._progress.resume()

    def _compare(self, asked: list[dict[str, Any]], first_batch: int) -> None:
        """Say once if these settings would have begun otherwise: then the records stand."""
        begun = self._make_optimizer().ask(first_batch)
        if [canonical(config) for config in begun] != [canonical(config) for config in asked[:first_batch]]:
            _log.warning(
                "these settings (seed, problem or algorithm) would have begun with other configurations than "
                "the recorded ones; the recorded ones are kept, and the search goes on from them"
            )
