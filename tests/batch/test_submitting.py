"""Planning and submitting batch jobs: what is refused before, what is written when, what is left after."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from nas_hpc.batch import script, submitting
from nas_hpc.batch.jobs import new_keys, read_job, read_jobs, write_job
from nas_hpc.batch.machine import Machine, Queue
from nas_hpc.batch.submitting import Planned, Wanted, abandon, command_of, plan, submit
from nas_hpc.batch.system import Ask, QueueState, Request, Status
from nas_hpc.config import Settings
from nas_hpc.errors import BatchRefused, BatchSilent, NasHpcError, SiteError, WrongCall
from nas_hpc.records import BatchJob
from nas_hpc.site import Site, create_site
from nas_hpc.states import BatchState
from tests.support import wait_until

WANTED = Wanted(nodes=2, walltime_minutes=30, queue="debug", project="p", workflow="W", job_mode="serial")
HERE = Machine(
    name="here", system="played", queues=(Queue("debug", max_nodes=8, max_minutes=60),), queue="debug"
)


@dataclass
class Played:
    """A batch system that answers with ids, or with what it is told to."""

    answers: list[str | BaseException]
    look: Callable[[Path], None] = lambda script: None
    name: str = "local"
    programs: tuple[str, ...] = ("true",)
    endings: tuple[str, ...] = (".output",)
    sent: list[Request] = field(default_factory=list)
    known: list[QueueState] | Exception = field(default_factory=list)

    def directives(self, request: Request) -> list[str]:
        return [f"#PLAYED after {' '.join(request.dependencies)}"]

    def submit(self, request: Request, script: Path, ask: Ask) -> str:
        if ask is not CALL:
            ask(["psub", str(script)])
        self.sent.append(request)
        self.look(script)
        answer = self.answers.pop(0)
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def queues(self, ask: Ask) -> list[QueueState]:
        if isinstance(self.known, Exception):
            raise self.known
        return self.known

    def status(self, jobs: Sequence[BatchJob], ask: Ask) -> dict[str, Status]:
        return {job.id: Status(BatchState.QUEUED) for job in jobs}


def CALL(argv: Sequence[str]) -> None:  # type: ignore[misc]
    raise AssertionError(f"{argv} was called")


@pytest.fixture
def site(tmp_path: Path) -> Site:
    site = create_site(tmp_path / "site")
    (site.path / "templates").mkdir()
    template = (
        "#!/bin/bash\n{% for line in directives %}\n{{ line }}\n{% endfor %}\n{{ command | join(' ') }}\n"
    )
    (site.path / "templates" / "played.sh.j2").write_text(template)
    return site


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> Played:
    system = Played([])
    for module in (submitting, script):
        monkeypatch.setattr(module, "system_of", lambda name: system)
    monkeypatch.setattr("nas_hpc.batch.following.system_of", lambda name: system)
    return system


def planned(site: Site, wanted: Wanted = WANTED, machine: Machine = HERE, **more: object) -> list[Planned]:
    return plan(site, machine, Settings(), wanted, **more)  # type: ignore[arg-type]


def files(site: Site) -> list[str]:
    return sorted(os.listdir(site.qsubmit))


def test_the_record_is_on_the_disk_before_the_batch_system_is_called_and_has_the_id_after(
    site: Site, played: Played
) -> None:
    before: list[BatchJob | None] = []
    played.answers = ["77"]
    played.look = lambda script: before.append(read_job(site, script.stem))
    [job] = submit(site, HERE, planned(site), pytest.fail, CALL)  # type: ignore[arg-type]
    [during] = before
    assert during is not None
    assert (during.state, during.id) == (BatchState.SUBMITTING, "")
    assert (job.id, job.state, job.workflow, job.nodes) == ("77", BatchState.QUEUED, "W", 2)
    assert read_job(site, job.key) == job
    assert Path(job.script).read_text().startswith("#!/bin/bash\n")
    assert files(site) == [f"{job.key}.json", f"{job.key}.sh"]


def test_each_of_a_chain_depends_on_the_one_before_it(site: Site, played: Played) -> None:
    played.answers = ["7", "8", "9"]
    wanted = replace(WANTED, chain=3, dependencies=("5",))
    jobs = submit(site, HERE, planned(site, wanted), pytest.fail, CALL)  # type: ignore[arg-type]
    assert [request.dependencies for request in played.sent] == [("5",), ("7",), ("8",)]
    assert [job.dependencies for job in read_jobs(site)] == [("5",), ("7",), ("8",)]
    assert {job.chain for job in jobs} == {jobs[0].key}
    for job, before in zip(jobs, ("5", "7", "8"), strict=True):
        text = Path(job.script).read_text()
        assert f"#PLAYED after {before}\n" in text
        assert text.endswith("--chained\n")


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (BatchRefused("no such project; sent: psub"), BatchState.REFUSED),
        (BatchSilent("psub did not answer within 20 s"), BatchState.SUBMITTING),
    ],
)
def test_what_went_wrong_in_the_middle_of_a_chain_is_recorded_and_what_was_submitted_told(
    site: Site, played: Played, error: NasHpcError, state: BatchState
) -> None:
    played.answers = ["7", error, "9"]
    told: list[str] = []
    with pytest.raises(type(error), match=error.message):
        submit(site, HERE, planned(site, replace(WANTED, chain=3)), told.append, CALL)  # type: ignore[arg-type]
    first, second = read_jobs(site)
    assert (first.id, first.state) == ("7", BatchState.QUEUED)
    assert (second.id, second.state, second.reason) == ("", state, error.message)
    [line] = told
    assert "submitted: 7 " in line
    assert "nas-hpc kill 7" in line
    assert sorted(files(site)) == sorted(
        f"{job.key}{end}" for job in (first, second) for end in (".sh", ".json")
    )


def test_a_signal_waits_until_the_answer_is_written_down(site: Site, played: Played) -> None:
    played.answers = ["7", "8"]
    played.look = lambda script: os.kill(os.getpid(), signal.SIGINT)
    told: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        submit(site, HERE, planned(site, replace(WANTED, chain=2)), told.append, CALL)  # type: ignore[arg-type]
    [job] = read_jobs(site)
    assert job.id == "7"
    assert len(played.sent) == 1
    assert "submitted: 7 " in told[0]


def test_a_plan_is_told_apart_from_what_is_there_and_leaves_nothing_when_it_is_given_up(
    site: Site, played: Played
) -> None:
    links = planned(site, replace(WANTED, chain=2))
    assert len(files(site)) == 2
    abandon(site, links)
    assert files(site) == []


def test_a_dry_run_writes_nothing_and_needs_no_batch_system(site: Site, played: Played) -> None:
    played.programs = ("no-such-program-xyz",)
    played.known = AssertionError("asked")
    notes: list[str] = []
    links = planned(site, replace(WANTED, queue="other"), reserve=False, note=notes.append)
    assert command_of(HERE, links[0]) == ("psub", links[0].job.script)
    assert files(site) == []
    assert any("no-such-program-xyz" in line for line in notes)
    with pytest.raises(WrongCall, match="there is no no-such-program-xyz on PATH"):
        planned(site)
    assert files(site) == []


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"nodes": 0}, "-n 0"),
        ({"walltime_minutes": 0}, "-t 0"),
        ({"nodes": 9}, "9 nodes.* 8 at most"),
        ({"walltime_minutes": 61}, "61 min.* 60 min .*at most"),
        ({"chain": 0}, "--chain 0"),
        ({"project": "my project"}, "-A: 'my project' has ' ' in it"),
        ({"queue": 'a"b'}, "-q: "),
        ({"attrs": ("a=$(x)",)}, "--attrs a: "),
        ({"dependencies": ("1 2",)}, "--dependencies"),
    ],
)
def test_a_wrong_request_is_refused_before_anything_is_written(
    site: Site, played: Played, changed: dict[str, object], said: str
) -> None:
    with pytest.raises(WrongCall, match=said):
        planned(site, replace(WANTED, **changed))  # type: ignore[arg-type]
    assert files(site) == []
    assert played.sent == []


def test_a_project_that_the_machine_wants_is_asked_for(site: Site, played: Played) -> None:
    with pytest.raises(WrongCall, match="add -A PROJECT"):
        planned(site, replace(WANTED, project=""), replace(HERE, project_required=True))


def test_without_the_checks_only_what_cannot_be_is_refused(site: Site, played: Played) -> None:
    unchecked = replace(WANTED, check=False, nodes=9)
    assert planned(site, unchecked)[0].request.nodes == 9
    with pytest.raises(WrongCall, match="-n 0"):
        planned(site, replace(unchecked, nodes=0))


def test_links_of_a_chain_count_as_queued_and_so_do_earlier_jobs(site: Site, played: Played) -> None:
    machine = replace(HERE, queues=(Queue("debug", max_queued=2),))
    with pytest.raises(WrongCall, match="a user may have 2"):
        planned(site, replace(WANTED, chain=3), machine)
    played.answers = ["7"]
    submit(site, machine, planned(site, WANTED, machine), pytest.fail, CALL)  # type: ignore[arg-type]
    with pytest.raises(WrongCall, match="a user may have 2"):
        planned(site, replace(WANTED, chain=2), machine)
    assert len(planned(site, WANTED, machine)) == 1


def test_a_queue_that_the_table_lacks_is_asked_of_the_batch_system(site: Site, played: Played) -> None:
    other = replace(WANTED, queue="R123")
    played.known = [QueueState("R123", max_nodes=1)]
    with pytest.raises(WrongCall, match="1 at most"):
        planned(site, other)
    played.known = [QueueState("else")]
    with pytest.raises(WrongCall, match="R123"):
        planned(site, other)
    played.known = BatchSilent("psub is away")
    notes: list[str] = []
    assert planned(site, other, note=notes.append)[0].request.queue == "R123"
    assert any("psub is away" in line for line in notes)


def test_attributes_of_a_user_go_before_the_machines(site: Site, played: Played) -> None:
    machine = replace(HERE, attrs=("filesystems=home", "place=scatter"), flags=("-V",))
    request = planned(site, replace(WANTED, attrs=("filesystems=eagle",), flags=("-x",)), machine)[0].request
    assert request.attrs == ("filesystems=eagle", "place=scatter")
    assert request.flags == ("-V", "-x")


def test_a_dependency_may_be_named_by_its_key(site: Site, played: Played) -> None:
    played.answers = ["7"]
    [first] = submit(site, HERE, planned(site), pytest.fail, CALL)  # type: ignore[arg-type]
    assert planned(site, replace(WANTED, dependencies=(first.key,)))[0].request.dependencies == ("7",)
    [key] = new_keys(site, "W")
    write_job(site, replace(first, key=key, id="", state=BatchState.REFUSED))
    with pytest.raises(WrongCall, match="has no id"):
        planned(site, replace(WANTED, dependencies=(key,)))


def test_a_broken_template_is_told_before_and_leaves_no_script(site: Site, played: Played) -> None:
    (site.path / "templates" / "played.sh.j2").write_text("#!/bin/bash\n{{ nothing }}\n")
    with pytest.raises(WrongCall, match="played.sh.j2, line 2"):
        planned(site)
    assert files(site) == []


def test_a_script_directory_that_takes_nothing_is_told_before(site: Site, played: Played) -> None:
    site.qsubmit.rmdir()
    with pytest.raises(SiteError, match="nothing was submitted"):
        planned(site)
    assert played.sent == []


QSUB = """#!/bin/sh
touch "$AT/called"
read line < "$AT/go"
echo 4711
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_command_that_is_ended_while_qsub_runs_leaves_a_record_that_is_true(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, checkout: Path, number: signal.Signals
) -> None:
    site = create_site(tmp_path / "site")
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("qsub", "qstat", "qdel"):
        (programs / name).write_text(QSUB)
        (programs / name).chmod(0o700)
    os.mkfifo(tmp_path / "go")
    monkeypatch.setenv("AT", str(tmp_path))
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(checkout))
    argv = [
        "submit-launch",
        "--machine",
        "theta",
        "-n",
        "4",
        "-t",
        "30",
        "-A",
        "p",
        "--chain",
        "2",
        "--no-check",
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "nas_hpc.cli", "--site", str(site.path), *argv],
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_until((tmp_path / "called").exists, 60.0, "qsub")
    process.send_signal(number)
    if number is signal.SIGKILL:
        process.communicate(timeout=60)
        (tmp_path / "go").write_text("\n")
        [job] = read_jobs(site)
        assert (job.id, job.state) == ("", BatchState.SUBMITTING)
        return
    (tmp_path / "go").write_text("\n")
    _, err = process.communicate(timeout=60)
    [job] = read_jobs(site)
    assert (job.id, job.state) == ("4711", BatchState.QUEUED)
    if number is signal.SIGINT:
        assert process.returncode == 130
        assert "submitted: 4711" in err
    else:
        assert process.returncode == -signal.SIGTERM
