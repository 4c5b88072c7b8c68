"""What a keeper knows of an attempt, and the recording of its end.

Standard library only, Python 3.8 or later: it is loaded in the user's interpreters.
"""

from __future__ import annotations

import os

from nas_hpc.processes import results

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from nas_hpc.processes.channel import Channel


class Attempt:
    """One order from its arrival to its report."""

    __slots__ = (
        "order", "serial", "pid", "status", "end", "cpu_s", "rss",
        "result", "tail", "trouble", "refused", "drop",
    )  # fmt: skip

    def __init__(self, order: dict[str, Any], serial: int) -> None:
        self.order = order
        self.serial = serial
        self.pid = 0
        """0 before it has a process."""
        self.status: int | None = None
        self.end = 0.0
        self.cpu_s = 0.0
        self.rss = 0
        self.result = b""
        self.tail = ""
        self.trouble = ""
        self.refused = ""
        """Why its program could not be started."""
        self.drop = False
        """It is to run elsewhere: no result is written for it here."""

    @property
    def key(self) -> tuple[str, int]:
        """(job, attempt number)."""
        return self.order["job"], self.order["attempt"]


def finish(attempt: Attempt, channel: Channel) -> None:
    """Judge an attempt that told no result itself, write its result.json, tell the keeper."""
    order = attempt.order
    if attempt.refused:
        order["stop"] = ["start_failed", attempt.refused]
    try:
        if not attempt.pid:  # perhaps nothing was written yet
            os.makedirs(order["dir"], exist_ok=True)
            results.replace_file(order["dir"], "job.json", order["job_json"].encode(), sync=False)
        result, tail, trouble = results.settle(order, attempt.status, attempt.end)
    except Exception as error:
        reason = f"cannot record the end: {type(error).__name__}: {error}"
        result, tail, trouble = results.make(order, "error", reason, end=attempt.end), "", reason
        if "stop" in order:
            result["outcome"], result["reason"] = order["stop"]
    channel.tell(attempt.serial, result, tail, trouble)
