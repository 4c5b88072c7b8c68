"""What a run function's ``prepare`` makes ready once is shared by the evaluations of a warm interpreter."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nas_hpc.states import Outcome
from tests.processes.bench import Bench, go

PREPARED = """
    import os
    data, maker = [], 0
    def run(job):
        if not data:
            prepare()
        return {"objective": len(data), "maker": maker, "pid": os.getpid()}
    def prepare():
        global maker
        data.extend(range(1000))
        maker = os.getpid()
    run.prepare = prepare
"""


def test_what_is_prepared_is_made_once_and_shared(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Bench(tmp_path) as bench:
            bench.module("subject", PREPARED)
            orders = [bench.call("subject.run", name=f"task{n}") for n in range(8)]
            seen = [ended.result for ended in await bench.run_all(orders)]
            assert {one.objective for one in seen} == {1000.0}
            assert {one.metadata["maker"] for one in seen} == {bench.keepers()["warm"]}
            assert bench.notes == []

    go(scenario())


def test_a_fresh_interpreter_leaves_it_to_the_run_function(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Bench(tmp_path) as bench:
            bench.module("subject", PREPARED)
            result = (await bench.run(bench.call("subject.run", warm=False))).result
            assert result.objective == 1000.0
            assert result.metadata["maker"] == result.metadata["pid"]

    go(scenario())


def test_the_problem_is_named_in_the_environment_while_it_is_prepared(tmp_path: Path) -> None:
    code = """
        import os
        seen = []
        def run(job): return {"objective": 1, "seen": seen}
        def prepare(): seen.append(os.environ["NAS_HPC_PROBLEM"])
        run.prepare = prepare
    """

    async def scenario() -> None:
        async with Bench(tmp_path) as bench:
            bench.module("subject", code)
            orders = [bench.call("subject.run", environ={"NAS_HPC_PROBLEM": name}) for name in ("a", "b")]
            first, second = [ended.result.metadata["seen"] for ended in await bench.run_all(orders)]
            assert (first, second) == (["a"], ["b"])

    go(scenario())


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("raise ValueError('no file digits.npz')", "ValueError: no file digits.npz"),
        ("raise SystemExit(3)", "SystemExit: 3"),
    ],
)
def test_a_failed_prepare_fails_each_evaluation_with_its_reason_and_shows_where(
    tmp_path: Path, body: str, reason: str
) -> None:
    code = f"""
        def run(job): return 1
        def prepare():
            {body}
        run.prepare = prepare
    """

    async def scenario() -> None:
        async with Bench(tmp_path) as bench:
            bench.module("subject", code)
            for order in (bench.call("subject.run"), bench.call("subject.run")):
                result = (await bench.run(order)).result
                assert result.outcome is Outcome.ERROR
                assert result.reason == f"cannot prepare subject.run: {reason}"
                assert "in prepare" in Path(order.directory, "task1.out").read_text()
            bench.module("subject", "def run(job): return 2")
            assert (await bench.run(bench.call("subject.run"))).result.objective == 2.0

    go(scenario())


def test_a_prepare_that_leaves_a_thread_sends_its_evaluations_to_fresh_interpreters(tmp_path: Path) -> None:
    code = """
        import threading
        def run(job): return 1
        def prepare(): threading.Thread(target=threading.Event().wait, name="feeder", daemon=True).start()
        run.prepare = prepare
    """

    async def scenario() -> None:
        async with Bench(tmp_path) as bench:
            bench.module("subject", code)
            environ = {"NAS_HPC_PROBLEM": "mine.Problem"}
            orders = [bench.call("subject.run", environ=environ) for _ in range(3)]
            assert {ended.result.objective for ended in await bench.run_all(orders)} == {1.0}
            assert len(bench.notes) == 1
            assert "it started the thread feeder when it prepared mine.Problem" in bench.notes[0]

    go(scenario())


def test_a_hanging_prepare_falls_to_the_time_limit_and_hangs_nobody_else(tmp_path: Path) -> None:
    code = """
        import time
        def run(job): return 1
        def prepare(): time.sleep(3600)
        run.prepare = prepare
    """

    async def scenario() -> None:
        async with Bench(tmp_path) as bench:
            bench.module("subject", code)
            bench.module("other", "def run(job): return 5")
            hanging = bench.call("subject.run", timeout_s=1.0)
            bench.agent.start(hanging)
            assert (await bench.run(bench.call("other.run"))).result.objective == 5.0
            assert (await bench.end_of(hanging.key)).result.outcome is Outcome.TIMEOUT

    go(scenario())


@pytest.mark.parametrize(
    "code",
    [
        "class run:\n"
        "    def __new__(cls, job): return 4\n"
        "    def prepare(self): raise AssertionError('it is for an object')\n",
        "class Anything:\n"
        "    def __call__(self, job): return 4\n"
        "    def __getattr__(self, name): return lambda: 1 / 0\n"
        "run = Anything()\n",
        "def run(job): return 4\nrun.prepare = True\n",
        "import functools\nrun = functools.partial(lambda more, job: 4, 0)\n",
    ],
    ids=["a class", "an object", "no function", "a partial function"],
)
def test_an_attribute_of_that_name_that_means_something_else_is_left_alone(tmp_path: Path, code: str) -> None:
    async def scenario() -> None:
        async with Bench(tmp_path) as bench:
            bench.module("subject", code)
            assert (await bench.run(bench.call("subject.run"))).result.objective == 4.0

    go(scenario())


def test_a_changed_file_that_was_loaded_while_preparing_is_loaded_anew(tmp_path: Path) -> None:
    """It lies outside of the module search path that the evaluation was given."""
    problem = tmp_path / "elsewhere" / "problem.py"
    problem.parent.mkdir()
    problem.write_text("VALUE = 1")
    code = f"""
        import importlib.util, sys
        def load():
            spec = importlib.util.spec_from_file_location("problem", {os.fspath(problem)!r})
            sys.modules["problem"] = module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
        def run(job): return sys.modules["problem"].VALUE
        run.prepare = load
    """

    async def scenario() -> None:
        async with Bench(tmp_path) as bench:
            bench.module("subject", code)
            assert (await bench.run(bench.call("subject.run"))).result.objective == 1.0
            problem.write_text("VALUE = 22")
            assert (await bench.run(bench.call("subject.run"))).result.objective == 22.0
            assert "problem.py changed" in bench.notes[0]

    go(scenario())
