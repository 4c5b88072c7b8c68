"""What an MPI program has to know of the batch job around it."""

from __future__ import annotations

import re
from collections.abc import Mapping

_SLURM = frozenset(
    "SLURM_" + name
    for name in (
        "CONF", "JOB_ID", "JOBID", "CLUSTER_NAME", "WORKING_CLUSTER", "MPI_TYPE", "NODELIST", "JOB_NODELIST",
        "NNODES", "JOB_NUM_NODES", "TASKS_PER_NODE", "JOB_CPUS_PER_NODE", "CPUS_ON_NODE", "JOB_UID",
    )
)  # fmt: skip
"""By these Slurm's programs and others find the allocation. srun takes more variables for its options, which
the batch job was given for itself."""
_OTHERS = re.compile(
    r"PBS_|COBALT_|BATCH_|ALPS_(?!APP_)|APRUN_|APSYS|(OMPI|PRTE|PMIX|ORTE)_MCA_|"
    r"PALS_(?!RANKID|LOCAL_RANKID|NODEID|LOCAL_SIZE|SIZE|APID|SPOOL_DIR|APINFO|STARTUP|FD)"
)


def of_batch_job(environ: Mapping[str, str]) -> dict[str, str]:
    """What of a launcher's environment its MPI programs get, besides that of the job."""
    return {name: value for name, value in environ.items() if name in _SLURM or _OTHERS.match(name)}


def memory_per_cpu_mb(environ: Mapping[str, str]) -> int:
    """Memory of the Slurm allocation for each of its processors on a node; 0: not stated."""
    try:
        if "SLURM_MEM_PER_CPU" in environ:
            return int(environ["SLURM_MEM_PER_CPU"])
        return int(environ["SLURM_MEM_PER_NODE"]) // int(environ["SLURM_CPUS_ON_NODE"])
    except (KeyError, ValueError, ZeroDivisionError):
        return 0


def slurm_has_gpus(environ: Mapping[str, str]) -> bool:
    """Whether the Slurm allocation has GPUs that its steps have to ask for."""
    names = ("SLURM_JOB_GPUS", "SLURM_GPUS_ON_NODE", "SLURM_GPUS", "SLURM_STEP_GPUS")
    return any(environ.get(name, "0") not in ("", "0") for name in names)
