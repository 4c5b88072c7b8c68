"""A keeper's end of the socket to its agent: JSON objects, one a line, in both directions.

Standard library only, Python 3.8 or later: it is loaded in the user's interpreters.
"""

from __future__ import annotations

import json

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from typing import Any

_CHUNK = 1 << 18


class Gone(Exception):
    """The other end is closed: the agent has ended."""


class Line:
    """Lines over ``end``, which never blocks."""

    def __init__(self, end: socket.socket) -> None:
        end.setblocking(False)
        self.end = end
        self._received = bytearray()
        self.unsent = bytearray()
        """What the socket did not take; ``flush`` when it takes more."""

    def receive(self) -> list[dict[str, Any]]:
        """The messages that came. Raises Gone."""
        try:
            data = self.end.recv(_CHUNK)
        except BlockingIOError:
            return []
        except OSError:
            data = b""
        if not data:
            raise Gone
        self._received += data
        if b"\n" not in data:
            return []
        lines = self._received.split(b"\n")
        self._received = lines.pop()
        return [json.loads(line) for line in lines]

    def say(self, message: dict[str, Any], result: bytes = b"") -> None:
        """Send a message, with ``result``, which is JSON already, as its field of that name. Raises Gone."""
        line = json.dumps(message).encode("ascii")
        if result:
            line = line[:-1] + b', "result": ' + result + b"}"
        self.unsent += line + b"\n"
        self.flush()

    def flush(self) -> None:
        """Send what waits. Raises Gone."""
        if not self.unsent:
            return
        try:
            sent = self.end.send(self.unsent)
        except BlockingIOError:
            return
        except OSError:
            raise Gone from None
        del self.unsent[:sent]
