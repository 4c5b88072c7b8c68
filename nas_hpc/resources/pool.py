"""Which job occupies what: placement and release on a set of nodes. Pure: no clock, no I/O.

A node is divided exactly: a job that shares a node ``p`` ways holds the fraction 1/p of it, and the fractions
on a node never add up to more than 1. Cores and GPUs are owned by id from free lists, so that two jobs never
hold the same one. A job of several nodes holds all of them whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

from nas_hpc.errors import PlacementError
from nas_hpc.records import Node


@dataclass(frozen=True, slots=True)
class Request:
    """What a job asks for: ``num_nodes`` nodes and of each the fraction ``share`` and ``gpus`` GPUs."""

    num_nodes: int = 1
    share: Fraction = Fraction(1)
    gpus: int = 0

    def __post_init__(self) -> None:
        if self.num_nodes < 1:
            raise PlacementError(f"num_nodes is {self.num_nodes}; a job needs at least 1")
        if not 0 <= self.share <= 1:
            raise PlacementError(f"a job asks for {self.share} of a node; it must be between 0 and 1")
        if self.num_nodes > 1 and self.share != 1:
            raise PlacementError(
                f"a job of {self.num_nodes} nodes asks for {self.share} of each; it must take them whole"
            )
        if self.gpus < 0:
            raise PlacementError(f"gpus is {self.gpus}; it must not be negative")


@dataclass(frozen=True, slots=True)
class Placement:
    """What a job holds. ``cores`` and ``gpus`` are ids on each of its nodes, in the order of ``nodes``."""

    nodes: tuple[str, ...]
    share: Fraction
    cores: tuple[tuple[int, ...], ...]
    gpus: tuple[tuple[str, ...], ...]


@dataclass(slots=True)
class _Slot:
    """What is free on one node."""

    node: Node
    share: Fraction = Fraction(1)
    cores: list[int] = field(default_factory=list)
    gpus: list[str] = field(default_factory=list)
    closed: bool = False
    aside: bool = False

    def whole(self) -> bool:
        return self.share == 1 and not self.closed and not self.aside

    def fits(self, request: Request) -> bool:
        return (
            not self.closed
            and not self.aside
            and self.share >= request.share
            and len(self.gpus) >= request.gpus
        )


class Pool:
    """The nodes of an allocation and what is free on them.

    ``reserved`` names nodes that hold nothing (the master's own). Nodes are filled in their order: the first
    with room for a fraction takes it, so that jobs are packed and whole nodes stay free for who needs them.
    """

    def __init__(self, nodes: Sequence[Node], reserved: Iterable[str] = ()) -> None:
        names = [node.name for node in nodes]
        if len(set(names)) != len(names):
            raise PlacementError(f"a node is named twice among {', '.join(names[:8])}")
        shut = set(reserved)
        self._slots = {
            node.name: _Slot(node, cores=sorted(node.cores), gpus=sorted(node.gpus), closed=node.name in shut)
            for node in nodes
        }
        self._held: dict[int, Placement] = {}

    @property
    def nodes(self) -> list[Node]:
        """All nodes, reserved ones too."""
        return [slot.node for slot in self._slots.values()]

    def set_aside(self, name: str) -> None:
        """Place nothing new on a node; what it holds is freed as ever."""
        self._slots[name].aside = True

    def bring_back(self, name: str) -> None:
        """Use a node again that was set aside."""
        self._slots[name].aside = False

    def is_set_aside(self, name: str) -> bool:
        """Whether nothing new is placed on the node for now."""
        return self._slots[name].aside

    def update(self, node: Node) -> None:
        """A node's cores and GPUs are these, as was found out since. What is held of it stays held."""
        slot = self._slots[node.name]
        held = [(h, h.nodes.index(node.name)) for h in self._held.values() if node.name in h.nodes]
        cores = {core for placement, place in held for core in placement.cores[place]}
        gpus = {gpu for placement, place in held for gpu in placement.gpus[place]}
        slot.node = node
        slot.cores = sorted(set(node.cores) - cores)
        slot.gpus = sorted(set(node.gpus) - gpus)

    def retake(
        self,
        nodes: Sequence[str],
        share: Fraction,
        cores: Sequence[tuple[int, ...]],
        gpus: Sequence[tuple[str, ...]],
    ) -> Placement:
        """Take exactly what an earlier launcher had placed. Raises PlacementError if it is not free."""
        for name, wanted, masks in zip(nodes, cores, gpus, strict=True):
            slot = self._slots.get(name)
            if slot is None:
                raise PlacementError(f"node {name} is not in this allocation")
            if share > slot.share or not (set(wanted) <= set(slot.cores) and set(masks) <= set(slot.gpus)):
                raise PlacementError(f"{share} of node {name} with cores {list(wanted)} is not free")
        for name, wanted, masks in zip(nodes, cores, gpus, strict=True):
            slot = self._slots[name]
            slot.share -= share
            slot.cores = [core for core in slot.cores if core not in wanted]
            slot.gpus = [gpu for gpu in slot.gpus if gpu not in masks]
        placement = Placement(tuple(nodes), share, tuple(cores), tuple(gpus))
        self._held[id(placement)] = placement
        return placement

    def open_nodes(self) -> int:
        """Nodes on which jobs may be placed."""
        return sum(not slot.closed for slot in self._slots.values())

    def free_share(self, name: str) -> Fraction:
        """The free fraction of a node; 0 of a reserved one."""
        slot = self._slots[name]
        return Fraction(0) if slot.closed else slot.share

    def place(self, request: Request) -> Placement | None:
        """Take what ``request`` asks for, or None when it is not free now."""
        if request.num_nodes > 1:
            chosen = [s for s in self._slots.values() if s.whole() and len(s.gpus) >= request.gpus]
            if len(chosen) < request.num_nodes:
                return None
            return self._take(chosen[: request.num_nodes], request)
        for slot in self._slots.values():
            if slot.fits(request):
                return self._take([slot], request)
        return None

    def _take(self, slots: list[_Slot], request: Request) -> Placement:
        cores, gpus = [], []
        for slot in slots:
            count = int(request.share * len(slot.node.cores))
            cores.append(tuple(slot.cores[:count]))
            gpus.append(tuple(slot.gpus[: request.gpus]))
            del slot.cores[:count], slot.gpus[: request.gpus]
            slot.share -= request.share
        placement = Placement(tuple(s.node.name for s in slots), request.share, tuple(cores), tuple(gpus))
        self._held[id(placement)] = placement
        return placement

    def free(self, placement: Placement) -> None:
        """Give back what ``place`` returned. Raises PlacementError for what is not held (any more)."""
        if self._held.pop(id(placement), None) is None:
            where = ", ".join(placement.nodes)
            raise PlacementError(f"a placement on {where} is not held: it cannot be freed")
        for name, cores, gpus in zip(placement.nodes, placement.cores, placement.gpus, strict=True):
            slot = self._slots[name]
            slot.share += placement.share
            slot.cores = sorted([*slot.cores, *cores])
            slot.gpus = sorted([*slot.gpus, *gpus])

    def could_ever(self, request: Request) -> bool:
        """Whether the allocation could hold ``request`` if it were empty."""
        able = [s for s in self._slots.values() if not s.closed and len(s.node.gpus) >= request.gpus]
        return len(able) >= request.num_nodes

    def capacity(self, request: Request, beside: Iterable[Placement] = ()) -> int:
        """How many of ``request`` the allocation holds at once if only ``beside`` were there besides them.

        ``request.share`` must not be 0.
        """
        if request.share == 0:
            raise PlacementError("the capacity for jobs that take no share of a node is without bound")
        share = {name: Fraction(0 if slot.closed or slot.aside else 1) for name, slot in self._slots.items()}
        gpus = {name: len(slot.node.gpus) for name, slot in self._slots.items()}
        for placement in beside:
            for name, held in zip(placement.nodes, placement.gpus, strict=True):
                share[name] -= placement.share
                gpus[name] -= len(held)
        if request.num_nodes > 1:
            whole = sum(share[name] == 1 and gpus[name] >= request.gpus for name in share)
            return whole // request.num_nodes
        total = 0
        for name, free in share.items():
            by_share = max(0, int(free / request.share))
            total += min(by_share, gpus[name] // request.gpus) if request.gpus else by_share
        return total
