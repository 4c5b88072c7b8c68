"""From a claimed job to the order that an agent gets: its command line, directory and environment."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from nas_hpc.errors import WorkFailed
from nas_hpc.launcher.mpi_orders import Surroundings, mpi_order
from nas_hpc.processes import environment
from nas_hpc.processes.mpi import MpiProgram, memory_per_cpu_mb, of_batch_job, slurm_has_gpus
from nas_hpc.processes.orders import Call, Order
from nas_hpc.records import App, Job, Node, Origin
from nas_hpc.resources import Found, Placement
from nas_hpc.site import Site
from nas_hpc.wire import endpoint_file

SOURCE = '. "$0" && exec "$@"'
"""For bash: an application's environment script, then its program. No word of a user is in it."""
_LONGEST_VALUE = 100_000
"""No program starts with a variable of 128 KiB. Of so many parents job.json tells alone."""


@dataclass(frozen=True)
class Allocation:
    """What every order of one launcher has in common."""

    site: Site
    lease: str
    mode: str
    found: Found
    fresh: bool
    shared: bool = False
    """Whether other launchers run jobs of the site at the same time."""
    ensemble: str = ""
    """Which start of agents belongs to the launcher, if any does."""
    told: dict[str, tuple[Node, bool]] = field(default_factory=dict)
    """What agents told of their nodes, and whether the core ids are those of the node's machine."""

    @property
    def endpoint(self) -> Path:
        """The launcher's endpoint file. One of several launchers has its own, by which its agents, and what
        runs with them, find the next launcher of the same agents."""
        return (
            endpoint_file(self.site.run, self.ensemble or self.lease) if self.shared else self.site.endpoint
        )

    @property
    def nodes(self) -> tuple[Node, ...]:
        """As they were found; what their agents reported since stands in the pool."""
        return self.found.nodes

    def pins(self, name: str) -> bool:
        """Whether a node's core ids are those of its machine, so that processes there may be pinned."""
        if name == self.found.here:
            return self.found.real
        return name in self.told and self.told[name][1]

    @property
    def common(self) -> dict[str, str]:
        """What every process of this launcher finds in its environment. No secret."""
        return self._common_when(len(self.told))

    def _common_when(self, told: int) -> dict[str, str]:
        """``common`` when so many agents have told what their nodes have: the least of that."""
        if told not in self._commons:
            nodes = [node for node, _ in self.told.values()] or self.nodes
            self._commons[told] = {
                "NAS_HPC_ENDPOINT": str(self.endpoint),
                "NAS_HPC_SITE": str(self.site.path),
                "NAS_HPC_LAUNCHER_ID": self.lease,
                "NAS_HPC_CORES_PER_NODE": str(min(len(node.cores) for node in nodes)),
                "NAS_HPC_GPUS_PER_NODE": str(min(len(node.gpus) for node in nodes)),
                "BALSAM_JOB_MODE": self.mode,
                "BALSAM_LAUNCHER_NODES": str(len(self.nodes)),
            }
        return self._commons[told]

    @cached_property
    def _commons(self) -> dict[int, dict[str, str]]:
        return {}

    def starts_by_mpi(self, ranks: int, nodes: Sequence[str]) -> bool:
        """Whether ``ranks`` ranks on ``nodes`` are the MPI program's to start; else there is one, here."""
        return self.mode == "mpi" and (ranks > 1 or not self.is_here(nodes))

    def is_here(self, nodes: Sequence[str]) -> bool:
        """Whether all ``nodes`` are this machine."""
        return self.found.virtual or all(name == self.found.here for name in nodes)

    @cached_property
    def surroundings(self) -> Surroundings:
        """What MPI starts have to know of the allocation."""
        return Surroundings(
            addresses={node.name: node.address for node in self.nodes},
            here=self.is_here,
            pins=self.pins,
            environ=of_batch_job(os.environ),
            mem_per_cpu_mb=memory_per_cpu_mb(os.environ),
            slurm_has_gpus=slurm_has_gpus(os.environ),
        )

    @cached_property
    def _of_source(self) -> dict[tuple[str, int], dict[str, str]]:
        return {}

    def environment_of(self, job: Job, source: Job, threads: int, directory: str) -> dict[str, str]:
        """The environment of a job with the origin of ``source``: itself, or the search that asked for it."""
        key = (source.id, threads)
        base = self._of_source.get(key)
        if base is None:
            path = {"PYTHONPATH": os.pathsep.join(source.origin.sys_path)} if source.origin.sys_path else {}
            engine = {**path, **self.common}
            base = environment.for_job(source.origin.environ, source.environ, engine, threads)
            if source is not job:  # thousands of evaluations share their search's
                self._of_source[key] = base
        if source is job:
            parents = json.dumps(job.parents)
            added = {"BALSAM_PARENT_IDS": parents} if len(parents) < _LONGEST_VALUE else {}
        else:
            added = {k: v for k, v in job.environ.items() if k not in self.common}
        return {
            **base,
            **added,
            "NAS_HPC_JOB_ID": job.id,
            "NAS_HPC_ATTEMPT": str(job.attempt),
            "NAS_HPC_JOB_DIR": directory,
            "NAS_HPC_WORKFLOW": job.workflow,
            "BALSAM_JOB_ID": job.id,
        }


def job_json(job: Job) -> dict[str, Any]:
    """What ``job.json`` in the job's directory says: enough to understand the job without the database."""
    need = job.resources
    body: dict[str, Any] = {
        "id": job.id,
        "name": job.name,
        "workflow": job.workflow,
        "application": job.application,
        "args": job.args,
        "attempt": job.attempt,
        "creator": job.creator,
        "seq": job.seq or None,
        "num_nodes": need.num_nodes,
        "ranks_per_node": need.ranks_per_node,
        "threads_per_rank": need.threads_per_rank,
        "node_packing_count": need.node_packing_count,
        "created": job.created,
    }
    if job.evaluation is not None:
        body |= {"config": job.evaluation.config, "run": job.evaluation.run, "seed": job.evaluation.seed}
        if job.evaluation.argv:
            body["argv"] = job.evaluation.argv
    if job.data:
        body["data"] = job.data
    if job.parents:
        body["parents"] = job.parents
    if job.made_by:
        body["made_by"] = job.made_by
    return body


def build_order(
    job: Job,
    placement: Placement,
    allocation: Allocation,
    apps: Mapping[str, App],
    creator: Job | None,
    mpi: MpiProgram | None = None,
) -> Order:
    """The order that runs ``job`` on ``placement``.

    In mpi mode ``mpi`` starts what has several ranks, or stands on another host. Raises WorkFailed if the
    application is gone, or if there is no MPI program for a job that needs one.
    """
    source = creator if creator is not None and job.creator else job
    origin: Origin = source.origin
    directory = str(allocation.site.job_directory(job.workflow, job.directory_name))
    ranks = job.resources.ranks_per_node
    by_mpi = allocation.starts_by_mpi(len(placement.nodes) * ranks, placement.nodes)
    threads = _width(job, placement)
    call, argv = _work(job, apps, warm=allocation.mode == "serial" and not allocation.fresh)
    order = Order(
        key=(job.id, job.attempt),
        name=job.name,
        directory=directory,
        job_json=job_json(job),
        environ=allocation.environment_of(job, source, threads, directory),
        argv=argv,
        call=call,
        interpreter=origin.interpreter or sys.executable,
        sys_path=origin.sys_path,
        node=placement.nodes[0],
        cores=placement.cores[0]
        if allocation.pins(placement.nodes[0]) and placement.share and not by_mpi
        else (),
        gpus=() if by_mpi else placement.gpus[0],
        threads=threads,
        timeout_s=job.resources.timeout_s,
        expects_result=bool(job.creator),
    )
    return mpi_order(order, job, placement, allocation.surroundings, mpi) if by_mpi else order


def _width(job: Job, placement: Placement) -> int:
    """Threads of each rank: what the job asks for, or more where it has more hardware threads for each."""
    need = job.resources
    cores = min(map(len, placement.cores), default=0)
    return max(need.threads_per_rank, cores * need.threads_per_core // need.ranks_per_node, 1)


def _work(job: Job, apps: Mapping[str, App], *, warm: bool) -> tuple[Call | None, tuple[str, ...]]:
    """The run function or the program of a job."""
    wanted = job.evaluation
    if wanted is not None and wanted.argv:
        return None, wanted.argv
    if wanted is not None and not job.application:
        return Call(wanted.run, wanted.config, wanted.seed, warm), ()
    app = apps.get(job.application)
    if app is None:
        raise WorkFailed(f"application {job.application!r} of job {job.name} is not registered any more")
    return None, sourced(app, (*shlex.split(app.executable), *shlex.split(job.args)))


def sourced(app: App | None, argv: tuple[str, ...]) -> tuple[str, ...]:
    """``argv``, started in the environment that the application's script makes."""
    script = app.environment_script if app is not None else ""
    return ("bash", "-c", SOURCE, script, *argv) if script else argv
