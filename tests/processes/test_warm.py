"""Warm interpreters: isolation of the evaluations, and the known traps of forking."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from nas_hpc.processes import canary, interpreters
from nas_hpc.states import Outcome
from tests.processes.bench import Bench, eventually, go


def test_one_interpreter_imports_once_and_each_evaluation_has_its_own_process(tmp_path: Path) -> None:
    code = """
        import os
        PARENT = os.getpid()
        seen = []
        def run(job):
            seen.append(job["x"])
            assert seen == [job["x"]], "what another evaluation left behind"
            return dict(objective=1, imported=PARENT, pid=os.getpid(), parent=os.getppid())
    """

    async def scenario() -> None:
        async with Bench(tmp_path) as bench:
            bench.module("subject", code)
            orders = [bench.call("subject.run", {"x": n}, name=f"task{n}") for n in range(20)]
            seen = [ended.result.metadata for ended in await bench.run_all(orders)]
            assert {one["imported"] for one in seen} == {bench.keepers()["warm"]}
            assert {one["parent"] for one in seen} == {bench.keepers()["warm"]}
            assert len({one["pid"] for one in seen}) == 20
            assert bench.notes == []

    go(scenario())


@pytest.mark.parametrize("warm", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["warm", "fresh"])
def test_random_numbers_differ_between_children_and_repeat_by_seed(tmp_path: Path, warm: bool) -> None:
    code = """
        import random
        import numpy as np
        def run(config):
            return {"objective": 1, "metadata": {"r": random.random(), "n": float(np.random.rand())}}
    """

    async def scenario() -> None:
        async with Bench(tmp_path) as bench:
            bench.module("subject", code)
            orders = [bench.call("subject.run", seed=seed, warm=warm) for seed in (1, 2, 1, 2**63 + 5)]
            first, second, again, large = [e.result.metadata for e in await bench.run_all(orders)]
            assert first == again
            for kind in ("r", "n"):
                assert len({one[kind] for one in (first, second, large)}) == 3

    go(scenario())


def test_numpy_with_a_wide_pool_is_safe_and_stays_warm(tmp_path: Path) -> None:
    code = """
        import numpy as np
        A = np.random.rand(400, 400) @ np.random.rand(400, 400)   # OpenBLAS's threads have run
        def run(config):
            return float((np.ones((300, 300)) @ np.ones((300, 300)))[0, 0])
    """

    async def scenario() -> None:
        async with Bench(tmp_path) as bench:
            bench.module("subject", code)
            orders = [bench.call("subject.run", threads=2) for _ in range(4)]
            assert [e.result.objective for e in await bench.run_all(orders)] == [300.0] * 4
            assert bench.notes == []

    go(scenario())


OPENMP = """
#include <omp.h>
int region(void) {
    int sum = 0;
    #pragma omp parallel num_threads(4) reduction(+:sum)
    sum += 1;
    return sum;
}
"""


@pytest.fixture(scope="session")
def openmp_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A C library with one parallel region of GNU's OpenMP, whose threads do not survive a fork."""
    folder = tmp_path_factory.mktemp("openmp")
    (folder / "region.c").write_text(OPENMP)
    command = ["gcc", "-shared", "-fPIC", "-fopenmp", "-o", "libregion.so", "region.c"]
    subprocess.run(command, cwd=folder, check=True)
    return folder / "libregion.so"


@pytest.mark.needs_program("gcc")
def test_a_module_that_ran_an_openmp_region_completes_in_fresh_interpreters(
    tmp_path: Path, openmp_library: Path
) -> None:
    code = f"""
        import ctypes
        library = ctypes.CDLL({str(openmp_library)!r})
        assert library.region() == 4
        def run(config):
            return library.region()
    """

    async def scenario() -> None:
        async with Bench(tmp_path) as bench:
            bench.module("subject", code)
            for _ in range(2):
                ends = await bench.run_all([bench.call("subject.run") for _ in range(2)])
                assert [ended.result.objective for ended in ends] == [4.0, 4.0]
            assert len(bench.notes) == 1, bench.notes
            assert bench.notes[0].startswith("subject is not fork-safe (3 native threads")

    go(scenario())


@pytest.mark.needs_program("gcc")
@pytest.mark.parametrize("warm", [True, False], ids=["warm", "fresh"])
@pytest.mark.parametrize("width", [1, 2])
def test_thread_pools_are_as_wide_as_the_slot(
    tmp_path: Path, openmp_library: Path, warm: bool, width: int
) -> None:
    pytest.importorskip("threadpoolctl")
    code = f"""
        import ctypes, os
        import numpy, threadpoolctl
        library = ctypes.CDLL({str(openmp_library)!r})
        threadpoolctl.threadpool_limits(7)     # a module that meddles
        def run(config):
            pools = threadpoolctl.threadpool_info()
            return dict(objective=1, pools={{p["filepath"]: p["num_threads"] for p in pools}},
                variables=[os.environ[n] for n in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS",
                "MKL_NUM_THREADS")])
    """

    async def scenario() -> None:
        async with Bench(tmp_path) as bench:
            bench.module("subject", code)
            order = bench.call("subject.run", threads=width, warm=warm, environ={"OMP_NUM_THREADS": "64"})
            ended = await bench.run(order)
            seen = ended.result.metadata
            assert len(seen["pools"]) >= 2
            assert set(seen["pools"].values()) == {width}
            assert seen["variables"] == [str(width)] * 3
            assert not bench.notes

    go(scenario())


def test_a_module_that_starts_a_thread_completes_in_fresh_interpreters(tmp_path: Path) -> None:
    code = """
        import queue, threading
        work, done = queue.Queue(), queue.Queue()
        def serve():
            while True:
                done.put(work.get() * 2)
        threading.Thread(target=serve, daemon=True, name="server").start()
        def run(job):
            work.put(job["x"])
            return done.get()
    """

    async def scenario() -> None:
        async with Bench(tmp_path) as bench:
            bench.module("subject", code)
            orders = [bench.call("subject.run", {"x": n}) for n in range(3)]
            assert [e.result.objective for e in await bench.run_all(orders)] == [0.0, 2.0, 4.0]
            assert len(bench.notes) == 1
            assert "it started the thread server" in bench.notes[0]

    go(scenario())


def test_a_module_that_opened_a_gpu_device_is_not_forked(tmp_path: Path) -> None:
    device = Path("/dev/full")

    async def scenario() -> None:
        async with Bench(tmp_path) as bench:
            # There need not be a GPU: the list of devices is made to name a file that is there.
            bench.module(
                "subject",
                f"""
                from nas_hpc.processes import warm
                warm._DEVICES += ({str(device)!r},)
                device = open({str(device)!r})
                def run(config): return 1
                """,
            )
            assert (await bench.run(bench.call("subject.run"))).result.objective == 1.0
            assert f"it opened {device}" in bench.notes[0]

    go(scenario())


@pytest.mark.extra("tensorflow")
@pytest.mark.slow
def test_a_module_that_ran_tensorflow_completes_in_fresh_interpreters(tmp_path: Path) -> None:
    code = """
        import tensorflow as tf
        A = tf.ones((50, 50)) @ tf.ones((50, 50))
        def run(config):
            return float(tf.reduce_sum(A @ A))
    """

    async def scenario() -> None:
        async with Bench(tmp_path) as bench:
            bench.module("subject", code)
            ended = await bench.run(bench.call("subject.run"))
            assert ended.result.objective == 50.0**5
            assert "TensorFlow" in bench.notes[0]

    go(scenario())


def test_a_runtime_that_hangs_children_unseen_is_found_by_its_first_evaluations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lock that a fork finds taken: nothing tells before, and each evaluation begins its work once only."""
    monkeypatch.setattr(canary, "FIRST_END_S", 0.7)
    code = """
        import os, threading
        lock = threading.Lock()
        os.register_at_fork(before=lock.acquire, after_in_parent=lock.release)
        def run(job):
            with lock:
                open(job["ledger"], "a").write("start\\n")
                return 1
    """

    async def scenario() -> None:
        async with Bench(tmp_path) as bench:
            bench.module("subject", code)
            ledger = tmp_path / "ledger"
            orders = [bench.call("subject.run", {"ledger": str(ledger)}) for _ in range(3)]
            for ended in await bench.run_all(orders):
                assert ended.result.objective == 1.0
            assert ledger.read_text() == "start\n" * 3
            assert len(bench.notes) == 1
            assert "did nothing for 0.7 s" in bench.notes[0]

    go(scenario())


@pytest.mark.slow
def test_a_run_function_that_sleeps_or_waits_is_not_taken_for_hung(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(canary, "FIRST_END_S", 0.2)
    code = """
        import subprocess, time
        def sleeps(job): time.sleep(0.9); return 1
        def waits(job): subprocess.run(["sleep", "0.9"]); return 1
    """

    async def scenario() -> None:
        async with Bench(tmp_path) as bench:
            bench.module("subject", code)
            await bench.run_all([bench.call("subject.sleeps"), bench.call("subject.waits")])
            assert bench.notes == []
            assert len(bench.starts) == 2

    go(scenario())


def test_a_changed_module_file_is_imported_anew_and_running_ones_go_on(tmp_path: Path) -> None:
    code = """
        import os, time
        from helper import VALUE
        def run(job):
            while job.get("wait") and not os.path.exists(job["wait"]): time.sleep(0.01)
            return VALUE
    """

    async def scenario() -> None:
        async with Bench(tmp_path) as bench:
            bench.module("subject", code)
            bench.module("helper", "VALUE = 1")
            go_on = tmp_path / "go_on"
            old = bench.call("subject.run", {"wait": str(go_on)})
            bench.agent.start(old)
            await bench.start_of(old.key)
            bench.module("helper", "VALUE = 22")
            assert (await bench.run(bench.call("subject.run"))).result.objective == 22.0
            assert "helper.py changed" in bench.notes[0]
            assert old.key in bench.agent.running()
            go_on.touch()
            assert (await bench.end_of(old.key)).result.objective == 1.0

    go(scenario())


def test_a_killed_child_is_an_error_and_the_interpreter_goes_on(tmp_path: Path) -> None:
    code = """
        import time
        def run(job):
            if job["x"]: time.sleep(60)
            return 1
    """

    async def scenario() -> None:
        async with Bench(tmp_path) as bench:
            bench.module("subject", code)
            order = bench.call("subject.run", {"x": 1})
            bench.agent.start(order)
            started = await bench.start_of(order.key)
            await eventually(lambda: os.path.exists(order.directory + "/job.json"))
            os.kill(started.pid, signal.SIGKILL)
            ended = await bench.end_of(order.key)
            assert ended.result.outcome is Outcome.ERROR
            assert ended.result.reason == "killed by signal 9 (SIGKILL)"
            warm = bench.keepers()["warm"]
            assert (await bench.run(bench.call("subject.run", {"x": 0}))).result.objective == 1.0
            assert bench.keepers()["warm"] == warm

    go(scenario())


def test_a_killed_warm_interpreter_loses_its_evaluations_and_no_process_is_left(tmp_path: Path) -> None:
    code = """
        import subprocess, time
        def run(job):
            if job["x"]:
                subprocess.Popen(["sleep", "1000"])
                subprocess.Popen(["sleep", "1000"], start_new_session=True)
                open("ready", "w").close()
                time.sleep(1000)
            return 1
    """

    async def scenario() -> None:
        async with Bench(tmp_path) as bench:
            bench.module("subject", code)
            orders = [bench.call("subject.run", {"x": 1}) for _ in range(2)]
            for order in orders:
                bench.agent.start(order)
            for order in orders:
                await eventually(Path(order.directory, "ready").exists)
            os.kill(bench.keepers()["warm"], signal.SIGKILL)
            for order in orders:
                assert (await bench.end_of(order.key)).result.outcome is Outcome.LOST
            assert "2 attempts ended with it" in bench.notes[0]
            assert (await bench.run(bench.call("subject.run", {"x": 0}))).result.objective == 1.0

    go(scenario())  # the fixture of all tests finds the sleepers


def test_a_hanging_import_hangs_nobody_else_and_falls_to_the_time_limit(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Bench(tmp_path) as bench:
            bench.module("hanging", "import time\nif FLAG: time.sleep(1000)\n".replace("FLAG", "True"))
            bench.module("subject", "def run(config): return 1\n")
            order = bench.call("hanging.run", timeout_s=0.6)
            bench.agent.start(order)
            assert (await bench.run(bench.call("subject.run"))).result.objective == 1.0
            ended = await bench.end_of(order.key, 60)
            assert ended.result.outcome is Outcome.TIMEOUT
            assert "still being imported after 0.6 s" in ended.result.reason
            bench.module("hanging", "def run(config): return 2\n")
            assert (await bench.run(bench.call("hanging.run"))).result.objective == 2.0

    go(scenario())


def test_an_import_that_ends_the_interpreter_is_an_error_of_each_evaluation(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Bench(tmp_path) as bench:
            bench.module("subject", "import os\nos._exit(6)\n")
            for _ in range(3):
                ended = await bench.run(bench.call("subject.run"))
                assert ended.result.outcome is Outcome.ERROR
                assert ended.result.reason.startswith("exit code 6 before the run function returned")
            assert "its import ended the interpreter" in bench.notes[-1]

    go(scenario())


def test_a_process_of_the_module_serves_all_evaluations_and_ends_with_it(tmp_path: Path) -> None:
    code = """
        import os, subprocess
        helper = subprocess.Popen(["sleep", "1000"])
        def run(config):
            os.kill(helper.pid, 0)
            return helper.pid
    """

    async def scenario() -> None:
        async with Bench(tmp_path) as bench:
            bench.module("subject", code)
            pids = [(await bench.run(bench.call("subject.run"))).result.objective for _ in range(3)]
            assert len(set(pids)) == 1
            bench.module("subject", "def run(config): return 0\n")
            assert (await bench.run(bench.call("subject.run"))).result.objective == 0.0
            await eventually(lambda: not Path(f"/proc/{pids[0]:.0f}").exists())

    go(scenario())


def test_few_interpreters_are_kept(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Bench(tmp_path) as bench:
            bench.module("subject", "\n".join(f"def run{n}(config): return {n}" for n in range(7)))
            for n in range(7):
                assert (await bench.run(bench.call(f"subject.run{n}"))).result.objective == n
            pids = [
                pid
                for pid in map(int, filter(str.isdigit, os.listdir("/proc")))
                if b"processes.keeper" in _command_line(pid) and _parent(pid) == os.getpid()
            ]
            await eventually(lambda: sum(_parent(pid) == os.getpid() for pid in pids) <= interpreters.KEPT)

    go(scenario())


def _command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def _parent(pid: int) -> int:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return 0 if fields[0] == "Z" else int(fields[1])


def test_fresh_only_never_forks_a_module(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Bench(tmp_path, fresh_only=True) as bench:
            code = "import os\nPID = os.getpid()\ndef run(config): return float(PID == os.getpid())\n"
            bench.module("subject", code)
            assert (await bench.run(bench.call("subject.run"))).result.objective == 1.0
            assert set(bench.keepers()) == {"starter"}

    go(scenario())


def test_a_run_function_that_asks_should_stop_ends_in_its_own_time(tmp_path: Path) -> None:
    code = """
        import time
        from nas_hpc.trial import report, should_stop
        should_stop()                     # listening in the parent must not count in its children
        def run(job):
            step = 0
            while not should_stop():
                step += 1
                report(step, step / 2, phase="waiting")
                time.sleep(0.01)
            return -1
    """

    async def scenario() -> None:
        async with Bench(tmp_path) as bench:
            bench.module("subject", code)
            order = bench.call("subject.run")
            bench.agent.start(order)
            metrics = Path(order.directory) / "metrics.jsonl"
            await eventually(lambda: metrics.exists() and metrics.read_text().count("\n") > 2)
            bench.agent.stop(order.key, Outcome.WALLTIME, "the allocation ends")
            ended = await bench.end_of(order.key, 60)
            assert (ended.result.outcome, ended.result.objective) == (Outcome.OK, -1.0)

    go(scenario())
