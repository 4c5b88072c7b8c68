"""What Balsam's records of evaluations mean, what evaluations are as its jobs, and how many run at once."""

from __future__ import annotations

import json
import uuid
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nas_hpc import wire
from nas_hpc.errors import ConfigError, PlacementError, ProtocolError
from nas_hpc.integrations.balsam import children
from nas_hpc.integrations.balsam.jobs import Owner, job_of
from nas_hpc.integrations.balsam.workers import allocation, shape_under, workers
from nas_hpc.states import Outcome
from nas_hpc.wire import Shape

OWNER = Owner(str(uuid.uuid4()), "WF", "serial", {"A": "/bin/a"})
NOTHING = {"objective": None, "tail": "", "source": "no result"}
OK = {"outcome": "ok", "objective": 4.0, "start": 11.0, "end": 12.5, "metadata": {"m": 1}}


def item(states: str, result: Any = None, state: str = "", **messages: str) -> dict[str, Any]:
    """A child whose history is ``states``, one a second from 10 on."""
    history = [[10.0 + place, name, messages.get(name, "")] for place, name in enumerate(states.split())]
    return {"seq": 3, "state": state or history[-1][1], "history": history, "result": result}


NORMAL = "CREATED PREPROCESSED RUNNING RUN_DONE"


@pytest.mark.parametrize(
    ("found", "outcome", "objective", "reason"),
    [
        (item(NORMAL, OK), "ok", 4.0, ""),
        (item(NORMAL + " POSTPROCESSED JOB_FINISHED", {"objective": 2, "source": "data"}), "ok", 2.0, ""),
        (
            item(NORMAL, {"objective": None, "source": "no result"}),
            "invalid_result",
            None,
            "no line with DH-",
        ),
        (item(NORMAL, {"objective": None, "tail": "ends with 'x'"}), "invalid_result", None, "ends with 'x'"),
        (
            item("RUNNING RUN_ERROR", {"outcome": "timeout", "objective": None, "reason": "ran longer"}),
            "timeout",
            None,
            "ran longer",
        ),
        (item("RUNNING RUN_ERROR FAILED", OK), "ok", 4.0, ""),
        (
            item(
                "RUNNING RUN_ERROR",
                {"objective": None, "tail": "a\n  b: c\n\n"},
                RUN_ERROR="nonzero return 2: x",
            ),
            "error",
            None,
            "exit code 2: b: c",
        ),
        (
            item("RUNNING RUN_ERROR", NOTHING, RUN_ERROR="nonzero return -11:"),
            "error",
            None,
            "killed by signal 11",
        ),
        (item("RUNNING RUN_ERROR", NOTHING, RUN_ERROR="Traceback\n x"), "error", None, "x"),
        (item("CREATED FAILED", NOTHING, FAILED="no such application"), "error", None, "no such application"),
        (
            item("RUNNING USER_KILLED", None, USER_KILLED=children.CANCELLED),
            "killed",
            None,
            children.CANCELLED,
        ),
        (item("RUNNING USER_KILLED RUN_ERROR FAILED", OK), "killed", None, "killed"),
        (
            item("RUNNING USER_KILLED", None, USER_KILLED=f"{children.TIMEOUT}ran longer than 3 s"),
            "timeout",
            None,
            "ran longer than 3 s",
        ),
    ],
)
def test_an_end_is_told_with_outcome_objective_and_reason(
    found: dict[str, Any], outcome: str, objective: float | None, reason: str
) -> None:
    verdict = children.verdict(found)
    assert verdict is not None
    assert (verdict.outcome, verdict.objective) == (Outcome(outcome), objective)
    assert verdict.reason.startswith(reason)
    assert "\n" not in verdict.reason


@pytest.mark.parametrize(
    "states",
    [
        "CREATED",
        "CREATED PREPROCESSED RUNNING",
        "RUNNING RUN_TIMEOUT",
        "RUNNING RUN_TIMEOUT RESTART_READY RUNNING",
        "RUNNING RUN_ERROR FAILED RESTART_READY",
        "RUNNING USER_KILLED RESTART_READY RUNNING",
    ],
)
def test_what_waits_or_runs_again_has_not_ended(states: str) -> None:
    assert children.verdict(item(states, OK)) is None


def test_an_end_whose_result_may_come_late_is_waited_for() -> None:
    assert children.verdict(item(NORMAL, None)) is None
    assert children.verdict(item("RUNNING USER_KILLED", None)) is not None


def test_one_that_a_second_launcher_reverted_without_a_line_has_not_ended() -> None:
    found = item("CREATED RUNNING", None, state="RESTART_READY")
    assert children.verdict(found) is None
    assert children.running_since(found) == 0.0


def test_times_are_the_trial_s_own_and_else_balsam_s() -> None:
    verdict = children.verdict(item(NORMAL, OK))
    assert verdict is not None
    assert (verdict.start, verdict.end, verdict.attempt, verdict.stamp) == (11.0, 12.5, 1, 13.0)
    verdict = children.verdict(item("RUNNING RUN_TIMEOUT RESTART_READY RUNNING RUN_DONE", {"objective": 1.0}))
    assert verdict is not None
    assert (verdict.start, verdict.end, verdict.attempt) == (13.0, 14.0, 2)


def test_the_end_of_a_launcher_is_no_failure_of_its_evaluations() -> None:
    stopped = item("RUNNING RUN_ERROR", NOTHING, RUN_ERROR="nonzero return -15: ")
    assert children.interrupted(stopped)
    assert (children.failures(stopped), children.interruptions(stopped)) == (0, 1)
    own = item("RUNNING RUN_ERROR", NOTHING, RUN_ERROR="nonzero return 3: x")
    assert not children.interrupted(own)
    assert (children.failures(own), children.interruptions(own)) == (1, 0)


@given(
    st.dictionaries(
        st.text(), st.one_of(st.integers(-(2**62), 2**62), st.floats(allow_nan=False), st.text(), st.none())
    )
)
def test_a_configuration_comes_back_as_it_was_asked(config: dict[str, Any]) -> None:
    ask = wire.Ask(seq=2, run="m.f", config=config, seed=1, data={"told": 3}, timeout_s=2.5, retries=1)
    job = json.loads(json.dumps(job_of(ask, OWNER)))
    asked = children.asked_of(job)
    assert (asked.config, asked.data) == (config, {"told": 3})
    assert list(asked.config) == list(config), "their order, too"
    assert (asked.timeout_s, asked.retries, asked.cached, asked.own_limit) == (2.5, 1, False, True)
    assert json.loads(job["files"]["job.json"])["config"] == config


@pytest.mark.parametrize("data", [{}, {"nas_hpc": {"ask": "x"}}, {"nas_hpc": {"ask": '{"later": 1}'}}, None])
def test_data_that_hold_no_evaluation_are_named_in_one_line(data: Any) -> None:
    with pytest.raises(ProtocolError, match="task3") as refused:
        children.asked_of({"seq": 3, "data": data})
    assert "\n" not in refused.value.message


def test_the_same_evaluation_is_the_same_job() -> None:
    one, two = (job_of(wire.Ask(seq=5, run="m.f", config={}, seed=1), OWNER) for _ in range(2))
    assert one["id"] == two["id"] == json.loads(one["files"]["job.json"])["id"]
    assert (one["name"], one["workflow"], one["application"]) == ("task5", "WF", "nas_hpc_trial")


def test_a_hit_of_the_cache_is_a_finished_job_with_the_result() -> None:
    done = wire.Done(1, 1, {}, {}, "ok", 4.0, {"m": 1}, "", 1.0, 2.0, 1, 0.5)
    job = job_of(wire.Ask(seq=2, run="m.f", config={"x": 1}, seed=1, cached_of=1), OWNER, done)
    assert job["state"] == "JOB_FINISHED"
    verdict = children.verdict({**item("CREATED JOB_FINISHED", json.loads(job["files"]["result.json"]))})
    assert verdict is not None
    assert (verdict.objective, verdict.metadata, verdict.attempt) == (4.0, {"m": 1}, 0)
    assert children.asked_of(job).cached


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        ({"failure": "Refused: no\nmachine"}, "Refused: no machine"),
        ({"application": "B"}, "the application 'B' is not in the Balsam database"),
        (
            {"application": "A", "args": "--name 'a  b'"},
            "would reach its program as 'a b': Balsam changes blanks",
        ),
        ({"application": "A", "args": "~/x"}, "the argument '~/x' would reach"),
        ({"application": "A", "environ": {"P": "a:b"}}, "P='a:b' has a colon"),
        ({"argv": ("p",), "shape": Shape(num_nodes=2)}, "2 ranks need mpi mode"),
    ],
)
def test_what_balsam_cannot_run_is_a_failed_job_with_the_reason(asked: dict[str, Any], reason: str) -> None:
    job = job_of(wire.Ask(**{"seq": 2, "run": "m.f", "config": {}, "seed": 1, **asked}), OWNER)
    assert job["state"] == "FAILED"
    result = json.loads(job["files"]["result.json"])
    assert (result["outcome"], result["objective"]) == ("error", None)
    assert reason in result["reason"]
    assert "\n" not in result["reason"]


def test_a_job_specification_s_application_is_the_job_s() -> None:
    ask = wire.Ask(
        seq=2,
        run="m.f",
        config={},
        seed=1,
        application="A",
        args="--lr 0.1 'a b'",
        environ={"E": "1"},
        shape=Shape(threads_per_rank=4, node_packing_count=2),
        wall_time_minutes=2.5,
        job_data={"mine": 1},
    )
    job = job_of(ask, OWNER)
    assert (job["application"], job["args"], job["environ"]) == ("A", "--lr 0.1 'a b'", {"E": "1"})
    assert (job["threads_per_rank"], job["node_packing_count"], job["wall_time_minutes"]) == (4, 2, 3)
    assert job["data"]["mine"] == 1
    assert "state" not in job
    assert not children.asked_of(job).own_limit


@pytest.mark.parametrize(
    ("mode", "nodes", "search", "shape", "count"),
    [
        ("serial", 1, {"node_packing_count": 4}, Shape(node_packing_count=4), 3),
        ("serial", 1, {"node_packing_count": 2}, Shape(node_packing_count=4), 2),
        ("serial", 1, {"node_packing_count": 64}, Shape(node_packing_count=4), 3),
        ("serial", 128, {"node_packing_count": 1}, Shape(node_packing_count=1), 126),
        ("serial", 128, {"node_packing_count": 4}, Shape(node_packing_count=4), 507),
        ("mpi", 128, {"num_nodes": 1}, Shape(), 127),
        ("mpi", 128, {"num_nodes": 11}, Shape(), 117),
        ("mpi", 128, {"num_nodes": 1}, Shape(num_nodes=4, ranks_per_node=2), 31),
        ("mpi", 2, {}, Shape(node_packing_count=8), 1),
    ],
)
def test_workers_follow_the_formulas(
    mode: str, nodes: int, search: dict[str, int], shape: Shape, count: int
) -> None:
    here = allocation({"BALSAM_LAUNCHER_NODES": str(nodes), "BALSAM_JOB_MODE": mode}, search)
    assert workers(shape, here) == count


@pytest.mark.parametrize(
    ("mode", "nodes", "search", "shape", "said"),
    [
        ("mpi", 1, {}, Shape(), "1 node in mpi mode, the search takes 1 and each evaluation 1"),
        ("mpi", 4, {}, Shape(num_nodes=4), "give the launcher 5 nodes"),
        ("mpi", 4, {"num_nodes": 4}, Shape(), "the search takes 4"),
        ("serial", 1, {}, Shape(node_packing_count=4), "takes 1/1 of one: no evaluation could run"),
        ("serial", 1, {"node_packing_count": 4}, Shape(), "a node is for 1 evaluations"),
        ("serial", 4, {}, Shape(ranks_per_node=2), "1 x 2 ranks"),
    ],
)
def test_an_allocation_in_which_none_could_run_is_refused_with_the_numbers(
    mode: str, nodes: int, search: dict[str, int], shape: Shape, said: str
) -> None:
    here = allocation({"BALSAM_LAUNCHER_NODES": str(nodes), "BALSAM_JOB_MODE": mode}, search)
    with pytest.raises(PlacementError, match=said) as refused:
        workers(shape, here)
    assert "\n" not in refused.value.message


def test_without_a_number_of_evaluations_per_node_the_search_s_own_counts() -> None:
    environ = {"BALSAM_LAUNCHER_NODES": "1", "BALSAM_JOB_MODE": "serial"}
    here = allocation(environ, {"node_packing_count": 4})
    assert shape_under(Shape(node_packing_count=64), here, environ).node_packing_count == 4
    given = {**environ, "DEEPHYPER_WORKERS_PER_NODE": "8"}
    assert shape_under(Shape(node_packing_count=8), here, given).node_packing_count == 8
    mpi = allocation({**environ, "BALSAM_JOB_MODE": "mpi"}, {})
    assert shape_under(Shape(node_packing_count=8), mpi, given).node_packing_count == 1


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        ({}, "BALSAM_LAUNCHER_NODES=''"),
        ({"BALSAM_LAUNCHER_NODES": "0", "BALSAM_JOB_MODE": "mpi"}, "BALSAM_LAUNCHER_NODES='0'"),
        ({"BALSAM_LAUNCHER_NODES": "2", "BALSAM_JOB_MODE": "x"}, "BALSAM_JOB_MODE='x'"),
    ],
)
def test_an_environment_that_no_launcher_made_is_refused_with_its_value(
    environ: dict[str, str], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        allocation(environ, {})
