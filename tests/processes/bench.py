"""An agent in a loop of its own, for tests: orders in, ends out."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import textwrap
import time
import uuid
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any, TypeVar

from nas_hpc.launcher.agent import Agent
from nas_hpc.processes import packed, sessions
from nas_hpc.processes.orders import Call, Ended, Key, Order, Started
from tests.support import LATE_S

T = TypeVar("T")

LONG_S = 60.0


class Bench:
    """One agent and what it told. Use as ``async with Bench(tmp_path) as bench``."""

    def __init__(self, path: Path, **settings: Any) -> None:
        self.path = path
        self.marker = uuid.uuid4().hex
        self.log = path / "sessions.log"
        self.settings = {"result_grace_s": 0.1 + 2 * LATE_S, **settings}
        self.started: dict[Key, Started] = {}
        self.starts: list[Started] = []
        self.ended: dict[Key, Ended] = {}
        self.notes: list[str] = []
        self._told = asyncio.Event()
        self.agent: Agent

    async def __aenter__(self) -> Bench:
        self.agent = Agent(
            marker=self.marker,
            sessions_log=self.log,
            on_started=self._on_started,
            on_ended=self._on_ended,
            on_note=self.notes.append,
            **self.settings,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.agent.close()

    def _on_started(self, started: Started) -> None:
        self.started[started.key] = started
        self.starts.append(started)
        self._told.set()

    def _on_ended(self, ended: Ended) -> None:
        assert ended.key not in self.ended, "an end is reported once"
        self.ended[ended.key] = ended
        self._told.set()

    def program(self, *argv: object, **more: Any) -> Order:
        """An order for an external program."""
        return self._order(argv=tuple(map(str, argv)), **more)

    def python(self, code: str, **more: Any) -> Order:
        """An order for a Python script."""
        return self.program(sys.executable, "-c", textwrap.dedent(code), **more)

    def call(
        self, run: str, config: Mapping[str, Any] | None = None, *, warm: bool = True, **more: Any
    ) -> Order:
        """An order for a run function of a module in ``path``."""
        call = Call(run, config or {}, more.pop("seed", 1), warm)
        more.setdefault("sys_path", (str(self.path),))
        more.setdefault("interpreter", sys.executable)
        return self._order(call=call, expects_result=True, **more)

    def _order(
        self, *, attempt: int = 1, job: str = "", environ: Mapping[str, str] | None = None, **more: Any
    ) -> Order:
        job = job or uuid.uuid4().hex
        name = more.pop("name", "task1")
        return Order(
            key=(job, attempt),
            name=name,
            directory=str(self.path / "data" / "W" / f"{name}_{job[:8]}"),
            job_json={"id": job, "name": name, "attempt": attempt},
            environ={**os.environ, **(environ or {})},
            **more,
        )

    async def end_of(self, key: Key, timeout_s: float = LONG_S) -> Ended:
        """Wait for the end of an attempt."""
        return await self._wait(lambda: self.ended.get(key), timeout_s, f"the end of {key}")

    async def start_of(self, key: Key, timeout_s: float = LONG_S) -> Started:
        """Wait until an attempt's process exists."""
        return await self._wait(lambda: self.started.get(key), timeout_s, f"the start of {key}")

    async def _wait(self, get: Callable[[], T | None], timeout_s: float, what: str) -> T:
        deadline = time.monotonic() + timeout_s
        while True:
            value = get()
            if value is not None:
                return value
            self._told.clear()
            try:
                await asyncio.wait_for(self._told.wait(), deadline - time.monotonic())
            except asyncio.TimeoutError:
                raise AssertionError(f"waited {timeout_s:g} s for {what}; notes: {self.notes}") from None

    async def run(self, order: Order) -> Ended:
        """Start an order and wait for its end; result.json, or its line, must say the same."""
        self.agent.start(order)
        ended = await self.end_of(order.key)
        line = self.line_of(order)
        content = line["result"] if line else self.result_of(order)
        assert (content["job"], content["attempt"]) == order.key
        assert content["outcome"] == ended.result.outcome.value
        assert content["objective"] == ended.result.objective
        assert content["reason"] == ended.result.reason
        return ended

    @staticmethod
    def result_of(order: Order) -> dict[str, Any]:
        """Its result.json."""
        found: dict[str, Any] = json.loads((Path(order.directory) / "result.json").read_text())
        return found

    @staticmethod
    def line_of(order: Order) -> dict[str, Any]:
        """Its line in a packed file; empty if it has none."""
        lines = list(packed.read(Path(order.directory).parent, lambda *key: key == order.key))
        assert len(lines) <= 1
        return lines[0] if lines else {}

    async def run_all(self, orders: list[Order]) -> list[Ended]:
        """Start all at once."""
        return list(await asyncio.gather(*(self.run(order) for order in orders)))

    def keepers(self) -> dict[str, int]:
        """Pids of live keepers by kind."""
        return {s.name: s.pid for s in sessions.read_log(self.log).values() if s.kind == "keeper"}

    def module(self, name: str, code: str) -> None:
        """Write a module for run functions."""
        (self.path / f"{name}.py").write_text(textwrap.dedent(code))


async def eventually(predicate: Callable[[], T], timeout_s: float = 60.0, what: str = "the condition") -> T:
    """``wait_until`` for tests that must let a loop go on."""
    deadline = time.monotonic() + timeout_s
    while True:
        value = predicate()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {timeout_s:g} s for {what}")
        await asyncio.sleep(0.005)


def go(scenario: Coroutine[Any, Any, T] | Awaitable[T]) -> T:
    """Run a scenario in a loop of its own."""

    async def run() -> T:
        return await scenario

    return asyncio.run(run())
