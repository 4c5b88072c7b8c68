"""What each rank of a trial start says: which rank it is, and whether its MPI knows the others.

Standard library only, Python 3.8 or later, but for mpi4py where the interpreter has it. A line is printed
before MPI is loaded, for an MPI that does not belong to the MPI program may end the process.
"""

from __future__ import annotations

import json
import os

from nas_hpc.processes import ranks

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

MARK = "nas-hpc-check "


def main(arguments: list[str]) -> None:
    """Entry; no arguments."""
    here = ranks.find()
    _say({"rank": None if here is None else here.rank, "size": None if here is None else here.size})
    try:
        from mpi4py import MPI
    except ImportError as error:
        _say({"missing": str(error)})
        return
    _say({"sum": MPI.COMM_WORLD.allreduce(1)})


def _say(what: dict[str, Any]) -> None:
    os.write(1, (MARK + json.dumps(what) + "\n").encode("ascii"))
