"""What a program leaves as its objective: result.json of its own, then its data, then what it printed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nas_hpc.processes import jobdata
from nas_hpc.states import Outcome
from tests.launcher.bench import REPOSITORY
from tests.processes.bench import Bench, go

PROGRAM = """
import json, os
job, attempt = os.environ["NAS_HPC_JOB_ID"], int(os.environ["NAS_HPC_ATTEMPT"])
OWN, DATA, PRINTED = {own!r}, {data!r}, {printed!r}
if OWN is not None:
    with open("result.json", "w") as file:
        json.dump({{"job": job, "attempt": attempt, "outcome": "ok", "objective": OWN}}, file)
if DATA is not None:
    with open("data.json", "w") as file:
        json.dump({{"job": job, "attempt": attempt - {stale}, "data": DATA}}, file)
if PRINTED:
    print("DH-OUTPUT:", PRINTED)
"""


def program(own: Any = None, data: Any = None, printed: str = "", stale: int = 0) -> str:
    return PROGRAM.format(own=own, data=data, printed=printed, stale=stale)


@pytest.mark.gentle("what a program prints counts at once: a result.json of its own must be there by its end")
@pytest.mark.parametrize(
    ("code", "objective", "metadata", "reason"),
    [
        (program(1.0, {"dh_objective": 2}, "3"), 1.0, {}, ""),
        (program(None, {"dh_objective": 2, "objective": 4, "epochs": 5}, "3"), 2.0, {"epochs": 5}, ""),
        (program(None, {"objective": 4}, "3"), 4.0, {}, ""),
        (program(None, {"epochs": 5}, "3"), 3.0, {"epochs": 5}, ""),
        (program(None, {"epochs": 5}), None, {"epochs": 5}, "no line with DH-OUTPUT: in task1.out"),
        (program(None, {"objective": "0.5"}, "3"), None, {}, "objective in the job's data is '0.5'"),
        (program(None, {"objective": True}), None, {}, "True; the objective must be a finite number"),
        (program(None, {"objective": float("nan")}).replace("nan", "float('nan')"), None, {}, "is None"),
        (program(None, {"objective": 10**400}), None, {}, "must be a finite number"),
        (program(None, {"objective": 4}, "3", stale=1), 3.0, {}, ""),
        (program(None, ["objective"], "3"), 3.0, {}, ""),
    ],
)
def test_the_objective_of_an_evaluation_is_its_own_result_then_its_data_then_what_it_printed(
    tmp_path: Path, code: str, objective: float | None, metadata: dict[str, Any], reason: str
) -> None:
    async def scenario() -> None:
        async with Bench(tmp_path) as bench:
            result = (await bench.run(bench.python(code, expects_result=True))).result
            assert result.outcome is (Outcome.OK if objective is not None else Outcome.INVALID_RESULT)
            assert (result.objective, dict(result.metadata)) == (objective, metadata)
            assert reason in result.reason

    go(scenario())


@pytest.mark.parametrize(
    ("code", "objective"),
    [
        (program(printed="0.5"), 0.5),
        (program(data={"objective": 7}), 7.0),
        (program(printed="nothing"), None),
        (program(data={"objective": None}), None),
        (program(), None),
    ],
)
def test_a_persons_program_has_an_objective_if_it_gives_one_and_is_no_failure_without(
    tmp_path: Path, code: str, objective: float | None
) -> None:
    async def scenario() -> None:
        async with Bench(tmp_path) as bench:
            result = (await bench.run(bench.python(code))).result
            assert (result.outcome, result.objective, result.reason) == (Outcome.OK, objective, "")

    go(scenario())


def test_a_failure_stays_one_whatever_objective_was_left_before(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Bench(tmp_path) as bench:
            code = program(data={"objective": 7}, printed="3") + "\nraise SystemExit(4)"
            result = (await bench.run(bench.python(code, expects_result=True))).result
            assert (result.outcome, result.objective, result.reason) == (Outcome.ERROR, None, "exit code 4")

    go(scenario())


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '{"job": "j"}', '{"job": "j", "attempt": true, "data": {}}', "\xff",
             '{"job": "other", "attempt": 1, "data": {"objective": 1}}', "[" * 100_000],
)  # fmt: skip
def test_data_that_is_torn_or_another_jobs_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / jobdata.DATA_FILE).write_text(text, encoding="latin-1")
    assert jobdata.read(str(tmp_path), "j") == (0, {})


def test_data_is_read_as_it_was_written(tmp_path: Path) -> None:
    (tmp_path / jobdata.DATA_FILE).write_bytes(jobdata.text("j", 3, {"a": [1, None], "objective": 2}))
    assert jobdata.read(str(tmp_path), "j") == (3, {"a": [1, None], "objective": 2})
    assert json.loads((tmp_path / jobdata.DATA_FILE).read_bytes())["attempt"] == 3


@pytest.mark.parametrize("mode", ["each", "failed", "packed"])
def test_a_program_knows_its_job_and_gives_its_data_whatever_remains_of_it(tmp_path: Path, mode: str) -> None:
    code = """
        import json, os
        from nas_hpc import jobs
        here = jobs.current()
        assert here is not None and here.name == "task1", here
        jobs.update_data(objective=2.5, seen=here.id)
    """

    async def scenario() -> None:
        async with Bench(tmp_path, task_directories=mode) as bench:
            order = bench.python(code, expects_result=True, environ={"PYTHONPATH": str(REPOSITORY)})
            bench.agent.start(order)
            result = (await bench.end_of(order.key)).result
            assert (result.outcome, result.objective) == (Outcome.OK, 2.5), result.reason
            assert result.metadata["seen"] == order.key[0]
            assert Path(order.directory).exists() == (mode == "each")

    go(scenario())
