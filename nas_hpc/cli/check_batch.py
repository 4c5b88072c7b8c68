"""What ``nas-hpc doctor`` says of the machine: which it is and why, and whether its file is true of it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

from nas_hpc.batch.limits import longest
from nas_hpc.batch.machines import Choice, choose
from nas_hpc.batch.system import QueueState, ask
from nas_hpc.batch.systems import system_of
from nas_hpc.cli.checks import BAD, OK, WARN, Finding
from nas_hpc.errors import NasHpcError
from nas_hpc.resources import Found

if TYPE_CHECKING:
    from nas_hpc.batch.machine import Machine, Queue
    from nas_hpc.config import Settings
    from nas_hpc.site import Site

ASK_S = 8.0
"""So long each of the one or two commands may take that ask for the queues."""
_OTHERS = {"qsub": "PBS or Cobalt", "sbatch": "Slurm"}
_OWN_FILE = "write a file of its own, SITE/machines/NAME.toml (docs/machines.md), or name one with --machine"


def check_batch(settings: Settings, site: Site | None, found: Found | NasHpcError) -> Iterator[Finding]:
    """The machine, its batch system's commands and queues, its nodes if this host is one."""
    choice = choose(settings.machine, site.path if site else None, os.environ)
    machine = choice.machine
    yield _which(choice)
    if machine.system != "local":
        yield from _check_system(choice, in_job=isinstance(found, Found) and bool(found.job))
    yield from _check_interface(settings, found)
    if isinstance(found, Found) and found.job and found.here and found.real:
        yield from _check_node(machine, found)


def _which(choice: Choice) -> Finding:
    machine = choice.machine
    facts = f", facts of {machine.as_of}" if machine.as_of else ""
    text = f"{machine.name}, {machine.title or machine.system}: {choice.why} ({machine.origin}{facts})"
    if choice.guessed and machine.system == "local":
        there = next((name for name in _OTHERS if shutil.which(name)), "")
        if there:
            return Finding("machine", WARN, f"{text}; but {there} of {_OTHERS[there]} is on PATH", _OWN_FILE)
    return Finding("machine", OK, text)


def _check_system(choice: Choice, *, in_job: bool) -> Iterator[Finding]:
    machine = choice.machine
    system = system_of(machine.system)
    missing = [name for name in system.programs if shutil.which(name) is None]
    if missing:
        text = f"{machine.system}: {', '.join(missing)} not on PATH"
        if in_job:
            yield Finding("batch system", OK, f"{text}; on login nodes they should be")
        else:
            advice = "load the batch system's module, or name another machine with --machine"
            yield Finding("batch system", BAD, text, advice)
        return
    try:
        live = system.queues(partial(ask, timeout_s=ASK_S))
    except NasHpcError as error:
        advice = "requests are checked against the file alone; ask the operators if that lasts"
        if choice.guessed:
            advice = "if this host is of no cluster: NAS_HPC_MACHINE=local, or machine in site.toml"
        yield Finding("batch system", WARN, f"{machine.system} does not tell its queues: {error}", advice)
        return
    where = ", ".join(str(shutil.which(name)) for name in system.programs)
    yield Finding("batch system", OK, f"{machine.system} answers ({where})")
    yield from compare_queues(machine, live)


def compare_queues(machine: Machine, live: Sequence[QueueState]) -> Iterator[Finding]:
    """What the machine's file says of queues and is not so, as far as the batch system tells."""
    if not machine.queues:
        names = ", ".join(state.name for state in live) or "none"
        yield Finding("queues", OK, f"{machine.system} has {names}; {machine.origin} says nothing of them")
        return
    if machine.queue_flag:
        text = f"those of {machine.origin} go by {machine.queue_flag}: {machine.system} does not tell of them"
        yield Finding("queues", OK, text)
        return
    advice = f"correct a copy of {machine.origin} in SITE/machines"
    wrong = False
    by_name = {state.name: state for state in live}
    for queue in machine.queues:
        state = by_name.pop(queue.name, None)
        if state is None:
            said = f"{machine.system} has no queue {queue.name}, and {machine.origin} has one"
            yield Finding("queues", WARN, said, advice)
            wrong = True
            continue
        if not state.open:
            yield Finding("queues", WARN, f"{queue.name} takes no batch jobs", "another queue, or wait")
        for differs in _differences(queue, state):
            yield Finding("queues", WARN, f"{queue.name}: {differs}", advice)
            wrong = True
    if not wrong:
        more = f"; {machine.system} has others, too: {', '.join(by_name)}" if by_name else ""
        yield Finding("queues", OK, f"{', '.join(queue.name for queue in machine.queues)} as told{more}")


def _differences(queue: Queue, state: QueueState) -> Iterator[str]:
    """Limits that both tell, and not alike."""
    in_file = (queue.min_nodes, queue.max_nodes, longest(queue))
    told = (state.min_nodes, state.max_nodes, state.max_minutes)
    for what, mine, theirs in zip(("min_nodes", "max_nodes", "max_minutes"), in_file, told, strict=True):
        if theirs is not None and mine and mine != theirs:
            yield f"{what} is {mine} in the file, and {theirs} by the batch system"


def _check_interface(settings: Settings, found: Found | NasHpcError) -> Iterator[Finding]:
    interface = settings.interface
    if not interface.value:
        return
    import psutil

    addresses = psutil.net_if_addrs()
    if interface.value in addresses:
        yield Finding("interface", OK, f"{interface.value} ({interface.origin})")
        return
    level = BAD if isinstance(found, Found) and found.job else WARN
    text = f"there is no {interface.value} on this host ({interface.origin}), but {', '.join(addresses)}"
    yield Finding("interface", level, text, "set interface to one that all nodes have, or to nothing")


def _check_node(machine: Machine, found: Found) -> Iterator[Finding]:
    """Cores and GPUs of this host, which is a node of the batch job, against the machine's file."""
    node = next(node for node in found.nodes if node.name == found.here)
    for what, mine, there in (
        ("cores", machine.cores, len(node.cores)),
        ("threads per core", machine.threads_per_core if machine.cores else 0, node.threads_per_core),
        ("GPUs", machine.gpus, len(node.gpus)),
    ):
        if mine and mine != there:
            text = f"{what}: {there} on {node.name}, and {mine} in {machine.origin}"
            advice = "a launcher takes what is there; correct a copy of the file in SITE/machines"
            yield Finding("node", WARN, text, advice)
