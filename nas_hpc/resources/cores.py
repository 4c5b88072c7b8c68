"""Which of a node's free cores a job gets. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet


def choose_cores(free: AbstractSet[int], count: int, domains: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """``count`` of the ``free`` cores (at least so many): neighbours within a NUMA domain if there are such.

    ``domains`` are all the node's cores, in order; neighbours are so in their domain's order, whatever their
    ids. The tightest fit is taken, so that large gaps stay. Without a run that is long enough the cores come
    from the domain with the fewest free ones that suffice; without such a domain, from those with the most.
    """
    if count >= len(free):
        return tuple(sorted(free))
    best: list[int] = []
    for domain in domains:
        for run in _runs(domain, free):
            if len(run) >= count and (not best or len(run) < len(best)):
                best = run
    if best or not count:
        return tuple(best[:count])
    inside = [[core for core in domain if core in free] for domain in domains]
    enough = [domain for domain in inside if len(domain) >= count]
    if enough:
        return tuple(min(enough, key=len)[:count])
    chosen: list[int] = []
    for some in sorted(inside, key=len, reverse=True):
        chosen += some[: count - len(chosen)]
    return tuple(sorted(chosen))


def _runs(domain: Sequence[int], free: AbstractSet[int]) -> Iterator[list[int]]:
    """The longest rows of free neighbours."""
    run: list[int] = []
    for core in domain:
        if core in free:
            run.append(core)
        elif run:
            yield run
            run = []
    if run:
        yield run
