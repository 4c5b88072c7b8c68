"""Where jobs run in an allocation: the seed's arithmetic, room for every search, and what is said of what
does not fit.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from nas_hpc.apps.batches import shares
from nas_hpc.launcher.placing import Placing
from nas_hpc.processes.mpi import Checked, MpiProgram
from nas_hpc.records import Attempt, Job, Node, Resources
from nas_hpc.resources import Placement, Pool, Request
from nas_hpc.wire import Ask, Shape, Submit
from tests.launcher.stage import Stage, on_stage, program

SECOND = b"second search"


def allocation(count: int, mode: str = "serial", *, cores: int = 64, packing: int = 1) -> Placing:
    nodes = [Node(f"n{index}", tuple(range(cores))) for index in range(count)]
    reserved = ["n0"] if mode == "serial" and count > 1 else []
    return Placing(Pool(nodes, reserved), mode, packing)


def job(name: str = "j", *, creator: str = "", **need: int) -> Job:
    return Job(name, name, "w", creator=creator, resources=Resources(**need))


def start(floor: Placing, one: Job, *, search: bool = False) -> Placement | None:
    return floor.place(one, floor.request_of(one, search=search), search=search, on_kept=False)


def capacity(floor: Placing, **need: int) -> int:
    return floor.pool.capacity(floor.request_of(job(creator="s", **need), search=False))


def test_a_search_that_shares_its_node_takes_the_gpus_that_it_asks_for() -> None:
    floor = Placing(Pool([Node("n0", (0, 1), gpus=("0", "1", "2"))], []), "serial", 1)
    greedy, modest = job("greedy", gpus_per_rank=4), job("modest", gpus_per_rank=2)
    assert "4 GPUs of a node" in floor.never(greedy, search=True)
    assert not floor.never(modest, search=True)
    placed = start(floor, modest, search=True)
    assert placed is not None
    assert len(placed.gpus[0]) == 2
    assert capacity(floor, gpus_per_rank=1, node_packing_count=4) == 1
    assert start(floor, job("again", gpus_per_rank=2), search=True) is None


# -- the seed's arithmetic --------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("mode", "nodes", "search", "workers", "packing", "evaluators"),
    [
        ("serial", 128, {"node_packing_count": 4}, 4, 1, 507),
        ("serial", 128, {"node_packing_count": 2}, 4, 1, 506),
        ("serial", 128, {"node_packing_count": 1}, 1, 1, 126),
        ("mpi", 128, {}, 1, 1, 127),
        ("mpi", 128, {"num_nodes": 11}, 1, 1, 117),
        ("mpi", 128, {"node_packing_count": 4}, 4, 1, 127),
        ("mpi", 128, {"node_packing_count": 4}, 4, 4, 511),
        ("mpi", 128, {}, 4, 4, 508),
        ("serial", 1, {}, 4, 1, 4),
        ("mpi", 1, {}, 1, 1, 1),
    ],
)
def test_the_arithmetic_of_the_seed(
    mode: str, nodes: int, search: dict[str, int], workers: int, packing: int, evaluators: int
) -> None:
    floor = allocation(nodes, mode, packing=packing)
    placed = start(floor, job("s", **search), search=True)
    assert placed is not None
    assert capacity(floor, node_packing_count=workers) == evaluators


@on_stage(nodes=128)
async def test_a_search_of_a_quarter_of_a_node_has_507_evaluators_beside_it(stage: Stage) -> None:
    search = await stage.search(Shape(node_packing_count=4), node_packing_count=4)
    assert stage.capacity() == 507
    names = [node.name for node in stage.launcher.allocation.nodes]
    assert stage.agent.orders[(search.id, 1)].node == names[1]
    asks = tuple(Ask(q, "m.f", {"x": q}, 1, Shape(node_packing_count=4)) for q in range(1, 521))
    stage.says(Submit(1, asks))
    await stage.until(lambda: len(stage.agent.orders) == 508, "the evaluations' start")
    await stage.settled()
    on = Counter(order.node for key, order in stage.agent.orders.items() if key[0] != search.id)
    assert on == {names[1]: 3} | dict.fromkeys(names[2:], 4)
    assert names[0] not in on, "the master's alone"
    assert len(stage.launcher.dispatcher.queue) == 13


@on_stage(nodes=128)
async def test_a_search_of_half_a_node_has_506_evaluators_beside_it(stage: Stage) -> None:
    await stage.search(Shape(node_packing_count=4), node_packing_count=2)
    assert stage.capacity() == 506


@on_stage(nodes=128, job_mode="mpi")
async def test_a_search_of_a_node_has_127_evaluators_in_mpi_mode(stage: Stage) -> None:
    await stage.search(Shape())
    assert stage.capacity() == 127


@on_stage(nodes=128, job_mode="mpi")
async def test_a_search_of_eleven_nodes_has_117_evaluators_in_mpi_mode(stage: Stage) -> None:
    """As the agents of a PPO search, who have 10 of them each: whose MPI program it is matters elsewhere."""
    mpi = stage.launcher.dispatcher.mpi
    mpi.program = MpiProgram("/usr/bin/mpiexec", "mpich")
    mpi._checked[mpi._interpreter(program(), None)] = Checked(mpi.program, True, 2, "two ranks")
    search = await stage.search(Shape(), num_nodes=11)
    assert stage.capacity() == 117
    assert stage.agent.orders[(search.id, 1)].mpi
    assert shares(stage.capacity(), 11, every=False) == [10] * 11, "7 are unused"
    assert sorted(shares(stage.capacity(), 11, every=True)) == [10] * 4 + [11] * 7, "none is unused"


@on_stage(nodes=4)
async def test_capacity_follows_the_nodes_and_what_they_hold(stage: Stage) -> None:
    await stage.search(Shape(node_packing_count=4), node_packing_count=4)
    assert stage.capacity() == 11
    names = [node.name for node in stage.launcher.allocation.nodes]
    dispatcher = stage.launcher.dispatcher
    dispatcher.placing.pool.set_aside(names[3])
    dispatcher.capacity_changed()
    await stage.until(lambda: stage.capacity() == 7, "the loss to be told")
    dispatcher.placing.pool.bring_back(names[3])
    dispatcher.capacity_changed()
    await stage.until(lambda: stage.capacity() == 11, "the node to be told")
    [beside] = stage.add(program(resources=Resources(node_packing_count=2)))
    stage.wake()
    await stage.until(lambda: stage.capacity() == 9, "a person's job to be told")
    stage.agent.end((beside.id, 1))
    await stage.until(lambda: stage.capacity() == 11, "its end to be told")


# -- room for every search --------------------------------------------------------------------------------
def test_every_search_keeps_room_for_one_of_its_evaluations() -> None:
    floor = allocation(4, "mpi")
    assert start(floor, job("a"), search=True) is not None
    floor.wants("a", Request(2))
    assert start(floor, job("p1")) is not None
    assert start(floor, job("p2")) is None, "2 of 4 nodes are left, and an evaluation asks for 2"
    assert start(floor, job("e", creator="a", num_nodes=2)) is not None


def test_two_searches_of_one_round_do_not_take_each_others_room() -> None:
    floor = allocation(3, "mpi")
    assert start(floor, job("a"), search=True) is not None
    assert start(floor, job("b"), search=True) is None, "one node for two searches' evaluations"


def test_a_search_that_shares_the_only_node_keeps_room_there() -> None:
    floor = allocation(1)
    shared = start(floor, job("a"), search=True)
    assert shared is not None
    assert shared.share == 0
    assert start(floor, job("p")) is None
    assert start(floor, job("q", node_packing_count=2)) is not None
    floor.free(shared)


def test_what_no_longer_fits_for_a_search_holds_nobody_else_up() -> None:
    floor = allocation(4, "mpi")
    first = start(floor, job("p1", num_nodes=2))
    assert start(floor, job("a"), search=True) is not None
    floor.wants("a", Request(2))
    assert capacity(floor, num_nodes=2) == 0
    assert first is not None
    floor.free(first)
    assert start(floor, job("p2")) is not None


def test_a_running_attempt_gets_its_own_place_again() -> None:
    before = allocation(3)
    search, trial = job("s", node_packing_count=2), job("t", creator="s", node_packing_count=4)
    held = [start(before, search, search=True), start(before, trial)]
    after = allocation(3)
    for one, placement, is_search in zip((search, trial), held, (True, False), strict=True):
        assert placement is not None
        attempt = Attempt(one.id, 1, "l", placement.nodes, placement.cores[0], placement.gpus[0])
        assert after.retake(one, attempt, search=is_search) == placement
    assert capacity(after, node_packing_count=4) == capacity(before, node_packing_count=4) == 6


# -- what is refused, with its numbers --------------------------------------------------------------------
@pytest.mark.parametrize(
    ("need", "said"),
    [
        ({"num_nodes": 5}, "it asks for 5 whole nodes; 3 nodes may be used"),
        ({"gpus_per_rank": 1}, "it asks for a node with 1 GPUs; 3 nodes may be used, the best with 0 GPUs"),
        (
            {"ranks_per_node": 64, "threads_per_rank": 2},
            "it has 64 ranks x 2 threads on a node, which are 128, and a node has 64 cores",
        ),
        ({"num_nodes": 2, "ranks_per_node": 65}, "65 ranks x 1 threads on a node, which are 65"),
        ({"node_packing_count": 0}, "its resources make no sense"),
        ({"ranks_per_node": 64, "threads_per_rank": 2, "threads_per_core": 2}, ""),
        ({"threads_per_rank": 500}, ""),
        ({"num_nodes": 3}, ""),
    ],
)
def test_what_never_fits_is_refused_with_its_numbers(need: dict[str, int], said: str) -> None:
    floor = allocation(4)
    verdict = floor.never(job(**need), search=False)
    assert said in verdict
    assert bool(verdict) == bool(said)


def test_an_agents_report_changes_what_is_refused() -> None:
    floor = allocation(2)
    large = job(ranks_per_node=64)
    assert floor.never(large, search=False) == ""
    floor.updated(Node("n1", tuple(range(32)), threads_per_core=1))
    assert "and a node has 32 cores" in floor.never(large, search=False)
    floor.updated(Node("n1", tuple(range(32)), threads_per_core=2))
    assert floor.never(large, search=False) == ""


def test_what_nobody_has_told_yet_refuses_nothing() -> None:
    nodes = [Node(f"n{index}", (0, 1)) for index in range(3)]
    floor = Placing(Pool(nodes, ["n0"], guessed=["n1", "n2"]), "mpi")
    pair, gpu = job(num_nodes=2, ranks_per_node=64), job(gpus_per_rank=4)
    assert floor.never(pair, search=False) == ""
    assert floor.never(gpu, search=False).endswith(
        "the best with 0 GPUs as far as is known: give --gpus-per-node"
    )
    floor.agents = True
    assert floor.updated(Node("n1", tuple(range(64)))) == (True, False), "the other may have the GPUs"
    assert floor.updated(Node("n2", tuple(range(32)))) == (False, True)
    assert "and a node has 64 cores" in floor.never(pair, search=False)
    assert "it asks for a node with 4 GPUs" in floor.never(gpu, search=False)


@on_stage(nodes=3)
async def test_a_job_that_no_longer_fits_by_what_agents_tell_is_refused_and_looked_up_again_when_it_does(
    stage: Stage,
) -> None:
    dispatcher, nodes = stage.launcher.dispatcher, stage.launcher.allocation.nodes
    for node in nodes:
        dispatcher.placing.pool.set_aside(node.name)
    [job] = stage.add(program(resources=Resources(gpus_per_rank=1)))
    dispatcher.learned(replace(nodes[1], gpus=("0",)), real=True)
    stage.wake()
    await stage.settled()
    assert job.id in dispatcher.queue
    dispatcher.learned(nodes[1], real=True)
    assert job.id in dispatcher.never
    dispatcher.learned(replace(nodes[2], gpus=("0", "1")), real=True)
    await stage.until(lambda: job.id in dispatcher.queue, "the job to be looked up again")
    assert job.id not in dispatcher.never
    assert stage.launcher.allocation.pins(nodes[2].name)
    assert not stage.launcher.allocation.pins(nodes[0].name), "virtual cores"
    assert stage.launcher.allocation.common["NAS_HPC_GPUS_PER_NODE"] == "0"


@pytest.mark.parametrize(
    ("mode", "nodes", "packing", "need", "evaluator"),
    [
        ("mpi", 1, 1, {}, True),
        ("mpi", 2, 1, {}, True),
        ("mpi", 2, 1, {"num_nodes": 2}, False),
        ("serial", 2, 1, {}, False),
        ("serial", 2, 1, {"node_packing_count": 2}, True),
        ("mpi", 2, 4, {"node_packing_count": 4}, True),
    ],
)
def test_a_search_that_would_have_no_evaluator_is_refused_before_it_starts(
    mode: str, nodes: int, packing: int, need: dict[str, int], evaluator: bool
) -> None:
    said = allocation(nodes, mode, packing=packing).never(job(**need), search=True)
    assert said == "" if evaluator else "leaves no evaluator" in said


# -- nothing can move -------------------------------------------------------------------------------------
@on_stage(nodes=2)
async def test_searches_that_hold_what_their_evaluations_need_are_named(stage: Stage) -> None:
    """One node is the master's; of the other the searches have a half and a quarter, and each of their
    evaluations asks for a whole one."""
    first = await stage.search(Shape(), node_packing_count=2)
    second = await stage.search(Shape(), SECOND, node_packing_count=4)
    dispatcher = stage.launcher.dispatcher
    notes: list[str] = []
    dispatcher._hooks = replace(dispatcher._hooks, note=notes.append)
    assert not dispatcher.deadlock, "they have asked for nothing yet"
    stage.says(Submit(1, (Ask(1, "m.f", {"x": 1}, 1, Shape()),)))
    await stage.settled()
    assert not dispatcher.deadlock, "the second search may end"
    stage.says(Submit(2, (Ask(1, "m.f", {"x": 1}, 1, Shape()),)), SECOND)
    await stage.until(lambda: dispatcher.deadlock, "the deadlock to be seen")
    waiting = next(iter(dispatcher.queue))
    for said in (dispatcher.deadlock, dispatcher.why_not(waiting), *notes):
        assert "nothing can move: searches " in said
        assert (
            f"({first.id[:8]}) and s ({second.id[:8]}) hold {stage.launcher.allocation.nodes[1].name}" in said
        )
        assert "asks for a node, which is not left" in said
    assert len(notes) == 1, "said once"
    stage.agent.end((second.id, 1))
    alone = f"search s ({first.id[:8]}) holds"
    await stage.until(lambda: alone in dispatcher.deadlock, "the second search's end")
    stage.agent.end((first.id, 1))
    await stage.until(lambda: not dispatcher.deadlock, "the first search's end")


@on_stage(nodes=3)
async def test_a_node_that_may_come_back_is_no_deadlock(stage: Stage) -> None:
    await stage.search(Shape(), node_packing_count=2)
    dispatcher, nodes = stage.launcher.dispatcher, stage.launcher.allocation.nodes
    dispatcher.placing.pool.set_aside(nodes[2].name)
    dispatcher.capacity_changed()
    stage.says(Submit(1, (Ask(1, "m.f", {"x": 1}, 1, Shape()),)))
    await stage.settled()
    assert not dispatcher.deadlock
    [waiting] = dispatcher.queue
    assert f"nothing is placed on {nodes[2].name} for the time being" in dispatcher.why_not(waiting)


# -- why --------------------------------------------------------------------------------------------------
@on_stage(nodes=3)
async def test_why_says_for_whom_nodes_are_kept_and_for_what_room(stage: Stage) -> None:
    dispatcher, nodes = stage.launcher.dispatcher, stage.launcher.allocation.nodes
    half = Resources(node_packing_count=2)
    jobs = stage.add(*[program(resources=half) for _ in range(4)])
    stage.wake()
    await stage.until(lambda: len(stage.agent.orders) == 4, "all that fit")
    [large] = stage.add(program(resources=Resources(node_packing_count=1)))
    [small] = stage.add(program(resources=half))
    stage.wake()
    await stage.settled()
    assert "waits for a node; 4 jobs are running and 1 others wait" in dispatcher.why_not(large)
    stage.agent.end((jobs[0].id, 1))
    await stage.until(lambda: (small.id, 1) in stage.agent.orders, "the small one to pass the large one")
    await stage.settled()
    assert dispatcher.queue.next is not None
    assert dispatcher.queue.next.id == large.id
    kept = dispatcher.placing.pool.held
    assert set(kept) < {node.name for node in nodes[1:]}
    assert f"it is the next: {kept[0]} is kept free for it" in dispatcher.why_not(large)
    [other] = stage.add(program(resources=half))
    stage.wake()
    for key in [key for key, order in stage.agent.orders.items() if order.node in kept]:
        stage.agent.end(key)
    await stage.until(lambda: (large.id, 1) in stage.agent.orders, "the large one")
    assert (other.id, 1) not in stage.agent.orders


@on_stage(nodes=2)
async def test_why_says_that_room_is_kept_for_evaluations(stage: Stage) -> None:
    await stage.search(Shape(node_packing_count=2), node_packing_count=2)
    [greedy] = stage.add(program(resources=Resources(node_packing_count=2)))
    stage.wake()
    await stage.settled()
    assert (greedy.id, 1) not in stage.agent.orders
    assert "every running search keeps room for an evaluation" in stage.launcher.dispatcher.why_not(greedy)
