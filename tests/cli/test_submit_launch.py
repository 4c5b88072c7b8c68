"""submit-launch as it is typed: on a laptop to the end, and for machines that are elsewhere as a dry run."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from nas_hpc.batch.following import refresh
from nas_hpc.batch.jobs import read_jobs, read_launch
from nas_hpc.cli.submit_launch import parse_attrs, parse_ids
from nas_hpc.records import BatchJob
from nas_hpc.site import Site
from nas_hpc.states import BATCH_FINAL, BatchState
from tests.cli.conftest import Run
from tests.support import wait_until

PROBLEM = "nas_hpc.problems.hps.polynome2"
LOCAL = ("submit-launch", "--machine", "local", "-t", "5")
SEED = (
    "submit-launch",
    "-n",
    "128",
    "-q",
    "default",
    "-t",
    "180",
    "-A",
    "datascience",
    "--job-mode",
    "serial",
)


def files(site: Site) -> list[str]:
    return sorted(os.listdir(site.qsubmit))


def ended(site: Site, count: int) -> list[BatchJob]:
    """The batch jobs of the site, once all ``count`` are at their end."""

    def look() -> list[BatchJob]:
        jobs = refresh(site, read_jobs(site), os.environ, patience_s=0).jobs
        return jobs if len(jobs) == count and all(job.state in BATCH_FINAL for job in jobs) else []

    return wait_until(look, 200.0, lambda: f"the end of the batch jobs: {outputs(site)}")


def outputs(site: Site) -> str:
    return "\n".join(path.read_text() for path in sorted(site.qsubmit.glob("*.output")))


def add_search(nas_hpc: Run, evaluations: int) -> None:
    args = f"--problem {PROBLEM}.Problem --run {PROBLEM}.run --max-evals {evaluations}"
    search = ("--app", "AMBS", "--node-packing-count", "2", "--args", args)
    assert nas_hpc("app", "--sync").code == 0
    assert nas_hpc("job", "--name", "test", "--workflow", "TEST", *search).code == 0


@pytest.mark.slow
def test_a_search_runs_in_the_background_to_its_end(nas_hpc: Run, site: Site) -> None:
    add_search(nas_hpc, 8)
    called = nas_hpc(*LOCAL, "-n", "2", "--job-mode", "serial", "--wf-filter", "TEST")
    assert called.code == 0, called
    [recorded] = read_jobs(site)
    assert called.out.splitlines() == [
        f"submitted {recorded.id}", f"  script {recorded.script}", f"  log    {recorded.output}",
    ]  # fmt: skip
    [job] = ended(site, 1)
    assert (job.state, job.exit_code) == (BatchState.ENDED, 0), outputs(site)
    states = {one["name"]: one["state"] for one in json.loads(nas_hpc("ls", "jobs", "--json").out)}
    assert states == dict.fromkeys(["test", *(f"task{number}" for number in range(1, 9))], "JOB_FINISHED")
    launch = read_launch(site, job.key)
    assert launch is not None
    assert (launch.exit_code, launch.left) == (0, 0)
    assert launch.ended >= launch.started > 0
    assert "launcher ended" in Path(job.output).read_text()


@pytest.mark.slow
def test_a_chain_ends_early_when_its_workflow_is_done_although_a_job_failed(
    nas_hpc: Run, full_site: Site
) -> None:
    assert nas_hpc("app", "--name", "fails", "--exec", "false").code == 0
    assert nas_hpc("job", "--name", "bad", "--workflow", "C", "--app", "fails").code == 0
    called = nas_hpc(*LOCAL, "-n", "1", "--workflow", "C", "--chain", "3", "--json")
    assert called.code == 0, called
    told = json.loads(called.out)
    assert [one["key"].rpartition("-")[2] for one in told] == ["link1", "link2", "link3"]
    assert [one["dependencies"] for one in told] == [[], [told[0]["id"]], [told[1]["id"]]]
    first, second, third = ended(full_site, 3)
    assert (first.state, first.exit_code) == (BatchState.ENDED, 0), outputs(full_site)
    assert {second.state, third.state} <= {BatchState.CANCELLED, BatchState.ENDED}
    assert read_launch(full_site, third.key) is None or "nothing is left" in Path(third.output).read_text()
    assert nas_hpc("ls", "jobs", "--workflow", "C", "--state", "FAILED", "--json").out.count('"bad"') == 1


@pytest.mark.slow
def test_a_launcher_of_a_chain_with_nothing_left_to_do_ends_at_once(nas_hpc: Run, full_site: Site) -> None:
    assert nas_hpc("kill", "--workflow", "W", "--yes").code == 0
    assert nas_hpc(*LOCAL, "-n", "1", "--workflow", "W", "--chain", "2").code == 0
    ended(full_site, 2)
    first = read_jobs(full_site)[0]
    assert "nothing is left to do" in Path(first.output).read_text()
    launch = read_launch(full_site, first.key)
    assert launch is not None
    assert (launch.exit_code, launch.left) == (0, 0)


def test_the_line_of_the_seed_makes_a_script_for_theta_and_nothing_else(
    nas_hpc: Run, full_site: Site
) -> None:
    called = nas_hpc(*SEED, "--wf-filter", "W", "--machine", "theta", "--dry-run")
    assert called.code == 0, called
    assert called.out.splitlines()[:5] == [
        "#!/bin/bash", "#COBALT -A datascience", "#COBALT -n 128", "#COBALT -q default", "#COBALT -t 180",
    ]  # fmt: skip
    last = called.out.splitlines()[-1]
    assert last.startswith("exec ")
    assert last.endswith(" launcher --job-mode serial --wf-filter W")
    assert "nothing was submitted" in called.err
    assert "qsub --cwd" in called.err
    assert files(full_site) == []


def test_a_dry_run_as_json_has_script_and_command(nas_hpc: Run, full_site: Site) -> None:
    told = json.loads(nas_hpc(*LOCAL, "-n", "1", "--dry-run", "--json").out)
    assert told["script"].startswith("#!/bin/bash\n")
    assert told["command"][-1].endswith(f"{told['links'][0]}.sh")


def test_for_an_interactive_run_without_a_batch_system_it_says_what_to_type(nas_hpc: Run, site: Site) -> None:
    called = nas_hpc(*LOCAL, "-n", "2", "--workflow", "W", "--interactive")
    assert called.code == 0
    assert "nas-hpc launcher --job-mode mpi --wf-filter W --nodes 2 --time-limit-minutes 5" in called.out
    assert files(site) == []


def test_a_printed_template_can_be_kept_and_is_used(nas_hpc: Run, full_site: Site) -> None:
    printed = nas_hpc("submit-launch", "--machine", "local", "--show-template")
    assert printed.code == 0
    own = full_site.path / "templates"
    own.mkdir()
    (own / "local.sh.j2").write_text(printed.out.replace("exec ", "echo mine\nexec "))
    called = nas_hpc(*LOCAL, "-n", "1", "--dry-run")
    assert called.out.splitlines()[-2] == "echo mine"


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("-t", "5"), ("-n/--nodes is missing", "-n 4")),
        (("-n", "2"), ("-t/--time is missing", "-t 60")),
        (("-n", "0", "-t", "5"), ("0 is not allowed", "1")),
        (("-n", "2", "-t", "0"), ("below a minute", "180 (minutes)")),
        (("-n", "2", "-t", "00:00:30"), ("00:00:30", "below a minute")),
        (("-n", "2", "-t", "1:30"), ("'1:30'", "hours and minutes, or minutes and seconds")),
        (("-n", "2", "-t", "soon"), ("'soon'", "03:00:00")),
        (("-n", "2", "-t", "5", "--attrs", "mcdram"), ("'mcdram'", "k=v")),
        (("-n", "2", "-t", "5", "--attrs", "a=1:a=2"), ("a twice", "once")),
        (("-n", "2", "-t", "5", "--sched-flags", "'a"), ("--sched-flags", "quote")),
        (("-n", "2", "-t", "5", "--workflow", "NONE"), ("'NONE'", "there are V, W")),
        (("-n", "2", "-t", "5", "--interactive", "--chain", "2"), ("--interactive and --chain",)),
        (("-n", "2", "-t", "5", "--interactive", "--dry-run"), ("--interactive and --dry-run",)),
        (("-n", "2", "-t", "5", "--dependencies", "abc"), ("'abc' is no id",)),
        (
            ("-n", "2", "-t", "5", "-A", "--job-mode", "mpi"),
            ("'-A'", "'--job-mode' is a flag", "variable is not set"),
        ),
        (("-n", "2", "-t", "5", "--machine", "nowhere"), ("'nowhere'", "theta")),
        (("-n", "2", "-t", "5", "--machine", "theta", "-A", "p"), ("no qsub", "on PATH")),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_a_wrong_request_is_refused_in_one_line_and_writes_nothing(
    nas_hpc: Run,
    full_site: Site,
    monkeypatch: pytest.MonkeyPatch,
    argv: tuple[str, ...],
    said: tuple[str, ...],
) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    machine = () if "--machine" in argv else ("--machine", "local")
    called = nas_hpc("submit-launch", *machine, *argv)
    assert called.code == 2
    [line] = called.err.splitlines()
    assert [words for words in said if words not in line] == []
    assert files(full_site) == []


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("-n", "4", "-t", "30", "-q", "debug-cache-quad"), ("no project", "-A PROJECT")),
        (("-n", "9", "-t", "30", "-q", "debug-cache-quad", "-A", "p"), ("9 nodes", "8 at most")),
        (("-n", "127", "-t", "30", "-q", "default", "-A", "p"), ("127 nodes", "128 at least")),
        (("-n", "4", "-t", "61", "-q", "debug-cache-quad", "-A", "p"), ("61 min", "60 min", "at most")),
        (("-n", "4", "-t", "30", "-q", "debug-cache-quad", "-A", "a b"), ("'a b'", "-A")),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_thetas_limits_are_said_before_the_queue_says_them(
    nas_hpc: Run, full_site: Site, argv: tuple[str, ...], said: tuple[str, ...]
) -> None:
    called = nas_hpc("submit-launch", "--machine", "theta", "--dry-run", *argv)
    assert called.code == 2
    line = called.err.splitlines()[-1]
    assert [words for words in said if words not in line] == []
    assert called.out == ""
    assert files(full_site) == []


def test_what_the_batch_system_refuses_is_told_in_its_words_with_what_was_sent_and_recorded(
    nas_hpc: Run, full_site: Site, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("qsub", "qstat", "qdel"):
        (programs / name).write_text("#!/bin/sh\necho 'no allocation left on p' >&2\nexit 1\n")
        (programs / name).chmod(0o700)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    called = nas_hpc(*SEED, "--machine", "theta")
    assert called.code == 1
    [line] = called.err.splitlines()
    assert "no allocation left on p" in line
    assert "#COBALT -n 128" in line
    [job] = read_jobs(full_site)
    assert job.state is BatchState.REFUSED
    assert "no allocation left on p" in job.reason


def test_ids_and_attributes_are_read_as_they_are_written_on_several_machines() -> None:
    assert parse_ids(["1,2:3", "2", ""]) == ("1", "2", "3")
    assert parse_attrs(["mcdram=flat:numa=quad", "filesystems=home:eagle:place=scatter"]) == (
        "mcdram=flat", "numa=quad", "filesystems=home:eagle", "place=scatter",
    )  # fmt: skip
