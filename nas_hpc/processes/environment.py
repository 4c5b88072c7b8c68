"""Environments: what a job records of its submitter's, and what its process gets."""

from __future__ import annotations

import re
from collections.abc import Mapping

THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "NUMEXPR_MAX_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "BLIS_NUM_THREADS",
    "NUMBA_NUM_THREADS",
    "RAYON_NUM_THREADS",
    "TF_NUM_INTRAOP_THREADS",
)
"""Read by libraries when they are loaded, and never again."""

_SECRET = re.compile(
    r"TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL|PRIVATE|API_?KEY|ACCESS_?KEY|AUTH|COOKIE", re.IGNORECASE
)
_FOREIGN_PREFIXES = (
    "SSH_", "GPG_",
    "PMI_", "PMIX_", "OMPI_", "PRTE_", "PALS_", "HYDI_", "ALPS_APP_",
    "SLURM", "COBALT_", "PBS_",
    "TERM", "XDG_SESSION", "DBUS", "NAS_HPC_", "BALSAM_", "BASH_FUNC_",
)  # fmt: skip
_FOREIGN = frozenset({"PWD", "OLDPWD", "SHLVL", "_", "DISPLAY"})


def recordable(environ: Mapping[str, str]) -> dict[str, str]:
    """What a job keeps of its submitter's environment: no secrets, nothing of his batch job, MPI or shell.

    Names and values that are no valid text (other encodings) are left out: the database and JSON hold text.
    """
    return {name: value for name, value in environ.items() if _is_recordable(name) and _is_text(name + value)}


def _is_recordable(name: str) -> bool:
    return not (name in _FOREIGN or name.startswith(_FOREIGN_PREFIXES) or _SECRET.search(name))


def _is_text(text: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in text)


def thread_variables(threads: int) -> dict[str, str]:
    """Variables that make thread pools ``threads`` wide; set before the libraries are loaded."""
    return dict.fromkeys(THREAD_VARIABLES, str(max(1, threads)))


def for_job(
    recorded: Mapping[str, str], added: Mapping[str, str], engine: Mapping[str, str], threads: int
) -> dict[str, str]:
    """The environment of a job's process. Later ones win: recorded, thread pools, ``--env``, the engine's
    own.

    What was recorded is filtered again: a record may come from an older version or by another way.
    """
    return {**recordable(recorded), **thread_variables(threads), **added, **engine}
