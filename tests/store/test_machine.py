"""Any sequence of calls, against a model in plain dictionaries."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from nas_hpc.errors import LeaseLost, WrongCall
from nas_hpc.records import ParentFailure, Result, Stages
from nas_hpc.states import FINAL, RAN, RUNNABLE, Actor, Outcome, State, is_path
from nas_hpc.store import Claim, JobFilter, open_store
from nas_hpc.store.base import Advance
from tests.store.supply import SUPPLIERS, discard, ended, evaluation, lease, person_job, skip_without
from tests.support import examples

S = State
PATHS = (
    (S.RUN_DONE, S.JOB_FINISHED),
    (S.RUN_ERROR, S.FAILED),
    (S.RUN_ERROR, S.RESTART_READY),
    (S.RUN_TIMEOUT, S.RESTART_READY),
    (S.RESTART_READY,),
    (S.FAILED,),
    (S.USER_KILLED,),
    (S.RUN_DONE,),
    (S.RUN_ERROR,),
)
AFTER = {
    S.READY: (S.PREPROCESSED,),
    S.RESTART_READY: (S.PREPROCESSED,),
    S.RUN_DONE: (S.POSTPROCESSED, S.JOB_FINISHED),
    S.RUN_ERROR: (S.FAILED,),
}
"""Where a held job goes from each state."""


EXAMPLES = {"sqlite": 30, "postgres": 12}
"""Both run the same code but for their dialects; a server takes longer."""


@dataclass
class Model:
    """A job as it should be."""

    state: State
    parents: list[str]
    creator: str = ""
    seq: int = 0
    attempt: int = 0
    lease: str = ""
    policy: ParentFailure = ParentFailure.FAIL
    failed_waiting: bool = False
    """It failed because a parent did."""


class StoreMachine(RuleBasedStateMachine):
    """The calls of the protocol; ``kind`` names the database."""

    kind = "sqlite"
    ids = Bundle("ids")

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.TemporaryDirectory()
        self.url = SUPPLIERS[self.kind](Path(self.directory.name))
        self.store = open_store(self.url)
        if self.kind == "sqlite":
            self.store.raw().execute("PRAGMA synchronous=OFF")  # a power failure is not under test
        self.jobs: dict[str, Model] = {}
        self.ends: list[str] = []  # ids in the order of their newest final events
        self.live: list[str] = []
        self.dead: list[str] = []
        self.stale: list[tuple[str, int, str]] = []
        self.take_lease(False)

    def teardown(self) -> None:
        self.store.close()
        discard(self.url)
        self.directory.cleanup()

    # -- the model ---------------------------------------------------------------------------------
    def enter(self, id_: str, state: State) -> None:
        """A job enters a state, with what follows for its children."""
        job = self.jobs[id_]
        job.failed_waiting = (job.state, state) == (S.AWAITING_PARENTS, S.FAILED)
        job.state, job.lease = state, job.lease if state in RAN else ""
        if id_ in self.ends:
            self.ends.remove(id_)
        if state in FINAL:
            self.ends.append(id_)

    def settle(self) -> None:
        """Children whose parents are all finished become ready, or all ended if that is enough for them."""
        changed = True
        while changed:
            changed = False
            for id_, job in self.jobs.items():
                if job.state is not S.AWAITING_PARENTS or not job.parents:
                    continue
                if not self.unmet(id_):
                    self.enter(id_, S.READY)
                    changed = True

    def fail_children(self, ids: list[str]) -> None:
        """Waiting children of jobs that have just failed."""
        for id_ in ids:
            for child_id, child in self.jobs.items():
                waits = id_ in child.parents and child.state is S.AWAITING_PARENTS
                if waits and child.policy is ParentFailure.FAIL:
                    self.enter(child_id, S.FAILED)
                    self.fail_children([child_id])

    def unmet(self, id_: str) -> bool:
        enough = FINAL if self.jobs[id_].policy is ParentFailure.RUN else {S.JOB_FINISHED}
        return any(self.jobs[parent].state not in enough for parent in self.jobs[id_].parents)

    def reopen(self, ids: list[str]) -> list[str]:
        """Children that failed with these parents wait again, unless another parent is failed still."""
        found = []
        for id_ in ids:
            for child_id, child in self.jobs.items():
                lost = {self.jobs[parent].state for parent in child.parents} & {S.FAILED, S.USER_KILLED}
                related = id_ in child.parents and child.policy is ParentFailure.FAIL
                if related and child.state is S.FAILED and child.failed_waiting and not lost:
                    self.enter(child_id, S.AWAITING_PARENTS)
                    found += [child_id, *self.reopen([child_id])]
        return found

    # -- calls -------------------------------------------------------------------------------------
    @rule(
        target=ids,
        parents=st.lists(ids, max_size=2, unique=True),
        policy=st.sampled_from(list(ParentFailure)),
    )
    def add_job(self, parents: list[str], policy: ParentFailure) -> str:
        kept = [parent for parent in parents if parent in self.jobs]
        stages = Stages(on_parent_failure=policy)
        job = replace(person_job(f"j{len(self.jobs)}"), parents=tuple(kept), stages=stages)
        (stored,) = self.store.add_jobs([job], Actor.COMMAND)
        self.jobs[job.id] = Model(S.READY, kept, policy=policy)
        if self.unmet(job.id):
            self.jobs[job.id].state = S.AWAITING_PARENTS
        assert stored.state is self.jobs[job.id].state
        return job.id

    @rule(target=ids, creator=st.sampled_from(["s", "t"]), seq=st.integers(1, 6))
    def add_evaluation(self, creator: str, seq: int) -> str:
        (stored,) = self.store.add_jobs([evaluation(creator, seq)], Actor.SEARCH)
        known = [id_ for id_, job in self.jobs.items() if (job.creator, job.seq) == (creator, seq)]
        if known:
            assert stored.id == known[0]
        else:
            self.jobs[stored.id] = Model(S.READY, [], creator, seq)
        return stored.id

    @rule(target=ids, seq=st.integers(1, 6))
    def add_cached(self, seq: int) -> str:
        (hit,) = self.store.add_finished([(evaluation("s", seq), Result(Outcome.OK, 1.0))])
        if not any((job.creator, job.seq) == ("s", seq) for job in self.jobs.values()):
            self.jobs[hit.job.id] = Model(S.JOB_FINISHED, [], "s", seq)
            self.ends.append(hit.job.id)
        return hit.job.id

    @rule(picked=st.lists(ids, max_size=4), who=st.integers(0, 5))
    def claim_some(self, picked: list[str], who: int) -> None:
        holder = self.live[who % len(self.live)]
        won = [job.id for job in self.store.claim(holder, [Claim(id_) for id_ in picked])]
        expected = [
            id_ for id_ in dict.fromkeys(picked) if id_ in self.jobs and self.jobs[id_].state in RUNNABLE
        ]
        assert won == expected
        for id_ in won:
            job = self.jobs[id_]
            job.state, job.lease, job.attempt = S.RUNNING, holder, job.attempt + 1
            self.stale.append((id_, job.attempt, holder))

    @rule(index=st.integers(0, 9), path=st.sampled_from(PATHS[:2]))
    def run_one(self, index: int, path: tuple[State, ...]) -> None:
        """A runnable job goes all the way: without this few get there."""
        runnable = [id_ for id_, job in self.jobs.items() if job.state in RUNNABLE]
        if runnable:
            id_ = runnable[index % len(runnable)]
            self.claim_some([id_], 0)
            self.finish_some([id_], path, 0)

    @rule(target=ids, count=st.integers(1, 3))
    def add_family(self, count: int) -> str:
        """Parents and their child in one call, the child first."""
        parents = [person_job(f"p{number}") for number in range(count)]
        child = person_job("child", parents=parents)
        self.store.add_jobs([child, *parents], Actor.COMMAND)
        self.jobs[child.id] = Model(S.AWAITING_PARENTS, [parent.id for parent in parents])
        self.jobs |= {parent.id: Model(S.READY, []) for parent in parents}
        return child.id

    @rule()
    def retry_all(self) -> None:
        """What ``retry`` says after a bad day: parents and children in one call."""
        self.retry(list(self.jobs))

    @rule(picked=st.lists(ids, max_size=4, unique=True), path=st.sampled_from(PATHS), who=st.integers(0, 5))
    def finish_some(self, picked: list[str], path: tuple[State, ...], who: int) -> None:
        holder = self.live[who % len(self.live)]
        given = [id_ for id_ in picked if id_ in self.jobs]
        jobs = {job.id: job for job in self.store.jobs(JobFilter())}
        outcome = Outcome.OK if path[-1] is S.JOB_FINISHED else Outcome.ERROR
        finished = self.store.finish(holder, [ended(jobs[id_], path, outcome) for id_ in given])
        current = [
            id_ for id_ in given if self.jobs[id_].state is S.RUNNING and self.jobs[id_].lease == holder
        ]
        assert [one.job.id for one in finished] == current
        for id_ in current:
            self.enter(id_, path[-1])
        if path[-1] in (S.FAILED, S.USER_KILLED):
            self.fail_children(current)
        self.settle()

    @rule(picked=st.lists(ids, max_size=4, unique=True), who=st.integers(0, 5))
    def hold_some(self, picked: list[str], who: int) -> None:
        holder = self.live[who % len(self.live)]
        won = [job.id for job in self.store.hold(holder, picked)]
        free = ("", holder, *self.dead)
        assert won == [
            id_ for id_ in picked
            if id_ in self.jobs and self.jobs[id_].state in AFTER and self.jobs[id_].lease in free
        ]  # fmt: skip
        for id_ in won:
            self.jobs[id_].lease = holder

    @rule(picked=st.lists(ids, max_size=4, unique=True), who=st.integers(0, 5))
    def advance_some(self, picked: list[str], who: int) -> None:
        """With some that are not held, or not where they can go on from."""
        holder = self.live[who % len(self.live)]
        steps = []
        for id_ in picked:
            job = self.jobs.get(id_, Model(S.READY, []))
            state = job.state if job.state in AFTER else S.RUN_DONE
            steps.append(Advance(id_, job.attempt, state, AFTER[state]))
        moved = [one.job.id for one in self.store.advance(holder, steps)]
        assert moved == [
            id_ for id_ in picked
            if id_ in self.jobs and self.jobs[id_].state in AFTER and self.jobs[id_].lease == holder
        ]  # fmt: skip
        lost = []
        for id_ in moved:
            lost += [id_] if self.jobs[id_].state is S.RUN_ERROR else []
            self.enter(id_, AFTER[self.jobs[id_].state][-1])
        self.fail_children(lost)
        self.settle()

    @precondition(lambda self: self.stale)
    @rule(data=st.data())
    def finish_stale(self, data: st.DataObject) -> None:
        id_, attempt, holder = data.draw(st.sampled_from(self.stale))
        job = self.jobs.get(id_)
        if job is not None and job.state is S.RUNNING and (job.attempt, job.lease) == (attempt, holder):
            return
        order = ended(replace(person_job(), id=id_, attempt=attempt, lease=holder))
        if holder in self.live:
            assert self.store.finish(holder, [order]) == []
        else:
            with pytest.raises(LeaseLost):
                self.store.finish(holder, [order])

    @rule(picked=st.lists(ids, max_size=3, unique=True))
    def kill(self, picked: list[str]) -> None:
        moved = [job.id for job in self.store.set_state(picked, S.USER_KILLED, Actor.COMMAND)]
        waiting = RUNNABLE | RAN | {S.AWAITING_PARENTS, S.RUNNING}
        expected = [id_ for id_ in self.jobs if id_ in picked and self.jobs[id_].state in waiting]
        assert moved == expected
        for id_ in moved:
            self.enter(id_, S.USER_KILLED)
        self.fail_children(moved)
        self.settle()

    @rule(picked=st.lists(ids, max_size=3, unique=True))
    def retry(self, picked: list[str]) -> None:
        moved = [job.id for job in self.store.set_state(picked, S.RESTART_READY, Actor.COMMAND)]
        again = [id_ for id_ in self.jobs if id_ in picked and self.jobs[id_].state in FINAL]
        for id_ in again:
            self.enter(id_, S.RESTART_READY)
        for id_ in again:
            if self.unmet(id_):
                self.enter(id_, S.AWAITING_PARENTS)
        assert sorted(moved) == sorted([*again, *self.reopen(again)])
        assert moved == [id_ for id_ in self.jobs if id_ in moved]

    @rule(ending=st.booleans())
    def take_lease(self, ending: bool) -> None:
        new = lease()
        victims = self.live[:1] if ending else []
        self.store.open_lease(new, ending=victims, proven=True, exclusive=False)
        self.live = [*self.live[len(victims) :], new.id]
        self.dead.extend(victims)

    @precondition(lambda self: self.dead)
    @rule(data=st.data())
    def adopt(self, data: st.DataObject) -> None:
        dead = data.draw(st.sampled_from(self.dead))
        pairs = [(id_, attempt) for id_, attempt, _ in self.stale]
        won = self.store.adopt(self.live[-1], dead, list(dict.fromkeys(pairs)))
        expected = {
            (id_, job.attempt)
            for id_, job in self.jobs.items()
            if job.lease == dead and job.state is S.RUNNING
        }
        assert set(won) == expected
        for id_, attempt in won:
            self.jobs[id_].lease = self.live[-1]
            self.stale.append((id_, attempt, self.live[-1]))

    @rule(id_=consumes(ids))
    def remove(self, id_: str) -> None:
        if id_ not in self.jobs:
            return
        children = any(id_ in job.parents for job in self.jobs.values())
        if children or self.jobs[id_].state is S.RUNNING:
            with pytest.raises(WrongCall):
                self.store.remove(JobFilter(ids=(id_,)))
            return
        assert [job.id for job in self.store.remove(JobFilter(ids=(id_,)))] == [id_]
        del self.jobs[id_]
        if id_ in self.ends:
            self.ends.remove(id_)

    # -- what always holds -------------------------------------------------------------------------
    @invariant()
    def jobs_are_those_of_the_model(self) -> None:
        found = {job.id: (job.state, job.attempt, job.lease) for job in self.store.jobs(JobFilter())}
        assert found == {id_: (job.state, job.attempt, job.lease) for id_, job in self.jobs.items()}
        assert list(found) == list(self.jobs)
        counted = self.store.counts(JobFilter())
        assert counted == {
            state: n for state in S if (n := sum(j.state is state for j in self.jobs.values()))
        }

    @invariant()
    def every_chain_of_events_is_a_path_to_the_state(self) -> None:
        paths: dict[str, list[State]] = {}
        for event in self.store.events():
            path = paths.setdefault(event.job, [event.old])
            assert path[-1] is event.old
            path.append(event.new)
        assert set(paths) == set(self.jobs)
        for id_, path in paths.items():
            assert path[0] is S.CREATED
            assert path[-1] is self.jobs[id_].state
            assert is_path(path)

    @invariant()
    def finished_evaluations_come_in_the_order_of_their_ends(self) -> None:
        for creator in ("s", "t"):
            expected = [id_ for id_ in self.ends if self.jobs[id_].creator == creator]
            found = self.store.finished(creator)
            assert [one.job.id for one in found] == expected
            if found:
                assert self.store.finished(creator, after=found[0].order) == found[1:]

    @invariant()
    def every_attempt_but_the_running_ones_has_ended(self) -> None:
        for attempt in self.store.attempts(list(self.jobs)):
            job = self.jobs[attempt.job]
            runs = job.state is S.RUNNING and job.attempt == attempt.number
            assert (attempt.result is None) == runs
            if runs:
                assert attempt.lease == job.lease


@pytest.mark.parametrize("kind", sorted(SUPPLIERS))
def test_any_sequence_of_calls_agrees_with_the_model(kind: str) -> None:
    skip_without(kind)
    machine = type("Machine", (StoreMachine,), {"kind": kind})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples(EXAMPLES[kind]), stateful_step_count=25, deadline=None, print_blob=True,
            suppress_health_check=list(HealthCheck),
        ),
    )  # fmt: skip
