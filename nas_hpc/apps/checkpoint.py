"""Where a search by agents is: policy, optimizer, and what is being evaluated, after each update.

One file in the search's directory, and the one before it: arrays and a line of JSON, behind a line with their
SHA-256. The older one is read where the newer is torn, missing or of a newer version.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nas_hpc.apps.batches import Open, Place
from nas_hpc.files import replace_file
from nas_hpc.search.ppo import Episodes

NAME = "ppo.checkpoint"
BEFORE = "ppo.checkpoint.before"
_VERSION = 1
_log = logging.getLogger("nas_hpc.apps")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A search between the drawing of a step's episodes and their submission."""

    step: int
    """The step whose episodes are evaluated next."""
    learned: int
    """From so many episodes was learned."""
    worst: float | None
    """The least objective of these."""
    known: int
    """Evaluations with larger ids were asked for later."""
    policy: Mapping[str, NDArray[Any]]
    """The state of ``Ppo``."""
    open: tuple[Open, ...]
    """Those of ``step`` and late ones; whether they are finished is not kept."""


def write(directory: Path, state: Checkpoint) -> None:
    """Replace the newer file, which becomes the older. Raises OSError, and at least one is as it was."""
    opened = state.open
    arrays = {f"policy.{name}": values for name, values in state.policy.items()}
    if opened:
        joined = Episodes.join([one.episode for one in opened])
        arrays |= {
            "ids": np.array([one.id for one in opened], np.int64),
            "places": np.array([[o.place.step, o.place.agent, o.place.number] for o in opened], np.int64),
            "actions": joined.actions,
            "log_probs": joined.log_probs,
            "values": joined.values,
        }
    head = {"version": _VERSION, "step": state.step, "learned": state.learned, "worst": state.worst}
    arrays["head"] = np.frombuffer(json.dumps({**head, "known": state.known}).encode(), np.uint8)
    body = io.BytesIO()
    np.savez(body, **arrays)
    data = body.getvalue()
    path = directory / NAME
    with contextlib.suppress(FileNotFoundError):
        os.replace(path, directory / BEFORE)
    replace_file(path, hashlib.sha256(data).hexdigest().encode() + b"\n" + data)


def read(directory: Path) -> Checkpoint | None:
    """The newest one that can be read; None if there is none. What cannot be read is told."""
    for name in (NAME, BEFORE):
        try:
            return _read(directory / name)
        except FileNotFoundError:
            continue
        except (OSError, ValueError, KeyError, TypeError) as error:
            _log.warning("%s cannot be read: %s; going back to an earlier state", directory / name, error)
    return None


def _read(path: Path) -> Checkpoint:
    digest, _, data = path.read_bytes().partition(b"\n")
    if hashlib.sha256(data).hexdigest().encode() != digest:
        raise ValueError("it is torn")
    with np.load(io.BytesIO(data), allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    head = json.loads(arrays["head"].tobytes())
    if head["version"] != _VERSION:
        raise ValueError(f"it has version {head['version']}, this program knows {_VERSION}")
    opened: list[Open] = []
    if "ids" in arrays:
        episodes = Episodes(arrays["actions"], arrays["log_probs"], arrays["values"])
        for number, (seq, place) in enumerate(zip(arrays["ids"], arrays["places"], strict=True)):
            at = Place(*(int(value) for value in place))
            opened.append(Open(at, int(seq), episodes.take([number])))
    policy = {name.partition(".")[2]: one for name, one in arrays.items() if name.startswith("policy.")}
    return Checkpoint(head["step"], head["learned"], head["worst"], head["known"], policy, tuple(opened))
