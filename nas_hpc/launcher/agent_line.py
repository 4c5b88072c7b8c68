"""An agent's connection with the launcher, in an asyncio loop."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path

import zmq

from nas_hpc.errors import ProtocolError
from nas_hpc.evaluator.connection import Connection, Link
from nas_hpc.wire import Message


class Line:
    """Calls ``on_message`` for every message, ``on_loss`` when a launcher that was there is gone, and
    ``on_trouble`` with a line for a person about an endpoint that is no use; all in the running loop.
    """

    def __init__(
        self,
        endpoint: Path,
        first: Callable[[], Message],
        *,
        on_message: Callable[[Message], None],
        on_loss: Callable[[], None],
        on_trouble: Callable[[str], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._on_message, self._on_trouble = on_message, on_trouble
        self._connection = Connection(endpoint, first, on_loss=lambda why: on_loss(), on_link=self._watch)
        self._watched: tuple[int, ...] = ()
        self._timer: asyncio.TimerHandle | None = None
        self._refusal = ""

    def begin(self) -> None:
        """Look for a launcher, from now on."""
        self._tend()

    @property
    def greeted(self) -> bool:
        """Whether a launcher has answered."""
        return self._connection.greeted

    @property
    def lost_since(self) -> float:
        """Loop time at which the last launcher was lost."""
        return self._connection.lost_since

    @lost_since.setter
    def lost_since(self, time: float) -> None:
        self._connection.lost_since = time

    def greet(self) -> None:
        """The launcher has answered the first message."""
        self._connection.greet()

    def send(self, message: Message) -> None:
        """Send to the launcher; nothing is sent while there is none."""
        self._connection.send(message)
        self._look_again()

    def drop(self, why: str) -> None:
        """Give this connection up, and look for a launcher again."""
        self._connection.lose(why)
        self._plan()

    def close(self) -> None:
        """End the connection; what was sent before still leaves, for a moment."""
        if self._timer is not None:
            self._timer.cancel()
        self._connection.close()

    # -- the loop ------------------------------------------------------------------------------------------
    def _watch(self, link: Link | None) -> None:
        for descriptor in self._watched:
            self._loop.remove_reader(descriptor)
        self._watched = ()
        if link is not None:
            self._watched = (link.socket.FD, link.monitor.FD)
            for descriptor in self._watched:
                self._loop.add_reader(descriptor, self._drain)
            self._loop.call_soon(self._drain)

    def _tend(self) -> None:
        try:
            self._connection.tend()
        except ProtocolError as error:
            self._on_trouble(str(error))
        self._plan()

    def _plan(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(self._connection.due(), self._tend)

    def _drain(self) -> None:
        try:
            for message in self._connection.receive():
                self._on_message(message)
        except ProtocolError as error:
            self._on_trouble(f"a message of the launcher was not understood: {error}")
        refusal = self._connection.refusal
        if refusal and refusal != self._refusal:
            self._on_trouble(refusal)
        self._refusal = refusal
        self._look_again()
        self._plan()

    def _look_again(self) -> None:
        """The sockets' descriptors are edge-triggered: using a socket may swallow the edge of what came."""
        link = self._connection.link
        if link is not None:
            with contextlib.suppress(zmq.ZMQError):
                if (int(link.socket.EVENTS) | int(link.monitor.EVENTS)) & zmq.POLLIN:
                    self._loop.call_soon(self._drain)
