"""Maximise −x² − y² by a program of its own, ``nas_hpc.problems.hps.external_program``: job specifications.

Each specification says for a configuration which program evaluates it and on what. In truth that is a
simulation, a container, or a training over several nodes.

    nas-hpc run hps ext -p nas_hpc.problems.hps.external.Problem -r nas_hpc.problems.hps.external.printed \\
        --max-evals 20

``registered`` asks for an application, which has to be known:

    nas-hpc app --name EXTERNAL --exec "$(which python) -m nas_hpc.problems.hps.external_program"
"""

from __future__ import annotations

import sys
from typing import Any

from nas_hpc import JobSpec, job_specification
from nas_hpc.problem import HpProblem

Problem = HpProblem()
Problem.add_dim("x", (-10.0, 10.0))
Problem.add_dim("y", (-10.0, 10.0))
Problem.add_dim("threads", (1, 2))
Problem.add_starting_point(x=10.0, y=10.0, threads=1)

_PROGRAM = (sys.executable, "-m", "nas_hpc.problems.hps.external_program")


@job_specification
def printed(parameters: dict[str, Any]) -> JobSpec:
    """A program that prints ``DH-OUTPUT: -13.0``, with as many threads as the configuration says."""
    return JobSpec(argv=[*_PROGRAM, *_point(parameters)], threads_per_rank=parameters["threads"])


@job_specification
def noted(parameters: dict[str, Any]) -> JobSpec:
    """A program that finds its point in the job's data and leaves its result there, with metadata."""
    point = {"x": parameters["x"], "y": parameters["y"]}
    return JobSpec(argv=[*_PROGRAM, "--note"], data=point, timeout_s=600)


@job_specification
def registered(parameters: dict[str, Any]) -> JobSpec:
    """A registered application, with an environment of its own, that may be tried twice."""
    environ = {"OMP_PROC_BIND": "close"}
    return JobSpec(application="EXTERNAL", args=_point(parameters), environ=environ, retries=1)


def _point(parameters: dict[str, Any]) -> list[str]:
    return ["--x", repr(parameters["x"]), "--y", repr(parameters["y"])]
