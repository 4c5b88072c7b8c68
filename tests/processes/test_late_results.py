"""A program succeeded, and the file system shows its result late, or never."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

import pytest

from nas_hpc.processes import results
from nas_hpc.processes.attempts import Attempt, Late
from nas_hpc.processes.orders import Order
from nas_hpc.states import Outcome
from tests.processes.bench import Bench, eventually, go

HIDDEN = """
    import json, os
    result = {"job": os.environ["NAS_HPC_JOB_ID"], "attempt": 1, "outcome": "ok", "objective": 4.5}
    with open("not-yet", "w") as file:
        json.dump(result, file)
    os.rename("not-yet", "hidden")
"""
"""Writes its result where nobody looks: the file server, on which another node has it already."""


async def hidden(order: Order) -> Path:
    """Wait until the program has written."""
    path = Path(order.directory) / "hidden"
    await eventually(path.exists, what="the program's result")
    return path


def show(path: Path) -> None:
    """The file server's word has come."""
    os.replace(path, path.with_name("result.json"))


@pytest.mark.parametrize("delay_s", [0.5, pytest.param(5.0, marks=pytest.mark.slow)])
def test_a_result_that_is_seen_late_counts_and_the_attempt_ended_when_its_program_did(
    tmp_path: Path, delay_s: float
) -> None:
    async def scenario() -> None:
        async with Bench(tmp_path, result_grace_s=delay_s + 10) as bench:
            order = bench.python(HIDDEN, expects_result=True)
            bench.agent.start(order)
            path = await hidden(order)
            written = time.time()
            await asyncio.sleep(delay_s)  # the delay is the case, not a wait for something
            assert order.key in bench.agent.running(), "its slot is not free yet"
            show(path)
            ended = await bench.end_of(order.key, 60)
            assert (ended.result.outcome, ended.result.objective) == (Outcome.OK, 4.5)
            assert ended.result.end < written + delay_s
            assert bench.notes == []

    go(scenario())


def test_meanwhile_other_programs_start_and_end(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Bench(tmp_path, result_grace_s=30) as bench:
            late = [bench.python(HIDDEN, expects_result=True, name=f"late{n}") for n in range(12)]
            for order in late:
                bench.agent.start(order)
            paths = [await hidden(order) for order in late]
            for _ in range(5):
                ended = await bench.run(bench.program("echo", "DH-OUTPUT: 1", expects_result=True))
                assert ended.result.outcome is Outcome.OK
            assert not bench.ended.keys() & {order.key for order in late}
            for path in paths:
                show(path)
            for order in late:
                assert (await bench.end_of(order.key, 60)).result.objective == 4.5

    go(scenario())


def test_a_result_that_never_comes_is_invalid_after_the_grace(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Bench(tmp_path, result_grace_s=0.7) as bench:
            begun = time.monotonic()
            ended = await bench.run(bench.program("echo", "nothing", expects_result=True))
            assert time.monotonic() - begun >= 0.7
            assert ended.result.outcome is Outcome.INVALID_RESULT
            assert ended.result.reason.startswith(
                "no line with DH-OUTPUT: in task1.out, and no result.json within 0.7 s; print one like"
            )
            assert ended.result.return_code == 0
            assert ended.tail == "nothing\n"
            assert ended.result.end - ended.result.start < 0.7

    go(scenario())


@pytest.mark.parametrize(
    ("code", "outcome"),
    [
        ("print('DH-OUTPUT: good')", Outcome.INVALID_RESULT),
        ("print('DH-OUTPUT: nan')", Outcome.INVALID_RESULT),
        ("raise SystemExit(1)", Outcome.ERROR),
        (
            HIDDEN.replace("not-yet", "draft").replace('"hidden"', '"result.json"').replace("4.5", "None"),
            None,
        ),
    ],
    ids=["no number", "not finite", "a failure", "a result without objective"],
)
def test_nobody_waits_for_what_is_seen_to_be_wrong(
    tmp_path: Path, code: str, outcome: Outcome | None
) -> None:
    async def scenario() -> None:
        async with Bench(tmp_path, result_grace_s=60) as bench:
            order = bench.python(code, expects_result=True)
            bench.agent.start(order)
            ended = await bench.end_of(order.key, 60)
            assert ended.result.outcome is (outcome or Outcome.INVALID_RESULT)

    go(scenario())


def test_a_persons_program_needs_no_result_and_waits_for_none(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Bench(tmp_path, result_grace_s=60) as bench:
            order = bench.program("true")
            bench.agent.start(order)
            assert (await bench.end_of(order.key, 60)).result.outcome is Outcome.OK

    go(scenario())


def test_a_stop_ends_the_waiting_and_a_time_limit_does_not(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Bench(tmp_path, result_grace_s=60, grace_s=30) as bench:
            killed, timed = (bench.python(HIDDEN, expects_result=True, name=name) for name in ("k", "t"))
            for order in (killed, timed):
                bench.agent.start(order)
            paths = [await hidden(order) for order in (killed, timed)]
            for order in (killed, timed):  # their processes are gone
                pid = bench.started[order.key].pid
                await eventually(lambda pid=pid: not Path(f"/proc/{pid}").exists(), what="the program's end")
            bench.agent.stop(timed.key, Outcome.TIMEOUT, "ran longer than a moment")
            bench.agent.stop(killed.key, Outcome.KILLED, "a person said so")
            ended = await bench.end_of(killed.key, 60)
            assert (ended.result.outcome, ended.result.reason) == (Outcome.KILLED, "a person said so")
            show(paths[1])
            assert (await bench.end_of(timed.key, 60)).result.outcome is Outcome.OK

    go(scenario())


def test_the_pauses_between_looks_double_up_to_a_second_and_end_with_the_grace(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    attempt, late = Attempt({"job": "j", "attempt": 1}, 1), Late()
    attempt.until = now + 5.0
    looks = []
    while now < attempt.until:
        late.add(attempt)
        wait_s = late.wait_s()
        assert wait_s is not None
        assert late.due() == []
        now += wait_s
        looks.append(round(wait_s, 6))
        assert late.due() == [attempt]
    assert looks == [0.05, 0.1, 0.2, 0.4, 0.8, 1.0, 1.0, 1.0, 0.45]
    assert late.wait_s() is None


def test_the_last_look_sees_what_came_at_the_last_moment(tmp_path: Path) -> None:
    order = {
        "job": "j", "attempt": 1, "dir": str(tmp_path), "name": "t", "expects": True, "call": None,
        "start": 1.0, "looked": True, "result_grace_s": 1.0,
    }  # fmt: skip
    assert results.judge(order, 0, 2.0, patient=True) is None
    results.replace_file(
        str(tmp_path), "result.json", b'{"job": "j", "attempt": 1, "outcome": "ok", "objective": 2}', False
    )
    result = results.judge(order, 0, 2.0, patient=False)
    assert result is not None
    assert result["objective"] == 2


def test_an_mpi_start_of_a_run_function_is_waited_for_and_then_invalid(tmp_path: Path) -> None:
    order = {
        "job": "j", "attempt": 1, "dir": str(tmp_path), "name": "t", "expects": True, "mpi": True,
        "call": {"run": "m.f"}, "start": 1.0, "result_grace_s": 3.0,
    }  # fmt: skip
    assert results.judge(order, 0, 2.0, patient=True) is None
    result = results.judge(order, 0, 2.0)
    assert result is not None
    assert (result["outcome"], result["reason"]) == (
        "invalid_result",
        "exit code 0, but no result.json within 3 s",
    )
    failed = results.judge(order, 1 << 8, 2.0, patient=True)
    assert failed is not None
    assert failed["outcome"] == "error"
