"""A launcher inside the test, with the real database and loop, whose processes the test plays itself: what
races for milliseconds happens exactly when a test wants it.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import pytest

from nas_hpc import __version__
from nas_hpc.launcher import LauncherOptions, fleet, loop, ownership, roster
from nas_hpc.launcher.ensemble import EnsembleHooks
from nas_hpc.launcher.orders import Allocation
from nas_hpc.launcher.roster import Roster
from nas_hpc.processes.orders import Ended, Key, Order, Started, order_of
from nas_hpc.records import App, Job, Resources, Result, new_id
from nas_hpc.resources import Found, local_nodes
from nas_hpc.site import Site
from nas_hpc.states import Actor, Outcome, State
from nas_hpc.store import open_store
from nas_hpc.store.base import JobFilter, Store
from nas_hpc.wire import (
    PROTOCOL,
    AgentHello,
    Ask,
    Capacity,
    Hello,
    Message,
    Results,
    RunEnded,
    RunOrder,
    Shape,
    Submit,
    Wake,
    Welcome,
)
from tests.launcher.bench import Bench

M = TypeVar("M")
WAIT_S = 60.0
PEER = b"search"


class Puppet:
    """An agent without processes: what it is told is recorded, what happens the test says."""

    def __init__(
        self, *, on_started: Callable[[Started], None], on_ended: Callable[[Ended], None], **_: object
    ) -> None:
        self._on_started, self._on_ended = on_started, on_ended
        self.orders: dict[Key, Order] = {}
        self.stops: dict[Key, Outcome] = {}
        self.committed: set[Key] = set()
        self.on_start: Callable[[Order], None] = lambda order: None

    def start(self, order: Order) -> None:
        self.on_start(order)
        self.orders[order.key] = order
        self._on_started(Started(order.key, 1, time.time()))

    def stop(self, key: Key, outcome: Outcome, reason: str) -> None:
        if key in self.orders:
            self.stops.setdefault(key, outcome)

    def end(
        self, key: Key, outcome: Outcome = Outcome.OK, objective: float | None = 1.0, reason: str = ""
    ) -> None:
        """The attempt's process ends."""
        del self.orders[key]
        now = time.time()
        value = objective if outcome is Outcome.OK else None
        self._on_ended(Ended(key, Result(outcome, value, reason=reason, start=now, end=now)))

    def kill_all(self) -> None:
        for key in list(self.orders):
            self.end(key, Outcome.LOST)

    def settled(self, keys: Iterable[Key]) -> None:
        self.committed.update(keys)

    async def close(self) -> None:
        self.orders.clear()


class Playbill:
    """An ensemble without processes."""

    def __init__(self, site: Site, roster: Roster, hooks: EnsembleHooks, **_: object) -> None:
        self.id, self.hooks, self.log = roster.id, hooks, site.log

    def begin(self) -> None: ...

    def arrived(self, number: int, hello: AgentHello) -> None: ...

    def missing(self, number: int) -> None: ...

    def last_words(self) -> str:
        return "an agent's last words"

    async def end(self) -> None: ...

    async def abandon(self) -> None: ...


@dataclass
class Stage:
    """The launcher, its puppet, the messages that it sent, and another connection to its database."""

    launcher: loop.Launcher
    task: asyncio.Task[int]
    store: Store
    sent: list[tuple[bytes, Message]] = field(default_factory=list)

    @property
    def agent(self) -> Puppet:
        return self.launcher.agent  # type: ignore[return-value]

    async def until(self, predicate: Callable[[], object], what: str) -> None:
        """Let the loop turn until it is so; an end of the launcher is an answer, too."""
        deadline = time.monotonic() + WAIT_S
        while not predicate():
            assert time.monotonic() < deadline, f"waited {WAIT_S:g} s for {what}"
            assert not self.task.done() or self.task.exception() is None, self.task.exception()
            await asyncio.sleep(0.001)

    async def settled(self) -> None:
        """Until nothing is on its way between loop and database."""
        busy = self.launcher.dispatcher
        await self.until(
            lambda: not (busy._writes or busy._ended or busy._flush_planned or self.launcher.looks.planned),
            "the database",
        )

    def add(self, *jobs: Job) -> list[Job]:
        """As ``nas-hpc job`` does, without telling the launcher."""
        return self.store.add_jobs(jobs, Actor.COMMAND)

    def set(self, state: State, *ids: str) -> None:
        """As ``nas-hpc kill`` and ``retry`` do, without telling the launcher."""
        assert len(self.store.set_state(ids, state, Actor.COMMAND, "killed by a command")) == len(ids)

    def wake(self) -> None:
        """A command tells the launcher."""
        self.launcher._receive(b"command", Wake(PROTOCOL, 1))

    def says(self, message: Message, peer: bytes = PEER) -> None:
        """A search says something."""
        self.launcher._receive(peer, message)

    def arrives(
        self,
        number: int,
        *,
        peer: bytes = b"",
        incarnation: str = "1",
        running: Iterable[Key] = (),
        ended: Iterable[RunEnded] = (),
        **other: Any,
    ) -> bytes:
        """The agent of that number says Hello; its address."""
        assert self.launcher.fleet is not None
        peer = peer or f"agent {number} {incarnation}".encode()
        hello = AgentHello(
            protocol=PROTOCOL, version=__version__, ensemble=self.launcher.fleet.ensemble.id, number=number,
            incarnation=incarnation, host="host", names=("host",), boot_id="boot", pid=1, start_ticks=1,
            cores=(0, 1, 2, 3), numa=(), threads_per_core=1, gpus=(), running=tuple(running),
            ended=tuple(ended),
        )  # fmt: skip
        self.says(replace(hello, **other), peer)
        return peer

    def cut(self, *peers: bytes) -> None:
        """From now on nothing reaches these; none named: nobody."""
        deliver = self.launcher.endpoint.send
        self.launcher.endpoint.send = lambda to, message: (  # type: ignore[method-assign]
            bool(peers) and to not in peers and deliver(to, message)
        )

    def told(self, peer: bytes, kind: type[M]) -> list[M]:
        """Messages of a kind that were sent to ``peer``."""
        return [message for to, message in self.sent if to == peer and isinstance(message, kind)]

    def orders(self, peer: bytes) -> list[Key]:
        """What an agent was asked to run, in order."""
        return [order_of(message.order).key for message in self.told(peer, RunOrder)]

    async def search(self, shape: Shape | None = None, peer: bytes = PEER, **need: Any) -> Job:
        """A search that runs and has been welcomed."""
        [job] = self.add(replace(search(), resources=Resources(**need)))
        self.wake()
        await self.until(lambda: (job.id, 1) in self.agent.orders, "the search's start")
        self.says(Hello(PROTOCOL, job.id, 1, 0, shape or SHAPE), peer)
        await self.until(lambda: self.told(peer, Welcome), "Welcome")
        return job

    def capacity(self, peer: bytes = PEER) -> int:
        """What a search was told last."""
        return [m.capacity for to, m in self.sent if to == peer and isinstance(m, Welcome | Capacity)][-1]

    async def evaluations(self, *seqs: int) -> list[Key]:
        """The search asks for these, and they run."""
        before = set(self.agent.orders)
        self.says(Submit(seqs[0], tuple(Ask(q, "m.f", {"x": q}, 1, SHAPE) for q in seqs)))
        await self.until(lambda: len(self.agent.orders) == len(before) + len(seqs), "the evaluations' start")
        return [key for key in self.agent.orders if key not in before]

    def results(self) -> dict[int, str]:
        """Outcomes by number, as the search was told."""
        told = [message for _, message in self.sent if isinstance(message, Results)]
        return {done.seq: done.outcome for results in told for done in results.done}

    def jobs(self, **where: Any) -> list[Job]:
        return self.store.jobs(JobFilter(**where))


SHAPE = Shape(node_packing_count=4)


def search() -> Job:
    """A job that is a search."""
    return Job(id=new_id(), name="s", workflow="W", application="SEARCH")


def program(**fields: Any) -> Job:
    """A job that is a plain program."""
    return Job(id=new_id(), name="p", workflow="W", application="PLAIN", **fields)


@asynccontextmanager
async def staged(
    site: Site,
    patch: pytest.MonkeyPatch,
    before: Callable[[Store], None] = lambda store: None,
    **options: Any,
) -> AsyncIterator[Stage]:
    """A launcher in serial mode on one node of four cores, which waits a minute for work.

    With ``nodes`` it has so many virtual ones; with ``agents`` as many, whose agents the test plays:
    ``Stage.arrives``. ``before`` prepares the database.
    """
    patch.setattr(loop, "Agent", Puppet)
    patch.setattr(fleet, "Ensemble", Playbill)
    chosen = LauncherOptions(**{"job_mode": "serial", "idle_timeout_s": 60.0, **options})
    nodes = tuple(local_nodes(max(1, chosen.agents, chosen.nodes), 4))
    found = Found(nodes, here=nodes[0].name) if len(nodes) == 1 else Found(nodes, virtual=True)
    store = open_store(site.database)
    try:
        store.put_app(App("SEARCH", "search", restartable=True), replace=True)
        store.put_app(App("PLAIN", "plain"), replace=True)
        before(store)
        lease, dead = ownership.take_site(store, site, chosen)
        agents = roster.wanted(chosen, found)
        served = [node.name for node in nodes] if agents is not None else []
        left = ownership.adopt(store, site, lease, chosen, served)
        allocation = Allocation(site, lease.id, chosen.job_mode, found, False)
        launcher = loop.Launcher(site, chosen, lease, dead, allocation, agents, left)
        stage = Stage(launcher, asyncio.create_task(launcher.run()), store)
        await stage.until(lambda: launcher.looks.ready, "the launcher")
        launcher.endpoint.send = lambda peer, message: stage.sent.append((peer, message)) is None  # type: ignore[method-assign]
        await stage.settled()
        try:
            yield stage
        finally:
            if not stage.task.done():
                launcher.stop("the test is over")
                await asyncio.sleep(0)
                stage.cut()
                stage.launcher.dispatcher.agent.kill_all()  # type: ignore[union-attr]
            await asyncio.wait([stage.task], timeout=WAIT_S)
            assert stage.task.done(), "the launcher does not end"
    finally:
        store.close()


Play = Callable[[Stage], Awaitable[None]]


def on_stage(**options: Any) -> Callable[[Play], Callable[..., None]]:
    """Run a test with a launcher on the stage."""

    def decorate(play: Play) -> Callable[..., None]:
        @functools.wraps(play)
        def test(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
            async def run() -> None:
                async with staged(Site(bench.site), monkeypatch, **options) as stage:
                    await play(stage)

            asyncio.run(run())

        del test.__wrapped__  # type: ignore[attr-defined]  # pytest reads its parameters
        return test

    return decorate
