"""What a child of a warm interpreter need not do itself, and that nothing is lost by its not doing it."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

from nas_hpc.states import Outcome
from tests.processes.bench import Bench, eventually, go

WATCHED = """
    import os, sys
    class Watch:
        def find_spec(self, name, path=None, target=None):
            with open({log!r}, "a") as file:
                print(os.getpid(), name, file=file)
    sys.meta_path.insert(0, Watch())
    import numpy
    def run(config):
        return float(numpy.random.random())
"""


@pytest.mark.extra("numpy")
def test_what_seeding_needs_of_numpy_is_imported_once_and_not_in_every_child(tmp_path: Path) -> None:
    log = tmp_path / "imports"

    async def scenario() -> None:
        async with Bench(tmp_path) as bench:
            bench.module("subject", WATCHED.format(log=str(log)))
            ends = await bench.run_all([bench.call("subject.run", name=f"t{n}", seed=n) for n in (1, 1, 2)])
            drawn = [end.result.objective for end in ends]
            assert drawn[0] == drawn[1] != drawn[2]
            children = {str(started.pid) for started in bench.started.values()}
            imports = [line.split() for line in log.read_text().splitlines()]
            assert "numpy.random" in {name for _, name in imports}
            assert [name for pid, name in imports if pid in children] == []

    go(scenario())


ALONE = """
import os, subprocess, sys, threading, time
from nas_hpc.processes.linux import adopt_orphans, is_alone
adopt_orphans()
said = [is_alone()]
child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
said.append(is_alone())
child.communicate(b"x")
said.append(is_alone())
daemon = subprocess.run(["sh", "-c", "sleep 60 > /dev/null 2>&1 & echo $!"], stdout=subprocess.PIPE)
said.append(is_alone())
os.kill(int(daemon.stdout), 9)
os.wait()
wait = threading.Event()
thread = threading.Thread(target=wait.wait)
thread.start()
said.append(is_alone())
wait.set()
thread.join()
print(said, is_alone())
"""


def test_a_process_is_alone_without_children_orphans_and_threads(checkout: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", ALONE], cwd=checkout, capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout == "[True, False, True, False, False] True\n"


LEAVERS = """
    import os, subprocess, threading, time
    def daemon(config):
        return float(subprocess.Popen(["sleep", "1010"], start_new_session=True).pid)
    def late(config):
        def start():
            time.sleep(0.05)
            subprocess.Popen(["sleep", "1011"], start_new_session=True)
        threading.Thread(target=start, daemon=True).start()
        return 1.0
    def quiet(config):
        return 2.0
"""


def test_what_one_leaves_is_ended_beside_many_that_leave_nothing(tmp_path: Path, test_id: str) -> None:
    async def scenario() -> None:
        async with Bench(tmp_path) as bench:
            bench.module("subject", LEAVERS)
            names = ["quiet", "daemon", "quiet", "late", "quiet"] * 4
            orders = [bench.call(f"subject.{name}", name=f"t{n}") for n, name in enumerate(names)]
            ends = await bench.run_all(orders)
            assert {end.result.outcome for end in ends} == {Outcome.OK}
            pids = [
                int(end.result.objective) for end, name in zip(ends, names, strict=True) if name == "daemon"
            ]
            for pid in pids:
                assert not Path(f"/proc/{pid}").exists(), "it outlived the report of its evaluation's end"

    go(scenario())  # a late one would be found by the fixture of all tests


def test_a_changed_module_is_noticed_while_evaluations_run(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Bench(tmp_path) as bench:
            bench.module(
                "subject", "import time\ndef run(config): return 1.0\ndef long(config): time.sleep(60)"
            )
            busy = bench.call("subject.long")
            bench.agent.start(busy)
            await bench.start_of(busy.key)
            assert (await bench.run(bench.call("subject.run"))).result.objective == 1.0
            bench.module("subject", "def run(config): return 22.0")
            seen = []
            while 22.0 not in seen:
                assert len(seen) < 200
                seen.append((await bench.run(bench.call("subject.run"))).result.objective)
                await asyncio.sleep(0.005)
            assert set(seen) <= {1.0, 22.0}
            await eventually(lambda: any("changed" in note for note in bench.notes), what="the note")
            bench.agent.kill_all()
            await bench.end_of(busy.key)

    go(scenario())


def test_a_child_has_the_signals_of_a_fresh_process(tmp_path: Path) -> None:
    code = """
        import os, signal
        def run(config):
            names = ["SIGINT", "SIGTERM", "SIGCHLD", "SIGHUP", "SIGUSR1", "SIGPIPE"]
            return {"objective": 1, "metadata": {
                "handlers": {name: repr(signal.getsignal(getattr(signal, name))) for name in names},
                "wakeup": signal.set_wakeup_fd(-1), "job": os.environ["NAS_HPC_JOB_ID"],
                "putenv": os.popen("echo $NAS_HPC_JOB_ID").read().strip()}}
    """

    async def scenario() -> None:
        async with Bench(tmp_path) as bench:
            bench.module("subject", code)
            order = bench.call("subject.run")
            seen = (await bench.run(order)).result.metadata
            handlers = seen["handlers"]
            assert "default_int_handler" in handlers.pop("SIGINT")
            assert "SIG_IGN" in handlers.pop("SIGPIPE")
            assert all("SIG_DFL" in handler for handler in handlers.values()), handlers
            assert seen["wakeup"] == -1
            assert seen["job"] == seen["putenv"] == order.key[0]

    go(scenario())


def test_the_gpu_masks_of_an_evaluation_are_its_own(tmp_path: Path) -> None:
    code = """
        import os
        def run(config): return {"objective": 1, "metadata": {"mask": os.environ.get("CUDA_VISIBLE_DEVICES")}}
    """

    async def scenario() -> None:
        async with Bench(tmp_path) as bench:
            bench.module("subject", code)
            one, two = bench.call("subject.run", gpus=("1",)), bench.call("subject.run", gpus=("0", "3"))
            none = bench.call("subject.run")
            ends = await bench.run_all([one, two, none])
            assert [end.result.metadata["mask"] for end in ends] == [
                "1", "0,3", os.environ.get("CUDA_VISIBLE_DEVICES"),
            ]  # fmt: skip

    go(scenario())
