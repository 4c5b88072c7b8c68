"""Scripts for batch systems: what they say, and what they do when nothing but they gives an environment."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from nas_hpc.batch.jobs import JOB_VARIABLE
from nas_hpc.batch.machine import Machine
from nas_hpc.batch.script import Body, body_of, carried, render, template_text
from nas_hpc.batch.system import Request
from nas_hpc.errors import WrongCall
from nas_hpc.site import Site

RECORDER = """\
import json, os, sys
print(json.dumps({"pid": os.getpid(), "argv": sys.argv[1:], "environ": dict(os.environ), "cwd": os.getcwd()}))
"""
HOSTILE = """it's "$(touch touched)" `touch touched` \\ a\nb"""


def request(directory: Path, **more: object) -> Request:
    given = Request(
        name="TEST", nodes=2, walltime_minutes=90, directory=directory, output=directory / "TEST-1"
    )
    return replace(given, **more)  # type: ignore[arg-type]


def machine(system: str = "local", **more: object) -> Machine:
    return replace(Machine(name="here", system=system), **more)  # type: ignore[arg-type]


def body(tmp_path: Path, **exports: str) -> Body:
    recorder = tmp_path / "recorder.py"
    recorder.write_text(RECORDER)
    return Body(
        what="Runs.", program=(sys.executable, str(recorder)), path="/own/bin",
        launcher=("launcher", "a b", HOSTILE), home="/home/of me", exports=exports,
    )  # fmt: skip


def run(tmp_path: Path, text: str, **environ: str) -> tuple[int, dict[str, object]]:
    """Pid of the process that was started, and what the script's last line found."""
    script = tmp_path / "script.sh"
    script.write_text(text)
    script.chmod(0o700)
    process = subprocess.Popen([script], env=environ, stdout=subprocess.PIPE, cwd="/")
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    return process.pid, json.loads(out)


@pytest.mark.parametrize("system", ["cobalt", "pbs", "slurm", "local"])
def test_in_an_empty_environment_the_launcher_gets_its_words_and_variables_as_they_were_given(
    tmp_path: Path, system: str
) -> None:
    directory = tmp_path / "a place"
    directory.mkdir()
    text = render(machine(system), request(directory), body(tmp_path, NAS_HPC_SITE=HOSTILE))
    pid, found = run(tmp_path, text)
    environ = found["environ"]
    assert isinstance(environ, dict)
    assert found["argv"] == ["launcher", "a b", HOSTILE]
    assert environ["NAS_HPC_SITE"] == HOSTILE
    assert environ["HOME"] == "/home/of me"
    assert environ["PATH"].split(":")[0] == "/own/bin"
    assert "/usr/bin" in environ["PATH"].split(":")
    assert found["cwd"] == str(directory)
    assert not list(tmp_path.rglob("touched"))
    assert found["pid"] == pid  # signals reach the launcher: nothing stands in between


def test_a_machine_of_the_users_own_is_found_by_the_launcher_too(tmp_path: Path) -> None:
    def exports(origin: Path) -> object:
        own = machine(origin=str(origin))
        how = {"job_mode": "mpi", "workflow": "", "chained": False, "environ": {"XDG_CONFIG_HOME": "/c"}}
        return body_of(own, request(tmp_path), Site(tmp_path), "key", **how).exports  # type: ignore[arg-type]

    assert exports(Path("/c/nas-hpc/machines/mine.toml"))["XDG_CONFIG_HOME"] == "/c"  # type: ignore[index]
    assert "XDG_CONFIG_HOME" not in exports(Path("/cc/nas-hpc/machines/mine.toml"))  # type: ignore[operator]


def test_home_and_path_of_the_batch_system_are_kept(tmp_path: Path) -> None:
    text = render(machine(), request(tmp_path), body(tmp_path))
    _, found = run(tmp_path, text, HOME="/root/else", PATH="/usr/bin:/bin")
    environ = found["environ"]
    assert isinstance(environ, dict)
    assert environ["HOME"] == "/root/else"
    assert environ["PATH"] == "/own/bin:/usr/bin:/bin"


def test_what_a_job_around_the_submitter_left_in_the_environment_does_not_reach_the_launcher(
    tmp_path: Path,
) -> None:
    text = render(machine("slurm"), request(tmp_path), body(tmp_path, NAS_HPC_SITE="/s"))
    _, found = run(tmp_path, text, NAS_HPC_JOB_ID="1", NAS_HPC_ENDPOINT="tcp://x", NAS_HPC_SITE="/other")
    environ = found["environ"]
    assert isinstance(environ, dict)
    assert {name: environ.get(name) for name in ("NAS_HPC_JOB_ID", "NAS_HPC_ENDPOINT")} == {
        "NAS_HPC_JOB_ID": None,
        "NAS_HPC_ENDPOINT": None,
    }
    assert environ["NAS_HPC_SITE"] == "/s"


def test_the_machines_lines_run_before_the_launcher(tmp_path: Path) -> None:
    text = render(machine(environment="export LOADED=yes\n"), request(tmp_path), body(tmp_path))
    environ = run(tmp_path, text)[1]["environ"]
    assert isinstance(environ, dict)
    assert environ["LOADED"] == "yes"


def test_a_pbs_script_says_when_it_began_and_how_long_it_has(tmp_path: Path) -> None:
    environ = run(tmp_path, render(machine("pbs"), request(tmp_path), body(tmp_path)))[1]["environ"]
    assert isinstance(environ, dict)
    assert environ["NAS_HPC_BATCH_WALLTIME"] == "01:30:00"
    assert abs(float(environ["NAS_HPC_BATCH_START"]) - (tmp_path / "script.sh").stat().st_mtime) < 100


def test_settings_go_along_and_what_belongs_to_the_submitters_surroundings_does_not() -> None:
    environ = {
        "NAS_HPC_LEASE_S": "30", "NAS_HPC_MPI": "", "NAS_HPC_SITE": "/other", "NAS_HPC_ENDPOINT": "x",
        "NAS_HPC_NODES": "1", "NAS_HPC_JOB_ID": "2", "NAS_HPC_RECONNECT_S": "9", "PATH": "/bin",
        "NAS_HPC_STRANGE": "x",
    }  # fmt: skip
    assert carried(environ) == {"NAS_HPC_LEASE_S": "30", "NAS_HPC_RECONNECT_S": "9"}


def test_the_launcher_of_a_script_is_told_mode_workflow_and_chain(tmp_path: Path) -> None:
    made = body_of(
        machine("slurm"), request(tmp_path), Site(tmp_path), "TEST-1", job_mode="serial", workflow="TEST",
        chained=True, environ={"HOME": "/h"},
    )  # fmt: skip
    assert made.launcher == ("launcher", "--job-mode", "serial", "--wf-filter", "TEST", "--chained")
    assert made.exports[JOB_VARIABLE] == "TEST-1"
    assert made.exports["NAS_HPC_SITE"] == str(tmp_path)
    assert made.exports["NAS_HPC_MACHINE"] == "here"


def test_on_a_machine_without_a_batch_system_the_launcher_is_told_nodes_and_time(tmp_path: Path) -> None:
    made = body_of(
        machine(), request(tmp_path), Site(tmp_path), "K", job_mode="mpi", workflow="", chained=False,
        environ={"HOME": "/h"},
    )  # fmt: skip
    assert made.launcher == (
        "launcher", "--job-mode", "mpi", "--nodes", "2", "--time-limit-minutes", "90",
    )  # fmt: skip


@pytest.mark.parametrize("system", ["cobalt", "pbs", "slurm"])
def test_directives_stand_from_the_second_line_on_without_a_gap(tmp_path: Path, system: str) -> None:
    lines = render(machine(system), request(tmp_path, queue="q", project="p"), body(tmp_path)).splitlines()
    mark = {"cobalt": "#COBALT ", "pbs": "#PBS ", "slurm": "#SBATCH "}[system]
    count = sum(line.startswith(mark) for line in lines)
    assert lines[0] == "#!/bin/bash"
    assert count >= 3
    assert all(line.startswith(mark) for line in lines[1 : count + 1])


def test_a_template_that_was_printed_and_kept_in_the_site_makes_the_same_script(tmp_path: Path) -> None:
    own = tmp_path / "templates"
    own.mkdir()
    before = render(machine("slurm"), request(tmp_path), body(tmp_path), own)
    (own / "slurm.sh.j2").write_text(template_text("slurm"))
    after = render(machine("slurm"), request(tmp_path), body(tmp_path), own)
    assert after.replace(f"{own}/", "") == before
    (own / "slurm.sh.j2").write_text(template_text("slurm") + "# mine\n")
    assert render(machine("slurm"), request(tmp_path), body(tmp_path), own).endswith("# mine\n")


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("#!/bin/bash\n{% if %}\n", "line 2: "),
        ("#!/bin/bash\n\n{{ nowhere }}\n", "line 3: UndefinedError: 'nowhere' is undefined"),
        ("#!/bin/bash\n{{ 1 / 0 }}\n", "line 2: ZeroDivisionError"),
        ("\n#!/bin/bash\n", "line 1: ''; a script begins"),
        ('#!/bin/bash\n{% include "nothing.j2" %}\n', "nothing.j2"),
    ],
)
def test_a_broken_template_is_named_with_its_line(tmp_path: Path, template: str, said: str) -> None:
    own = tmp_path / "templates"
    own.mkdir()
    (own / "local.sh.j2").write_text(template)
    with pytest.raises(WrongCall) as caught:
        render(machine(), request(tmp_path), body(tmp_path), own)
    assert "local.sh.j2" in caught.value.message
    assert said in caught.value.message
    assert "\n" not in caught.value.message


def test_the_installed_program_is_called_by_its_name_and_needs_no_python_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "nas-hpc"
    program.write_text("")
    program.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    made = body_of(
        machine("slurm"), request(tmp_path), Site(tmp_path), "K", job_mode="mpi", workflow="", chained=False,
        environ={"HOME": "/h", "PYTHONPATH": "/mine"},
    )  # fmt: skip
    assert made.program == ("nas-hpc",)
    assert made.path == str(tmp_path)
    assert "PYTHONPATH" not in made.exports


def test_the_programs_own_directory_comes_first_in_the_path(tmp_path: Path) -> None:
    made = body_of(
        machine(), request(tmp_path), Site(tmp_path), "K", job_mode="mpi", workflow="", chained=False,
        environ=os.environ,
    )  # fmt: skip
    assert made.path == os.path.dirname(os.path.abspath(sys.executable))
