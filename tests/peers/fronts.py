"""Fronts that take the flags of aprun or of PALS mpiexec and start the ranks by hydra on this machine."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.peers.mpi import MpiPeer

TEXT = """#!/bin/sh
# Beside it: lines, with the start of each call; apruns/, if it is there, with a file BATCHJOB.PID for each.
[ "$1" = --version ] && {{ echo '{version}'; exit 0; }}
here=$(dirname "$0")
line=$(printf '%s ' "$@" | head -c 200 | tr '\\n' ' ')
printf '%s\\n' "$line" >> "$here/lines"  # one write: others are written at the same time
[ -d "$here/apruns" ] && : > "$here/apruns/$COBALT_JOBID.$$"
while :; do
    case $1 in
        -n) count=$2; shift 2;;
        -N|--ppn) per=$2; shift 2;;
        -L|--hosts) hosts=$2; shift 2;;
        -e|--env) export "$2"; shift 2;;
        -cc|-d|-j|--depth|--cpu-bind) shift 2;;
        --no-abort-on-failure) keep=-disable-auto-cleanup; shift;;
        -C|-q) shift;;
        *) break;;
    esac
done
PER=$per HOSTS=$hosts exec {mpiexec} -rmk user -launcher fork $keep -n "$count" {python} -c '
import os, sys
number, per = int(os.environ["PMI_RANK"]), int(os.environ["PER"])
os.environ["AT"] = os.environ["HOSTS"].split(",")[number // per]
os.environ.update({{"{rank}": str(number), **{more}}})
os.execv(sys.argv[1], sys.argv[1:])' "$@"
"""
FRONTS = {
    "aprun": ("aprun", "aprun (ALPS) 6.6.59", "ALPS_APP_PE", "{}"),
    "pals": (
        "mpiexec", "mpiexec version 1.8.0 revision 1234", "PALS_RANKID",
        '{"PALS_LOCAL_RANKID": str(number % per)}',
    ),
}  # fmt: skip
"""Name of the program, what it says of its version, the variable of a rank's number, and more variables."""


def write_front(directory: Path, name: str, mpich: MpiPeer) -> Path:
    """Make the front aprun or pals in a directory that goes on PATH; its ranks know their node by ``AT``."""
    program, version, rank, more = FRONTS[name]
    path = directory / program
    directory.mkdir(parents=True, exist_ok=True)
    path.write_text(
        TEXT.format(version=version, rank=rank, more=more, mpiexec=mpich.mpiexec, python=sys.executable)
    )
    path.chmod(0o755)
    return path
