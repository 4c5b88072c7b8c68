"""What remains of an attempt on disk, by the launcher's setting ``task_directories``.

``each``: its directory with job.json and result.json. ``failed``: the same after a failure, or where the
program left files of its own; of a success only a line in the agent's packed file (``processes.packed``).
``packed``: always only that line; the directory is a private one on the node's own disk.

Standard library only, Python 3.8 or later: it is loaded in the user's interpreters.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat

from nas_hpc.processes import jobdata, results

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from nas_hpc.processes.channel import Channel

JOB_FILE = "job.json"
METRICS_FILE = "metrics.jsonl"  # of nas_hpc.trial, which this module cannot import
METRICS_BYTES = 1 << 20
"""So much of an attempt's metrics at most stands in its line: the newest."""


class Remains:
    """What is to be told of an attempt beside its result."""

    __slots__ = ("tail", "trouble", "kept", "alone")

    def __init__(self, tail: str = "", trouble: str = "", kept: bool = True) -> None:
        self.tail = tail
        """Of the output of a failure."""
        self.trouble = trouble
        """What could not be written, as a line for a person."""
        self.kept = kept
        """Its directory holds job.json and result.json. Else its agent writes a line, and what it reported
        stands in ``result["metrics"]``."""
        self.alone = False
        """Its process says so itself, and had no descendants and could get none."""


def output_of(order: dict[str, Any]) -> str:
    """Path of the attempt's output."""
    return f"{order['dir']}/{order['name']}.out"


def leave(order: dict[str, Any], result: dict[str, Any]) -> Remains:
    """Write what is to remain of an ended attempt with this result, durably, and remove the rest."""
    path = output_of(order)
    results.remove_if_empty(path)
    success = result["outcome"] == "ok"
    tail = "" if success else results.tail(path, order.get("offset", 0))
    record = order["record"]
    if record == "packed" or (record == "failed" and success and _only_ours(order)):
        metrics = read_metrics(order["dir"])
        if metrics:
            result["metrics"] = metrics
        remove(order["dir"])
        return Remains(tail, kept=False)
    trouble = write_job(order) if record == "failed" else ""
    return Remains(tail, trouble or results.write(order["dir"], result))


def tell(channel: Channel, order: dict[str, Any], result: dict[str, Any], left: Remains) -> None:
    """Tell the keeper; a result that is too large for a message is read from its file."""
    serial = order["serial"]
    if channel.tell(serial, result, left):
        return
    if not left.kept:  # the keeper removes it again
        with contextlib.suppress(OSError):
            os.makedirs(order["dir"], exist_ok=True)
        results.write(order["dir"], result)
    channel.refer(serial, left)


def write_job(order: dict[str, Any]) -> str:
    """Write job.json, if there is no directory make it; what went wrong, or ""."""
    try:
        os.makedirs(order["dir"], exist_ok=True)
        results.replace_file(order["dir"], JOB_FILE, order["job_json"].encode(), sync=False)
    except OSError as error:
        return f"cannot write {os.path.join(order['dir'], JOB_FILE)}: {error.strerror}"
    return ""


def _only_ours(order: dict[str, Any]) -> bool:
    """Whether nothing is in the directory that the program left of its own accord."""
    ours = {JOB_FILE, results.RESULT_FILE, jobdata.DATA_FILE, METRICS_FILE, order["name"] + ".out"}
    try:
        return ours.issuperset(os.listdir(order["dir"]))
    except OSError:
        return True  # there is no directory


def read_metrics(directory: str) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, without torn ones; the newest, if there are very many."""
    try:
        with open(os.path.join(directory, METRICS_FILE), "rb") as stream:
            size = stream.seek(0, os.SEEK_END)
            stream.seek(max(0, size - METRICS_BYTES))
            raw = stream.read(METRICS_BYTES)
    except OSError:
        return []
    lines = []
    for part in raw.split(b"\n"):
        try:
            value = json.loads(part)
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict):
            lines.append(value)
    return lines


def remove(directory: str) -> None:
    """Remove a directory and all that is in it; what cannot be removed stays. Links are not followed."""
    try:
        entries = list(os.scandir(directory))
    except PermissionError:
        with contextlib.suppress(OSError):
            os.chmod(directory, stat.S_IRWXU)
        try:
            entries = list(os.scandir(directory))
        except OSError:
            return
    except OSError:
        return
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            remove(entry.path)
            continue
        try:
            os.unlink(entry.path)
        except PermissionError:  # of the directory
            with contextlib.suppress(OSError):
                os.chmod(directory, stat.S_IRWXU)
                os.unlink(entry.path)
        except OSError:
            continue
    with contextlib.suppress(OSError):
        os.rmdir(directory)
