"""Commands, ends and takeovers that meet a job's scripts in one moment, with the launcher on the stage."""

from __future__ import annotations

import asyncio
import os
import shlex
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from nas_hpc.errors import LeaseLost
from nas_hpc.launcher import stages
from nas_hpc.launcher.scripts import Script
from nas_hpc.records import App, Job, ParentFailure, Stages
from nas_hpc.site import Site
from nas_hpc.states import Actor, Outcome, State
from nas_hpc.store.base import JobFilter
from nas_hpc.wire import PROTOCOL, Ask, KillJobs, Submit
from tests.launcher.bench import Bench
from tests.launcher.stage import SHAPE, Stage, on_stage, program, staged
from tests.support import TEST_ID, describe, processes_of, stays

S = State
WAIT = """
import os, sys, time
print("begun", flush=True)
while not os.path.exists(sys.argv[1]):
    time.sleep(0.01)
"""


def waiting(stage: Stage, name: str = "go") -> str:
    """A script that waits until the file ``name`` is there."""
    return shlex.join([sys.executable, "-c", WAIT, str(stage.launcher.site.path / name)])


def go(stage: Stage, name: str = "go") -> None:
    (stage.launcher.site.path / name).touch()


def scripted(stage: Stage, **fields: object) -> Job:
    """Add a program with these stages; the launcher is told."""
    environ = {TEST_ID: os.environ[TEST_ID]}
    [job] = stage.add(program(environ=environ, stages=Stages(**fields)))  # type: ignore[arg-type]
    stage.wake()
    return job


def now(stage: Stage, job: Job) -> Job:
    return stage.store.jobs(JobFilter(ids=(job.id,)))[0]


def path(stage: Stage, job: Job) -> list[State]:
    return [event.new for event in stage.store.events([job.id])]


async def begun(stage: Stage, job: Job, name: str = "preprocess") -> None:
    what = f"its {name} script is running"
    await stage.until(lambda: stage.launcher.dispatcher.stages.why(job.id).startswith(what), what)


def lives() -> bool:
    """Whether a script of this test runs."""
    return f"{sys.executable} " in describe(processes_of(os.environ[TEST_ID]))


@on_stage()
async def test_a_job_enters_the_queue_only_after_its_preprocess_script(stage: Stage) -> None:
    job = scripted(stage, preprocess=waiting(stage))
    await begun(stage, job)
    assert now(stage, job).lease == stage.launcher.lease.id
    assert len(stage.launcher.dispatcher.queue) == 0
    assert "its preprocess script is running (0 s)" in str(stage.launcher.view(job.id)["why"])
    stage.wake()
    await stage.settled()
    assert stage.agent.orders == {}
    go(stage)
    await stage.until(lambda: (job.id, 1) in stage.agent.orders, "its start")
    assert path(stage, job) == [S.READY, S.PREPROCESSED, S.RUNNING]


@on_stage()
async def test_one_that_is_given_a_script_while_it_is_in_the_queue_leaves_it(stage: Stage) -> None:
    whole = [program() for _ in range(2)]  # each takes the node
    first, second = stage.add(*whole)
    stage.wake()
    await stage.until(lambda: (first.id, 1) in stage.agent.orders, "the first one's start")
    await stage.until(lambda: second.id in stage.launcher.dispatcher.queue, "the second in the queue")
    changed = replace(
        second, stages=Stages(preprocess=waiting(stage)), environ={TEST_ID: os.environ[TEST_ID]}
    )
    stage.store.modify([changed])
    stage.wake()
    await begun(stage, second)
    assert second.id not in stage.launcher.dispatcher.queue
    stage.agent.end((first.id, 1))
    await stage.settled()
    assert stage.agent.orders == {}
    go(stage)
    await stage.until(lambda: (second.id, 1) in stage.agent.orders, "its start")


@on_stage()
async def test_one_that_gets_parents_while_its_script_runs_waits_for_them(stage: Stage) -> None:
    job = scripted(stage, preprocess=waiting(stage))
    await begun(stage, job)
    [parent] = stage.add(program())
    stage.store.modify([replace(job, parents=(parent.id,))])
    stage.wake()
    await stage.until(lambda: not lives(), "the script's end")
    await stage.until(lambda: (parent.id, 1) in stage.agent.orders, "the parent's start")
    assert now(stage, job).state is S.AWAITING_PARENTS
    go(stage)
    stage.agent.end((parent.id, 1))
    await stage.until(lambda: (job.id, 1) in stage.agent.orders, "its start")
    assert path(stage, job) == [S.READY, S.AWAITING_PARENTS, S.READY, S.PREPROCESSED, S.RUNNING]


@on_stage()
async def test_one_killed_and_retried_before_its_script_has_ended_begins_again(stage: Stage) -> None:
    job = scripted(stage, preprocess=waiting(stage))
    await begun(stage, job)
    stage.set(S.USER_KILLED, job.id)
    stage.set(S.RESTART_READY, job.id)
    stage.wake()
    go(stage)
    await stage.until(lambda: (job.id, 1) in stage.agent.orders, "its start")
    assert path(stage, job)[1:] == [S.USER_KILLED, S.RESTART_READY, S.PREPROCESSED, S.RUNNING]


@on_stage()
async def test_one_killed_as_its_script_ends_stays_killed(stage: Stage) -> None:
    job = scripted(stage, preprocess=waiting(stage))
    await begun(stage, job)
    stage.set(S.USER_KILLED, job.id)  # and the launcher is not told
    go(stage)
    await stage.until(lambda: not stage.launcher.dispatcher.stages.busy, "the end of the stage")
    await stage.settled()
    assert now(stage, job).state is S.USER_KILLED
    assert stage.agent.orders == {}


@on_stage()
async def test_one_that_another_jobs_program_kills_has_its_script_ended(stage: Stage) -> None:
    [asker] = stage.add(program())
    stage.wake()
    await stage.until(lambda: (asker.id, 1) in stage.agent.orders, "the asker's start")
    job = scripted(stage, preprocess=waiting(stage))
    await begun(stage, job)
    stage.says(KillJobs(PROTOCOL, 1, asker.id, 1, (job.id,)), b"asker")
    await stage.until(lambda: not stage.launcher.dispatcher.stages.busy, "the end of the stage")
    assert not lives()
    assert path(stage, job) == [S.READY, S.USER_KILLED]


@on_stage()
async def test_one_removed_while_its_script_runs_is_forgotten(stage: Stage) -> None:
    job = scripted(stage, preprocess=waiting(stage))
    await begun(stage, job)
    stage.store.remove(JobFilter(ids=(job.id,)))
    stage.wake()
    await stage.until(lambda: not stage.launcher.dispatcher.stages.busy, "the end of the stage")
    assert not lives()
    await stage.settled()
    assert stage.agent.orders == {}


@on_stage()
async def test_a_search_that_is_killed_in_its_postprocess_takes_its_evaluations_with_it(
    stage: Stage,
) -> None:
    stage.store.put_app(App("SEARCH", "search", restartable=True, postprocess=waiting(stage)), replace=True)
    search = await stage.search()
    running = await stage.evaluations(1, 2)
    stage.agent.end((search.id, 1))
    await begun(stage, search, "postprocess")
    assert [now(stage, search).state, now(stage, search).lease] == [S.RUN_DONE, stage.launcher.lease.id]
    assert {job.state for job in stage.jobs(creator=search.id)} == {S.RUNNING}
    stage.set(S.USER_KILLED, search.id)
    stage.wake()
    await stage.until(lambda: set(stage.agent.stops) == set(running), "the evaluations to be ended")
    for key in running:
        stage.agent.end(key, Outcome.KILLED)
    await stage.until(
        lambda: {job.state for job in stage.jobs(creator=search.id)} == {S.USER_KILLED}, "their end"
    )


@on_stage()
async def test_a_search_that_is_done_takes_its_evaluations_with_it_after_its_postprocess(
    stage: Stage,
) -> None:
    stage.store.put_app(App("SEARCH", "search", restartable=True, postprocess=waiting(stage)), replace=True)
    search = await stage.search()
    running = await stage.evaluations(1, 2)
    stage.agent.end((search.id, 1))
    await begun(stage, search, "postprocess")
    go(stage)
    await stage.until(lambda: now(stage, search).state is S.JOB_FINISHED, "the search's end")
    assert {job.state for job in stage.jobs(creator=search.id)} == {S.USER_KILLED}
    await stage.until(lambda: set(stage.agent.stops) == set(running), "the evaluations to be ended")
    assert path(stage, search)[-3:] == [S.RUN_DONE, S.POSTPROCESSED, S.JOB_FINISHED]


@on_stage()
async def test_children_start_when_the_postprocess_of_their_parent_is_done_and_not_before(
    stage: Stage,
) -> None:
    job = scripted(stage, postprocess=waiting(stage))
    await stage.until(lambda: (job.id, 1) in stage.agent.orders, "the parent's start")
    plain = Stages(input_files="", on_parent_failure=ParentFailure.RUN)
    [child] = stage.add(program(parents=(job.id,), stages=plain))
    stage.wake()
    stage.agent.end((job.id, 1))
    await begun(stage, job, "postprocess")
    assert now(stage, child).state is S.AWAITING_PARENTS
    go(stage)
    await stage.until(lambda: (child.id, 1) in stage.agent.orders, "the child's start")


@on_stage()
async def test_evaluations_are_never_asked_for_stages_nor_held(stage: Stage) -> None:
    asked: list[Job] = []
    real = stage.launcher.dispatcher.stages.takes
    stage.launcher.dispatcher.stages.takes = lambda job: asked.append(job) or real(job)  # type: ignore
    scripts = App("PLAIN", "plain", preprocess="/bin/false", postprocess="/bin/false")
    stage.store.put_app(scripts, replace=True)
    search = await stage.search()
    stage.says(Submit(1, tuple(Ask(q, "m.f", {}, 1, SHAPE, application="PLAIN") for q in (1, 2, 3))))
    await stage.until(lambda: len(stage.agent.orders) == 4, "the evaluations' start")
    for key in [key for key in stage.agent.orders if key[0] != search.id]:
        stage.agent.end(key)
    await stage.until(lambda: len(stage.results()) == 3, "their results")
    assert {job.id for job in asked} == {search.id}
    for job in stage.jobs(creator=search.id):
        assert path(stage, job) == [S.READY, S.RUNNING, S.RUN_DONE, S.JOB_FINISHED]


def test_a_script_beyond_its_limit_is_ended_and_the_job_fails(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages, "LIMIT_S", 0.5)

    async def play() -> None:
        async with staged(Site(bench.site), monkeypatch) as stage:
            job = scripted(stage, preprocess=waiting(stage))
            await stage.until(lambda: now(stage, job).state is S.FAILED, "the job's failure")
            said = stage.store.events([job.id])[-1].message
            assert said == "preprocess: ran longer than 0.5 s: begun"
            assert not lives()

    asyncio.run(play())


def test_a_launcher_that_lost_its_lease_ends_its_scripts_and_records_nothing(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def play() -> None:
        async with staged(Site(bench.site), monkeypatch) as stage:
            jobs = [scripted(stage, preprocess=waiting(stage)), scripted(stage, preprocess="/bin/true")]
            await begun(stage, jobs[0])
            await stage.until(lambda: (jobs[1].id, 1) in stage.agent.orders, "the other's start")
            lease = stage.launcher.lease
            stage.store.open_lease(
                replace(lease, id="f" * 32, expires=time.time() + 60),
                ending=[lease.id], proven=True, exclusive=True,
            )  # fmt: skip
            before = stage.store.events()
            go(stage)
            with pytest.raises(LeaseLost):
                await asyncio.wait_for(stage.task, 60)
            assert not lives()
            assert stage.store.events() == before
            assert [job.id for job in stage.store.hold("f" * 32, [jobs[0].id])] == [jobs[0].id]

    asyncio.run(play())


@pytest.mark.slow
@on_stage()
async def test_no_more_than_eight_scripts_run_at_a_time(stage: Stage) -> None:
    def printed() -> int:
        return len(list(stage.launcher.site.data.glob("W/p_*/preprocess.out")))

    wish = Stages(preprocess=waiting(stage))
    environ = {TEST_ID: os.environ[TEST_ID]}
    jobs = stage.add(*(program(stages=wish, environ=environ) for _ in range(20)))
    stage.wake()
    await stage.until(lambda: printed() == stages.AT_ONCE, "the first scripts")
    await asyncio.to_thread(stays, lambda: printed() == stages.AT_ONCE, 0.3, "no more scripts")
    said = [str(stage.launcher.view(job.id)["why"]) for job in jobs]
    assert sum("waits for its turn" in why for why in said) == 12
    go(stage)
    counted = JobFilter(states=frozenset({S.PREPROCESSED, S.RUNNING}))
    await stage.until(lambda: sum(stage.store.counts(counted).values()) == 20, "all scripts")


@on_stage()
async def test_many_jobs_are_held_and_advanced_in_few_commits(
    stage: Stage,
) -> None:
    [parent] = stage.add(replace(program(), name="parent"))
    stage.add(*(program(parents=(parent.id,)) for _ in range(300)))
    stage.wake()
    await stage.until(lambda: (parent.id, 1) in stage.agent.orders, "the parent's start")
    directory = stage.launcher.site.job_directory("W", parent.directory_name)
    directory.mkdir(parents=True)
    (directory / "out.dat").write_text("x")
    before = stage.launcher.writer.requests
    stage.agent.end((parent.id, 1))
    counted = JobFilter(states=frozenset({S.PREPROCESSED, S.RUNNING}))
    await stage.until(lambda: sum(stage.store.counts(counted).values()) == 300, "the children")
    for job in stage.jobs(name="p"):
        link = stage.launcher.site.job_directory("W", job.directory_name) / "out.dat"
        assert link.read_text() == "x"
    assert stage.launcher.writer.requests - before < 150


def test_what_a_script_leaves_in_its_session_or_outside_is_ended(tmp_path: Path) -> None:
    nap = "import subprocess, sys; nap = [sys.executable, '-c', 'import time; time.sleep(600)']\n"
    code = nap + "subprocess.Popen(nap, env={})\nsubprocess.Popen(nap, start_new_session=True)\n"
    marks = {"NAS_HPC_JOB_ID": "f" * 32, "NAS_HPC_ATTEMPT": "3", "NAS_HPC_LAUNCHER_ID": "x"}
    environ = {**os.environ, **marks}
    script = Script("postprocess", (sys.executable, "-c", code), environ, tmp_path, tmp_path / "log")
    started: list[float] = []
    assert script.run(lambda: started.append(time.monotonic())) == ""
    assert len(started) == 1
    assert not (tmp_path / "postprocess.out").exists()  # nothing was printed
    assert not lives()
    script.stop("too late")
    script.kill()


def test_a_script_that_is_stopped_before_it_starts_does_not_start(tmp_path: Path) -> None:
    marks = {"NAS_HPC_JOB_ID": "f" * 32, "NAS_HPC_ATTEMPT": "0", "NAS_HPC_LAUNCHER_ID": "x"}
    script = Script("preprocess", ("/bin/sh", "-c", "touch made"), marks, tmp_path, tmp_path / "log")
    script.stop("its launcher stops")
    assert script.run(lambda: None) == "preprocess: its launcher stops"
    assert not (tmp_path / "made").exists()


@pytest.mark.slow
def test_what_stages_do_is_recorded_as_the_launchers_doing(bench: Bench) -> None:
    ok = bench.script("OK", "print('done')")
    bench.job("j", ok, "--preprocess", "true", "--postprocess", "true")
    bench.launch()
    history = bench.nas("ls", "jobs", "--history")
    assert history.count(f"({Actor.LAUNCHER.value}") == 5
