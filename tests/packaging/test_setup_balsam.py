"""setup_balsam.sh: what is wrong with a call, the settings that it writes, what it puts on the path."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

DEFAULTS = {"MPI_RUN_TEMPLATE": "ThetaMPICommand", "SERVICE_PERIOD": 1, "SERIAL_CORES_PER_NODE": 64}
MORE = (
    "WORKER_DETECTION_TYPE",
    "SCHEDULER_CLASS",
    "SCHEDULER_SUBMIT_EXE",
    "SCHEDULER_STATUS_EXE",
    "JOB_TEMPLATE",
)


@dataclass
class Machine:
    """A home directory, a PostgreSQL that is none, and an environment that looks complete."""

    root: Path
    script: Path

    @property
    def settings(self) -> Path:
        return self.root / "home/.balsam/settings.json"

    @property
    def environment(self) -> Path:
        return self.root / "environment"

    def call(self, *words: str, **environ: str) -> subprocess.CompletedProcess[str]:
        given = ("--postgres", f"{self.root}/pg", "--python", f"{self.root}/python")
        command = [str(self.script), "--directory", str(self.environment), *given, *words]
        environ = {"HOME": f"{self.root}/home", "PATH": os.environ["PATH"], **environ}
        return subprocess.run(command, env=environ, capture_output=True, text=True, check=False)


def program(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


@pytest.fixture
def machine(tmp_path: Path, checkout: Path) -> Machine:
    made = Machine(tmp_path, checkout / "launch_scripts" / "setup_balsam.sh")
    for name in ("initdb", "pg_ctl", "postgres", "createdb", "psql"):
        program(tmp_path / "pg" / name, f'echo {name} "$@"')
    program(
        tmp_path / "python",
        f'case $2 in *ensurepip*) echo {tmp_path}/python ;; *) exec {sys.executable} "$@" ;; esac',
    )
    package = made.environment / "site/balsam"
    (package / "django_config/job-templates").mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "django_config/job-templates/theta.tmpl").touch()
    settings = {**DEFAULTS, **dict.fromkeys(MORE, "theta")}
    (package / "django_config/default_settings.json").write_text(json.dumps(settings))
    program(made.environment / "bin/python", f'PYTHONPATH={made.environment}/site exec {sys.executable} "$@"')
    (made.environment / "bin/python3").symlink_to("python")
    program(
        made.environment / "bin/balsamactivate",
        "py_version=$(python -c 1)\nif true; then\n  echo old\nfi\necho on",
    )
    program(made.environment / "bin/mpirun", "echo its own")
    (made.environment / "pyvenv.cfg").touch()
    (made.environment / ".complete").touch()
    (tmp_path / "home").mkdir()
    return made


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("--nodes",), 2, "--nodes: give a value"),
        (("--nodes", "many"), 2, "--nodes many: give a number of nodes"),
        (("--theta",), 2, "unknown: --theta"),
        (("--listen", "a b"), 2, "--listen a b: give addresses or names"),
        (("--set", "CORES=3"), 2, "--set CORES=3: give NAME=VALUE, with one of the names"),
        (("--set", "SERVICE_PERIOD=often"), 2, "--set SERVICE_PERIOD=often: it has to be a number"),
        (
            ("--python", "/no/such"),
            1,
            "needs a Python 3.8 to 3.11 that can make environments (venv): tried /no/such",
        ),
        (("--postgres", "/no/such"), 1, "no PostgreSQL in /no/such"),
        (("--directory", "/usr"), 2, "--directory /usr: is there, and is no environment"),
        (("--directory", "/tmp/a b"), 2, "/tmp/a b: Balsam cannot have white space"),
    ],
)
def test_what_is_wrong_is_one_line(machine: Machine, words: tuple[str, ...], code: int, said: str) -> None:
    done = machine.call(*words)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (code, "", 1), done.stderr
    assert said in done.stderr
    assert not machine.settings.exists()


@pytest.mark.slow
def test_settings_are_this_machines_and_stay_the_users_unless_others_are_asked_for(machine: Machine) -> None:
    def written(*words: str, **environ: str) -> dict[str, object]:
        done = machine.call("--quiet", *words, **environ)
        assert (done.returncode, done.stdout) == (0, f"{machine.environment}/path\n"), done.stderr
        return dict(json.loads(machine.settings.read_text()))

    first = written()
    assert set(first) == {*DEFAULTS, *MORE}
    assert first["WORKER_DETECTION_TYPE"] == "DEFAULT"
    assert first["SERIAL_CORES_PER_NODE"] != 64
    machine.settings.write_text(json.dumps({**first, "SERVICE_PERIOD": 7}))
    assert written()["SERVICE_PERIOD"] == 7
    assert sorted(path.name for path in machine.settings.parent.iterdir()) == [
        "job-templates",
        "settings.json",
    ]
    changed = written("--nodes", "3", "--set", "SERVICE_PERIOD=0.5")
    assert changed == {
        **first, "SERVICE_PERIOD": 0.5, "WORKER_DETECTION_TYPE": "COOLEY", "MPI_RUN_TEMPLATE": "MPICHCommand"
    }  # fmt: skip
    assert json.loads(Path(f"{machine.settings}.before1").read_text())["SERVICE_PERIOD"] == 7
    assert len((machine.environment / "nodes-3").read_text().split()) == 3
    machine.settings.write_text(json.dumps({"SERVICE_PERIOD": 9}))
    assert written() == {**first, "SERVICE_PERIOD": 9}
    assert written("--settings") == first


def test_a_launcher_without_the_node_file_that_its_settings_want_says_so(machine: Machine) -> None:
    assert machine.call("--nodes", "2").returncode == 0
    done = subprocess.run(
        [machine.environment / "path/balsam", "launcher"],
        env={"HOME": f"{machine.root}/home", "PATH": os.environ["PATH"]}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
    assert "COBALT_NODEFILE is not set, and " in done.stderr


def test_programs_of_postgres_find_what_is_named_relative_to_the_working_directory(machine: Machine) -> None:
    assert machine.call().returncode == 0
    command = [machine.environment / "path/pg_ctl", "-D", "db/data", "-l", "log", "status"]
    done = subprocess.run(command, cwd=machine.root, capture_output=True, text=True, check=False)
    said = f"pg_ctl -D {machine.root}/db/data -l {machine.root}/log status\n"
    # As root another user runs it, who does not get into the test's directory.
    assert done.stdout == said or (os.geteuid() == 0 and f"{machine.root}/pg/pg_ctl" in done.stderr), done


def test_what_comes_on_the_path_hides_no_program_of_the_searches(machine: Machine) -> None:
    assert machine.call().returncode == 0
    path = machine.environment / "path"
    names = ["balsam", "balsamactivate", "balsamdeactivate", "createdb", "initdb", "mpiexec", "mpirun"]
    assert sorted(one.name for one in path.iterdir()) == [*names, "pg_ctl", "psql"]
    other = machine.root / "other"
    program(other / "mpirun", "echo of the machine")
    for search, said in ((f"{path}:{other}", "of the machine\n"), (str(path), "its own\n")):
        done = subprocess.run(
            [path / "mpirun"], env={"PATH": search}, capture_output=True, text=True, check=False
        )
        assert done.stdout == said
    activated = subprocess.run(["sh", path / "balsamactivate"], capture_output=True, text=True, check=False)
    assert activated.stdout == "on\n"
