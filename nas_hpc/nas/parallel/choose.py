"""Which ranks this process trains with: by what the launcher, or a hand, put into the environment."""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
import threading
import traceback
from collections.abc import Mapping
from types import TracebackType

from nas_hpc.errors import WrongCall
from nas_hpc.nas.parallel.alone import Alone
from nas_hpc.nas.parallel.base import Ranks

RANKS_VARIABLE = "NAS_HPC_RANKS"
"""How many ranks there are: the launcher sets it for each. By hand: NAS_HPC_RANKS=2 mpiexec -n 2 …"""
WAY_VARIABLE = "NAS_HPC_DATA_PARALLEL"
"""One of ``WAYS``; ``--data-parallel`` of a search sets it."""
WAYS = ("auto", "horovod", "mpi4py")
"""auto: Horovod where it is installed and can meet ranks that MPI started, else mpi4py."""

_found: Ranks | None = None


def ranks_here() -> Ranks:
    """The ranks of this process's start, met once; ``Alone`` if it is the only one.

    Raises WrongCall for a way that there is not, for one that is not installed, and where it sees another
    number of ranks than were started.
    """
    global _found
    if _found is None:
        _found = meet(os.environ)
        if _found.size > 1 and threading.current_thread() is threading.main_thread():
            sys.excepthook = _end_all
    return _found


def meet(environ: Mapping[str, str]) -> Ranks:
    """The ranks that a process with this environment was started with. Raises WrongCall as ``ranks_here``."""
    started = environ.get(RANKS_VARIABLE) or "1"
    if not started.isascii() or not started.isdigit() or int(started) < 1:
        raise WrongCall(f"{RANKS_VARIABLE}={started!r}: give the number of ranks that were started")
    if int(started) == 1:
        return Alone()
    found = _open(environ.get(WAY_VARIABLE) or "auto", int(started))
    if found.size != int(started):
        raise WrongCall(
            f"{started} ranks were started, and {found.way} sees {found.size}: it is built for another MPI "
            "than the one that started them (nas-hpc doctor shows both)"
        )
    return found


def _open(way: str, started: int) -> Ranks:
    if way not in WAYS:
        raise WrongCall(f"{WAY_VARIABLE}={way!r}: give one of {', '.join(WAYS)}")
    with_mpi4py = importlib.util.find_spec("mpi4py") is not None
    if way == "horovod" or (way == "auto" and importlib.util.find_spec("horovod") is not None):
        from nas_hpc.nas.parallel.horovod import GlooAlone, Horovod

        try:
            return Horovod()
        except GlooAlone:
            if way == "horovod" or not with_mpi4py:
                raise
    elif way == "auto" and not with_mpi4py:
        raise WrongCall(
            f"there are {started} ranks, and neither Horovod nor mpi4py is installed, by which they could "
            "train one network: install nas-hpc[mpi], or run launch_scripts/build_horovod.sh"
        )
    from nas_hpc.nas.parallel.mpi import Mpi

    return Mpi()


def _end_all(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """End by a signal: on that every MPI program ends the other ranks, which wait for this one for ever."""
    traceback.print_exception(kind, error, trace)
    sys.stdout.flush()
    sys.stderr.flush()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGTERM)
