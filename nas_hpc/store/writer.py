"""A thread that owns a store and commits in groups: what arrives while it syncs is committed together.

Acknowledged means committed: a future is resolved after the commit that holds its request. One request's
refusal (WrongCall, LeaseLost) undoes that request alone; a failure of the database fails the whole group. One
that may pass (somebody holds the lock, the disk is full) is tried again for a while: functions must bear to
be called again after what they did was undone.
"""

from __future__ import annotations

import asyncio
import math
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from nas_hpc.errors import StoreError

if TYPE_CHECKING:
    from nas_hpc.store.sql import SqlStore

T = TypeVar("T")

GROUP = 512
"""Most requests in one commit: bounds how long the first of them waits."""

RETRY_S = (0.1, 5.0)
"""First and longest pause before a transaction that may succeed later is tried again."""

OUTCOME_S = 8.0
"""What became of a commit is asked for so long at least, whatever the patience is:
nobody else can tell."""

BACKLOG = 100_000
"""Most requests that wait; more mean that the database does not keep up, and memory would grow."""


@dataclass(frozen=True, slots=True)
class _Request:
    function: Callable[[SqlStore], Any]
    future: Future[Any] | asyncio.Future[Any]
    loop: asyncio.AbstractEventLoop | None


_Answer = tuple[_Request, Any, BaseException | None]


class Writer:
    """Executes requests in their order, in a thread that opens the store with ``open_`` and closes it.

    Raises what ``open_`` raises. ``commits`` and ``requests`` count what was done. ``patience_s`` is how long
    transient failures are tried again; ``on_trouble`` gets a line about each, in the thread.
    """

    def __init__(
        self,
        open_: Callable[[], SqlStore],
        *,
        group: int = GROUP,
        backlog: int = BACKLOG,
        patience_s: float = 0.0,
        on_trouble: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.patience_s = patience_s
        """May be changed at any time: what waits for another try heeds it."""
        self._on_trouble = on_trouble
        self._closing = threading.Event()
        self.commits = 0
        self.requests = 0
        self._group = group
        self._backlog = backlog
        self._queue: queue.SimpleQueue[_Request | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._closed = False
        opened: Future[None] = Future()
        self._thread = threading.Thread(
            target=self._run, args=(open_, opened), name="store-writer", daemon=True
        )
        self._thread.start()
        opened.result()

    def submit(self, function: Callable[[SqlStore], T]) -> asyncio.Future[T]:
        """Have ``function(store)`` executed and committed; call it in an event loop, which it does not block.

        The request is executed even if the future is cancelled. Raises StoreError after ``close`` and when
        too many requests wait.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self._put(_Request(function, future, loop))
        return future

    def call(self, function: Callable[[SqlStore], T]) -> Future[T]:
        """The same for callers without an event loop, in any other thread."""
        future: Future[T] = Future()
        self._put(_Request(function, future, None))
        return future

    def close(self, timeout_s: float | None = None) -> None:
        """Execute what was submitted, close the store, end the thread. May be called twice."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._closing.set()
                self._queue.put(None)
        self._thread.join(timeout_s)

    def _put(self, request: _Request) -> None:
        with self._lock:
            if self._closed:
                raise StoreError("the job database of this process is closed")
            if self._queue.qsize() >= self._backlog:
                error = StoreError(f"{self._backlog} requests wait for the job database: it does not keep up")
                error.transient = True
                raise error
            self._queue.put(request)

    # -- the thread --------------------------------------------------------------------------------
    def _run(self, open_: Callable[[], SqlStore], opened: Future[None]) -> None:
        try:
            store = open_()
        except BaseException as error:
            opened.set_exception(error)
            return
        opened.set_result(None)
        store.wait_while(self._may_wait)
        try:
            more = True
            while more:
                requests, more = self._next_group()
                if requests:
                    _deliver(self._execute(store, requests))
        finally:
            store.close()

    def _next_group(self) -> tuple[list[_Request], bool]:
        """What is queued, at least one request unless the end was reached; and whether more may come."""
        requests: list[_Request] = []
        item = self._queue.get()
        while item is not None:
            requests.append(item)
            if len(requests) >= self._group:
                return requests, True
            try:
                item = self._queue.get_nowait()
            except queue.Empty:
                return requests, True
        return requests, False

    def _execute(self, store: SqlStore, requests: list[_Request]) -> list[_Answer]:
        failed_at, pause_s = 0.0, RETRY_S[0]
        while True:
            answers: list[_Answer] = []
            try:
                with store.transaction():
                    for request in requests:
                        answers.append(_attempt(store, request, alone=len(requests) == 1))
                self.commits += 1
            except BaseException as error:  # the thread outlives whatever a request raises
                failed_at = failed_at or time.monotonic()
                if self._may_pass(error, failed_at):
                    if pause_s == RETRY_S[0]:
                        endless = self.patience_s == math.inf
                        span = "until it works" if endless else f"for {self.patience_s:g} s"
                        self._on_trouble(f"{error}: it is tried again {span}")
                    self._closing.wait(pause_s)
                    pause_s = min(2 * pause_s, RETRY_S[1])
                    continue
                answers = [(request, None, error) for request in requests]
            else:
                if failed_at:
                    self._on_trouble("the job database works again")
            self.requests += len(requests)
            return answers

    def _may_wait(self, waited_s: float) -> bool:
        """Whether the store still has to find out what became of a commit whose connection was lost."""
        return waited_s < OUTCOME_S or (waited_s < self.patience_s and not self._closing.is_set())

    def _may_pass(self, error: BaseException, since: float) -> bool:
        if not (isinstance(error, StoreError) and error.transient) or self._closing.is_set():
            return False
        return time.monotonic() - since < self.patience_s


def _attempt(store: SqlStore, request: _Request, *, alone: bool) -> _Answer:
    if alone:  # a refusal undoes the whole transaction, which is its own
        return request, request.function(store), None
    try:
        with store.transaction():
            return request, request.function(store), None
    except Exception as error:
        return request, None, error


def _deliver(answers: list[_Answer]) -> None:
    """Resolve the futures; an event loop is woken once for all of its own."""
    by_loop: dict[asyncio.AbstractEventLoop, list[_Answer]] = {}
    own: list[_Answer] = []
    for answer in answers:
        loop = answer[0].loop
        (own if loop is None else by_loop.setdefault(loop, [])).append(answer)
    for loop, those in by_loop.items():
        try:
            loop.call_soon_threadsafe(_resolve, those)
        except RuntimeError:  # the loop is closed: nobody waits
            continue
    _resolve(own)


def _resolve(answers: list[_Answer]) -> None:
    for request, value, error in answers:
        future = request.future
        if future.cancelled() or future.done():
            continue
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(value)
