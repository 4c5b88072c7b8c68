"""What a search that is lost again and again is given: another attempt, as long as its evaluations end."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from nas_hpc.launcher.endings import finish_of
from nas_hpc.processes.orders import Ended
from nas_hpc.records import Job, Result
from nas_hpc.states import Outcome, State
from nas_hpc.store import open_store
from nas_hpc.store.sql import SqlStore
from tests.store.supply import DONE, add, claim, ended, evaluation, hold, new_sqlite, person_job

LIMIT = 3


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqlStore]:
    with open_store(new_sqlite(tmp_path)) as store:
        yield store


class Scene:
    """A search under one launcher."""

    def __init__(self, store: SqlStore) -> None:
        self.store = store
        self.lease = hold(store)
        (self.job,) = add(store, person_job("search"))
        self.evaluations = 0

    def begin(self) -> None:
        """Another attempt of the search."""
        (self.job,) = claim(self.store, self.lease, self.job)

    def evaluate(self) -> None:
        """One of its evaluations runs and ends now."""
        self.evaluations += 1
        (one,) = add(self.store, evaluation(self.job.id, self.evaluations))
        (running,) = claim(self.store, self.lease, one)
        finish = ended(running, DONE)
        now = time.time()
        result = replace(finish.result, start=now, end=now)
        assert len(self.store.finish(self.lease, [replace(finish, result=result)])) == 1

    def lose(self) -> tuple[State, ...]:
        """The attempt is lost; what is to follow."""
        job: Job = self.job
        lost = Ended((job.id, job.attempt), Result(Outcome.LOST, reason="its keeper died", end=time.time()))
        finish = finish_of(self.store, job, ("node1",), lost, self.lease, LIMIT)
        assert len(self.store.finish(self.lease, [finish])) == 1
        return finish.path


def test_a_search_that_is_lost_goes_on_while_an_evaluation_ended_in_its_last_attempts(
    store: SqlStore,
) -> None:
    scene = Scene(store)
    for _ in range(4):
        for far in (True, False, False):  # two that are lost at once follow one that came far
            scene.begin()
            if far:
                scene.evaluate()
            assert scene.lose() == (State.RESTART_READY,)


def test_a_search_that_is_lost_without_getting_anywhere_fails_at_the_limit(store: SqlStore) -> None:
    scene = Scene(store)
    scene.begin()
    scene.evaluate()
    assert scene.lose() == (State.RESTART_READY,)
    paths = []
    for _ in range(LIMIT):
        scene.begin()
        paths.append(scene.lose())
    assert paths == [*[(State.RESTART_READY,)] * (LIMIT - 1), (State.FAILED,)]
