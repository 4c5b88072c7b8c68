"""Commands that are called rightly, on a site without a launcher."""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import pytest

from nas_hpc.cli.context import open_database
from nas_hpc.cli.main import COMMANDS, main
from nas_hpc.cli.submission import find_job
from nas_hpc.records import Result, new_id
from nas_hpc.site import Site
from nas_hpc.states import Actor, Outcome, State
from tests.cli.conftest import Run
from tests.peers.mpi import MpiPeer

GROUPS = {"ls": ("jobs", "apps", "nodes", "queues"), "run": ("hps",)}
ALL = [(name,) for name in COMMANDS] + [(name, below) for name, parts in GROUPS.items() for below in parts]


@pytest.mark.parametrize("command", ALL, ids=" ".join)
def test_every_command_has_a_help_with_an_example(nas_hpc: Run, command: tuple[str, ...]) -> None:
    for flag in ("--help", "-h"):
        called = nas_hpc(*command, flag)
        assert called.code == 0
        assert "Example" in called.out
        assert f"nas-hpc {command[0]}" in called.out.partition("Example")[2]


def test_the_help_names_every_command_and_the_version_is_told(nas_hpc: Run) -> None:
    out = nas_hpc("--help").out
    assert all(f"  {name} " in out for name in COMMANDS)
    assert nas_hpc("--version").out.startswith("nas-hpc 0.")


def test_init_makes_a_private_site_with_a_database(nas_hpc: Run) -> None:
    called = nas_hpc("init", "testdb")
    assert called.code == 0
    assert "nas-hpc-activate testdb" in called.out
    assert Path("testdb/db.sqlite3").stat().st_mode & 0o077 == 0
    assert json.loads(nas_hpc("ls", "jobs", "--json", "--site", "testdb").out) == []
    os.chdir("testdb/data")
    assert nas_hpc("ls", "jobs").out == "no jobs\n"


@pytest.mark.parametrize("place", ["before", "behind"])
def test_the_site_may_be_named_before_and_behind_the_command(
    nas_hpc: Run, full_site: Site, place: str
) -> None:
    where = ("--site", str(full_site.path))
    argv = (*where, "ls", "jobs") if place == "before" else ("ls", "jobs", *where)
    assert "ready" in nas_hpc(*argv).out


def test_the_flags_of_the_reference_work_as_they_are_spelled_there(nas_hpc: Run, site: Site) -> None:
    executable = f"{sys.executable} -m nas_hpc.apps.ambs"
    assert nas_hpc("app", "--name", "AMBS", "--exec", executable).code == 0
    assert nas_hpc("app", "--name", "AMBS2", "--executable", executable, "--yes").code == 0
    problem = "nas_hpc.problems.hps.polynome2"
    args = f"--evaluator balsam --problem {problem}.Problem --run {problem}.run"
    common = ("job", "--name", "test", "--workflow", "TEST", "--node-packing-count=4", "--yes")
    for flag in ("--application", "--app"):
        called = nas_hpc(*common, flag, "AMBS", "--env", "DEEPHYPER_WORKERS_PER_NODE=4", "--args", args)
        assert called.code == 0, called
        assert len(called.out.strip()) == 32
    for app in json.loads(nas_hpc("ls", "apps", "--json").out):
        assert app["restartable"]


def test_a_job_records_where_it_came_from_and_no_secret(
    nas_hpc: Run, full_site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_API_TOKEN", "hunter2")
    monkeypatch.setenv("MODEL", "resnet")
    monkeypatch.setenv("PYTHONPATH", f"lib{os.pathsep}/opt/lib")
    identifier = nas_hpc("job", "--name", "new", "--workflow", "W", "--app", "echo").out.strip()
    with open_database(full_site) as store:
        job = find_job(store, identifier)
    assert job.state is State.READY
    assert job.origin.directory == os.getcwd()
    assert job.origin.sys_path == (os.getcwd(), f"{os.getcwd()}/lib", "/opt/lib")
    assert job.origin.interpreter == sys.executable
    assert job.origin.environ["MODEL"] == "resnet"
    assert "hunter2" not in job.origin.environ.values()


def test_a_program_is_registered_by_its_absolute_path(nas_hpc: Run, site: Site) -> None:
    Path("my program").write_text("#!/bin/sh\n")
    Path("my program").chmod(0o755)
    assert nas_hpc("app", "--name", "mine", "--exec", "'./my program' --fast").code == 0
    assert nas_hpc("app", "--name", "true", "--exec", "true").code == 0
    found = {app["name"]: app["executable"] for app in json.loads(nas_hpc("ls", "apps", "--json").out)}
    assert found["mine"] == f"'{os.getcwd()}/my program' --fast"
    assert found["true"].endswith("bin/true")
    assert found["true"].startswith("/")


def test_an_application_is_replaced_and_removed_when_that_is_said(nas_hpc: Run, full_site: Site) -> None:
    assert nas_hpc("app", "--name", "RAN", "--exec", "true", "--replace").code == 0
    assert nas_hpc("app", "--rm", "RAN").code == 0
    assert "RAN" not in nas_hpc("ls", "apps").out
    assert nas_hpc("app", "--sync").code == 0
    assert "RAN" in nas_hpc("ls", "apps").out


def test_jobs_are_listed_by_state_workflow_name_and_number(nas_hpc: Run, full_site: Site) -> None:
    def names(*flags: str) -> list[str]:
        return [job["name"] for job in json.loads(nas_hpc("ls", "jobs", "--json", *flags).out)]

    assert names() == ["ready", "twin", "twin", "child"]
    assert names("--workflow", "V") == ["twin"]
    assert names("--wf-filter", "V") == ["twin"]
    assert names("--state", "awaiting_parents") == ["child"]
    assert names("--name", "twin", "--limit", "1") == ["twin"]
    plain = nas_hpc("ls", "jobs", "--limit", "1").out
    assert "child" in plain
    assert "(3 older ones are not shown)" in plain
    [job] = json.loads(nas_hpc("ls", "jobs", "--json", "--name", "child", "--history").out)
    assert [event["new"] for event in job["history"]] == ["AWAITING_PARENTS"]


def test_killed_jobs_can_be_retried(nas_hpc: Run, full_site: Site) -> None:
    assert nas_hpc("kill", "ready").code == 0
    assert "USER_KILLED" in nas_hpc("ls", "jobs", "--name", "ready").out
    assert nas_hpc("retry", "W/ready").code == 0
    assert "RESTART_READY" in nas_hpc("ls", "jobs", "--name", "ready").out
    assert nas_hpc("retry", "--failed").out.startswith(("no job", "to run again"))


def test_an_evaluation_that_its_search_has_counted_is_not_retried(nas_hpc: Run, full_site: Site) -> None:
    with open_database(full_site) as store:
        search = find_job(store, "ready")
        one = replace(search, id=new_id(), name="task1", creator=search.id, seq=1)
        [task] = store.add_jobs([one], Actor.SEARCH)
        store.set_state([task.id], State.USER_KILLED, Actor.COMMAND, "")
    called = nas_hpc("retry", "task1")
    assert called.code == 2
    assert "task1" in called.err
    assert "--eval-retries" in called.err
    assert "retry" not in nas_hpc("why", "task1").out


def test_a_change_shows_no_defaults_and_a_new_job_does(nas_hpc: Run) -> None:
    assert "[default: 1]" in nas_hpc("job", "--help").out
    assert "[default: 1]" not in nas_hpc("modify", "--help").out


def test_a_job_that_has_run_keeps_its_name_and_a_finished_one_everything(
    nas_hpc: Run, full_site: Site
) -> None:
    [job] = json.loads(nas_hpc("ls", "jobs", "--json", "--name", "ready").out)
    (full_site.data / "W" / job["directory"]).mkdir(parents=True)
    refused = nas_hpc("modify", "ready", "--name", "other")
    assert refused.code == 2
    assert job["directory"] in refused.err
    assert nas_hpc("modify", "ready", "--retries", "2").code == 0
    with open_database(full_site) as store:
        done = replace(find_job(store, "ready"), id=new_id(), name="done", creator=job["id"], seq=1)
        store.add_finished([(done, Result(Outcome.OK, 1.0))])
    assert "will not run again" in nas_hpc("modify", "done", "--retries", "3").err


def test_several_ranks_are_refused_where_launchers_run_in_serial_mode(
    nas_hpc: Run, full_site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = ("--num-nodes", "2", "--ranks-per-node", "4")
    assert nas_hpc("modify", "ready", *more).code == 0
    monkeypatch.setenv("NAS_HPC_JOB_MODE", "serial")
    app = json.loads(nas_hpc("ls", "apps", "--json").out)[0]["name"]
    for call in (("job", "--name", "n", "--workflow", "W", "--app", app), ("modify", "V/twin")):
        refused = nas_hpc(*call, *more)
        assert refused.code == 2
        assert (
            "--num-nodes 2 --ranks-per-node 4: job_mode is serial (environment NAS_HPC_JOB_MODE)"
            in refused.err
        )
    assert nas_hpc("modify", "ready", "--retries", "1").code == 0


def test_a_search_by_agents_is_taken_as_the_reference_has_it_and_refused_where_it_cannot_be(
    nas_hpc: Run, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert nas_hpc("app", "--name", "PPO", "--exec", f"{sys.executable} -m nas_hpc.apps.ppo").code == 0
    job = (
        "job",
        "--name",
        "ppo_test",
        "--workflow",
        "ppo_test",
        "--app",
        "PPO",
        "--num-nodes",
        "11",
        "--args",
    )
    args = (
        "--evaluator balsam --run nas_hpc.nas.alpha.run --problem nas_hpc.problems.nas.digits_dense.Problem "
        "--ent-coef 0.01 --noptepochs 10 --network ppo_lnlstm_128 --gamma 1.0 --lam 0.95 --max-evals 1000000"
    )
    assert nas_hpc(*job, args).code == 0
    for wrong, said in (
        (args.replace("lnlstm", "gru"), "'ppo_gru_128': give one of ppo_lstm_32"),
        (args.replace("1000000", "1"), "--max-evals 1: PPO learns from batches"),
        (f"{args} --nminibatches 0", "--nminibatches"),
    ):
        refused = nas_hpc(*job, wrong)
        assert (refused.code, refused.err.count("\n")) == (2, 1)
        assert said in refused.err
    monkeypatch.setenv("NAS_HPC_JOB_MODE", "serial")
    one_node = tuple("1" if word == "11" else word for word in job)
    assert "its agents are MPI ranks, and job_mode is serial" in nas_hpc(*one_node, args).err
    assert len(json.loads(nas_hpc("ls", "jobs", "--json").out)) == 1


def test_a_job_is_changed_and_removed_with_its_directory(nas_hpc: Run, full_site: Site) -> None:
    assert (
        nas_hpc(
            "modify", "V/twin", "--args", "a b", "--retries", "3", "--env", "X=1", "--num-nodes", "2"
        ).code
        == 0
    )
    [job] = json.loads(nas_hpc("ls", "jobs", "--json", "--workflow", "V").out)
    assert (job["args"], job["retries"], job["environ"]) == ("a b", 3, {"X": "1"})
    assert job["resources"]["num_nodes"] == 2
    directory = full_site.data / "V" / job["directory"]
    directory.mkdir(parents=True)
    assert nas_hpc("rm", "V/twin", "--yes", "--keep-files").code == 0
    assert directory.is_dir()
    assert nas_hpc("rm", "--workflow", "W", "--yes").code == 0
    assert directory.is_dir()
    assert nas_hpc("ls", "jobs").out == "no jobs\n"


def test_a_workflow_without_jobs_leaves_no_records_that_a_new_one_would_inherit(
    nas_hpc: Run, full_site: Site
) -> None:
    for workflow in ("V", "W"):
        (full_site.data / workflow).mkdir()
        (full_site.data / workflow / "attempts.jsonl").touch()
    assert nas_hpc("rm", "V/twin", "W/twin", "--yes").code == 0
    assert sorted(path.name for path in full_site.data.iterdir()) == ["W"]


def test_why_names_the_parents_and_that_no_launcher_runs(nas_hpc: Run, full_site: Site) -> None:
    out = nas_hpc("why", "child").out
    assert "waits for its parent W/ready" in out
    assert "no launcher is running: start one with: nas-hpc launcher --wf-filter W" in out
    assert json.loads(nas_hpc("why", "child", "--json").out)["state"] == "AWAITING_PARENTS"


def test_log_prints_the_last_lines_as_they_are(nas_hpc: Run, full_site: Site) -> None:
    [job] = json.loads(nas_hpc("ls", "jobs", "--json", "--name", "ready").out)
    assert "has written nothing" in nas_hpc("log", "ready").err
    directory = full_site.data / "W" / job["directory"]
    directory.mkdir(parents=True)
    (directory / "ready.out").write_bytes(b"one\ntwo\nthree")
    assert nas_hpc("log", "ready").out == "one\ntwo\nthree"
    assert nas_hpc("log", "ready", "--tail", "2").out == "two\nthree"


def test_doctor_says_what_is_well_and_where_settings_come_from(
    nas_hpc: Run, full_site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NAS_HPC_NODES", "3")
    body = json.loads(nas_hpc("doctor", "--quick", "--json").out)
    checks = {check["name"]: check["level"] for check in body["checks"]}
    for name in ("python", "libraries", "site", "file system", "locks", "clock", "database", "launcher"):
        assert checks[name] == "ok", body
    assert body["settings"]["nodes"] == {"value": 3, "origin": "environment NAS_HPC_NODES"}
    assert "locks" in nas_hpc("doctor", "--quick").out


def test_doctor_says_which_variables_are_no_settings(
    nas_hpc: Run, full_site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NAS_HPC_JOBMODE", "serial")
    found = [
        one
        for one in json.loads(nas_hpc("doctor", "--quick", "--json").out)["checks"]
        if one["name"] == "environment"
    ]
    assert [(one["level"], one["text"]) for one in found] == [
        ("warn", "NAS_HPC_JOBMODE is no setting; did you mean NAS_HPC_JOB_MODE?")
    ]


def test_doctor_shows_the_nodes_that_a_launcher_would_have(
    nas_hpc: Run, full_site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COBALT_JOBID", "7")
    monkeypatch.setenv("COBALT_PARTNAME", "1-3,8")
    monkeypatch.setenv("COBALT_ENDTIME", str(time.time() + 3600))
    monkeypatch.setenv("NAS_HPC_NODES", "2")
    monkeypatch.setenv("NAS_HPC_GPUS_PER_NODE", "4")
    body = json.loads(nas_hpc("doctor", "--quick", "--json").out)
    assert [node["name"] for node in body["allocation"]["nodes"]] == ["nid00001", "nid00002"]
    assert body["allocation"]["nodes"][0]["gpus"] == ["0", "1", "2", "3"]
    shown = nas_hpc("doctor", "--quick").out
    assert "cobalt job 7: 2 nodes nid[00001-00002]" in shown
    assert "2 on other hosts" in shown
    assert "in 59m" in shown or "in 1h00m" in shown
    monkeypatch.setenv("NAS_HPC_NODES", "5")
    called = nas_hpc("doctor", "--quick")
    assert called.code == 1
    assert "bad   allocation       --nodes 5: cobalt job 7 has 4 (nid[00001-00003,00008])" in called.out


@pytest.mark.needs_mpich
def test_doctor_tries_the_mpi_program_with_two_ranks(
    nas_hpc: Run, full_site: Site, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, mpich: MpiPeer
) -> None:
    def said() -> dict[str, tuple[str, str]]:
        checks = json.loads(nas_hpc("doctor", "--quick", "--json").out)["checks"]
        return {one["name"]: (one["level"], one["text"]) for one in checks if one["name"].startswith("mpi")}

    monkeypatch.setenv("NAS_HPC_MPI", str(mpich.mpiexec))
    found = said()
    assert found["mpi"] == ("ok", f"MPICH's mpiexec (hydra) {version('mpich')} at {mpich.mpiexec}")
    assert found["mpi ranks"][0] == "ok"
    assert "find each other" in found["mpi ranks"][1]
    single = tmp_path / "mpiexec"  # as one whose start of two ranks gives one
    single.write_text(
        f"#!/bin/sh\n[ $1 = --version ] && exec {mpich.mpiexec} --version\necho nothing\nexit 3\n"
    )
    single.chmod(0o755)
    monkeypatch.setenv("NAS_HPC_MPI", str(single))
    assert said()["mpi ranks"] == ("bad", "it does not start two ranks: nothing (exit code 3)")
    assert nas_hpc("doctor", "--quick").code == 1
    monkeypatch.setenv("NAS_HPC_MPI", "/bin/false")
    assert said()["mpi"][0] == "bad"
    monkeypatch.setenv("NAS_HPC_MPI", "none")
    assert said() == {"mpi": ("ok", "none (environment NAS_HPC_MPI)")}


def test_doctor_finds_what_is_bad_and_ends_with_one(nas_hpc: Run, full_site: Site) -> None:
    full_site.database.write_bytes(b"no database at all")
    full_site.path.chmod(0o755)
    called = nas_hpc("doctor", "--quick")
    assert called.code == 1
    assert "bad   database" in called.out
    assert "chmod 700" in called.out


def test_a_change_is_recorded_and_told_when_a_launcher_does_not_answer(nas_hpc: Run, full_site: Site) -> None:
    full_site.endpoint.write_text("{}")
    called = nas_hpc("job", "--name", "new", "--workflow", "W", "--app", "echo")
    assert called.code == 0
    assert len(called.out.strip()) == 32
    assert called.err.startswith("note: the change is recorded, but the launcher was not told: ")


def test_an_error_of_the_program_itself_is_one_line_and_a_traceback_with_debug(
    nas_hpc: Run, full_site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("division\nby zero")

    monkeypatch.setattr("nas_hpc.cli.ls.print_table", broken)
    called = nas_hpc("ls", "jobs")
    assert called.code == 1
    assert called.err == (
        "nas-hpc: error: ZeroDivisionError: division by zero; run again with --debug for the traceback\n"
    )
    with pytest.raises(ZeroDivisionError):
        main(["ls", "jobs", "--debug"])


def test_an_interrupted_command_ends_with_130(
    nas_hpc: Run, full_site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("nas_hpc.cli.ls.print_table", interrupted)
    called = nas_hpc("ls", "jobs")
    assert called.code == 130
    assert called.err.strip().splitlines()[-1] == "nas-hpc: interrupted"
