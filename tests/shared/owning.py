"""An owner of a site's job database: the launcher's part for commands, in a thread or as a process."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from nas_hpc.cli.sites import new_site
from nas_hpc.launcher.command_calls import CommandCalls, Outside
from nas_hpc.launcher.endpoint import EndpointServer
from nas_hpc.site import Site
from nas_hpc.store import open_site, owner
from nas_hpc.store.writer import Writer
from nas_hpc.wire import Message, StoreCall

SHARED = "NAS_HPC_SHARED_FILESYSTEM"
Interfere = Callable[[StoreCall], None]


def shared_site(directory: Path) -> Site:
    """A new site that is on a shared file system by its settings."""
    site = new_site(str(directory / "site"))
    text = site.file.read_text()
    assert text.rstrip().endswith("[settings]")
    site.file.write_text(text + 'shared_filesystem = "yes"\n')
    return site


class Owning:
    """Own the database and serve calls until ``close``, in a thread with a loop of its own.

    ``listens``: with an endpoint; else there is only the inbox. ``answers``: calls are answered.
    ``before`` and ``after`` are called in the database's thread around each call, in its transaction.
    """

    def __init__(
        self,
        site: Site,
        *,
        listens: bool = True,
        answers: bool = True,
        before: Interfere = lambda call: None,
        look_s: float = 0.05,
    ) -> None:
        self.site, self.changes, self.calls = site, 0, []  # type: ignore[var-annotated]
        self._listens, self._answers, self._before, self._look_s = listens, answers, before, look_s
        self._ownership = owner.own(site, owner.LAUNCHER)
        self._ready, self._over = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))
        self._thread.start()
        assert self._ready.wait(60)

    async def _serve(self) -> None:
        loop = asyncio.get_running_loop()
        self._end = asyncio.Event()
        self._loop = loop
        writer = Writer(partial(open_site, self.site))

        def write(work: Callable[[Any], Any], then: Callable[[Any], None]) -> None:
            writer.submit(work).add_done_callback(lambda done: then(done.result()))

        def send(peer: bytes, message: Message) -> bool:
            return self._answers and server.send(peer, message)

        def changed(everything: bool) -> None:
            self.changes += 1

        calls = CommandCalls(self.site, Outside(write, send, changed, print, self._end.is_set))

        def receive(peer: bytes, message: Message) -> None:
            assert isinstance(message, StoreCall)
            self.calls.append(message.call)
            self._before(message)
            calls.receive(peer, message)

        if self._listens:
            server = EndpointServer(self.site.endpoint, "lease", receive, print)

        def look() -> None:
            calls.look_into_inbox()
            loop.call_later(self._look_s, look)

        if self._look_s:
            look()
        self._ready.set()
        await self._end.wait()
        await calls.close()
        if self._listens:
            server.close()
        await asyncio.to_thread(writer.close)

    def close(self) -> None:
        if not self._over.is_set():
            self._over.set()
            self._loop.call_soon_threadsafe(self._end.set)
            self._thread.join(20)
            self._ownership.release()

    def __enter__(self) -> Owning:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def main() -> None:
    """``SITE MOMENT CALL``: an owner that dies by SIGKILL when CALL comes, before or after its commit."""
    site, moment, name = Site(Path(sys.argv[1])), sys.argv[2], sys.argv[3]
    from nas_hpc.launcher import command_calls

    def die(call: StoreCall) -> None:
        if call.call == name:
            os.kill(os.getpid(), 9)

    answer = command_calls.CommandCalls._answer

    def last(self: CommandCalls, peer: bytes, call: StoreCall, told: Any) -> None:
        die(call)  # committed, and the answer is not sent any more
        answer(self, peer, call, told)

    if moment == "committed":
        command_calls.CommandCalls._answer = last  # type: ignore[method-assign]
    with Owning(site, before=die if moment == "received" else lambda call: None):
        print("ready", flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
