"""Finding a Python, and the lines that say what is missing."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TOOLS = ("bash", "sh", "env", "cat", "cut", "dirname", "sha256sum", "tail", "mktemp", "rm", "touch", "sed")


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    """A folder for PATH with the usual tools and no Python."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in TOOLS:
        program = shutil.which(name)
        assert program is not None
        (folder / name).symlink_to(program)
    return folder


def program(folder: Path, name: str, body: str, shell: str | None = None) -> None:
    (folder / name).write_text(f"#!{shell or folder / 'bash'}\n{body}\n")
    (folder / name).chmod(0o755)


def find_python(tools: Path, checkout: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    command = ["bash", "-c", f". '{checkout}/launch_scripts/environment.sh'; find_python"]
    environ = {"PATH": str(tools), **environ}
    return subprocess.run(command, env=environ, capture_output=True, text=True, check=False)


def test_a_name_that_does_not_run_is_passed_over(tools: Path, checkout: Path) -> None:
    program(tools, "python3.13", "echo 'python3.13: command not found' >&2; exit 127")
    program(tools, "python3.12", f'exec {sys.executable} -I "$@"')
    done = find_python(tools, checkout)
    assert (done.returncode, done.stderr) == (0, "")
    assert Path(done.stdout.strip()).samefile(sys.executable)


@pytest.mark.parametrize("script", ["quickstart.sh", "run_tests.sh"])
def test_without_a_python_one_line_says_what_was_tried(tools: Path, checkout: Path, script: str) -> None:
    environ = {"PATH": str(tools), "HOME": str(tools.parent)}
    command = [str(checkout / "launch_scripts" / script)]
    done = subprocess.run(command, env=environ, cwd="/", capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "no Python 3.10 or newer: tried python3.13 python3.12" in done.stderr


def test_a_python_too_old_is_no_python(tools: Path, checkout: Path) -> None:
    program(tools, "python3", "echo")
    done = find_python(tools, checkout)
    assert done.returncode == 1
    assert "no Python 3.10 or newer" in done.stderr


def test_a_python_without_its_venv_module_is_named_with_the_remedy(tools: Path, checkout: Path) -> None:
    body = f'case "$2" in *ensurepip*) exit 1 ;; *) echo {tools}/python3 ;; esac'
    program(tools, "python3", body)
    done = find_python(tools, checkout, PYTHON=str(tools / "python3"))
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "cannot make virtual environments: install its venv module" in done.stderr


def test_a_command_that_fails_behind_its_line_of_progress_shows_its_output(checkout: Path) -> None:
    script = f". '{checkout}/launch_scripts/environment.sh'; announce Working sh -c 'echo why; exit 3'"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False, env=os.environ)
    assert (done.returncode, done.stderr) == (3, "Working ... failed:\nwhy\n")


FAKE_PYTHON = r"""
case "$*" in
*ensurepip*) ;;
*version_info*) echo "$0" ;;
*"import platform"*) echo 3.11 ;;
*sysconfig*) echo "$(dirname -- "$0")" ;;
"-m venv"*)
    mkdir -p "${@: -1}/bin" "${@: -1}/lib"
    cp -- "$0" "${@: -1}/bin/python"
    for one in ruff lint-imports; do printf '#!/bin/sh\n' >"${@: -1}/bin/$one"; done
    chmod +x "${@: -1}"/bin/* ;;
*" install "*)
    echo "$*" >>"$CALLS"
    case "$*" in *constraints/tensorflow.txt*) exit "$TENSORFLOW" ;; esac ;;
*pytest*) echo "$0 $*" >>"$CALLS" ;;
esac
"""


@pytest.mark.parametrize("there", [True, False], ids=["there", "not there"])
def test_where_tensorflow_cannot_be_had_the_checks_run_without_it_and_say_so(
    tmp_path: Path, checkout: Path, there: bool
) -> None:
    """The script is real; the interpreter is a script that notes what it is asked to install."""
    for folder in ("launch_scripts", "constraints", "tests/hostile"):
        shutil.copytree(checkout / folder, tmp_path / "root" / folder)
    for file in ("setup.cfg", "pyproject.toml"):
        shutil.copy(checkout / file, tmp_path / "root" / file)
    scripts = tmp_path / "root" / "launch_scripts"
    program(scripts, "setup_balsam.sh", "exit 1", "/bin/bash")  # it would make a whole one
    python = tmp_path / "python"
    python.write_text(f"#!/bin/bash\n{FAKE_PYTHON}")
    python.chmod(0o755)
    calls = tmp_path / "calls"
    environ = {
        "PATH": os.environ["PATH"], "HOME": str(tmp_path), "PYTHON": str(python), "CALLS": str(calls),
        "TENSORFLOW": "0" if there else "1",
    }  # fmt: skip
    command = ["bash", str(tmp_path / "root" / "launch_scripts" / "run_tests.sh"), "--quick", "tests/one.py"]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    installs = [line for line in calls.read_text().splitlines() if "requirements.txt" in line]
    assert ["constraints/tensorflow.txt" in line for line in installs] == [True] + [False] * (not there)
    assert ("no TensorFlow, so the tests that need it are left out" in done.stderr) is not there
    assert ("no Horovod, so the tests that need it are left out" in done.stderr) is there
    (tests,) = (line for line in calls.read_text().splitlines() if "pytest" in line and "install" not in line)
    assert tests.endswith("tests/one.py")
