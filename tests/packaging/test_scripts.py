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


def program(folder: Path, name: str, body: str) -> None:
    (folder / name).write_text(f"#!{folder / 'bash'}\n{body}\n")
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
