"""What the doctor says of data-parallel training."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from nas_hpc.cli.check_parallel import judge
from nas_hpc.nas.parallel.prove import MARK, said
from tests.cli.conftest import Run
from tests.peers.mpi import MpiPeer

Line = tuple[str, str, str]


def ways(nas_hpc: Run, code: int = 0) -> list[Line]:
    """Level, text and advice of its lines; it ends with ``code``."""
    called = nas_hpc("doctor", "--json")
    assert called.code == code, called
    checks = json.loads(called.out)["checks"]
    return [(one["level"], one["text"], one["advice"]) for one in checks if one["name"] == "data-parallel"]


def installed(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Of TensorFlow and the ways, only ``names`` are there."""
    find = importlib.util.find_spec
    found = {
        name: "json" if name in names else "no_such_module" for name in ("tensorflow", "horovod", "mpi4py")
    }
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: find(found.get(name, name), *more))


def test_what_is_not_installed_is_named_with_what_gets_it(
    nas_hpc: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NAS_HPC_MPI", "none")
    installed(monkeypatch)
    assert ways(nas_hpc) == [("ok", "none: TensorFlow is not installed", "")]
    build = ("horovod: not installed", "launch_scripts/build_horovod.sh builds and installs it")
    installed(monkeypatch, "tensorflow")
    assert ways(nas_hpc) == [("warn", *build), ("warn", "mpi4py: not installed", "install nas-hpc[mpi]")]
    installed(monkeypatch, "tensorflow", "mpi4py")
    not_tried = ("ok", "mpi4py: installed, not tried: there is no MPI program", "")
    assert ways(nas_hpc) == [("ok", *build), not_tried]


def test_a_way_is_right_if_both_ranks_say_so_and_a_horovod_that_is_passed_over_is_no_harm() -> None:
    def told(*problems: str, passed_over: bool = False) -> list[dict[str, object]]:
        return [{"text": "horovod 1", "problem": one, "passed_over": passed_over} for one in problems]

    def found(answers: list[dict[str, object]], others: bool = True) -> tuple[str, str]:
        finding = judge("horovod", answers, "the ranks ended: why", "3 s", others=others)
        return finding.level, finding.text

    assert found(told("", "")) == ("ok", "horovod 1: two ranks average their gradients (tried in 3 s)")
    assert found(told("")) == ("bad", "horovod: the ranks ended: why")
    assert found([]) == ("bad", "horovod: the ranks ended: why")
    assert found(told("", "no MPI")) == ("bad", "horovod: no MPI")
    assert found(told("Gloo", "Gloo", passed_over=True)) == ("warn", "horovod: Gloo")
    assert found(told("Gloo", "Gloo", passed_over=True), others=False) == ("bad", "horovod: Gloo")


def test_what_ranks_tell_is_found_among_what_else_is_printed() -> None:
    one, two = ({"way": "horovod", "text": "{", "problem": number} for number in ("", "1}"))
    output = f"noise {MARK}{json.dumps(one)}{MARK}{json.dumps(two)} more\n{MARK}cut"
    assert said(output) == {"horovod": [one, two]}


@pytest.mark.slow
@pytest.mark.extra("tensorflow")
@pytest.mark.extra("horovod")
@pytest.mark.needs_mpich
def test_each_way_is_tried_with_two_ranks(
    nas_hpc: Run, monkeypatch: pytest.MonkeyPatch, mpich: MpiPeer
) -> None:
    monkeypatch.setenv("NAS_HPC_MPI", str(mpich.mpiexec))
    found = ways(nas_hpc)
    assert [level for level, _, _ in found] == ["ok", "ok"], found
    (_, over_mpi, _), (_, horovod, _) = found
    assert over_mpi.startswith("mpi4py ")
    assert "MPICH" in over_mpi
    assert horovod.startswith("horovod 0.")
    assert "built with MPI and Gloo" in horovod
    assert all(": two ranks average their gradients" in text for _, text, _ in found)


@pytest.mark.slow
@pytest.mark.needs_mpich
def test_a_way_that_does_not_work_is_bad_and_the_other_one_is_named(
    nas_hpc: Run, monkeypatch: pytest.MonkeyPatch, mpich: MpiPeer, tmp_path: Path
) -> None:
    """A TensorFlow that cannot be loaded stands for one that Horovod was not built with."""
    for name in ("tensorflow", "horovod"):
        (tmp_path / "broken" / name).mkdir(parents=True)
        (tmp_path / "broken" / name / "__init__.py").write_text(
            "raise OSError('libmpi.so.40 is not there')\n"
        )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "broken"))
    monkeypatch.setenv("NAS_HPC_MPI", str(mpich.mpiexec))
    installed(monkeypatch, "tensorflow", "horovod")
    (_, bad) = ways(nas_hpc, code=1)
    assert bad[0] == "bad"
    assert bad[1].startswith("horovod: ")
    assert "libmpi.so.40 is not there" in bad[1]
    assert bad[2] == "until it works give searches --data-parallel mpi4py"
