"""Batch jobs in ls queues, why, kill and doctor; qstat and qdel say what a test has them say."""

from __future__ import annotations

import json
import os
import time
from dataclasses import replace
from pathlib import Path

import pytest

from nas_hpc.batch import following
from nas_hpc.batch.following import trouble_file
from nas_hpc.batch.jobs import new_job, read_job, record_of, write_job, write_launch
from nas_hpc.cli import batch_control
from nas_hpc.cli.context import open_database
from nas_hpc.cli.submission import find_job
from nas_hpc.records import BatchJob
from nas_hpc.site import Site
from nas_hpc.states import BatchState
from tests.cli.conftest import Run

QSTAT = """
shift 2
for id in "$@"; do
  while read -r known state; do
    [ "$known" = "$id" ] && rows+=$(printf '%-6s  %-11s|' "$id" "$state")
  done <{states}
done
[ -n "$rows" ] || exit 1
printf 'JobID   State      \\n===================\\n%s' "$rows" | tr '|' '\\n'
"""


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory of programs that is first on PATH; the machine is theta."""
    directory = tmp_path / "programs"
    directory.mkdir()
    monkeypatch.setenv("PATH", f"{directory}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("NAS_HPC_MACHINE", "theta")
    return directory


def program(programs: Path, name: str, script: str) -> None:
    """Put a program in its place, at once."""
    new = programs / f".{name}"
    new.write_text(f"#!/bin/bash\n{script}\n")
    new.chmod(0o700)
    new.rename(programs / name)


def says(programs: Path, *rows: tuple[str, str]) -> None:
    """Have qstat answer with these ids and states, of which it tells those that it is asked for."""
    (programs / "states").write_text("".join(f"{id_} {state}\n" for id_, state in rows))
    program(programs, "qstat", QSTAT.format(states=programs / "states"))


def recorded(site: Site, id_: str = "512345", **values: object) -> BatchJob:
    fields: dict[str, object] = {
        "system": "cobalt",
        "machine": "theta",
        "nodes": 128,
        "walltime_minutes": 180,
    }
    fields |= {"job_mode": "serial", "workflow": "W", "queue": "default", "project": "datascience"}
    fields |= {"id": id_, "state": BatchState.QUEUED, "submitted": time.time() - 90} | values
    job = new_job(site, **fields)
    write_job(site, job)
    return job


def current(site: Site, job: BatchJob) -> BatchJob:
    found = read_job(site, job.key)
    assert found is not None
    return found


def test_ls_queues_tells_the_queues_limits_and_the_batch_jobs(
    nas_hpc: Run, full_site: Site, programs: Path
) -> None:
    says(programs, ("512345", "queued"), ("512346", "dep_hold"))
    recorded(full_site)
    recorded(full_site, "512346", dependencies=("512345",))
    ended = recorded(full_site, "512300", state=BatchState.ENDED, exit_code=3)
    out = nas_hpc("ls", "queues").out
    assert "machine theta (cobalt)" in out
    assert "default (default)" in out
    assert "30-180 from 128 nodes, 30-360 from 256 nodes" in out
    assert "512345" in out
    assert "held" in out
    assert ended.id not in out
    assert "(1 at their end are not shown; --all shows them)" in out
    assert "ended (3)" in nas_hpc("ls", "queues", "--all").out
    body = json.loads(nas_hpc("ls", "queues", "--json", "--all").out)
    assert (body["machine"], body["system"], body["trouble"]) == ("theta", "cobalt", [])
    assert {"default", "debug-cache-quad"} <= {queue["name"] for queue in body["queues"]}
    states = {job["id"]: job["state"] for job in body["batch_jobs"]}
    assert states == {"512345": "queued", "512346": "held", "512300": "ended"}


def test_ls_queues_asks_the_batch_system_where_the_machines_file_names_none(
    nas_hpc: Run, full_site: Site, programs: Path
) -> None:
    program(programs, "sinfo", "echo 'short|up|1:00:00|1-4|4'; echo 'old|drain|2:00:00|1-2|2'")
    program(programs, "sacctmgr", "exit 1")
    body = json.loads(nas_hpc("ls", "queues", "--json", "--machine", "slurm").out)
    found = {queue["name"]: (queue["max_nodes"], queue["max_minutes"]) for queue in body["queues"]}
    assert found == {"short": (4, 60), "old": (2, 120)}
    assert "takes no batch jobs at the moment" in nas_hpc("ls", "queues", "--machine", "slurm").out
    program(programs, "sinfo", "echo 'slurm_load_partitions: Unable to contact' >&2; exit 1")
    answer = nas_hpc("ls", "queues", "--machine", "slurm")
    assert answer.code == 0
    assert "slurm does not tell its queues: sinfo: slurm_load_partitions: Unable to contact" in answer.err
    assert "slurm.toml names no queues, and slurm has told none" in answer.out


def test_ls_queues_says_so_where_there_are_none(nas_hpc: Run, full_site: Site) -> None:
    out = nas_hpc("ls", "queues", "--machine", "local").out
    assert "no queues: batch jobs run in the background" in out
    assert "no batch jobs; submit one with: nas-hpc submit-launch" in out


@pytest.mark.parametrize(
    ("qstat", "told"),
    [
        ("echo 'component error: Failed to connect' >&2; exit 1", "Failed to connect"),
        ("head -c 300 /dev/urandom", "qstat"),
        ("printf 'JobID   State\\n=======\\n512345  dancing\\n'", "dancing"),
    ],
    ids=["failed", "garbled", "new"],
)
def test_a_status_command_that_fails_changes_no_state_and_is_told_by_why_and_doctor(
    nas_hpc: Run, full_site: Site, programs: Path, qstat: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "FIRST_PAUSE_S", 60.0)  # no second question within a command
    program(programs, "qstat", qstat)
    job = recorded(full_site, state=BatchState.RUNNING)
    before = record_of(full_site, job.key).read_bytes()
    out = nas_hpc("why", job.id).out
    assert "batch job 512345 is running" in out
    assert told in out
    assert "states are as they were last known" in out
    assert "it is asked again in" in nas_hpc("ls", "queues").err
    assert "no answer since" in nas_hpc("why", "ready").out
    findings = json.loads(nas_hpc("doctor", "--quick", "--json").out)["checks"]
    [finding] = [one for one in findings if one["name"] == "batch jobs"]
    assert finding["level"] == "warn"
    assert told in finding["text"]
    assert record_of(full_site, job.key).read_bytes() == before
    says(programs, ("512345", "running"))
    findings = json.loads(nas_hpc("doctor", "--quick", "--json").out)["checks"]
    assert [one["text"] for one in findings if one["name"] == "batch jobs"] == ["1 running"]
    assert not trouble_file(full_site, "cobalt").exists()


def test_why_of_a_waiting_job_tells_the_batch_job_that_will_run_it(
    nas_hpc: Run, full_site: Site, programs: Path
) -> None:
    says(programs, ("512345", "user_hold"))
    recorded(full_site)
    recorded(full_site, "512346", workflow="OTHER")
    out = nas_hpc("why", "ready").out
    assert "waits for batch job 512345 (queue default, 128 nodes, 3h00m), which is held; submitted 1m3" in out
    assert "qrls" in out
    assert "512346" not in out


def test_why_of_a_waiting_job_without_a_batch_job_says_what_to_type(
    nas_hpc: Run, full_site: Site, programs: Path
) -> None:
    said = nas_hpc("why", "ready").out
    assert "nas-hpc submit-launch -n NODES -q default -t MINUTES -A PROJECT --wf-filter W" in said
    assert "the last one for it" not in said
    assert (
        "submit-launch -n NODES -t MINUTES --wf-filter W" in nas_hpc("why", "ready", "--machine", "local").out
    )


def test_why_of_a_waiting_job_tells_how_the_last_batch_job_for_it_ended(
    nas_hpc: Run, full_site: Site, programs: Path
) -> None:
    with open_database(full_site) as store:
        job = find_job(store, "ready")
    recorded(full_site, "511", state=BatchState.ENDED, submitted=job.created - 10)
    recorded(full_site, "512", state=BatchState.ENDED, workflow="OTHER", submitted=job.created + 30)
    assert "the last one for it" not in nas_hpc("why", "ready").out
    recorded(full_site, "513", state=BatchState.CANCELLED, submitted=job.created + 10)
    last = recorded(full_site, "514", state=BatchState.ENDED, exit_code=1, submitted=job.created + 20)
    refusal = f"job ready ({job.id[:8]}) cannot run here: no nodes"
    Path(last.output).write_text(f"begins\n{refusal}\nlauncher ended\n")
    write_launch(full_site, last.key, host="h", pid=1, boot_id="b", started=1e9, ended=1e9 + 60, exit_code=1)
    out = nas_hpc("why", "ready").out
    assert (
        "the last one for it, batch job 514 (queue default, 128 nodes, 3h00m), is ended with exit code 1"
        in out
    )
    assert "2001-09-09 01:47:40 UTC" in out
    assert f"its output {last.output} says:" in out
    assert f"| {refusal}" in out
    assert "| launcher ended" not in out
    assert "513" not in out
    assert "no launcher is running: start one with" in out


def test_why_of_a_batch_job_tells_what_it_runs_and_what_its_launcher_said(
    nas_hpc: Run, full_site: Site, programs: Path
) -> None:
    says(programs)
    job = recorded(full_site, dependencies=("7",), output=str(full_site.qsubmit / "x.output"))
    write_launch(
        full_site,
        job.key,
        host="nid00001",
        pid=12,
        boot_id="b",
        started=1e9,
        ended=1e9 + 60,
        exit_code=0,
        left=3,
    )
    Path(job.output).write_text("hello\nlauncher ended\n")
    out = nas_hpc("why", "batch:512345").out
    assert "batch job 512345 is ended" in out
    assert "queue default, 128 nodes, 3h00m, project datascience; its launcher runs jobs of workflow W" in out
    assert "(process 12 on nid00001) and ended 2001-09-09 01:47:40 UTC with exit code 0, 3 jobs" in out
    assert "| launcher ended" in out
    body = json.loads(nas_hpc("why", "512345", "--json").out)
    assert (body["state"], body["exit_code"], body["launcher"]["left"]) == ("ended", 0, 3)


def test_a_batch_job_is_looked_at_without_a_database(nas_hpc: Run, full_site: Site, programs: Path) -> None:
    says(programs, ("512345", "queued"))
    recorded(full_site)
    full_site.database.unlink()
    assert nas_hpc("why", "batch:512345").code == 0
    answer = nas_hpc("why", "512345")
    assert "batch job 512345 is queued" in answer.out
    assert "cannot be told" in answer.err


def test_a_word_that_is_a_job_and_a_batch_job_is_told_apart(
    nas_hpc: Run, full_site: Site, programs: Path
) -> None:
    says(programs, ("512345", "queued"))
    with open_database(full_site) as store:
        job = find_job(store, "ready")
    word = job.id[:6]
    batch = recorded(full_site, word)
    answer = nas_hpc("why", word)
    assert f"W/ready ({job.id[:8]}) is READY" in answer.out
    assert f"nas-hpc why batch:{word}" in answer.err
    answer = nas_hpc("kill", word)
    assert answer.code == 2
    assert f"say batch:{word} or {job.id[:12]}" in answer.err
    assert current(full_site, batch).state is BatchState.QUEUED


def test_an_unknown_batch_job_is_refused(nas_hpc: Run, full_site: Site) -> None:
    for command in ("why", "kill"):
        answer = nas_hpc(command, "batch:99")
        assert answer.code == 2
        assert "the site has no batch job '99'; nas-hpc ls queues --all" in answer.err


def test_a_batch_job_nobody_knows_the_id_of_is_told_as_that(
    nas_hpc: Run, full_site: Site, programs: Path
) -> None:
    says(programs)
    job = recorded(full_site, "", state=BatchState.SUBMITTING)
    assert "it is not known whether it was submitted" in nas_hpc("why", job.key).out
    assert "unknown" in nas_hpc("ls", "queues").out
    answer = nas_hpc("kill", job.key)
    assert answer.code == 2
    assert "it is not known whether" in answer.err
    write_job(full_site, replace(job, submitted=time.time()))
    assert "just now" in nas_hpc("kill", job.key).err
    assert "not known whether" not in nas_hpc("why", job.key).out


def test_kill_ends_a_batch_job_and_names_what_is_left_of_its_chain(
    nas_hpc: Run, full_site: Site, programs: Path
) -> None:
    says(programs, ("512345", "queued"), ("512346", "dep_hold"))
    first = recorded(full_site, chain="c")
    recorded(full_site, "512346", chain="c")
    program(programs, "qdel", f"echo '512346 dep_hold' >{programs}/states; echo '      Deleted Jobs'")
    answer = nas_hpc("kill", "512345")
    assert answer.out == "cancelled batch job 512345 (queue default, 128 nodes, 3h00m)\n"
    assert "nas-hpc kill batch:512346" in answer.err
    assert current(full_site, first).state is BatchState.CANCELLED
    again = nas_hpc("kill", "512345")
    assert again.code == 0
    assert "is cancelled already" in again.err


def test_kill_fails_where_the_batch_job_is_still_there(
    nas_hpc: Run, full_site: Site, programs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_control, "VERIFY_S", 0.0)
    says(programs, ("512345", "running"))
    program(programs, "qdel", "exit 0")  # as for another user's
    job = recorded(full_site)
    answer = nas_hpc("kill", "batch:512345")
    assert answer.code == 1
    assert "batch job 512345" in answer.err
    assert current(full_site, job).state in (BatchState.RUNNING, BatchState.QUEUED)


def test_kill_of_a_silent_system_says_that_nothing_is_known(
    nas_hpc: Run, full_site: Site, programs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_control, "FIRST_PAUSE_S", 60.0)
    program(programs, "qstat", "echo 'component error: down' >&2; exit 1")
    program(programs, "qdel", "echo 'component error: down' >&2; exit 1")
    job = recorded(full_site)
    answer = nas_hpc("kill", "512345")
    assert answer.code == 1
    assert "whether batch job 512345 will end is not known" in answer.err
    assert current(full_site, job).state is BatchState.QUEUED


def test_kill_takes_jobs_and_batch_jobs_in_one_call(nas_hpc: Run, full_site: Site, programs: Path) -> None:
    says(programs)
    program(programs, "qdel", "echo '      Deleted Jobs'")
    recorded(full_site)
    body = json.loads(nas_hpc("kill", "ready", "512345", "--json").out)
    assert [one["state"] for one in body] == ["READY", "cancelled"]


def test_kill_of_a_workflow_names_the_batch_jobs_that_are_left(nas_hpc: Run, full_site: Site) -> None:
    recorded(full_site)
    answer = nas_hpc("kill", "--workflow", "W", "--yes")
    assert answer.code == 0
    assert "end them with: nas-hpc kill batch:512345" in answer.err
