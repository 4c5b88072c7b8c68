"""The program that evaluates under Balsam: what it leaves, how it ends, and when it does not run at all."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nas_hpc import wire
from nas_hpc.integrations.balsam.jobs import Owner, job_of
from nas_hpc.integrations.balsam.trial import FAILED, STOP_FILE
from tests.support import wait_until

OWNER = Owner(str(uuid.uuid4()), "WF", "serial", {})
RUN = "tests.balsam.trial_functions."
ROOT = Path(__file__).resolve().parents[2]


class Trial:
    """One evaluation's directory, and its program started there as Balsam does."""

    def __init__(self, place: Path, **asked: Any) -> None:
        ask = wire.Ask(**{"seq": 1, "run": RUN + "double", "config": {"x": 3}, "seed": 7, **asked})
        job = job_of(ask, OWNER)
        self.place = place
        for name, content in job["files"].items():
            (place / name).write_text(content)
        self.out = (place / "task1.out").open("wb")
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, mode: str = "serial", **environ: str) -> subprocess.Popen[bytes]:
        given = {**os.environ, "PYTHONPATH": str(ROOT), "BALSAM_JOB_MODE": mode, **environ}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "nas_hpc.integrations.balsam.trial"],
            cwd=self.place, env=given, stdin=subprocess.DEVNULL, stdout=self.out, stderr=subprocess.STDOUT,
        )  # fmt: skip
        return self.process

    def run(self, mode: str = "serial", **environ: str) -> int:
        return self.start(mode, **environ).wait(60)

    @property
    def result(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.place / "result.json").read_bytes())
        return found

    @property
    def printed(self) -> str:
        return (self.place / "task1.out").read_text()


@pytest.fixture
def trials(tmp_path: Path) -> Iterator[Any]:
    made: list[Trial] = []

    def make(**asked: Any) -> Trial:
        place = tmp_path / f"trial{len(made)}"
        place.mkdir()
        made.append(Trial(place, **asked))
        return made[-1]

    yield make
    for trial in made:
        trial.out.close()
        if trial.process is not None and trial.process.poll() is None:
            trial.process.kill()
            trial.process.wait(60)


def test_a_success_leaves_its_result_and_prints_the_objective(trials: Any) -> None:
    trial = trials(run=RUN + "place", environ={"OWN": "of a: b"}, shape=wire.Shape(threads_per_rank=3))
    assert trial.run(PMI_RANK="1", PMI_SIZE="2") == 0
    found = trial.result
    assert (found["outcome"], found["objective"]) == ("ok", 1.0)
    told = found["metadata"]
    assert (told["job"], told["here"]) == (found["job"], str(trial.place))
    assert (told["threads"], told["own"], told["pmi"], told["group"]) == ("3", "of a: b", "", True)
    assert trial.printed.endswith("DH-OUTPUT: 1.0\n")


def test_a_failure_ends_with_a_code_that_serial_mode_does_not_start_again(trials: Any) -> None:
    for asked, reason in (
        ({"config": {"x": 3, "fail": True}}, "ValueError: no value for 3"),
        ({"run": RUN + "end_at_once"}, "exit code 1 before the run function returned"),
        ({"argv": ("/bin/sh", "-c", "echo no; exit 255")}, "exit code 255"),
        ({"run": RUN + "absent"}, "has no function absent"),
    ):
        trial = trials(**asked)
        assert trial.run() == FAILED
        assert (trial.result["outcome"], trial.result["objective"]) == ("error", None)
        assert reason in trial.result["reason"]
        assert reason in trial.printed


def test_a_program_gives_its_objective_by_what_it_prints(trials: Any) -> None:
    trial = trials(argv=("/bin/sh", "-c", "echo DH-OUTPUT: '0.25 0.5'"))
    assert trial.run() == 0
    assert (trial.result["outcome"], trial.result["objective"]) == ("ok", 0.5)


def test_what_has_a_result_of_an_earlier_start_is_not_run_again(trials: Any, tmp_path: Path) -> None:
    ledger = tmp_path / "ledger"
    trial = trials(config={"x": 3, "ledger": str(ledger)})
    assert trial.run() == trial.run() == 0
    assert ledger.read_text().split() == ["3"]
    assert trial.printed.count("DH-OUTPUT: 6.0") == 2


def test_an_earlier_failure_is_no_result(trials: Any, tmp_path: Path) -> None:
    trial = trials(run=RUN + "fails_at_first", config={"ledger": str(tmp_path / "ledger"), "times": 1})
    assert (trial.run(), trial.result["reason"]) == (FAILED, "RuntimeError: failure 1")
    assert (trial.run(), trial.result["objective"]) == (0, 1.0)


def test_its_time_being_over_ends_it(trials: Any) -> None:
    trial = trials(run=RUN + "sleep", timeout_s=0.5)
    assert trial.run() == FAILED
    assert (trial.result["outcome"], trial.result["reason"]) == ("timeout", "ran longer than 0.5 s")
    pid = _text(trial.place / "pid")  # on a busy machine it may not have come so far
    assert not pid or not Path("/proc", pid).exists()


def test_one_that_was_killed_before_it_was_started_does_not_run(trials: Any) -> None:
    trial = trials(run=RUN + "sleep")
    (trial.place / STOP_FILE).touch()
    assert trial.run() == FAILED
    assert not (trial.place / "pid").exists()


@pytest.mark.slow
def test_one_that_is_killed_while_it_runs_is_ended_in_serial_mode(trials: Any) -> None:
    trial = trials(run=RUN + "sleep")
    process = trial.start()
    wait_until((trial.place / "pid").exists, 60, "the run function")
    (trial.place / STOP_FILE).touch()
    assert process.wait(60) == FAILED
    assert trial.result["outcome"] == "killed"
    assert not Path("/proc", (trial.place / "pid").read_text()).exists()


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGKILL])
def test_the_run_function_ends_with_its_program(trials: Any, sign: signal.Signals) -> None:
    trial = trials(run=RUN + "sleep")
    process = trial.start("mpi")
    pid = wait_until(lambda: _text(trial.place / "pid"), 60, "the run function")
    process.send_signal(sign)
    assert process.wait(60) == -sign
    wait_until(lambda: not Path("/proc", pid).exists(), 60, "the end of the run function")
    assert not (trial.place / "result.json").exists(), "Balsam has it run again"


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"argv": [], "run": "m.f", "config": 3}'])
def test_a_job_file_that_says_nothing_is_named_in_one_line(trials: Any, content: str) -> None:
    trial = trials()
    (trial.place / "job.json").write_text(content)
    assert trial.run() == FAILED
    (line,) = trial.printed.splitlines()
    assert f"{trial.place}/job.json" in line


def test_the_interpreter_is_the_search_s(trials: Any, tmp_path: Path) -> None:
    trial = trials()
    record = json.loads((trial.place / "job.json").read_text())
    shown = tmp_path / "shown"
    script = tmp_path / "interpreter"
    script.write_text(f'#!/bin/sh\necho "$0" > {shown}\nexec {sys.executable} "$@"\n')
    script.chmod(0o755)
    (trial.place / "job.json").write_text(json.dumps({**record, "interpreter": str(script)}))
    assert trial.run() == 0
    assert shown.read_text().strip() == str(script)
    assert trial.result["objective"] == 6.0


def _text(path: Path) -> str:
    return path.read_text() if path.exists() else ""
