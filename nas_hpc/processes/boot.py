"""Command lines that start this package's code in an interpreter that may not have it installed."""

from __future__ import annotations

import os

_PARENT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
"""The directory that holds the package ``nas_hpc``."""

# The package's parent directory is on the module search path only while the entry module is imported: what
# lies beside the package must not shadow the user's modules. The package itself stays importable by its
# __path__. The entry '' (the current directory) goes too: it would change meaning when a child changes its
# directory.
_BOOT = """import sys
sys.path[:] = [sys.argv[1]] + [entry for entry in sys.path if entry]
import nas_hpc.{room}.{module} as entry
del sys.path[0]
arguments, sys.argv[:] = sys.argv[2:], ['']
entry.main(arguments)
"""


def command(
    interpreter: str,
    module: str,
    *arguments: object,
    isolated: bool = False,
    room: str = "processes",
    package: str = _PARENT,
) -> list[str]:
    """The argv that runs ``nas_hpc.<room>.<module>.main(arguments)`` in ``interpreter``.

    ``isolated``: without site-packages and the environment's PYTHON variables, for code that loads no user
    module.
    """
    flags = ["-I", "-S"] if isolated else []
    return [interpreter, *flags, "-c", _BOOT.format(room=room, module=module), package, *map(str, arguments)]
