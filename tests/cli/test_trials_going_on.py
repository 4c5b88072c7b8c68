"""What ``search-resume`` and ``rerun`` ask for: each trial that did not come to its end runs again, once."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from nas_hpc.apps.trials.spec import read_spec
from nas_hpc.cli import trials
from nas_hpc.cli.main import main
from nas_hpc.launcher.endings import ended_with, revive
from nas_hpc.records import Job
from nas_hpc.site import Site
from nas_hpc.states import Actor, Outcome, State
from nas_hpc.store import open_store
from nas_hpc.store.base import JobFilter
from nas_hpc.store.sql import SqlStore
from tests.store.supply import add, claim, ended, evaluation, hold, run

FAILED = (State.RUN_ERROR, State.FAILED)
Prepare = Callable[[SqlStore, Job, str], None]


def five(store: SqlStore, search: Job, lease: str) -> list[Job]:
    """The first of the trials is finished, the second has failed, the others run."""
    trials = add(store, *(evaluation(search.id, number, search.workflow) for number in range(1, 6)))
    run(store, lease, trials[0])
    run(store, lease, trials[1], FAILED)
    return claim(store, lease, *trials[2:])


def kill(store: SqlStore, jobs: list[Job], actor: Actor = Actor.COMMAND, why: str = "killed") -> None:
    store.set_state([job.id for job in jobs], State.USER_KILLED, actor, why)


def killed_by_a_person(store: SqlStore, search: Job, lease: str) -> None:
    kill(store, [search, *five(store, search, lease)])


def killed_before_its_trials(store: SqlStore, search: Job, lease: str) -> None:
    trials = five(store, search, lease)
    kill(store, [search])
    kill(store, trials, Actor.LAUNCHER, "its search has ended")


def at_the_cap(store: SqlStore, search: Job, lease: str) -> None:
    kill(store, five(store, search, lease), Actor.SEARCH, "cancelled by its search")
    store.finish(lease, [ended(search, FAILED, Outcome.ERROR)])


def interrupted(store: SqlStore, search: Job, lease: str) -> None:
    five(store, search, lease)  # its launcher is gone


THREE = {"search/3": 1, "search/4": 1, "search/5": 1}


@pytest.mark.parametrize(
    ("prepare", "words", "again", "goes_on"),
    [
        (killed_by_a_person, ["search-resume"], {}, 3),
        (killed_before_its_trials, ["search-resume"], {}, 3),
        (killed_by_a_person, ["rerun", "--failed"], {"search/2": 1}, 3),
        (at_the_cap, ["search-resume"], THREE, 0),
        (at_the_cap, ["rerun", "--failed"], {"search/2": 1, **THREE}, 0),
        (at_the_cap, ["rerun", "--trials", "2"], {"search/2": 1, **THREE}, 0),
        (interrupted, ["search-resume"], {}, 3),
        (killed_by_a_person, ["search-resume", "--max-parallel-nas-trial", "1"],
         {"search/4": 1, "search/5": 1}, 1),
        (interrupted, ["search-resume", "--max-parallel-nas-trial", "2"], {"search/5": 1}, 2),
    ],
)  # fmt: skip
def test_every_trial_that_was_ended_runs_again_in_one_way(
    tmp_path: Path,
    test_id: str,
    monkeypatch: pytest.MonkeyPatch,
    prepare: Prepare,
    words: list[str],
    again: dict[str, int],
    goes_on: int,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(trials, "check_space", lambda *words: None)  # it is good, and that takes a second
    Path("s.py").write_text("space = {'x': list(range(9))}\n")
    site = Site(tmp_path / "site")
    assert main(["init", str(site.path)]) == 0
    search = (
        "--site", "site", "search", "--job-name", "a", "--search-space-module", "s.py:space", "--trainer",
        "true", "--nas-target-reward-metric", "acc", "--root-output-dir", "out", "--max-nas-trial", "9",
        "--max-parallel-nas-trial", "3", "--max-failed-nas-trial", "3", "--no-launch",
    )  # fmt: skip
    assert main(list(search)) == 0
    [place] = Path("out").iterdir()
    (place / "trials.csv").write_text("stage,trial,state,parameters\nsearch,2,FAILED,{}\n")
    with open_store(site.database) as store:
        [job] = store.jobs(JobFilter(name="a"))
        lease = hold(store)
        prepare(store, claim(store, lease, job)[0], lease)
        store.close_lease(lease, time.time())
    assert main(["--site", "site", words[0], "a", *words[1:], "--no-launch"]) == 0
    assert read_spec(place).again == again
    with open_store(site.database) as store:
        [job] = store.jobs(JobFilter(name="a"))
        with_it = {one.seq for one in ended_with(store, job)}
        assert len(revive(store, job)) == len(with_it)
        running = frozenset({State.RUNNING, State.RESTART_READY})
        going = {one.seq for one in store.jobs(JobFilter(creator=job.id, states=running))}
    assert len(going) == goes_on
    asked = {int(name.partition("/")[2]) for name in again}
    assert not asked & going, "either as the same evaluation or as another one"
    assert going | asked >= {3, 4, 5}
