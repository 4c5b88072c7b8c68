"""What a search is told of its evaluations."""

from __future__ import annotations

from collections.abc import Sequence

from nas_hpc.launcher import policy
from nas_hpc.records import Job, Result
from nas_hpc.states import Outcome, State
from nas_hpc.store.base import Finished, Store
from nas_hpc.wire import Done


class Originals:
    """The results of one search that cache hits may share, read once. Belongs to the store's thread."""

    def __init__(self, creator: str) -> None:
        self._creator = creator
        self._results: dict[int, Result] = {}
        self._cursor = 0

    def hits(self, store: Store, asked: Sequence[tuple[Job, int]], now: float) -> list[tuple[Job, Result]]:
        """Each hit with the result of its original's number. Raises WrongCall if the original has none."""
        for one in store.finished(self._creator, after=self._cursor):
            self._cursor = one.order
            if one.attempt is not None and one.attempt.result is not None:
                self._results[one.job.seq] = one.attempt.result
        pairs = []
        for job, seq in asked:
            original = self._results.get(seq)
            if original is None:
                raise policy.no_original(job.seq, seq)
            result = Result(original.outcome, original.objective, original.metadata, start=now, end=now)
            pairs.append((job, result))
        return pairs


def done_of(one: Finished) -> Done:
    """The message about a finished evaluation."""
    job, result = one.job, one.attempt.result if one.attempt is not None else None
    if result is None or (job.state is State.USER_KILLED and result.outcome is not Outcome.KILLED):
        result = Result(Outcome.KILLED, reason="ended before it began", start=0.0, end=0.0)
    return Done(
        order=one.order,
        seq=job.seq,
        config=job.evaluation.config if job.evaluation is not None else {},
        data=job.evaluation.notes if job.evaluation is not None else {},
        outcome=result.outcome.value,
        objective=result.objective if result.outcome is Outcome.OK else None,
        metadata=result.metadata,
        reason=result.reason,
        start=result.start,
        end=result.end,
        attempt=job.attempt,
        submitted=job.created,
        cached=job.attempt == 0 and result.outcome is Outcome.OK,
    )
