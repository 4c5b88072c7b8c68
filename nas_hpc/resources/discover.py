"""The nodes of this allocation, and when it ends: of the batch job around this process, else this machine."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from nas_hpc.errors import WrongCall
from nas_hpc.records import Node
from nas_hpc.resources import ends
from nas_hpc.resources.batchjob import CurrentJob, find_batch_job, names_of_this_host, place_of_this_host
from nas_hpc.resources.hostlist import compress
from nas_hpc.resources.topology import Machine, Run, natural, run_bounded, this_machine


@dataclass(frozen=True, slots=True)
class Found:
    """What an allocation consists of."""

    nodes: tuple[Node, ...]
    """The launcher's own node first, if it is among them."""
    source: str = "local"
    """cobalt, pbs, slurm, or local."""
    job: str = ""
    """The batch job's id."""
    ends: float = 0.0
    """UTC seconds since the epoch; 0: unknown, or never."""
    virtual: bool = False
    """The nodes are virtual ones that share this machine."""
    here: str = ""
    """Name of the node that is this machine; empty: none is, or all of them are (virtual ones)."""
    real: bool = False
    """The core ids of ``here`` are this machine's, so that processes may be pinned to them."""
    guessed: tuple[str, ...] = ()
    """Nodes whose cores and GPUs nobody has told: they are thought to be like this machine."""
    notes: tuple[str, ...] = ()
    """What is to be said to the user, a line each."""

    @property
    def elsewhere(self) -> tuple[str, ...]:
        """Nodes that are other machines: no process of this one may be taken for theirs."""
        return () if self.virtual else tuple(node.name for node in self.nodes if node.name != self.here)

    @property
    def pinned(self) -> bool:
        """Whether every core id is this machine's."""
        return self.real and not self.elsewhere

    def __str__(self) -> str:
        where = f"{self.source} job {self.job}" if self.job else "this machine"
        first = self.nodes[0]
        count = f"{len(self.nodes)} {'virtual ' * self.virtual}{'nodes' if len(self.nodes) > 1 else 'node'}"
        names = compress(node.name for node in self.nodes)
        kinds = sorted({len(node.cores) for node in self.nodes})
        cores = f"{kinds[0]} to {kinds[-1]} cores" if len(kinds) > 1 else f"{kinds[0]} cores"
        threads = f" x {first.threads_per_core} threads" if first.threads_per_core > 1 else ""
        gpus = f", {len(first.gpus)} GPUs ({', '.join(first.gpus)})" if first.gpus else ""
        return f"{where}: {count} {names} with {cores}{threads}{gpus}"


@dataclass(frozen=True, slots=True)
class _Wish:
    """What a person said of the nodes; 0: nothing."""

    nodes: int
    cores: int
    gpus: int


def discover(
    environ: Mapping[str, str] | None = None,
    *,
    nodes: int = 0,
    cores_per_node: int = 0,
    gpus_per_node: int = 0,
    ask_end: bool = True,
    root: Path = Path("/"),
    cpus: Iterable[int] | None = None,
    run: Run = run_bounded,
    now: float | None = None,
) -> Found:
    """The allocation of this process.

    Args:
        nodes: so many of the batch job's, in its order; without a batch job so many virtual nodes of this
            machine. 0: all of them; without a batch job this machine as it is.
        cores_per_node: physical cores of each node. 0: what batch system or machine say.
        gpus_per_node: the same for GPUs.
        ask_end: ask the scheduler when the job ends, if no variable says it. It may take seconds.
        root, cpus, run, now: in the place of this machine's files, its usable CPUs, its commands and its
            clock.

    Raises WrongCall for node lists and files that make no sense, and for more nodes than there are.
    """
    environ = os.environ if environ is None else environ
    for name, value in (
        ("nodes", nodes),
        ("cores-per-node", cores_per_node),
        ("gpus-per-node", gpus_per_node),
    ):
        if value < 0:
            raise WrongCall(f"--{name} {value}: it must not be negative")
    wish = _Wish(nodes, cores_per_node, gpus_per_node)
    mine = names_of_this_host(environ)
    batch, notes = find_batch_job(environ, mine)
    machine = this_machine(environ, root=root, cpus=cpus, run=run)
    if batch is None:
        return _local(wish, machine, (*notes, *machine.notes))
    end = _end(environ, batch, ask_end, run, time.time() if now is None else now)
    here = place_of_this_host(batch.names, mine)
    said = [*notes, *batch.notes, *(machine.notes if here is not None else ()), *filter(None, [end.note])]
    return replace(_batch(wish, batch, machine, here), ends=end.time, notes=tuple(said))


def local_nodes(count: int = 1, cores_per_node: int = 0) -> list[Node]:
    """This machine as one node, or as ``count`` virtual nodes that share it.

    Virtual nodes, and nodes with another number of cores than the machine has, carry core ids that name no
    real core; ``Node.cores`` of a single, unchanged node are the physical cores that this process may use.
    """
    if count < 1:
        raise WrongCall(f"--nodes {count}: there must be at least 1 node")
    if cores_per_node < 0:
        raise WrongCall(f"--cores-per-node {cores_per_node}: give a number of cores, or 0 for the machine's")
    return list(_local(_Wish(count, cores_per_node, 0), this_machine(), ()).nodes)


def as_reported(
    node: Node,
    *,
    cores: Sequence[int],
    threads_per_core: int = 1,
    numa: Sequence[Sequence[int]] = (),
    gpus: Sequence[str] = (),
    cores_per_node: int = 0,
    gpus_per_node: int = 0,
    most: int = 0,
) -> Node:
    """``node`` with what its agent found there. A number that a person gave (0: none) keeps its meaning: so
    many of the cores and GPUs that are there, or so many by made-up ids where there are fewer. ``most`` are
    the cores that the batch system gave (0: it did not tell): an agent that is not confined sees more.
    """
    if most and not cores_per_node and most < len(cores):
        cores_per_node = most
    machine = Machine(tuple(cores), threads_per_core, tuple(map(tuple, numa)), tuple(gpus))
    return _node(node.name, machine, cores_per_node, gpus_per_node, node.host)


def _local(wish: _Wish, machine: Machine, notes: tuple[str, ...]) -> Found:
    host = socket.gethostname()
    count = max(1, wish.nodes)
    if count == 1:
        node = _node(host, machine, wish.cores, wish.gpus)
        real = set(node.cores) <= set(machine.cores)
        return Found((node,), here=host, real=real, notes=notes)
    gpus = sorted(machine.gpus, key=natural)
    each, more = divmod(len(gpus), count)
    nodes = []
    for index in range(count):  # the machine's GPUs are divided: two jobs never get the same one
        first = index * each + min(index, more)
        part = replace(machine, gpus=tuple(gpus[first : first + each + (index < more)]))
        nodes.append(_node(f"{host}-{index}", part, wish.cores, wish.gpus, host))
    return Found(tuple(nodes), virtual=True, notes=notes)


def _node(name: str, machine: Machine, cores: int, gpus: int, host: str = "") -> Node:
    """A node with the machine's cores and GPUs, or the first so many of them, or so many made-up ones."""
    chosen, domains, threads = machine.cores, machine.numa, machine.threads_per_core
    if cores and cores <= len(chosen):
        chosen = chosen[:cores]
        domains = tuple(filter(None, (tuple(c for c in domain if c in chosen) for domain in domains)))
    elif cores:
        chosen, domains, threads = tuple(range(cores)), (), 1
    ids = tuple(sorted(machine.gpus, key=natural))
    if gpus:
        ids = ids[:gpus] if gpus <= len(ids) else tuple(map(str, range(gpus)))
    return Node(name, chosen, ids, threads, domains if len(domains) > 1 else (), host)


def _batch(wish: _Wish, batch: CurrentJob, machine: Machine, here: int | None) -> Found:
    order = list(range(len(batch.names)))
    if here is not None:  # the launcher's own node is its first
        order.insert(0, order.pop(here))
    if wish.nodes > len(order):
        raise WrongCall(
            f"--nodes {wish.nodes}: {batch.system} job {batch.id} has {len(order)} "
            f"({compress(batch.names)}); give at most so many, or leave it out"
        )
    own = here is not None
    counts = _core_counts(batch, machine, here)
    nodes = []
    for index in order[: wish.nodes or None]:
        is_here = index == here
        cores = wish.cores or counts[index]
        gpus = wish.gpus or (0 if is_here else max(batch.gpus, 0))
        if is_here:
            known = machine
        else:  # its agent will tell; until then it is like this one, if this one is of its kind
            ids = tuple(map(str, range(len(machine.gpus)))) if own and batch.gpus < 0 else ()
            known = replace(machine, gpus=ids, numa=())
        nodes.append(_node(batch.names[index], known, cores, gpus))
    name = batch.names[here] if here is not None else ""
    told = bool(wish.cores or batch.cpus)
    guessed = () if told else tuple(node.name for node in nodes if node.name != name)
    real = own and set(nodes[0].cores) <= set(machine.cores)
    return Found(tuple(nodes), batch.system, batch.id, here=name, real=real, guessed=guessed)


def _core_counts(batch: CurrentJob, machine: Machine, here: int | None) -> list[int]:
    """Physical cores of each node by what the batch system says; 0: as many as this machine has.

    It may count hardware threads or cores. On this machine its number lies between the cores and the threads
    that there are, unless the job has a part of the machine without being confined to it, or the system was
    told of more CPUs than exist. Other nodes have the same ratio.
    """
    if not batch.cpus:
        return [0] * len(batch.names)
    have, threads = len(machine.cores), machine.threads_per_core
    if here is None:
        return list(batch.cpus)
    told = batch.cpus[here]
    own = have if have <= told <= have * threads else told if told > have else max(1, told // threads)
    return [max(1, count * own // told) for count in batch.cpus]


def _end(environ: Mapping[str, str], batch: CurrentJob, ask: bool, run: Run, now: float) -> ends.End:
    if batch.system == "cobalt":
        if not ask:
            return ends.of_variable(environ, "COBALT_ENDTIME")
        return ends.of_cobalt(environ, batch.id, run, now)
    if batch.system == "slurm":
        if not ask:
            return ends.of_variable(environ, "SLURM_JOB_END_TIME")
        return ends.of_slurm(environ, batch.id, run, now)
    return ends.of_pbs(environ, batch.id, run, environ.get("PBS_NODEFILE", "")) if ask else ends.End()
