"""Which job this process is, and where: by the environment of this project's launcher, or of Balsam's.

Balsam gives a job its id (BALSAM_JOB_ID) and starts it in its directory; this project's launcher gives both
by variables of its own, beside Balsam's. Everything that a search derives from its job (its seed, where
results.csv and checkpoints are) asks here.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping

BALSAM_VARIABLE = "BALSAM_DB_PATH"
"""Set in the environment of everything that Balsam starts, and of a shell with an activated database."""
BALSAM_JOB_VARIABLE = "BALSAM_JOB_ID"


def leave_group(environ: Mapping[str, str] = os.environ) -> bool:
    """Leave the process group of Balsam's worker, if that started this process in serial mode;
    whether it did.

    When such a launcher is stopped its MPI program signals the whole group, and Balsam would note this job as
    failed. The worker ends its jobs one by one as well, and then they are to be started again.
    """
    if environ.get("BALSAM_JOB_MODE") == "serial" and not environ.get("NAS_HPC_JOB_ID") and job_of(environ):
        with contextlib.suppress(OSError):
            os.setpgid(0, 0)
        return True
    return False


def job_of(environ: Mapping[str, str] = os.environ) -> str:
    """The id of the job that this process is; empty: it is none."""
    own = environ.get("NAS_HPC_JOB_ID", "")
    if own or not environ.get(BALSAM_VARIABLE):
        return own
    return environ.get(BALSAM_JOB_VARIABLE, "")


def directory_of(environ: Mapping[str, str] = os.environ) -> str:
    """The directory of the job that this process is; empty: it is none."""
    own = environ.get("NAS_HPC_JOB_DIR", "")
    if own or environ.get("NAS_HPC_JOB_ID") or not job_of(environ):
        return own
    return os.getcwd()
