"""The launcher's own files beside the job directories, from which analytics works without a database.

Lines are appended by one thread, after the commit of what they tell. They are not synced: what a crash of the
machine or a kill leaves out is written again from the database when the next launcher takes over. Several
launchers of a site take turns by a lock on the file, where the file system has locks.
"""

from __future__ import annotations

import fcntl
import json
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nas_hpc.records import Attempt, Job
from nas_hpc.states import Outcome

TURN_S = 5.0
"""So long a launcher waits for another one to have written its lines."""
STALE_S = 1.0
"""The line of an attempt that ended longer ago may have been written by a successor: of a launcher that was
stopped after its commit."""


def attempt_line(job: Job, attempt: Attempt) -> dict[str, Any]:
    """The line of ``attempts.jsonl`` for an ended attempt."""
    result = attempt.result
    if result is None:
        raise ValueError(f"attempt {attempt.number} of {job.name} has not ended")
    share = 1 / job.resources.node_packing_count if job.resources.num_nodes == 1 else job.resources.num_nodes
    return {
        "job": job.id,
        "name": job.name,
        "number": attempt.number,
        "launcher": attempt.lease,
        "creator": job.creator,
        "seq": job.seq or None,
        "nodes": list(attempt.nodes),
        "cores": list(attempt.cores),
        "slots": share,
        "submitted": job.created,
        "start": result.start,
        "end": result.end,
        "outcome": result.outcome.value,
        "return_code": result.return_code,
        "objective": result.objective,
        "reason": result.reason,
        "cached": attempt.number == 0 and result.outcome is Outcome.OK,
    }


class Journal:
    """Appends to ``data/{workflow}/attempts.jsonl`` and ``launchers.jsonl`` from one thread."""

    def __init__(self, data: Path, on_note: Callable[[str], None], *, several: bool = False) -> None:
        """``several``: other launchers write these files, too."""
        self._data, self._several = data, several
        self._on_note = on_note
        self._unwritten: dict[Path, list[dict[str, Any]]] = {}
        self._seen: dict[Path, _Keys] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="journal")

    def attempts(self, ended: Iterable[tuple[Job, Attempt]]) -> None:
        """Append a line per ended attempt."""
        by_workflow: dict[str, list[dict[str, Any]]] = {}
        for job, attempt in ended:
            by_workflow.setdefault(job.workflow, []).append(attempt_line(job, attempt))
        for workflow, lines in by_workflow.items():
            self._append(workflow, "attempts.jsonl", lines)

    def missing(self, workflow: str, ended: Iterable[tuple[Job, Attempt]]) -> None:
        """Append the lines of attempts that have none yet."""
        pairs = list(ended)
        if pairs:
            self._thread.submit(self._write_missing, self._data / workflow / "attempts.jsonl", pairs)

    def _write_missing(self, path: Path, pairs: list[tuple[Job, Attempt]]) -> None:
        """In the thread."""
        try:
            with _turn(path, self._several):
                known = _Keys(path).look()
                new = [(job, attempt) for job, attempt in pairs if (job.id, attempt.number) not in known]
                append_lines(path, [attempt_line(job, attempt) for job, attempt in new])
        except OSError as error:
            self._on_note(f"{path} cannot be written: {error.strerror}; {len(pairs)} lines may be missing")

    def launcher(self, workflow: str, line: dict[str, Any]) -> None:
        """Append what became of the launcher or of its capacity."""
        self._append(workflow, "launchers.jsonl", [line])

    def _append(self, workflow: str, name: str, lines: list[dict[str, Any]]) -> None:
        self._thread.submit(self._write, self._data / workflow / name, lines)

    def _write(self, path: Path, lines: list[dict[str, Any]]) -> None:
        """In the thread. What cannot be written (a full disk) is kept and written with what comes next."""
        waiting = self._unwritten.pop(path, [])
        lines = [*waiting, *lines]
        oldest = min((line["end"] for line in lines if "number" in line), default=time.time())
        try:
            with _turn(path, self._several):
                if time.time() - oldest > STALE_S:
                    known = self._seen.setdefault(path, _Keys(path)).look()
                    lines = [line for line in lines if (line["job"], line["number"]) not in known]
                append_lines(path, lines)
        except OSError as error:
            self._unwritten[path] = lines
            if not waiting:
                self._on_note(f"{path} cannot be written: {error.strerror}; trying again with its next line")

    def known(self, workflow: str) -> set[tuple[str, int]]:
        """The (job, number) of the attempts that have a line."""
        return _Keys(self._data / workflow / "attempts.jsonl").look()

    def close(self) -> bool:
        """Wait until all is written; whether it was. If not, the launcher must not end in order: the next one
        writes what is missing."""
        for path in list(self._unwritten):
            self._thread.submit(self._write, path, [])
        self._thread.shutdown()
        return not self._unwritten


class _Keys:
    """The (job, number) of the attempts that have a line in a file that only grows."""

    def __init__(self, path: Path) -> None:
        self._path, self._offset = path, 0
        self._found: set[tuple[str, int]] = set()

    def look(self) -> set[tuple[str, int]]:
        """Read on from where the last look ended."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                whole = file.read().rpartition(b"\n")[0]
        except OSError:
            return self._found
        self._offset += len(whole)
        for line in _objects(whole):
            if {"job", "number"} <= line.keys():
                self._found.add((line["job"], line["number"]))
        return self._found


@contextmanager
def _turn(path: Path, several: bool) -> Iterator[None]:
    """Hold the lock of the file at ``path``, if it is to be had soon: its holder may have been stopped."""
    if not several:
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        deadline = time.monotonic() + TURN_S
        while time.monotonic() < deadline:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(0.005)
            except OSError:  # there are no locks here: a short line in one write has to do
                break
        yield


def append_lines(path: Path, lines: list[dict[str, Any]]) -> None:
    """Append JSON lines in one write; a torn last line of a killed writer is closed first."""
    if not lines:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(line) + "\n" for line in lines)
    with path.open("a+b") as file:
        if file.tell() > 0:
            file.seek(-1, 2)
            if file.read(1) != b"\n":
                text = "\n" + text
        file.write(text.encode())


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The readable JSON objects of a file of lines; torn ones and a missing file give nothing."""
    try:
        return list(_objects(path.read_bytes()))
    except OSError:
        return []


def _objects(raw: bytes) -> Iterator[dict[str, Any]]:
    for part in raw.split(b"\n"):
        try:
            value = json.loads(part)
        except ValueError:
            continue
        if isinstance(value, dict):
            yield value
