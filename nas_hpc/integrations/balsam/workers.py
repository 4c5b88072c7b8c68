"""How many evaluations a search can have running under Balsam: DeepHyper's formulas, within what Balsam
places."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from nas_hpc.errors import ConfigError, PlacementError
from nas_hpc.evaluator.select import WORKERS_VARIABLE
from nas_hpc.wire import Shape

NODES_VARIABLE, MODE_VARIABLE = "BALSAM_LAUNCHER_NODES", "BALSAM_JOB_MODE"


@dataclass(frozen=True, slots=True)
class Allocation:
    """What Balsam's launcher has, as it tells its jobs, and what the search has of it."""

    nodes: int
    mode: str
    """"mpi" or "serial"."""
    search_nodes: int = 1
    search_packing: int = 1
    """In serial mode the search's own job occupies 1/so many of its node."""


def allocation(environ: Mapping[str, str], search: Mapping[str, Any]) -> Allocation:
    """What ``environ`` and the record of the search's own job say. Raises ConfigError."""
    text, mode = environ.get(NODES_VARIABLE, ""), environ.get(MODE_VARIABLE, "")
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise ConfigError(
            f"{NODES_VARIABLE}={text!r}: Balsam's launcher sets it to the number of its nodes; have it "
            "start the search"
        )
    if mode not in ("mpi", "serial"):
        raise ConfigError(f"{MODE_VARIABLE}={mode!r}: Balsam's launcher sets it to mpi or serial")
    packing = int(search.get("node_packing_count") or 1)
    return Allocation(int(text), mode, int(search.get("num_nodes") or 1), packing)


def shape_under(shape: Shape, here: Allocation, environ: Mapping[str, str]) -> Shape:
    """``shape`` as Balsam can have it: in mpi mode every job has its nodes for itself; in serial mode, where
    the environment does not say how many evaluations share a node, as many as searches do."""
    if here.mode == "mpi":
        return replace(shape, node_packing_count=1)
    if not environ.get(WORKERS_VARIABLE, "").strip() and here.search_packing > 1:
        return replace(shape, node_packing_count=here.search_packing)
    return shape


def workers(shape: Shape, here: Allocation) -> int:
    """How many evaluations of ``shape`` run at once, W of them on a node: in mpi mode (N - the search's
    nodes) over the nodes of each; in serial mode W - 1 on one node, else (N - 1)·W - 1, as in DeepHyper.

    On one node Balsam places less where the search's own job takes more than 1/W of it. Raises
    PlacementError, with the numbers, where none could run.
    """
    ranks = shape.num_nodes * shape.ranks_per_node
    if here.mode == "mpi":
        count = (here.nodes - here.search_nodes) // shape.num_nodes
        if count < 1:
            needed = here.search_nodes + shape.num_nodes
            raise PlacementError(
                f"Balsam's launcher has {_nodes(here.nodes)} in mpi mode, the search takes "
                f"{here.search_nodes} and each evaluation {shape.num_nodes}: no evaluation could run; "
                f"give the launcher {needed} nodes or more, or --job-mode serial"
            )
        return count
    if ranks > 1:
        raise PlacementError(
            f"evaluations are to have {shape.num_nodes} x {shape.ranks_per_node} ranks (nodes x ranks on "
            "each), and Balsam's launcher runs in serial mode, which has one each: give it --job-mode mpi"
        )
    each = shape.node_packing_count
    if here.nodes == 1:
        beside = each - -(-each // here.search_packing)  # the search has 1/packing of the node, rounded up
        count = min(each - 1, beside)
    else:
        count = (here.nodes - 1) * each - 1
    if count < 1:
        raise PlacementError(
            f"Balsam's launcher has {_nodes(here.nodes)} in serial mode, a node is for {each} evaluations, "
            f"and the search's job takes 1/{here.search_packing} of one: no evaluation could run; give the "
            f"search's job --node-packing-count 4 --env {WORKERS_VARIABLE}=4, for instance"
        )
    return count


def _nodes(count: int) -> str:
    return "1 node" if count == 1 else f"{count} nodes"
