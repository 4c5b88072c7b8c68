"""An agent's end of a keeper: starting it, messages in both directions, and its death. Runs in an asyncio
loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import subprocess
from collections.abc import Callable, Mapping
from typing import Any

from nas_hpc.processes import boot, sessions

_CHUNK = 1 << 18
_DEATH_S = 10.0


class Link:
    """A running keeper. ``on_message`` gets each message, ``on_gone`` is called once when the keeper died."""

    def __init__(
        self,
        *,
        name: str,
        interpreter: str,
        isolated: bool,
        environ: Mapping[str, str],
        directory: str,
        log_fd: int,
        nofile: int,
        on_message: Callable[[Link, dict[str, Any]], None],
        on_gone: Callable[[Link], None],
    ) -> None:
        """Start the keeper. Raises OSError if the interpreter cannot be started."""
        self.name = name
        self._loop = asyncio.get_running_loop()
        self._on_message = on_message
        self._on_gone = on_gone
        self._unsent = bytearray()
        self._received = bytearray()
        self.open = True
        ours, theirs = socket.socketpair()
        self._socket = ours
        self._output = os.memfd_create("keeper", os.MFD_CLOEXEC)  # what modules print when they are imported
        arguments = (theirs.fileno(), log_fd, os.getpid(), nofile)
        command = boot.command(interpreter, "keeper", *arguments, isolated=isolated)
        try:
            self.process = subprocess.Popen(
                command,
                pass_fds=(theirs.fileno(), log_fd),
                stdin=subprocess.DEVNULL,
                stdout=self._output,
                stderr=self._output,
                env=dict(environ),
                cwd=directory,
                start_new_session=True,
            )
        except OSError:
            ours.close()
            os.close(self._output)
            raise
        finally:
            theirs.close()
        with contextlib.suppress(ProcessLookupError):
            os.write(log_fd, sessions.line(self.process.pid, "keeper", name))
        ours.setblocking(False)
        self._loop.add_reader(ours.fileno(), self._readable)

    def send(self, message: Mapping[str, Any]) -> None:
        """Send a message; what the socket does not take now is kept and sent later."""
        if not self.open:
            return
        data = json.dumps(message).encode("ascii") + b"\n"
        if self._unsent:
            self._unsent += data
            return
        try:
            sent = self._socket.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            return  # the reader sees the end and reports it
        if sent < len(data):
            self._unsent += data[sent:]
            self._loop.add_writer(self._socket.fileno(), self._writable)

    def _writable(self) -> None:
        try:
            sent = self._socket.send(self._unsent)
        except BlockingIOError:
            return
        except OSError:
            sent = len(self._unsent)
        del self._unsent[:sent]
        if not self._unsent:
            self._loop.remove_writer(self._socket.fileno())

    def _readable(self) -> None:
        try:
            data = self._socket.recv(_CHUNK)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._close()
            self._on_gone(self)
            return
        self._received += data
        if b"\n" not in data:
            return
        lines = self._received.split(b"\n")
        self._received = lines.pop()
        for line in lines:
            if not self.open:
                return
            self._on_message(self, json.loads(line))

    def _close(self) -> None:
        if self.open:
            self.open = False
            self._loop.remove_reader(self._socket.fileno())
            self._loop.remove_writer(self._socket.fileno())
            self._socket.close()

    def bury(self) -> str:
        """Blocking: make sure that the keeper is dead, wait for it; how it ended, with its last words."""
        self.process.kill()
        sessions.end_session(self.process.pid)  # the pid is its own until it is waited for
        try:
            code = self.process.wait(_DEATH_S)
        except subprocess.TimeoutExpired:
            return "does not end"
        size = os.fstat(self._output).st_size
        words = os.pread(self._output, 4096, max(0, size - 4096)).decode(errors="replace")
        os.close(self._output)
        how = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
        return "; ".join([how, *words.strip().splitlines()[-1:]])

    async def end(self, timeout_s: float) -> None:
        """Close the socket, at which the keeper ends its sessions and exits; after ``timeout_s`` it is
        killed.
        """
        self._close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            await asyncio.to_thread(self.process.wait, timeout_s)
        await asyncio.to_thread(self.bury)
