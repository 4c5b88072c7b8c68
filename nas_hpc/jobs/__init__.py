"""For code that runs inside a job: which job this is, its data, and the jobs that it makes.

    from nas_hpc import jobs

    here = jobs.current()
    simulation = jobs.add(name="sim", application="SIM", args="--steps 100", num_nodes=2)
    jobs.add(name="plot", application="PLOT", parents=[simulation])
    jobs.update_data(dh_objective=0.93, epochs=12)

Works wherever the job's processes run. Imports neither the job database nor a training library.
"""

from __future__ import annotations

from nas_hpc.jobs.adding import add, children, kill
from nas_hpc.jobs.here import Current, Parent, current, update_data
from nas_hpc.jobs.line import Child

__all__ = ["Child", "Current", "Parent", "add", "children", "current", "kill", "update_data"]
