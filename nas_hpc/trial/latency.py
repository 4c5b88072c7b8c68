"""Latencies of exported models: who measures one, what came of it.

A trial leaves its model in ``saved_model`` of its directory. Whoever measures it claims it there, so that of
several workers, on whatever hosts, one measures it; what it found stands beside it then. One that cannot be
measured has a reason instead. Standard library only.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from nas_hpc.plain import finite
from nas_hpc.trial.jsonfiles import read_object, write_json
from nas_hpc.trial.status import read_status

MODEL_DIR: Final = "saved_model"
"""Of a trial: what it exported."""
LATENCY_FILE: Final = "model_latency.json"
"""In it, what was measured; names are those of Vertex AI NAS."""
CLAIM_FILE: Final = "latency_worker_id.json"
REQUEST_FILE: Final = "latency_request.json"
"""In it, from a trainer that waits: the model is whole."""
LATENCY_KEY: Final = "latency_in_milli_seconds"
KEYS: Final = (LATENCY_KEY, "latency_milli_seconds", "latency_ms", "latency")
"""Names under which a calculator may give it."""
LIMIT_S: Final = 1800.0
"""A measurement that takes longer is given up."""
_SPARE_S = 60.0
"""Clocks of hosts differ, and a calculator that is given up takes a while to end."""
_MOST_CLAIMS = 20
_SAVED_MODEL = "saved_model.pb"


# -- what came of it -------------------------------------------------------------------------------
def read_latency(trial_dir: Path | str) -> dict[str, Any] | None:
    """What stands in the record of a trial's model; None: it has none."""
    return read_object(Path(trial_dir, MODEL_DIR, LATENCY_FILE))


def measured_latency(trial_dir: Path | str) -> float | None:
    """What was measured of the model that the trial in ``trial_dir`` exported, in milliseconds; None: it was
    not, or could not be."""
    found = finite((read_latency(trial_dir) or {}).get(LATENCY_KEY))
    return found if found is not None and found >= 0.0 else None


def is_measured(trial_dir: Path | str, since: float = 0.0) -> bool:
    """Whether it was measured, or it was found that it cannot be; the second only if that was after
    ``since``, in UTC seconds: who begins later may have a better calculator."""
    if measured_latency(trial_dir) is not None:
        return True
    when = (read_latency(trial_dir) or {}).get("measured")
    return isinstance(when, int | float) and when >= since


def error_of(trial_dir: Path | str) -> str:
    """Why the model could not be measured; "" if nobody found so."""
    return str((read_latency(trial_dir) or {}).get("error") or "")


def write_latency(trial_dir: Path | str, found: Mapping[str, Any], worker: str, device: str = "") -> None:
    """Leave what was measured, or ``error``. Raises OSError."""
    about = {"worker": worker, "host": os.uname().nodename, "measured": time.time()}
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


# -- models ----------------------------------------------------------------------------------------
def is_exported(trial_dir: Path | str) -> bool:
    """Whether there is a whole model to measure: its trainer waits for that, TensorFlow's last file is there,
    or the trial has ended."""
    place = Path(trial_dir, MODEL_DIR)
    if (place / REQUEST_FILE).is_file() or (place / _SAVED_MODEL).is_file():
        return True
    status = read_status(Path(trial_dir))
    return status is not None and status.ok and has_model(trial_dir)


def has_model(trial_dir: Path | str) -> bool:
    """Whether the trial left anything of a model."""
    with suppress(OSError):
        names = os.listdir(Path(trial_dir, MODEL_DIR))
        return any(not one.startswith((".", CLAIM_FILE, LATENCY_FILE, REQUEST_FILE)) for one in names)
    return False


def request_latency(trial_dir: Path | str) -> None:
    """Say that the model is whole, and waited for; that it could not be measured before is forgotten. Raises
    OSError."""
    if measured_latency(trial_dir) is None:
        Path(trial_dir, MODEL_DIR, LATENCY_FILE).unlink(missing_ok=True)
    write_json(Path(trial_dir, MODEL_DIR, REQUEST_FILE), {"pid": os.getpid(), "timestamp": time.time()})


def forget_request(trial_dir: Path | str) -> None:
    """The trial begins again, and will write its model again. Raises OSError."""
    Path(trial_dir, MODEL_DIR, REQUEST_FILE).unlink(missing_ok=True)


# -- claims ----------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Claim:
    """A model that is this process's to measure."""

    path: Path

    def is_mine(self) -> bool:
        """Whether nobody took it over in the meantime."""
        return self.path.exists() and not _following(self.path).exists()

    def release(self) -> None:
        """It is not being measured any more."""
        if self.is_mine():
            with suppress(OSError):
                self.path.unlink()


def claim(trial_dir: Path | str, worker: str, limit_s: float = LIMIT_S) -> Claim | None:
    """Claim the model of a trial for ``limit_s`` seconds; None: it is another one's. Of several that try, one
    has it.

    A claim is a file that only one can make. That of a worker that has died, or of another host that has had
    it for longer than it was to, is taken over by the next file of the row, which again only one can make.
    Raises OSError.
    """
    path = Path(trial_dir, MODEL_DIR, CLAIM_FILE)
    for _ in range(_MOST_CLAIMS):
        mine = {"worker": worker, "host": os.uname().nodename, "pid": os.getpid(),
                "started": _started(os.getpid()), "timestamp": time.time(), "limit_s": limit_s}  # fmt: skip
        if _made(path, mine):
            return Claim(path)
        if not path.exists():
            continue  # it was released just now
        if not _following(path).exists() and not _is_dead(path):
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
        text = Path(f"/proc/{pid}/stat").read_bytes()
        return int(text[text.rindex(b")") + 2 :].split()[19])
    except (OSError, ValueError, IndexError):
        return 0


def _is_dead(path: Path) -> bool:
    content = read_object(path)
    if content is None:
        with suppress(OSError):
            return time.time() - path.stat().st_mtime > LIMIT_S
        return False  # it was released: the next look tells
    if content.get("host") == os.uname().nodename:
        pid = content.get("pid")
        return not isinstance(pid, int) or _started(pid) != content.get("started")
    timestamp, limit_s = content.get("timestamp"), content.get("limit_s")
    if not isinstance(timestamp, int | float) or not isinstance(limit_s, int | float):
        return True
    return time.time() - timestamp > limit_s + _SPARE_S
