"""Notices: what one process committed wakes those that it concerns, in other processes and on other hosts.

PostgreSQL delivers them with the commit, in the order of commits, to every connection that listens then; on
SQLite there is nobody else to be told. A notice says where to look, never what happened: one that was missed
while a connection was away is made up for by looking.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nas_hpc.errors import NasHpcError, StoreError

if TYPE_CHECKING:
    from nas_hpc.store.sql import SqlStore

CHANNEL = "nas_hpc"
"""On which they are sent: JSON lists of sender, topic and key."""

JOBS = "jobs"
"""Key: workflow. Jobs became runnable, or were killed: launchers have to look at what has new events."""
EDITED = "edited"
"""Key: workflow. Jobs were modified or removed, which leaves no event: launchers have to look at all."""
FINISHED = "finished"
"""Key: creator. Evaluations of that search became final."""
SLOTS = "slots"
"""Key: lease. It was opened or ended, or its launcher told its slots."""

LONGEST = 4000
"""Bytes of a key; a longer one is told as an empty one. PostgreSQL takes notices of less than 8000 bytes."""

PAUSE_S = (0.1, 5.0)
"""First and longest pause before it is tried again to connect."""


@dataclass(frozen=True, slots=True)
class Notice:
    """Something of ``topic`` changed for ``key``; an empty key: for any."""

    sender: str
    """``Store.sender`` of whoever changed it."""
    topic: str
    key: str


def write_notice(notice: Notice) -> str:
    """The text that is sent."""
    key = notice.key if len(json.dumps(notice.key)) <= LONGEST else ""
    return json.dumps([notice.sender, notice.topic, key])


def read_notice(text: str) -> Notice | None:
    """What it says; None for what is no notice of ours."""
    try:
        parts = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(parts, list) or len(parts) != 3 or not all(isinstance(part, str) for part in parts):
        return None
    return Notice(*parts)


class Listener:
    """A thread that waits for notices on a connection of its own, without polling.

    ``open_`` opens the store, in the thread. The constructor returns when notices are delivered: look once
    after that. ``on_notice`` gets each, its own process's too; ``on_trouble`` a line when the connection is
    lost; ``on_reconnected`` is called when notices are delivered again after a gap, in which some were
    missed: look at everything. All are called in the thread; a RuntimeError of theirs (the loop is closed)
    ends it. Raises what ``open_`` raises, StoreError for a database without notices.
    """

    def __init__(
        self,
        open_: Callable[[], SqlStore],
        on_notice: Callable[[Notice], object],
        on_trouble: Callable[[str], object] = lambda line: None,
        on_reconnected: Callable[[], object] = lambda: None,
    ) -> None:
        self._open = open_
        self._on_notice = on_notice
        self._on_trouble = on_trouble
        self._on_reconnected = on_reconnected
        self._closing = False
        self._wake_read, self._wake_write = os.pipe()
        self._lock = threading.Lock()
        ready: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, args=(ready,), name="listener", daemon=True)
        self._thread.start()
        try:
            ready.result()
        except BaseException:
            self.close()
            raise

    def close(self, timeout_s: float | None = None) -> None:
        """End the thread and its connection. May be called twice; not in the thread."""
        with self._lock:
            if not self._closing:
                self._closing = True
                os.write(self._wake_write, b"x")
        self._thread.join(timeout_s)

    # -- the thread --------------------------------------------------------------------------------
    def _run(self, ready: Future[None]) -> None:
        pause_s, told = PAUSE_S[0], False
        try:
            while not self._closing:
                try:
                    with self._open() as store:
                        self._listen(store, ready)
                        pause_s, told = PAUSE_S[0], False
                        self._wait(store)
                except NasHpcError as error:
                    if not ready.done():
                        ready.set_exception(error)
                        return
                    if not told and not self._closing:
                        self._on_trouble(f"{error}: notices of others are missed until it is back")
                        told = True
                    self._pause(pause_s)
                    pause_s = min(2 * pause_s, PAUSE_S[1])
        except RuntimeError:  # nobody is there to be told
            pass
        except BaseException as error:
            if not ready.done():
                ready.set_exception(error)
                return
            raise
        finally:
            with self._lock:
                os.close(self._wake_read)
                os.close(self._wake_write)
                self._closing = True

    def _listen(self, store: SqlStore, ready: Future[None]) -> None:
        if not store.shared:
            raise StoreError("a database that one launcher has for itself sends no notices")
        with store.driver() as driver:
            driver.add_notify_handler(lambda notify: self._hear(notify.payload))
            driver.execute(f"LISTEN {CHANNEL}")
        if not ready.done():
            ready.set_result(None)
        else:
            self._on_reconnected()

    def _wait(self, store: SqlStore) -> None:
        """Until ``close``. Raises StoreError when the connection is lost."""
        with store.driver() as driver:
            lowest: Any = driver.pgconn
            poll = select.poll()
            poll.register(lowest.socket, select.POLLIN)
            poll.register(self._wake_read, select.POLLIN)
            while not self._closing:
                poll.poll()
                lowest.consume_input()  # raises when the other end is gone
                while (notify := lowest.notifies()) is not None:
                    self._hear(notify.extra.decode("utf-8", "replace"))

    def _hear(self, text: str) -> None:
        notice = read_notice(text)
        if notice is not None:
            self._on_notice(notice)

    def _pause(self, duration_s: float) -> None:
        with contextlib.suppress(OSError):
            select.select([self._wake_read], [], [], duration_s)
