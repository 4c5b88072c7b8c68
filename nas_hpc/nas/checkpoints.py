"""Checkpoints of a training: all numbers of network, optimizer and metrics, and how far it has come.

A checkpoint is one file, an uncompressed archive of arrays as numpy writes it, whose parts have checksums.
The last two are kept, so that one that cannot be read costs the way from the one before it.
"""

from __future__ import annotations

import io
import json
import os
import re
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nas_hpc.files import replace_file
from nas_hpc.loading import one_line
from nas_hpc.nas.progress import Progress

VERSION = 1
_NAME = re.compile(r"step-(\d+)\.npz")
_KEPT = 2
Arrays = list[np.ndarray[Any, Any]]


@dataclass(frozen=True, slots=True)
class State:
    """What a training goes on from."""

    progress: Progress
    steps: int
    """Of all epochs."""
    arrays: Arrays
    """Of network, optimizer and metrics, in their order."""
    best: Arrays
    """The network's in its best epoch; empty if nobody needs them."""


class Checkpoints:
    """Those of one training in ``directory``; None: there are none.

    ``key`` tells this training from others: what another one left is passed over.
    """

    def __init__(self, directory: Path | None, key: str) -> None:
        self._directory = directory
        self._key = key
        self._failed = False

    @property
    def possible(self) -> bool:
        """Whether there is a place for them."""
        return self._directory is not None

    def save(self, state: State) -> None:
        """Write a checkpoint. If that fails the training goes on, and a line says so, once."""
        if self._directory is None:
            return
        try:
            self._directory.mkdir(exist_ok=True)
            replace_file(self._directory / f"step-{state.steps:012d}.npz", packed(state, self._key))
            for path in self._files()[_KEPT:]:
                path.unlink(missing_ok=True)
        except OSError as error:
            if not self._failed:
                _say(f"cannot write a checkpoint to {self._directory}: {error.strerror or error}")
            self._failed = True

    def load(self, like: Sequence[np.ndarray[Any, Any]]) -> State | None:
        """The newest one of this training whose arrays are ``like`` these in shape and type; or None."""
        for path in self._files():
            try:
                return unpacked(path.read_bytes(), self._key, like)
            except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
                _say(f"passed over the checkpoint {path}: {one_line(error) or type(error).__name__}")
        return None

    def remove(self) -> None:
        """The training is over: leave nothing."""
        if self._directory is None:
            return
        try:
            for entry in os.scandir(self._directory):
                os.unlink(entry.path)
            self._directory.rmdir()
        except OSError:
            pass  # there was none, or somebody keeps something there

    def _files(self) -> list[Path]:
        """Newest first."""
        if self._directory is None or not self._directory.is_dir():
            return []
        return sorted((one for one in self._directory.iterdir() if _NAME.fullmatch(one.name)), reverse=True)


def packed(state: State, key: str) -> bytes:
    """``state`` as a checkpoint of the training ``key`` has it."""
    about = {
        "version": VERSION, "key": key, "steps": state.steps, "progress": state.progress.to_json(),
        "arrays": len(state.arrays), "best": len(state.best),
    }  # fmt: skip
    named = {f"a{number}": array for number, array in enumerate(state.arrays)}
    named |= {f"b{number}": array for number, array in enumerate(state.best)}
    stream = io.BytesIO()
    np.savez(stream, about=np.frombuffer(json.dumps(about).encode(), np.uint8), **named)
    return stream.getvalue()


def unpacked(content: bytes, key: str, like: Sequence[np.ndarray[Any, Any]]) -> State:
    """What ``packed`` made of a state whose arrays are ``like`` these.

    Raises ValueError, KeyError, TypeError, EOFError, BadZipFile.
    """
    with np.load(io.BytesIO(content), allow_pickle=False) as archive:
        about = json.loads(bytes(archive["about"]))
        if about["version"] != VERSION:
            raise ValueError(f"it has version {about['version']!r}, and this program reads {VERSION}")
        if about["key"] != key:
            raise ValueError("it is of another training")
        arrays = [archive[f"a{number}"] for number in range(about["arrays"])]
        best = [archive[f"b{number}"] for number in range(about["best"])]
    if [(one.shape, one.dtype) for one in arrays] != [(one.shape, one.dtype) for one in like]:
        raise ValueError("its arrays are of another network or optimizer")
    return State(Progress(**about["progress"]), int(about["steps"]), arrays, best)


def _say(text: str) -> None:
    print(f"nas-hpc: {text}", file=sys.stderr, flush=True)
