"""Trainings in forks of a warm interpreter that has loaded TensorFlow, the problem and its data once."""

from __future__ import annotations

import os
from pathlib import Path

import psutil
import pytest

from nas_hpc.states import Outcome
from tests.processes.bench import LONG_S, Bench, go

pytestmark = [pytest.mark.slow, pytest.mark.extra("tensorflow"), pytest.mark.timeout(600)]

PROBLEM = """
    import numpy as np
    from nas_hpc.nas import NaProblem
    from nas_hpc.problems.nas.spaces import dense_skipco
    {trap}
    def load_data():
        print("data loaded")
        rng = np.random.default_rng(0)
        x = rng.uniform(size=(120, 4))
        y = x.sum(axis=1, keepdims=True)
        return (x[:80], y[:80]), (x[80:], y[80:])
    Problem = NaProblem(seed=1)
    Problem.load_data(load_data)
    Problem.search_space(dense_skipco, num_layers=2)
    Problem.hyperparameters(num_epochs=2, batch_size=40)
    Problem.loss("mse")
    Problem.objective("-val_loss__min")
"""
SEQUENCE = {"arch_seq": [2, 1, 3, 0, 1]}
MEGABYTE = 1 << 20


def test_trainings_share_the_libraries_and_the_data_that_were_loaded_once(tmp_path: Path) -> None:
    """One of them alone, in a fresh interpreter, comes to the same objective."""

    async def scenario() -> None:
        async with Bench(tmp_path) as bench:
            bench.module("mine", PROBLEM.replace("{trap}", ""))
            environ = {"NAS_HPC_PROBLEM": "mine.Problem"}
            several = [bench.call("nas_hpc.nas.alpha.run", SEQUENCE, environ=environ) for _ in range(3)]
            ends = [await bench.run(order) for order in several]
            alone = bench.call("nas_hpc.nas.alpha.run", SEQUENCE, environ=environ, warm=False)
            ends.append(await bench.run(alone))
            assert [end.result.reason for end in ends] == [""] * 4
            assert len({end.result.objective for end in ends}) == 1
            outputs = [Path(one.directory) / "task1.out" for one in (*several, alone)]
            said = [path.exists() and "data loaded" in path.read_text() for path in outputs]
            assert said == [False, False, False, True]
            assert bench.notes == []

    go(scenario())


def test_a_problem_that_runs_a_tensorflow_operation_when_it_is_loaded_hangs_nothing(tmp_path: Path) -> None:
    """Children of an interpreter in which one ran would wait for threads that are not there."""
    trap = "import tensorflow as tf\n    ONE = tf.constant(1.0) + 1"

    async def scenario() -> None:
        async with Bench(tmp_path) as bench:
            bench.module("mine", PROBLEM.replace("{trap}", trap))
            environ = {"NAS_HPC_PROBLEM": "mine.Problem"}
            orders = [bench.call("nas_hpc.nas.alpha.run", SEQUENCE, environ=environ) for _ in range(2)]
            for order in orders:
                bench.agent.start(order)
            for order in orders:
                end = await bench.end_of(order.key, 5 * LONG_S)
                assert (end.result.outcome, end.result.reason) == (Outcome.OK, "")
            assert len(bench.notes) == 1
            assert "it ran a TensorFlow operation when it prepared mine.Problem" in bench.notes[0]

    go(scenario())


def test_a_problem_that_cannot_be_loaded_is_the_reason_of_each_evaluation(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Bench(tmp_path) as bench:
            bench.module("mine", PROBLEM.replace("{trap}", "raise OSError('no such disk')"))
            order = bench.call("nas_hpc.nas.alpha.run", SEQUENCE, environ={"NAS_HPC_PROBLEM": "mine.Problem"})
            result = (await bench.run(order)).result
            assert result.outcome is Outcome.ERROR
            assert result.reason.startswith("cannot prepare nas_hpc.nas.alpha.run: ")
            assert "OSError: no such disk" in result.reason

    go(scenario())


def test_500_trials_leave_a_warm_interpreter_as_large_as_it_was(tmp_path: Path) -> None:
    """Two of them train; the others read the data that all share."""
    code = """
        from nas_hpc.nas import alpha
        def run(job):
            if job["trains"]:
                return alpha.run({"arch_seq": job["arch_seq"]})
            setup, = alpha._setups.values()
            return float(setup.data.train.inputs[0].sum())
        run.prepare = alpha.prepare
    """

    async def scenario() -> None:
        async with Bench(tmp_path) as bench:
            bench.module("mine", PROBLEM.replace("{trap}", ""))
            bench.module("subject", code)

            async def trials(numbers: range, train: int = 0) -> None:
                orders = [
                    bench.call(
                        "subject.run", {**SEQUENCE, "trains": n < train}, name=f"task{n}",
                        environ={"NAS_HPC_PROBLEM": "mine.Problem"},
                    )
                    for n in numbers
                ]  # fmt: skip
                for end in await bench.run_all(orders):
                    assert end.result.reason == ""

            await trials(range(20), train=2)
            parent = psutil.Process(bench.keepers()["warm"])
            size, descriptors, threads = parent.memory_info().rss, parent.num_fds(), parent.num_threads()
            for first in range(20, 520, 20):
                await trials(range(first, first + 20))
            assert bench.keepers()["warm"] == parent.pid, "it is the same interpreter all the time"
            assert parent.memory_info().rss - size < 4 * MEGABYTE
            assert (parent.num_fds(), parent.num_threads()) == (descriptors, threads)
            assert len(os.listdir(f"/proc/{parent.pid}/task")) == 1
            assert bench.notes == []

    go(scenario())
