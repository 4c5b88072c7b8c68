"""The evaluator under this project's launcher, or another engine that has a ``SearchClient``."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Any, Literal

from nas_hpc import wire
from nas_hpc.errors import WorkFailed, WrongCall
from nas_hpc.evaluator.base import CacheKey, EvaluationResult, canonical, derived_seed, plain_config
from nas_hpc.evaluator.client import SearchClient
from nas_hpc.evaluator.specified import Specify, specified
from nas_hpc.records import Json
from nas_hpc.states import Outcome

ASKS_PER_MESSAGE = 1000


@dataclass(frozen=True, slots=True)
class Settings:
    """What all evaluations of a search have in common."""

    run: str
    """Where the run function is: "module.function"."""
    seed: int = 0
    """The search's; each evaluation's own follows from it and its id."""
    shape: wire.Shape = wire.Shape()
    cache_key: CacheKey = "uuid"
    timeout_s: float = 0.0
    """An evaluation is ended after so long; 0: never."""
    retries: int = 0
    """So often a failed evaluation is run again before it counts as failed."""
    environ: Mapping[str, str] = field(default_factory=dict)
    specify: Specify | None = None
    """A job specification: called for every configuration that is to run, it says which program does.
    ``run`` is its name, and what it leaves open is as these settings say."""


class LauncherEvaluator:
    """Evaluations by the launcher, or the engine, that ``client`` reaches, which is the evaluator's then.

    ``base.Evaluator`` says what the methods do.

    Cache. With "uuid", the default, every configuration runs. With "to_dict" or a function, a configuration
    whose key has a result already is not run: its result is the earlier one's, a row of its own with
    ``cached`` and no directory. While the earlier one still runs, the hit waits for it. Only a result with an
    objective is shared: after a failure the next request with that key runs again, because a failure is as
    often the node's as the configuration's (a search that wants no second try leaves the configuration out
    itself). Keys are of configurations: what a job specification makes of them does not matter, and it is
    called for those alone that run.
    """

    def __init__(self, client: SearchClient, settings: Settings) -> None:
        self._client = client
        self._settings = settings
        self._capacity = 0
        self._grown = False
        self._history: dict[int, EvaluationResult] = {}
        self._ready: deque[EvaluationResult] = deque()
        self._in_flight: dict[int, Json] = {}
        self._requests: dict[int, tuple[int, ...]] = {}
        self._refusals: deque[str] = deque()
        self._done_of_key: dict[Any, int] = {}
        self._running_of_key: dict[Any, int] = {}
        self._held: dict[int, list[wire.Ask]] = {}
        self._next_id = 1
        self.revised = 0
        self.started = 0.0
        self.pending: tuple[wire.Pending, ...] = ()
        try:
            self._begin()
        except BaseException:
            client.close()
            raise

    # -- the search's calls ------------------------------------------------------------------------
    @property
    def history(self) -> list[EvaluationResult]:
        return list(self._history.values())

    @property
    def in_flight(self) -> int:
        return len(self._in_flight)

    @property
    def next_id(self) -> int:
        return self._next_id

    def capacity(self) -> int:
        return self._capacity

    def submit(
        self,
        configs: Sequence[Mapping[str, Any]],
        resources: wire.Shape | None = None,
        *,
        data: Json | None = None,
        ids: Sequence[int] | None = None,
    ) -> list[int]:
        plain = [plain_config(config) for config in configs]
        keys = [self._key(config) for config in plain]
        numbers = list(range(self._next_id, self._next_id + len(plain))) if ids is None else list(ids)
        self._check_ids(numbers, len(plain))
        self._raise_refusal()
        run: list[wire.Ask] = []
        for seq, config, key in zip(numbers, plain, keys, strict=True):
            ask = self._ask(seq, config, resources or self._settings.shape, data or {})
            self._in_flight[seq] = config
            ask_now = self._through_cache(ask, key)
            if ask_now is not None:
                run.append(ask_now)
        self._next_id = max([self._next_id, *(seq + 1 for seq in numbers)])
        self._send(run)
        return numbers

    def gather(
        self, n: int | Literal["all"], timeout_s: float | None = None, *, or_capacity: bool = False
    ) -> list[EvaluationResult]:
        if n != "all" and (not isinstance(n, int) or n < 0):
            raise WrongCall(f'gather({n!r}): give a number of results from 0 on, or "all"')
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        self._grown = False
        self._receive(0)
        while not (or_capacity and self._grown):
            wanted = len(self._in_flight) + len(self._ready) if n == "all" else n
            left = None if deadline is None else deadline - time.monotonic()
            enough = len(self._ready) >= wanted or not self._in_flight
            if enough or (left is not None and left <= 0):
                break
            self._receive(left)
        ready = list(self._ready)
        self._ready.clear()
        return ready

    def listen(self, duration_s: float) -> None:
        """Hear the launcher for so long, whatever it says: for a search that waits for something else. Raises
        what ``gather`` raises."""
        deadline = time.monotonic() + duration_s
        while (left := deadline - time.monotonic()) > 0:
            self._receive(left)

    def cancel(self, ids: Sequence[int]) -> None:
        live = [seq for seq in ids if seq in self._in_flight]
        waiting = {ask.seq: ask for asks in self._held.values() for ask in asks}
        sent = tuple(seq for seq in live if seq not in waiting)
        if sent:
            self._client.cancel(sent)
        now = time.time()
        for seq in (seq for seq in live if seq in waiting):  # the launcher does not know of it
            for asks in self._held.values():
                asks[:] = [ask for ask in asks if ask.seq != seq]
            ask = waiting[seq]
            reason, order = "cancelled before it ran", self._client.cursor
            killed = Outcome.KILLED
            self._finish(
                EvaluationResult(
                    seq, ask.config, None, killed, reason, {}, now, now, now, 0, False, ask.data, order
                )
            )

    def report(self, report: wire.Report) -> None:
        self._client.report(report)

    def close(self) -> None:
        self._client.close()

    def __enter__(self) -> LauncherEvaluator:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- messages ----------------------------------------------------------------------------------
    def _begin(self) -> None:
        """Wait for the first Welcome, which comes after the whole history."""
        welcome = None
        while welcome is None:
            for message in self._client.receive():
                self._take(message)
                welcome = message if isinstance(message, wire.Welcome) else welcome
        self.pending = welcome.pending
        self.started = welcome.started
        self._ready.clear()  # the past is history, not news
        for item in welcome.pending:
            self._in_flight[item.seq] = item.config
            self._running_of_key.setdefault(self._key(item.config), item.seq)
        self._next_id = max([0, *self._history, *self._in_flight]) + 1

    def _receive(self, timeout_s: float | None) -> None:
        for message in self._client.receive(timeout_s):
            self._take(message)
        self._raise_refusal()

    def _take(self, message: wire.Message) -> None:
        if isinstance(message, wire.Results):
            for done in message.done:
                self._finish(_result(done))
        elif isinstance(message, wire.Welcome | wire.Capacity):
            self._grown = self._grown or message.capacity > self._capacity
            self._capacity = message.capacity
        elif isinstance(message, wire.Accepted):
            self._requests.pop(message.request, None)
        elif isinstance(message, wire.Refused):
            for seq in self._requests.pop(message.request, ()):
                self._in_flight.pop(seq, None)
            self._refusals.append(message.message)

    def _raise_refusal(self) -> None:
        if self._refusals:
            raise WorkFailed(f"evaluations were refused: {self._refusals.popleft()}")

    def _finish(self, result: EvaluationResult) -> None:
        known = self._history.get(result.id)
        if known is not None and known.order >= result.order:
            return  # sent again after a reconnect
        if known is not None:  # a person had it run again: the later result stands, and is no news
            del self._history[result.id]
            self.revised += 1
        else:
            self._ready.append(result)
        self._history[result.id] = result
        self._in_flight.pop(result.id, None)
        key = self._key(result.config)
        if key is not None and result.ok:
            self._done_of_key.setdefault(key, result.id)
        if self._running_of_key.get(key) == result.id:
            del self._running_of_key[key]
        self._release(result)

    # -- asks and the cache ------------------------------------------------------------------------
    def _ask(self, seq: int, config: Json, shape: wire.Shape, data: Json) -> wire.Ask:
        s = self._settings
        return wire.Ask(
            seq=seq,
            run=s.run,
            config=config,
            seed=derived_seed(s.seed, seq),
            shape=shape,
            timeout_s=s.timeout_s,
            retries=s.retries,
            environ=s.environ,
            data=data,
        )

    def _send(self, asks: list[wire.Ask]) -> None:
        specify = self._settings.specify
        if specify is not None:
            asks = [ask if ask.cached_of else specified(ask, specify) for ask in asks]
        for first in range(0, len(asks), ASKS_PER_MESSAGE):
            part = tuple(asks[first : first + ASKS_PER_MESSAGE])
            request = self._client.submit(part)
            self._requests[request] = tuple(ask.seq for ask in part)

    def _key(self, config: Json) -> Any:
        """What equal configurations share; None: nothing does."""
        rule = self._settings.cache_key
        if rule == "uuid":
            return None
        if rule == "to_dict":
            return canonical(config)
        assert callable(rule)
        try:
            key = rule(config)
            hash(key)
        except Exception as error:
            what = f"{type(error).__name__}: {error}"
            raise WrongCall(f"the cache key of {dict(config)}: {what}; it has to return a string") from error
        return ("key", key)

    def _through_cache(self, ask: wire.Ask, key: Any) -> wire.Ask | None:
        """What to send for ``ask`` now: itself, itself as a hit, or nothing while the original runs."""
        if key is None:
            return ask
        if key in self._done_of_key:
            return replace(ask, cached_of=self._done_of_key[key])
        original = self._running_of_key.setdefault(key, ask.seq)
        if original == ask.seq:
            return ask
        self._held.setdefault(original, []).append(ask)
        return None

    def _release(self, original: EvaluationResult) -> None:
        """Answer those that waited for ``original``: as hits, or else the first of them runs."""
        held = self._held.pop(original.id, [])
        if held:
            asks = [self._through_cache(ask, self._key(ask.config)) for ask in held]
            self._send([ask for ask in asks if ask is not None])

    def _check_ids(self, numbers: list[int], count: int) -> None:
        if len(numbers) != count:
            raise WrongCall(f"submit: {count} configurations and {len(numbers)} ids: give as many")
        given: set[int] = set()
        for seq in numbers:
            if seq < 1 or seq in self._history or seq in self._in_flight or seq in given:
                raise WrongCall(f"submit: the id {seq} is taken or below 1: leave the ids out")
            given.add(seq)


def _result(done: wire.Done) -> EvaluationResult:
    return EvaluationResult(
        id=done.seq,
        config=done.config,
        objective=done.objective,
        outcome=Outcome(done.outcome),
        reason=done.reason,
        metadata=done.metadata,
        submitted=done.submitted,
        start=done.start,
        end=done.end,
        attempt=done.attempt,
        cached=done.cached,
        data=done.data,
        order=done.order,
    )
