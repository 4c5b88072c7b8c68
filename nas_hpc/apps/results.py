"""results.csv: one row per evaluation, in the order in which they were finished."""

from __future__ import annotations

import csv
import io
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from nas_hpc.errors import WorkFailed, WrongCall
from nas_hpc.evaluator import EvaluationResult

NAME = "results.csv"
COLUMNS = ("objective", "elapsed_sec", "seq", "outcome", "reason", "start", "end", "cached")
"""What follows the hyperparameters."""
REPAIR_S = 5.0
"""At least so long between two attempts to write a file anew that could not be written."""
Cells = Callable[[Mapping[str, Any]], Mapping[str, Any]]
_log = logging.getLogger("nas_hpc.apps")


class ResultsFile:
    """The file in the search's directory, always complete up to the last collection.

    It is written anew, atomically, from the whole history when a search begins (which repairs the torn last
    row of one that was killed) and then grows by whole rows, so that writing costs the same however long the
    file is. It is kept open, so that a search that was superseded cannot write into its successor's file.
    Where it cannot be written (a full disk), the search goes on, and the file is written anew later.
    """

    def __init__(
        self, directory: Path, names: Sequence[str], *, cells: Cells = dict, link: bool = False
    ) -> None:
        """``names``: the hyperparameters, in the problem's order; ``cells`` gives their values of a
        configuration. ``link``: make one in the directory above.

        Raises WrongCall if a hyperparameter has the name of another column.
        """
        clash = [name for name in names if name in COLUMNS]
        if clash:
            raise WrongCall(
                f"the hyperparameter {clash[0]!r} has the name of a column of {NAME}: give it another"
            )
        self.path = directory / NAME
        self._names = tuple(names)
        self._cells = cells
        self._link = link
        self._rows: list[str] = []
        self._descriptor = -1
        self._in_file = 0
        self._failed = 0.0
        self._started: float | None = None

    def begin(self, history: Sequence[EvaluationResult], started: float) -> None:
        """Write the file anew. ``started``: what elapsed_sec counts from."""
        self._started = started
        for left in self.path.parent.glob(f".{NAME}.*"):  # of one that was killed while it wrote
            _try(left.unlink)
        self.replace(history)
        if self._link:
            _link(self.path.parent)

    def add(self, results: Sequence[EvaluationResult]) -> None:
        """Append rows."""
        self._rows += [self._row(result) for result in results]
        self._write()

    def replace(self, history: Sequence[EvaluationResult]) -> None:
        """Write the file anew, atomically; nothing if it was not begun."""
        if self._started is not None:
            self._failed = 0.0
            self._rows = [self._row(result) for result in history]
            self._close()
            self._write()

    def end(self) -> None:
        """Have everything on the disk. Raises WorkFailed if that cannot be."""
        self._failed = 0.0
        if self._descriptor >= 0 and not self._is_in_place():
            self._close()
        error = self._write() or _try(self._sync)
        self._close()
        if error is not None:
            raise WorkFailed(
                f"{self.path} could not be written: {error.strerror}; the same command writes it again"
            )

    def _write(self) -> OSError | None:
        if self._failed and time.monotonic() - self._failed < REPAIR_S:
            return None
        error = _try(self._write_all if self._descriptor < 0 else self._append)
        if error is None:
            self._in_file, self._failed = len(self._rows), 0.0
            return None
        if not self._failed:
            _log.warning("%s cannot be written: %s; trying again", self.path, error.strerror)
        self._failed = time.monotonic()
        self._close()
        return error

    def _append(self) -> None:
        _write_to(self._descriptor, self._rows[self._in_file :])

    def _write_all(self) -> None:
        temporary = self.path.with_name(f".{NAME}.{os.getpid()}")
        self._descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o644)
        _write_to(self._descriptor, [_line([*self._names, *COLUMNS]), *self._rows])
        os.fsync(self._descriptor)
        os.replace(temporary, self.path)

    def _sync(self) -> None:
        os.fsync(self._descriptor)

    def _is_in_place(self) -> bool:
        try:
            return os.path.samestat(os.fstat(self._descriptor), self.path.stat())
        except OSError:
            return False

    def _close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _row(self, result: EvaluationResult) -> str:
        """A row; cells without a value are empty: an inactive hyperparameter, a failure's objective."""
        values = self._cells(result.config)
        cells = [_cell(values.get(name)) for name in self._names]
        elapsed = f"{result.end - (self._started or 0.0):.6f}" if result.end else ""
        cells += [_cell(result.objective), elapsed, str(result.id), result.outcome.value]
        cells += [" ".join(result.reason.split()), _time(result.start), _time(result.end), str(result.cached)]
        return _line(cells)


def _write_to(descriptor: int, lines: Sequence[str]) -> None:
    data = memoryview("".join(lines).encode("utf-8", "backslashreplace"))
    while data:
        data = data[os.write(descriptor, data) :]


def _time(seconds: float) -> str:
    return f"{seconds:.6f}" if seconds else ""


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return repr(value) if isinstance(value, float) else str(value)


def _line(cells: Sequence[str]) -> str:
    text = io.StringIO()
    csv.writer(text).writerow(cells)  # its "\r\n" makes it quote both of them in a cell
    return text.getvalue()[:-2] + "\n"


def _try(action: Callable[[], object]) -> OSError | None:
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
