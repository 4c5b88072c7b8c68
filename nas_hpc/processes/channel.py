"""How the children of a keeper tell it what became of their attempt: a datagram socket that they share.

Standard library only, Python 3.8 or later. A datagram arrives whole or not at all, so a child that is killed
in the middle leaves nothing torn, and what was sent before the end of a child is there when its end is seen.
"""

from __future__ import annotations

import errno
import json
import socket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from nas_hpc.processes.remains import Remains

_LARGEST = 1 << 17


class Channel:
    """One pair of sockets; ``receive`` is for the keeper, the rest for its children."""

    def __init__(self, sending: socket.socket, receiving: socket.socket | None) -> None:
        self.sending = sending
        self.receiving = receiving
        self._buffer = bytearray(_LARGEST if receiving else 0)

    @classmethod
    def make(cls) -> Channel:
        """A fresh pair."""
        receiving, sending = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        receiving.setblocking(False)
        return cls(sending, receiving)

    @classmethod
    def inherited(cls, fd: int) -> Channel:
        """The sending side in a program that was exec'd."""
        return cls(socket.socket(fileno=fd), None)

    def tell(self, serial: int, result: dict[str, Any], left: Remains) -> bool:
        """Report a result; False if it is too large for a message: then ``refer`` to it."""
        return self._send(_header(serial, "result", left), json.dumps(result))

    def refer(self, serial: int, left: Remains) -> None:
        """Report that the result stands in result.json."""
        self._send(_header(serial, "file", left))

    def refuse(self, serial: int, reason: str) -> None:
        """Report that the program could not be started."""
        self._send([serial, "refused", reason, "", False, False])

    def _send(self, header: list[Any], body: str = "") -> bool:
        message = f"{json.dumps(header)}\n{body}".encode("ascii")
        try:
            if len(message) > _LARGEST:
                return False
            self.sending.send(message)
        except OSError as error:  # else the keeper is gone, and this process with it
            return error.errno not in (errno.EMSGSIZE, errno.ENOBUFS)
        return True

    def receive(self) -> tuple[int, str, str, str, bool, bool, bytes] | None:
        """(serial, kind, tail or reason, trouble, kept, alone, result as JSON), or None if nothing is
        there.
        """
        assert self.receiving is not None
        try:
            size = self.receiving.recv_into(self._buffer)
        except BlockingIOError:
            return None
        header, _, body = bytes(self._buffer[:size]).partition(b"\n")
        serial, kind, text, trouble, kept, alone = json.loads(header)
        return serial, kind, text, trouble, kept, alone, body


def _header(serial: int, kind: str, left: Remains) -> list[Any]:
    return [serial, kind, left.tail, left.trouble, left.kept, left.alone]
