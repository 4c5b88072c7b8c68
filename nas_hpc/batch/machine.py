"""A machine: what its batch system, queues and nodes are. Read from one file each by ``machines``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Step:
    """From so many nodes on a batch job may take so long."""

    nodes: int
    max_minutes: int
    min_minutes: int = 0


@dataclass(frozen=True, slots=True)
class Queue:
    """A queue (partition, QOS) and its limits; 0: none is known."""

    name: str
    min_nodes: int = 1
    max_nodes: int = 0
    min_minutes: int = 1
    max_minutes: int = 0
    max_queued: int = 0
    """Batch jobs of one user at a time."""
    steps: tuple[Step, ...] = ()
    """By ascending numbers of nodes; empty: ``max_minutes`` holds for all."""
    description: str = ""


@dataclass(frozen=True, slots=True)
class Machine:
    """Where batch jobs are submitted, and what they get."""

    name: str
    system: str
    """cobalt, pbs, slurm or local."""
    title: str = ""
    as_of: str = ""
    """When its facts were read, and where."""
    hosts: tuple[str, ...] = ()
    """Patterns (``*``, ``?``) of the names of its hosts, with or without their domain."""
    variables: tuple[str, ...] = ()
    """``NAME=pattern`` each: environment variables that tell of it where host names do not."""
    project_required: bool = False
    queues: tuple[Queue, ...] = ()
    queue: str = ""
    """The one that is taken when none is named; empty: the batch system's own default."""
    queue_flag: str = ""
    attrs: tuple[str, ...] = ()
    """``key=value`` of every batch job; see ``Request.attrs``."""
    flags: tuple[str, ...] = ()
    environment: str = ""
    """Lines of shell that the script runs before the launcher (``module load ...``)."""
    cores: int = 0
    """Physical cores of a node; 0: they differ, or are not known."""
    threads_per_core: int = 1
    gpus: int = 0
    starts_on: str = "first"
    """Where batch scripts run: ``first`` (the first of the nodes) or ``head`` (a node that is not theirs)."""
    shared_filesystem: str = "auto"
    """The setting of that name for sites that are made on it: yes, no, or as the mount says."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Settings of ``nas_hpc.config`` that hold on it unless site, environment or flag say otherwise."""
    origin: str = ""
    """The file it was read from."""

    def find_queue(self, name: str) -> Queue | None:
        """The queue of that name, None if it is not in the file."""
        return next((queue for queue in self.queues if queue.name == name), None)
