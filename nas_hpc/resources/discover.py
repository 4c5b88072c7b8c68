"""The nodes of this allocation."""

from __future__ import annotations

import os
import socket

from nas_hpc.errors import WrongCall
from nas_hpc.records import Node


def local_nodes(count: int = 1, cores_per_node: int = 0) -> list[Node]:
    """This machine as one node, or as ``count`` virtual nodes that share it.

    Virtual nodes, and nodes with another number of cores than the machine has, carry core ids that name no
    real core; ``Node.cores`` of a single, unchanged node are the cores that this process may use.
    """
    if count < 1:
        raise WrongCall(f"--nodes {count}: there must be at least 1 node")
    if cores_per_node < 0:
        raise WrongCall(f"--cores-per-node {cores_per_node}: give a number of cores, or 0 for the machine's")
    mine = tuple(sorted(os.sched_getaffinity(0)))
    host = socket.gethostname()
    cores = tuple(range(cores_per_node)) if cores_per_node else mine
    if count == 1:
        return [Node(host, cores)]
    return [Node(f"{host}-{index}", cores) for index in range(count)]


def is_real(nodes: list[Node]) -> bool:
    """Whether ``nodes`` is this machine as it is, so that processes may be pinned to the cores named."""
    return len(nodes) == 1 and set(nodes[0].cores) <= os.sched_getaffinity(0)
