"""Flags of scripts, linked files and parents, on a site without a launcher."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from nas_hpc.cli.context import open_database
from nas_hpc.cli.submission import find_job
from nas_hpc.records import ParentFailure, Stages, new_id
from nas_hpc.site import Site
from nas_hpc.states import Actor, State
from tests.cli.conftest import ECHO, Run

PLAIN = {
    "preprocess": None, "postprocess": None, "input_files": "*", "post_error_handler": False,
    "post_timeout_handler": False, "on_parent_failure": "fail",
}  # fmt: skip
JOB = ("job", "--workflow", "W", "--app", "echo")


def tool(name: str) -> Path:
    """A script in the working directory that can be started."""
    path = Path(name).absolute()
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


def stages(called: Run, name: str) -> dict[str, Any]:
    [job] = json.loads(called("ls", "jobs", "--name", name, "--json").out)
    found: dict[str, Any] = job["stages"]
    return found


def test_an_application_keeps_its_scripts_with_absolute_paths(nas_hpc: Run, site: Site) -> None:
    pre, env = tool("pre.sh"), tool("env.sh")
    scripts = ("--preprocess", "./pre.sh 'a b'", "--postprocess", "true", "--environment-script", "env.sh")
    assert nas_hpc("app", "--name", "A", "--exec", ECHO, *scripts).code == 0
    [app] = json.loads(nas_hpc("ls", "apps", "--json").out)
    assert app["preprocess"] == f"{pre} 'a b'"
    assert app["postprocess"].endswith("/true")
    assert app["postprocess"].startswith("/")
    assert app["environment_script"] == str(env)
    assert nas_hpc("app", "--name", "A", "--exec", ECHO, *scripts).code == 0  # the same again
    assert nas_hpc("app", "--name", "A", "--exec", ECHO, "--replace").code == 0
    [app] = json.loads(nas_hpc("ls", "apps", "--json").out)
    assert app["preprocess"] == app["postprocess"] == app["environment_script"] == ""


def test_a_job_keeps_what_was_said_and_modify_changes_it(nas_hpc: Run, full_site: Site) -> None:
    pre = tool("pre.sh")
    assert nas_hpc(*JOB, "--name", "plain").code == 0
    assert stages(nas_hpc, "plain") == PLAIN
    said = (
        "--preprocess", "./pre.sh x", "--postprocess", "true", "--input-files", "*.h5   m/*",
        "--post-error-handler", "--post-timeout-handler", "--on-parent-failure", "run",
    )  # fmt: skip
    assert nas_hpc(*JOB, "--name", "full", *said).code == 0
    found = stages(nas_hpc, "full")
    assert found.pop("postprocess").endswith("/true")
    assert found == {
        "preprocess": f"{pre} x", "input_files": "*.h5 m/*", "post_error_handler": True,
        "post_timeout_handler": True, "on_parent_failure": "run",
    }  # fmt: skip
    changes = ("--preprocess", "", "--no-post-error-handler", "--on-parent-failure", "wait")
    assert nas_hpc("modify", "full", *changes).code == 0
    found = stages(nas_hpc, "full")
    assert (found["preprocess"], found["post_error_handler"]) == ("", False)
    assert (found["post_timeout_handler"], found["on_parent_failure"]) == (True, "wait")
    assert nas_hpc("modify", "full", *changes).code == 2  # nothing to change


def test_a_handler_may_be_the_applications_script(nas_hpc: Run, full_site: Site) -> None:
    assert nas_hpc("app", "--name", "P", "--exec", ECHO, "--postprocess", "true").code == 0
    called = nas_hpc("job", "--name", "j", "--workflow", "W", "--app", "P", "--post-error-handler")
    assert called.code == 0, called
    assert nas_hpc("modify", "j", "--input-files", "").code == 0
    with open_database(full_site) as store:
        assert find_job(store, "j").stages == Stages(post_error_handler=True, input_files="")


def test_parents_are_kept_in_the_order_in_which_they_were_given(nas_hpc: Run, full_site: Site) -> None:
    ids = [nas_hpc(*JOB, "--name", name).out.strip() for name in ("a", "b", "c")]
    given = [ids[2][:10], ids[0], ids[1][:20].upper(), ids[2]]
    called = nas_hpc(*JOB, "--name", "child", "--parents", ",".join(given), "--json")
    assert json.loads(called.out)["parents"] == [ids[2], ids[0], ids[1]]


def test_parents_are_named_as_jobs_are_everywhere(nas_hpc: Run, full_site: Site) -> None:
    ids = [nas_hpc(*JOB, "--name", name).out.strip() for name in ("a", "cafe", "b")]
    other = nas_hpc("job", "--name", "a", "--workflow", "V", "--app", "echo").out.strip()
    called = nas_hpc(*JOB, "--name", "child", "--parents", f"b,{ids[0][:8]},cafe,V/a,W/b", "--json")
    assert json.loads(called.out)["parents"] == [ids[2], ids[0], ids[1], other]
    refused = nas_hpc(*JOB, "--name", "child2", "--parents", "b,a")
    assert refused.code == 2
    assert refused.err.startswith("nas-hpc: error: --parents 'a': 2 jobs have that name, ")
    assert refused.err.rstrip().endswith("; give the id of one")
    refused = nas_hpc(*JOB, "--name", "child2", "--parents", "b,V/b")
    assert "--parents 'V/b': there is no job of that id or name" in refused.err


def test_hundreds_of_parents_are_looked_up_at_once_and_told_in_few_lines(
    nas_hpc: Run, full_site: Site
) -> None:
    with open_database(full_site) as store:
        ready = find_job(store, "ready")
        parents = [replace(ready, id=new_id(), name=f"p{number}") for number in range(300)]
        store.add_jobs(parents, Actor.COMMAND)
        store.set_state([parent.id for parent in parents[:8]], State.USER_KILLED, Actor.COMMAND)
    ids = ",".join(parent.id for parent in parents)
    called = nas_hpc(*JOB, "--name", "collect", "--parents", ids)
    assert called.code == 0
    notes = called.err.splitlines()
    assert len(notes) == 6
    assert notes[0].startswith("note: parent p0 (")
    assert notes[5] == "note: so are 3 other parents"
    why = nas_hpc("why", "collect").out
    assert why.count("waits for its parent") == 10
    assert "and for 290 more" in why
    called = nas_hpc(*JOB, "--name", "anyway", "--parents", ids, "--on-parent-failure", "run")
    assert called.err == ""
    assert "and for 282 more" in nas_hpc("why", "anyway").out


def test_retry_of_a_parent_says_which_children_wait_again(nas_hpc: Run, full_site: Site) -> None:
    assert nas_hpc("kill", "ready").code == 0
    why = nas_hpc("why", "child").out
    assert "its parent W/ready (" in why
    assert "both run again with: nas-hpc retry" in why
    out = nas_hpc("retry", "ready").out
    assert [line.split()[-2] for line in out.splitlines()] == ["W/ready", "W/child"]
    [child] = json.loads(nas_hpc("ls", "jobs", "--name", "child", "--history", "--json").out)
    assert [event["new"] for event in child["history"]] == ["AWAITING_PARENTS", "FAILED", "AWAITING_PARENTS"]
    assert child["stages"]["on_parent_failure"] == ParentFailure.FAIL.value
