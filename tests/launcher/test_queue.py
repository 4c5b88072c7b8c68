"""The waiting line: order, no job twice, none lost, nobody starves."""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nas_hpc.launcher.placing import Placing
from nas_hpc.launcher.queue import JobQueue
from nas_hpc.records import Job, Node
from nas_hpc.resources import Placement, Pool, Request
from tests.support import examples

WHOLE, PAIR, QUARTER = Request(), Request(2), Request(share=Fraction(1, 4))


def job(name: str) -> Job:
    return Job(name, name, "w", creator="search")


def pool_of(nodes: int) -> Pool:
    return Pool([Node(f"n{index}", (0, 1, 2, 3)) for index in range(nodes)])


def drain(queue: JobQueue, pool: Pool) -> list[str]:
    return [job.id for job, _ in queue.take(Placing(pool, "serial"), lambda job: True)]


def test_searches_come_first_then_the_largest_then_the_oldest() -> None:
    queue = JobQueue()
    queue.add(job("small1"), QUARTER, search=False, like="")
    queue.add(job("whole"), WHOLE, search=False, like="")
    queue.add(job("other"), QUARTER, search=False, like="another kind")
    queue.add(job("small2"), QUARTER, search=False, like="")
    queue.add(job("search"), QUARTER, search=True, like="")
    assert drain(queue, pool_of(2)) == ["search", "whole", "small1", "other", "small2"]


def test_what_does_not_fit_lets_smaller_ones_pass() -> None:
    queue = JobQueue()
    queue.add(job("pair"), PAIR, search=False, like="")
    queue.add(job("one"), WHOLE, search=False, like="")
    assert drain(queue, pool_of(1)) == ["one"]
    assert [waiting.id for waiting in queue] == ["pair"]


@given(
    st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(1, 4), st.booleans()), max_size=30),
    st.integers(0, 4),
)
def test_every_job_is_taken_once_or_still_waits(steps: list[tuple[str, int, bool]], nodes: int) -> None:
    queue = JobQueue()
    names = set()
    for name, packing, search in steps:
        queue.add(job(name), Request(share=Fraction(1, packing)), search=search, like="")
        names.add(name)
    assert len(queue) == len(names)
    taken = drain(queue, pool_of(nodes))
    assert sorted([*taken, *(waiting.id for waiting in queue)]) == sorted(names)


# -- a machine in virtual time ----------------------------------------------------------------------------
@dataclass
class Machine:
    """Nodes that work a queue off: rounds of taking, then the next end."""

    nodes: int
    patience: int = 8
    now: float = 0.0
    ends: int = 0
    placed: list[str] = field(default_factory=list)
    """In their order."""
    at: dict[str, int] = field(default_factory=dict)
    """After how many ends a job was started."""
    lasts: dict[str, float] = field(default_factory=dict)
    told: dict[str, float] = field(default_factory=dict)
    """Seconds that a job takes, and is thought to take (0: nobody knows)."""

    def __post_init__(self) -> None:
        self.pool = pool_of(self.nodes)
        self.placing = Placing(self.pool, "serial")
        self.placing.ends_of = lambda: self._end_of
        self.queue = JobQueue(self.patience)
        self._running: list[tuple[float, int, str, Placement]] = []
        self._thought: dict[int, tuple[float, bool]] = {}
        self._numbers: Iterator[int] = itertools.count()

    def _end_of(self, placement: Placement) -> tuple[float, bool]:
        return self._thought.get(id(placement), (self.now, True))

    def add(self, name: str, request: Request, lasts: float, told: float = 0.0, like: str = "") -> str:
        unique = f"{name}{next(self._numbers)}"
        self.lasts[unique], self.told[unique] = lasts, told
        self.queue.add(job(unique), request, search=False, like=f"{like}{told}")
        return unique

    def round(self) -> list[str]:
        """Place what can be placed; what was."""
        names = []
        for taken, placement in self.queue.take(
            self.placing, lambda job: True, now=self.now, estimate=lambda job: self.told[job.id]
        ):
            name = taken.id
            end = self.now + self.lasts[name]
            told = self.told[name]
            self._thought[id(placement)] = (self.now + told, False) if told else (2 * self.now + 1, True)
            heapq.heappush(self._running, (end, next(self._numbers), name, placement))
            self.at[name] = self.ends
            names.append(name)
        self.placed += names
        return names

    def end(self) -> str:
        """The next end."""
        self.now, _, name, placement = heapq.heappop(self._running)
        self.placing.free(placement)
        self.ends += 1
        return name

    def running(self) -> list[str]:
        return [name for _, _, name, _ in self._running]

    def until(self, names: set[str], most: int, feed: Callable[[str], None]) -> None:
        """Work until all of ``names`` were started, or ``most`` ends have passed; ``feed`` after each end."""
        self.round()
        while not names <= self.at.keys() and self.ends < most:
            feed(self.end())
            self.round()


def test_a_stream_of_small_jobs_does_not_hold_up_a_large_one() -> None:
    machine = Machine(nodes=4)
    for _ in range(40):
        machine.add("small", QUARTER, lasts=1 + 0.01 * len(machine.lasts))
    machine.round()
    large = machine.add("large", PAIR, lasts=5)
    machine.until({large}, 60, lambda ended: machine.add("small", QUARTER, 1.0 + machine.ends % 7))
    assert large in machine.at
    assert machine.at[large] <= 20, "no longer than until what ran on its nodes had ended"
    assert machine.queue.next is None
    assert machine.pool.held == ()


def test_nothing_is_kept_free_while_nobody_is_passed_over() -> None:
    machine = Machine(nodes=4)
    for number in range(200):
        machine.add("same", QUARTER, lasts=1 + number % 5)
    machine.round()
    while machine.running():
        assert machine.pool.held == ()
        machine.end()
        machine.round()
    assert len(machine.placed) == 200
    assert machine.placed == sorted(machine.placed, key=lambda name: int(name[4:])), "in their order"


def test_a_stream_of_large_jobs_does_not_hold_up_a_small_one() -> None:
    machine = Machine(nodes=4, patience=8)
    for _ in range(8):
        machine.add("large", PAIR, lasts=3)
    machine.round()
    small = machine.add("small", QUARTER, lasts=1)
    machine.until({small}, 60, lambda ended: machine.add("large", PAIR, lasts=3) and None)
    assert machine.at[small] <= 8 + 2


def test_one_kind_does_not_hold_up_another_of_the_same_size() -> None:
    machine = Machine(nodes=1)
    first = [machine.add("a", QUARTER, 1, like="a") for _ in range(6)]
    second = machine.add("b", QUARTER, 1, like="b")
    machine.until({second}, 40, lambda ended: machine.add("a", QUARTER, 1, like="a") and None)
    assert machine.placed.index(second) == len(first), "who came first is first"


def reserved() -> tuple[Machine, str]:
    """Four nodes, full until 10; a pair waits that will get two of them then."""
    machine = Machine(nodes=4, patience=100)
    for _ in range(3):
        machine.add("long", WHOLE, lasts=10, told=10)
    machine.add("short", WHOLE, lasts=1, told=1)
    machine.round()
    pair = machine.add("pair", PAIR, lasts=1, told=1)
    machine.add("first", QUARTER, lasts=1, told=1)
    assert machine.end().startswith("short")
    machine.round()
    assert machine.at.keys() >= {name for name in machine.lasts if name.startswith("first")}
    machine.round()
    assert machine.queue.next == job(pair)
    assert len(machine.pool.held) == 2
    return machine, pair


def test_a_shorter_job_uses_nodes_that_are_kept_free_if_it_surely_ends_in_time() -> None:
    machine, pair = reserved()
    machine.end()
    short = machine.add("eight", WHOLE, lasts=8, told=8)
    assert machine.round() == [short]
    while pair not in machine.at:
        machine.end()
        machine.round()
    assert machine.now == 10, "it began when it would have begun anyway"


@pytest.mark.parametrize("told", [0, 12])
def test_a_longer_job_or_one_that_nobody_knows_does_not(told: float) -> None:
    machine, pair = reserved()
    machine.end()
    other = machine.add("other", WHOLE, lasts=12, told=told)
    assert machine.round() == []
    while pair not in machine.at:
        machine.end()
        machine.round()
    assert machine.now == 10
    assert other not in machine.at or machine.at[other] >= machine.at[pair]


def test_nodes_are_not_kept_where_waiting_is_of_no_use() -> None:
    machine = Machine(nodes=2)
    machine.placing.ends_of = lambda: lambda placement: (math.inf, False)
    machine.add("search", QUARTER, lasts=1000)
    machine.round()
    machine.add("pair", PAIR, lasts=1)
    for _ in range(30):
        machine.add("small", QUARTER, lasts=1)
    machine.round()
    for _ in range(20):
        machine.end()
        machine.round()
        assert machine.pool.held == ()


def test_nodes_stay_kept_while_the_next_may_not_start_yet() -> None:
    machine, pair = reserved()
    machine.end()
    kept = machine.pool.held
    taken = machine.queue.take(machine.placing, lambda job: True, may_start=lambda job: job.id != pair)
    assert list(taken) == []
    assert machine.pool.held == kept
    assert machine.queue.next == job(pair)


def test_when_the_one_for_whom_nodes_are_kept_is_killed_they_are_free() -> None:
    machine, pair = reserved()
    machine.end()
    machine.queue.remove(pair)
    one = machine.add("one", WHOLE, lasts=12)
    assert machine.round() == [one]
    assert machine.pool.held == ()


# -- any schedule -----------------------------------------------------------------------------------------
SIZES = (QUARTER, Request(share=Fraction(1, 2)), WHOLE, PAIR, Request(3))
arrivals = st.lists(
    st.tuples(
        st.integers(0, 20),  # after so many ends
        st.sampled_from(SIZES),
        st.integers(1, 10),  # seconds it takes
        st.sampled_from([0.0, 0.5, 1.0, 2.0]),  # times that it is thought to take
    ),
    min_size=1,
    max_size=25,
)
streams = st.lists(st.tuples(st.sampled_from(SIZES), st.integers(1, 10)), min_size=1, max_size=2)


@settings(max_examples=examples(150), deadline=None)
@given(arrivals, streams, st.integers(3, 5), st.integers(1, 12))
def test_in_any_schedule_every_job_is_started_within_a_bounded_number_of_ends(
    jobs: list[tuple[int, Request, int, float]],
    stream: list[tuple[Request, int]],
    nodes: int,
    patience: int,
) -> None:
    """Beside streams that never dry up. The bound: before each of the others, ``patience`` jobs and some
    fillings of the machine may be placed (four of them; the most that was seen is two)."""
    machine = Machine(nodes, patience)
    coming = sorted(enumerate(jobs), key=lambda entry: entry[1][0])
    came: dict[str, int] = {}

    def feed(ended: str = "") -> None:
        for number, (request, lasts) in enumerate(stream):
            waiting = sum(
                name.startswith(f"stream{number}") for name in machine.lasts.keys() - machine.at.keys()
            )
            for _ in range(8 - waiting):
                machine.add(f"stream{number}.", request, lasts, like=f"stream{number}")
        while coming and coming[0][1][0] <= machine.ends:
            _, (_, request, lasts, factor) = coming.pop(0)
            came[machine.add("one", request, lasts, lasts * factor)] = machine.ends

    feed()
    slots = 4 * nodes
    bound = (len(jobs) + len(stream)) * 4 * (patience + slots)
    machine.round()
    while (coming or not came.keys() <= machine.at.keys()) and machine.ends < 20 + bound:
        feed(machine.end())
        machine.round()
    late = {name: machine.at.get(name, math.inf) - came[name] for name in came}
    assert max(late.values()) <= bound, late


@settings(max_examples=examples(60), deadline=None)
@given(arrivals, st.integers(3, 5))
def test_any_finite_work_is_worked_off(jobs: list[tuple[int, Request, int, float]], nodes: int) -> None:
    machine = Machine(nodes)
    for _, request, lasts, factor in jobs:
        machine.add("one", request, lasts, lasts * factor)
    machine.round()
    while machine.running():
        machine.end()
        machine.round()
    assert len(machine.placed) == len(jobs)
    assert len(machine.queue) == 0
    assert machine.pool.held == ()


# -- what it costs ----------------------------------------------------------------------------------------
def test_a_placement_costs_the_kinds_and_not_the_jobs_that_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted in questions about places and times, with 126 nodes of 4 slots and 100 or 10,000 waiting."""
    asked = 0
    place = Placing.place

    def counted(self: Placing, *args: object, **how: object) -> Placement | None:
        nonlocal asked
        asked += 1
        return place(self, *args, **how)  # type: ignore[arg-type]

    monkeypatch.setattr(Placing, "place", counted)
    costs = {}
    for waiting in (700, 10_000):
        machine = Machine(nodes=126, patience=252)
        for number in range(waiting):
            machine.add("w", QUARTER, lasts=1 + number % 3, like=f"kind{number % 3}")
        machine.round()
        asked = 0
        for _ in range(150):
            machine.end()
            machine.round()
        costs[waiting] = asked
    assert costs[700] == costs[10_000] <= 150 * 4
