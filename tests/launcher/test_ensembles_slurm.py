"""Agents on the nodes of a real Slurm job: started by srun, taken over, lost with a node, cancelled."""

from __future__ import annotations

import json
import sys

import pytest

from tests.failure import ledger
from tests.launcher.ensembles import Field, kill
from tests.peers.slurm import Slurm
from tests.support import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.needs_slurm]


def submitted(field: Field, slurm: Slurm) -> int:
    """A batch job on all nodes that starts launchers until one ends in order."""
    field.prepare()
    launcher = f"{sys.executable} -m nas_hpc.cli --site {field.site} launcher --job-mode serial"
    script = f"export PYTHONPATH={sys.path[0]}\nuntil {launcher} >> {field.log} 2>&1; do :; done"
    return slurm.sbatch(script, "--nodes=4", "--no-kill", "--time=10")


def launcher_of(field: Field) -> int:
    """Pid of the launcher that has the site."""
    return int(json.loads((field.site / "run" / "owner.json").read_text())["pid"])


def successor(field: Field, dead: int) -> int:
    """Pid of the launcher that came after ``dead`` and answers."""
    wait_until(lambda: launcher_of(field) != dead and field.nodes(), 60, f"another launcher: {field.said()}")
    return launcher_of(field)


def steps(slurm: Slurm) -> list[str]:
    """Names of the running steps that are agents'."""
    lines = slurm.run("squeue", "--steps", "--noheader", "--format=%j").stdout.split()
    return [name for name in lines if name.startswith("nas-hpc-")]


def nodes_without_the_search(field: Field) -> list[str]:
    """Nodes on which evaluations run, and nothing else."""
    return [
        node["name"] for node in field.nodes() if node["jobs"] and all("task" in job for job in node["jobs"])
    ]


def finished(field: Field, slurm: Slurm, job: int) -> None:
    """Let the job come to its end."""
    field.open()
    slurm.wait_job(job, timeout_s=90)
    assert not field.record.exists()
    assert field.bench.state("search") == "JOB_FINISHED"


def test_agents_of_a_slurm_job_are_taken_over_and_a_lost_node_costs_what_ran_there(
    field: Field, slurm: Slurm
) -> None:
    job = submitted(field, slurm)
    field.until_started(4)
    shown = {node["name"]: (node["agent"], node["state"]) for node in field.nodes()}
    assert shown == {
        "node1": (None, "master's"), "node2": (0, "here"), "node3": (1, "here"), "node4": (2, "here"),
    }  # fmt: skip
    assert len(steps(slurm)) == 1
    agents, launcher = field.agents(), launcher_of(field)
    kill(launcher)
    successor(field, launcher)
    wait_until(lambda: "goes on with" in field.said(), 60, f"the takeover: {field.said()}")
    assert field.agents() == agents
    assert len(steps(slurm)) == 1, "no second ensemble"
    wait_until(lambda: nodes_without_the_search(field), 60, f"evaluations: {field.said()}")
    lost = nodes_without_the_search(field)[-1]
    slurm.lose(lost)
    wait_until(
        lambda: [node["state"] for node in field.nodes() if node["name"] == lost] not in ([], ["here"]),
        60,
        "the loss of the node to be seen",
    )
    finished(field, slurm, job)
    assert ledger.judge(field.ledger, field.workflow, 30) <= 2


def test_a_step_that_outlived_its_srun_is_cancelled_by_a_launcher_that_cannot_use_it(
    field: Field, slurm: Slurm
) -> None:
    field.max_evals = 12
    job = submitted(field, slurm)
    field.until_started(4)
    [old], evaluations = steps(slurm), field.evaluations()
    [srun] = [process["pid"] for process in field.recorded()["processes"]]
    launcher, record = launcher_of(field), field.recorded()
    field.record.write_text(json.dumps({**record, "version": "0.0.1"}))
    kill(srun)
    kill(launcher)
    successor(field, launcher)
    wait_until(lambda: len(field.agents()) == 3, 60, f"new agents: {field.said()}")
    assert old not in steps(slurm)
    assert not set(evaluations) & set(field.evaluations())
    finished(field, slurm, job)
    ledger.judge(field.ledger, field.workflow, 12)
