"""What training code imports."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import Any

import pytest

from nas_hpc.errors import WrongCall
from nas_hpc.trial import report


def python(code: str, **environ: str) -> str:
    """Run a script with the package on its path; its output."""
    full = {**os.environ, **environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", textwrap.dedent(code)]
    return subprocess.run(command, env=full, check=True, capture_output=True, text=True).stdout


def test_reports_are_lines_in_the_jobs_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NAS_HPC_JOB_DIR", str(tmp_path))
    report(1, 0.5, loss=2, phase="warm-up")
    report(2, math.nan)
    first, second = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert first.pop("time") > 1e9
    assert first == {"step": 1, "value": 0.5, "loss": 2, "phase": "warm-up"}
    assert second["value"] is None


def test_numbers_of_numpy_are_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np = pytest.importorskip("numpy")
    monkeypatch.setenv("NAS_HPC_JOB_DIR", str(tmp_path))
    report(np.int64(3), np.float32(0.5), n=np.int8(2))
    report(np.array(3), np.array(0.5, np.float32), n=np.array(2), huge=10**400)  # as tensors are
    for line in map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines()):
        assert (line["step"], line["value"], line["n"], line.get("huge")) == (3, 0.5, 2, None)
    for value in (np.array([0.5]), np.array(True)):
        with pytest.raises(WrongCall, match="give a number"):
            report(1, value)


@pytest.mark.parametrize(
    ("arguments", "more", "words"),
    [
        (("a", 1.0), {}, "the step is 'a'"),
        ((1.5, 1.0), {}, "the step is 1.5"),
        ((True, 1.0), {}, "the step is True"),
        ((1, "good"), {}, "value is str 'good'"),
        ((1, None), {}, "value is NoneType None"),
        ((1, 1.0), {"loss": [1]}, "loss is list [1]"),
        ((1, 1.0), {"time": 1.0}, "'time' is a field of its own"),
    ],
)
def test_what_is_no_metric_is_refused_by_name(
    arguments: tuple[Any, ...], more: dict[str, Any], words: str
) -> None:
    with pytest.raises(WrongCall, match=words.replace("[", r"\[")):
        report(*arguments, **more)


def test_outside_a_job_reports_do_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    report(1, 1.0)
    assert os.listdir(tmp_path) == []


def _many_reports() -> None:
    for step in range(100):
        report(step, step, text="x" * 500)


def test_lines_of_many_threads_stay_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NAS_HPC_JOB_DIR", str(tmp_path))
    workers = [threading.Thread(target=_many_reports) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert len([json.loads(line) for line in lines]) == 400


def test_should_stop_is_true_exactly_after_sigterm_and_other_handlers_still_hear_it() -> None:
    output = python("""
        import os, signal
        from nas_hpc.trial import should_stop
        signal.signal(signal.SIGTERM, lambda *_: print("mine too", flush=True))
        print(should_stop(), flush=True)
        pid = os.fork()
        if pid == 0:
            print(should_stop(), flush=True)
            os._exit(0)
        os.waitpid(pid, 0)
        os.kill(os.getpid(), signal.SIGTERM)
        print(should_stop(), flush=True)
        pid = os.fork()
        if pid == 0:
            print("child", should_stop(), flush=True)
            os._exit(0)
        os.waitpid(pid, 0)
    """)
    assert output.splitlines() == ["False", "False", "mine too", "True", "child False"]


def test_a_program_that_never_asks_is_ended_by_sigterm_as_usual() -> None:
    with pytest.raises(subprocess.CalledProcessError) as caught:
        python("import nas_hpc.trial, os; os.kill(os.getpid(), 15)")
    assert caught.value.returncode == -signal.SIGTERM


def test_asked_first_outside_the_main_thread_it_says_false() -> None:
    code = """
        import signal, threading
        from nas_hpc.trial import should_stop
        thread = threading.Thread(target=lambda: print(should_stop()))
        thread.start()
        thread.join()
        print(signal.getsignal(signal.SIGTERM) == signal.SIG_DFL)
    """
    assert python(code) == "False\nTrue\n"


def test_the_import_is_light() -> None:
    heavy = "asyncio, sqlalchemy, sklearn, numpy, tensorflow, msgpack, zmq, subprocess"
    code = f"import sys, nas_hpc.trial; print([m for m in '{heavy}'.split(', ') if m in sys.modules])"
    assert python(code) == "[]\n"
