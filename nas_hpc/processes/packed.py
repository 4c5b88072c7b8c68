"""Packed files: a line of JSON for each evaluation that has no directory of its own.

``data/WORKFLOW/packed/*.jsonl``, one file for each agent, appended by it alone: no file grows from two hosts.
A line is durable before its evaluation's end is reported: it is what a launcher that takes over adopts.
Readers pass over torn lines; of two lines of one attempt the later counts.
"""

from __future__ import annotations

import json
import os
import queue
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PACKED = "packed"
_KEY = re.compile(rb'\{"id": "([0-9A-Za-z_-]+)", "attempt": (\d{1,9}), ')

Wanted = Callable[[str, int], bool]
Done = Callable[[str], None]
"""Called with what went wrong, or "", when a line is on disk."""


def line_of(job: Mapping[str, Any], result: Mapping[str, Any], tail: str) -> bytes:
    """The line of an ended attempt: ``job`` as in job.json, ``result`` as in result.json.

    The job's id and the attempt stand first, so that a reader that looks for some need not parse them all.
    """
    kept = {key: value for key, value in result.items() if key != "metrics"}
    body: dict[str, Any] = {
        "id": result["job"],
        "attempt": result["attempt"],
        "job": dict(job),
        "result": kept,
    }
    if tail:
        body["tail"] = tail
    if result.get("metrics"):
        body["metrics"] = result["metrics"]
    return json.dumps(body).encode("ascii") + b"\n"


def read(workflow: Path, wanted: Wanted | None = None) -> Iterator[dict[str, Any]]:
    """The lines of a workflow's packed files, those of each file in their order.

    ``wanted`` says of a job id and an attempt's number whether its line is; the others are not parsed. Each
    line has ``id``, ``attempt``, ``job`` and ``result``; ``tail`` and ``metrics`` where there are any.
    """
    try:
        paths = sorted((workflow / PACKED).glob("*.jsonl"))
    except OSError:
        return
    for path in paths:
        with suppress(OSError), path.open("rb") as file:
            for raw in file:
                value = _parse(raw, wanted)
                if value is not None:
                    yield value


def _parse(raw: bytes, wanted: Wanted | None) -> dict[str, Any] | None:
    key = _KEY.match(raw)
    if key is None or (wanted is not None and not wanted(key[1].decode("ascii"), int(key[2]))):
        return None
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    job, result = value.get("job"), value.get("result")
    if not isinstance(job, dict) or not isinstance(result, dict) or job.get("id") != value.get("id"):
        return None
    is_its = (result.get("job"), result.get("attempt")) == (value.get("id"), value.get("attempt"))
    return value if is_its else None


@dataclass(slots=True)
class _File:
    """A packed file that is being written."""

    path: str
    fd: int = -1
    unwritten: bytearray = field(default_factory=bytearray)
    """What could not be written (a full disk) goes before what comes next; it may begin inside a line."""
    opened: bool = False
    """Just now: the last line of a writer that was killed may be without an end."""

    def append(self, data: bytes) -> None:
        """Append whole lines and flush them to disk. Raises OSError."""
        self.unwritten += data
        self._open()
        if self.opened:
            size = os.fstat(self.fd).st_size
            if size and os.pread(self.fd, 1, size - 1) != b"\n":
                self.unwritten[:0] = b"\n"
            self.opened = False
        while self.unwritten:
            written = os.write(self.fd, self.unwritten)
            del self.unwritten[:written]
        os.fsync(self.fd)

    def _open(self) -> None:
        if self.fd >= 0 and os.fstat(self.fd).st_nlink:
            return
        self.close()  # its workflow was removed
        directory = os.path.dirname(self.path)
        os.makedirs(directory, exist_ok=True)
        self.fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        self.opened = True
        above = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(above)
        finally:
            os.close(above)

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class Packer:
    """Appends lines from a thread of its own; all that wait while it writes go to disk together."""

    def __init__(self, deliver: Callable[[list[tuple[Done, str]]], None]) -> None:
        """``deliver`` is called in the thread with what is on disk now: (callback, trouble) for each line."""
        self._deliver = deliver
        self._files: dict[str, _File] = {}
        self._queue: queue.SimpleQueue[tuple[str, bytes, Done] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="packer", daemon=True)
        self._thread.start()

    def put(self, path: str, line: bytes, done: Done) -> None:
        """Append ``line`` to the file ``path``; ``done`` is delivered when it is durable, or cannot be."""
        self._queue.put((path, line, done))

    def close(self) -> None:
        """Blocking: write what waits, and end."""
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        ending = False
        while not ending:
            batch = [self._queue.get()]
            with suppress(queue.Empty):
                while True:
                    batch.append(self._queue.get_nowait())
            ending = None in batch
            self._write([entry for entry in batch if entry is not None])
        for file in self._files.values():
            with suppress(OSError):
                file.append(b"")
            file.close()

    def _write(self, batch: list[tuple[str, bytes, Done]]) -> None:
        by_path: dict[str, list[tuple[bytes, Done]]] = {}
        for path, line, done in batch:
            by_path.setdefault(path, []).append((line, done))
        for path, lines in by_path.items():
            file = self._files.setdefault(path, _File(path))
            trouble = ""
            known = bool(file.unwritten)
            try:
                file.append(b"".join(line for line, _ in lines))
            except OSError as error:
                trouble = f"cannot write {path}: {error.strerror}; trying again with its next line"
            self._deliver(
                [(done, trouble if not known and not n else "") for n, (_, done) in enumerate(lines)]
            )
