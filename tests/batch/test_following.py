"""What has become of batch jobs, asked of a batch system that is played."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest

from nas_hpc.batch import following
from nas_hpc.batch.following import Followed, cancel, read_trouble, refresh, trouble_file
from nas_hpc.batch.jobs import read_job, write_job, write_launch
from nas_hpc.batch.system import Ask, Status
from nas_hpc.errors import BatchSilent, WrongCall
from nas_hpc.records import BatchJob
from nas_hpc.site import Site, create_site
from nas_hpc.states import BATCH_FINAL, BatchState
from tests.support import assert_no_processes

S = BatchState


@dataclass
class Played:
    """A batch system that answers what it is told to; an error is raised."""

    answers: list[Mapping[str, Status] | Exception]
    name: str = "played"
    asked: list[list[str]] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    cancelled: list[str] = field(default_factory=list)

    def status(self, jobs: Sequence[BatchJob], ask: Ask) -> dict[str, Status]:
        self.asked.append([job.id for job in jobs])
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return {job.id: answer.get(job.id, Status(S.GONE)) for job in jobs}

    def cancel(self, ids: Sequence[str], ask: Ask) -> dict[str, str]:
        self.cancelled += ids
        return self.refused


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return create_site(tmp_path / "site")


def play(monkeypatch: pytest.MonkeyPatch, *answers: Mapping[str, Status] | Exception) -> Played:
    system = Played(list(answers))
    monkeypatch.setattr(following, "system_of", lambda name: system)
    return system


def recorded(site: Site, id_: str = "7", state: BatchState = S.QUEUED, **more: object) -> BatchJob:
    values: dict[str, object] = {"system": "played", "machine": "m", "nodes": 4, "walltime_minutes": 60}
    values |= {"job_mode": "mpi", "submitted": time.time(), "script": "s", "output": "o"}
    job = BatchJob(key=f"T-{id_ or 'none'}", id=id_, state=state, **(values | more))  # type: ignore[arg-type]
    write_job(site, job)
    return job


def look(site: Site, *jobs: BatchJob, patience_s: float = 0.0, insist: bool = False) -> Followed:
    return refresh(site, jobs, os.environ, patience_s=patience_s, insist=insist, pause=lambda s: None)


def test_what_the_system_says_is_written_down(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    play(monkeypatch, {"7": Status(S.RUNNING, "on nid1"), "8": Status(S.ENDED, "", 3)})
    first, second = recorded(site), recorded(site, "8", S.RUNNING)
    followed = look(site, first, second)
    assert [(job.state, job.reason, job.exit_code) for job in followed.jobs] == [
        (S.RUNNING, "on nid1", None),
        (S.ENDED, "", 3),
    ]
    assert followed.trouble == []
    assert [read_job(site, job.key) for job in (first, second)] == followed.jobs


def test_one_call_asks_for_all_jobs_that_are_not_at_their_end(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    system = play(monkeypatch, {"1": Status(S.QUEUED), "2": Status(S.HELD)})
    ended = [recorded(site, str(10 + i), state) for i, state in enumerate(sorted(BATCH_FINAL))]
    look(site, *ended, recorded(site, "1"), recorded(site, "2"), recorded(site, "", S.SUBMITTING))
    assert system.asked == [["1", "2"]]


@pytest.mark.parametrize("state", sorted(BATCH_FINAL))
def test_a_job_at_its_end_never_becomes_anything_else(
    site: Site, monkeypatch: pytest.MonkeyPatch, state: BatchState
) -> None:
    play(monkeypatch, {"7": Status(S.RUNNING)})
    old = recorded(site)
    write_job(site, recorded(site, state=state))  # another command was faster
    assert [job.state for job in look(site, old).jobs] == [state]
    current = read_job(site, old.key)
    assert current is not None
    assert current.state is state


@pytest.mark.parametrize("error", [BatchSilent("qstat did not answer within 20 s"), OSError("fork failed")])
def test_a_silent_system_changes_no_state_and_is_told(
    site: Site, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    play(monkeypatch, error)
    old = recorded(site, state=S.RUNNING)
    before = (site.qsubmit / f"{old.key}.json").read_bytes()
    followed = look(site, old)
    assert followed.jobs == [old]
    assert (site.qsubmit / f"{old.key}.json").read_bytes() == before
    [line] = followed.trouble
    assert str(error) in line
    assert "states are as they were last known" in line


def test_a_silent_system_is_asked_again_within_the_patience(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    silent = BatchSilent("qstat: component error")
    play(monkeypatch, silent, silent, {"7": Status(S.RUNNING)})
    pauses: list[float] = []
    followed = refresh(site, [recorded(site)], os.environ, patience_s=60.0, pause=pauses.append)
    assert [job.state for job in followed.jobs] == [S.RUNNING]
    assert pauses == [0.5, 1.0]
    assert followed.trouble == []
    assert not trouble_file(site, "played").exists()


def test_the_next_commands_leave_a_silent_system_alone_for_longer_and_longer(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1e9]
    clock = SimpleNamespace(
        time=lambda: now[0], monotonic=time.monotonic, strftime=time.strftime, gmtime=time.gmtime
    )
    monkeypatch.setattr(following, "time", clock)
    system = play(monkeypatch, BatchSilent("no answer"))
    job = recorded(site)
    rests = []
    for _ in range(9):
        look(site, job)
        trouble = read_trouble(site, "played")
        assert trouble is not None
        rests.append(trouble.next - now[0])
        now[0] = trouble.next - 1.0
        assert "it is asked again in 1 s" in look(site, job).trouble[0]
        now[0] = trouble.next
    assert rests == [5, 10, 20, 40, 80, 160, 300, 300, 300]
    assert len(system.asked) == 9


def test_who_insists_asks_in_spite_of_the_rest_and_an_answer_ends_the_trouble(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    play(monkeypatch, BatchSilent("no answer"), {"7": Status(S.RUNNING)})
    job = recorded(site)
    look(site, job)
    assert trouble_file(site, "played").exists()
    followed = look(site, job, insist=True)
    assert [job.state for job in followed.jobs] == [S.RUNNING]
    assert not trouble_file(site, "played").exists()


@pytest.mark.parametrize(
    "body", ["", "{}", "[1]", '{"since": "x", "said": 1, "tries": 2, "next": 3}', "\x00"]
)
def test_a_trouble_file_that_cannot_be_read_is_none(
    site: Site, monkeypatch: pytest.MonkeyPatch, body: str
) -> None:
    play(monkeypatch, {"7": Status(S.RUNNING)})
    trouble_file(site, "played").write_text(body)
    assert look(site, recorded(site)).jobs[0].state is S.RUNNING


def test_a_clock_that_was_wrong_does_not_silence_a_site(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    play(monkeypatch, {"7": Status(S.RUNNING)})
    late = {"since": time.time(), "said": "x", "tries": 1, "next": time.time() + 1e6}
    trouble_file(site, "played").write_text(json.dumps(late))
    assert look(site, recorded(site)).jobs[0].state is S.RUNNING


def test_a_status_command_that_hangs_changes_no_state_and_is_ended(
    site: Site, tmp_path: Path, test_id: str
) -> None:
    qstat = tmp_path / "qstat"
    qstat.write_text("#!/bin/bash\nsleep 1000 & wait\n")
    qstat.chmod(0o700)
    environ = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    job = recorded(site, state=S.RUNNING, system="cobalt")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", environ["PATH"])
        followed = refresh(site, [job], environ, patience_s=0.0, answer_s=0.3)
    assert followed.jobs == [job]
    assert "did not answer within 0.3 s" in followed.trouble[0]
    assert_no_processes(test_id)


def test_missing_commands_are_told_and_keep_nobody_else_from_asking(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    play(monkeypatch, WrongCall("there is no qstat on PATH"))
    job = recorded(site)
    followed = look(site, job)
    assert followed.jobs == [job]
    assert "cannot be asked here: there is no qstat on PATH" in followed.trouble[0]
    assert not trouble_file(site, "played").exists()


def test_a_job_that_left_the_system_ended_as_its_launcher_said(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    play(monkeypatch, {})
    job = recorded(site, state=S.RUNNING)
    write_launch(site, job.key, host="h", pid=1, boot_id="b", started=1.0, ended=2.0, exit_code=1)
    [now] = look(site, job).jobs
    assert (now.state, now.exit_code) == (S.ENDED, 1)


def test_a_job_without_a_word_of_its_end_is_gone_only_when_it_is_missed_for_long(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    play(monkeypatch, {})
    job = recorded(site, state=S.RUNNING)
    [missed] = look(site, job).jobs
    assert (missed.state, missed.reason) == (S.RUNNING, following.MISSED)
    assert look(site, missed).jobs == [missed]
    monkeypatch.setattr(following, "MISSED_S", 0.0)
    [gone] = look(site, missed).jobs
    assert gone.state is S.GONE


def test_a_job_that_was_missed_and_is_back_is_what_the_system_says(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    play(monkeypatch, {}, {"7": Status(S.RUNNING)})
    [missed] = look(site, recorded(site)).jobs
    [back] = look(site, missed).jobs
    assert (back.state, back.reason) == (S.RUNNING, "")


def test_a_job_whose_id_was_never_written_down_ended_if_its_launcher_says_so(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    system = play(monkeypatch, {})
    job = recorded(site, "", S.SUBMITTING)
    assert look(site, job).jobs == [job]
    write_launch(site, job.key, host="h", pid=1, boot_id="b", started=1.0, ended=2.0, exit_code=0)
    assert look(site, job).jobs[0].state is S.ENDED
    assert system.asked == []


def test_a_record_that_cannot_be_written_is_told_all_the_same(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    play(monkeypatch, {"7": Status(S.RUNNING)})

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    job = recorded(site)
    monkeypatch.setattr(following, "write_job", full)
    assert look(site, job).jobs[0].state is S.RUNNING


def test_what_left_the_system_when_it_was_to_end_is_cancelled(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    system = play(monkeypatch, {"8": Status(S.ENDING), "9": Status(S.RUNNING)})
    jobs = [recorded(site, id_, S.RUNNING) for id_ in ("7", "8", "9")]
    system.refused = {"9": "it is another user's"}
    assert cancel(site, jobs, os.environ) == {jobs[2].key: "it is another user's"}
    assert system.cancelled == ["7", "8", "9"]
    found = [read_job(site, job.key) for job in jobs]
    assert [job.state for job in found if job] == [S.CANCELLED, S.ENDING, S.RUNNING]


def test_a_job_that_had_ended_before_it_was_cancelled_has_ended(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    play(monkeypatch, {})
    job = recorded(site, state=S.RUNNING)
    write_launch(site, job.key, host="h", pid=1, boot_id="b", started=1.0, ended=2.0, exit_code=1)
    cancel(site, [job], os.environ)
    found = read_job(site, job.key)
    assert found is not None
    assert (found.state, found.exit_code) == (S.ENDED, 1)
