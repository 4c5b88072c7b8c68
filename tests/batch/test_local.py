"""The batch system of this machine's own: real scripts in the background."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from nas_hpc.batch import local_runner
from nas_hpc.batch.local import Local, parse_id, state_file, submit_argv
from nas_hpc.batch.system import Answer, Request, Status, ask
from nas_hpc.errors import BatchRefused, WrongCall
from nas_hpc.processes import linux, sessions
from nas_hpc.records import BatchJob
from nas_hpc.states import BATCH_FINAL, BatchState
from tests.support import wait_until

S = BatchState
FOREVER = "sleep 1000"


class Bench:
    """Scripts that are given to the local system."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.count = 0

    def submit(
        self, body: str, *after: BatchJob, minutes: float = 5, grace_s: float = 30.0, mode: int = 0o700
    ) -> BatchJob:
        self.count += 1
        script = self.directory / f"K{self.count}.sh"
        script.write_text(f"#!/bin/bash\n{body}\n")
        script.chmod(mode)
        output = self.directory / f"K{self.count}"
        request = Request("x", 1, 5, self.directory, output, dependencies=tuple(job.id for job in after))
        argv = submit_argv(request, script)
        argv[argv.index("--minutes") + 1] = str(minutes)
        answer = ask([*argv[:-1], "--grace", str(grace_s), argv[-1]])
        assert answer.code == 0, answer
        return BatchJob(
            key=script.stem, system="local", machine="local", script=str(script), output=f"{output}.output",
            nodes=1, walltime_minutes=5, job_mode="mpi", id=answer.stdout.strip(),
        )  # fmt: skip

    def status(self, job: BatchJob) -> Status:
        return Local().status([job], ask)[job.id]

    def ended(self, job: BatchJob) -> Status:
        def look() -> Status | None:
            status = self.status(job)
            return status if status.state in BATCH_FINAL else None

        found = wait_until(look, 60.0, lambda: f"the end of {job.key}: {self.status(job)}")
        assert found is not None
        return found

    def printed(self, job: BatchJob) -> list[str]:
        try:
            return Path(job.output).read_text().splitlines()
        except FileNotFoundError:
            return []

    def await_words(self, job: BatchJob, word: str) -> None:
        wait_until(lambda: word in self.printed(job), 60.0, f"{word} of {job.key}")


def lives(pid: int) -> bool:
    """Whether there is such a process that is no zombie."""
    try:
        return linux.stat_fields(pid)[0] not in ("Z", "X")
    except OSError:
        return False


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


@pytest.mark.parametrize(("body", "code"), [("exit 0", 0), ("exit 42", 42), ("kill -9 $$", 137)])
def test_the_exit_code_of_a_script_is_known_after_its_end(bench: Bench, body: str, code: int) -> None:
    assert bench.ended(bench.submit(body)) == Status(S.ENDED, "", code)


def test_output_and_errors_of_a_script_are_in_one_file_and_it_runs_in_its_directory(bench: Bench) -> None:
    job = bench.submit("pwd; echo wrong >&2")
    bench.ended(job)
    assert bench.printed(job) == [str(bench.directory), "wrong"]


def test_a_running_one_is_running_and_a_cancelled_one_is_asked_to_end_in_order(bench: Bench) -> None:
    job = bench.submit("trap 'echo asked; exit 5' TERM; echo there; while :; do sleep 0.1; done")
    bench.await_words(job, "there")
    assert bench.status(job).state is S.RUNNING
    assert Local().cancel([job.id], ask) == {}
    assert bench.ended(job) == Status(S.CANCELLED, "it was cancelled", 5)
    assert bench.printed(job)[-1] == "asked"
    assert Local().cancel([job.id], ask) == {}  # again: it is not there


def test_when_its_time_is_over_a_script_is_asked_to_end_and_one_that_does_not_is_ended(bench: Bench) -> None:
    job = bench.submit("trap 'echo asked' TERM; while :; do sleep 0.05; done", minutes=0.01, grace_s=0.5)
    status = bench.ended(job)
    assert (status.state, status.exit_code) == (S.TIMEOUT, 137)
    assert "asked" in bench.printed(job)


def test_what_a_script_leaves_in_the_background_ends_with_it(bench: Bench) -> None:
    job = bench.submit("sleep 1000 & echo $!; exit 0")
    assert bench.ended(job).state is S.ENDED
    [pid] = bench.printed(job)
    wait_until(lambda: not lives(int(pid)), 30.0, "the end of what it left")


def test_one_that_depends_on_others_begins_after_their_end_whatever_that_was(bench: Bench) -> None:
    log = bench.directory / "log"
    os.mkfifo(bench.directory / "go")
    first = bench.submit(f"read < {bench.directory}/go; echo first >> {log}; exit 3")
    second = bench.submit(f"echo second >> {log}; exit 4", first)
    third = bench.submit(f"echo third >> {log}", second, first)
    assert bench.status(second).state is S.HELD
    assert first.id in bench.status(second).reason
    (bench.directory / "go").write_text("\n")
    bench.ended(third)
    assert log.read_text().split()[-3:] == ["first", "second", "third"]
    assert (bench.status(first).exit_code, bench.status(second).exit_code) == (3, 4)


def test_one_that_waits_can_be_cancelled_and_then_never_begins(bench: Bench) -> None:
    first = bench.submit(FOREVER)
    second = bench.submit("echo began", first)
    third = bench.submit("echo third", second)
    Local().cancel([second.id], ask)
    assert bench.ended(second) == Status(S.CANCELLED, "it was cancelled before it began", None)
    assert bench.ended(third).state is S.ENDED
    assert bench.printed(second) == []
    assert bench.status(first).state is S.RUNNING
    Local().cancel([first.id], ask)
    bench.ended(first)


def test_a_killed_runner_leaves_no_script_behind_and_its_end_is_not_made_up(bench: Bench) -> None:
    job = bench.submit("trap 'echo asked; exit 0' TERM; echo there; while :; do sleep 0.1; done")
    bench.await_words(job, "there")
    told = json.loads(state_file(job.script).read_text())
    os.kill(parse_id(job.id)[0], signal.SIGKILL)
    bench.await_words(job, "asked")
    wait_until(
        lambda: not sessions.is_alive(told["script_pid"], told["script_ticks"]), 30.0, "the script's end"
    )
    assert bench.ended(job) == Status(S.GONE, "its runner was killed")


def test_a_script_that_cannot_be_started_is_told_with_the_reason(bench: Bench) -> None:
    job = bench.submit("true", mode=0o600)
    status = bench.ended(job)
    assert (status.state, status.exit_code) == (S.ENDED, 127)
    assert "Permission denied" in status.reason


def test_where_the_runner_cannot_write_nothing_is_started(tmp_path: Path) -> None:
    script = tmp_path / "K.sh"
    script.write_text("#!/bin/bash\ntouch began\n")
    script.chmod(0o700)
    (tmp_path / "K.local.json").mkdir()  # full disks and the like
    request = Request("x", 1, 5, tmp_path, tmp_path / "K")
    with pytest.raises(BatchRefused, match="was not started: .*Is a directory"):
        Local().submit(request, script, ask)
    assert not (tmp_path / "began").exists()


def test_the_submitters_variables_reach_the_script_but_for_those_of_batch_jobs(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"MINE": "1", "SLURM_JOB_ID": "1", "COBALT_JOBID": "2", "PBS_JOBID": "3", "NAS_HPC_SITE": "/s"}
    assert local_runner.environment(given) == {"MINE": "1"}
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    job = bench.submit('echo "$MINE-$SLURM_JOB_ID-$COBALT_JOBID-$PBS_JOBID-$NAS_HPC_SITE"')
    bench.ended(job)
    assert bench.printed(job) == ["1----"]


def test_a_batch_job_of_another_host_is_left_alone_and_its_state_believed(bench: Bench) -> None:
    job = bench.submit(FOREVER)
    pid, ticks, _ = parse_id(job.id)
    there = replace(job, id=f"{pid}.{ticks}.elsewhere", state=S.RUNNING, script="/nowhere/K1.sh")
    assert bench.status(there).state is S.RUNNING
    assert "end it there" in Local().cancel([there.id], ask)[there.id]
    assert sessions.is_alive(pid, ticks)
    Local().cancel([job.id], ask)
    bench.ended(job)


def test_a_process_that_is_no_runner_is_never_taken_for_one(bench: Bench) -> None:
    other = subprocess.Popen(["sleep", "1000"])
    try:
        id_ = f"{other.pid}.{sessions.start_ticks(other.pid)}.{socket.gethostname()}"
        job = replace(bench.submit("true"), id=id_)
        assert bench.status(job).state is S.GONE
        assert Local().cancel([id_], ask) == {}
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


def test_the_script_takes_signals_as_it_would_in_a_terminal(bench: Bench) -> None:
    job = bench.submit("grep SigIgn /proc/$$/status")
    bench.ended(job)
    ignored = int(bench.printed(job)[0].split()[1], 16)
    assert [
        number for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM) if ignored >> (number - 1) & 1
    ] == []


def test_words_that_are_no_ids_are_told() -> None:
    said = Local().cancel(["12345"], ask)
    assert "no id" in said["12345"]
    request = Request("x", 1, 5, Path("/"), Path("/x"), dependencies=("abc",))
    with pytest.raises(WrongCall, match="'abc' is no id"):
        Local().submit(request, Path("/x.sh"), partial(pytest.fail, "called"))


def test_an_answer_that_is_no_id_is_not_taken_for_one() -> None:
    def refuse(argv: object) -> Answer:
        return Answer((), 1, "", "no more processes")

    with pytest.raises(BatchRefused, match="no more processes"):
        Local().submit(Request("x", 1, 5, Path("/"), Path("/x")), Path("/x.sh"), refuse)
