"""A way to a server that can be cut: a TCP proxy that loses a connection at a chosen moment."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from enum import Enum, auto


class Cut(Enum):
    """What becomes of a connection when a piece that the client sends passes by."""

    NOT = auto()
    BEFORE = auto()
    """The piece does not reach the server, which is not told that the client is cut off."""
    AFTER = auto()
    """The server gets the piece and answers; the answer does not reach the client."""


class Way:
    """Accepts connections on ``port`` of 127.0.0.1 and passes them on to another port."""

    def __init__(self, target: int, cut: Callable[[bytes], Cut] = lambda piece: Cut.NOT) -> None:
        self.cut = cut
        self.cuts = 0
        self.closed = False
        """Whether new connections are refused, as long as this is true."""
        self._target = target
        self._held: list[socket.socket] = []
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        self._accepting = threading.Thread(target=self._accept, daemon=True)
        self._accepting.start()

    def __enter__(self) -> Way:
        return self

    def __exit__(self, *_: object) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._accepting.join(10)
        for one in self._held:
            _close(one)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listening.accept()
            except OSError:
                return
            if self.closed:
                _close(client)
                continue
            server = socket.create_connection(("127.0.0.1", self._target))
            self._held += [client, server]
            threading.Thread(target=self._forth, args=(client, server), daemon=True).start()
            threading.Thread(target=self._back, args=(server, client), daemon=True).start()

    def _forth(self, client: socket.socket, server: socket.socket) -> None:
        with suppress(OSError):
            while piece := client.recv(65536):
                cut = self.cut(piece)
                if cut is not Cut.NOT:
                    self.cuts += 1
                    if cut is Cut.AFTER:
                        client.shutdown(socket.SHUT_WR)  # nothing more comes back
                        server.sendall(piece)
                        server.shutdown(socket.SHUT_WR)  # it answers, then finds the client gone
                    else:
                        client.shutdown(socket.SHUT_RDWR)
                    return
                server.sendall(piece)
            _close(server)

    @staticmethod
    def _back(server: socket.socket, client: socket.socket) -> None:
        with suppress(OSError):
            while piece := server.recv(65536):
                client.sendall(piece)
        with suppress(OSError):
            client.shutdown(socket.SHUT_RDWR)


def _close(one: socket.socket) -> None:
    with suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)
    one.close()
