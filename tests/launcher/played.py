"""A launcher played by the test for real agents: the real endpoint, with agents and supervisors as real
processes.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import textwrap
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import psutil

from nas_hpc.launcher.endpoint import EndpointServer
from nas_hpc.launcher.remotes import order_body
from nas_hpc.processes import boot
from nas_hpc.processes.orders import Call, Key, Order
from nas_hpc.wire import (
    PROTOCOL,
    AgentHello,
    AgentNote,
    AgentWelcome,
    Message,
    RunEnded,
    RunOrder,
    RunStarted,
)

T = TypeVar("T")
WAIT_S = 60.0
ENSEMBLE = uuid.uuid4().hex


@dataclass
class Host:
    """A site's directories, and the supervisors that the test started on it."""

    path: Path
    deadline_s: float = 30.0
    ensemble: str = ENSEMBLE
    supervisors: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def __post_init__(self) -> None:
        for name in ("run", "log", "data"):
            (self.path / name).mkdir(exist_ok=True)

    @property
    def endpoint(self) -> Path:
        return self.path / "run" / "endpoint.json"

    def supervise(
        self,
        number: int = 0,
        *,
        numbers: str = "",
        environ: Mapping[str, str] | None = None,
        limits: Callable[[], None] | None = None,
    ) -> subprocess.Popen[bytes]:
        """Start a supervisor, as an MPI program or a launcher does."""
        argv = boot.command(
            sys.executable, "supervisor", self.path, self.ensemble, numbers or number, self.deadline_s,
            isolated=True,
        )  # fmt: skip
        with (self.path / "supervisors.log").open("ab") as log:
            process = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                env=None if environ is None else dict(environ), preexec_fn=limits,
            )  # fmt: skip
        self.supervisors.append(process)
        return process

    def said(self) -> str:
        """What supervisors printed."""
        log = self.path / "supervisors.log"
        return log.read_text() if log.exists() else ""

    def words(self) -> str:
        """What agents wrote into their files."""
        return "".join(log.read_text() for log in sorted((self.path / "log").glob("agents-*.log")))

    def logs(self) -> list[Path]:
        """The agents' logs of sessions."""
        return sorted((self.path / "run").glob("agent-*.sessions"))

    def module(self, name: str, code: str) -> None:
        """Write a module for run functions."""
        (self.path / f"{name}.py").write_text(textwrap.dedent(code))

    def call(self, run: str, config: Mapping[str, Any] | None = None, **more: Any) -> Order:
        """An order for a run function of a module in the site's directory."""
        call = Call(run, config or {}, 1, more.pop("warm", True))
        return self._order(
            call=call, expects_result=True, interpreter=sys.executable, sys_path=(str(self.path),), **more
        )

    def python(self, code: str, **more: Any) -> Order:
        """An order for a Python script."""
        return self._order(argv=(sys.executable, "-c", textwrap.dedent(code)), **more)

    def _order(self, *, job: str = "", attempt: int = 1, **more: Any) -> Order:
        job = job or uuid.uuid4().hex
        name = more.pop("name", "task")
        return Order(
            key=(job, attempt),
            name=name,
            directory=str(self.path / "data" / f"{name}_{job[:8]}"),
            job_json={"id": job, "attempt": attempt},
            environ=dict(os.environ),
            **more,
        )

    def result(self, order: Order) -> dict[str, Any]:
        """The attempt's result.json."""
        return json.loads((Path(order.directory) / "result.json").read_text())  # type: ignore[no-any-return]

    def end(self) -> None:
        """End what the test left, as a user would."""
        for process in self.supervisors:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
        for process in self.supervisors:
            process.wait(60)


class Played:
    """A launcher that welcomes agents as ``welcome`` says, and remembers what they say."""

    def __init__(self, host: Host, epoch: str = "", welcome: bool = True) -> None:
        self.host, self.epoch = host, epoch or uuid.uuid4().hex
        self.welcoming = welcome
        self.hellos: list[AgentHello] = []
        self.peers: list[bytes] = []
        """Of the Hellos."""
        self.heard: list[Message] = []
        self.times: list[float] = []
        """Monotonic, when the Hellos came."""
        self.notes: list[str] = []
        self.answer: Callable[[AgentHello], Message] = self.welcome_of
        self.stop: tuple[Key, ...] = ()
        self.grace_s, self.pulse_s = 5.0, 5.0
        self.gone = False
        self.opened = time.monotonic()
        self.server = EndpointServer(host.endpoint, self.epoch, self._receive, self.notes.append)

    def _receive(self, peer: bytes, message: Message) -> None:
        if isinstance(message, AgentHello):
            self.hellos.append(message)
            self.peers.append(peer)
            self.times.append(time.monotonic())
            if self.welcoming:
                self.server.send(peer, self.answer(message))
        self.heard.append(message)

    def welcome_of(self, hello: AgentHello) -> AgentWelcome:
        """The answer to Hello."""
        return AgentWelcome(PROTOCOL, self.epoch, ("n0",), self.grace_s, self.pulse_s, False, self.stop)

    def say(self, message: Message, number: int | None = None) -> None:
        """Tell the agent of ``number``, default: who said Hello last."""
        index = -1
        if number is not None:
            index = max(i for i, hello in enumerate(self.hellos) if hello.number == number)
        assert self.server.send(self.peers[index], message), "the agent is connected"

    def order(self, order: Order, number: int | None = None) -> Key:
        """Have an attempt started."""
        self.say(RunOrder(order_body(order)), number)
        return order.key

    def ended(self, key: Key) -> list[RunEnded]:
        """What was said about the attempt's end."""
        return [m for m in self.heard if isinstance(m, RunEnded) and (m.job, m.attempt) == key]

    def started(self, key: Key) -> list[RunStarted]:
        """What was said about the attempt's start."""
        return [m for m in self.heard if isinstance(m, RunStarted) and (m.job, m.attempt) == key]

    def agent_notes(self) -> list[str]:
        """Lines that agents told."""
        return [m.text for m in self.heard if isinstance(m, AgentNote)]

    async def hello(self, count: int = 1, timeout_s: float = WAIT_S) -> AgentHello:
        """Wait until so many Hellos came; the last."""
        await until(
            lambda: len(self.hellos) >= count, timeout_s, f"{count} Hellos ({self.host.said()[-500:]})"
        )
        return self.hellos[count - 1]

    async def end_of(self, key: Key, count: int = 1) -> RunEnded:
        """Wait until the attempt's end was told so many times."""
        await until(lambda: len(self.ended(key)) >= count, WAIT_S, f"end {count} of {key}: {self.heard}")
        return self.ended(key)[count - 1]

    async def start_of(self, key: Key, count: int = 1) -> RunStarted:
        """Wait until the attempt's start was told so many times."""
        await until(lambda: len(self.started(key)) >= count, WAIT_S, f"start {count} of {key}: {self.heard}")
        return self.started(key)[count - 1]

    async def run(self, order: Order) -> RunEnded:
        """From the order to its end."""
        return await self.end_of(self.order(order))

    def close(self) -> None:
        """End in order: the endpoint file goes."""
        if not self.gone:
            self.gone = True
            self.server.close()

    def vanish(self) -> None:
        """End as by SIGKILL: the endpoint file stays, the connections break."""
        self.server._is_in_place = lambda: False  # type: ignore[method-assign]
        self.close()


@asynccontextmanager
async def playing(host: Host, **how: Any) -> AsyncIterator[Played]:
    """A launcher for the length of a block; at the end the supervisors are told to end."""
    launcher = Played(host, **how)
    try:
        yield launcher
    finally:
        await asyncio.to_thread(host.end)
        launcher.close()


async def until(predicate: Callable[[], T], timeout_s: float = WAIT_S, what: str = "the condition") -> T:
    """``wait_until`` that lets the loop go on."""
    deadline = time.monotonic() + timeout_s
    while True:
        value = predicate()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {timeout_s:g} s for {what}")
        await asyncio.sleep(0.005)


def alive(pids: Iterable[int]) -> list[int]:
    """Those of the processes that run (a zombie does not)."""
    found = []
    for pid in pids:
        with contextlib.suppress(psutil.Error):
            if psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                found.append(pid)
    return found
