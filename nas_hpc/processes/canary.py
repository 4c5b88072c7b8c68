"""Telling a child that hangs because it was forked from one that only waits."""

from __future__ import annotations

import os

from nas_hpc.processes import linux

FIRST_END_S = 30.0
"""The first children of a warm interpreter are looked at when none of them ended within this time."""
_LITTLE_CPU_S = 0.05
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def looks_hung(pid: int) -> bool:
    """Whether the process did next to nothing since its fork and all its threads wait for locks.

    A run function that sleeps, waits for a program of its own or for the network waits elsewhere in the
    kernel. Where the kernel does not tell, the answer is no: a second start of a healthy evaluation would be
    worse.
    """
    try:
        fields = linux.stat_fields(pid)
        if (int(fields[11]) + int(fields[12])) / _TICKS_PER_S >= _LITTLE_CPU_S:
            return False
        for task in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{task}/children") as stream:
                if stream.read().strip():
                    return False
            with open(f"/proc/{pid}/task/{task}/wchan") as stream:
                if "futex" not in stream.read():
                    return False
    except OSError:
        return False
    return True
