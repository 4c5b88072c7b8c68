"""Run functions of both kinds: what they get, what they may return, and how a failure is told."""

from __future__ import annotations

import ast
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from nas_hpc.processes.orders import Ended
from nas_hpc.states import Outcome
from tests.processes.bench import Bench, go

NUMPY = pytest.mark.extra("numpy")


def evaluate(tmp_path: Path, code: str, config: dict[str, Any] | None = None, **more: Any) -> Ended:
    """One evaluation of ``subject.run`` in a warm interpreter."""

    async def scenario() -> Ended:
        async with Bench(tmp_path) as bench:
            bench.module("subject", code)
            return await bench.run(bench.call("subject.run", config, **more))

    return go(scenario())


@pytest.mark.parametrize("warm", [True, False], ids=["warm", "fresh"])
def test_both_styles_of_run_functions_work_unchanged(tmp_path: Path, warm: bool) -> None:
    code = """
        import json
        def old(config: dict) -> float:
            assert isinstance(config, dict) and json.dumps(config) == '{"x": 3, "l": [1, 2]}'
            return config["x"] + len(config) + sum(config["l"])
        def new(job):
            assert job.parameters == dict(job) and type(job.parameters) is dict
            assert job["x"] == job.parameters["x"] == job.get("x") and job.get("y", 5) == 5
            return {"objective": job.parameters["x"], "metadata": {"id": job.id}}
    """

    async def scenario() -> None:
        async with Bench(tmp_path) as bench:
            bench.module("subject", code)
            config = {"x": 3, "l": [1, 2]}
            old = await bench.run(bench.call("subject.old", config, warm=warm))
            assert (old.result.outcome, old.result.objective, old.result.reason) == (Outcome.OK, 8.0, "")
            order = bench.call("subject.new", config, warm=warm)
            new = await bench.run(order)
            assert (new.result.objective, new.result.metadata) == (3.0, {"id": order.key[0]})
            assert sorted(os.listdir(order.directory)) == ["job.json", "result.json"]

    go(scenario())


@pytest.mark.parametrize(
    ("returned", "outcome", "objective", "words"),
    [
        ("1", Outcome.OK, 1.0, []),
        ("-2.5", Outcome.OK, -2.5, []),
        ("__import__('numpy').float32(0.5)", Outcome.OK, 0.5, []),
        ("__import__('numpy').int64(7)", Outcome.OK, 7.0, []),
        ("__import__('fractions').Fraction(1, 4)", Outcome.OK, 0.25, []),
        ("{'objective': 2}", Outcome.OK, 2.0, []),
        ("'F_out_of_memory'", Outcome.ERROR, None, ["F_out_of_memory"]),
        ("{'objective': 'F'}", Outcome.ERROR, None, ["F"]),
        ("None", Outcome.INVALID_RESULT, None, ["returned None", "finite number"]),
        ("float('nan')", Outcome.INVALID_RESULT, None, ["returned nan", "finite number"]),
        ("-float('inf')", Outcome.INVALID_RESULT, None, ["returned -inf", "finite number"]),
        ("True", Outcome.INVALID_RESULT, None, ["truth value"]),
        ("__import__('numpy').bool_(1)", Outcome.INVALID_RESULT, None, ["truth value"]),
        ("'0.5'", Outcome.INVALID_RESULT, None, ["the string '0.5'"]),
        ("1j", Outcome.INVALID_RESULT, None, ["a complex 1j"]),
        ("[1.0]", Outcome.INVALID_RESULT, None, ["a list"]),
        ("(1.0, 2.0)", Outcome.INVALID_RESULT, None, ["a tuple"]),
        ("__import__('numpy').zeros((2, 3))", Outcome.INVALID_RESULT, None, ["a ndarray of shape (2, 3)"]),
        ("__import__('numpy').array(1.0)", Outcome.INVALID_RESULT, None, ["a ndarray of shape ()"]),
        ("10**400", Outcome.INVALID_RESULT, None, ["an int that is no float"]),
        ("{'loss': 1}", Outcome.INVALID_RESULT, None, ["without 'objective'", "['loss']"]),
        ("{'objective': None}", Outcome.INVALID_RESULT, None, ["as objective None"]),
        (
            "{'objective': 1, 'metadata': {'a': {'b': {1, 2}}}}",
            Outcome.INVALID_RESULT,
            None,
            ["metadata['a']['b'] is a set"],
        ),
        ("{'objective': 1, 'metadata': {(1, 2): 3}}", Outcome.INVALID_RESULT, None, ["the key (1, 2)"]),
        ("{'objective': 1, 'metadata': 5}", Outcome.INVALID_RESULT, None, ["metadata is an int"]),
        ("run", Outcome.INVALID_RESULT, None, ["a function"]),
    ],
)
def test_what_is_returned_is_judged(
    tmp_path: Path, returned: str, outcome: Outcome, objective: float | None, words: list[str]
) -> None:
    if "numpy" in returned:
        pytest.importorskip("numpy")
    result = evaluate(tmp_path, f"def run(config):\n    return {returned}\n").result
    assert (result.outcome, result.objective) == (outcome, objective)
    for word in words:
        assert word in result.reason
    assert "\n" not in result.reason


def test_metadata_becomes_plain_json(tmp_path: Path) -> None:
    code = """
        import numpy as np
        def run(job):
            return {"objective": np.float64(1), "epochs": np.int32(3),
                    "metadata": {"a": np.float32(0.5), "b": [np.bool_(True), (1, 2)], "nan": np.nan, 5: None}}
    """
    result = evaluate(tmp_path, code).result
    assert result.metadata == {"a": 0.5, "b": [True, [1, 2]], "nan": None, "5": None, "epochs": 3}
    assert type(result.metadata["a"]) is float


def test_an_exception_is_one_line_with_its_traceback_in_the_output(tmp_path: Path) -> None:
    code = """
        def run(config):
            print("trying")
            raise ValueError("units must be positive,\\n  got %d" % config["units"])
    """
    ended = evaluate(tmp_path, code, {"units": -3})
    assert ended.result.outcome is Outcome.ERROR
    assert ended.result.reason == "ValueError: units must be positive, got -3"
    assert ended.tail.startswith("trying\nTraceback")
    assert "subject.py" in ended.tail
    assert "processes/call.py" not in ended.tail


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("import sys; sys.exit(3)", "SystemExit: the run function ended the program (3)"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("import os; os._exit(0)", "exit code 0 before the run function returned"),
        ("import os; os._exit(5)", "exit code 5 before the run function returned"),
        ("import os; os.kill(os.getpid(), 9)", "killed by signal 9 (SIGKILL)"),
        ("import ctypes; ctypes.string_at(0)", "killed by signal 11 (SIGSEGV)"),
        (
            "raise type('E', (Exception,), {'__str__': lambda self: 1/0})()",
            "E: (its message cannot be shown)",
        ),
        ("def f(): f()\n    f()", "RecursionError: maximum recursion depth exceeded"),
    ],
)
@pytest.mark.parametrize("warm", [True, False], ids=["warm", "fresh"])
def test_any_other_end_is_an_error_with_a_reason(tmp_path: Path, body: str, reason: str, warm: bool) -> None:
    result = evaluate(tmp_path, f"def run(config):\n    {body}\n", warm=warm).result
    assert result.outcome is Outcome.ERROR
    assert result.reason.startswith(reason)


@pytest.mark.parametrize(
    ("run", "reason"),
    [
        ("absent.run", "cannot import absent: ModuleNotFoundError: No module named 'absent'"),
        ("broken.run", "cannot import broken: ZeroDivisionError: division by zero"),
        ("leaving.run", "cannot import leaving: SystemExit: 4"),
        ("subject.nothing", "module subject has no function nothing"),
        ("subject.number", "subject.number is an int, not a function"),
        ("__main__.run", "the run function __main__.run lives in __main__"),
        ("run", "'run' is no run function: give module.function"),
    ],
)
@pytest.mark.parametrize("warm", [True, False], ids=["warm", "fresh"])
def test_a_run_function_that_is_not_there_is_a_clean_error(
    tmp_path: Path, run: str, reason: str, warm: bool
) -> None:
    async def scenario() -> None:
        async with Bench(tmp_path) as bench:
            bench.module("broken", "print('importing')\n1 / 0\n")
            bench.module("leaving", "raise SystemExit(4)\n")
            bench.module("subject", "number = 3\n")
            orders = [bench.call(run, warm=warm, name=f"task{number}") for number in (1, 2)]
            for ended in await bench.run_all(orders):
                assert ended.result.outcome is Outcome.ERROR
                assert ended.result.reason.startswith(reason)
                if run == "broken.run":
                    assert 'broken.py", line 2' in ended.tail

    go(scenario())


def test_a_module_corrected_after_a_failed_import_is_found_by_the_next_evaluation(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Bench(tmp_path) as bench:
            bench.module("subject", "import nothing_like_this\n")
            assert (await bench.run(bench.call("subject.run"))).result.outcome is Outcome.ERROR
            bench.module("subject", "def run(config): return 1\n")
            assert (await bench.run(bench.call("subject.run"))).result.objective == 1.0

    go(scenario())


@pytest.mark.gentle("a large result is told of by its file, which a keeper on the same node sees at once")
@pytest.mark.parametrize("warm", [True, False], ids=["warm", "fresh"])
def test_a_result_of_200_kilobytes_arrives_whole(tmp_path: Path, warm: bool) -> None:
    code = "def run(job): return {'objective': 1, 'metadata': {'text': job['letter'] * 200000}}\n"
    result = evaluate(tmp_path, code, {"letter": "é"}, warm=warm).result
    assert result.metadata == {"text": "é" * 200000}


def test_a_configuration_of_a_megabyte_arrives_whole(tmp_path: Path) -> None:
    code = "def run(job): return len(job['text'])\n"
    for warm in (True, False):
        assert evaluate(tmp_path, code, {"text": "ü" * 10**6}, warm=warm).result.objective == 10**6


def test_binary_output_of_every_kind_reaches_the_file(tmp_path: Path) -> None:
    code = """
        import ctypes, os, sys
        def run(config):
            print("unencodable \\udcff")
            os.write(1, b"\\xff\\x00\\xfe\\n")
            ctypes.CDLL(None).printf(b"from C\\n")
            sys.stderr.write("to stderr")
            return 1
    """

    async def scenario() -> None:
        async with Bench(tmp_path) as bench:
            bench.module("subject", code)
            order = bench.call("subject.run")
            assert (await bench.run(order)).result.objective == 1.0
            output = (Path(order.directory) / "task1.out").read_bytes()
            for piece in (b"unencodable \\udcff\n", b"\xff\x00\xfe\n", b"from C\n", b"to stderr"):
                assert piece in output

    go(scenario())


def test_a_result_that_cannot_be_written_is_reported_all_the_same(tmp_path: Path) -> None:
    code = """
        import os
        def run(config):
            os.makedirs("result.json/in/the/way")
            return 5
    """

    async def scenario() -> None:
        async with Bench(tmp_path) as bench:
            bench.module("subject", code)
            order = bench.call("subject.run")
            bench.agent.start(order)
            assert (await bench.end_of(order.key)).result.objective == 5.0
            assert "cannot write" in bench.notes[0]
            assert "result.json" in bench.notes[0]

    go(scenario())


def test_a_run_function_that_forks_gives_one_result(tmp_path: Path) -> None:
    code = """
        import os
        def run(config):
            pid = os.fork()
            if pid:
                os.waitpid(pid, 0)
            return 1.0 if pid else 2.0
    """
    assert evaluate(tmp_path, code).result.objective == 1.0


def test_processes_that_a_run_function_leaves_are_ended(tmp_path: Path) -> None:
    code = """
        import subprocess
        def run(config):
            a = subprocess.Popen(["sleep", "1000"])
            b = subprocess.Popen(["sleep", "1000"], start_new_session=True, env={})
            return {"objective": 1, "metadata": {"pids": [a.pid, b.pid]}}
    """
    pids = evaluate(tmp_path, code).result.metadata["pids"]
    assert [pid for pid in pids if Path(f"/proc/{pid}").exists()] == []


def test_only_the_package_itself_comes_into_the_users_interpreter(tmp_path: Path) -> None:
    code = """
        import sys
        def run(config):
            mine = [m for m in sys.modules if m.split(".")[0] == "nas_hpc"]
            return {"objective": 1, "metadata": {"path": sys.path, "mine": mine, "argv": sys.argv,
                    "heavy": [m for m in ("asyncio", "msgpack", "numpy", "subprocess") if m in sys.modules]}}
    """

    async def scenario() -> None:
        async with Bench(tmp_path) as bench:
            bench.module("subject", code)
            seen = (await bench.run(bench.call("subject.run"))).result.metadata
            assert seen["path"][0] == str(tmp_path)
            assert "" not in seen["path"]
            assert str(Path(__file__).resolve().parents[2]) not in seen["path"]
            assert all(m == "nas_hpc" or m.startswith("nas_hpc.processes") for m in seen["mine"])
            assert seen["heavy"] == []
            assert seen["argv"] == [""]

    go(scenario())


def test_modules_beside_the_package_do_not_shadow_the_users(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Bench(tmp_path) as bench:
            (tmp_path / "tests").mkdir()
            bench.module("tests/__init__", "")
            bench.module("tests/subject", "def run(config): return 11\n")
            assert (await bench.run(bench.call("tests.subject.run"))).result.objective == 11.0

    go(scenario())


def test_run_functions_of_the_package_itself_need_no_installation(tmp_path: Path) -> None:
    """Its folder is not on the path of the user's interpreter, its modules are found all the same."""

    async def scenario() -> None:
        async with Bench(tmp_path) as bench:
            order = bench.call("nas_hpc.units.__doc__", sys_path=())
            reason = (await bench.run(order)).result.reason
            assert "No module named 'nas_hpc'" not in reason

    go(scenario())


@pytest.mark.parametrize("warm", [True, False], ids=["warm", "fresh"])
def test_an_interpreter_that_does_not_exist_is_start_failed(tmp_path: Path, warm: bool) -> None:
    async def scenario() -> None:
        async with Bench(tmp_path) as bench:
            bench.module("subject", "def run(config): return 1\n")
            ended = await bench.run(bench.call("subject.run", interpreter="/no/python", warm=warm))
            assert ended.result.outcome is Outcome.START_FAILED
            assert "/no/python" in ended.result.reason

    go(scenario())


@pytest.mark.parametrize("warm", [True, False], ids=["warm", "fresh"])
@pytest.mark.slow
def test_a_time_limit_ends_a_run_function(tmp_path: Path, warm: bool) -> None:
    code = "import time\ndef run(job): return time.sleep(600) if job['x'] else 1\n"

    async def scenario() -> None:
        async with Bench(tmp_path) as bench:
            bench.module("subject", code)
            await bench.run(bench.call("subject.run", {"x": 0}, warm=warm))  # its module is imported now
            result = (await bench.run(bench.call("subject.run", {"x": 1}, timeout_s=2.0, warm=warm))).result
            assert (result.outcome, result.reason) == (Outcome.TIMEOUT, "ran longer than 2 s")

    go(scenario())


def test_the_environment_and_directory_are_those_of_the_evaluation(tmp_path: Path) -> None:
    code = """
        import os, sys
        def run(job):
            names = ["NAS_HPC_JOB_ID", "NAS_HPC_ATTEMPT", "NAS_HPC_JOB_DIR", "CUDA_VISIBLE_DEVICES", "MINE"]
            return {"objective": 1, "metadata": {**{n: os.environ.get(n) for n in names}, "cwd": os.getcwd(),
                    "cores": sorted(os.sched_getaffinity(0)), "sid": os.getsid(0) == os.getpid()}}
    """

    async def scenario() -> None:
        async with Bench(tmp_path) as bench:
            bench.module("subject", code)
            for warm in (True, False):
                more: dict[str, Any] = {"environ": {"MINE": "a"}, "warm": warm}
                orders = [
                    bench.call("subject.run", name=f"task{n}", gpus=(n,), cores=(n,), **more) for n in (0, 1)
                ]
                for n, ended in enumerate(await bench.run_all(orders)):
                    assert ended.result.metadata == {
                        "NAS_HPC_JOB_ID": orders[n].key[0],
                        "NAS_HPC_ATTEMPT": "1",
                        "NAS_HPC_JOB_DIR": orders[n].directory,
                        "CUDA_VISIBLE_DEVICES": str(n),
                        "MINE": "a",
                        "cwd": orders[n].directory,
                        "cores": [n],
                        "sid": True,
                    }
            assert json.dumps(bench.notes) == "[]"

    go(scenario())


@pytest.mark.parametrize(
    "module",
    [
        "attempts",
        "boot",
        "call",
        "channel",
        "child",
        "family",
        "jobdata",
        "keeper",
        "linux",
        "programs",
        "results",
        "warm",
    ],
)
def test_what_runs_in_the_users_interpreter_is_python_3_8(checkout: Path, module: str) -> None:
    source = (checkout / "nas_hpc" / "processes" / f"{module}.py").read_text()
    tree = ast.parse(source, feature_version=(3, 8))
    imported = {
        (node.module if isinstance(node, ast.ImportFrom) else name.name).split(".")[0]  # type: ignore[union-attr]
        for node in ast.walk(tree)
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for name in node.names
    }
    assert imported <= {*sys.stdlib_module_names, "nas_hpc", "threadpoolctl"}


def test_python_of_another_installation_without_our_packages_works(tmp_path: Path) -> None:
    system = "/usr/bin/python3" if os.path.exists("/usr/bin/python3") else sys.executable

    async def scenario() -> None:
        async with Bench(tmp_path) as bench:
            bench.module("subject", "def run(config): return 1\n")
            for warm in (True, False):
                result = (await bench.run(bench.call("subject.run", interpreter=system, warm=warm))).result
                assert result.outcome is Outcome.OK, result.reason

    go(scenario())
