"""DeepHyper's evaluator of 2020, its names and contract, on top of any evaluator of this room.

``add_eval`` returns a key: equal for equal configurations when the cache is on, else unique. Every request
gets its own answer, exactly once: from ``get_finished_evals`` or from ``await_evals``. The objective is
maximised; a failure gives ``FAIL_RETURN_VALUE`` (the smallest float32, as there).
"""

from __future__ import annotations

import time
import uuid
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from nas_hpc.errors import WrongCall
from nas_hpc.evaluator.base import CacheKey, EvaluationResult, Evaluator, canonical, plain_config

FAIL_RETURN_VALUE = -3.4028234663852886e38

Pair = tuple[dict[str, Any], float]


class DeepHyperEvaluator:
    """``add_eval``, ``add_eval_batch``, ``get_finished_evals``, ``await_evals`` over ``evaluator``.

    ``cache_key`` has to be the one that ``evaluator`` was made with.
    """

    FAIL_RETURN_VALUE = FAIL_RETURN_VALUE

    def __init__(
        self, evaluator: Evaluator, cache_key: CacheKey = "uuid", failure_value: float = FAIL_RETURN_VALUE
    ) -> None:
        self._evaluator = evaluator
        self._cache_key = cache_key
        self._failure_value = failure_value
        self._ids_of_uid: dict[str, list[int]] = {}
        self._results: dict[int, EvaluationResult] = {}
        self._unread: dict[int, str] = {}
        self._finished: deque[int] = deque()
        self.stats = {"num_cache_used": 0}

    @property
    def num_workers(self) -> int:
        """How many evaluations can run at once, now."""
        return self._evaluator.capacity()

    @property
    def counter(self) -> int:
        """How many evaluations were requested."""
        return sum(len(ids) for ids in self._ids_of_uid.values())

    def add_eval(self, x: Mapping[str, Any]) -> str:
        """Request the evaluation of ``x``; returns its key."""
        return self.add_eval_batch([x])[0]

    def add_eval_batch(self, xs: Sequence[Mapping[str, Any]]) -> list[str]:
        """Request several at once; returns their keys, in order."""
        configs = [plain_config(x) for x in xs]
        uids = [self._uid(config) for config in configs]
        for uid, number in zip(uids, self._evaluator.submit(configs), strict=True):
            self._ids_of_uid.setdefault(uid, []).append(number)
            self._unread[number] = uid
        return uids

    def get_finished_evals(self, timeout: float | None = 0.5) -> Iterator[Pair]:
        """Yield (x, y) of every request that is finished and not read yet.

        Waits up to ``timeout`` seconds (None: for ever) for the first; an empty look yields nothing.
        """
        self._collect(0, 0.0)
        if not self._has_unread() and self._evaluator.in_flight:
            self._collect(1, timeout)
        while self._finished:
            number = self._finished.popleft()
            if self._unread.pop(number, None) is not None:
                yield self._pair(number)

    def await_evals(self, uids: Sequence[str], timeout: float | None = None) -> list[Pair]:
        """The (x, y) of ``uids``, in their order, when all are finished.

        Raises:
            TimeoutError: not all were after ``timeout`` seconds; nothing counts as read.
            WrongCall: one of them is no key that ``add_eval`` gave.
        """
        numbers = self._claim(uids)
        deadline = None if timeout is None else time.monotonic() + timeout
        while missing := [number for number in numbers if number not in self._results]:
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                raise TimeoutError(
                    f"{len(missing)} of {len(numbers)} evaluations took more than {timeout:g} s"
                )
            self._collect(1, left)
        for number in numbers:
            self._unread.pop(number, None)
        return [self._pair(number) for number in numbers]

    def close(self) -> None:
        """Leave the evaluator."""
        self._evaluator.close()

    def _claim(self, uids: Sequence[str]) -> list[int]:
        """A request for each of ``uids``: unread ones first, each once; then any of the key's."""
        taken: set[int] = set()
        numbers = []
        for uid in uids:
            ids = self._ids_of_uid.get(uid)
            if ids is None:
                raise WrongCall(f"await_evals: {uid!r} is no key that add_eval returned")
            free = [number for number in ids if number in self._unread and number not in taken]
            number = free[0] if free else ids[0]
            taken.add(number)
            numbers.append(number)
        return numbers

    def _uid(self, config: dict[str, Any]) -> str:
        if self._cache_key == "uuid":
            return str(uuid.uuid4())
        return canonical(config) if self._cache_key == "to_dict" else str(self._cache_key(config))

    def _collect(self, n: int, timeout_s: float | None) -> None:
        for result in self._evaluator.gather(n, timeout_s):
            self._results[result.id] = result
            self.stats["num_cache_used"] += result.cached
            self._finished.append(result.id)

    def _has_unread(self) -> bool:
        return any(number in self._unread for number in self._finished)

    def _pair(self, number: int) -> Pair:
        result = self._results[number]
        value = self._failure_value if result.objective is None else result.objective
        return dict(result.config), value
