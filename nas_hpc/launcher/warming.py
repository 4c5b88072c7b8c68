"""The warm interpreters of one agent: whom they serve, when they have to go, and which modules do without."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from nas_hpc.launcher.attempt import Attempt, named
from nas_hpc.processes import canary, interpreters
from nas_hpc.processes.interpreters import Interpreters, Warm
from nas_hpc.processes.link import Link
from nas_hpc.processes.orders import Key

FAREWELL_S = 10.0
"""A keeper that is not needed any more gets so long to end by itself."""


@dataclass(frozen=True, slots=True)
class WarmingHooks:
    """What the agent does for them."""

    open: Callable[[str, Mapping[str, str]], Link]
    """Start a keeper in this interpreter and environment. Raises OSError."""
    close: Callable[[Link, float], None]
    """End a keeper, by force after so many seconds."""
    order: Callable[[Attempt, Link, Mapping[str, str]], None]
    """Have the keeper start the attempt with these variables of its own."""
    fresh: Callable[[Attempt], None]
    """Start the attempt in an interpreter of its own."""
    refuse: Callable[[Attempt, str], None]
    """The attempt cannot be started, for this reason."""
    note: Callable[[str], None]


class Warming:
    """Lives in the agent's loop; ``attempts`` are the agent's."""

    def __init__(self, attempts: Mapping[Key, Attempt], hooks: WarmingHooks) -> None:
        self._attempts, self._hooks = attempts, hooks
        self._loop = asyncio.get_running_loop()
        self._interpreters = Interpreters()
        self._of_link: dict[Link, Warm] = {}

    def quiet(self) -> None:
        """Look after nobody any more."""
        for warm in self._of_link.values():
            warm.quiet()

    # -- starting ------------------------------------------------------------------------------------------
    def start(self, attempt: Attempt) -> None:
        """Have the attempt forked from an interpreter that has imported its run function's module."""
        key = interpreters.key_of(attempt.order)
        if self._interpreters.is_unfit(key):
            self._hooks.fresh(attempt)
            return
        warm = self._interpreters.get(key)
        if warm is None:
            try:
                link = self._hooks.open(key[0], interpreters.shared_environ(key))
            except OSError as error:
                reason = f"cannot start the interpreter {key[0]!r}: {error.strerror}"
                self._hooks.refuse(attempt, reason)
                return
            link.send({"op": "warm", "run": key[2], "sys_path": key[1], "threads": key[3]})
            warm = self._of_link[link] = Warm(key, link)
            for old in self._interpreters.add(warm):
                self._retire(old)
        attempt.warm = warm
        if warm.ready:
            self._send(attempt, warm)
        else:
            warm.waiting[attempt.order.key] = attempt.order

    def _send(self, attempt: Attempt, warm: Warm) -> None:
        environ = {name: attempt.environ[name] for name in interpreters.OF_ATTEMPT if name in attempt.environ}
        warm.running.add(attempt.order.key)
        self._hooks.order(attempt, warm.link, environ)

    def withdraw(self, attempt: Attempt) -> None:
        """The attempt waits for an import no longer; the interpreter goes, too, if nobody else does."""
        warm = attempt.warm
        if warm is not None:
            warm.waiting.pop(attempt.order.key, None)
            if not warm.ready and not warm.waiting:
                self._discard(warm)

    # -- what keepers tell ---------------------------------------------------------------------------------
    def ready(self, link: Link, message: Mapping[str, Any]) -> None:
        """An import is done, or has failed: then every attempt tells how."""
        warm = self._of_link.get(link)
        if warm is None:
            return
        warm.ready = True
        waiting = self._take_waiting(warm)
        if message["unsafe"]:
            self._discard(warm)
            self._unfit(warm, f"{message['unsafe']}: its children could hang")
            for attempt in waiting:
                self._hooks.fresh(attempt)
            return
        for attempt in waiting:
            self._send(attempt, warm)
        if message["failed"]:
            self._retire(warm)  # the next evaluation finds a corrected module

    def _take_waiting(self, warm: Warm) -> list[Attempt]:
        waiting = [self._attempts[key] for key in warm.waiting if key in self._attempts]
        warm.waiting.clear()
        return waiting

    def started(self, warm: Warm) -> None:
        """A child of it runs."""
        if not warm.proven and warm.canary is None:
            warm.canary = self._loop.call_later(canary.FIRST_END_S, self._look_after, warm)

    @staticmethod
    def proven(warm: Warm) -> None:
        """A child of it has come to an end by itself."""
        warm.proven = True
        warm.quiet()

    def stale(self, warm: Warm, file: str) -> None:
        """A file that it had imported changed."""
        if self._interpreters.get(warm.key) is warm:
            self._hooks.note(f"{file} changed: a new interpreter imports it")
        self._retire(warm)

    def _look_after(self, warm: Warm) -> None:
        """No child has ended yet: those that hang are killed and run again in fresh interpreters."""
        warm.canary = None
        running = [self._attempts[key] for key in warm.running if key in self._attempts]
        hung = [attempt for attempt in running if attempt.pid and canary.looks_hung(attempt.pid)]
        if hung:
            self._unfit(warm, f"its first evaluations did nothing for {canary.FIRST_END_S:g} s")
            self._retire(warm)
        elif running:
            warm.canary = self._loop.call_later(canary.FIRST_END_S, self._look_after, warm)
        for attempt in hung:
            warm.link.send({"op": "kill", **named(attempt.order.key), "drop": True})

    # -- ends ----------------------------------------------------------------------------------------------
    def gone(self, link: Link) -> Warm | None:
        """A keeper died: the interpreter that it was, if any."""
        warm = self._of_link.pop(link, None)
        if warm is not None:
            self._interpreters.remove(warm)
        return warm

    def buried(self, warm: Warm, how: str) -> None:
        """A dead one is cleaned up. Who waited for its import starts in a process of its own, which shows
        what is wrong with the module.
        """
        if not warm.waiting:
            return
        waiting = self._take_waiting(warm)
        if self._interpreters.crashed_before(warm.key):
            self._unfit(warm, f"its import ended the interpreter: {how}")
        for attempt in waiting:
            self._hooks.fresh(attempt)

    def _unfit(self, warm: Warm, why: str) -> None:
        if self._interpreters.mark_unfit(warm.key, why):
            module = warm.key[2].rpartition(".")[0]
            self._hooks.note(f"{module} is not fork-safe ({why}); its evaluations run in fresh interpreters")

    def _retire(self, warm: Warm) -> None:
        """Give it no new orders; it ends when its children have ended."""
        self._interpreters.remove(warm)
        warm.link.send({"op": "retire"})

    def _discard(self, warm: Warm) -> None:
        """End an interpreter that has no children."""
        self._interpreters.remove(warm)
        self._of_link.pop(warm.link, None)
        self._hooks.close(warm.link, FAREWELL_S if warm.ready else 0.0)
