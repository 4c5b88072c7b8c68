"""What ``nas-hpc doctor`` says of the machine's MPI program: which it is, whether two ranks find each other,
and whether they train together.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Iterator

from nas_hpc.cli.check_parallel import check_parallel, list_ways
from nas_hpc.cli.checks import BAD, OK, WARN, Finding
from nas_hpc.config import Settings
from nas_hpc.errors import NasHpcError
from nas_hpc.resources import Found


def check_mpi(found: Found | NasHpcError, settings: Settings, *, quick: bool = False) -> Iterator[Finding]:
    """The program of the setting ``mpi``, and starts of two ranks in the allocation ``found``; ``quick``:
    none that loads TensorFlow."""
    from nas_hpc.processes.mpi import check, find_program

    setting = settings.mpi.value
    if setting == "none":
        yield Finding("mpi", OK, f"none ({settings.mpi.origin})")
        yield from list_ways("there is no MPI program")
        return
    looked = asyncio.run(find_program(setting, settings.mpi_flags.value, os.environ))
    if looked.program is None:
        level = BAD if setting else WARN
        yield Finding("mpi", level, looked.problem, "jobs of one rank on this machine need none")
        yield from list_ways("there is no MPI program")
        return
    advice = "; ".join(looked.notes)
    yield Finding("mpi", OK, str(looked.program), advice)
    hosts, local = [""], True
    if isinstance(found, Found) and found.elsewhere:
        hosts, local = [node.address for node in found.nodes[-2:]], False
    trial = asyncio.run(check(looked.program, sys.executable, hosts, local=local))
    if not trial.good:
        advice = "name the machine's own with the setting mpi, flags that it needs with mpi_flags"
        yield Finding("mpi ranks", BAD, trial.text, advice)
        yield from list_ways("two ranks do not find each other")
        return
    yield Finding("mpi ranks", OK if trial.size else WARN, trial.text)
    yield from list_ways("--quick") if quick else check_parallel(trial.program, hosts, local=local)
