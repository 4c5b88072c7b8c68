"""The waiting line: order, no job twice, none lost."""

from __future__ import annotations

from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from nas_hpc.launcher.placing import Placing
from nas_hpc.launcher.queue import JobQueue
from nas_hpc.records import Job, Node
from nas_hpc.resources import Pool, Request


def job(name: str) -> Job:
    return Job(name, name, "w")


def drain(queue: JobQueue, pool: Pool) -> list[str]:
    return [job.id for job, _ in queue.take(Placing(pool, "serial"), lambda job: True)]


def test_searches_come_first_then_the_largest_then_the_oldest() -> None:
    queue = JobQueue()
    queue.add(job("small1"), Request(share=Fraction(1, 4)), search=False, like="")
    queue.add(job("whole"), Request(), search=False, like="")
    queue.add(job("small2"), Request(share=Fraction(1, 4)), search=False, like="")
    queue.add(job("search"), Request(share=Fraction(1, 4)), search=True, like="")
    pool = Pool([Node("a", (0,)), Node("b", (0,))])
    assert drain(queue, pool) == ["search", "whole", "small1", "small2"]


def test_what_does_not_fit_lets_smaller_ones_pass() -> None:
    queue = JobQueue()
    queue.add(job("pair"), Request(2), search=False, like="")
    queue.add(job("one"), Request(), search=False, like="")
    assert drain(queue, Pool([Node("a", (0,))])) == ["one"]
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
    taken = drain(queue, Pool([Node(str(n), (0,)) for n in range(nodes)]))
    assert sorted([*taken, *(waiting.id for waiting in queue)]) == sorted(names)
