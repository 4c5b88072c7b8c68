"""balsam-submit: a search and its batch job in one command, or nothing of either."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from nas_hpc.batch import submitting
from nas_hpc.batch.jobs import read_jobs
from nas_hpc.cli import search_job
from nas_hpc.cli.context import open_database
from nas_hpc.records import App, Job
from nas_hpc.site import Site
from nas_hpc.states import BatchState
from nas_hpc.store.base import JobFilter
from tests.cli.conftest import ECHO, Called, Run
from tests.support import assert_no_processes, wait_until

POLYNOME = "nas_hpc.problems.hps.polynome2"
OBJECTS = ("-p", f"{POLYNOME}.Problem", "-r", f"{POLYNOME}.run")
DEBUG = ("-t", "60", "-q", "debug-cache-quad", "-n", "4", "-A", "datascience", "-j", "mpi")
LINE = ("balsam-submit", "hps", "test", *OBJECTS, *DEBUG)
"""As users of Theta know it."""
QSUB = 'echo "$@" >>{log}; echo 512345'
QUEUES = """
cat <<'END'
Name              Users  Groups  MinTime   MaxTime   MaxRunning  MaxQueued  State
====================================================================================
debug-cache-quad  None   None    None      01:00:00  None        None       running
END
"""


@pytest.fixture
def theta(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Path:
    """Programs of Theta that are first on PATH, in this directory; qsub writes its arguments to qsub.log."""
    directory = tmp_path / "programs"
    directory.mkdir()
    for name, script in (
        ("qsub", QSUB.format(log=directory / "qsub.log")),
        ("qstat", "exit 1"),
        ("qdel", "exit 0"),
    ):
        program(directory, name, script)
    monkeypatch.setenv("PATH", f"{directory}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("NAS_HPC_MACHINE", "theta")
    monkeypatch.delenv("DEEPHYPER_WORKERS_PER_NODE", raising=False)
    if "imports" not in request.fixturenames:  # it takes seconds
        monkeypatch.setattr(search_job, "check_search", lambda *_, **__: None)
        monkeypatch.setattr(search_job, "check_objects", lambda problem, run: None)
    return directory


@pytest.fixture
def imports() -> None:
    """For tests in which problem and run function are really imported."""


def program(directory: Path, name: str, script: str) -> None:
    (directory / name).write_text(f"#!/bin/bash\n{script}\n")
    (directory / name).chmod(0o700)


@dataclass(frozen=True)
class Content:
    """What a site holds that this command may change."""

    jobs: list[Job]
    apps: list[App]
    files: list[str]


def content(site: Site) -> Content:
    with open_database(site, read_only=True) as store:
        files = sorted(path.name for folder in (site.qsubmit, site.data) for path in folder.rglob("*"))
        return Content(store.jobs(JobFilter()), store.apps(), files)


def refused(answer: Called, *said: str) -> None:
    """One line and exit code 2."""
    assert answer.code == 2
    line = answer.err.strip()
    assert "\n" not in line
    assert line.startswith("nas-hpc: error: ")
    for word in said:
        assert word in line


# -- what it shows and makes -------------------------------------------------------------------------
@pytest.mark.parametrize("by", ["flag", pytest.param("variable", marks=pytest.mark.slow)])
def test_the_dry_run_of_the_reference_prints_its_script_and_changes_nothing(
    nas_hpc: Run, site: Site, by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = content(site)
    monkeypatch.delenv("NAS_HPC_MACHINE", raising=False)
    if by == "variable":
        monkeypatch.setenv("NAS_HPC_MACHINE", "theta")
    machine = ("--machine", "theta") if by == "flag" else ()
    answer = nas_hpc(*LINE, "--dry-run", *machine)
    assert answer.code == 0, answer.err
    lines = answer.out.splitlines()
    assert lines[0] == "#!/bin/bash"
    directives = lines[1 : 1 + sum(line.startswith("#COBALT") for line in lines)]
    wanted = {"-A datascience", "-n 4", "-q debug-cache-quad", "-t 60"}
    assert wanted <= {line.removeprefix("#COBALT ") for line in directives}
    assert not any(quote in line for line in directives for quote in "'\"")
    assert content(site) == before


def test_it_makes_the_job_registers_the_application_submits_and_says_where(
    nas_hpc: Run, site: Site, theta: Path
) -> None:
    answer = nas_hpc(*LINE, "--", "--max-evals", "30")
    assert answer.code == 0, answer.err
    found = content(site)
    [job] = found.jobs
    assert (job.name, job.workflow, job.application) == ("test", "test", "AMBS")
    assert job.args == f"--evaluator balsam --problem {POLYNOME}.Problem --run {POLYNOME}.run --max-evals 30"
    assert job.environ == {}
    assert [app.name for app in found.apps] == ["AMBS"]
    [batch] = read_jobs(site)
    assert (batch.id, batch.state, batch.workflow) == ("512345", BatchState.QUEUED, "test")
    assert (batch.job_mode, batch.nodes, batch.walltime_minutes) == ("mpi", 4, 60)
    log = site.job_directory("test", job.directory_name) / "test.out"
    for word in (job.id, "512345", batch.script, batch.output, str(log)):
        assert word in answer.out
    assert Path(batch.script).read_text().splitlines()[-1].startswith("exec ")


def test_json_tells_the_same(nas_hpc: Run, site: Site, theta: Path) -> None:
    body = json.loads(nas_hpc(*LINE, "--json").out)
    [job] = content(site).jobs
    assert body["job"]["id"] == job.id
    assert [one["id"] for one in body["batch_jobs"]] == ["512345"]
    assert body["directory"] == str(site.job_directory("test", job.directory_name))


def test_the_packing_of_the_environment_is_recorded_in_serial_mode(
    nas_hpc: Run, site: Site, theta: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEEPHYPER_WORKERS_PER_NODE", "4")
    assert nas_hpc(*LINE, "-j", "serial", "--app", "RAN").code == 0
    [job] = content(site).jobs
    assert job.environ == {"DEEPHYPER_WORKERS_PER_NODE": "4"}
    assert job.resources.node_packing_count == 4
    assert job.application == "RAN"


def test_a_search_on_two_nodes_leaves_room_for_evaluations(nas_hpc: Run, site: Site, theta: Path) -> None:
    assert nas_hpc(*LINE, "-j", "serial", "-n", "2").code == 0
    assert content(site).jobs[0].resources.node_packing_count == 2


def test_files_are_named_by_their_whole_path(nas_hpc: Run, site: Site, theta: Path) -> None:
    Path("mine.py").write_text(f"from {POLYNOME} import Problem, run\n")
    line = ("balsam-submit", "hps", "test", "-p", "mine.py:Problem", "-r", "mine.py:run", *DEBUG)
    answer = nas_hpc(*line)
    assert answer.code == 0, answer.err
    assert f"--problem {Path.cwd()}/mine.py:Problem" in content(site).jobs[0].args


def test_a_users_own_application_of_that_name_is_not_replaced(nas_hpc: Run, site: Site, theta: Path) -> None:
    assert nas_hpc("app", "--name", "AMBS", "--exec", ECHO).code == 0
    before = content(site)
    refused(nas_hpc(*LINE), "application AMBS", "nas-hpc app --sync")
    assert content(site) == before


def test_a_search_by_another_python_of_the_users_is_kept(nas_hpc: Run, site: Site, theta: Path) -> None:
    other = theta / "python3"
    other.symlink_to(sys.executable)
    own = f"{other} -m nas_hpc.apps.ambs"
    assert nas_hpc("app", "--name", "AMBS", "--exec", own).code == 0
    answer = nas_hpc(*LINE)
    assert answer.code == 0
    assert f"application AMBS of this site runs by {other}" in answer.err
    assert [app.executable for app in content(site).apps] == [own]


def test_a_search_whose_python_has_gone_is_registered_anew(nas_hpc: Run, site: Site, theta: Path) -> None:
    with open_database(site) as store:
        store.put_app(App("AMBS", "/gone/python -m nas_hpc.apps.ambs", "", restartable=True))
    assert "which is gone" in nas_hpc(*LINE).err
    assert content(site).apps[0].executable.startswith(sys.executable)


# -- searches of architectures ------------------------------------------------------------------------
NAS = ("balsam-submit", "nas", "arch", *OBJECTS, *DEBUG)
ARCHITECTURES = """\
from nas_hpc.nas import NaProblem, SearchSpace, VariableNode
from nas_hpc.nas.operations import Dense
def create_space(input_shape, output_shape):
    space = SearchSpace(input_shape, output_shape)
    space.connect(space.inputs[0], VariableNode("form", [Dense(1), Dense(1, "tanh")]))
    return space
def load_data():
    raise AssertionError("the shapes are given")
Problem = NaProblem()
Problem.load_data(load_data)
Problem.search_space(create_space, input_shape=(3,), output_shape=(1,))
Problem.loss("mse")
Problem.objective("-val_loss__min")
def run(config):
    return config["arch_seq"][0]
"""


def test_agents_have_nodes_of_their_own_in_the_batch_job(nas_hpc: Run, site: Site, theta: Path) -> None:
    answer = nas_hpc(*NAS, "--app", "PPO", "--nas-nodes", "2", "--", "--network", "ppo_lnlstm_128")
    assert answer.code == 0, answer.err
    assert [app.executable.endswith("-m nas_hpc.apps.ppo") for app in content(site).apps] == [True]
    [job] = content(site).jobs
    assert (job.application, job.resources.num_nodes, job.resources.ranks_per_node) == ("PPO", 2, 1)
    assert job.args.endswith("--network ppo_lnlstm_128")


@pytest.mark.slow
def test_nas_submits_the_search_of_architectures_that_is_named(
    nas_hpc: Run, site: Site, theta: Path, imports: None
) -> None:
    Path("shapes.py").write_text(ARCHITECTURES)
    mine = ("-p", "shapes.py:Problem", "-r", "shapes.run", *DEBUG, "--no-check")
    for name, flags in (("EVO", ()), ("RAN", ("--app", "RAN")), ("AMBS", ("--app", "AMBS"))):
        answer = nas_hpc("balsam-submit", "nas", f"by{name}", *mine, *flags)
        assert answer.code == 0, answer.err
    found = content(site)
    assert {job.name: job.application for job in found.jobs} == {
        "byEVO": "EVO",
        "byRAN": "RAN",
        "byAMBS": "AMBS",
    }
    assert {job.args for job in found.jobs} == {
        f"--evaluator balsam --problem {os.getcwd()}/shapes.py:Problem --run shapes.run"
    }
    [evolution] = [app for app in found.apps if app.name == "EVO"]
    assert evolution.executable.endswith("-m nas_hpc.apps.regevo")
    before = content(site)
    wrong = nas_hpc("balsam-submit", "hps", "other", *mine)
    refused(wrong, "shapes.py:Problem' is one of architectures", "nas instead of hps")
    wrong = nas_hpc("balsam-submit", "nas", "other", *OBJECTS, *DEBUG, "--no-check")
    refused(wrong, f"{POLYNOME}.Problem' is one of hyperparameters", "hps instead of nas")
    assert content(site) == before


def test_a_search_by_agents_that_cannot_be_is_refused_before_anything_is_made(
    nas_hpc: Run, site: Site, theta: Path
) -> None:
    assert nas_hpc("app", "--sync").code == 0
    before = content(site)
    by_agents = (*NAS, "--app", "PPO")
    refused(nas_hpc(*by_agents, "-j", "serial"), "application PPO", "MPI ranks", "serial", "EVO, AMBS or RAN")
    refused(nas_hpc(*by_agents, "--nas-nodes", "3"), "--nas-nodes 3", "evaluators for 1 of 3 agents")
    refused(
        nas_hpc(*by_agents, "--", "--network", "ppo_gru_32"), "'ppo_gru_32'", "ppo_lstm_32", "ppo_lnlstm_128"
    )
    refused(nas_hpc(*by_agents, "--", "--max-evals", "1"), "--max-evals 1", "batches")
    refused(nas_hpc(*by_agents, "--", "--enough", "0.5"), "--enough 0.5", "--use-all-workers")
    assert content(site) == before


def test_an_application_of_the_site_with_the_name_of_a_search_is_not_taken_for_it(
    nas_hpc: Run, site: Site, theta: Path
) -> None:
    assert nas_hpc("app", "--name", "PPO", "--exec", ECHO).code == 0
    refused(
        nas_hpc(*NAS, "--app", "PPO"), "application PPO of this site", "nas-hpc app --sync", "nas-hpc job"
    )


def test_the_nodes_of_the_search_are_among_those_of_the_batch_job(
    nas_hpc: Run, site: Site, theta: Path
) -> None:
    refused(nas_hpc(*NAS, "--nas-nodes", "5"), "--nas-nodes 5", "4 (-n)")
    refused(nas_hpc(*NAS, "-j", "serial", "--nas-nodes", "2"), "--nas-nodes 2", "serial", "-j mpi")


# -- what is refused, before anything is made -----------------------------------------------------------
def without(*flags: str) -> tuple[str, ...]:
    """The line without these flags and their values."""
    words = list(LINE)
    for flag in flags:
        index = words.index(flag)
        del words[index : index + 2]
    return tuple(words)


NOT_LOADED = {
    "no module": (("-p", "no_such.Problem"), ("no_such",)),
    "no attribute": (("-p", f"{POLYNOME}.Probelm"), ("Probelm",)),
    "no function": (("-r", f"{POLYNOME}.walk"), ("walk",)),
    "import fails": (("-p", "broken.py:Problem"), ("broken", "ZeroDivisionError")),
    "flag": (("--", "--max-evals", "many"), ("many", "--max-evals")),
    "unknown flag": (("--", "--colour"), ("--colour",)),
}
BROKEN = {
    "word": (("--", "--problem", "x.y"), ("--problem", "before --")),
    "project": ((), ("no project", "-A PROJECT")),
    "queue": (("-q", "nosuch"), ("'nosuch'", "debug-cache-quad")),
    "too many nodes": (("-n", "9"), ("9 nodes", "8 at most")),
    "too few nodes": (("-n", "4", "-q", "default"), ("4 nodes", "128 at least")),
    "walltime": (("-t", "61"), ("61 min", "60 min (1 h) at most")),
    "walltime for so many nodes": (("-n", "130", "-q", "default", "-t", "200"), ("200 min", "180 min")),
    "no minute": (("-t", "0"), ("0", "minute")),
    "seconds": (("-t", "00:00:30"), ("00:00:30", "minute")),
    "no number": (("-t", "soon"), ("soon",)),
    "no nodes": (("-n", "0"), ("0",)),
    "blank": (("-A", "my project"), ("my project",)),
    "name": (("--app", "PPO"), ("PPO", "AMBS")),
}


@pytest.mark.parametrize(
    "name",
    # Each starts the user's Python with his modules.
    [pytest.param(name, marks=[pytest.mark.slow] if name != "import fails" else []) for name in NOT_LOADED],
)
def test_what_the_search_could_not_load_is_refused_and_nothing_is_made(
    nas_hpc: Run, site: Site, theta: Path, imports: None, name: str
) -> None:
    Path("broken.py").write_text("1 / 0\n")
    before = content(site)
    more, said = NOT_LOADED[name]
    refused(nas_hpc(*LINE, *more), *said)
    assert content(site) == before
    assert not (theta / "qsub.log").exists()


@pytest.mark.parametrize("name", BROKEN)
def test_what_cannot_be_is_refused_with_limit_and_value_and_nothing_is_made(
    nas_hpc: Run, site: Site, theta: Path, name: str
) -> None:
    program(theta, "qstat", QUEUES)
    before = content(site)
    more, said = BROKEN[name]
    line = without("-A") if name == "project" else LINE
    refused(nas_hpc(*line, *more), *said)
    assert content(site) == before
    assert not (theta / "qsub.log").exists()


def workers(count: str) -> Callable[[Path, pytest.MonkeyPatch], None]:
    return lambda _, patch: patch.setenv("DEEPHYPER_WORKERS_PER_NODE", count)


def no_qsub(directory: Path, patch: pytest.MonkeyPatch) -> None:
    (directory / "qsub").unlink()
    patch.setenv("PATH", str(directory))


def not_writable(_: Path, patch: pytest.MonkeyPatch) -> None:
    may = os.access

    def access(path: str | Path, mode: int, **more: bool) -> bool:
        return "qsubmit" not in str(path) and may(path, mode, **more)

    patch.setattr(os, "access", access)  # for root everything is writable


@pytest.mark.parametrize(
    ("prepare", "said"),
    [
        (workers("4"), ("DEEPHYPER_WORKERS_PER_NODE=4", "mpi", "1 job at most", "-j serial")),
        (workers("four"), ("DEEPHYPER_WORKERS_PER_NODE='four'",)),
        (workers("0"), ("DEEPHYPER_WORKERS_PER_NODE='0'",)),
        (no_qsub, ("qsub", "PATH", "--machine")),
        (not_writable, ("qsubmit", "not writable")),
    ],
    ids=["workers in mpi mode", "no number of workers", "no workers", "no qsub", "not writable"],
)
def test_surroundings_in_which_it_cannot_be_are_refused_and_nothing_is_made(
    nas_hpc: Run,
    site: Site,
    theta: Path,
    monkeypatch: pytest.MonkeyPatch,
    prepare: Callable[[Path, pytest.MonkeyPatch], None],
    said: tuple[str, ...],
) -> None:
    before = content(site)
    with monkeypatch.context() as patch:
        prepare(theta, patch)
        refused(nas_hpc(*LINE), *said)
    assert content(site) == before
    assert not (theta / "qsub.log").exists()


def test_a_workflow_that_exists_is_refused(nas_hpc: Run, full_site: Site, theta: Path) -> None:
    before = content(full_site)
    line = ("balsam-submit", "hps", "W", *OBJECTS, *DEBUG)
    for more in ((), ("--dry-run",)):
        refused(nas_hpc(*line, *more), "workflow 'W' exists", "nas-hpc rm --workflow W")
    assert content(full_site) == before


# -- when the batch system says no, or nothing -----------------------------------------------------------
def test_what_the_batch_system_refuses_is_told_in_its_words_and_the_same_line_can_be_typed_again(
    nas_hpc: Run, site: Site, theta: Path
) -> None:
    words = "The limit of 1 jobs per user in the 'debug-cache-quad' queue has been reached"
    program(theta, "qsub", f'echo "{words}" >&2; exit 1')
    answer = nas_hpc(*LINE)
    assert answer.code == 1
    assert words in answer.err
    assert "#COBALT -t 60" in answer.err  # what was sent
    assert content(site).jobs == []
    [record] = read_jobs(site)
    assert record.state is BatchState.REFUSED
    program(theta, "qsub", QSUB.format(log=theta / "qsub.log"))
    assert nas_hpc(*LINE).code == 0


def test_where_nobody_knows_whether_it_was_submitted_the_job_stays_and_that_is_told(
    nas_hpc: Run, site: Site, theta: Path
) -> None:
    program(theta, "qsub", "exit 0")  # success, and no id
    answer = nas_hpc(*LINE)
    assert answer.code == 1
    assert "If the batch job was not submitted: nas-hpc submit-launch --wf-filter test" in answer.err
    assert len(content(site).jobs) == 1


def test_of_a_chain_that_breaks_off_the_job_stays_for_what_was_submitted(
    nas_hpc: Run, site: Site, theta: Path
) -> None:
    once = "[ -e {0}/once ] && {{ echo 'queue is draining' >&2; exit 1; }}; touch {0}/once; echo 512345"
    program(theta, "qsub", once.format(theta))
    answer = nas_hpc(*LINE, "--chain", "2", "--no-check")
    assert answer.code == 1
    assert "is there and will run" in answer.err
    assert len(content(site).jobs) == 1


@pytest.mark.parametrize("submitted", [False, True])
def test_an_interruption_leaves_both_or_neither(
    nas_hpc: Run, site: Site, theta: Path, monkeypatch: pytest.MonkeyPatch, submitted: bool
) -> None:
    real = submitting.submit

    def interrupted(*args: object, **more: object) -> None:
        if submitted:
            real(*args, **more)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    monkeypatch.setattr(submitting, "submit", interrupted)
    before = content(site)
    answer = nas_hpc(*LINE)
    assert answer.code == 130
    now = content(site)
    if submitted:
        assert len(now.jobs) == len(read_jobs(site)) == 1
        assert "is there and will run" in answer.err
    else:
        assert (now.jobs, now.files) == (before.jobs, before.files)


@pytest.mark.slow
def test_ctrl_c_while_qsub_is_at_it_waits_for_its_answer_and_tells_what_is_there(
    site: Site, theta: Path, test_id: str
) -> None:
    wait = "touch {0}/begun; while [ ! -e {0}/go ]; do sleep 0.05; done; echo 512345"
    program(theta, "qsub", wait.format(theta))
    root = str(Path(__file__).resolve().parents[2])
    process = subprocess.Popen(
        [sys.executable, "-m", "nas_hpc.cli", *LINE], env={**os.environ, "PYTHONPATH": root},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    wait_until((theta / "begun").exists, 120, "qsub to begin")
    process.send_signal(signal.SIGINT)
    (theta / "go").touch()
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert "is there and will run" in err
    assert [job.workflow for job in content(site).jobs] == ["test"]
    assert [(one.id, one.state) for one in read_jobs(site)] == [("512345", BatchState.QUEUED)]
    assert_no_processes(test_id)
