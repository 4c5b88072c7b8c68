"""One node of a pool, and which nodes a request fits on. Pure."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction

from nas_hpc.records import Node
from nas_hpc.resources.request import Placement, Request
from nas_hpc.resources.topology import natural

EndOf = Callable[[Placement], tuple[float, bool]]
"""When a placement will be freed (infinity: it is not to be waited for), and whether that is a guess."""


@dataclass(slots=True)
class Slot:
    """A node, and what is free on it."""

    index: int
    node: Node
    reserved: bool
    share: Fraction = Fraction(1)
    cores: set[int] = field(default_factory=set)
    gpus: list[str] = field(default_factory=list)
    ids: frozenset[int] = frozenset()
    """All its cores."""
    domains: tuple[tuple[int, ...], ...] = ()
    aside: bool = False
    held: bool = False
    """Kept for the job that is next."""
    lasting: Fraction = Fraction(0)
    lasting_gpus: int = 0
    """What of it lasting placements have."""
    holders: dict[int, Placement] = field(default_factory=dict)

    @property
    def usable(self) -> bool:
        return not (self.reserved or self.aside)

    @property
    def open(self) -> bool:
        """Whether anything may be placed on it that fits."""
        return not (self.reserved or self.aside or self.held)

    def equip(self, node: Node) -> None:
        """It has what ``node`` says; what is held of it stays held."""
        held = [(p.cores[at], p.gpus[at]) for p in self.holders.values() for at in [p.nodes.index(node.name)]]
        self.node, self.ids = node, frozenset(node.cores)
        self.cores = set(self.ids).difference(*(cores for cores, _ in held))
        used = {gpu for _, gpus in held for gpu in gpus}
        self.gpus = sorted((gpu for gpu in node.gpus if gpu not in used), key=natural)
        rest = sorted(self.ids.difference(*node.numa))
        self.domains = tuple(tuple(sorted(domain)) for domain in (*node.numa, rest) if domain)

    def take(self, key: int, placement: Placement, at: int, *, lasting: bool) -> None:
        """It is the ``at``-th node of a placement that is free on it."""
        cores, gpus = placement.cores[at], placement.gpus[at]
        self.holders[key] = placement
        self.share -= placement.share
        self.cores.difference_update(cores)
        if gpus:
            self.gpus = [gpu for gpu in self.gpus if gpu not in gpus]
        if lasting:
            self.lasting += placement.share
            self.lasting_gpus += len(gpus)

    def give(self, key: int, placement: Placement, at: int, *, lasting: bool) -> None:
        """Get back what ``take`` gave; of cores and GPUs those that are still there."""
        cores, gpus = placement.cores[at], placement.gpus[at]
        del self.holders[key]
        self.share += placement.share
        self.cores.update(self.ids.intersection(cores))
        if gpus:
            self.gpus = sorted([*self.gpus, *(gpu for gpu in gpus if gpu in self.node.gpus)], key=natural)
        if lasting:
            self.lasting -= placement.share
            self.lasting_gpus -= len(gpus)

    def number_of_cores(self, share: Fraction) -> int:
        return share.numerator * len(self.node.cores) // share.denominator

    def fits(self, request: Request) -> bool:
        """Whether it is free now; usable or not."""
        return (
            self.share >= request.share
            and len(self.gpus) >= request.gpus
            and len(self.cores) >= self.number_of_cores(request.share)
        )

    def holds_beside_lasting(self, request: Request, more: Request | None = None) -> int:
        """How many of ``request`` (of a node of it) fit beside what lasts, and beside ``more`` of that."""
        if not self.usable:
            return 0
        share, gpus = 1 - self.lasting, len(self.node.gpus) - self.lasting_gpus
        if more is not None:
            share, gpus = share - more.share, gpus - more.gpus
        count = share.numerator * request.share.denominator // (share.denominator * request.share.numerator)
        return max(0, min(count, gpus // request.gpus) if request.gpus else count)


@dataclass(slots=True)
class Fitting:
    """The nodes on which a request fits now, and the first of them."""

    members: set[int] = field(default_factory=set)
    heap: list[int] = field(default_factory=list)
    """All members, and some that are none any more."""
    heaped: set[int] = field(default_factory=set)

    def note(self, index: int, fits: bool) -> None:
        if not fits:
            self.members.discard(index)
            return
        self.members.add(index)
        if index not in self.heaped:
            self.heaped.add(index)
            heapq.heappush(self.heap, index)

    def take_first(self, count: int) -> list[int]:
        """The first ``count`` members (there are so many); they have to be noted again."""
        chosen: list[int] = []
        while len(chosen) < count:
            index = heapq.heappop(self.heap)
            self.heaped.discard(index)
            if index in self.members:
                chosen.append(index)
        return chosen


@dataclass(slots=True)
class Room:
    """How many of a request each node holds beside what lasts, and all of them."""

    counts: list[int]
    total: int


def wait_for(slot: Slot, request: Request, end_of: EndOf, now: float) -> tuple[float, int, bool] | None:
    """Until when and for how many jobs to wait until ``request`` fits, and whether that time is a guess.

    None: what fills the node is not to be waited for.
    """
    share, gpus, cores = slot.share, len(slot.gpus), len(slot.cores)
    number = slot.number_of_cores(request.share)
    holders = list(slot.holders.values())
    ends = sorted((*end_of(placement), index) for index, placement in enumerate(holders))
    when, waits, guessed = now, 0, False
    for end, guess, index in ends:
        if share >= request.share and gpus >= request.gpus and cores >= number:
            break
        if math.isinf(end):
            return None
        at = holders[index].nodes.index(slot.node.name)
        share += holders[index].share
        gpus += sum(gpu in slot.node.gpus for gpu in holders[index].gpus[at])
        cores += len(slot.ids.intersection(holders[index].cores[at]))
        when, waits, guessed = max(when, end), waits + 1, guessed or guess
    if share < request.share or gpus < request.gpus or cores < number:
        return None
    return when, waits, guessed
