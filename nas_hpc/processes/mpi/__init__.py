"""MPI programs: finding the machine's, checking it, and the command lines that start ranks with it."""

from nas_hpc.processes.mpi.builders import agents_command, command, outlives_one
from nas_hpc.processes.mpi.check import Checked, check, start_two
from nas_hpc.processes.mpi.find import Found, find_program
from nas_hpc.processes.mpi.program import FLAVOURS, MpiProgram, Start
from nas_hpc.processes.mpi.steps import end_left_steps, step_name
from nas_hpc.processes.mpi.surroundings import memory_per_cpu_mb, of_batch_job, slurm_has_gpus

__all__ = [
    "FLAVOURS",
    "Checked",
    "Found",
    "MpiProgram",
    "Start",
    "agents_command",
    "check",
    "command",
    "end_left_steps",
    "find_program",
    "memory_per_cpu_mb",
    "of_batch_job",
    "outlives_one",
    "slurm_has_gpus",
    "start_two",
    "step_name",
]
