"""What remains of an evaluation on disk, by task_directories."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from nas_hpc.launcher.recording import MODES
from nas_hpc.processes import scratch
from nas_hpc.processes.orders import Order
from nas_hpc.processes.scratch import Scratch
from nas_hpc.states import Outcome
from tests.processes.bench import Bench, eventually, go

NEITHER_EACH = [mode for mode in MODES if mode != "each"]

MODULE = """
    import os
    from nas_hpc.trial import report
    def good(config):
        for epoch in range(3):
            report(epoch, epoch / 10, kind="validation")
        print("much ado")
        where = {"where": os.getcwd(), "dir": os.environ["NAS_HPC_JOB_DIR"]}
        return {"objective": config["x"], "metadata": where}
    def quiet(config):
        return 1.0
    def bad(config):
        report(0, 0.5)
        print("last words")
        raise ValueError("no luck")
    def files(config):
        with open("model.bin", "w") as file:
            file.write("weights")
        os.makedirs("deep/er")
        return 2.0
    def large(config):
        return {"objective": 3.0, "metadata": {"text": "x" * 400_000}}
    def dies(config):
        print("going", flush=True)
        os.kill(os.getpid(), 9)
"""


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The node's own disk; nothing of a test is left there."""
    path = tmp_path / "node"
    path.mkdir()
    monkeypatch.setenv("TMPDIR", str(path))
    monkeypatch.setattr("tempfile.tempdir", None)
    yield path
    assert (
        [name for name in os.listdir(path / f"nas-hpc-{os.getuid()}")] == [] if any(path.iterdir()) else True
    )


def left(order: Order) -> list[str] | None:
    """What stands in its directory; None if it has none."""
    return sorted(os.listdir(order.directory)) if os.path.isdir(order.directory) else None


@pytest.mark.parametrize("warm", [True, False], ids=["warm", "fresh"])
@pytest.mark.parametrize("mode", NEITHER_EACH)
def test_a_success_leaves_a_line_with_its_job_result_and_metrics(
    tmp_path: Path, mode: str, warm: bool
) -> None:
    async def scenario() -> None:
        async with Bench(tmp_path, task_directories=mode) as bench:
            bench.module("subject", MODULE)
            order = bench.call("subject.good", {"x": 7.5}, warm=warm)
            ended = await bench.run(order)
            assert (ended.result.outcome, ended.result.objective) == (Outcome.OK, 7.5)
            where = ended.result.metadata["where"]
            assert where == ended.result.metadata["dir"]
            assert (where == order.directory) == (mode == "failed")
            assert left(order) is None
            assert not os.path.exists(where)
            line = bench.line_of(order)
            assert line["job"] == order.job_json
            assert line["result"]["metadata"] == ended.result.metadata
            assert "tail" not in line
            assert [(m["step"], m["value"], m["kind"]) for m in line["metrics"]] == [
                (0, 0.0, "validation"), (1, 0.1, "validation"), (2, 0.2, "validation"),
            ]  # fmt: skip

    go(scenario())


@pytest.mark.parametrize("what", ["bad", "dies"])
@pytest.mark.parametrize("mode", MODES)
def test_a_failure_keeps_its_output(tmp_path: Path, mode: str, what: str) -> None:
    async def scenario() -> None:
        async with Bench(tmp_path, task_directories=mode) as bench:
            bench.module("subject", MODULE)
            order = bench.call(f"subject.{what}")
            ended = await bench.run(order)
            assert ended.result.outcome is Outcome.ERROR
            word = {"bad": "last words", "dies": "going"}[what]
            assert word in ended.tail
            if mode == "packed":
                line = bench.line_of(order)
                assert word in line["tail"]
                assert ("metrics" in line) == (what == "bad")
                assert left(order) is None
            else:
                more = ["metrics.jsonl"] if what == "bad" else []
                assert left(order) == sorted(["job.json", "result.json", "task1.out", *more])
                assert json.loads((Path(order.directory) / "job.json").read_text()) == order.job_json
                assert bench.line_of(order) == {}

    go(scenario())


def test_files_of_the_run_function_stay_unless_there_are_no_directories(tmp_path: Path) -> None:
    async def scenario() -> None:
        for mode in NEITHER_EACH:
            async with Bench(tmp_path, task_directories=mode) as bench:
                bench.module("subject", MODULE)
                order = bench.call("subject.files")
                assert (await bench.run(order)).result.objective == 2.0
                kept = ["deep", "job.json", "model.bin", "result.json"]
                assert left(order) == (kept if mode == "failed" else None)
                assert bool(bench.line_of(order)) == (mode == "packed")

    go(scenario())


@pytest.mark.parametrize("mode", MODES)
def test_a_result_too_large_for_a_message_arrives_whole(tmp_path: Path, mode: str) -> None:
    async def scenario() -> None:
        async with Bench(tmp_path, task_directories=mode) as bench:
            bench.module("subject", MODULE)
            order = bench.call("subject.large")
            ended = await bench.run(order)
            assert len(ended.result.metadata["text"]) == 400_000
            assert (left(order) is None) == (mode != "each")

    go(scenario())


@pytest.mark.parametrize("mode", NEITHER_EACH)
def test_programs_are_treated_alike(tmp_path: Path, mode: str) -> None:
    own = """
        import json, os
        result = {"job": os.environ["NAS_HPC_JOB_ID"], "attempt": 1, "outcome": "ok", "objective": 8}
        json.dump(result, open("draft", "w"))
        os.rename("draft", "result.json")
    """

    async def scenario() -> None:
        async with Bench(tmp_path, task_directories=mode) as bench:
            printed = bench.program("echo", "DH-OUTPUT: 4", expects_result=True)
            written = bench.python(own, expects_result=True)
            failed = bench.program("sh", "-c", "echo no; exit 3", expects_result=True)
            missing = bench.program("no-such-program", expects_result=True)
            ends = await bench.run_all([printed, written, failed, missing])
            assert [end.result.objective for end in ends] == [4.0, 8.0, None, None]
            assert ends[3].result.outcome is Outcome.START_FAILED
            assert [left(order) is None for order in (printed, written)] == [True, True]
            assert [left(order) is None for order in (failed, missing)] == [mode == "packed"] * 2
            assert [bool(bench.line_of(order)) for order in (failed, missing)] == [mode == "packed"] * 2

    go(scenario())


def test_a_persons_job_has_its_directory_always(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Bench(tmp_path, task_directories="packed") as bench:
            order = bench.program("echo", "hello")
            await bench.run(order)
            assert left(order) == ["job.json", "result.json", "task1.out"]

    go(scenario())


def test_one_that_is_stopped_before_its_module_is_imported_has_its_line(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Bench(tmp_path, task_directories="packed") as bench:
            bench.module("slow", "import time\ntime.sleep(600)\ndef run(config): return 1")
            order = bench.call("slow.run")
            bench.agent.start(order)
            bench.agent.stop(order.key, Outcome.KILLED, "a person said so")
            ended = await bench.end_of(order.key)
            assert ended.result.outcome is Outcome.KILLED
            assert bench.line_of(order)["result"]["outcome"] == "killed"

    go(scenario())


def test_after_the_death_of_its_keeper_an_evaluation_is_lost_and_leaves_nothing(
    tmp_path: Path, place: Path
) -> None:
    async def scenario() -> None:
        async with Bench(tmp_path, task_directories="packed") as bench:
            bench.module("hangs", "import time\ndef run(config):\n    open('f', 'w'); time.sleep(600)")
            order = bench.call("hangs.run")
            bench.agent.start(order)
            base = place / f"nas-hpc-{os.getuid()}"
            await eventually(lambda: list(base.glob("scratch-*/task1_*/f")), what="the run function")
            os.kill(bench.keepers()["warm"], signal.SIGKILL)
            assert (await bench.end_of(order.key)).result.outcome is Outcome.LOST
            assert bench.line_of(order) == {}
            assert list(base.glob("scratch-*/task1_*")) == []

    go(scenario())


def test_a_line_is_on_disk_before_the_end_is_told(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Bench(tmp_path, task_directories="packed") as bench:
            bench.module("subject", MODULE)
            found: list[bool] = []
            report = bench.agent._on_ended
            orders = {}

            def look(ended: object) -> None:
                found.append(bool(bench.line_of(orders[ended.key])))  # type: ignore[attr-defined]
                report(ended)  # type: ignore[arg-type]

            bench.agent._on_ended = look
            for number in range(20):
                order = bench.call("subject.quiet", name=f"task{number}")
                orders[order.key] = order
            await bench.run_all(list(orders.values()))
            assert found == [True] * 20

    go(scenario())


def test_two_agents_of_a_node_write_files_of_their_own(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Bench(tmp_path, task_directories="packed") as one:
            other = Bench(tmp_path, task_directories="packed")
            other.log = tmp_path / "other.log"
            async with other:
                one.module("subject", MODULE)
                orders = [one.call("subject.quiet"), other.call("subject.quiet")]
                await one.run(orders[0])
                await other.run(orders[1])
            files = sorted((tmp_path / "data" / "W" / "packed").iterdir())
            assert [len(file.read_text().splitlines()) for file in files] == [1, 1]

    go(scenario())


def test_without_a_place_for_private_directories_each_evaluation_gets_its_own(
    tmp_path: Path, place: Path
) -> None:
    (place / f"nas-hpc-{os.getuid()}").write_text("a file in the way")

    async def scenario() -> None:
        async with Bench(tmp_path, task_directories="packed") as bench:
            bench.module("subject", MODULE)
            order = bench.call("subject.quiet")
            await bench.run(order)
            assert left(order) == ["job.json", "result.json"]
            [note] = bench.notes
            assert "is not a directory of yours" in note

    go(scenario())
    (place / f"nas-hpc-{os.getuid()}").unlink()


# -- private directories -----------------------------------------------------------------------------------


def test_private_directories_of_the_dead_are_removed_and_those_of_the_living_are_not(place: Path) -> None:
    environ = {"TMPDIR": str(place)}
    living = Scratch(environ)
    base = place / f"nas-hpc-{os.getuid()}"
    dead = base / "scratch-1-0"
    (dead / "task1" / "deep").mkdir(parents=True)
    (dead / "task1" / "deep").chmod(0)
    (base / "scratch-1-0.lock").touch()
    mine = Scratch(environ)
    assert not dead.exists()
    assert not (base / "scratch-1-0.lock").exists()
    assert living.path != mine.path
    assert os.path.isdir(living.path)
    living.close()
    mine.close()
    assert list(base.iterdir()) == []


def test_a_directory_of_the_node_is_the_users_alone(place: Path) -> None:
    path = Path(scratch.node_directory({"TMPDIR": str(place)}))
    assert path.stat().st_mode & 0o777 == 0o700
    path.chmod(0o777)
    assert Path(scratch.node_directory({"TMPDIR": str(place)})).stat().st_mode & 0o777 == 0o700
    path.rmdir()
    path.symlink_to(place)
    with pytest.raises(PermissionError, match="not a directory of yours"):
        scratch.node_directory({"TMPDIR": str(place)})
    path.unlink()
