"""Placement: never over a node, nothing leaks, fractions are exact."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nas_hpc.errors import PlacementError
from nas_hpc.records import Node
from nas_hpc.resources import Placement, Pool, Request

requests = st.one_of(
    st.builds(Request, st.just(1), st.integers(1, 7).map(lambda p: Fraction(1, p)), st.integers(0, 2)),
    st.builds(Request, st.integers(2, 4), st.just(Fraction(1)), st.integers(0, 2)),
    st.builds(Request, st.just(1), st.just(Fraction(0)), st.just(0)),
)


def nodes(count: int, cores: int = 8, gpus: int = 4) -> list[Node]:
    return [Node(f"n{i}", tuple(range(cores)), tuple(map(str, range(gpus)))) for i in range(count)]


@given(st.integers(1, 5), st.lists(st.tuples(st.booleans(), requests, st.integers(0, 99)), max_size=60))
def test_no_sequence_oversubscribes_a_node_and_all_comes_back(
    count: int, steps: list[tuple[bool, Request, int]]
) -> None:
    pool = Pool(nodes(count))
    held: list[Placement] = []
    for take, request, index in steps:
        if take:
            placement = pool.place(request)
            if placement is not None:
                assert len(placement.nodes) == request.num_nodes
                held.append(placement)
        elif held:
            pool.free(held.pop(index % len(held)))
        for node in pool.nodes:
            mine = [(p, p.nodes.index(node.name)) for p in held if node.name in p.nodes]
            assert sum((p.share for p, _ in mine), Fraction(0)) + pool.free_share(node.name) == 1
            cores = [c for p, i in mine for c in p.cores[i]]
            gpus = [g for p, i in mine for g in p.gpus[i]]
            assert len(cores) == len(set(cores)) <= 8
            assert len(gpus) == len(set(gpus)) <= 4
    for placement in held:
        pool.free(placement)
    assert all(pool.free_share(node.name) == 1 for node in pool.nodes)
    assert pool.capacity(Request()) == count


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
    pool = Pool(nodes(128, cores=64, gpus=0), reserved=["n0"])
    search = pool.place(Request(share=Fraction(1, packing)), lasting=True)
    assert search is not None
    assert search.nodes == ("n1",)
    assert pool.capacity(Request(share=Fraction(1, workers))) == evaluators


def test_a_placement_is_freed_once() -> None:
    pool = Pool(nodes(1))
    placement = pool.place(Request())
    assert placement is not None
    pool.free(placement)
    with pytest.raises(PlacementError, match="not held"):
        pool.free(placement)


@pytest.mark.parametrize(
    "bad", [{"num_nodes": 0}, {"share": Fraction(3, 2)}, {"num_nodes": 2, "share": Fraction(1, 2)}]
)
def test_an_impossible_request_is_refused(bad: dict[str, object]) -> None:
    with pytest.raises(PlacementError):
        Request(**bad)  # type: ignore[arg-type]
