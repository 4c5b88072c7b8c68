"""Latencies of exported models: who measures one, what came of it.

A trial leaves its model in ``saved_model`` of its directory. Whoever measures it claims it there, so that of
several workers, on whatever hosts, one measures it; what it found stands beside it then. One that cannot be
measured has a reason instead.
"""

from __future__ import annotations

import json
import math
import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from nas_hpc.apps.trials.spec import SEARCH, TRAIN, read_json, write_json
from nas_hpc.processes.linux import start_ticks
from nas_hpc.trial.status import read_status

MODEL_DIR: Final = "saved_model"
"""Of a trial: what it exported."""
LATENCY_FILE: Final = "model_latency.json"
"""In it, what was measured; names are those of Vertex AI NAS."""
CLAIM_FILE: Final = "latency_worker_id.json"
LATENCY_KEY: Final = "latency_in_milli_seconds"
KEYS: Final = (LATENCY_KEY, "latency_milli_seconds", "latency_ms", "latency")
"""Names under which a calculator may give it."""
STALE_S: Final = 3600.0
"""A claim of another host that is older is nobody's: no measurement takes so long."""
_MOST_CLAIMS = 20
_SAVED_MODEL = "saved_model.pb"


def measured_latency(trial_dir: Path | str) -> float | None:
    """What was measured of the model that the trial in ``trial_dir`` exported, in milliseconds; None: it was
    not, or could not be."""
    content = read_json(Path(trial_dir, MODEL_DIR, LATENCY_FILE))
    found = content.get(LATENCY_KEY) if isinstance(content, dict) else None
    if isinstance(found, bool) or not isinstance(found, int | float):
        return None
    return float(found) if math.isfinite(found) and found >= 0.0 else None


def is_measured(trial_dir: Path | str) -> bool:
    """Whether it was measured, or it was found that it cannot be."""
    return isinstance(read_json(Path(trial_dir, MODEL_DIR, LATENCY_FILE)), dict)


def is_exported(trial_dir: Path | str) -> bool:
    """Whether there is a whole model to measure: TensorFlow's last file is there, or the trial has ended."""
    place = Path(trial_dir, MODEL_DIR)
    if (place / _SAVED_MODEL).is_file():
        return True
    status = read_status(Path(trial_dir))
    return status is not None and status.ok and has_model(trial_dir)


def has_model(trial_dir: Path | str) -> bool:
    """Whether the trial left anything of a model."""
    with suppress(OSError):
        names = os.listdir(Path(trial_dir, MODEL_DIR))
        return any(not one.startswith((".", CLAIM_FILE, LATENCY_FILE)) for one in names)
    return False


def trials_below(directory: Path | str) -> Iterator[Path]:
    """The directories of trials of a search, of its full trainings, or of a tool's rounds; in order."""
    for pattern in (f"nas/{SEARCH}/*", f"nas/{TRAIN}/*", f"*/nas/{SEARCH}/*"):
        found = (one for one in Path(directory).glob(pattern) if one.name.isdigit())
        yield from sorted(found, key=lambda one: (str(one.parent), int(one.name)))


# -- what came of it -------------------------------------------------------------------------------
def write_latency(trial_dir: Path | str, found: Mapping[str, Any], worker: str, device: str = "") -> None:
    """Leave what was measured, or ``error``. Raises OSError."""
    about = {"worker": worker, "host": socket.gethostname(), "measured": time.time()}
    if device:
        about["device"] = device
    latency = found.get(LATENCY_KEY)
    body = {**found, LATENCY_KEY: -1.0 if latency is None else latency, **about}
    write_json(Path(trial_dir, MODEL_DIR, LATENCY_FILE), body)


def parsed(text: str) -> dict[str, Any] | None:
    """What a calculator printed: its last line that is a number of milliseconds, or a JSON object with
    latency_in_milli_seconds; None if there is none."""
    for line in reversed(text.splitlines()):
        with suppress(ValueError, RecursionError):
            content = json.loads(line.strip().removeprefix("DH-OUTPUT:").strip())
            if not isinstance(content, dict):
                content = {LATENCY_KEY: content}
            value = next((content[key] for key in KEYS if key in content), None)
            if not isinstance(value, bool) and isinstance(value, int | float) and 0.0 <= value < math.inf:
                return {**content, LATENCY_KEY: float(value)}
    return None


# -- claims ----------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Claim:
    """A model that is this process's to measure."""

    path: Path

    def is_mine(self) -> bool:
        """Whether nobody took it over in the meantime."""
        return self.path.exists() and not _following(self.path).exists()

    def release(self) -> None:
        """It was not measured: another one may."""
        if self.is_mine():
            with suppress(OSError):
                self.path.unlink()


def claim(trial_dir: Path | str, worker: str) -> Claim | None:
    """Claim the model of a trial; None: it is another one's. Of several that try, one has it.

    A claim is a file that only one can make. That of a worker that has died, or is too old, is taken over by
    the next file of the row, which again only one can make. Raises OSError.
    """
    path = Path(trial_dir, MODEL_DIR, CLAIM_FILE)
    for _ in range(_MOST_CLAIMS):
        mine = {"worker": worker, "host": socket.gethostname(), "pid": os.getpid(),
                "started": _started(os.getpid()), "timestamp": time.time()}  # fmt: skip
        if _made(path, mine):
            return Claim(path)
        if not _is_dead(path):
            return None
        path = _following(path)
    return None


def _following(path: Path) -> Path:
    name, _, number = path.name.rpartition(".json")
    return path.with_name(f"{name}.json.{int(number.lstrip('.') or 0) + 1}")


def _made(path: Path, content: Mapping[str, Any]) -> bool:
    """Make the file, whole, if there is none: by a link, which also shared file systems make once only."""
    partial = path.with_name(f".{path.name}.{os.getpid()}-{os.urandom(4).hex()}")
    write_json(partial, content)
    try:
        os.link(partial, path)
    except FileExistsError:
        return False
    finally:
        partial.unlink(missing_ok=True)
    return True


def _started(pid: int) -> int:
    """By which another process with this number is told apart; 0: there is none."""
    try:
        return start_ticks(pid)
    except (OSError, ValueError):
        return 0


def _is_dead(path: Path) -> bool:
    if _following(path).exists():
        return True  # it was taken over; whether that one is dead is asked next
    content = read_json(path)
    if not isinstance(content, dict):
        return not path.exists() or time.time() - path.stat().st_mtime > STALE_S
    if content.get("host") == socket.gethostname():
        pid = content.get("pid")
        return not isinstance(pid, int) or _started(pid) != content.get("started")
    timestamp = content.get("timestamp")
    return not isinstance(timestamp, int | float) or time.time() - timestamp > STALE_S
