"""Whether as many trials as are to run at once fit the nodes that there are: said before a job begins."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nas_hpc.cli.context import note
from nas_hpc.cli.trials_jobs import packing_of
from nas_hpc.errors import WrongCall
from nas_hpc.states import BATCH_FINAL

if TYPE_CHECKING:
    from nas_hpc.apps.trials.spec import TrialsSpec
    from nas_hpc.config import Settings
    from nas_hpc.site import Site


@dataclass(frozen=True, slots=True)
class Nodes:
    """Those that trials are to run on, as far as one knows now."""

    count: int
    whose: str
    """As in "this machine has"."""
    batch: bool
    """They are a batch job's: the controller takes its share of them."""
    serial: bool
    use_master: bool = False


def check_quota(site: Site | None, spec: TrialsSpec, settings: Settings, *, launched: bool) -> None:
    """Say so if fewer than ``spec.max_parallel`` trials fit the nodes: the others wait. ``launched``: the job
    runs here and now; else live batch jobs count, and without one nobody knows yet.

    Raises WrongCall if not one fits here.
    """
    several = spec.nodes_per_trial > 1 or spec.ranks_per_node > 1
    nodes = _here(spec, settings) if launched else _asked_for(site, spec)
    if nodes is None or (spec.gpus_per_rank and not spec.trials_per_node and not several):
        return  # what a node's GPUs allow is known on it
    packing = packing_of(spec, settings, launched=launched)
    if not nodes.serial:
        packing = min(packing, settings.mpi_mode_packing.value)
    fits, wanted = _fits(nodes, spec, packing), spec.max_parallel
    if fits >= wanted:
        return
    have = f"{nodes.whose} {nodes.count} node{'s' if nodes.count > 1 else ''}"
    each = f"{spec.nodes_per_trial} nodes for each trial" if several else f"{packing} trials on each"
    right = _right(nodes, spec, packing)
    if fits < 1 and launched:
        raise WrongCall(f"--max-parallel-nas-trial {wanted}: {have}, {each}: not one trial fits; {right}")
    then = f"{fits} at once, the others wait" if fits > 0 else "not one runs there"
    what = f"{wanted} trials at once do not fit: {have}, {each}: {then}"
    note(f"note: {what}; {right}")


def _here(spec: TrialsSpec, settings: Settings) -> Nodes | None:
    from nas_hpc.batch.machines import in_batch_job
    from nas_hpc.errors import NasHpcError
    from nas_hpc.resources import discover

    batch = in_batch_job(os.environ)
    try:
        found = discover(nodes=settings.nodes.value, ask_end=False)
    except NasHpcError:
        return None  # the launcher says what is wrong
    whose = f"{found.source} job {found.job} has" if batch else "this machine is"
    serial = settings.job_mode.value == "serial"
    return Nodes(len(found.nodes), whose, batch, serial, settings.use_master_node.value)


def _asked_for(site: Site | None, spec: TrialsSpec) -> Nodes | None:
    """The largest of the site's live batch jobs that would run it."""
    from nas_hpc.batch.jobs import read_jobs

    if site is None:
        return None
    live = [
        one
        for one in read_jobs(site, note)
        if one.state not in BATCH_FINAL and one.workflow in ("", spec.job_name)
    ]
    if not live:
        return None
    largest = max(live, key=lambda one: one.nodes)
    whose = f"batch job {largest.id or largest.key} has"
    return Nodes(largest.nodes, whose, True, largest.job_mode == "serial")


def _fits(nodes: Nodes, spec: TrialsSpec, packing: int) -> int:
    """Trials at once: the first of several nodes is the launcher's in serial mode, and a controller that
    shares the nodes takes the place of one trial."""
    if spec.nodes_per_trial > 1 or spec.ranks_per_node > 1:
        return (nodes.count - 1) // spec.nodes_per_trial
    if not nodes.serial:
        return nodes.count * packing - 1
    usable = nodes.count if nodes.count == 1 or nodes.use_master else nodes.count - 1
    return usable * packing - (1 if nodes.batch or nodes.count > 1 else 0)


def _right(nodes: Nodes, spec: TrialsSpec, packing: int) -> str:
    wanted = spec.max_parallel
    if spec.nodes_per_trial > 1 or spec.ranks_per_node > 1:
        return f"{1 + wanted * spec.nodes_per_trial} nodes would do"
    if not nodes.batch and nodes.count == 1:
        return f"--trials-per-node {wanted} would have them share it"
    more = math.ceil((wanted + 1) / packing) + (1 if nodes.serial and not nodes.use_master else 0)
    return f"{more} nodes would do{', or more --trials-per-node' if nodes.serial else ''}"
