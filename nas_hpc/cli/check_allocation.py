"""What ``nas-hpc doctor`` says of the nodes that a launcher started here would have."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from nas_hpc.cli.checks import BAD, OK, WARN, Finding
from nas_hpc.cli.output import show_duration, show_time
from nas_hpc.config import Settings
from nas_hpc.errors import NasHpcError
from nas_hpc.resources import Found, discover


def find_allocation(settings: Settings) -> Found | NasHpcError:
    """The allocation around this process under ``settings``, or what is wrong with it."""
    try:
        return discover(
            nodes=settings.nodes.value,
            cores_per_node=settings.cores_per_node.value,
            gpus_per_node=settings.gpus_per_node.value,
        )
    except NasHpcError as error:
        return error


def check_allocation(found: Found | NasHpcError, settings: Settings) -> Iterator[Finding]:
    """Nodes, cores, NUMA domains, GPUs, and when the batch job ends."""
    if isinstance(found, NasHpcError):
        yield Finding("allocation", BAD, found.message, "correct it, or start where no batch job is")
        return
    domains = {len(node.numa) for node in found.nodes} - {0}
    numa = f", {max(domains)} NUMA domains" if domains else ""
    other = f"; {len(found.elsewhere)} on other hosts" if found.elsewhere else ""
    yield Finding("allocation", OK, f"{found}{numa}{other}")
    if found.ends:
        left_s = found.ends - time.time()
        if left_s <= settings.stop_margin_s.value:
            advice = "start in a job that runs, or unset its variables"
            yield Finding("allocation's end", BAD, f"{show_time(found.ends)} UTC: it is over", advice)
        else:
            yield Finding("allocation's end", OK, f"{show_time(found.ends)} UTC, in {show_duration(left_s)}")
    for note in found.notes:
        yield Finding("allocation", WARN, note)


def allocation_json(found: Found | NasHpcError) -> dict[str, Any]:
    """The allocation for programs; {} if it makes no sense."""
    if isinstance(found, NasHpcError):
        return {}
    return {
        "source": found.source,
        "job": found.job,
        "ends": found.ends or None,
        "virtual": found.virtual,
        "here": found.here,
        "nodes": [asdict(node) for node in found.nodes],
    }
