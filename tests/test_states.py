"""The one transition table."""

from __future__ import annotations

import itertools

import pytest

from nas_hpc.states import (
    ACTIVE,
    FINAL,
    RAN,
    RUNNABLE,
    TRANSITIONS,
    WAITING,
    Actor,
    Outcome,
    State,
    is_path,
    may_follow,
)


def reachable(start: State, actors: frozenset[Actor] = frozenset(Actor)) -> set[State]:
    """States that ``actors`` can bring a job in ``start`` to."""
    found, frontier = {start}, [start]
    while frontier:
        old = frontier.pop()
        for (before, after), allowed in TRANSITIONS.items():
            if before is old and after not in found and allowed & actors:
                found.add(after)
                frontier.append(after)
    return found


def test_every_state_is_reached_from_created() -> None:
    assert reachable(State.CREATED) == set(State)


def test_every_state_but_created_is_entered_and_created_never() -> None:
    assert {after for _, after in TRANSITIONS} == set(State) - {State.CREATED}


def test_final_states_are_those_that_only_a_command_leaves() -> None:
    others = frozenset(Actor) - {Actor.COMMAND}
    assert {state for state in State if reachable(state, others) == {state}} == FINAL


@pytest.mark.parametrize("state", sorted(State))
def test_a_launcher_brings_every_job_to_an_end(state: State) -> None:
    assert reachable(state, frozenset({Actor.LAUNCHER})) & FINAL


def test_the_table_answers_for_every_pair_and_actor() -> None:
    for old, new, actor in itertools.product(State, State, Actor):
        assert may_follow(old, new, actor) is (actor in TRANSITIONS.get((old, new), ()))
        if old is new:
            assert not may_follow(old, new, actor)


def test_every_transition_is_somebodys() -> None:
    assert all(TRANSITIONS.values())


def test_only_a_launcher_makes_a_job_run_and_only_runnable_ones() -> None:
    assert {old for (old, new) in TRANSITIONS if new is State.RUNNING} == RUNNABLE
    assert all(TRANSITIONS[old, State.RUNNING] == {Actor.LAUNCHER} for old in RUNNABLE)


def test_whatever_is_not_final_can_be_killed_except_what_is_left_in_the_commit_that_enters_it() -> None:
    passing = {State.POSTPROCESSED, State.CREATED}
    killable = {old for (old, new) in TRANSITIONS if new is State.USER_KILLED}
    assert killable == set(State) - FINAL - passing


def test_only_a_command_opens_a_final_state_again() -> None:
    for (old, _), actors in TRANSITIONS.items():
        if old in FINAL:
            assert actors == {Actor.COMMAND}


def test_the_named_sets_do_not_overlap() -> None:
    for one, two in itertools.combinations((FINAL, RUNNABLE, ACTIVE, WAITING, RAN), 2):
        assert not one & two


def test_the_path_of_every_outcome_is_in_the_table() -> None:
    s = State
    paths = {
        Outcome.OK: [[s.RUN_DONE, s.JOB_FINISHED], [s.RUN_DONE, s.POSTPROCESSED, s.JOB_FINISHED]],
        Outcome.ERROR: [[s.RUN_ERROR, s.FAILED], [s.RUN_ERROR, s.RESTART_READY]],
        Outcome.INVALID_RESULT: [[s.RUN_ERROR, s.FAILED]],
        Outcome.TIMEOUT: [[s.RUN_ERROR, s.FAILED]],
        Outcome.START_FAILED: [[s.RESTART_READY]],
        Outcome.WALLTIME: [[s.RUN_TIMEOUT, s.RESTART_READY]],
        Outcome.LOST: [[s.RESTART_READY], [s.FAILED]],
        Outcome.KILLED: [[s.USER_KILLED]],
    }
    assert set(paths) == set(Outcome)
    for path in itertools.chain.from_iterable(paths.values()):
        assert is_path([s.RUNNING, *path])


def test_a_path_is_a_chain_of_the_tables_pairs() -> None:
    assert is_path([])
    assert is_path([State.READY])
    assert is_path([State.CREATED, State.READY, State.RUNNING])
    assert not is_path([State.CREATED, State.RUNNING])
    assert not is_path([State.READY, State.RUNNING, State.JOB_FINISHED])
