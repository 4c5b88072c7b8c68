"""What follows an attempt's end, and what is started before the allocation's."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nas_hpc.launcher import policy
from nas_hpc.records import App, Attempt, Job, Resources, Result
from nas_hpc.states import FINAL, RUNNABLE, Actor, Outcome, State, may_follow

attempts = st.lists(
    st.builds(
        lambda outcome, reason: Attempt("j", 1, "l", result=Result(outcome, reason=reason)),
        st.sampled_from(Outcome),
        st.sampled_from(["", policy.LAUNCHER_GONE, "its keeper died"]),
    ),
    max_size=8,
)


def past(*outcomes: Outcome, reason: str = "") -> list[Attempt]:
    return [Attempt("j", n, "l", result=Result(o, reason=reason)) for n, o in enumerate(outcomes, 1)]


@given(st.sampled_from(Outcome), attempts, st.integers(0, 5))
def test_every_end_leads_by_allowed_steps_to_a_final_or_runnable_state(
    outcome: Outcome, earlier: list[Attempt], retries: int
) -> None:
    path = (State.RUNNING, *policy.follow(outcome, earlier, retries=retries, lost_limit=3))
    for old, new in zip(path, path[1:], strict=False):
        assert may_follow(old, new, Actor.LAUNCHER)
    assert path[-1] in FINAL | RUNNABLE


def test_an_error_is_retried_exactly_as_often_as_asked() -> None:
    tries = 0
    while (
        policy.follow(Outcome.ERROR, past(*[Outcome.ERROR] * tries), retries=2, lost_limit=3)[-1] in RUNNABLE
    ):
        tries += 1
    assert tries == 2


@pytest.mark.parametrize("free", [Outcome.WALLTIME, Outcome.LOST, Outcome.START_FAILED, Outcome.KILLED])
def test_what_is_not_the_programs_fault_costs_no_retry(free: Outcome) -> None:
    assert policy.follow(Outcome.ERROR, past(free, free), retries=1, lost_limit=3)[-1] is State.RESTART_READY


def test_the_third_loss_is_final_but_a_launchers_death_never_counts() -> None:
    died = past(Outcome.LOST, Outcome.LOST, reason="its keeper died")
    gone = past(*[Outcome.LOST] * 20, reason=policy.LAUNCHER_GONE)
    assert policy.follow(Outcome.LOST, died, retries=0, lost_limit=3) == (State.FAILED,)
    assert policy.follow(Outcome.LOST, gone, retries=0, lost_limit=3) == (State.RESTART_READY,)
    going = policy.follow(Outcome.LOST, died, retries=0, lost_limit=3, got_on=True)
    assert going == (State.RESTART_READY,), "a search that gets on goes on"
    reason = policy.LAUNCHER_GONE
    assert policy.follow(Outcome.LOST, died, retries=0, lost_limit=3, reason=reason) == (State.RESTART_READY,)


@pytest.mark.parametrize(
    ("code", "expected"), [(-9, Outcome.LOST), (143, Outcome.LOST), (-11, Outcome.ERROR), (1, Outcome.ERROR)]
)
def test_a_search_that_a_stranger_killed_goes_on_and_one_that_crashed_does_not(
    code: int, expected: Outcome
) -> None:
    result = Result(Outcome.ERROR, return_code=code)
    assert policy.effective_outcome(result, restartable=True) is expected
    assert policy.effective_outcome(result, restartable=False) is Outcome.ERROR


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        ("exit code 9: Killed (signal 9)", Outcome.LOST),
        ("exit code 1: process rank 1 with PID 7 on node x exited on signal 15 (Terminated)", Outcome.LOST),
        ("exit code 139: Segmentation fault (signal 11)", Outcome.ERROR),
        ("exit code 2", Outcome.ERROR),
    ],
)
def test_a_search_of_several_ranks_goes_on_when_a_stranger_killed_one(reason: str, expected: Outcome) -> None:
    result = Result(Outcome.ERROR, return_code=9, reason=reason)
    assert policy.effective_outcome(result, restartable=True) is expected
    assert policy.effective_outcome(result, restartable=False) is Outcome.ERROR


def test_what_ended_by_a_term_from_outside_is_lost_whatever_it_was() -> None:
    """Batch systems end jobs so, all their processes at once."""
    for restartable in (True, False):
        ended = Result(Outcome.ERROR, return_code=-15)
        assert policy.effective_outcome(ended, restartable=restartable) is Outcome.LOST
        told = Result(Outcome.TIMEOUT, return_code=-15)
        assert policy.effective_outcome(told, restartable=restartable) is Outcome.TIMEOUT


def test_a_job_is_not_started_when_its_own_limit_or_the_usual_time_passes_the_end() -> None:
    limited = Job("a", "a", "w", resources=Resources(timeout_s=60))
    unknown = Job("b", "b", "w")
    usual = [10.0] * 19 + [50.0]
    assert not policy.may_start(limited, [], 59, restartable=False)
    assert policy.may_start(limited, [], 61, restartable=False)
    assert policy.may_start(unknown, [10.0] * 9, 1, restartable=False)
    assert not policy.may_start(unknown, usual, 49, restartable=False)
    assert policy.may_start(unknown, usual, 51, restartable=False)
    assert not policy.may_start(unknown, [], 0, restartable=False)


def test_a_restartable_application_starts_while_two_minutes_remain_whatever_it_takes() -> None:
    search = Job("a", "a", "w", resources=Resources(wall_time_minutes=600))
    assert policy.may_start(search, [], 121, restartable=True)
    assert not policy.may_start(search, [], 119, restartable=True)


@pytest.mark.parametrize(
    ("args", "shape"),
    [
        ("", (1, 1)),
        ("--ranks-per-node", (1, 1)),
        ("--run a.b --ranks-per-node 2 --seed 3", (1, 2)),
        ("--nodes-per-eval=3 --ranks-per-node=x", (3, 1)),
        ("--ranks-per-node 0 'an open quote", (1, 1)),
        ("--ranks-per-node 0", (1, 1)),
    ],
)
def test_a_searchs_arguments_tell_the_shape_of_its_evaluations(args: str, shape: tuple[int, int]) -> None:
    assert policy.evaluations_of(args) == shape


@pytest.mark.parametrize(
    ("executable", "script", "python"),
    [
        ("/env/bin/python -m nas_hpc.apps.ppo", "", "/env/bin/python"),
        ("'/my env/bin/python' -m nas_hpc.apps.ppo --seed 3", "", "/my env/bin/python"),
        ("/env/bin/python -m nas_hpc.apps.ppo", "/modules.sh", ""),
        ("/env/bin/python -m mine.search", "", ""),
        ("/opt/simulate", "", ""),
    ],
)
def test_of_applications_only_searches_by_agents_are_known_to_use_an_interpreters_mpi4py(
    executable: str, script: str, python: str
) -> None:
    assert policy.python_of_agents(App("A", executable, environment_script=script)) == python
    assert policy.python_of_agents(None) == ""
