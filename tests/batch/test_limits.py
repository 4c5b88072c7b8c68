"""Requests are checked against the queues of the machine: what passes a limit is told with that limit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nas_hpc.batch.limits import check, check_packing, step_of
from nas_hpc.batch.machine import Machine, Queue, Step
from nas_hpc.batch.machine_file import read_machine
from nas_hpc.batch.machines import PACKAGED
from nas_hpc.batch.system import QueueState, Request
from nas_hpc.config import load_settings
from nas_hpc.errors import WrongCall
from nas_hpc.records import BatchJob
from nas_hpc.states import BatchState

MACHINES = {path.stem: read_machine(path) for path in PACKAGED.glob("*.toml")}
THETA = MACHINES["theta"]


def request(nodes: int = 8, minutes: int = 60, queue: str = "debug-cache-quad", **more: Any) -> Request:
    values = {"project": "datascience", "directory": Path("/s"), "output": Path("/s/o"), **more}
    return Request(name="test", nodes=nodes, walltime_minutes=minutes, queue=queue, **values)


def job(number: int, state: BatchState = BatchState.QUEUED, **more: Any) -> BatchJob:
    values = {"queue": "debug-cache-quad", "machine": "theta", **more}
    return BatchJob(
        key=f"test-{number}",
        id=str(number),
        system="cobalt",
        script="/s/x.sh",
        output="/s/x",
        nodes=1,
        walltime_minutes=30,
        job_mode="mpi",
        state=state,
        **values,
    )


# -- what is allowed ---------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("machine", "nodes", "minutes", "queue"),
    [
        ("theta", 128, 180, "default"),
        ("theta", 128, 30, "default"),
        ("theta", 255, 180, "default"),
        ("theta", 256, 360, "default"),
        ("theta", 383, 360, "default"),
        ("theta", 384, 540, "default"),
        ("theta", 640, 720, "default"),
        ("theta", 802, 1440, "default"),
        ("theta", 4392, 1440, "default"),
        ("theta", 8, 60, "debug-cache-quad"),
        ("theta", 1, 1, "debug-flat-quad"),
        ("theta", 128, 180, ""),
        ("polaris", 10, 180, "prod"),
        ("polaris", 496, 1440, "prod"),
        ("aurora", 1, 360, "prod"),
        ("aurora", 9000, 1440, "prod"),
        ("perlmutter", 3000, 2880, "regular"),
        ("perlmutter", 8, 30, "debug"),
        ("slurm", 100_000, 100_000, "anything"),
        ("slurm", 1, 1, ""),
        ("local", 1, 1, "anything"),
    ],
)
def test_what_a_queue_allows_passes_without_a_note(
    machine: str, nodes: int, minutes: int, queue: str
) -> None:
    assert check(MACHINES[machine], request(nodes, minutes, queue), live=None, queued=[]) == []


# -- what is not -------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("machine", "wanted", "parts"),
    [
        ("theta", request(127, 60, "default"), ["127 nodes", "queue default of theta takes 128 at least"]),
        ("theta", request(1, 60, "default"), ["1 node:", "takes 128 at least"]),
        ("theta", request(4393, 60, "default"), ["4393 nodes", "takes 4392 at most"]),
        (
            "theta",
            request(256, 400, "default"),
            ["400 min (6 h 40 min)", "gives 256 nodes 360 min (6 h) at most"],
        ),
        ("theta", request(255, 181, "default"), ["181 min (3 h 1 min)", "255 nodes 180 min (3 h) at most"]),
        ("theta", request(128, 29, "default"), ["29 min", "gives 128 nodes 30 min at least"]),
        ("theta", request(802, 1441, "default"), ["1441 min", "802 nodes 1440 min (24 h) at most"]),
        ("theta", request(9), ["9 nodes", "queue debug-cache-quad of theta takes 8 at most"]),
        (
            "theta",
            request(8, 61),
            ["61 min (1 h 1 min)", "debug-cache-quad of theta gives 60 min (1 h) at most"],
        ),
        ("theta", request(127, 60, ""), ["127 nodes", "queue default"]),
        ("theta", request(project=""), ["no project", "theta", "-A PROJECT"]),
        ("polaris", request(9, 60, "prod"), ["9 nodes", "takes 10 at least"]),
        ("polaris", request(24, 181, "prod"), ["181 min", "gives 24 nodes 180 min (3 h) at most"]),
        ("polaris", request(1, 4, "debug"), ["4 min", "gives 5 min at least"]),
        ("aurora", request(1, 60, "debug-scaling"), ["1 node:", "takes 2 at least"]),
        ("perlmutter", request(9, 30, "debug"), ["9 nodes", "takes 8 at most"]),
        ("perlmutter", request(8, 31, "debug"), ["31 min", "gives 30 min at most"]),
    ],
)
def test_what_a_queue_does_not_allow_is_told_with_the_value_and_the_limit(
    machine: str, wanted: Request, parts: list[str]
) -> None:
    with pytest.raises(WrongCall) as caught:
        check(MACHINES[machine], wanted, live=None, queued=[])
    assert all(part in str(caught.value) for part in parts), str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("machine", ["theta", "slurm", "local"])
@pytest.mark.parametrize(
    ("wanted", "part"),
    [
        (request(0), "0 nodes"),
        (request(-1), "-1 nodes"),
        (request(minutes=0), "a walltime of 0 min: give 1 at least (-t, in minutes); seconds are dropped"),
        (request(minutes=-5), "a walltime of -5 min"),
    ],
)
def test_what_no_batch_system_can_be_asked_is_refused_everywhere(
    machine: str, wanted: Request, part: str
) -> None:
    with pytest.raises(WrongCall) as caught:
        check(MACHINES[machine], wanted, live=None, queued=[])
    assert part in str(caught.value)


# -- what the batch system tells ---------------------------------------------------------------------
def test_a_reservation_that_the_batch_system_alone_knows_is_accepted() -> None:
    live = [QueueState("default"), QueueState("R.mine")]
    assert check(THETA, request(300, 5000, "R.mine"), live=live, queued=[]) == []


def test_limits_of_such_a_queue_hold_where_they_are_told() -> None:
    live = [QueueState("R.mine", min_nodes=2, max_nodes=16, max_minutes=90)]
    assert check(THETA, request(16, 90, "R.mine"), live=live, queued=[]) == []
    for wanted, limit in (
        (request(1, 90, "R.mine"), "2 at least"),
        (request(17, 90, "R.mine"), "16 at most"),
        (request(16, 91, "R.mine"), "90 min (1 h 30 min) at most"),
    ):
        with pytest.raises(WrongCall, match="R.mine of theta") as caught:
            check(THETA, wanted, live=live, queued=[])
        assert limit in str(caught.value)


def test_a_queue_that_nobody_knows_is_refused_with_those_there_are() -> None:
    live = [QueueState("default"), QueueState("R.mine")]
    with pytest.raises(WrongCall) as caught:
        check(THETA, request(queue="nosuch"), live=live, queued=[])
    message = str(caught.value)
    assert "queue 'nosuch'" in message
    assert "cobalt (which has default, R.mine)" in message
    assert "default, debug-cache-quad, debug-flat-quad" in message
    with pytest.raises(WrongCall, match="without queues"):
        check(MACHINES["slurm"], request(queue="nosuch"), live=live, queued=[])


@pytest.mark.parametrize("live", [None, []])
def test_a_silent_batch_system_refuses_nothing_but_is_noted(live: list[QueueState] | None) -> None:
    (note,) = check(THETA, request(300, 5000, "R.mine"), live=live, queued=[])
    assert "R.mine" in note
    assert "limits are not checked" in note
    assert check(MACHINES["slurm"], request(queue="any"), live=live, queued=[]) == []


def test_what_the_batch_system_tells_goes_before_the_file() -> None:
    live = [QueueState("debug-cache-quad", min_nodes=2, max_nodes=16, max_minutes=120)]
    assert check(THETA, request(16, 120), live=live, queued=[]) == []
    with pytest.raises(WrongCall, match="1 node: .* 2 at least"):
        check(THETA, request(1, 60), live=live, queued=[])


def test_one_limit_for_the_whole_queue_does_not_undo_those_by_number_of_nodes() -> None:
    live = [QueueState("default", max_minutes=1440)]
    with pytest.raises(WrongCall, match=r"gives 256 nodes 360 min \(6 h\) at most"):
        check(THETA, request(256, 400, "default"), live=live, queued=[])
    live = [QueueState("default", max_minutes=300)]
    with pytest.raises(WrongCall, match=r"gives 300 min \(5 h\) at most"):
        check(THETA, request(256, 330, "default"), live=live, queued=[])


def test_closed_queues_and_those_that_are_gone_are_noted() -> None:
    (note,) = check(THETA, request(), live=[QueueState("debug-cache-quad", open=False)], queued=[])
    assert "takes no batch jobs at the moment" in note
    (note,) = check(THETA, request(), live=[QueueState("other")], queued=[])
    assert "cobalt has none of that name: other" in note


def test_a_qos_is_not_looked_for_among_partitions() -> None:
    live = [QueueState("gpu_ss11")]
    assert check(MACHINES["perlmutter"], request(4, 30, "debug"), live=live, queued=[]) == []
    assert len(check(MACHINES["perlmutter"], request(4, 30, "premium"), live=live, queued=[])) == 1


# -- how many may wait -------------------------------------------------------------------------------
def test_one_batch_job_more_than_may_wait_is_refused_with_those_that_do() -> None:
    for state in (BatchState.SUBMITTING, BatchState.QUEUED, BatchState.HELD):
        with pytest.raises(WrongCall) as caught:
            check(THETA, request(), live=None, queued=[job(7, state)])
        assert "1 of this site's batch jobs waiting in queue debug-cache-quad of theta (7)" in str(
            caught.value
        )
        assert "a user may have 1" in str(caught.value)


@pytest.mark.parametrize(
    "other",
    [
        job(7, BatchState.RUNNING),
        job(7, BatchState.ENDED),
        job(7, queue="debug-flat-quad"),
        job(7, queue=""),
        job(7, machine="polaris"),
    ],
)
def test_batch_jobs_that_do_not_wait_there_do_not_count(other: BatchJob) -> None:
    assert check(THETA, request(), live=None, queued=[other]) == []


def test_a_batch_job_of_the_default_queue_counts_there_without_its_name() -> None:
    waiting = [job(number, queue="") for number in range(20)]
    with pytest.raises(
        WrongCall, match=r"20 of this site's .*\(0, 1, 2, 3, 4, \.\.\.\), and a user may have 20"
    ):
        check(THETA, request(128, 60, "default"), live=None, queued=waiting)
    assert check(THETA, request(128, 60, "default"), live=None, queued=waiting[:19]) == []


# -- limits by number of nodes -----------------------------------------------------------------------
_STEPS = st.lists(
    st.tuples(st.integers(1, 5000), st.integers(1, 3000)),
    min_size=1,
    max_size=6,
    unique_by=lambda step: step[0],
)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(_STEPS, st.integers(1, 6000), st.integers(1, 4000))
def test_the_last_step_that_is_not_above_the_nodes_decides(
    steps: list[tuple[int, int]], nodes: int, minutes: int
) -> None:
    ordered = sorted(steps)
    queue = Queue("q", steps=tuple(Step(count, most) for count, most in ordered))
    machine = Machine("m", "pbs", queues=(queue,))
    below = [most for count, most in ordered if count <= nodes]
    step = step_of(queue, nodes)
    assert (step.max_minutes if step else None) == (below[-1] if below else None)
    wanted = request(nodes, minutes, "q")
    if not below or minutes <= below[-1]:
        assert check(machine, wanted, live=None, queued=[]) == []
    else:
        with pytest.raises(WrongCall, match=rf"gives {nodes} nodes? {below[-1]} min"):
            check(machine, wanted, live=None, queued=[])


# -- several evaluations on a node -------------------------------------------------------------------
def test_several_evaluations_on_a_node_need_the_serial_mode_or_the_setting() -> None:
    strict = load_settings({}, machine_values={"mpi_mode_packing": 1}, machine_file="machine theta (/t.toml)")
    check_packing(strict, "serial", 4)
    check_packing(strict, "mpi", 1)
    with pytest.raises(WrongCall) as caught:
        check_packing(strict, "mpi", 4)
    message = str(caught.value)
    assert "DEEPHYPER_WORKERS_PER_NODE=4 with job mode mpi: 1 job at most" in message
    assert "machine theta (/t.toml)" in message
    assert "-j serial" in message
    roomy = load_settings({"NAS_HPC_MPI_MODE_PACKING": "4"})
    check_packing(roomy, "mpi", 4)
    with pytest.raises(WrongCall, match="=5 with job mode mpi: 4 jobs at most"):
        check_packing(roomy, "mpi", 5)
