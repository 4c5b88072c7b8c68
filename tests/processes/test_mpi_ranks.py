"""Which rank a process is, from the environments that MPI programs make."""

from __future__ import annotations

import pytest

from nas_hpc.processes import ranks
from nas_hpc.processes.ranks import Ranks

HYDRA = {"PMI_RANK": "3", "PMI_SIZE": "4", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2", "PMI_FD": "11"}
OPENMPI = {
    "OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2", "PMIX_RANK": "3", "PMIX_NAMESPACE": "prterun-host-1@1",
}  # fmt: skip
SRUN = {
    "SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_ID": "0", "SLURM_STEPID": "0",
}  # fmt: skip
PALS = {"PALS_RANKID": "3", "PALS_LOCAL_RANKID": "1", "PALS_NODEID": "1", "PALS_DEPTH": "2"}


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        (HYDRA, Ranks(3, 4, 1, 2)),
        (OPENMPI, Ranks(3, 4, 1, 2)),
        (SRUN, Ranks(3, 4, 1)),
        ({**SRUN, "PMI_RANK": "3", "PMI_SIZE": "4", "PMI_FD": "9"}, Ranks(3, 4, 1)),
        ({**SRUN, "PMIX_RANK": "3"}, Ranks(3, 4, 1)),
        (PALS, Ranks(3, None, 1)),
        ({**PALS, "PMI_RANK": "3", "PMI_SIZE": "4", "PMI_LOCAL_RANK": "1"}, Ranks(3, 4, 1)),
        ({"PMIX_RANK": "3"}, Ranks(3)),
        ({"ALPS_APP_PE": "3"}, Ranks(3)),
        ({"ALPS_APP_PE": "3", "NAS_HPC_RANKS": "4", "NAS_HPC_RANKS_PER_NODE": "2"}, Ranks(3, 4, 1, 2)),
    ],
)
def test_every_mpi_program_tells_the_rank(environ: dict[str, str], expected: Ranks) -> None:
    assert ranks.find(environ) == expected


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"PMI_RANK": ""},
        {"PMI_RANK": "two"},
        {"PMI_RANK": "-1"},
        {"NAS_HPC_RANKS": "4", "NAS_HPC_RANKS_PER_NODE": "2"},
        {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NTASKS": "4"},
    ],
    ids=["nothing", "empty", "a word", "negative", "the job alone", "a batch script"],
)
def test_a_process_that_no_mpi_program_started_is_no_rank(environ: dict[str, str]) -> None:
    assert ranks.find(environ) is None


def test_the_innermost_start_counts() -> None:
    around = {**SRUN, "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_STEP_NUM_TASKS": "8"}
    assert ranks.find({**around, **HYDRA}) == Ranks(3, 4, 1, 2)
    assert ranks.find({**around, **OPENMPI}) == Ranks(3, 4, 1, 2)


def test_this_process_is_asked_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*OPENMPI, *SRUN, *PALS, "ALPS_APP_PE", "PMI_LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in HYDRA.items():
        monkeypatch.setenv(name, value)
    assert (ranks.rank(), ranks.size(), ranks.local_rank()) == (3, 4, 1)
    for name in HYDRA:
        monkeypatch.delenv(name)
    assert (ranks.rank(), ranks.size(), ranks.local_rank()) == (None, None, None)
