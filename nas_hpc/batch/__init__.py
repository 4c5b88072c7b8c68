"""Batch systems: Cobalt, PBS, Slurm, and one of this machine's own, which give allocations to launchers."""
