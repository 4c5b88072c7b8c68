"""Placement: never over a node, nothing leaks, fractions are exact, what is recorded is taken again."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

from nas_hpc.errors import PlacementError
from nas_hpc.records import Node
from nas_hpc.resources import Placement, Pool, Request
from nas_hpc.resources.cores import choose_cores
from tests.support import examples

GPUS = ("0", "1", "2", "10")
requests = st.one_of(
    st.builds(Request, st.just(1), st.integers(1, 7).map(lambda p: Fraction(1, p)), st.integers(0, 2)),
    st.builds(Request, st.integers(2, 4), st.just(Fraction(1)), st.integers(0, 2)),
    st.builds(Request, st.just(1), st.just(Fraction(0)), st.just(0)),
)
sharing = requests.filter(lambda request: request.share > 0)


def nodes(count: int, cores: int = 8, gpus: Sequence[str] = GPUS) -> list[Node]:
    half = cores // 2
    numa = (tuple(range(half)), tuple(range(half, cores)))
    return [Node(f"n{i}", tuple(range(cores)), tuple(gpus), numa=numa) for i in range(count)]


class Placing(RuleBasedStateMachine):
    """A pool beside a plain account of who holds what: after every step they agree."""

    placed = Bundle("placed")

    def __init__(self) -> None:
        super().__init__()
        self.pool = Pool(nodes(4), reserved=["n3"])
        self.held: dict[int, tuple[Placement, Request, bool]] = {}
        self.aside: set[str] = set()
        self.kept: set[str] = set()
        self.nodes = {node.name: node for node in self.pool.nodes}

    def on(self, name: str) -> list[tuple[Placement, int, bool]]:
        return [
            (placement, placement.nodes.index(name), lasting)
            for placement, _, lasting in self.held.values()
            if name in placement.nodes
        ]

    def free_on(self, name: str) -> tuple[Fraction, set[int], set[str]]:
        mine = self.on(name)
        cores = {core for placement, at, _ in mine for core in placement.cores[at]}
        gpus = {gpu for placement, at, _ in mine for gpu in placement.gpus[at]}
        share = 1 - sum((placement.share for placement, *_ in mine), Fraction(0))
        node = self.nodes[name]
        return share, set(node.cores) - cores, set(node.gpus) - gpus

    def fits(self, name: str, request: Request) -> bool:
        share, cores, gpus = self.free_on(name)
        number = math.floor(request.share * len(self.nodes[name].cores))
        return share >= request.share and len(gpus) >= request.gpus and len(cores) >= number

    @rule(target=placed, request=requests, lasting=st.booleans(), on_held=st.booleans())
    def place(self, request: Request, lasting: bool, on_held: bool) -> Any:
        open_ = [n for n in ("n0", "n1", "n2") if n not in self.aside and (on_held or n not in self.kept)]
        able = [name for name in open_ if self.fits(name, request)]
        placement = self.pool.place(request, lasting=lasting, on_held=on_held)
        assert (placement is not None) == (len(able) >= request.num_nodes), (request, able)
        if placement is None:
            return multiple()
        assert set(placement.nodes) <= set(able)
        assert len(set(placement.nodes)) == request.num_nodes
        assert all(len(gpus) == request.gpus for gpus in placement.gpus)
        if not self.kept:
            assert list(placement.nodes) == able[: request.num_nodes], "the first that fit"
        self.held[id(placement)] = (placement, request, lasting)
        return placement

    @rule(placement=consumes(placed))
    def free(self, placement: Placement) -> None:
        self.pool.free(placement)
        del self.held[id(placement)]
        with pytest.raises(PlacementError, match="not held"):
            self.pool.free(placement)

    @rule(target=placed, placement=consumes(placed), lasting=st.booleans())
    def take_again(self, placement: Placement, lasting: bool) -> Any:
        """As a launcher does that takes over."""
        _, request, _ = self.held.pop(id(placement))
        first = (placement.nodes, placement.cores[0], placement.gpus[0])
        if first[1] or first[2]:
            with pytest.raises(PlacementError, match="not free"):
                self.pool.retake(request, *first)
        self.pool.free(placement)
        known = self.nodes[placement.nodes[0]]
        if not (set(first[1]) <= set(known.cores) and set(first[2]) <= set(known.gpus)):
            with pytest.raises(PlacementError, match="not free"):
                self.pool.retake(request, *first)
            return multiple()
        again = self.pool.retake(request, *first, lasting=lasting)
        assert (again.nodes, again.cores[0], again.gpus[0]) == first
        self.held[id(again)] = (again, request, lasting)
        return again

    @rule(name=st.sampled_from(["n0", "n1", "n2", "n3"]), aside=st.booleans())
    def set_aside_or_bring_back(self, name: str, aside: bool) -> None:
        (self.pool.set_aside if aside else self.pool.bring_back)(name)
        (self.aside.add if aside else self.aside.discard)(name)

    @rule(names=st.sets(st.sampled_from(["n0", "n1", "n2"])))
    def keep(self, names: set[str]) -> None:
        self.pool.hold(sorted(names))
        self.kept = names

    @rule(name=st.sampled_from(["n0", "n1", "n2"]), cores=st.integers(1, 12), gpus=st.integers(0, 4))
    def learn(self, name: str, cores: int, gpus: int) -> None:
        """An agent says what there is."""
        node = Node(name, tuple(range(2, 2 + cores)), GPUS[:gpus])
        self.pool.update(node)
        self.nodes[name] = node

    @rule(request=sharing)
    def count(self, request: Request) -> None:
        total = 0
        for name in {"n0", "n1", "n2"} - self.aside:
            lasting = [(placement, at) for placement, at, lasts in self.on(name) if lasts]
            share = 1 - sum((placement.share for placement, _ in lasting), Fraction(0))
            gpus = len(self.nodes[name].gpus) - sum(len(placement.gpus[at]) for placement, at in lasting)
            by_gpus = max(0, gpus) // request.gpus if request.gpus else math.inf
            total += min(math.floor(share / request.share), by_gpus)
        assert self.pool.capacity(request) == total // request.num_nodes

    @invariant()
    def nothing_is_held_twice_and_nothing_is_lost(self) -> None:
        for name in ("n0", "n1", "n2"):
            mine = self.on(name)
            share, cores, gpus = self.free_on(name)
            assert 0 <= share <= 1
            assert self.pool.free_share(name) == (0 if name in self.aside else share)
            taken = [core for placement, at, _ in mine for core in placement.cores[at]]
            used = [gpu for placement, at, _ in mine for gpu in placement.gpus[at]]
            assert len(taken) == len(set(taken))
            assert len(used) == len(set(used))
            slot = self.pool._slots[name]
            assert (slot.cores, set(slot.gpus)) == (cores, gpus)
        assert self.pool.free_share("n3") == 0
        assert self.pool.placements == len(self.held)

    def teardown(self) -> None:
        for placement, _, _ in self.held.values():
            self.pool.free(placement)
        self.pool.hold(())
        for name in ("n0", "n1", "n2"):
            self.pool.bring_back(name)
            assert self.pool.free_share(name) == 1
        assert self.pool.capacity(Request()) == 3
        whole = self.pool.place(Request(3))
        assert whole is not None
        assert [set(cores) for cores in whole.cores] == [set(n.cores) for n in self.pool.nodes[:3]]


TestPlacing = Placing.TestCase
TestPlacing.settings = settings(max_examples=examples(60), stateful_step_count=30, deadline=None)


@given(st.integers(1, 6), st.integers(1, 9), st.integers(0, 2))
def test_capacity_is_what_can_be_placed(count: int, packing: int, gpus: int) -> None:
    pool = Pool(nodes(count))
    request = Request(1, Fraction(1, packing), gpus)
    placed = 0
    while pool.place(request) is not None:
        placed += 1
    assert pool.capacity(request) == placed


@pytest.mark.parametrize(
    ("packing", "workers", "evaluators"),
    [(1, 1, 126), (4, 4, 507), (2, 4, 506)],
)
def test_the_arithmetic_of_128_nodes_in_serial_mode(packing: int, workers: int, evaluators: int) -> None:
    pool = Pool(nodes(128, cores=64, gpus=()), reserved=["n0"])
    search = pool.place(Request(share=Fraction(1, packing)), lasting=True)
    assert search is not None
    assert search.nodes == ("n1",)
    assert pool.capacity(Request(share=Fraction(1, workers))) == evaluators


@pytest.mark.parametrize(
    "bad",
    [{"num_nodes": 0}, {"share": Fraction(3, 2)}, {"num_nodes": 2, "share": Fraction(1, 2)}, {"gpus": -1}],
)
def test_an_impossible_request_is_refused(bad: dict[str, object]) -> None:
    with pytest.raises(PlacementError):
        Request(**bad)  # type: ignore[arg-type]


def test_what_a_pool_does_not_know_is_refused() -> None:
    pool = Pool(nodes(2))
    for wrong in (
        lambda: pool.set_aside("n9"),
        lambda: pool.update(Node("n9", (0,))),
        lambda: pool.retake(Request(), ["n9"], [0], []),
        lambda: pool.retake(Request(2), ["n0"], [0], []),
        lambda: pool.retake(Request(2), ["n0", "n0"], [0], []),
        lambda: pool.retake(Request(), ["n0"], [0, 0], []),
        lambda: pool.retake(Request(), ["n0"], [99], []),
        lambda: pool.retake(Request(gpus=1), ["n0"], [0], ["7"]),
        lambda: Pool([Node("a", (0,)), Node("a", (1,))]),
        lambda: pool.capacity(Request(share=Fraction(0))),
    ):
        with pytest.raises(PlacementError):
            wrong()
    assert pool.place(Request(2)) is not None, "nothing was taken by what was refused"


# -- which GPUs and cores ---------------------------------------------------------------------------------
def test_a_gpu_that_is_busy_is_not_given_again_when_another_is_freed() -> None:
    pool = Pool(nodes(1))
    quarter = Request(share=Fraction(1, 4), gpus=1)
    first, *others = [pool.place(quarter) for _ in range(4)]
    assert first is not None
    assert [p.gpus[0][0] for p in (first, *others) if p is not None] == list(GPUS)
    pool.free(first)
    again = pool.place(quarter)
    assert again is not None
    assert again.gpus == first.gpus, "the one that is free, not the one of that index"


def test_a_job_has_neighbouring_cores_of_one_numa_domain() -> None:
    numa = (tuple(range(0, 16, 2)), tuple(range(1, 16, 2)))
    pool = Pool([Node("n", tuple(range(16)), numa=numa)])
    quarters = [pool.place(Request(share=Fraction(1, 4))) for _ in range(4)]
    assert [q.cores[0] for q in quarters if q] == [
        (0, 2, 4, 6),
        (8, 10, 12, 14),
        (1, 3, 5, 7),
        (9, 11, 13, 15),
    ]


@given(st.data(), st.integers(1, 3), st.integers(1, 8))
def test_cores_are_chosen_within_a_domain_and_as_neighbours_wherever_there_are_such(
    data: st.DataObject, count: int, size: int
) -> None:
    domains = [tuple(range(d * size, (d + 1) * size)) for d in range(count)]
    free = data.draw(st.sets(st.sampled_from(range(count * size)), min_size=1))
    number = data.draw(st.integers(0, len(free)))
    chosen = choose_cores(free, number, domains)
    assert len(set(chosen)) == len(chosen) == number
    assert set(chosen) <= free
    runs = [
        domain[at : at + number]
        for domain in domains
        for at in range(size - number + 1)
        if set(domain[at : at + number]) <= free
    ]
    if runs:
        assert tuple(chosen) in runs
    elif any(len(free.intersection(domain)) >= number for domain in domains):
        assert any(set(chosen) <= set(domain) for domain in domains)


def test_a_gap_is_filled_before_a_large_run_is_broken() -> None:
    assert choose_cores({0, 1, 2, 3, 6, 7}, 2, [range(8)]) == (6, 7)


# -- a place for the next ---------------------------------------------------------------------------------
def full(pool: Pool, request: Request) -> list[Placement]:
    held = []
    while (placement := pool.place(request)) is not None:
        held.append(placement)
    return held


def test_the_nodes_that_are_free_first_are_found() -> None:
    pool = Pool(nodes(4))
    ends = {
        id(p): (end, False) for p, end in zip(full(pool, Request()), (40.0, 10.0, 30.0, 20.0), strict=True)
    }
    soonest = pool.soonest(Request(2), lambda p: ends[id(p)], now=5.0)
    assert soonest is not None
    assert (soonest.nodes, soonest.when, soonest.guessed) == (("n1", "n3"), 20.0, False)
    pool.set_aside("n1")
    soonest = pool.soonest(Request(2), lambda p: ends[id(p)], now=5.0)
    assert soonest is not None
    assert (soonest.nodes, soonest.when) == (("n3", "n2"), 30.0)


def test_what_is_not_to_be_waited_for_is_not_and_a_guess_is_told() -> None:
    pool = Pool(nodes(2))
    full(pool, Request(share=Fraction(1, 2)))
    never = {"n0": (math.inf, False), "n1": (7.0, True)}
    soonest = pool.soonest(Request(), lambda p: never[p.nodes[0]], now=5.0)
    assert soonest is not None
    assert (soonest.nodes, soonest.guessed) == (("n1",), True)
    assert pool.soonest(Request(2), lambda p: never[p.nodes[0]], now=5.0) is None


@given(st.lists(st.tuples(st.integers(1, 4), st.integers(1, 9)), min_size=1, max_size=12), st.integers(1, 2))
def test_at_the_time_that_is_told_the_request_fits_there(jobs: list[tuple[int, int]], wanted: int) -> None:
    pool = Pool(nodes(3))
    ends = {}
    for packing, end in jobs:
        placement = pool.place(Request(share=Fraction(1, packing)))
        if placement is not None:
            ends[id(placement)] = (placement, float(end))
    soonest = pool.soonest(Request(wanted), lambda p: (ends[id(p)][1], False), now=0.0)
    assert soonest is not None
    for placement, end in ends.values():
        if end <= soonest.when:
            pool.free(placement)
    pool.hold(soonest.nodes)
    placed = pool.place(Request(wanted), on_held=True)
    assert placed is not None
    assert pool.held == soonest.nodes


# -- what it costs ----------------------------------------------------------------------------------------
def test_a_placement_costs_no_more_on_a_thousand_nodes_than_on_ten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted in looks at nodes: a clock would measure the neighbours."""
    from nas_hpc.resources.slots import Slot

    looks = 0
    fits = Slot.fits

    def counted(slot: Slot, request: Request) -> bool:
        nonlocal looks
        looks += 1
        return fits(slot, request)

    monkeypatch.setattr(Slot, "fits", counted)
    costs = {}
    for count in (10, 1000):
        pool = Pool(nodes(count, gpus=()))
        kinds = [Request(share=Fraction(1, 4)), Request(), Request(2)]
        held = [p for kind in kinds if (p := pool.place(kind)) is not None]
        held += full(pool, kinds[0])
        looks = 0
        for step in range(200):
            pool.free(held.pop((step * 7919) % len(held)))
            for kind in reversed(kinds):
                if (placement := pool.place(kind)) is not None:
                    held.append(placement)
        costs[count] = looks
    assert costs[1000] <= 2 * costs[10]
