"""The agent of a node as a process of its own, under its supervisor, with a launcher that the test plays."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest

from nas_hpc import __version__
from nas_hpc.wire import PROTOCOL, Dismiss
from tests.launcher.played import ENSEMBLE, Host, playing


@pytest.fixture
def host(site_dir: Path) -> Host:
    return Host(site_dir)


def go(scenario: Coroutine[Any, Any, None]) -> None:
    asyncio.run(scenario)


def test_an_agent_says_what_it_is_and_runs_orders(host: Host) -> None:
    async def scenario() -> None:
        host.module("m", "def run(job): return job['x'] * 2")
        async with playing(host) as launcher:
            supervisor = host.supervise(3)
            hello = await launcher.hello()
            assert (hello.protocol, hello.version) == (PROTOCOL, __version__)
            assert (hello.ensemble, hello.number) == (ENSEMBLE, 3)
            assert hello.host in hello.names
            assert hello.cores
            assert (hello.running, hello.ended) == ((), ())
            order = host.call("m.run", {"x": 21})
            ended = await launcher.run(order)
            assert (ended.outcome, ended.objective) == ("ok", 42.0)
            assert (await launcher.start_of(order.key)).pid > 0
            assert ended.start <= ended.end
            assert host.result(order)["objective"] == 42.0
            launcher.say(Dismiss("done"))
            assert await asyncio.to_thread(supervisor.wait, 10) == 0
            assert host.logs() == []
            assert host.words() == ""

    go(scenario())
