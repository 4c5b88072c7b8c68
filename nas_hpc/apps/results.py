"""results.csv: one row per evaluation, in the order in which they were finished."""

from __future__ import annotations

import csv
import io
import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nas_hpc.errors import WorkFailed, WrongCall
from nas_hpc.evaluator import EvaluationResult

NAME = "results.csv"
COLUMNS = ("objective", "elapsed_sec", "seq", "outcome", "reason", "start", "end", "cached")
"""What follows the hyperparameters."""
REPAIR_S = 5.0
"""At least so long between two attempts to write a file anew that could not be written."""
_log = logging.getLogger("nas_hpc.apps")


class ResultsFile:
    """The file in the search's directory, always complete up to the last collection.

    It is written anew, atomically, from the whole history when a search begins (which repairs the torn last
    row of one that was killed) and then grows by whole rows, so that writing costs the same however long the
    file is. Where it cannot be written (a full disk), the search goes on, and the file is written anew later.
    """

    def __init__(self, directory: Path, names: Sequence[str], *, link: bool = False) -> None:
        """``names``: the hyperparameters, in the problem's order. ``link``: one from the workflow's
        directory, above.

        Raises WrongCall if a hyperparameter has the name of another column.
        """
        clash = [name for name in names if name in COLUMNS]
        if clash:
            raise WrongCall(
                f"the hyperparameter {clash[0]!r} has the name of a column of {NAME}: give it another"
            )
        self.path = directory / NAME
        self._names = tuple(names)
        self._link = link
        self._rows: list[str] = []
        self._in_file = 0
        self._failed = 0.0
        self._started: float | None = None

    def begin(self, history: Sequence[EvaluationResult], started: float) -> None:
        """Write the file anew. ``started``: what elapsed_sec counts from."""
        self._started = started
        self._rows = [self._row(result) for result in history]
        self._in_file = -1
        self._write()
        if self._link:
            _link(self.path.parent)

    def add(self, results: Sequence[EvaluationResult]) -> None:
        """Append rows."""
        self._rows += [self._row(result) for result in results]
        self._write()

    def end(self) -> None:
        """Have everything on the disk. Raises WorkFailed if that cannot be."""
        self._failed = 0.0
        error = self._write()
        if error is None:
            error = _try(self._sync)
        if error is not None:
            raise WorkFailed(
                f"{self.path} could not be written: {error.strerror}; the same command writes it again"
            )

    def replace(self, history: Sequence[EvaluationResult]) -> None:
        """Write the file anew, atomically; nothing if it was not begun."""
        if self._started is None:
            return
        self._rows = [self._row(result) for result in history]
        self._in_file = -1
        self._write()

    def _write(self) -> OSError | None:
        if self._failed and time.monotonic() - self._failed < REPAIR_S:
            return None
        error = _try(self._write_all if self._in_file < 0 else self._append)
        if error is None:
            self._in_file, self._failed = len(self._rows), 0.0
            return None
        if not self._failed:
            _log.warning("%s cannot be written: %s; trying again", self.path, error.strerror)
        self._in_file, self._failed = -1, time.monotonic()
        return error

    def _append(self) -> None:
        text = "".join(self._rows[self._in_file :])
        if text:
            with self.path.open("a", newline="", encoding="utf-8") as file:
                file.write(text)

    def _write_all(self) -> None:
        temporary = self.path.with_name(f".{NAME}.{os.getpid()}")
        with temporary.open("w", newline="", encoding="utf-8") as file:
            file.write(_line([*self._names, *COLUMNS]))
            file.writelines(self._rows)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self.path)

    def _sync(self) -> None:
        with self.path.open("rb") as file:
            os.fsync(file.fileno())

    def _row(self, result: EvaluationResult) -> str:
        elapsed_s = result.end - (self._started or 0.0)
        cells = [_cell(result.config.get(name)) for name in self._names]
        cells += [_cell(result.objective), f"{elapsed_s:.6f}", str(result.id), result.outcome.value]
        cells += [_one_line(result.reason), f"{result.start:.6f}", f"{result.end:.6f}", str(result.cached)]
        return _line(cells)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return repr(value) if isinstance(value, float) else str(value)


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _line(cells: Sequence[str]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue()


def _try(action: Any) -> OSError | None:
    try:
        action()
    except OSError as error:
        return error
    return None


def _link(directory: Path) -> None:
    """Let WORKFLOW/results.csv be a relative link to the search's; a file of the user's own stays."""
    link = directory.parent / NAME
    if link.exists() and not link.is_symlink():
        _log.warning("%s is a file: it stays, and %s is not linked from there", link, directory / NAME)
        return
    temporary = link.with_name(f".{NAME}.{os.getpid()}")

    def make() -> None:
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(Path(directory.name) / NAME)
        os.replace(temporary, link)

    error = _try(make)
    if error is not None:
        _log.warning("%s cannot be made: %s", link, error.strerror)
