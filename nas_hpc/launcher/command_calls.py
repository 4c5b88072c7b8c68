"""Commands' calls of the job database, carried out by the launcher that owns it.

They come over the endpoint, or as files of the site's inbox, which is looked into at each heartbeat, and more
often while something comes. What they changed is looked at afterwards.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

from nas_hpc.errors import LauncherGone, ProtocolError
from nas_hpc.site import Site
from nas_hpc.store import calls, inbox
from nas_hpc.store.base import Store
from nas_hpc.wire import Message, StoreAnswer, StoreCall

T = TypeVar("T")
QUICK_S, SOON_S = 0.5, 2.0
"""Until the next look into the inbox: while calls of one command follow each other, and after that."""
QUICK_LOOKS = 20
_WITH_EVENTS = ("add_jobs", "set_state")


class _Write(Protocol):
    def __call__(self, work: Callable[[Store], T], then: Callable[[T], None]) -> None: ...


@dataclass(frozen=True, slots=True)
class Outside:
    """What the calls need from the launcher."""

    write: _Write
    send: Callable[[bytes, Message], bool]
    changed: Callable[[bool], None]
    """A command changed something; whether it may be what leaves no event."""
    note: Callable[[str], None]
    ended: Callable[[], bool]


class CommandCalls:
    """All methods run in the loop's thread."""

    def __init__(self, site: Site, outside: Outside) -> None:
        self._site, self._outside = site, outside
        self._loop = asyncio.get_running_loop()
        self._look: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._looks = QUICK_LOOKS
        """How many looks have found nothing since something came."""
        self._at_work: set[str] = set()
        """Names of files whose calls wait for the database."""

    # -- over the endpoint ---------------------------------------------------------------------------
    def receive(self, peer: bytes, call: StoreCall) -> None:
        """Handle a call; the answer follows its commit."""
        if self._outside.ended():
            error = LauncherGone("it is ending: the call has to be made again")
            refusal = next(calls.messages(call.request, calls.Answer([], error=error)))
            self._outside.send(peer, refusal)
            return
        self._outside.write(self._work(call), partial(self._answer, peer, call))

    def _work(self, call: StoreCall) -> Callable[[Store], calls.Answer]:
        def work(store: Any) -> calls.Answer:
            return calls.execute(store, call)

        return work

    def _answer(self, peer: bytes, call: StoreCall, answer: calls.Answer) -> None:
        self._send(peer, calls.messages(call.request, answer))
        if calls.writes(call) and answer.error is None:
            self._outside.changed(call.call not in _WITH_EVENTS)

    def _send(self, peer: bytes, parts: Iterator[StoreAnswer]) -> None:
        """A part in each turn of the loop."""
        part = next(parts, None)
        if part is not None and self._outside.send(peer, part) and not part.last:
            self._loop.call_soon(self._send, peer, parts)

    # -- the inbox -----------------------------------------------------------------------------------
    def look_into_inbox(self) -> None:
        """Take in what lies there, now and for a while afterwards."""
        if self._look is None and not self._outside.ended():
            self._look = self._loop.create_task(self._take_in())

    async def _take_in(self) -> None:
        found = 0
        try:
            for path in await asyncio.to_thread(inbox.waiting, self._site):
                if path.name not in self._at_work:
                    found += await self._take(path)
        finally:
            self._look = None
        self._looks = 0 if found else self._looks + 1
        if (found or self._looks < QUICK_LOOKS) and not self._outside.ended():
            self._plan(QUICK_S)
        elif self._at_work:
            self._plan(SOON_S)

    def _plan(self, delay_s: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(delay_s, self.look_into_inbox)

    async def _take(self, path: Path) -> bool:
        """Have the call of a file carried out; whether there is one."""
        try:
            call = await asyncio.to_thread(inbox.read_call, path)
        except ProtocolError as error:
            self._outside.note(f"left in the inbox and not understood: {error}")
            await asyncio.to_thread(inbox.reject, self._site, path, error)
            return False
        if call is None:
            return False
        self._at_work.add(path.name)
        self._outside.write(self._work(call), partial(self._taken, path, call))
        return True

    def _taken(self, path: Path, call: StoreCall, answer: calls.Answer) -> None:
        if calls.writes(call) and answer.error is not None:
            self._outside.note(f"a request left in the inbox ({call.call}) is refused: {answer.error}")
        elif calls.writes(call):
            self._outside.changed(call.call not in _WITH_EVENTS)
        settled = self._loop.run_in_executor(None, inbox.settle, self._site, path, call, answer)
        settled.add_done_callback(lambda _: self._at_work.discard(path.name))

    async def close(self) -> None:
        """Look no more."""
        if self._timer is not None:
            self._timer.cancel()
        if self._look is not None:
            self._look.cancel()
            await asyncio.gather(self._look, return_exceptions=True)
