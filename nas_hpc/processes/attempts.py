"""What a keeper knows of an attempt, the recording of its end, and the waiting for a late result.

Standard library only, Python 3.8 or later: it is loaded in the user's interpreters.
"""

from __future__ import annotations

import heapq
import os
import time

from nas_hpc.processes import remains, results

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from nas_hpc.processes.channel import Channel


FIRST_PAUSE_S = 0.05
LONGEST_PAUSE_S = 1.0


class Attempt:
    """One order from its arrival to its report."""

    __slots__ = (
        "order", "serial", "pid", "status", "end", "cpu_s", "rss",
        "result", "tail", "trouble", "kept", "alone", "refused", "drop", "until",
        "pause_s", "output",
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
        self.kept = True
        """See ``remains.Remains``."""
        self.alone = False
        """It said at its end that it had no descendants and could get none."""
        self.refused = ""
        """Why its program could not be started."""
        self.drop = False
        """It is to run elsewhere: no result is written for it here."""
        self.until = -1.0
        """Monotonic time until which its result is looked for again; negative before its process ended."""
        self.pause_s = FIRST_PAUSE_S
        """Until the next look."""
        self.output = -1
        """The file that its program writes to, open until it is started."""

    def wait(self) -> None:
        """Take the end of its process, which has ended."""
        _, self.status, usage = os.wait4(self.pid, 0)
        self.end = time.time()
        self.cpu_s = usage.ru_utime + usage.ru_stime
        self.rss = usage.ru_maxrss * 1024

    def signal(self, number: int) -> None:
        """Send a signal to its process and those that this has started. It must not have been waited for."""
        if not self.pid:
            return  # its directory is being made; "stop" keeps it from starting
        try:
            os.killpg(self.pid, number)
        except ProcessLookupError:  # it has not begun its own session yet
            os.kill(self.pid, number)

    def ended(self) -> dict[str, Any]:
        """What the agent is told of its end, before its result."""
        job, number = self.key
        return {
            "op": "ended",
            "job": job,
            "attempt": number,
            "tail": self.tail,
            "trouble": self.trouble,
            "kept": self.kept,
            "cpu_s": self.cpu_s,
            "max_rss_bytes": self.rss,
        }

    @property
    def key(self) -> tuple[str, int]:
        """(job, attempt number)."""
        return self.order["job"], self.order["attempt"]


class Late:
    """Attempts that succeeded and whose result is not to be seen yet, by the time of the next look.

    Their slots are not given away meanwhile: such an attempt is not over.
    """

    def __init__(self) -> None:
        self._waiting: list[tuple[float, int, Attempt]] = []

    def add(self, attempt: Attempt) -> None:
        """Look again after a pause that doubles, the last time at the end of the grace."""
        due = max(time.monotonic(), min(time.monotonic() + attempt.pause_s, attempt.until))
        attempt.pause_s = min(2 * attempt.pause_s, LONGEST_PAUSE_S)
        heapq.heappush(self._waiting, (due, attempt.serial, attempt))

    def due(self) -> list[Attempt]:
        """Take those that are to be looked at now."""
        now, found = time.monotonic(), []
        while self._waiting and self._waiting[0][0] <= now:
            found.append(heapq.heappop(self._waiting)[2])
        return found

    def hurry(self, attempt: Attempt) -> None:
        """The next look is the last one, and now."""
        attempt.until = 0.0
        self._waiting = [(0.0 if one is attempt else due, n, one) for due, n, one in self._waiting]
        heapq.heapify(self._waiting)

    def wait_s(self) -> float | None:
        """Seconds until somebody is to be looked at; None: there is nobody."""
        return max(0.0, self._waiting[0][0] - time.monotonic()) if self._waiting else None


def finish(attempt: Attempt, channel: Channel) -> bool:
    """Judge an attempt that told no result itself, write what remains of it, tell the keeper.

    False, and nothing is told, while its result may only not be visible yet.
    """
    order = attempt.order
    if attempt.refused:
        order["stop"] = ["start_failed", attempt.refused]
    try:
        patient = time.monotonic() < attempt.until
        judged = results.judge(order, attempt.status, attempt.end, patient=patient)
        if judged is None:
            order["looked"] = True
            return False
        result = judged
        trouble = ""
        if not attempt.pid and order["record"] == "each":  # perhaps nothing was written yet
            trouble = remains.write_job(order)
        left = remains.leave(order, result)
        left.trouble = trouble or left.trouble
    except Exception as error:
        reason = f"cannot record the end: {type(error).__name__}: {error}"
        result = results.make(order, "error", reason, end=attempt.end)
        left = remains.Remains(trouble=reason, kept=order["record"] == "each")
        if "stop" in order:
            result["outcome"], result["reason"] = order["stop"]
    remains.tell(channel, order, result, left)
    return True
