"""The script that builds Horovod: what it says, and that it builds once for each set of versions.

What it builds is tested where Horovod trains (tests/nas/parallel, tests/launcher/test_data_parallel.py).
"""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

PYTHON = r"""#!/bin/bash
# An interpreter that says of itself what FACTS says, and notes what it is to install.
case "$*" in
*sys.executable*) echo "$0" ;;
-) printf '%s\n' $FACTS ;;
*" install "*) echo "$*" >>"$CALLS" ;;
*venv*) exit 7 ;;
esac
"""
MPICXX = r"""#!/bin/bash
printf '#define %s\n' "MPI_VERSION 5" 'MPICH_VERSION "5.0.2"'
"""
TOOLS = (
    "bash", "awk", "cat", "cut", "dirname", "env", "flock", "grep", "mkdir", "mktemp", "mv", "nproc", "rm",
    "sed", "sha256sum", "sort", "tail", "touch", "uname",
)  # fmt: skip
FACTS = "cp311 tensorflow-cpu-2.18.1 numpy-2.0.2"


@dataclass(frozen=True, slots=True)
class Machine:
    """Where the script runs."""

    root: Path
    checkout: Path

    @property
    def cache(self) -> Path:
        return self.root / "home" / ".cache" / "nas-hpc"

    @property
    def calls(self) -> list[str]:
        path = self.root / "calls"
        return path.read_text().splitlines() if path.exists() else []

    def add(self, name: str, body: str) -> Path:
        path = self.root / "bin" / name
        path.write_text(body)
        path.chmod(0o755)
        return path

    def build(self, *words: str, facts: str = f"{FACTS} -") -> subprocess.CompletedProcess[str]:
        """Run it for the interpreter ``python``, with nothing on PATH but the tools of ``bin``."""
        environ = {
            "PATH": str(self.root / "bin"), "HOME": str(self.root / "home"), "FACTS": facts,
            "CALLS": str(self.root / "calls"),
        }  # fmt: skip
        script = str(self.checkout / "launch_scripts" / "build_horovod.sh")
        command = ["bash", script, *(words or ("--python", "python"))]
        return subprocess.run(command, env=environ, capture_output=True, text=True, check=False)

    def wheel(self, key: str) -> Path:
        folder = self.cache / f"horovod-0.28.1-cp311-{os.uname().machine}-{key}"
        folder.mkdir(parents=True)
        path = folder / "horovod-0.28.1-cp311-cp311-linux_x86_64.whl"
        path.touch()
        return path


@pytest.fixture
def machine(tmp_path: Path, checkout: Path) -> Machine:
    (tmp_path / "bin").mkdir()
    (tmp_path / "home").mkdir()
    for name in TOOLS:
        program = shutil.which(name)
        assert program is not None
        (tmp_path / "bin" / name).symlink_to(program)
    made = Machine(tmp_path, checkout)
    made.add("python", PYTHON)
    return made


def refused(done: subprocess.CompletedProcess[str], code: int, said: str) -> None:
    assert done.returncode == code, done.stderr
    assert said in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--mpi", "x", "--gloo"), "--mpi x and --gloo: give one of the two"),
        (("--python", "/no/such"), "/no/such is no Python that runs: give one with --python"),
        (("--python",), "--python: give the path of an interpreter"),
        (("--nccl",), "unknown: --nccl; give --python, --mpi, --gloo or --help"),
        (("--python", "python", "--mpi", "/bin/g++"), "--mpi /bin/g++: give the path of an mpicxx"),
        (
            ("--python", "python", "--mpi", "/x/mpicxx"),
            "--mpi /x/mpicxx does not compile a line with <mpi.h>",
        ),
    ],
)
def test_what_is_wrong_with_the_call_is_one_line(machine: Machine, words: tuple[str, ...], said: str) -> None:
    done = machine.build(*words)
    refused(done, 2, said)
    assert done.stderr.count("\n") == 1


def test_without_tensorflow_there_is_nothing_to_build(machine: Machine) -> None:
    done = machine.build(facts="cp311 none numpy-2.0.2 -")
    refused(done, 1, "no TensorFlow in")
    assert "pip install nas-hpc[nas]" in done.stderr


def test_without_a_compiler_one_is_named(machine: Machine) -> None:
    machine.add("mpicxx", MPICXX)
    refused(machine.build(), 1, "no C++ compiler (g++)")
    assert machine.calls == []


def test_a_wheel_is_installed_once_and_good_for_its_versions_alone(machine: Machine) -> None:
    machine.add("mpicxx", MPICXX)
    machine.add("g++", "#!/bin/bash\n")
    wheel = machine.wheel("tensorflow-cpu-2.18.1-numpy-2.0.2-mpich-5.0.2")
    done = machine.build()
    assert done.returncode == 0, done.stderr
    assert str(wheel) in machine.calls[0]
    installed = len(machine.calls)
    done = machine.build(facts=f"{FACTS} {wheel}")
    assert done.returncode == 0, done.stderr
    assert "Horovod 0.28.1 for tensorflow-cpu-2.18.1 and mpich-5.0.2 is installed in" in done.stderr
    for facts in (FACTS.replace("2.18.1", "2.20.0"), FACTS.replace("2.0.2", "2.3.0")):
        done = machine.build(facts=f"{facts} {wheel}")
        refused(done, 1, "Building Horovod 0.28.1 for ")
    refused(machine.build("--python", "python", "--gloo", facts=f"{FACTS} {wheel}"), 1, "Gloo alone")
    assert len(machine.calls) == installed
    assert sorted(path.name for path in machine.cache.iterdir()) == [wheel.parent.name, "horovod.lock"]


def test_without_an_mpi_it_says_what_its_horovod_is_good_for(machine: Machine) -> None:
    wheel = machine.wheel("tensorflow-cpu-2.18.1-numpy-2.0.2-gloo")
    done = machine.build()
    assert done.returncode == 0, done.stderr
    assert "no MPI" in done.stderr
    assert "with which horovodrun starts ranks, and a launcher cannot" in done.stderr
    assert str(wheel) in machine.calls[0]
