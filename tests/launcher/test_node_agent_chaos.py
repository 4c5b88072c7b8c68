"""Agents, launchers and connections end at random moments: nothing is lost, nothing is finished twice."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from nas_hpc.launcher.remotes import order_body
from nas_hpc.processes.orders import Key, Order
from nas_hpc.wire import AgentHello, AgentWelcome, Dismiss, End, Message, RunEnded, RunOrder, RunsSettled
from tests.launcher.played import Host, Played, alive, until

JOBS, AGENTS, EVENTS = 200, 3, 14


class Book:
    """What launchers know, one after the other: a store. Lost is what its agent does not name any more."""

    def __init__(self, host: Host, choice: random.Random) -> None:
        self.host, self.choice = host, choice
        self.orders: dict[str, Order] = {}
        """The current attempt of every job."""
        self.where: dict[str, int] = {}
        """Number of the agent that a job was given to, while it runs."""
        self.done: Counter[str] = Counter()
        self.lost = 0

    def add(self, count: int) -> None:
        for x in range(count):
            config = {"x": x, "ledger": str(self.host.path / "ledger"), "sleep": self.choice.random() * 0.5}
            order = self.host.call("m.run", config, name=f"task{x}", warm=self.choice.random() < 0.9)
            self.orders[order.key[0]] = order

    def open(self) -> list[str]:
        return [job for job in self.orders if not self.done[job]]

    def take(self, end: RunEnded) -> None:
        job = end.job
        if self.orders[job].key != (job, end.attempt) or self.done[job]:
            return
        self.where.pop(job, None)
        if end.outcome == "ok":
            self.done[job] += 1
        else:
            self.again(job)

    def again(self, job: str) -> None:
        self.lost += 1
        self.where.pop(job, None)
        order = self.orders[job]
        self.orders[job] = replace(order, key=(job, order.key[1] + 1))


class Master(Played):
    """A launcher that gives every open job of the book to some agent."""

    def __init__(self, book: Book) -> None:
        self.book = book
        self.peer_of: dict[int, bytes] = {}
        super().__init__(book.host)
        self.answer = self.meet

    def meet(self, hello: AgentHello) -> AgentWelcome:
        book, number = self.book, hello.number
        ended = {(end.job, end.attempt) for end in hello.ended}
        for job in [job for job, where in book.where.items() if where == number]:
            key = book.orders[job].key
            if key not in hello.running and key not in ended:
                book.again(job)
        for end in hello.ended:
            book.take(end)
        current = {book.orders[job].key for job, where in book.where.items() if where == number}
        self.stop = tuple(key for key in hello.running if key not in current)
        self.peer_of[number] = self.peers[-1]
        asyncio.get_running_loop().call_soon(self.settle, number, tuple(ended))
        return self.welcome_of(hello)

    def settle(self, number: int, keys: tuple[Key, ...]) -> None:
        if not self.gone:
            self.server.send(self.peer_of[number], RunsSettled(keys))
            self.give()

    def give(self) -> None:
        book = self.book
        for job in book.open():
            if job not in book.where and self.peer_of:
                number = book.choice.choice(sorted(self.peer_of))
                if sum(where == number for where in book.where.values()) < 6:
                    if self.server.send(self.peer_of[number], RunOrder(order_body(book.orders[job]))):
                        book.where[job] = number
                    else:
                        del self.peer_of[number]

    def _receive(self, peer: bytes, message: Message) -> None:
        super()._receive(peer, message)
        if isinstance(message, RunEnded):
            self.book.take(message)
            self.server.send(peer, RunsSettled(((message.job, message.attempt),)))
            self.give()


async def disturb(masters: list[Master], book: Book, choice: random.Random) -> str:
    """One thing goes wrong."""
    master = masters[-1]
    what = choice.choice(["agent", "agent", "launcher", "launcher", "connection", "supervisor"])
    if what == "launcher":
        master.vanish()
        await asyncio.sleep(choice.random() * 0.5)
        masters.append(Master(book))
    elif what == "agent":
        pids = alive(hello.pid for hello in master.hellos)
        if pids:
            os.kill(choice.choice(pids), signal.SIGKILL)
    elif what == "connection" and master.peer_of:
        number = choice.choice(sorted(master.peer_of))
        master.server.send(master.peer_of[number], End("the connection is to break"))
    elif what == "supervisor":
        number = choice.randrange(AGENTS)
        book.host.supervisors[number].kill()
        book.host.supervisors[number].wait()
        book.host.supervisors[number] = book.host.supervise(number)
        book.host.supervisors.pop()
    return what


async def dismiss(master: Master) -> None:
    """As a launcher does at its end: who comes late is dismissed, too."""
    master.answer = lambda hello: Dismiss("done")  # type: ignore[assignment, return-value]
    for peer in master.peer_of.values():
        master.server.send(peer, Dismiss("done"))
    await until(lambda: not any(s.poll() is None for s in master.host.supervisors), what="supervisors")
    await until(lambda: not master.host.logs(), what="the agents without one")


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, random.randrange(1 << 32)], ids=["first", "second", "random"])
def test_every_job_finishes_once_whatever_ends_meanwhile(site_dir: Path, seed: int) -> None:
    print(f"seed {seed}")
    choice = random.Random(seed)
    host = Host(site_dir)
    host.module(
        "m",
        """
        import os, time
        def run(job):
            who = f"{job.id}:{os.environ['NAS_HPC_ATTEMPT']}\\n"
            fd = os.open(job["ledger"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            os.write(fd, ("start " + who).encode())
            time.sleep(job["sleep"])
            os.write(fd, ("end " + who).encode())
            return job["x"]
        """,
    )

    async def scenario() -> None:
        book = Book(host, choice)
        book.add(JOBS)
        masters = [Master(book)]
        try:
            for number in range(AGENTS):
                host.supervise(number)
            await masters[0].hello(AGENTS)
            happened = []
            for _ in range(EVENTS):
                await asyncio.sleep(choice.random() * 0.6)
                happened.append(await disturb(masters, book, choice))
            await until(lambda: not book.open(), 60, f"the rest of {len(book.open())} (seed {seed})")
            print(f"{happened}: {book.lost} attempts were lost")
            await dismiss(masters[-1])
        finally:
            await asyncio.to_thread(host.end)
            masters[-1].close()
        check(book)

    def check(book: Book) -> None:
        lines = Counter((host.path / "ledger").read_text().split("\n")[:-1])
        assert [line for line, count in lines.items() if count > 1] == [], f"twice (seed {seed})"
        assert set(book.done.values()) == {1}
        for job, order in book.orders.items():
            assert lines[f"end {job}:{order.key[1]}"] == 1, f"finished by its last attempt (seed {seed})"
            found = host.result(order)
            assert (found["attempt"], found["outcome"]) == (order.key[1], "ok"), f"seed {seed}"
        assert host.logs() == [], "no trace of agents is left"

    asyncio.run(scenario())
