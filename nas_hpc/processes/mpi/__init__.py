"""MPI programs: finding the machine's, checking it, and the command lines that start ranks with it."""

from nas_hpc.processes.mpi.builders import agents_command, command, outlives_one
from nas_hpc.processes.mpi.program import FLAVOURS, MpiProgram, Start

__all__ = ["FLAVOURS", "MpiProgram", "Start", "agents_command", "command", "outlives_one"]
