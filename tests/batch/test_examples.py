"""launch_scripts/MACHINE: scripts to read and change, made from the templates of those that are submitted."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from nas_hpc.batch import limits
from nas_hpc.batch.examples import _BATCH, _DEBUG, NAMES, PROJECT, Size, _size, examples, main
from nas_hpc.batch.machine import Machine, Queue, Step
from nas_hpc.batch.machine_file import read_machine
from nas_hpc.batch.machines import PACKAGED
from nas_hpc.batch.system import Request
from nas_hpc.cli.main import main as program

REPOSITORY = Path(__file__).resolve().parents[2]
SCRIPTS = REPOSITORY / "launch_scripts"
MACHINES = {path.stem: read_machine(path) for path in sorted(PACKAGED.glob("*.toml"))}
MARKS = {"cobalt": "#COBALT ", "pbs": "#PBS ", "slurm": "#SBATCH ", "local": "#none "}


@pytest.mark.parametrize("name", MACHINES)
def test_the_scripts_of_a_machine_are_what_its_file_and_the_templates_give(name: str) -> None:
    for script, text in examples(MACHINES[name]).items():
        path = SCRIPTS / name / script
        why = f"{path}: make it again with: python -m nas_hpc.batch.examples launch_scripts"
        assert path.read_text() == text, why
        assert os.access(path, os.X_OK), why


def test_there_are_scripts_of_no_other_machines() -> None:
    assert sorted(path.name for path in SCRIPTS.iterdir() if path.is_dir()) == sorted(MACHINES)
    for name in MACHINES:
        assert sorted(path.name for path in (SCRIPTS / name).iterdir()) == sorted(NAMES)


@pytest.mark.parametrize("name", MACHINES)
@pytest.mark.parametrize("script", NAMES)
def test_a_script_begins_with_what_it_does_and_what_to_edit(name: str, script: str) -> None:
    lines = (SCRIPTS / name / script).read_text().splitlines()
    assert lines[0] == "#!/bin/bash"
    head = [line for line in lines[: next(i for i, line in enumerate(lines) if not line.startswith("#"))]]
    said = [line for line in head[1:] if not line.startswith(MARKS[MACHINES[name].system])]
    assert re.match(r"# (Runs|Opens) ", said[0])
    assert any(line.startswith("# Edit: ") for line in said)
    assert subprocess.run(["bash", "-n", str(SCRIPTS / name / script)], check=False).returncode == 0


@pytest.mark.parametrize("name", [name for name, machine in MACHINES.items() if machine.system != "local"])
def test_all_directives_stand_where_the_batch_system_reads_them(name: str) -> None:
    mark = MARKS[MACHINES[name].system]
    lines = (SCRIPTS / name / "batch.sh").read_text().splitlines()
    places = [number for number, line in enumerate(lines) if line.startswith(mark)]
    if mark == "#COBALT ":  # from line 2, and nothing in between
        assert places == list(range(1, 1 + len(places)))
    first_command = next(number for number, line in enumerate(lines) if not line.startswith("#"))
    assert max(places) < first_command
    assert any(PROJECT in lines[number] for number in places)


@pytest.mark.parametrize("name", MACHINES)
@pytest.mark.parametrize("sizes", [_DEBUG, _BATCH], ids=["debug", "batch"])
def test_what_the_scripts_ask_for_is_allowed(name: str, sizes: dict[str, Size]) -> None:
    size = _size(MACHINES[name], sizes)
    request = Request(
        "x", size.nodes, size.minutes, Path("/s"), Path("/s/x"), queue=size.queue, project=PROJECT
    )
    assert limits.check(MACHINES[name], request, live=None, queued=[]) == []


@pytest.mark.parametrize(
    "queue",
    [
        Queue("q"),
        Queue("q", min_nodes=10, max_nodes=20),
        Queue("q", max_nodes=1, max_minutes=30),
        Queue("q", steps=(Step(1, 20), Step(5, 600))),
    ],
)
def test_scripts_of_a_machine_of_ones_own_ask_for_what_its_queue_allows(queue: Queue) -> None:
    machine = Machine("mine", "pbs", queues=(queue,), queue="q")
    size = _size(machine, {})
    request = Request("x", size.nodes, size.minutes, Path("/s"), Path("/s/x"), queue=size.queue, project="p")
    assert limits.check(machine, request, live=None, queued=[]) == []
    assert "#PBS -q q" in examples(machine)["batch.sh"]


def test_the_command_writes_the_scripts_of_the_machines_that_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    own = tmp_path / "config" / "nas-hpc" / "machines" / "mine.toml"
    own.parent.mkdir(parents=True)
    own.write_text('system = "slurm"\n')
    assert main([str(tmp_path / "out"), "mine", "theta"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 4
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["mine", "theta"]
    assert main([str(tmp_path / "out"), "nosuch"]) == 2
    assert "there is no machine 'nosuch'; there are" in capsys.readouterr().err
    assert main([]) == 2
    own.write_text("system = 1\n")
    assert main([str(tmp_path / "out")]) == 1


# -- edited, and run ---------------------------------------------------------------------------------
def nas_hpc(*words: str) -> None:
    assert program((*words,)) == 0


def edited(tmp_path: Path, name: str, script: str) -> Path:
    """The script with the places of this test, and an environment with the program."""
    beside = tmp_path / "venv" / "bin" / "nas-hpc"
    beside.parent.mkdir(parents=True, exist_ok=True)
    beside.write_text(f'#!/bin/sh\nPYTHONPATH="{REPOSITORY}" exec "{sys.executable}" -m nas_hpc.cli "$@"\n')
    beside.chmod(0o755)
    text = (SCRIPTS / name / script).read_text()
    for place, real in (("/path/to/site", "site"), ("/path/to/venv", "venv")):
        text = text.replace(place, str(tmp_path / real))
    path = tmp_path / script
    path.write_text(text)
    path.chmod(0o755)
    return path


@pytest.mark.slow
def test_the_scripts_of_this_host_run_the_jobs_of_the_workflow(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    at = ("--site", str(tmp_path / "site"))
    nas_hpc("init", at[1])
    nas_hpc("app", *at, "--name", "echo", "--exec", "/bin/echo")
    for script in NAMES:
        nas_hpc("job", *at, "--name", script, "--workflow", "TEST", "--app", "echo", "--args", "hello")
        path = edited(tmp_path, "local", script)
        done = subprocess.run([str(path)], capture_output=True, text=True, check=False, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr
    capfd.readouterr()
    nas_hpc("ls", "jobs", *at)
    assert capfd.readouterr().out.count("JOB_FINISHED") == 2


def test_the_debug_script_of_theta_opens_a_shell_by_qsub(tmp_path: Path) -> None:
    nas_hpc("init", str(tmp_path / "site"))
    path = edited(tmp_path, "theta", "debug.sh")
    for name in ("qsub", "qstat", "qdel"):
        beside = tmp_path / "venv" / "bin" / name
        beside.write_text(f'#!/bin/sh\necho {name} "$@"\n')
        beside.chmod(0o755)
    done = subprocess.run([str(path)], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^qsub -I .*-n 2 .*-q debug-cache-quad .*-t 60", done.stdout, re.MULTILINE)
