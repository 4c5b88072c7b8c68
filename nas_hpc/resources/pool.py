"""Which job occupies what: placement and release on a set of nodes. Pure: no clock, no I/O.

A node is divided exactly: a job that shares a node ``p`` ways holds the fraction 1/p of it, and the fractions
on a node never add up to more than 1. Cores and GPUs are owned by id, so that two jobs never hold the same
one. A job of several nodes holds all of them whole.

Placing and freeing cost the number of different requests that were ever made, and the logarithm of the number
of nodes; never the number of jobs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction

from nas_hpc.errors import PlacementError
from nas_hpc.records import Node
from nas_hpc.resources.cores import choose_cores
from nas_hpc.resources.request import Placement, Request
from nas_hpc.resources.slots import EndOf, Fitting, Room, Slot, wait_for

_MOST_REQUESTS = 256
"""Different requests that are remembered; beyond them all are forgotten and found again when they come."""


@dataclass(frozen=True, slots=True)
class Soonest:
    """Where and when a request can be placed if nothing new is placed there."""

    nodes: tuple[str, ...]
    when: float
    guessed: bool
    """Nobody knows how long something takes that has to end before."""


class Pool:
    """The nodes of an allocation and what is free on them.

    ``reserved`` names nodes that hold nothing (the master's own). Nodes are filled in their order: the first
    with room for a fraction takes it, so that jobs are packed and whole nodes stay free for who needs them.
    ``guessed`` names nodes of which nobody has told yet what they have.
    A placement is *lasting* if capacity is what fits beside it: not an evaluation's.
    """

    def __init__(
        self, nodes: Sequence[Node], reserved: Iterable[str] = (), guessed: Iterable[str] = ()
    ) -> None:
        names = [node.name for node in nodes]
        if len(set(names)) != len(names):
            raise PlacementError(f"a node is named twice among {', '.join(names[:8])}")
        shut = set(reserved)
        self._list = [Slot(index, node, node.name in shut) for index, node in enumerate(nodes)]
        self._slots = {slot.node.name: slot for slot in self._list}
        self._taken: dict[int, tuple[Placement, bool]] = {}
        self._held: list[Slot] = []
        self._fitting: dict[Request, Fitting] = {}
        self._rooms: dict[Request, Room] = {}
        self._guessed = set(guessed)
        self.version = 0
        """Grows whenever a capacity may have changed."""
        for slot in self._list:
            slot.equip(slot.node)

    @property
    def nodes(self) -> list[Node]:
        """All nodes, reserved ones too."""
        return [slot.node for slot in self._list]

    @property
    def job_nodes(self) -> list[Node]:
        """Nodes on which jobs may be placed, now or when they are brought back."""
        return [slot.node for slot in self._list if not slot.reserved]

    @property
    def guessed(self) -> frozenset[str]:
        """Nodes of which nobody has told yet what they have."""
        return frozenset(self._guessed)

    @property
    def aside(self) -> list[str]:
        """Names of the nodes that are set aside."""
        return [slot.node.name for slot in self._list if slot.aside]

    def is_set_aside(self, name: str) -> bool:
        """Whether nothing new is placed on the node for now."""
        return self._slot(name).aside

    @property
    def placements(self) -> int:
        """How many are placed."""
        return len(self._taken)

    def open_nodes(self) -> int:
        """Nodes on which jobs may be placed, now or when they are brought back."""
        return sum(not slot.reserved for slot in self._list)

    def free_share(self, name: str) -> Fraction:
        """The free fraction of a node; 0 of one on which nothing is placed."""
        slot = self._slot(name)
        return slot.share if slot.usable else Fraction(0)

    def holders(self, name: str) -> list[Placement]:
        """What is placed on a node."""
        return list(self._slot(name).holders.values())

    # -- placing -------------------------------------------------------------------------------------
    def place(self, request: Request, *, lasting: bool = False, on_held: bool = False) -> Placement | None:
        """Take what ``request`` asks for, or None when it is not free now.

        ``on_held``: nodes that are kept for the next job may be used, too.
        """
        fitting = self._fitting_of(request)
        free = len(fitting.members)
        held = [slot for slot in self._held if slot.usable and slot.fits(request)] if on_held else []
        if free + len(held) < request.num_nodes:
            return None
        count = min(free, request.num_nodes)
        slots = [self._list[index] for index in fitting.take_first(count)]
        slots += held[: request.num_nodes - count]
        cores, gpus = [], []
        for slot in slots:
            number = slot.number_of_cores(request.share)
            cores.append(choose_cores(slot.cores, number, slot.domains) if number else ())
            gpus.append(tuple(slot.gpus[: request.gpus]))
        placement = Placement(
            tuple(slot.node.name for slot in slots), request.share, tuple(cores), tuple(gpus)
        )
        self._take(placement, lasting)
        return placement

    def retake(
        self,
        request: Request,
        nodes: Sequence[str],
        cores: Sequence[int],
        gpus: Sequence[str],
        *,
        lasting: bool = False,
    ) -> Placement:
        """Take exactly what an attempt was recorded to hold; ``cores``, ``gpus``: on the first of its nodes.

        Nodes that are reserved or set aside serve, too: it runs there. Raises PlacementError if something of
        it is not free, or not there.
        """
        if len(nodes) != request.num_nodes or len(set(nodes)) != len(nodes):
            raise PlacementError(f"{', '.join(nodes) or 'no node'}: the job has {request.num_nodes} nodes")
        slots = [self._slot(name) for name in nodes]
        placement = Placement(
            tuple(nodes),
            request.share,
            (tuple(cores), *(tuple(sorted(slot.cores)) for slot in slots[1:])),
            (tuple(gpus), *(tuple(slot.gpus[: request.gpus]) for slot in slots[1:])),
        )
        for slot, some, ids in zip(slots, placement.cores, placement.gpus, strict=True):
            name = slot.node.name
            if slot.share < request.share:
                raise PlacementError(f"{request.share} of {name} is not free: only {slot.share} is")
            lacking = [str(core) for core in some if core not in slot.cores]
            if lacking or len(set(some)) != len(some):
                raise PlacementError(f"cores {', '.join(lacking or map(str, some))} of {name} are not free")
            missing = [gpu for gpu in ids if gpu not in slot.gpus]
            if missing or len(set(ids)) != len(ids):
                raise PlacementError(f"GPUs {', '.join(missing or ids)} of {name} are not free")
        self._take(placement, lasting)
        return placement

    def _take(self, placement: Placement, lasting: bool) -> None:
        key = id(placement)
        self._taken[key] = (placement, lasting)
        for at, name in enumerate(placement.nodes):
            slot = self._slots[name]
            slot.take(key, placement, at, lasting=lasting)
            self._changed(slot, capacity=lasting)

    def free(self, placement: Placement) -> None:
        """Give back what was placed. Raises PlacementError for what is not held (any more)."""
        key = id(placement)
        taken = self._taken.pop(key, None)
        if taken is None:
            where = ", ".join(placement.nodes)
            raise PlacementError(f"a placement on {where} is not held: it cannot be freed")
        for at, name in enumerate(placement.nodes):
            slot = self._slots[name]
            slot.give(key, placement, at, lasting=taken[1])
            self._changed(slot, capacity=taken[1])

    # -- the nodes change ----------------------------------------------------------------------------
    def set_aside(self, name: str) -> None:
        """Place nothing new on a node; what it holds is freed as ever."""
        self._set_aside(name, True)

    def bring_back(self, name: str) -> None:
        """Use a node again that was set aside."""
        self._set_aside(name, False)

    def _set_aside(self, name: str, aside: bool) -> None:
        slot = self._slot(name)
        if slot.aside is not aside:
            slot.aside = aside
            self._changed(slot, capacity=True)

    def update(self, node: Node) -> None:
        """A node has these cores and GPUs. What jobs hold of it they keep."""
        slot = self._slot(node.name)
        self._guessed.discard(node.name)
        if slot.node != node:
            slot.equip(node)
            self._changed(slot, capacity=True)

    def _slot(self, name: str) -> Slot:
        slot = self._slots.get(name)
        if slot is None:
            raise PlacementError(f"there is no node {name} in this allocation")
        return slot

    # -- a place for the next ------------------------------------------------------------------------
    def soonest(self, request: Request, end_of: EndOf, now: float) -> Soonest | None:
        """Where ``request`` can be placed first if nothing new is placed there; None: nowhere."""
        found: list[tuple[float, int, bool, int]] = []
        for slot in self._list:
            wait = wait_for(slot, request, end_of, now) if slot.usable else None
            if wait is not None:
                found.append((*wait, slot.index))
        if len(found) < request.num_nodes:
            return None
        chosen = sorted(found, key=lambda entry: (entry[0], entry[1], entry[3]))[: request.num_nodes]
        return Soonest(
            tuple(self._list[index].node.name for *_, index in chosen),
            max(when for when, *_ in chosen),
            any(guessed for _, _, guessed, _ in chosen),
        )

    def hold(self, names: Iterable[str]) -> None:
        """Keep these nodes, and no others, for the job that is next."""
        before, self._held = self._held, [self._slot(name) for name in names]
        for slot in before:
            slot.held = False
        for slot in self._held:
            slot.held = True
        for slot in (*before, *self._held):
            self._changed(slot, capacity=False)

    @property
    def held(self) -> tuple[str, ...]:
        """Nodes that are kept for the job that is next."""
        return tuple(slot.node.name for slot in self._held)

    # -- what fits -----------------------------------------------------------------------------------
    def would_hold(self, request: Request, placed: Request, names: Iterable[str]) -> int:
        """The capacity for ``request`` if a lasting ``placed`` were on these nodes, too."""
        whole = self.capacity(request) * request.num_nodes
        for name in names:
            slot = self._slot(name)
            whole += slot.holds_beside_lasting(request, placed) - slot.holds_beside_lasting(request)
        return whole // request.num_nodes

    def could_ever(self, request: Request, *, told: bool = True) -> bool:
        """Whether the allocation could hold ``request`` if it were empty and all its nodes were there.

        ``told``: what nobody has told yet will be told, and may be enough.
        """
        hopeful = self._guessed if told else ()
        able = sum(
            not slot.reserved and (len(slot.node.gpus) >= request.gpus or slot.node.name in hopeful)
            for slot in self._list
        )
        return able >= request.num_nodes

    def capacity(self, request: Request) -> int:
        """How many of ``request`` the allocation holds at once beside what lasts, on nodes not set aside.

        ``request.share`` must not be 0.
        """
        if request.share == 0:
            raise PlacementError("the capacity for jobs that take no share of a node is without bound")
        room = self._rooms.get(request)
        if room is None:
            if len(self._rooms) >= _MOST_REQUESTS:
                self._rooms.clear()
            counts = [slot.holds_beside_lasting(request) for slot in self._list]
            room = self._rooms[request] = Room(counts, sum(counts))
        return room.total // request.num_nodes

    def _fitting_of(self, request: Request) -> Fitting:
        fitting = self._fitting.get(request)
        if fitting is None:
            if len(self._fitting) >= _MOST_REQUESTS:
                self._fitting.clear()
            fitting = self._fitting[request] = Fitting()
            for slot in self._list:
                fitting.note(slot.index, slot.open and slot.fits(request))
        return fitting

    def _changed(self, slot: Slot, *, capacity: bool) -> None:
        for request, fitting in self._fitting.items():
            fitting.note(slot.index, slot.open and slot.fits(request))
        if capacity:
            self.version += 1
            for request, room in self._rooms.items():
                count = slot.holds_beside_lasting(request)
                room.total += count - room.counts[slot.index]
                room.counts[slot.index] = count
