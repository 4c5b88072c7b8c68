"""Which MPI program is chosen, and what is said of those that are of no use."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from nas_hpc.processes.mpi import Checked, Found, MpiProgram, check, find, find_program
from tests.peers.mpi import MpiPeer
from tests.peers.slurm import Slurm

HYDRA = (
    "HYDRA build details:\n    Version:                                 4.1.2\n    Release Date: Wed Jun\n"
)
PALS = "mpiexec version 1.8.0 revision 1234abcd\n"
VERSIONS = {
    "mpich 4.1.2": HYDRA,
    "mpich 2021.9": "Intel(R) MPI Library for Linux* OS, Version 2021.9 Build 20230307\n",
    "openmpi 5.0.11": "mpirun (Open MPI) 5.0.11\n\nReport bugs to https://www.open-mpi.org/community/help/\n",
    "openmpi 4.1.4": "mpirun.openmpi (OpenRTE) 4.1.4\n\nReport bugs to ...\n",
    "pals 1.8.0": PALS,
    "slurm 22.05.8": "slurm-wlm 22.05.8\n",
    "slurm 23.11.4": "slurm 23.11.4\n",
    "aprun 6.6.59": "aprun (ALPS) 6.6.59 \n",
}


def program(path: Path, says: str = HYDRA, *, code: int = 0, script: str = "") -> str:
    """A stand-in that prints ``says`` whatever it is asked."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n/bin/cat <<'END'\n{says}\nEND\nexit {code}\n")
    path.chmod(0o755)
    return str(path)


def search(setting: str = "", flags: str = "", **environ: str) -> Found:
    return asyncio.run(find_program(setting, flags, {"PATH": "/usr/bin:/bin", **environ}))


def path_of(found: Found) -> str:
    assert found.program is not None, found.problem
    return found.program.path


@pytest.mark.parametrize("name", VERSIONS)
def test_what_a_program_is_is_told_by_its_version(tmp_path: Path, name: str) -> None:
    path = program(tmp_path / "any", VERSIONS[name])
    flavour, version = name.split()
    assert search(path, "--verbose -x 'a b'") == Found(
        MpiProgram(path, flavour, version, ("--verbose", "-x", "a b"))
    )


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("missing", "cannot be started: No such file or directory"),
        ("directory", "cannot be started: Permission denied"),
        ("not executable", "cannot be started: Permission denied"),
        ("garbage", "is no MPI program that is known: to --version it said '\ufffd\ufffdELF"),
        ("silent", "to --version it said nothing; known are MPICH's mpiexec (hydra), PALS"),
        ("failing", "said 'HYDRA build details: Version: 4.1.2"),
        ("hanging", "--version did not end within 0.3 s"),
    ],
)
def test_a_program_of_no_use_is_one_clear_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, expected: str
) -> None:
    monkeypatch.setattr(find, "VERSION_S", 0.3 if kind == "hanging" else 10.0)
    path = tmp_path / "mpiexec"
    if kind == "directory":
        path.mkdir()
    elif kind == "not executable":
        program(path)
        path.chmod(0o644)
    elif kind == "garbage":
        path.write_text("#!/bin/sh\nprintf '\\377\\376ELF\\000\\n\\n'\n")
        path.chmod(0o755)
    elif kind != "missing":
        scripts = {"hanging": "/bin/sleep 600 & wait", "silent": "exit 0"}
        program(path, code=3 if kind == "failing" else 0, script=scripts.get(kind, ""))
    found = search(str(path))
    assert found.program is None
    assert expected in found.problem
    assert found.problem.startswith(str(path))
    assert found.problem.endswith("(setting mpi)")
    assert "\n" not in found.problem
    automatic = search(PATH=str(tmp_path))
    assert automatic.program is None or automatic.program.path != str(path)
    assert kind in ("missing", "directory") or any(
        expected in note for note in (*automatic.notes, automatic.problem)
    )


def test_without_any_the_line_says_what_was_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(find, "_owned", lambda environ: [])
    found = search(PATH=str(tmp_path))
    assert found.problem == (
        "no srun of an allocation, aprun, mpiexec or mpirun is on PATH; "
        "name the machine's with --mpi or the setting mpi"
    )
    assert search("none").problem == "the setting mpi is none"
    assert "cannot be split" in search("", "--x 'y").problem


def test_the_machines_own_goes_before_a_python_environments(tmp_path: Path) -> None:
    of_venv = program(tmp_path / "venv/bin/mpiexec")
    of_machine = program(tmp_path / "opt/bin/mpirun", PALS)
    environ = {"VIRTUAL_ENV": str(tmp_path / "venv"), "PATH": f"{tmp_path}/venv/bin:{tmp_path}/opt/bin"}
    found = search(**environ)
    assert (path_of(found), found.notes) == (of_machine, ())
    Path(of_machine).unlink()
    for owner in ("VIRTUAL_ENV", "CONDA_PREFIX"):
        found = search(**{owner: str(tmp_path / "venv"), "PATH": f"{tmp_path}/venv/bin"})
        assert path_of(found) == of_venv
        assert "belongs to a Python environment" in found.notes[-1]


def test_the_running_environments_program_is_found_without_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_venv = program(tmp_path / "bin/mpiexec")
    monkeypatch.setattr(find.sys, "prefix", str(tmp_path))
    assert path_of(search(PATH="/nowhere")) == of_venv


def test_one_that_is_broken_is_passed_over_and_named(tmp_path: Path) -> None:
    broken = program(tmp_path / "a/mpiexec", "garbage")
    good = program(tmp_path / "b/mpiexec")
    found = search(PATH=f"{tmp_path}/a:{tmp_path}/b")
    assert path_of(found) == good
    assert broken in found.notes[0]


def test_srun_is_for_a_slurm_allocation_and_aprun_before_mpiexec(tmp_path: Path) -> None:
    srun = program(tmp_path / "srun", VERSIONS["slurm 22.05.8"])
    mpiexec = program(tmp_path / "mpiexec")
    assert path_of(search(PATH=str(tmp_path))) == mpiexec
    assert path_of(search(PATH=str(tmp_path), SLURM_JOB_ID="7")) == srun
    aprun = program(tmp_path / "aprun", VERSIONS["aprun 6.6.59"])
    assert path_of(search(PATH=str(tmp_path))) == aprun


def trial(peer: MpiProgram, python: Path | str, **more: object) -> Checked:
    return asyncio.run(check(peer, str(python), ["me"], local=True, **more))  # type: ignore[arg-type]


@pytest.mark.needs_mpich
def test_with_mpich_two_ranks_find_each_other(mpich: MpiPeer) -> None:
    found = trial(MpiProgram(str(mpich.mpiexec), "mpich"), mpich.python)
    assert (found.good, found.size) == (True, 2), found.text


@pytest.mark.needs_openmpi
@pytest.mark.slow
def test_with_openmpi_two_ranks_find_each_other(openmpi: MpiPeer) -> None:
    found = trial(MpiProgram(str(openmpi.mpiexec), "openmpi"), openmpi.python)
    assert (found.good, found.size) == (True, 2), found.text


@pytest.mark.needs_openmpi
@pytest.mark.needs_mpich
@pytest.mark.slow
def test_an_mpi4py_of_another_mpi_is_seen(mpich: MpiPeer, openmpi: MpiPeer) -> None:
    for start, python in ((mpich, openmpi.python), (openmpi, mpich.python)):
        found = trial(MpiProgram(str(start.mpiexec), start.name), python)
        assert found.started
        assert not found.good
        assert "another MPI" in found.text
        assert "\n" not in found.text


@pytest.mark.needs_mpich
def test_without_mpi4py_the_answer_says_what_it_does_not_know(tmp_path: Path, mpich: MpiPeer) -> None:
    (tmp_path / "mpi4py.py").write_text("raise ImportError('not here')")
    environ = {**os.environ, "PYTHONPATH": str(tmp_path)}
    found = trial(MpiProgram(str(mpich.mpiexec), "mpich"), mpich.python, environ=environ)
    assert (found.good, found.size) == (True, None)
    assert "has no mpi4py" in found.text


@pytest.mark.needs_mpich
def test_a_start_that_fails_or_hangs_is_one_line(tmp_path: Path, mpich: MpiPeer) -> None:
    hydra = MpiProgram(str(mpich.mpiexec), "mpich")
    found = trial(hydra, "/no/python")
    assert not found.started
    assert "/no/python (No such file or directory)" in found.text
    (tmp_path / "mpi4py.py").write_text("import time\ntime.sleep(600)")
    environ = {**os.environ, "PYTHONPATH": str(tmp_path)}
    found = trial(hydra, mpich.python, environ=environ, timeout_s=1.0)
    assert found.text == "two ranks did not end within 1 s"  # and the test's end finds no process
    single = program(tmp_path / "mpiexec", script='while [ "$1" != -n ]; do shift; done; shift 2; exec "$@"')
    assert "does not start two ranks" in trial(MpiProgram(single, "mpich"), mpich.python).text


@pytest.mark.needs_slurm
@pytest.mark.needs_mpich
@pytest.mark.slow
def test_srun_gets_the_mpi_flag_that_the_cluster_needs(slurm: Slurm, mpich: MpiPeer, checkout: Path) -> None:
    code = (
        "import asyncio, sys; from nas_hpc.processes.mpi import check, find_program; import os\n"
        "found = asyncio.run(find_program('', sys.argv[1], os.environ))\n"
        "print(asyncio.run(check(found.program, sys.executable, sys.argv[2].split(','), local=False)))"
    )
    for flags, hosts in (("", "node1,node2"), ("--mpi=none", "node2"), ("", "node1")):
        argv = [
            "salloc",
            "--quiet",
            "--nodes=2",
            "--ntasks-per-node=2",
            str(mpich.python),
            "-c",
            code,
            flags,
            hosts,
        ]
        environ = {} if flags else {"SLURM_MPI_TYPE": "none"}
        slurm.environ |= {"PYTHONPATH": str(checkout)}
        for _ in range(3):  # Slurm makes no step while it takes a busy node for one that does not answer
            done, _ = slurm.start(*argv, **environ).communicate(timeout=60)
            if "Requested node configuration is not available" not in done:
                break
        if flags:
            assert "each is alone" in done
        else:
            assert "'--mpi=pmi2'" in done
            assert "find each other, with --mpi=pmi2" in done
