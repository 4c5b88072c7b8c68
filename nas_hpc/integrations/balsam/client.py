"""A search's connection with Balsam: its evaluations are jobs of its workflow.

Everything happens in the caller's thread: ``receive`` blocks in one poll on the bridge, which pushes changes.
Requests go one after the other, each after the answer to the one before; what a database that is down
could not take is asked again. All of them may be asked again without harm.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nas_hpc import wire
from nas_hpc.errors import LauncherGone, NasHpcError, Superseded
from nas_hpc.evaluator.client import RECONNECT_VARIABLE
from nas_hpc.integrations.balsam import children
from nas_hpc.integrations.balsam.children import CANCELLED, TIMEOUT, Asked, Verdict
from nas_hpc.integrations.balsam.jobs import Owner, job_of
from nas_hpc.integrations.balsam.protocol import SUPERSEDED, Answer, BridgeError, Event, Link

PAUSES_S = (0.5, 1.0, 2.0, 5.0)
"""Between requests to a database that is down."""
INTERRUPTIONS = 5
"""So often an evaluation is run again that ended with a launcher, and that Balsam took for failed."""
REMOVED = "its job was removed from the database"
GRACE_S = 10.0
"""A program that ends itself when its time is over is given so much longer."""
LOOK_S = 600.0
"""When nothing was heard for so long of what is in flight, all of it is looked at: a person may have removed
a job from the database."""
_log = logging.getLogger("nas_hpc.evaluator")


@dataclass(frozen=True, slots=True)
class Request:
    """Something asked of the bridge."""

    number: int
    """The evaluator's; 0: this client's own."""
    do: str
    fields: Mapping[str, Any]


class BalsamClient:
    """One attempt of one search, connected; ``evaluator.client.SearchClient`` says what the methods do.

    ``past``: its evaluations of earlier attempts, as the bridge tells them. ``shape``: what an evaluation
    occupies as the evaluator asks for it, ``here`` as Balsam can have it.
    """

    def __init__(
        self,
        link: Link,
        owner: Owner,
        *,
        attempt: int,
        capacity: int,
        past: Sequence[Mapping[str, Any]],
        started: float,
        shape: tuple[wire.Shape, wire.Shape],
        patience_s: float,
        capacity_file: Path | None = None,
    ) -> None:
        self._link, self._owner, self._attempt = link, owner, attempt
        self._asked_shape, self._shape_here = shape
        self._patience_s = patience_s
        self._capacity, self._capacity_file = capacity, capacity_file
        self._outbox: deque[Request] = deque()
        self._sent = 0
        self._number = 0
        self._down_since = self._again = self._pauses = 0.0
        self._messages: list[wire.Message] = []
        self._asked: dict[int, Asked] = {}
        self._done: dict[int, wire.Done] = {}
        self._limits: dict[int, float] = {}
        self._retried: set[tuple[int, int, str]] = set()
        self._cancelled: set[int] = set()
        self._heard = time.monotonic()
        self._ended: NasHpcError | None = None
        self._killed = False
        self.cursor = 0
        self._welcome(past, started)
        self._note_capacity("start", capacity)

    # -- what the evaluator uses -------------------------------------------------------------------
    def submit(self, asks: tuple[wire.Ask, ...]) -> int:
        """Ask for evaluations."""
        asks = tuple(self._fitted(ask) for ask in asks)
        jobs = [job_of(ask, self._owner, self._done.get(ask.cached_of)) for ask in asks]
        for job in jobs:
            self._asked[job["seq"]] = children.asked_of(job)
        return self._request("add", jobs=jobs)

    def cancel(self, seqs: tuple[int, ...]) -> int:
        """Have evaluations ended."""
        self._cancelled.update(seqs)
        return self._request("kill", seqs=list(seqs), message=CANCELLED)

    def report(self, report: wire.Report) -> None:
        """Balsam has no place for progress: the search's own output shows it."""

    def receive(self, timeout_s: float | None = None) -> list[wire.Message]:
        """Wait for messages.

        Raises:
            LauncherGone: the database is down for longer than the time to wait, or the search's job was
                killed.
            Superseded: another attempt of this search runs.
            NasHpcError: the bridge cannot be started.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        looked = False
        while True:
            self._tend()
            if self._messages:
                messages, self._messages = self._messages, []
                return messages
            if self._ended is not None:
                raise self._ended
            wait_s = self._wait_s(deadline)
            if looked and deadline is not None and time.monotonic() >= deadline:
                return []
            for said in self._link.receive(wait_s):
                self._take(said)
            looked = True

    def close(self) -> None:
        """Leave. The evaluations of a search whose job was killed are ended with it."""
        try:
            self._last_words()
        except NasHpcError as error:
            _log.info("what is in flight goes on in Balsam: %s", error.message)
        finally:
            self._note_capacity("end", 0)
            self._link.close()

    # -- requests ----------------------------------------------------------------------------------
    def _request(self, do: str, *, own: bool = False, **fields: Any) -> int:
        number = 0
        if not own:
            self._number += 1
            number = self._number
        self._outbox.append(Request(number, do, fields))
        self._send()
        return number

    def _send(self) -> None:
        if self._sent or not self._outbox or time.monotonic() < self._again:
            return
        request = self._outbox[0]
        self._sent = self._link.ask(request.do, job=self._owner.job, attempt=self._attempt, **request.fields)

    def _answered(self, answer: Answer) -> None:
        if answer.id != self._sent:
            return
        self._sent = 0
        error = answer.error
        if error is not None and error.kind == "down":
            self._note_down(error)
            return
        if self._down_since:
            _log.info("the Balsam database answers again")
        self._down_since = self._again = self._pauses = 0
        request = self._outbox.popleft()
        if request.do == "children":
            self._looked(answer.ok or {})
        elif error is not None:
            self._refused(request, error)
        elif request.number:
            self._messages.append(wire.Accepted(request.number))
            added = request.fields.get("jobs", ())
            self._messages += self._results([_settled(job) for job in added if "state" in job])
        self._send()

    def _refused(self, request: Request, error: BridgeError) -> None:
        if SUPERSEDED in error.message:
            self._ended = Superseded(f"this search has to end: {error.message}")
        elif request.do == "add":
            self._messages.append(wire.Refused(request.number, error.message))
        else:
            _log.warning("Balsam: %s: %s", request.do, error.message)
            if request.number:
                self._messages.append(wire.Accepted(request.number))

    def _note_down(self, error: BridgeError) -> None:
        now = time.monotonic()
        if not self._down_since:
            self._down_since = now
            _log.warning("%s; asking again for up to %g s", error.message, self._patience_s)
        if now - self._down_since >= self._patience_s:
            self._ended = LauncherGone(
                f"{error.message}; no answer for {self._patience_s:g} s, "
                f"the time that {RECONNECT_VARIABLE} gives it"
            )
        self._again = now + PAUSES_S[min(int(self._pauses), len(PAUSES_S) - 1)]
        self._pauses += 1

    # -- time --------------------------------------------------------------------------------------
    def _tend(self) -> None:
        """Do what is due."""
        now = time.monotonic()
        over = [seq for seq, limit in self._limits.items() if limit <= now]
        by_limit: dict[float, list[int]] = {}
        for seq in over:
            del self._limits[seq]
            by_limit.setdefault(self._asked[seq].timeout_s, []).append(seq)
        for limit_s, seqs in by_limit.items():
            self._request("kill", own=True, seqs=seqs, message=f"{TIMEOUT}ran longer than {limit_s:g} s")
        if now >= self._heard + LOOK_S and self._in_flight():
            self._heard = now
            self._request("children", own=True)
        self._send()

    def _in_flight(self) -> set[int]:
        return self._asked.keys() - self._done.keys()

    def _wait_s(self, deadline: float | None) -> float | None:
        until = [] if deadline is None else [deadline]
        until += self._limits.values()
        if self._in_flight():
            until.append(self._heard + LOOK_S)
        if self._outbox and not self._sent:
            until.append(self._again)
        return max(0.0, min(until) - time.monotonic()) if until else None

    # -- what the bridge says ----------------------------------------------------------------------
    def _take(self, said: Answer | Event) -> None:
        if isinstance(said, Answer):
            self._answered(said)
        elif said.kind == "search":
            self._search_changed(said.body)
        elif said.kind == "jobs":
            self._heard = time.monotonic()
            self._messages += self._results(said.body["jobs"])

    def _looked(self, found: Mapping[str, Any]) -> None:
        """Compare with all evaluations that there are; what was asked for and is not there is over."""
        if "jobs" not in found:
            return
        self._messages += self._results(found["jobs"])
        there = {int(item["seq"]) for item in found["jobs"]}
        now = time.time()
        gone = [
            {"seq": seq, "state": children.KILLED, "history": [[now, children.KILLED, REMOVED]]}
            for seq in sorted(self._in_flight() - there)
        ]
        self._messages += self._results(gone)

    def _search_changed(self, body: Mapping[str, Any]) -> None:
        if int(body.get("attempt") or 0) > self._attempt:
            self._ended = Superseded(
                f"this search has to end: {SUPERSEDED} by attempt {body['attempt']}, which Balsam started"
            )
        elif body.get("state") in (children.KILLED, "REMOVED"):
            self._killed = body["state"] == children.KILLED
            what = "killed" if self._killed else "removed from the database"
            self._ended = LauncherGone(f"this search has to end: its job was {what}")

    def _results(self, items: Sequence[Mapping[str, Any]]) -> list[wire.Message]:
        ended = []
        for item in items:
            found = self._look(item)
            if found is not None:
                ended.append((found.stamp, int(item["seq"]), found, item))
        done = tuple(
            self._finish(found, item) for _, _, found, item in sorted(ended, key=lambda one: one[:2])
        )
        return [wire.Results(done)] if done else []

    def _look(self, item: Mapping[str, Any]) -> Verdict | None:
        """How the evaluation ended, if that is news. What is to be run again is asked for."""
        seq = int(item["seq"])
        if seq not in self._asked:
            self._asked[seq] = children.asked_of(item)
        asked, found = self._asked[seq], children.verdict(item)
        if found is None:
            self._note_running(seq, asked, item)
            return None
        self._limits.pop(seq, None)
        known = self._done.get(seq)
        if known is not None and found.attempt <= known.attempt:
            return None  # what follows an end, or is told again
        if (
            item["state"] in children.FAILED
            and found.outcome.value != "killed"
            and self._goes_on(item, asked)
        ):
            return None
        return found

    def _note_running(self, seq: int, asked: Asked, item: Mapping[str, Any]) -> None:
        since = children.running_since(item)
        if not since or not asked.timeout_s:
            self._limits.pop(seq, None)
        elif seq not in self._limits and seq not in self._done:
            passed = max(0.0, time.time() - since)
            limit_s = asked.timeout_s + (GRACE_S if asked.own_limit else 0.0)
            self._limits[seq] = time.monotonic() + max(0.0, limit_s - passed)

    def _goes_on(self, item: Mapping[str, Any], asked: Asked) -> bool:
        """Have a failed evaluation run again, if it may; whether it does."""
        seq, state = int(item["seq"]), str(item["state"])
        if seq in self._cancelled or asked.cached:
            return False
        if children.interrupted(item):
            count, again = children.interruptions(item), children.interruptions(item) <= INTERRUPTIONS
        else:
            count, again = children.failures(item), children.failures(item) <= asked.retries
        if again and (seq, count, state) not in self._retried:
            self._retried.add((seq, count, state))
            self._request("retry", own=True, seqs=[seq], message="run again by its search")
        return again

    def _finish(self, found: Verdict, item: Mapping[str, Any]) -> wire.Done:
        seq = int(item["seq"])
        self.cursor += 1
        done = found.done(item, self._asked[seq], self.cursor)
        self._done[seq] = done
        return done

    # -- beginning and end -------------------------------------------------------------------------
    def _welcome(self, past: Sequence[Mapping[str, Any]], started: float) -> None:
        self._messages += self._results(past)
        pending = tuple(
            wire.Pending(seq, asked.config, asked.data)
            for seq, asked in sorted(self._asked.items())
            if seq not in self._done
        )
        epoch = f"{self._owner.job}-{self._attempt}"
        self._messages.append(
            wire.Welcome(wire.PROTOCOL, epoch, self._capacity, pending, 0.0, started or time.time())
        )

    def _last_words(self) -> None:
        """Take what the bridge has said meanwhile; end the evaluations of a killed search."""
        for said in self._link.receive(0):
            if isinstance(said, Event) and said.kind == "search":
                self._search_changed(said.body)
        left = sorted(self._in_flight())
        if self._killed and left:
            self._link.call(
                "kill", job=self._owner.job, attempt=self._attempt, seqs=left, message="its search was killed"
            )

    def _fitted(self, ask: wire.Ask) -> wire.Ask:
        """``ask`` with as many on a node as Balsam is to place, where it says nothing else."""
        if ask.shape.node_packing_count != self._asked_shape.node_packing_count:
            return ask
        return replace(ask, shape=replace(ask.shape, node_packing_count=self._shape_here.node_packing_count))

    def _note_capacity(self, event: str, slots: int) -> None:
        """A line for analytics, as this project's launcher writes it."""
        if self._capacity_file is None:
            return
        line = {
            "launcher": f"{self._owner.job.replace('-', '')}-{self._attempt}",
            "time": time.time(),
            "event": event,
            "nodes": [],
            "mode": self._owner.mode,
            "slots": slots,
            "host": socket.gethostname(),
            "pid": os.getpid(),
        }
        try:
            with open(self._capacity_file, "a", encoding="utf-8") as stream:
                stream.write(json.dumps(line) + "\n")
        except OSError as error:
            _log.warning("%s cannot be written: %s", self._capacity_file, error.strerror)


def _settled(job: Mapping[str, Any]) -> dict[str, Any]:
    """A job that was added with its result, as the bridge tells of others."""
    result = json.loads(job["files"]["result.json"])
    history = [[result["end"], job["state"], job["message"]]]
    return {"seq": job["seq"], "state": job["state"], "history": history, "result": result}
