"""The bridge as a process: starting it, speaking with it, starting it again when it dies.

Everything happens in the caller's thread. A request is sent at once and kept until it is answered: to the
next bridge it is sent again. All of them may be done twice without harm.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import select
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from nas_hpc.errors import ConfigError, NasHpcError
from nas_hpc.integrations.balsam.protocol import Answer, BridgeError, Event
from nas_hpc.integrations.balsam.where import find_python
from nas_hpc.processes.environment import recordable

DATABASE_VARIABLE = "BALSAM_DB_PATH"
PROGRAM = Path(__file__).with_name("bridge.py")
RESTARTS_S = (0.1, 0.3, 1.0, 2.0, 5.0)
"""Seconds before each new start; a bridge that died so often without an answer is given up, and the first one
after its second death."""
_KEPT = ("BALSAM_", "NAS_HPC_", "PG")

_log = logging.getLogger("nas_hpc.balsam")


class Bridge:
    """A bridge to the database ``database`` (None: BALSAM_DB_PATH). See ``protocol.Link``.

    Raises ConfigError where there is no database named, or no interpreter of Balsam's.
    """

    def __init__(self, database: Path | str | None = None, environ: Mapping[str, str] = os.environ) -> None:
        named = os.fspath(database) if database is not None else environ.get(DATABASE_VARIABLE, "")
        if not named:
            raise ConfigError(
                f"no Balsam database: {DATABASE_VARIABLE} is not set; source balsamactivate DATABASE sets it"
            )
        self.database = Path(os.path.abspath(os.path.expanduser(named)))
        self.python, self.found_by = find_python(environ)
        kept = {name: value for name, value in environ.items() if name.startswith(_KEPT) or name == "LOGNAME"}
        self._environ = {**recordable(environ), **kept}
        self._process: subprocess.Popen[bytes] | None = None
        self._words: IO[bytes] | None = None
        self._numbers = 0
        self._unanswered: dict[int, bytes] = {}
        self._watch: dict[str, Any] | None = None
        self._outgoing = b""
        self._rest = b""
        self._kept: list[Answer | Event] = []
        self._deaths = 0
        self._answered = False
        self._start_at = 0.0
        self._closed = False

    def __enter__(self) -> Bridge:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """Of the process, 0 between two."""
        return self._process.pid if self._process is not None else 0

    def fileno(self) -> int:
        """What becomes readable when something came; another one after a restart. Raises ConfigError."""
        self._tend()
        assert self._process is not None
        assert self._process.stdout is not None
        return self._process.stdout.fileno()

    def ask(self, do: str, **fields: Any) -> int:
        """Send a request; returns its id, which the Answer will have."""
        self._numbers += 1
        number = self._numbers
        line = json.dumps({"id": number, "do": do, **fields}).encode() + b"\n"
        self._unanswered[number] = line
        if do == "watch":
            self._watch = fields
        if self._process is not None:
            self._outgoing += line
        while self._outgoing and self._process is not None:  # it may have to be read from in between
            self._step(None)
        return number

    def call(self, do: str, *, timeout_s: float | None = None, **fields: Any) -> dict[str, Any]:
        """Send a request and wait for its answer; what else comes is kept for ``receive``.

        Raises BridgeError: it was not done; of kind "down", too, when ``timeout_s`` have passed.
        """
        number = self.ask(do, **fields)
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            for position, one in enumerate(self._kept):
                if isinstance(one, Answer) and one.id == number:
                    del self._kept[position]
                    if one.error is not None:
                        raise one.error
                    return one.ok or {}
            if deadline is not None and time.monotonic() >= deadline:
                self._unanswered.pop(number, None)
                raise BridgeError("down", f"the Balsam bridge gave no answer to {do} for {timeout_s:g} s")
            self._step(deadline)

    def receive(self, timeout_s: float | None = None) -> list[Answer | Event]:
        """Wait for answers and events, and return all that are there; none when ``timeout_s`` have passed
        (None: never; 0: only look).

        Raises NasHpcError when the bridge cannot be started any more.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            if self._kept:
                kept, self._kept = self._kept, []
                return kept
            self._step(deadline)
            if not self._kept and deadline is not None and time.monotonic() >= deadline:
                return []

    def close(self) -> None:
        """End the bridge."""
        self._closed = True
        process, self._process = self._process, None
        if process is not None:
            _end(process)
        if self._words is not None:
            self._words.close()

    # -- one step ----------------------------------------------------------------------------------
    def _step(self, deadline: float | None) -> None:
        """Start the process if there is none; write and read what goes, waiting until ``deadline``."""
        if not self._tend(deadline):
            return
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        poller = select.poll()
        poller.register(process.stdout, select.POLLIN)
        if self._outgoing:
            poller.register(process.stdin, select.POLLOUT)
        wait_ms = None if deadline is None else max(0.0, deadline - time.monotonic()) * 1000
        ready = dict(poller.poll(wait_ms))
        if process.stdin.fileno() in ready:
            try:
                written = os.write(process.stdin.fileno(), self._outgoing[: 1 << 16])
                self._outgoing = self._outgoing[written:]
            except BlockingIOError:
                pass
            except OSError:
                self._outgoing = b""  # it is dead: what is unanswered is sent again
        if process.stdout.fileno() in ready:
            self._read(process)

    def _read(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        data = os.read(process.stdout.fileno(), 1 << 20)
        if not data:
            self._died(process)
            return
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._take(json.loads(line))

    def _take(self, message: dict[str, Any]) -> None:
        if "event" in message:
            if message["event"] == "log":
                _log.warning("%s", message["text"])
            else:
                self._kept.append(Event(message["event"], message))
            return
        self._deaths, self._answered = 0, True
        number = message["id"]
        if self._unanswered.pop(number, None) is None:
            return  # asked again for a restart's sake
        error = message.get("error")
        told = None if error is None else BridgeError(error["kind"], error["message"])
        self._kept.append(Answer(number, message.get("ok"), told))

    # -- its life ----------------------------------------------------------------------------------
    def _tend(self, deadline: float | None = None) -> bool:
        """Have a process; False if ``deadline`` comes before the next start is due."""
        if self._closed:
            raise NasHpcError("the connection with the Balsam bridge is closed")
        if self._process is not None:
            return True
        wait_s = self._start_at - time.monotonic()
        if wait_s > 0:
            within = wait_s if deadline is None else min(wait_s, deadline - time.monotonic())
            time.sleep(max(0.0, within))  # there is nobody who could say something
            if within < wait_s:
                return False
        self._start()
        return True

    def _start(self) -> None:
        self._words = self._words or tempfile.TemporaryFile()  # noqa: SIM115 - for all starts
        self._words.seek(0)
        self._words.truncate()
        command = [
            os.fspath(self.python),
            "-E",
            os.fspath(PROGRAM),
            os.fspath(self.database),
            str(os.getpid()),
        ]
        try:
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._words, env=self._environ,
                cwd="/", start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            raise ConfigError(
                f"{self.python} (by {self.found_by}) cannot be started: {error.strerror or error}; "
                "launch_scripts/setup_balsam.sh makes an environment of Balsam's"
            ) from None
        assert process.stdin is not None
        os.set_blocking(process.stdin.fileno(), False)
        self._process = process
        self._rest = b""
        again = [] if self._watch is None or self._asks_watch() else [self._watch_line()]
        self._outgoing = b"".join([*self._unanswered.values(), *again])

    def _asks_watch(self) -> bool:
        return any(b'"do": "watch"' in line[:64] for line in self._unanswered.values())

    def _watch_line(self) -> bytes:
        """Nobody waits for its answer."""
        return json.dumps({"id": 0, "do": "watch", **(self._watch or {})}).encode() + b"\n"

    def _died(self, process: subprocess.Popen[bytes]) -> None:
        """Plan the next start. Raises NasHpcError after too many."""
        self._process = None
        status = _end(process)
        self._outgoing = self._rest = b""
        words = self._last_words()
        how = f"was killed by signal {-status}" if status < 0 else f"ended with exit code {status}"
        how += f": {words}" if words else ""
        if self._deaths >= (len(RESTARTS_S) if self._answered else 1):
            advice = (
                "" if self._answered else "; launch_scripts/setup_balsam.sh makes an environment of Balsam's"
            )
            raise NasHpcError(
                f"the Balsam bridge ({self.python}, by {self.found_by}) {how}; "
                f"given up after {self._deaths + 1} times{advice}"
            )
        self._start_at = time.monotonic() + RESTARTS_S[self._deaths]
        self._deaths += 1
        if self._answered:
            _log.warning("the Balsam bridge %s; it is started again", how)

    def _last_words(self) -> str:
        """The last line that it, or Python, wrote where errors go."""
        assert self._words is not None
        with contextlib.suppress(OSError):
            self._words.seek(0)
            lines = self._words.read()[-4096:].decode("utf-8", "replace").split("\n")
            return " ".join(next((line for line in reversed(lines) if line.strip()), "").split())[:300]
        return ""


def _end(process: subprocess.Popen[bytes]) -> int:
    """Let the process end, or end it; its return code."""
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.close()
    try:
        return process.wait(2)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()
