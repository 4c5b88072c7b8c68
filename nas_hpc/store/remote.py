"""The job database of a site on a shared file system, as a command has it: by way of who owns it.

Each call takes the way that there is: to the owner's endpoint; to the inbox where that cannot be reached; or,
where nobody owns the database, the command owns it itself. A call whose owner died goes to the next one with
the same id, so that it is carried out once.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

from nas_hpc.errors import LauncherGone, NasHpcError, ProtocolError, SiteError, StoreError
from nas_hpc.records import App, Attempt, Event, Job, Lease, new_id
from nas_hpc.site import Site
from nas_hpc.states import Actor, State
from nas_hpc.store import calls, inbox
from nas_hpc.store.base import Finished, JobFilter, Store
from nas_hpc.store.owner import (
    FIRST_PAUSE_S,
    LAUNCHER,
    LONGEST_PAUSE_S,
    WAIT_S,
    BatchEnded,
    Occupied,
    Owner,
    is_dead,
    read_owner,
)  # fmt: skip
from nas_hpc.wire import PROTOCOL, StoreAnswer, StoreCall, read_endpoint
from nas_hpc.wire.line import Line

if TYPE_CHECKING:
    from nas_hpc.store.sql import SqlStore

CONNECT_S = 2.0
ENDPOINT_S = 5.0
"""An owner that has no endpoint yet, or not any more, is given so long."""
ANSWER_S = 30.0
"""An owner that is connected and says nothing for so long is taken for one that cannot be reached."""
INBOX_S = 15.0
"""So long the answer to a file in the inbox is waited for, beyond the time between two looks of an owner."""
_CANNOT_WRITE = frozenset({errno.EROFS, errno.EACCES, errno.ENOSPC, errno.EDQUOT})
IDS = 500
"""Ids in one question for histories."""


class Left(NasHpcError):
    """A change lies in the inbox: the owner will carry it out."""

    exit_code = 0


class _Way(Protocol):
    def do(self, call: StoreCall) -> calls.Answer:
        """Have ``call`` carried out. Raises LauncherGone if the way is no more."""

    def close(self) -> None:
        """Release it."""


@dataclass(slots=True)
class _Own:
    """This process has the database open."""

    store: SqlStore

    def do(self, call: StoreCall) -> calls.Answer:
        answer = calls.execute(self.store, call)
        if answer.error is not None:
            raise answer.error
        return answer

    def close(self) -> None:
        self.store.close()


@dataclass(slots=True)
class _ByLine:
    """The owner's endpoint."""

    line: Line
    owner: Owner
    sent: int = 0

    def do(self, call: StoreCall) -> calls.Answer:
        self.sent += 1
        self.line.send(replace(call, request=self.sent))
        parts: list[StoreAnswer] = []
        while not parts or not parts[-1].last:
            message = self.line.receive(ANSWER_S, lambda: not is_dead(self.owner))
            if not isinstance(message, StoreAnswer):
                raise ProtocolError(f"the owner of the job database answered with {type(message).__name__}")
            if message.request == self.sent:
                parts.append(message)
        return calls.answer_of(parts)

    def close(self) -> None:
        self.line.close()


class RemoteStore:
    """The commands' part of ``Store``; what only launchers do is refused.

    ``heartbeat_s`` is the time between two looks of an owner into its inbox. Raises Occupied when the
    database cannot be had within a while, and what ``owned.open_owned`` raises.
    """

    shared = False

    def __init__(
        self,
        site: Site,
        *,
        read_only: bool = False,
        heartbeat_s: float = 10.0,
        batch_ended: BatchEnded | None = None,
    ) -> None:
        self._site, self.read_only = site, read_only
        self.changed = False
        """Whether a change was asked for."""
        self._inbox_s = heartbeat_s + INBOX_S
        self._batch_ended = batch_ended
        self._way: _Way | None = self._find()

    def close(self) -> None:
        """See ``Store.close``."""
        way, self._way = self._way, None
        if way is not None:
            way.close()

    # -- ways ----------------------------------------------------------------------------------------
    def _find(self) -> _Way:
        began, pause_s = time.monotonic(), FIRST_PAUSE_S
        while True:
            owner = read_owner(self._site)
            if owner is None or is_dead(owner, self._batch_ended):
                try:
                    return self._own()
                except Occupied as occupied:
                    owner = occupied.owner
            waited_s = time.monotonic() - began
            if owner is not None and owner.kind == LAUNCHER and not is_dead(owner, self._batch_ended):
                way = self._line_to(owner)
                if way is not None:
                    return way
                if waited_s >= ENDPOINT_S:
                    return _ByInbox(self, owner)
            elif waited_s >= WAIT_S:
                raise Occupied(self._site, owner)
            time.sleep(pause_s)
            pause_s = min(pause_s * 1.5, LONGEST_PAUSE_S)

    def own(self) -> _Own:
        """Own the database now. Raises Occupied."""
        return self._own()

    def _own(self) -> _Own:
        from nas_hpc.store import open_store
        from nas_hpc.store.owned import open_owned

        try:
            return _Own(open_owned(self._site, wait_s=0.0, batch_ended=self._batch_ended))
        except SiteError as error:  # where nobody may write, one may read all the same
            cause = error.__cause__
            if not (self.read_only and isinstance(cause, OSError) and cause.errno in _CANNOT_WRITE):
                raise
            return _Own(open_store(self._site.database, read_only=True))

    def _line_to(self, owner: Owner) -> _Way | None:
        """The way to the owner's endpoint; None if there is none (yet), ``_ByInbox`` if nobody answers."""
        try:
            endpoint = read_endpoint(self._site.endpoint)
        except LauncherGone:
            return None
        if (endpoint.host, endpoint.pid) != (owner.host, owner.pid):
            return None  # an earlier one's
        try:
            return _ByLine(Line(endpoint, CONNECT_S), owner)
        except LauncherGone:
            return None if is_dead(owner) else _ByInbox(self, owner)

    # -- calls ---------------------------------------------------------------------------------------
    def _ask(self, name: str, *arguments: Any) -> calls.Answer:
        call = StoreCall(PROTOCOL, 0, new_id(), name, arguments)
        if self.read_only and calls.writes(call):
            raise SiteError(f"the job database {self._site.database} was opened for reading only")
        self.changed |= calls.writes(call)
        for _ in range(3):
            try:
                if self._way is None:
                    self._way = self._find()
                return self._way.do(call)
            except LauncherGone as error:
                gone = error
                self.close()
            except UnicodeEncodeError as error:
                raise calls.refused_text(error) from None
        owner = read_owner(self._site)
        if owner is None:
            raise StoreError(f"{self._site.path}: its owner changes again and again: {gone}")
        return _ByInbox(self, owner).do(call)  # it accepts connections and says nothing

    # -- applications --------------------------------------------------------------------------------
    def put_app(self, app: App, *, replace: bool = False) -> None:
        """See ``Store.put_app``."""
        self._ask("put_app", calls.put_app(app), replace)

    def apps(self) -> list[App]:
        """See ``Store.apps``."""
        return [App(*row) for row in self._ask("apps").rows]

    def remove_app(self, name: str) -> None:
        """See ``Store.remove_app``."""
        self._ask("remove_app", name)

    # -- jobs ----------------------------------------------------------------------------------------
    def add_jobs(self, jobs: Sequence[Job], actor: Actor) -> list[Job]:
        """See ``Store.add_jobs``."""
        answer = self._ask("add_jobs", [calls.put_job(job) for job in jobs], actor.value)
        return [calls.get_job(row) for row in answer.rows]

    def jobs(self, where: JobFilter) -> list[Job]:
        """See ``Store.jobs``. A large listing is read in pages: it has the jobs that were there when it began
        and still are, each as it is when its page is read."""
        rows = self._ask("jobs", calls.put_filter(where)).rows
        if rows and isinstance(rows[0], int):
            numbers, rows = rows, []
            for start in range(0, len(numbers), calls.PAGE):
                rows += self._ask("page", numbers[start : start + calls.PAGE]).rows
        found = [calls.get_job(row) for row in rows]
        if where.made_by:
            found = [job for job in found if job.made_by == where.made_by]
        return [job for job in found if job.state in where.states] if where.states else found

    def counts(self, where: JobFilter) -> dict[State, int]:
        """See ``Store.counts``."""
        return {State(state): count for state, count in self._ask("counts", calls.put_filter(where)).rows}

    def modify(self, changed: Sequence[Job]) -> None:
        """See ``Store.modify``."""
        self._ask("modify", [calls.put_job(job) for job in changed])

    def remove(self, where: JobFilter) -> list[Job]:
        """See ``Store.remove``."""
        doomed = self.jobs(where)  # for the case that the owner dies before it has said what it removed
        for job in list(doomed):
            doomed += [] if job.creator else self.jobs(JobFilter(creator=job.id))
        answer = self._ask("remove", calls.put_filter(where))
        return doomed if answer.repeated else [calls.get_job(row) for row in answer.rows]

    def set_state(self, ids: Iterable[str], state: State, actor: Actor, message: str = "") -> list[Job]:
        """See ``Store.set_state``. If an owner died right after it had done that, the jobs are returned that
        are in ``state`` now."""
        wanted = list(ids)
        answer = self._ask("set_state", wanted, state.value, actor.value, message)
        if answer.repeated:
            return [job for job in self.jobs(JobFilter(ids=tuple(wanted))) if job.state is state]
        return [calls.get_job(row) for row in answer.rows]

    # -- history -------------------------------------------------------------------------------------
    def leases(self, *, live_only: bool = True) -> list[Lease]:
        """See ``Store.leases``."""
        return [Lease(*row) for row in self._ask("leases", live_only).rows]

    def finished(self, creator: str, after: int = 0, limit: int = 0) -> list[Finished]:
        """See ``Store.finished``."""
        return [calls.get_finished(row) for row in self._ask("finished", creator, after, limit).rows]

    def attempts(self, job_ids: Sequence[str]) -> list[Attempt]:
        """See ``Store.attempts``."""
        return [calls.get_attempt(row) for row in self._ask("attempts", list(job_ids)).rows]

    def events(self, job_ids: Sequence[str] = (), after: int = 0, limit: int = 0) -> list[Event]:
        """See ``Store.events``."""
        ids = sorted(set(job_ids))
        rows: list[Any] = []
        for start in range(0, len(ids) or 1, IDS):
            rows += self._ask("events", ids[start : start + IDS], after, limit).rows
        rows.sort(key=lambda row: row[0])
        return [calls.get_event(row) for row in (rows[:limit] if limit else rows)]

    def __getattr__(self, name: str) -> Any:
        if not hasattr(Store, name):
            raise AttributeError(name)
        raise StoreError(f"{name} is for the owner of the job database alone")


@dataclass(slots=True)
class _ByInbox:
    """Files for an owner that cannot be reached."""

    store: RemoteStore
    owner: Owner

    def do(self, call: StoreCall) -> calls.Answer:
        site = self.store._site
        path = inbox.leave(site, call)
        deadline, pause_s = time.monotonic() + self.store._inbox_s, FIRST_PAUSE_S
        while True:
            answer = inbox.answered(site, call)
            if answer is not None:
                return calls.answer_of([answer])
            if time.monotonic() >= deadline:
                break
            self._succeed(path)
            time.sleep(pause_s)
            pause_s = min(pause_s * 1.5, LONGEST_PAUSE_S)
        return self._unanswered(path, call)

    def _succeed(self, path: Any) -> None:
        """Where the owner is gone this process is the next one, and carries out what was left."""
        found = read_owner(self.store._site)
        if found is not None and not is_dead(found, self.store._batch_ended):
            return
        try:
            self.store._way = self.store.own()
        except Occupied:
            return

    def _unanswered(self, path: Any, call: StoreCall) -> calls.Answer:
        waited = f"{self.owner} owns the job database, cannot be reached from here"
        if calls.writes(call):
            raise Left(
                f"{waited} and has not looked at {self.store._site.inbox} within {self.store._inbox_s:g} s: "
                "the change lies there, and is carried out by it or by whoever owns the database next"
            )
        inbox.withdraw(path)
        unchanged = "" if self.store.read_only or self.store.changed else "; nothing was changed"
        raise StoreError(
            f"{waited} and has not answered within {self.store._inbox_s:g} s{unchanged}: try again, or look "
            f"on {self.owner.host}"
        )

    def close(self) -> None:
        pass
