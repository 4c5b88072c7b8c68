"""Which job this is, and its data: from the environment and the directory alone."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nas_hpc import jobs
from nas_hpc.errors import WrongCall
from nas_hpc.processes import jobdata

JOB, FIRST, SECOND = "a" * 32, "b" * 32, "c" * 32


def place(root: Path, job: str, name: str, workflow: str = "W", **record: Any) -> Path:
    """A job's directory with its job.json."""
    directory = root / workflow / f"{name}_{job[:8]}"
    directory.mkdir(parents=True)
    (directory / "job.json").write_text(
        json.dumps({"id": job, "name": name, "workflow": workflow, "attempt": 1, **record})
    )
    return directory


def enter(monkeypatch: pytest.MonkeyPatch, site: Path, directory: Path, attempt: int = 1) -> None:
    """Be the program of that job."""
    values = {
        "NAS_HPC_JOB_ID": JOB,
        "NAS_HPC_ATTEMPT": str(attempt),
        "NAS_HPC_JOB_DIR": str(directory),
        "NAS_HPC_WORKFLOW": "W",
        "NAS_HPC_SITE": str(site),
    }
    for name, value in values.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory of the job that this process is."""
    directory = place(tmp_path / "data", JOB, "my_sim", data={"lr": 0.1, "seen": 1}, parents=[FIRST, SECOND])
    enter(monkeypatch, tmp_path, directory)
    return directory


def stored(directory: Path) -> tuple[int, dict[str, Any]]:
    return jobdata.read(str(directory), JOB)


def test_outside_of_a_job_there_is_none_and_data_goes_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert jobs.current() is None
    jobs.update_data(objective=1.0)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(WrongCall, match="belongs to no job.*nas-hpc job"):
        jobs.add(name="a", application="A")


def test_a_job_knows_itself_its_data_and_its_parents(here: Path, tmp_path: Path) -> None:
    place(tmp_path / "data", FIRST, "first_one")
    place(tmp_path / "data", SECOND, "second", workflow="OTHER")
    place(tmp_path / "data", "b" * 8 + "d" * 24, "same_beginning")
    me = jobs.current()
    assert me is not None
    assert (me.id, me.name, me.workflow, me.attempt, me.directory) == (JOB, "my_sim", "W", 1, here)
    assert me.data == {"lr": 0.1, "seen": 1}
    assert me.parent_ids == (FIRST, SECOND)
    assert [(parent.id, parent.name, parent.directory.parent.name) for parent in me.parents] == [
        (FIRST, "first_one", "W"),
        (SECOND, "second", "OTHER"),
    ]


@pytest.mark.parametrize(
    "damage", [lambda p: p.unlink(), lambda p: p.write_text("{"), lambda p: p.write_text("[]")]
)
def test_without_job_json_it_still_knows_its_name(here: Path, damage: Any) -> None:
    damage(here / "job.json")
    me = jobs.current()
    assert me is not None
    assert (me.name, me.workflow, dict(me.data), me.parents) == ("my_sim", "W", {}, ())


def test_what_is_updated_is_there_at_once_and_adds_up(here: Path) -> None:
    jobs.update_data(seen=np.int64(2), epochs=[1, 2])
    jobs.update_data(dh_objective=np.float64(0.5))
    assert stored(here) == (1, {"seen": 2, "epochs": [1, 2], "dh_objective": 0.5})
    me = jobs.current()
    assert me is not None
    assert me.data == {"lr": 0.1, "seen": 2, "epochs": [1, 2], "dh_objective": 0.5}
    assert sorted(path.name for path in here.iterdir()) == ["data.json", "job.json"], (
        "no temporary file is left"
    )


def test_a_restarted_job_finds_its_data_but_not_its_objective(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs.update_data(objective=1.0, dh_objective=2.0, step=7)
    enter(monkeypatch, tmp_path, here, attempt=2)
    jobs.update_data(step=8)
    assert stored(here) == (2, {"step": 8})
    jobs.update_data(objective=3.0)
    assert stored(here) == (2, {"step": 8, "objective": 3.0})


@pytest.mark.parametrize("content", ["", "{", '{"job": "other", "attempt": 1, "data": {"a": 1}}'])
def test_a_torn_or_foreign_file_is_replaced(here: Path, content: str) -> None:
    (here / "data.json").write_text(content)
    jobs.update_data(b=2)
    assert stored(here) == (1, {"b": 2})


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"objective": "0.5"}, "objective in the job's data is '0.5'; the objective must be a finite number"),
        ({"dh_objective": None}, "is None"),
        ({"objective": True}, "is True"),
        ({"objective": math.nan}, "nan is no number that JSON has"),
        ({"a": {"b": {1, 2}}}, "is a set"),
        ({"a": 2**70}, "at most 64 bits"),
    ],
)
def test_what_is_no_data_is_refused_and_changes_nothing(
    here: Path, values: dict[str, Any], said: str
) -> None:
    jobs.update_data(before=1)
    with pytest.raises(WrongCall) as refused:
        jobs.update_data(**values)
    assert said in refused.value.message
    assert refused.value.message.startswith("update_data")
    assert stored(here) == (1, {"before": 1})


@pytest.mark.parametrize(
    ("environ", "writes"),
    [
        ({"PMI_RANK": "0", "PMI_SIZE": "2"}, True),
        ({"PMI_RANK": "1", "PMI_SIZE": "2"}, False),
        ({"OMPI_COMM_WORLD_RANK": "1"}, False),
        ({"SLURM_PROCID": "1", "SLURM_STEP_ID": "0"}, False),
        ({"SLURM_PROCID": "1"}, True),
    ],
)
def test_of_several_ranks_the_first_writes(
    here: Path, monkeypatch: pytest.MonkeyPatch, environ: dict[str, str], writes: bool
) -> None:
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    jobs.update_data(objective=1.0)
    assert stored(here) == ((1, {"objective": 1.0}) if writes else (0, {}))


def test_threads_lose_nothing_of_each_others_data(here: Path) -> None:
    threads = [threading.Thread(target=jobs.update_data, kwargs={f"k{i}": i}) for i in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert stored(here) == (1, {f"k{i}": i for i in range(20)})


def test_data_that_cannot_be_written_is_as_it_was(here: Path) -> None:
    jobs.update_data(a=1)
    moved = here.rename(here.with_name("moved"))
    with pytest.raises(OSError, match="data.json"):
        jobs.update_data(b=2)
    assert jobdata.read(str(moved), JOB) == (1, {"a": 1})


def test_the_room_loads_no_heavy_library() -> None:
    heavy = ("sqlalchemy", "sklearn", "tensorflow", "numpy", "ConfigSpace", "pandas", "zmq", "msgpack")
    code = f"import sys, nas_hpc.jobs\nprint([m for m in {heavy} if m in sys.modules])"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[]"
