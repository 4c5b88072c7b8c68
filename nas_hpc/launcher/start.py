"""Becoming a launcher: from the allocation and a site that may have had one to the launcher's life."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Sequence
from functools import partial

from nas_hpc.errors import WrongCall
from nas_hpc.launcher import ownership, roster
from nas_hpc.launcher.endpoint import listen_on
from nas_hpc.launcher.joining import Joined, join
from nas_hpc.launcher.loop import Launcher
from nas_hpc.launcher.options import LauncherOptions
from nas_hpc.launcher.orders import Allocation
from nas_hpc.launcher.view import say
from nas_hpc.processes.guardian import start_guardian
from nas_hpc.resources import Found, discover
from nas_hpc.resources.ends import has_ended
from nas_hpc.site import Site
from nas_hpc.store import open_site, owner
from nas_hpc.store.base import Store
from nas_hpc.units import format_duration


def run_launcher(site: Site, options: LauncherOptions) -> int:
    """Run jobs of ``site`` until there is nothing (more) to do or the allocation ends.

    Returns 0, or 1 when a job that a person added failed or cannot run here. Raises SiteError when another
    launcher has the site, LeaseLost when another took over, StoreError when the database is gone.
    """
    site.check_writable()
    found = discover(
        nodes=options.nodes,
        cores_per_node=options.cores_per_node,
        gpus_per_node=options.gpus_per_node,
        ask_end=not options.time_limit_s,
    )
    _check_end(found, options)
    with owner.holding(
        site,
        owner.LAUNCHER,
        batch=(found.source, found.job) if found.job else ("", ""),
        batch_ended=partial(has_ended, environ=os.environ),
        end_stopped=ownership.end_stopped,
    ) as owned:
        listen = listen_on(found.elsewhere, options.interface, anyone=owned is not None)
        return _run(site, options, found, listen)


def _run(site: Site, options: LauncherOptions, found: Found, listen: Sequence[str]) -> int:
    wanted = roster.wanted(options, found)
    store = open_site(site)
    try:
        begun = _begin(store, site, options, wanted)
    except BaseException:
        store.close()
        raise
    shared, lease, agents = store.shared, begun.lease, begun.agents
    if not shared:
        store.close()  # else it shows that this launcher lives until the writer's does
    guardian, line = start_guardian(ownership.sessions_log(site, lease.id), lease.id)
    try:
        ensemble = agents.id if agents is not None else ""
        allocation = Allocation(
            site, lease.id, options.job_mode, found, options.fresh_interpreter, shared, ensemble
        )
        launcher = Launcher(
            site, options, lease, begun.ended, allocation, agents, begun.left, listen,
            ready=store.close if shared else lambda: None,
        )  # fmt: skip
        return asyncio.run(launcher.run())
    finally:
        os.close(line)  # the guardian ends whatever is left, and itself
        guardian.wait()
        with contextlib.suppress(OSError):  # a site that is read-only by now: the next launcher removes it
            ownership.sessions_log(site, lease.id).unlink(missing_ok=True)


def _begin(store: Store, site: Site, options: LauncherOptions, wanted: roster.Roster | None) -> Joined:
    """Get a lease, and what dead launchers have left: the only one's or, beside others, this allocation's."""
    if store.shared:
        return join(store, site, options, wanted, say)
    lease, dead = ownership.take_site(store, site, options)
    agents, served = roster.succeed(site, wanted, say)
    return Joined(lease, dead, agents, ownership.adopt(store, site, lease, options, served))


def _check_end(found: Found, options: LauncherOptions) -> None:
    """Raise WrongCall if the batch job is over, or as good as over."""
    left_s = found.ends - time.time()
    if found.ends and left_s <= options.stop_margin_s:
        span = format_duration(round(abs(left_s)))
        over = f"ends in {span}" if left_s > 0 else f"ended {span} ago (by its variables)"
        raise WrongCall(
            f"{found.source} job {found.job} {over}, and jobs are told to stop {options.stop_margin_s:g} s "
            "before (stop_margin_s): start the launcher in a job that runs"
        )
