"""The agents of other nodes: how they are started, recorded for a successor, started again, and ended."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from nas_hpc.processes import boot
from nas_hpc.site import Site


def supervisor_command(
    site: Site, ensemble: str, numbers: Sequence[int], deadline_s: float, interpreter: str = sys.executable
) -> list[str]:
    """The argv of a supervisor: ``nas_hpc.processes.supervisor.main([SITE, ENSEMBLE, NUMBERS, DEADLINE_S])``.

    ``SITE`` is the site's path: the endpoint file is SITE/run/endpoint.json, logs go below SITE/log. NUMBERS
    are the numbers of the agents of this start, "0,1,2": rank i of an MPI start keeps the i-th of them, and
    what was started without MPI the only one. An agent without a launcher for ``DEADLINE_S`` ends, and its
    supervisor with it.

    Standard output and error are a file; the environment is the launcher's own. SIGTERM ends the agent, what
    it runs, and the supervisor.
    """
    listed = ",".join(map(str, numbers))
    return boot.command(
        interpreter, "supervisor", site.path, ensemble, listed, f"{deadline_s:g}", isolated=True
    )
