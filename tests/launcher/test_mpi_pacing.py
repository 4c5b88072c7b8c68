"""How fast MPI programs are started, and which nodes are given up. Pure."""

from __future__ import annotations

import asyncio
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nas_hpc.launcher import resting as resting_module
from nas_hpc.launcher.pacing import Pacer
from nas_hpc.launcher.resting import Resting
from nas_hpc.launcher.strikes import Strikes
from nas_hpc.records import Node
from nas_hpc.resources import Pool
from tests.processes.bench import eventually, go


def test_without_limits_everything_starts_at_once() -> None:
    pacer = Pacer()
    for _ in range(10_000):
        assert pacer.wait_s(0.0) == 0
        pacer.started(0.0)


@given(st.floats(0.1, 500), st.lists(st.floats(0, 3), min_size=1, max_size=80), st.floats(0, 1e6))
def test_never_more_start_in_a_second_than_allowed_and_nobody_waits_too_long(
    per_s: float, gaps: list[float], begin: float
) -> None:
    pacer = Pacer(per_s=per_s)
    now, starts = begin, []
    for gap in gaps:
        now += gap
        wait = pacer.wait_s(now)
        assert 0 <= wait <= 1 / per_s + 1e-6
        now += wait
        assert pacer.wait_s(now) < 1e-6
        pacer.started(now)
        starts.append(now)
    full = max(1.0, per_s)  # what a bucket holds may start at once, besides what flows in
    for first, one in enumerate(starts):
        for count, other in enumerate(starts[first:], 1):
            assert count <= full + (other - one) * per_s + 1 + 1e-3


def test_a_full_bucket_starts_a_seconds_worth_and_then_one_by_one() -> None:
    pacer = Pacer(per_s=4.0)
    for _ in range(4):
        assert pacer.wait_s(7.0) == 0
        pacer.started(7.0)
    assert math.isclose(pacer.wait_s(7.0), 0.25, abs_tol=1e-6)
    assert pacer.wait_s(7.25) == 0


def test_a_slow_rate_starts_the_first_at_once() -> None:
    pacer = Pacer(per_s=0.5)
    assert pacer.wait_s(0.0) == 0
    pacer.started(0.0)
    assert math.isclose(pacer.wait_s(0.0), 2.0, abs_tol=1e-6)


def test_no_more_run_at_a_time_than_allowed() -> None:
    pacer = Pacer(at_once=2)
    pacer.started(0.0)
    pacer.started(0.0)
    assert pacer.wait_s(9.0) == math.inf
    pacer.ended()
    assert pacer.wait_s(9.0) == 0


def test_a_node_is_given_up_after_three_failed_starts_in_a_row() -> None:
    strikes = Strikes()
    reason = "the MPI program cannot start the ranks: Launch proxy failed"
    assert [strikes.failed(["n1"], reason) for _ in range(4)] == [[], [], ["n1"], []]
    strikes = Strikes()
    for _ in range(5):
        assert strikes.failed(["n1"], reason) == []
        assert strikes.failed(["n1"], reason) == []
        strikes.worked(["n1", "n2"])


def test_of_several_nodes_the_one_that_the_reason_names_is_to_blame() -> None:
    strikes = Strikes(limit=2)
    named = 'unable to connect from "n3.site" to "n1" (No route to host)'
    assert strikes.failed(["n2", "n3.site", "n4"], named) == []
    assert strikes.failed(["n2", "n3.site", "n4"], "ssh: connect to host n3 port 22: refused") == ["n3.site"]
    assert strikes.failed(["n2", "n4"], "n3 is not among them") == []
    assert sorted(strikes.failed(["n2", "n4"], "")) == ["n2", "n4"]


def test_a_node_rests_after_a_failed_start_and_comes_back_unless_it_is_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(resting_module, "REST_S", 0.02)
    pool = Pool([Node("n1", (0,)), Node("n2", (0,))])
    returns: list[tuple[str, ...]] = []

    async def scenario() -> None:
        resting = Resting(pool, lambda: returns.append(tuple(pool.aside)))
        for nodes, reason in ((["n1"], "Launch proxy failed"), (["n1", "n2"], "connect to host n1 port 22")):
            resting.rest(nodes, reason)
            assert tuple(pool.aside) == ("n1",)
            assert resting.pending
            await eventually(lambda: not resting.pending, 60, "the node's return")
            assert not pool.aside
        resting.rest(["n1", "n2"], "nobody knows who is at fault")
        assert not pool.aside
        resting.rest(["n1"], "")
        resting.give_up("n1")
        assert not resting.pending
        assert tuple(pool.aside) == ("n1",)
        resting.rest(["n2"], "")
        resting.close()
        await asyncio.sleep(0.05)
        assert sorted(pool.aside) == ["n1", "n2"]

    go(scenario())
    assert returns == [(), ()]
